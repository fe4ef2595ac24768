"""``hzzray kube`` against stand-ins: an API server that a real kubectl talks to, and a kubectl for ports and jobs."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from kuberay import deployment
from kuberay import submit as jobs
from kuberay.kubectl import Kubectl
from kuberay.values import load
from tests.support.kube_api import kube_api
from tests.support.kubectl_stand_in import KubectlStandIn
from tests.support.rabbit import free_ports
from tests.support.waiting import wait_for

HZZRAY = str(Path(sys.executable).with_name("hzzray"))


@pytest.fixture
def api(tmp_path, monkeypatch):
    """An API server with KubeRay's kinds, that kubectl finds."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    with kube_api(tmp_path) as served:
        served.install("ray.io")
        monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
        monkeypatch.setenv("HOME", str(tmp_path))  # where kubectl keeps what it learnt of a server
        yield served


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    folder = tmp_path / "kubectl"
    folder.mkdir()
    made = KubectlStandIn(folder)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    return made


def own_ports() -> list[str]:
    """Options of ``forward`` with ports that nobody has."""
    names = ("--app-port", "--dashboard-port", "--management-port", "--broker-port")
    return [word for name, port in zip(names, free_ports(4), strict=True) for word in (name, str(port))]


def make_well(api, overlay="minikube"):
    """Do what controllers would: say of each thing that it is ready."""
    well = {
        "RayCluster": ("rayclusters", {"conditions": [{"type": "HeadPodReady", "status": "True"}]}),
        "StatefulSet": ("statefulsets", {"readyReplicas": 1}),
        "Deployment": ("deployments", {"availableReplicas": 1}),
        "Job": ("jobs", {"conditions": [{"type": "Complete", "status": "True"}]}),
        "PersistentVolumeClaim": ("persistentvolumeclaims", {"phase": "Bound"}),
    }
    for made in deployment.deployment(load(overlay)):
        if made["kind"] in well:
            resource, status = well[made["kind"]]
            api.put(resource, made | {"status": status}, "hzzray")


def test_up_applies_all_of_it_and_again_changes_no_password(api, cli):
    code, said, err = cli("kube", "up", "--overlay", "minikube", "--no-wait")
    assert code == 0, err
    wanted = deployment.deployment(load("minikube"))
    assert len([call for call in api.changes() if call.startswith("PATCH")]) == len(wanted) - 1
    made = {name for resource, _, name in api.objects if resource != "secrets"}
    assert made == {each["metadata"]["name"] for each in wanted}
    assert "raycluster.ray.io/hzzray serverside-applied" in said
    before = {key: made["stringData"] for key, made in api.objects.items() if key[0] == "secrets"}
    assert before["secrets", "hzzray", "hzzray-broker"].keys() == {"admin", "publisher", "bridge"}
    assert not any(password in said for each in before.values() for password in each.values())
    code, _, err = cli("kube", "up", "--overlay", "minikube", "--no-wait")
    assert code == 0, err
    assert before == {key: made["stringData"] for key, made in api.objects.items() if key[0] == "secrets"}


