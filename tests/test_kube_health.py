"""Whether parts of a deployment are ready, and the reasons why not, from what Kubernetes says."""

from __future__ import annotations

import pytest

from kuberay import deployment
from kuberay.health import Part, parts
from kuberay.values import load

VALUES = load("minikube")
MINE = {"app.kubernetes.io/part-of": "hzzray"}


def pod(name: str = "p", labels=None, **status):
    return {"kind": "Pod", "metadata": {"name": name, "labels": labels or MINE}, "status": status}


def judge(made, events=()) -> Part:
    (part,) = parts(VALUES, [] if made["kind"] == "Pod" else [made], [made], events)
    return part


def condition(kind: str, status: str, **rest) -> dict[str, object]:
    return {"conditions": [{"type": kind, "status": status, **rest}]}


def waiting(reason: str, message: str = "", last: dict[str, object] | None = None, **where):
    state = {"name": "app", "state": {"waiting": {"reason": reason, "message": message}}}
    return {"containerStatuses": [state | ({"lastState": {"terminated": last}} if last else {})], **where}


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (
            condition("PodScheduled", "False", reason="Unschedulable", message="0/1 nodes: 1 Insufficient cpu."),
            "Unschedulable: 0/1 nodes: 1 Insufficient cpu.",
        ),
        (
            waiting("ImagePullBackOff", "Back-off pulling hzzray:0.2.0"),
            "app: ImagePullBackOff: Back-off pulling hzzray",
        ),
        (waiting("ErrImageNeverPull"), "app: ErrImageNeverPull"),
        (waiting("CreateContainerConfigError", 'secret "hzzray" not found'), 'secret "hzzray" not found'),
        (
            waiting("CrashLoopBackOff", "back-off 10s", {"reason": "Error", "exitCode": 2}),
            "app: CrashLoopBackOff: back-off 10s (it ended with exit code 2)",
        ),
        (
            waiting("CrashLoopBackOff", "back-off 10s", {"reason": "OOMKilled", "exitCode": 137}),
            "(it was killed for want of memory: its limit is too small)",
        ),
        (
            {"initContainerStatuses": [{"name": "toy-data", "state": {"terminated": {"exitCode": 1}}}]},
            "toy-data ended with exit code 1",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted: low on memory"),
        ({"phase": "Running"}, "starting"),
        (waiting("ContainerCreating"), "starting"),
        ({}, "starting"),
    ],
)
def test_why_a_pod_is_not_ready(status, says):
    part = judge(pod(**status))
    assert not part.ready
    assert says in part.says


def test_a_probe_that_fails_is_told_by_its_last_event():
    def event(time: str, message: str, name: str = "p"):
        about = {"kind": "Pod", "name": name}
        return {"involvedObject": about, "reason": "Unhealthy", "message": message, "lastTimestamp": time}

    events = [event("2026-01-01T00:00:02Z", "Readiness probe\nfailed: 503"), event("2026-01-01T00:00:01Z", "earlier")]
    events.append(event("2026-01-01T00:00:03Z", "another's", "q"))
    assert judge(pod(phase="Running"), events).says == "Unhealthy: Readiness probe failed: 503"


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"phase": "Running", **condition("Ready", "True")}, "running"),
        ({"phase": "Succeeded"}, "completed"),
    ],
)
def test_pods_that_are_well(status, says):
    part = judge(pod(**status))
    assert part.ready
    assert part.says == says


def test_a_pod_on_its_way_out_holds_nothing_up():
    made = pod(phase="Running")
    made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert judge(made).ready


def test_only_our_pods_count():
    found = [
        pod("theirs", {"app": "x"}),
        pod("ours"),
        pod("rays", {"ray.io/cluster": "hzzray"}),
        pod("rabbits", {"app.kubernetes.io/name": "hzzray-broker", "app.kubernetes.io/part-of": "rabbitmq"}),
    ]
    assert [part.name for part in parts(VALUES, [], found, [])] == ["ours", "rabbits", "rays"]


JOB = "hzzray-loader-1"


