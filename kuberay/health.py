"""What is ready, and why the rest isn't: pure functions of what Kubernetes says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kuberay.common import Object
from kuberay.values import Values

# What a container that starts says of itself.
_STARTING = {"ContainerCreating", "PodInitializing"}


@dataclass(frozen=True, slots=True)
class Part:
    """One thing of a deployment: whether it is ready, and how it is."""

    kind: str
    name: str
    ready: bool
    says: str


def parts(values: Values, wanted: Iterable[Object], found: Sequence[Object], events: Sequence[Object]) -> list[Part]:
    """Judge what was applied, and the pods that came of it.

    ``found`` is what is in the namespace, ``events`` what was told of it. Pods that have failed count only as long as
    their owner lacks them: a Job keeps its failed tries for a day, a Deployment its evicted pods for ever.
    """
    there = {(made["kind"], made["metadata"]["name"]): made for made in found}
    judged = []
    for made in wanted:
        kind, name = made["kind"], made["metadata"]["name"]
        if judge := _JUDGES.get(kind):
            live = there.get((kind, name))
            # A finished Job is removed after a while.
            ready, says = judge(live) if live else (kind == "Job", "not there")
            judged.append(Part(kind, name, ready, says or _last_event(kind, name, events)))
    content = {(part.kind, part.name): part.ready for part in judged}
    pods = [made for made in found if made["kind"] == "Pod" and is_ours(values, made)]
    gone = _superseded(pods, there, content)
    shown = sorted((made for made in pods if made["metadata"]["name"] not in gone), key=_name)
    return judged + [Part("Pod", _name(made), *state_of_pod(made, events)) for made in shown]


def _superseded(
    pods: Iterable[Object], there: Mapping[tuple[str, str], Object], content: Mapping[tuple[str, str], bool]
) -> set[str]:
    """Name the pods that have failed and that nobody waits for any more; ``content`` says of owners what they have."""
    failed: dict[tuple[str, str], list[Object]] = {}
    for made in pods:
        if made.get("status", {}).get("phase") == "Failed":
            failed.setdefault(_owner(made), []).append(made)
    gone: set[str] = set()
    for owner, tries in failed.items():
        kind, _ = owner
        if kind == "Job":
            # Of a Job that is between two tries, or has given up, the last one tells.
            over = content.get(owner, True) or there[owner].get("status", {}).get("active", 0) > 0
            last = max(tries, key=lambda made: made["metadata"].get("creationTimestamp") or "")
            gone |= {_name(made) for made in tries if over or made is not last}
        elif content.get(owner):
            gone |= {_name(made) for made in tries}
    return gone


def _owner(pod: Object) -> tuple[str, str]:
    """Find what a pod is made by; for a ReplicaSet that is its Deployment, whose name it has with a hash behind."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            kind, name = owner["kind"], owner["name"]
            return ("Deployment", name.rpartition("-")[0]) if kind == "ReplicaSet" else (kind, name)
    return "", ""


def _name(made: Object) -> str:
    name: str = made["metadata"]["name"]
    return name


def is_ours(values: Values, pod: Object) -> bool:
    """Tell whether a pod belongs to the deployment: by our labels, or by those of the operators."""
    labels: Mapping[str, str] = pod["metadata"].get("labels", {})
    return (
        labels.get("app.kubernetes.io/part-of") == values.name
        or labels.get("app.kubernetes.io/name") == values.broker_name
        or labels.get("ray.io/cluster") == values.name
    )


def _condition(made: Object, name: str) -> Object:
    conditions: list[Object] = made.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == name), {})


def _ray_cluster(made: Object) -> tuple[bool, str]:
    status: Object = made.get("status", {})
    head = _condition(made, "HeadPodReady")
    if head.get("status") != "True":
        return False, head.get("message") or status.get("reason") or "its head isn't ready"
    workers = status.get("readyWorkerReplicas", 0)
    return True, f"head and {workers} of {status.get('desiredWorkerReplicas', workers)} workers"


def _rabbitmq(made: Object) -> tuple[bool, str]:
    ready = _condition(made, "AllReplicasReady")
    return ready.get("status") == "True", ready.get("message") or ready.get("reason") or ""


def _stateful_set(made: Object) -> tuple[bool, str]:
    wanted, ready = made["spec"].get("replicas", 1), made.get("status", {}).get("readyReplicas", 0)
    return ready >= wanted, f"{ready} of {wanted} ready"


