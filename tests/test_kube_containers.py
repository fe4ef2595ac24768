"""The pods of the manifests as containers, from the project's image: ``make compose-test-all`` runs this.

Each pod is a group of containers that share a network namespace, with the manifests' commands, environment, Secrets,
volumes, users, read-only roots and limits, on a network where Services are names. What Docker hasn't: a scheduler,
KubeRay's operator (``by_kuberay`` writes ``ray start`` as it does), its autoscaler's container (here the test starts
workers; nodes that come by the queue are in test_kube_roles and test_elastic), probes that act, NetworkPolicies.
"""

import json
import os
import secrets
import shlex

import pytest

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.runs.request import make_spec
from kuberay import app as pages
from kuberay import deploy, deployment
from kuberay.values import load
from tests.support import compose
from tests.support.chaos import oracle
from tests.support.compose import docker
from tests.support.pods import Engine, Volume, by_kuberay, run_arguments, secret_env, service_names
from tests.support.waiting import wait_for

CHOSEN = os.environ.get("HZZRAY_COMPOSE")
EVENTS = 20_000
IMAGE = "hzzray:kubetest"
COUNT_NODES = """
import os, ray
ray.init(os.environ["HZZRAY_ADDRESS"], logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
"""
OWN = f"""\
image: {{name: hzzray, tag: kubetest}}
data: {{toy_events: {EVENTS}}}
loader: {{chunk: 4}}
"""


@pytest.fixture
def made(tmp_path):
    """The objects of a small deployment, by kind and name, and its Secrets' contents, KubeRay's too."""
    own = tmp_path / "own.yaml"
    own.write_text(OWN)
    values = load("minikube", own)
    found = {deployment.key(each): each for each in deployment.deployment(values)}
    found["RayJob", "standing"] = deployment.jobs(values)["standing"]
    contents = {each["metadata"]["name"]: each["stringData"] for each in deploy.new_secrets(values)}
    contents[values.token_secret] = {"auth_token": secrets.token_hex(16)}
    meta = {"name": values.head_service, "namespace": values.namespace}
    selector = {"ray.io/cluster": values.name, "ray.io/node-type": "head"}
    found["Service", values.head_service] = {"kind": "Service", "metadata": meta, "spec": {"selector": selector}}
    return values, found, contents


def test_a_container_is_run_as_its_manifest_says(made):
    values, found, contents = made
    cluster = found["RayCluster", values.name]
    head = by_kuberay(cluster, cluster["spec"]["headGroupSpec"], head=True)
    volumes = {each["name"]: Volume(f"v-{each['name']}", f"/engine/{each['name']}") for each in head["spec"]["volumes"]}
    bridge = head["spec"]["initContainers"][-1]
    said = run_arguments(head, bridge, volumes)
    assert {"--user=1000:1000", "--group-add=1000", "--read-only", "--cap-drop=ALL"} < set(said)
    assert "--security-opt=no-new-privileges" in said
    assert "--mount=type=volume,source=v-broker-login,target=/etc/hzzray/broker,readonly,volume-nocopy" in said
    assert said[said.index("--entrypoint=sh") + 1 :] == [values.image.reference, *bridge["command"][1:]]
    assert "--env=RAY_AUTH_TOKEN" in said  # named; its value is in nobody's list of processes
    assert secret_env(bridge, contents) == {"RAY_AUTH_TOKEN": contents[values.token_secret]["auth_token"]}
    assert contents[values.token_secret]["auth_token"] not in " ".join(said)
    with pytest.raises(AssertionError, match="lifecycle"):
        run_arguments(head, bridge | {"lifecycle": {}}, volumes)
    services = [each for (kind, _), each in found.items() if kind == "Service"]
    assert f"{values.head_service}.hzzray.svc" in service_names(head, services)
    assert service_names(cluster["spec"]["workerGroupSpecs"][0]["template"], services) == []