def test_up_waits_until_all_is_ready(api):
    command = [HZZRAY, "kube", "up", "--overlay", "minikube", "--timeout", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("waiting  RayCluster hzzray: its head isn't ready"):
                make_well(api)
                break
        said = process.stdout.read()
    assert process.returncode == 0, said
    assert "ready    RayCluster hzzray: head and 0 of 0 workers" in said
    assert "all ready" in said


def test_up_says_why_something_is_not_ready(api, cli):
    reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient memory"}
    labels = {"ray.io/cluster": "hzzray"}
    api.put("pods", {"metadata": {"name": "head", "labels": labels}, "status": {"conditions": [reason]}}, "hzzray")
    code, _, err = cli("kube", "up", "--overlay", "minikube", "--timeout", "1")
    assert code == 1
    assert "Pod head: Unschedulable: Insufficient memory" in err
    assert len(err.strip().splitlines()) == 1


def test_status_shows_each_part(api, cli):
    make_well(api)
    code, said, err = cli("kube", "status", "--overlay", "minikube")
    assert code == 0, err
    assert said.count("✓") == 5
    api.objects["deployments", "hzzray", "hzzray-app"]["status"] = {}
    code, said, _ = cli("kube", "status", "--overlay", "minikube", "--json")
    told = json.loads(said)
    lacking = [(part["kind"], part["name"]) for part in told["parts"] if not part["ready"]]
    assert (code, told["ready"], lacking) == (1, False, [("Deployment", "hzzray-app")])
    code, said, _ = cli("kube", "status", "--overlay", "minikube")
    assert code == 1
    assert said.count("✗") == 1


def loader_of(overlay="minikube"):
    """The Job that publishes."""
    (made,) = [each for each in deployment.deployment(load(overlay)) if each["kind"] == "Job"]
    return made


def test_tries_that_failed_before_the_loader_succeeded_hold_nothing_up(api, cli):
    """Issue 11, item 28: `up` of a working deployment ended with 1 after 900 s, and `status` did so for a day."""
    make_well(api)
    api.fail_and_succeed(loader_of(), 2)
    code, said, err = cli("kube", "up", "--overlay", "minikube", "--timeout", "5")
    assert code == 0, err
    assert "all ready" in said
    code, said, err = cli("kube", "status", "--overlay", "minikube")
    assert code == 0, said
    assert "complete, after 2 that failed" in said
    assert "✗" not in said


def test_status_says_why_a_container_ended(api, cli):
    """Issue 11, item 28: by its own last line, which FallbackToLogsOnError keeps."""
    make_well(api)
    api.fail_and_succeed(loader_of(), 3, then="waits")
    code, said, _ = cli("kube", "status", "--overlay", "minikube")
    assert code == 1
    assert "loader ended with exit code 1: hzzray: try 2 found no broker" in said
    assert said.count("✗") == 2  # the Job, and its last try alone


def test_status_says_what_a_claim_waits_for(api, cli):
    """Issue 11, item 33: the event is of type Normal, and only warnings were asked for."""
    make_well(api)
    api.objects["persistentvolumeclaims", "hzzray", "hzzray-runs"]["status"] = {"phase": "Pending"}
    api.tell("PersistentVolumeClaim", "hzzray-runs", "WaitForFirstConsumer", "waiting for a pod", warning=False)
    code, said, _ = cli("kube", "status", "--overlay", "minikube")
    assert code == 1
    assert "hzzray-runs" in said
    assert "WaitForFirstConsumer: waiting for a pod" in said


def test_status_cuts_no_name(api, cli, monkeypatch):
    """Issue 11, item 33: a table of the terminal's width made `hzzray-workers-work…` of them."""
    monkeypatch.setenv("COLUMNS", "40")
    make_well(api)
    name = "hzzray-workers-worker-a-name-as-long-as-kuberay-makes-them-x7f2k"
    labels = {"ray.io/cluster": "hzzray"}
    why = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room " * 20}]
    api.put("pods", {"metadata": {"name": name, "labels": labels}, "status": {"conditions": why}}, "hzzray")
    _, said, _ = cli("kube", "status", "--overlay", "minikube")
    (line,) = [line for line in said.splitlines() if "Unschedulable" in line]
    assert line.split()[:3] == ["✗", "Pod", name]
    assert ("no room " * 20).strip() in line


def test_up_removes_budgets_of_an_earlier_version(api, cli):
    """Issue 11, item 32: a budget of one of one blocks `kubectl drain` for ever, also where it was made before."""
    ours = {"app.kubernetes.io/managed-by": "hzzray", "app.kubernetes.io/part-of": "hzzray"}
    api.put("poddisruptionbudgets", {"metadata": {"name": "hzzray-head", "labels": ours}}, "hzzray")
    api.put("poddisruptionbudgets", {"metadata": {"name": "theirs"}}, "hzzray")
    code, said, err = cli("kube", "up", "--overlay", "minikube", "--no-wait")
    assert code == 0, err
    assert api.names("poddisruptionbudgets") == {"theirs"}
    assert 'poddisruptionbudget.policy "hzzray-head" deleted' in said


def test_down_removes_what_it_made_and_nothing_else(api, cli):
    cli("kube", "up", "--overlay", "minikube", "--no-wait")
    api.put("configmaps", {"metadata": {"name": "theirs", "labels": {"app": "x"}}}, "hzzray")
    api.put("configmaps", {"metadata": {"name": "kube-root-ca.crt"}}, "hzzray")
    api.put("priorityclasses", {"metadata": {"name": "theirs"}})
    api.calls.clear()
    code, said, err = cli("kube", "down", "--overlay", "minikube", "--yes")
    assert code == 0, err
    assert {name for _, _, name in api.objects} == {"theirs", "kube-root-ca.crt", "hzzray"}
    assert "namespace hzzray stays: ConfigMap theirs in it" in said
    # KubeRay cleans Redis up when the cluster goes: what it needs for that goes later.
    assert "/rayclusters/" in api.changes()[0]
    del api.objects["configmaps", "hzzray", "theirs"]
    code, said, err = cli("kube", "down", "--overlay", "minikube", "--yes")
    assert code == 0, err
    assert {name for _, _, name in api.objects} == {"theirs"}


def test_down_may_keep_the_data(api, cli):
    cli("kube", "up", "--overlay", "minikube", "--no-wait")
    code, _, err = cli("kube", "down", "--overlay", "minikube", "--keep-data")
    assert code == 0, err
    kept = {resource for resource, _, _ in api.objects}
    assert kept == {"namespaces", "persistentvolumeclaims", "secrets"}


OPERATED = {"broker": {"kind": "operator", "nodes": 3}}


@pytest.fixture
def operated(api, tmp_path):
    """A file of values whose broker is RabbitMQ's operator's, which is there."""
    api.install("rabbitmq.com", "cert-manager.io")
    path = tmp_path / "operated.yaml"
    path.write_text(yaml.safe_dump(OPERATED))
    return path


def test_an_operators_queues_outlive_down(api, cli, operated):
    """Issue 11, item 31: the operator owns the claims, and the queues went with its RabbitmqCluster."""
    assert cli("kube", "up", "--values", operated, "--no-wait")[0] == 0
    name = ("rabbitmqclusters", "hzzray", "hzzray-broker")
    assert api.objects[name]["spec"]["replicas"] == 3
    labels = {"app.kubernetes.io/name": "hzzray-broker"}
    api.put("pods", {"metadata": {"name": "hzzray-broker-server-0", "labels": labels}}, "hzzray")

    def end_it():
        wait_for("no nodes", lambda: api.objects[name]["spec"]["replicas"] == 0, 60)
        assert api.objects["pods", "hzzray", "hzzray-broker-server-0"]["metadata"]["labels"]["skipPreStopChecks"]
        del api.objects["pods", "hzzray", "hzzray-broker-server-0"]

    operator = threading.Thread(target=end_it)
    operator.start()
    code, said, err = cli("kube", "down", "--values", operated, "--keep-data")
    operator.join()
    assert code == 0, err
    assert "RabbitmqCluster hzzray-broker stays, scaled to nothing" in said
    assert {key[0] for key in api.objects} == {
        "namespaces", "persistentvolumeclaims", "secrets", "rabbitmqclusters",
    }  # fmt: skip
    assert cli("kube", "up", "--values", operated, "--no-wait")[0] == 0
    assert api.objects[name]["spec"]["replicas"] == 3


def test_down_waits_until_the_pods_have_gone(api, cli):
    """Issue 11, item 33: it returned while the head was Terminating, and the next `up` met it."""
    cli("kube", "up", "--overlay", "minikube", "--no-wait")
    api.grace_s = 3600.0
    owner = [{"kind": "RayCluster", "name": "hzzray", "controller": True}]
    meta = {"name": "hzzray-head-x", "labels": {"ray.io/cluster": "hzzray"}, "ownerReferences": owner}
    api.put("pods", {"metadata": meta}, "hzzray")

    def end_it():
        wait_for("all else to go", lambda: not api.names("priorityclasses"), 60)
        before = len(api.calls)
        wait_for("a look at the pods", lambda: any("/pods" in path for _, path, _ in api.calls[before:]), 60)
        del api.objects["pods", "hzzray", "hzzray-head-x"]

    kubelet = threading.Thread(target=end_it)
    kubelet.start()
    code, said, err = cli("kube", "down", "--overlay", "minikube", "--keep-data")
    assert code == 0, err
    kubelet.join()
    assert "waiting for pods to end: hzzray-head-x" in said


def test_down_says_which_pods_stay(api, cli):
    """Issue 11, item 33."""
    labels = {"ray.io/cluster": "hzzray"}
    api.put("pods", {"metadata": {"name": "stuck", "labels": labels}}, "hzzray")
    code, _, err = cli("kube", "down", "--overlay", "minikube", "--keep-data", "--timeout", "1")
    assert code == 1
    assert err == "hzzray: pods that are still there: stuck\n"


@pytest.mark.parametrize("keep", [False, True])
def test_down_does_not_wait_for_a_clean_up_of_redis_that_cannot_run(api, cli, tmp_path, monkeypatch, keep):
    """Issue 11, item 33: KubeRay held the cluster back for five minutes."""
    monkeypatch.setattr("kuberay.removal._CLEAN_S", 1.0)
    own = tmp_path / "own.yaml"
    own.write_text("ray: {fault_tolerance: true}\n")
    cli("kube", "up", "--values", own, "--no-wait")
    held = ["ray.io/gcs-ft-redis-cleanup-finalizer", "example.org/another"]
    cluster = ("rayclusters", "hzzray", "hzzray")
    api.objects[cluster]["metadata"]["finalizers"] = held

    def another():
        wait_for("ours to be taken off", lambda: api.objects[cluster]["metadata"]["finalizers"] == held[1:], 60)
        api.objects[cluster]["metadata"]["finalizers"] = []
        api.remove(cluster)

    controller = threading.Thread(target=another)
    controller.start()
    code, said, err = cli("kube", "down", "--values", own, "--keep-data" if keep else "--yes")
    controller.join()
    assert code == 0, err
    assert ("Redis was not cleaned up within 1 s" in said) is keep
    assert not api.names("rayclusters")


def test_down_asks_first(api, cli, monkeypatch):
    make_well(api)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, _ = cli("kube", "down", "--overlay", "minikube")
    assert code == 1
    assert api.changes() == []


def test_a_namespace_that_was_there_stays(api, cli):
    api.put("namespaces", {"metadata": {"name": "hzzray"}})
    _, said, _ = cli("kube", "up", "--overlay", "minikube", "--no-wait")
    assert "namespace hzzray is not ours" in said
    code, _, err = cli("kube", "down", "--overlay", "minikube", "--yes")
    assert code == 0, err
    assert set(api.objects) == {("namespaces", "", "hzzray")}


@pytest.mark.parametrize(
    ("own", "installed", "said"),
    [
        ({}, (), "the cluster lacks the KubeRay operator"),
        ({"broker": {"kind": "operator"}}, ("ray.io",), "the cluster lacks RabbitMQ's Cluster Operator"),
        ({"metrics": {"pod_monitor": True}}, ("ray.io",), "the cluster lacks the Prometheus Operator"),
        ({"broker": {"tls_secret": "tls"}}, ("ray.io",), "namespace hzzray lacks the Secret tls (tls.crt, tls.key"),
        ({"image": {"secrets": ["login"]}}, ("ray.io",), "lacks the Secret login (login of the image's registry)"),
        ({"data": {"claim": "files"}}, ("ray.io",), "lacks the PersistentVolumeClaim files"),
    ],
)
def test_what_the_cluster_lacks_is_named(api, cli, tmp_path, own, installed, said):
    for group in {"ray.io"} - set(installed):
        del api.groups[group]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(own))
    code, _, err = cli("kube", "up", "--no-wait", "--values", path)
    assert code == 1
    assert said in err
    assert not [call for call in api.changes() if call.startswith("PATCH")]