def tries(*phases: str, kind: str = "Job", name: str = JOB):
    """Pods of one owner, in the order in which they were made."""
    made = []
    for number, phase in enumerate(phases):
        each = pod(f"try-{number}", phase=phase)
        each["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:{number:02d}Z"
        each["metadata"]["ownerReferences"] = [{"kind": kind, "name": name, "controller": True}]
        made.append(each)
    return made


@pytest.mark.parametrize(
    ("status", "phases", "shown"),
    [
        ({"failed": 2, "succeeded": 1} | condition("Complete", "True"), ["Failed", "Failed", "Succeeded"], {2}),
        ({"failed": 2, "active": 1}, ["Failed", "Failed", "Running"], {2}),
        ({"failed": 3}, ["Failed", "Failed", "Failed"], {2}),
        ({"failed": 2} | condition("Failed", "True"), ["Failed", "Failed"], {1}),
    ],
)
def test_of_a_jobs_failed_tries_only_the_last_counts_and_only_while_it_matters(status, phases, shown):
    """Issue 11, item 28: each failed try counted, for the day that it stays."""
    job = {"kind": "Job", "metadata": {"name": JOB}, "status": status}
    judged = parts(VALUES, [job], [job, *tries(*phases)], [])
    assert {part.name for part in judged if part.kind == "Pod"} == {f"try-{number}" for number in shown}


def test_tries_of_a_job_that_is_no_part_of_it_any_more_do_not_count():
    """Issue 11, item 28: another choice for the loader makes another Job; the old one's pods stay for a day."""
    old = {"kind": "Job", "metadata": {"name": JOB}, "status": {"failed": 1} | condition("Failed", "True")}
    assert parts(VALUES, [], [old, *tries("Failed")], []) == []
    assert parts(VALUES, [], tries("Failed"), []) == []  # nor of one that is gone


@pytest.mark.parametrize(("available", "counts"), [(1, False), (0, True)])
def test_an_evicted_pod_counts_until_another_is_there(available, counts):
    """Issue 11, item 28, the same for a Deployment: its evicted pods are kept until somebody deletes them."""
    app = {"kind": "Deployment", "metadata": {"name": "hzzray-app"}, "spec": {}}
    app["status"] = {"availableReplicas": available}
    found = [app, *tries("Failed", kind="ReplicaSet", name="hzzray-app-7d9f8c")]
    assert any(part.kind == "Pod" for part in parts(VALUES, [app], found, [])) is counts


def test_the_last_words_of_a_container_are_told():
    """Issue 11, item 28: status said no more than an exit code."""
    ended = {"exitCode": 1, "reason": "Error", "message": "waiting\n\nhzzray: no broker at amqp://b: refused\n"}
    part = judge(pod(**waiting("CrashLoopBackOff", "back-off 10s", ended)))
    assert part.says.endswith("(it ended with exit code 1: hzzray: no broker at amqp://b: refused)")
    again = {"name": "app", "ready": False, "state": {"running": {}}, "lastState": {"terminated": ended}}
    part = judge(pod(containerStatuses=[again], phase="Running"))
    assert part.says == "app ended with exit code 1: hzzray: no broker at amqp://b: refused, and was started again"
    assert judge(pod(containerStatuses=[again | {"ready": True}], phase="Running", **condition("Ready", "True"))).ready


HEAD_READY = condition("HeadPodReady", "True")
TWO_WORKERS = {"readyWorkerReplicas": 1, "desiredWorkerReplicas": 2}
NO_QUORUM = condition("AllReplicasReady", "False", reason="NotAllPodsReady")


def thing(kind: str, status: dict[str, object] | None = None, **spec):
    return {"kind": kind, "metadata": {"name": "x", "generation": 2}, "spec": spec, "status": status or {}}


@pytest.mark.parametrize(
    ("made", "ready", "says"),
    [
        (thing("RayCluster"), False, "its head isn't ready"),
        (thing("RayCluster", condition("HeadPodReady", "False", message="no head yet")), False, "no head yet"),
        (
            thing(
                "RayCluster", condition("HeadPodReady", "True") | {"readyWorkerReplicas": 1, "desiredWorkerReplicas": 2}
            ),
            True,
            "head and 1 of 2 workers",
        ),
        (thing("RayCluster", HEAD_READY), True, "head and 0 of 0 workers"),
        (
            thing("RabbitmqCluster", condition("AllReplicasReady", "False", reason="NotAllPodsReady")),
            False,
            "NotAllPodsReady",
        ),
        (thing("RabbitmqCluster", condition("AllReplicasReady", "True")), True, ""),
        (thing("StatefulSet", {"readyReplicas": 1}, replicas=1), True, "1 of 1 ready"),
        (thing("StatefulSet", {}, replicas=1), False, "0 of 1 ready"),
        (thing("Deployment", {"availableReplicas": 1, "observedGeneration": 2}, replicas=1), True, "1 of 1 ready"),
        (thing("Deployment", {"availableReplicas": 1, "observedGeneration": 1}, replicas=1), False, "1 of 1 ready"),
        (thing("Job", condition("Complete", "True")), True, "complete"),
        (thing("Job", condition("Failed", "True", message="backoff limit")), False, "failed: backoff limit"),
        (thing("Job", {"active": 1, "failed": 3}), False, "1 running, 3 failed"),
        (thing("PersistentVolumeClaim", {"phase": "Bound"}), True, "bound"),
        (thing("PersistentVolumeClaim", {"phase": "Pending"}), False, ""),
    ],
)
def test_what_the_rest_says(made, ready, says):
    assert judge(made) == Part(made["kind"], "x", ready, says)


def test_a_claim_that_waits_says_what_for():
    about = {"kind": "PersistentVolumeClaim", "name": "x"}
    event = {"involvedObject": about, "reason": "ProvisioningFailed", "message": "no class fast", "eventTime": "1"}
    assert judge(thing("PersistentVolumeClaim"), [event]).says == "ProvisioningFailed: no class fast"


def test_what_went_well_is_no_reason_why_a_pod_is_not_ready():
    """Issue 11, item 33: all events are asked for now, as a claim's reason is of type Normal."""
    about = {"involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": "2"}
    events = [about | {"type": "Normal", "reason": "Started", "message": "Started container"}]
    assert judge(pod(phase="Running"), events).says == "starting"
    events.append(about | {"type": "Warning", "reason": "Unhealthy", "message": "503", "lastTimestamp": "1"})
    assert judge(pod(phase="Running"), events).says == "Unhealthy: 503"


def test_what_should_be_there_and_is_not():
    judged = parts(VALUES, deployment.deployment(VALUES), [], [])
    assert {part.kind: (part.ready, part.says) for part in judged} == {
        "PersistentVolumeClaim": (False, "not there"),
        "StatefulSet": (False, "not there"),
        "RayCluster": (False, "not there"),
        "Deployment": (False, "not there"),
        "Job": (True, "not there"),  # removed some time after it has ended
    }