@pytest.fixture
def engine(made):
    if CHOSEN != "all":
        pytest.skip("make compose-test-all runs this")
    if not compose.engine_answers():
        pytest.skip("no Docker Engine with Compose v2 answers")
    docker("build", "--quiet", "--tag", IMAGE, ".", timeout=900)
    _, found, contents = made
    mine = Engine("hzzray-kubetest", IMAGE, found.values(), contents)
    try:
        yield mine
    finally:
        mine.end()


@pytest.mark.compose
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pods_do_runs_and_outlive_killed_ones(made, engine, tmp_path):
    values, found, _ = made
    toys = tmp_path / "toys"
    write_toys(toys, release("toy"), events=EVENTS)
    serial = oracle(tmp_path, toys, make_spec(release("toy")))

    stateful = found["StatefulSet", values.broker_name]["spec"]
    broker = engine.start(f"{values.broker_name}-0", stateful["template"], stateful["volumeClaimTemplates"])
    cluster = found["RayCluster", values.name]
    group = cluster["spec"]["headGroupSpec"]
    head = engine.start("head", by_kuberay(cluster, group, head=True))
    app = engine.start("app", found["Deployment", f"{values.name}-app"]["spec"]["template"])
    for pod, container in ((broker, "rabbitmq"), (app, "app")):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            wait_for(f"{probe} of {container}", lambda pod=pod, name=container, which=probe: pod.passes(name, which))

    def result(run_id):
        engine.check()
        text = app.exec("app", "cat", f"/runs/{run_id}/result.json", check=False)
        return json.loads(text) if text else None

    def over(run_id):
        found = result(run_id)
        return found if found is not None and found["status"] != "running" else None

    def publish(run_id):
        loader = values.loader.model_copy(update={"run_id": run_id})
        job = pages.loader(values.model_copy(update={"loader": loader}))
        engine.run("loader", job["spec"]["template"])

    def merged(run_id):
        return (result(run_id) or {"tasks": {"merged": 0}})["tasks"]["merged"]

    def under_way(run_id):
        wait_for(f"first results of {run_id}", lambda: merged(run_id) > 20, within=180, every=0.2)

    def completes(run_id):
        done = wait_for(f"the end of {run_id}", lambda: over(run_id), within=240, every=0.5)
        assert (done["status"], done["digest"], done["environment"]) == ("complete", serial, "kuberay")

    # A run is there before its workers; they come, as by demand, and one is killed in the middle.
    publish("first")
    group = cluster["spec"]["workerGroupSpecs"][0]
    worker = by_kuberay(cluster, group, head=False)
    first = engine.start("worker-1", worker)
    second = engine.start("worker-2", worker)
    under_way("first")
    engine.kill(first)
    assert result("first")["status"] == "running", "the run was over too soon"
    third = engine.start("worker-3", worker)
    completes("first")

    # The app reaches the cluster as its manifest says: the head's name and port, with the token.
    assert app.exec("app", "python", "-c", COUNT_NODES).split()[-1] == "3"

    # The head's pod goes, and with it the bridge and Ray's state; KubeRay makes the workers anew too.
    publish("second")
    under_way("second")
    for pod in (head, second, third):
        engine.kill(pod)
    assert result("second")["status"] == "running", "the run was over too soon"
    head = engine.start("head-2", by_kuberay(cluster, cluster["spec"]["headGroupSpec"], head=True))
    engine.start("worker-4", worker)
    completes("second")

    # The RayJob's submitter, which KubeRay gives its command and the token.
    submitter = found["RayJob", "standing"]["spec"]["submitterPodTemplate"]
    (submit,) = submitter["spec"]["containers"]
    run = shlex.split(found["RayJob", "standing"]["spec"]["entrypoint"])
    submit["command"] = ["ray", "job", "submit", f"--address=http://{values.head_service}.hzzray.svc:8265", "--", *run]
    token = {"name": values.token_secret, "key": "auth_token"}
    submit["env"] += [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": token}},
    ]
    said = engine.run("submitter", submitter)
    assert "succeeded" in said, said
    completes(run[run.index("--run-id") + 1])

    assert app.passes("app", "livenessProbe")
    if kept := os.environ.get("HZZRAY_KEEP"):
        docker("cp", f"{head.name}-ray-head:/runs/.", kept)