def operators_pod(says):
    """A pod of RabbitMQ's operator, in its own namespace."""
    labels = {"app.kubernetes.io/name": "rabbitmq-cluster-operator"}
    return {"metadata": {"name": "rabbitmq-cluster-operator-x", "labels": labels}, "status": says}


def test_an_operator_that_does_not_run_is_told(api, cli, operated):
    """Issue 11, item 30: its kinds are there, but without cert-manager its pod stays ContainerCreating."""
    del api.groups["cert-manager.io"]
    api.put("pods", operators_pod({"phase": "Pending"}), "rabbitmq-system")
    api.tell("Pod", "rabbitmq-cluster-operator-x", "FailedMount", 'secret "webhook-cert" not found')
    code, _, err = cli("kube", "up", "--no-wait", "--values", operated)
    assert code == 1
    assert err == (
        "hzzray: RabbitMQ's Cluster Operator doesn't run: "
        "Pod rabbitmq-cluster-operator-x of namespace rabbitmq-system: "
        'FailedMount: secret "webhook-cert" not found; it needs cert-manager, which the cluster lacks: '
        "see docs/kuberay.md\n"
    )
    assert not [call for call in api.changes() if call.startswith("PATCH")]
    api.install("cert-manager.io")
    api.put("pods", operators_pod({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}), "r")
    code, said, err = cli("kube", "up", "--no-wait", "--values", operated)
    assert code == 0, err
    (warning,) = [line for line in said.splitlines() if "is to be seen" in line]
    assert warning.startswith("no pod of the KubeRay operator is to be seen (app.kubernetes.io/component=kuberay-op")


