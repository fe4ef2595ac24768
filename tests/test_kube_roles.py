"""What the pods of the manifests run, run here: the same commands, arguments and environment, as processes.

Broker, head, bridge, loader and app are the manifests' containers; worker nodes come by Ray's real autoscaler, as pods
would, from a provider that starts them on this machine. Everything is behind Ray's token.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hzzray.data.catalogue import release
from hzzray.errors import HzzrayError
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from kuberay import deploy, deployment
from kuberay.values import load
from tests.support.chaos import oracle
from tests.support.kubectl_stand_in import KubectlStandIn
from tests.support.kubelet import Kubelet, ray_start
from tests.support.rabbit import Broker, free_ports, is_installed
from tests.support.ray_nodes import node_counts, ray_head_of_nodes
from tests.support.waiting import wait_for

HZZRAY = str(Path(sys.executable).with_name("hzzray"))


def container(pod, name):
    """Find a container of a pod."""
    everyone = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    return next(each for each in everyone if each["name"] == name)


def result_of(folder):
    """A run's result once it is complete."""
    try:
        result = load_json(folder)
    except HzzrayError:
        return None
    return result if result.status == "complete" else None


@pytest.fixture
def pods(tmp_path):
    """A deployment's pod templates, and what runs their containers here."""
    if not is_installed() and "CI" not in os.environ:
        pytest.skip("no RabbitMQ here: apt-get install rabbitmq-server, or make test")
    own = tmp_path / "own.yaml"
    own.write_text("loader: {chunk: 40}\nworkers: {max: 2}\n")
    values = load("minikube", own)
    made = {deployment.key(each)[0]: each for each in deployment.deployment(values) if each["kind"] != "Service"}
    ray = made["RayCluster"]["spec"]
    token = {"metadata": {"name": values.token_secret}, "stringData": {"auth_token": secrets.token_hex(16)}}
    folder = tmp_path / "pods"
    folder.mkdir()
    kubelet = Kubelet(folder, list(made.values()), [*deploy.new_secrets(values), token], {})
    templates = {kind: made[kind]["spec"]["template"] for kind in ("StatefulSet", "Deployment", "Job")}
    yield values, kubelet, ray, templates
    kubelet.end()


@pytest.mark.slow
def test_the_pods_do_a_run_and_a_job_and_outlive_a_killed_bridge(compiled, pods, toys, tmp_path):
    values, kubelet, ray, templates = pods
    serial = oracle(tmp_path, toys, make_spec(release("toy")))
    head_pod = ray["headGroupSpec"]["template"]

    # The broker: its users and queues from the init container, its configuration from the ConfigMap.
    broker_pod = templates["StatefulSet"]
    defined = kubelet.run(broker_pod, container(broker_pod, "definitions"))
    assert defined.returncode == 0, defined.stderr
    rabbitmq = container(broker_pod, "rabbitmq")
    config = (kubelet.volume(broker_pod, "config") / "hzzray.conf").read_text()
    (config,) = kubelet.words(broker_pod, rabbitmq, config)
    folder = tmp_path / "rabbit"
    folder.mkdir()
    broker = Broker(folder, config, login=("admin", kubelet.secret(values.broker_name, "admin")))
    ray_env = kubelet.environment(head_pod, container(head_pod, "ray-head"))
    token = kubelet.secret(values.token_secret, "auth_token")
    ray_env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    del ray_env["HOME"]
    options = [option for option in ray_start(ray["headGroupSpec"], head=False) if "dashboard-host" not in option]
    kubelet.replaced |= {"/data": str(toys), f"{values.broker_name}.hzzray.svc:5672": f"127.0.0.1:{broker.port}"}
    # Issue 11, item 28: the loader may be faster than the broker, and ended at its first connection.
    loader = kubelet.start(templates["Job"], container(templates["Job"], "loader"))
    try:
        wait_for("the loader to wait", lambda: "refused; waiting for it, 600 s at the most" in kubelet.log("loader"))
        broker.start()
        with ray_head_of_nodes(tmp_path, *options, env=ray_env) as head, node_counts(head) as nodes:
            (page,) = free_ports(1)
            kubelet.replaced |= {
                "127.0.0.1:6379": head.address,
                f"{values.head_service}.hzzray.svc:10001": head.client.removeprefix("ray://"),
                "--server.address=0.0.0.0": "--server.address=127.0.0.1",
                "8501": str(page),
            }
            runs = kubelet.volume(head_pod, "runs")
            bridge = kubelet.start(head_pod, container(head_pod, "bridge"))
            assert loader.wait(120) == 0, kubelet.log("loader")

            # Nodes come with the queue. The bridge is killed in the middle, and started again as a kubelet would.
            path = runs / "first" / "result.json"
            wait_for("the first tasks", lambda: path.exists() and json.loads(path.read_text())["tasks"]["merged"] > 0)
            kubelet.kill(bridge)
            assert json.loads(path.read_text())["status"] == "running"
            bridge = kubelet.start(head_pod, container(head_pod, "bridge"))
            first = wait_for("the run's end", lambda: result_of(runs / "first"))
            assert first.digest == serial
            assert first.environment == "kuberay"
            nodes.wait_for(1)
            seen = nodes.wait_for_last(0)

            # The app, and a run as a job, by kubectl's port and the Secret's token.
            app_pod = templates["Deployment"]
            kubelet.start(app_pod, container(app_pod, "app"))
            stand_in = KubectlStandIn(folder)
            stand_in.lead({f"service/{values.head_service}:8265": urlsplit(head.dashboard).port})
            encoded = base64.b64encode(token.encode()).decode()
            stand_in.answer({f"get secret {values.token_secret}": {"data": {"auth_token": encoded}}})
            kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
            done = subprocess.run(
                [HZZRAY, "kube", "submit", "--", "--run-id", "job", "--source", str(toys), "--max-actors", "2"],
                env=kept | stand_in.env, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            assert load_json(runs / "job").digest == serial
            assert "tasks merged" in done.stdout
            assert token not in done.stdout + done.stderr + json.dumps(stand_in.calls())
            nodes.wait_for(1, after=seen)
            nodes.wait_for_last(0)

            health = f"http://127.0.0.1:{page}/_stcore/health"
            with urllib.request.urlopen(health, timeout=30) as answer:
                assert answer.status == 200
            assert bridge.poll() is None
    finally:
        kubelet.end()
        broker.stop()