def _deployment(made: Object) -> tuple[bool, str]:
    status: Object = made.get("status", {})
    wanted, ready = made["spec"].get("replicas", 1), status.get("availableReplicas", 0)
    seen = status.get("observedGeneration", 0) >= made["metadata"].get("generation", 0)
    return seen and ready >= wanted, f"{ready} of {wanted} ready"


def _job(made: Object) -> tuple[bool, str]:
    status: Object = made.get("status", {})
    if _condition(made, "Complete").get("status") == "True":
        tries = status.get("failed", 0)
        return True, f"complete, after {tries} that failed" if tries else "complete"
    failed = _condition(made, "Failed")
    if failed.get("status") == "True":
        return False, f"failed: {failed.get('message') or failed.get('reason')}"
    return False, f"{status.get('active', 0)} running, {status.get('failed', 0)} failed"


def _claim(made: Object) -> tuple[bool, str]:
    phase = made.get("status", {}).get("phase", "Pending")
    return phase == "Bound", "bound" if phase == "Bound" else ""


_JUDGES: dict[str, Callable[[Object], tuple[bool, str]]] = {
    "RayCluster": _ray_cluster,
    "RabbitmqCluster": _rabbitmq,
    "StatefulSet": _stateful_set,
    "Deployment": _deployment,
    "Job": _job,
    "PersistentVolumeClaim": _claim,
}

#: Kinds that are judged, as ``kubectl get`` takes them; the first two only where their operators are.
KINDS = {
    "RayCluster": "rayclusters.ray.io",
    "RabbitmqCluster": "rabbitmqclusters.rabbitmq.com",
    "StatefulSet": "statefulsets",
    "Deployment": "deployments",
    "Job": "jobs",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
}


def state_of_pod(made: Object, events: Sequence[Object]) -> tuple[bool, str]:
    """Tell whether a pod does what it should, and else why it doesn't."""
    status: Object = made.get("status", {})
    phase = status.get("phase", "Pending")
    if phase == "Succeeded":
        return True, "completed"
    if made["metadata"].get("deletionTimestamp"):
        return True, "is going"
    if troubles := list(_troubles(status)):
        return False, "; ".join(troubles)
    if _condition(made, "Ready").get("status") == "True":
        return True, "running"
    return False, _last_event("Pod", _name(made), events, normal=False) or "starting"


def _troubles(status: Object) -> Iterator[str]:
    """Say what is wrong with a pod: no machine takes it, it was evicted, a container doesn't run."""
    scheduled = _condition({"status": status}, "PodScheduled")
    if scheduled.get("status") == "False":
        yield f"{scheduled.get('reason', 'Pending')}: {scheduled.get('message', 'no machine has room for it')}"
    if status.get("phase") == "Failed" and (reason := status.get("reason")):
        yield f"{reason}: {status.get('message') or ''}".removesuffix(": ")
    for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state: Object = each.get("state", {})
        last: Object = each.get("lastState", {}).get("terminated") or {}
        if (waiting := state.get("waiting")) and waiting.get("reason") not in _STARTING:
            said = f"{each['name']}: {waiting.get('reason')}: {waiting.get('message') or ''}".removesuffix(": ")
            yield said + (f" (it {_ending(last)})" if last else "")
        elif (ended := state.get("terminated")) and ended.get("exitCode") != 0:
            yield f"{each['name']} {_ending(ended)}"
        elif last.get("exitCode") and not each.get("ready"):
            yield f"{each['name']} {_ending(last)}, and was started again"


def _ending(ended: Object) -> str:
    if ended.get("reason") == "OOMKilled":
        return "was killed for want of memory: its limit is too small"
    lines = [line.strip() for line in (ended.get("message") or "").splitlines() if line.strip()]
    return f"ended with exit code {ended.get('exitCode')}" + (f": {lines[-1]}" if lines else "")


def _last_event(kind: str, name: str, events: Sequence[Object], *, normal: bool = True) -> str:
    """Find what was last told of an object, without what is in order if ``normal`` is off."""
    about = [
        each
        for each in events
        if each.get("involvedObject", {}).get("kind") == kind
        and each["involvedObject"].get("name") == name
        and (normal or each.get("type") != "Normal")
    ]
    if not about:
        return ""
    last = max(about, key=lambda each: each.get("lastTimestamp") or each.get("eventTime") or "")
    return f"{last.get('reason')}: {' '.join((last.get('message') or '').split())}"