def test_webhooks_that_do_not_answer_are_told_before_anything_is_applied(api, cli, operated):
    """Issue 11, item 30: to a user who may not look at operators' pods too."""
    del api.groups["cert-manager.io"]
    api.forbidden |= {"pods", "events"}
    api.broken["rabbitmqclusters"] = "Post https://webhook-service: no endpoints available"
    code, _, err = cli("kube", "up", "--no-wait", "--values", operated)
    assert code == 1
    assert err.startswith("hzzray: RabbitmqCluster hzzray-broker is refused: kubectl apply: ")
    assert "no endpoints available" in err
    assert "it needs cert-manager, which the cluster lacks" in err
    assert len(err.splitlines()) == 1
    assert not [call for call in api.changes() if call.startswith("PATCH")]
    api.broken.clear()
    code, _, err = cli("kube", "up", "--no-wait", "--values", operated)
    assert code == 0, err


def test_no_cluster_is_one_clear_line(cli, tmp_path, monkeypatch):
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for command in (("up",), ("status",), ("down", "--yes"), ("submit",), ("forward", *own_ports())):
        code, _, err = cli("kube", *command)
        assert code == 1
        assert "refused" in err
        assert len(err.strip().splitlines()) == 1


def test_no_kubectl_is_one_clear_line(cli, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, _, err = cli("kube", "status")
    assert code == 1
    assert "kubectl is not on the PATH" in err


def test_a_dry_run_asks_nobody(cli, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, said, _ = cli("kube", "up", "--dry-run", "--overlay", "production", "--context", "prod")
    assert code == 0
    assert "kubectl --namespace hzzray --context prod apply --server-side" in said
    for made in deployment.deployment(load("production")):
        assert f"    {made['kind']} {made['metadata']['name']}\n" in said
    code, said, _ = cli("kube", "down", "--dry-run")
    assert code == 0
    assert said.count("kubectl --namespace hzzray delete") == 6
    monkeypatch.setenv("HZZRAY_KUBE_OVERLAY", "production")
    code, said, _ = cli("kube", "status", "--dry-run")
    assert code == 0
    assert said.startswith("kubectl --namespace hzzray get rayclusters.ray.io,rabbitmqclusters.rabbitmq.com,")
    monkeypatch.delenv("HZZRAY_KUBE_OVERLAY")
    ports = dict(zip(("app", "dashboard", "management", "broker"), map(str, free_ports(4)), strict=True))
    given = [part for name, port in ports.items() for part in (f"--{name}-port", port)]
    code, said, _ = cli("kube", "forward", "--dry-run", *given)
    assert code == 0
    assert said.startswith(
        f"kubectl --namespace hzzray port-forward --address 127.0.0.1 service/hzzray-app {ports['app']}:8501\n"
    )
    assert said.count("\n") == 4
    code, said, _ = cli("kube", "submit", "--dry-run", "--", "--run-id", "a", "--fraction", "0.5")
    assert code == 0
    assert said == (
        "ray job submit --address http://127.0.0.1:8265 --submission-id a -- "
        "hzzray run --run-id a --fraction 0.5 --release toy --source /data --min-actors 1 --max-actors 4\n"
    )


def test_a_jobs_places_are_the_clusters(cli):
    code, _, err = cli("kube", "submit", "--dry-run", "--", "--runs=here")
    assert code == 2
    assert "takes no --engine, --runs or --broker" in err


def test_secrets_for_kubectl(cli):
    code, said, _ = cli("kube", "secrets", "--overlay", "production")
    assert code == 0
    made = {each["metadata"]["name"]: each["stringData"] for each in yaml.safe_load_all(said)}
    assert made.keys() == {"hzzray-broker", "hzzray-app", "hzzray-redis"}
    redis = made["hzzray-redis"]
    assert redis["auth.conf"] == f"requirepass {redis['password']}\n"
    passwords = [value for each in made.values() for key, value in each.items() if key != "auth.conf"]
    assert len(set(passwords)) == len(passwords)
    assert min(map(len, passwords)) >= 16


class _Page(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


@pytest.fixture
def page():
    """The port of a web server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def read(port: int) -> bytes:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as answer:
        return answer.read()
    return b""


def kubectls(parent: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(parent).children()]


def test_forward_leads_to_all_services_and_mends_what_breaks(stand_in, page):
    services = ("hzzray-app:8501", "hzzray-head-svc:8265", "hzzray-broker:15672", "hzzray-broker:5672")
    stand_in.lead({f"service/{service}": page for service in services})
    options = own_ports()
    ports = dict(zip(options[::2], map(int, options[1::2]), strict=True))
    with subprocess.Popen(
        [HZZRAY, "kube", "forward", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            lines = []
            while "Ctrl-C ends\n" not in lines:
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            assert all(read(port) == b"ok" for port in ports.values())
            assert f"http://127.0.0.1:{ports['--app-port']}" in "".join(lines)
            before = kubectls(process.pid)
            assert len(before) == 4
            os.kill(before[0], signal.SIGKILL)
            said = [process.stdout.readline(), process.stdout.readline()]
            assert "lost" in said[0]
            assert "back" in said[1]
            wait_for("all ports", lambda: all(read(port) == b"ok" for port in ports.values()), 20)
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
    assert process.returncode == 0, rest
    assert not any(read(port) for port in ports.values())
    forwards = [call for call in stand_in.calls() if "port-forward" in call]
    assert all(call[3] == "--address" and call[4] == "127.0.0.1" for call in forwards)


def forwarding(options: list[str]) -> subprocess.Popen[str]:
    """Start ``hzzray kube forward``; returns when all of it leads somewhere."""
    process = subprocess.Popen(
        [HZZRAY, "kube", "forward", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    while "Ctrl-C ends\n" not in lines:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_forward_takes_its_kubectl_with_it(stand_in, page, number):
    """Issue 11, item 33: ended by SIGTERM it left four kubectl behind, which kept the ports."""
    services = ("hzzray-app:8501", "hzzray-head-svc:8265", "hzzray-broker:15672", "hzzray-broker:5672")
    stand_in.lead({f"service/{service}": page for service in services})
    with forwarding(own_ports()) as process:
        children = kubectls(process.pid)
        assert len(children) == 4
        process.send_signal(number)
        # Rich says its last line again where the signal comes between writing it and forgetting it.
        assert process.stdout.read().removeprefix("Ctrl-C ends\n") == "ended\n"
    assert process.returncode == 0
    import psutil

    assert not any(psutil.pid_exists(pid) for pid in children)


def test_forward_follows_a_pod_that_is_made_anew(stand_in, page):
    """Issue 11, item 33: kubectl noticed that the head had gone only by the first request, which failed."""
    services = ("hzzray-app:8501", "hzzray-head-svc:8265", "hzzray-broker:15672", "hzzray-broker:5672")
    stand_in.lead({f"service/{service}": page for service in services})

    def behind(head: str) -> None:
        slices = [
            {
                "metadata": {"labels": {"kubernetes.io/service-name": service}},
                "endpoints": [{"targetRef": {"uid": uid}, "conditions": {"ready": True}}],
            }
            for service, uid in {"hzzray-head-svc": head, "hzzray-app": "app", "hzzray-broker": "broker"}.items()
        ]
        stand_in.answer({"get endpointslices.discovery.k8s.io --output": {"items": slices}})

    behind("one")
    with forwarding(own_ports()) as process:
        before = kubectls(process.pid)
        behind("another")
        assert process.stdout.readline() == "Ray dashboard: lost (its pod has gone); trying again\n"
        assert process.stdout.readline() == "Ray dashboard: back\n"
        assert len(set(before) - set(kubectls(process.pid))) == 1
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 0


def test_what_is_behind_services(api, capsys):
    """Issue 11, items 33 and 34: pods that start count, those that end don't, and a Service may have none at all."""
    api.serve("hzzray-broker", one="ready", two="terminating", three="starting")
    api.serve("hzzray-app")
    kubectl = Kubectl("hzzray", None, dry=False, say=print)
    behind = kubectl.behind()
    assert behind["hzzray-broker"] == {"one", "three"}
    assert not behind.get("hzzray-app")
    del api.groups["discovery.k8s.io"]
    assert kubectl.behind() is None
    assert capsys.readouterr().out == ""


def test_forward_says_what_is_wrong(stand_in, page, cli):
    code, _, err = cli("kube", "forward", *own_ports(), "--app-port", page)
    assert code == 2
    assert f"port {page} for the app is taken" in err
    code, _, err = cli("kube", "forward", *own_ports())
    assert code == 1
    assert "service/hzzray-app not found" in err


def test_submit_needs_the_token(stand_in, cli):
    stand_in.answer({"get secret hzzray": {"data": {}}})
    code, _, err = cli("kube", "submit")
    assert code == 1
    assert "no Ray token in Secret hzzray: is the deployment up?" in err


class Jobs:
    """What Ray's client of jobs answers, without a cluster: test_kube_roles has a real one."""

    def __init__(self, status="SUCCEEDED", code=None, known=()):
        self._info = SimpleNamespace(status=status, driver_exit_code=code, message="so it is")
        self._known = known

    def list_jobs(self):
        return [SimpleNamespace(submission_id=name) for name in self._known]

    def submit_job(self, *, entrypoint, submission_id):
        return submission_id

    async def tail_job_logs(self, submission):
        yield "a line\n"

    def get_job_info(self, submission):
        return self._info


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("STOPPED", None, 1)]
)
def test_submit_exits_as_the_run_does(status, code, expected):
    said = []
    assert jobs.follow(Jobs(status, code), "a", said.append) == expected
    assert said[0] == "a line\n"
    assert len(said) == (1 if expected == 0 else 2)


def test_a_second_job_of_a_run_has_a_name_of_its_own():
    assert jobs.start(Jobs(), "hzzray run", "a") == "a"
    assert jobs.start(Jobs(known=("a", "a-2")), "hzzray run", "a") == "a-3"
