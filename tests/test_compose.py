"""The whole system in real containers: ``make compose-test`` for the core, ``make compose-test-all`` for all of it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.runs.folder import load_json
from tests.support import compose
from tests.support.compose import SERVICES, Project, Stack, docker, swarm
from tests.support.rabbit import free_ports
from tests.support.waiting import wait_for

CHOSEN = os.environ.get("HZZRAY_COMPOSE")
EVENTS = 20_000
IMAGE = "hzzray:test"
PORTS = ("APP_PORT", "DASHBOARD_PORT", "RABBITMQ_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")

pytestmark = [
    pytest.mark.compose,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHOSEN not in ("core", "all"), reason="make compose-test runs these"),
]
everything = pytest.mark.skipif(CHOSEN != "all", reason="make compose-test-all runs this")


@pytest.fixture(scope="module")
def image() -> str:
    if not compose.engine_answers():
        pytest.skip("no Docker Engine with Compose v2 answers")
    docker("build", "--tag", IMAGE, ".", timeout=900)
    return IMAGE


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """A function of a number of events: the digest that one process here makes of the toys that the loader writes."""
    from hzzray.runs.request import make_spec
    from tests.support.chaos import oracle

    def digest(events: int) -> str:
        folder = tmp_path_factory.mktemp("serial")
        toy = release("toy")
        write_toys(folder / "toy", toy, events=events)
        return oracle(folder, folder / "toy", make_spec(toy))

    return digest


@pytest.fixture(scope="module")
def digest(serial) -> str:
    """That of the usual number."""
    return serial(EVENTS)


@pytest.fixture(scope="module")
def environment(image):
    chosen = {"HZZRAY_IMAGE": image, "HZZRAY_EVENTS": str(EVENTS), "HZZRAY_CHUNK": "2000"}
    return chosen | _ports()


def _ports() -> dict[str, str]:
    return dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))


@pytest.fixture(scope="module")
def project(environment):
    """The project as ``docker compose up`` starts it, on ports of its own."""
    mine = Project("hzzray-test", environment)
    mine.down()
    try:
        mine.compose("up", "--detach", "--no-build")
        yield mine
    finally:
        mine.down()


def test_files_are_clean():
    if not compose.engine_answers():
        pytest.skip("no Docker Engine with Compose v2 answers")
    config = Project("hzzray-test", {}).config()
    published = [port for service in config["services"].values() for port in service.get("ports", ())]
    assert {port["published"] for port in published} == {"8501", "8265", "15672"}
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    for service in config["services"].values():
        assert "max-size" in service["logging"]["options"]
        assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])


def test_the_users_own_choices_are_not_the_tests(tmp_path, monkeypatch):
    """Issue 11, item 41: a user's .env or environment made these tests fail."""
    if not compose.engine_answers():
        pytest.skip("no Docker Engine with Compose v2 answers")
    shutil.copy(compose.ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / ".env").write_text("APP_PORT=1\nHZZRAY_WORKERS=0\nCOMPOSE_FILE=nowhere.yml\n")
    monkeypatch.setenv("DASHBOARD_PORT", "2")
    monkeypatch.setenv("HZZRAY_WORKERS", "7")
    services = Project("hzzray-test", {}, folder=tmp_path).config()["services"]
    assert [services[name]["ports"][0]["published"] for name in ("app", "ray-head")] == ["8501", "8265"]
    assert services["ray-worker"]["deploy"]["replicas"] == 2


def test_files_of_this_machine_are_bound_read_only(tmp_path):
    """Issue 11, item 39: HZZRAY_DATA=/path docker compose up."""
    if not compose.engine_answers():
        pytest.skip("no Docker Engine with Compose v2 answers")

    def data(env):
        services = Project("hzzray-test", env).config()["services"]
        mounts = {name: service.get("volumes", ()) for name, service in services.items()}
        return {
            name: (mount["type"], mount["source"], mount.get("read_only", False))
            for name, found in mounts.items()
            for mount in found
            if mount["target"] == "/data"
        }

    readers, writers = ("ray-worker", "bridge"), ("loader", "app")
    assert data({}) == {name: ("volume", "data", name in readers) for name in (*readers, *writers)}
    assert data({"HZZRAY_DATA": str(tmp_path)}) == {
        name: ("bind", str(tmp_path), True) for name in (*readers, *writers)
    }


def test_the_first_run_completes_with_the_serial_digest(project, digest):
    result = project.wait_until_over("first")
    assert (result["status"], result["digest"], result["environment"]) == ("complete", digest, "compose")


def test_analyses_of_ones_own_have_the_serial_digest(project, tmp_path, cli):
    """Both examples, from the folder that all containers have as /analyses; the photons' toys are written in one."""
    source = f"/data/toy-{EVENTS}"
    project.publish("zmumu", HZZRAY_ANALYSIS="/analyses/dilepton.py:zmumu", HZZRAY_SOURCE=source)
    own = {"HZZRAY_RELEASE": "photons-toy", "HZZRAY_CATALOGUE": "/analyses/diphoton.yaml"}
    project.compose(
        "run", "--rm", "--no-deps", "-T", "loader", "python", "/analyses/diphoton.py", "--toy", "/data/photons"
    )
    project.publish("photons", HZZRAY_ANALYSIS="/analyses/diphoton.py:diphoton", HZZRAY_SOURCE="/data/photons", **own)
    examples = compose.ROOT / "examples"
    write_toys(tmp_path / "toy", release("toy"), events=EVENTS)
    subprocess.run([sys.executable, examples / "diphoton.py", "--toy", tmp_path / "photons"], check=True, timeout=120)
    serial = ("run", "--engine", "serial", "--runs", tmp_path / "runs")
    cli(*serial, "--run-id", "zmumu", "--source", tmp_path / "toy", "--analysis", f"{examples}/dilepton.py:zmumu")
    release_options = ("--release", "photons-toy", "--catalogue", examples / "diphoton.yaml")
    cli(
        *(*serial, "--run-id", "photons", "--source", tmp_path / "photons"),
        *("--analysis", f"{examples}/diphoton.py:diphoton", *release_options),
    )
    for run_id in ("zmumu", "photons"):
        result = project.wait_until_over(run_id)
        assert (result["status"], result["failures"]) == ("complete", [])
        assert result["digest"] == load_json(tmp_path / "runs" / run_id).digest


def test_what_each_service_uses_is_in_the_runs_folder(project):
    """Issue 11, item 37: by name, with its limits, as the engine has them; no machine's figures."""
    project.publish("measured", HZZRAY_EVENTS=str(EVENTS), HZZRAY_CHUNK="10")
    assert project.wait_until_over("measured")["status"] == "complete"
    text = project.compose("exec", "-T", "app", "cat", "/runs/measured/cpu.csv")
    rows = list(csv.DictReader(text.splitlines()))
    assert not [row for row in rows if row["actor"].startswith("node:")]
    found = {}
    for row in rows:
        if row["actor"].startswith("service:"):
            found.setdefault(row["actor"].removeprefix("service:").partition("@")[0], []).append(row)
    assert set(found) == {"app", "bridge", "broker", "head", "loader", "worker"}
    for name, container in {"bridge": "bridge", "head": "ray-head", "worker": "ray-worker", "app": "app"}.items():
        host = project.inspect(container)[0]["HostConfig"]
        for row in found[name]:
            assert float(row["cpu_limit"]) == host["NanoCpus"] / 1e9, name
            assert int(row["memory_limit_bytes"]) == host["Memory"], name
            assert 0 < int(row["rss_bytes"]) < host["Memory"], name
        used = [float(row["user_s"]) + float(row["system_s"]) for row in found[name]]
        assert used[0] == 0, name  # what was before the run is not the run's
        if name != "app":
            assert used[-1] > 0, name
    assert {row["state"] for row in found["loader"]} == {"ended"}
    assert float(found["loader"][-1]["user_s"]) > 0.1
    assert float(found["broker"][-1]["cpu_limit"]) == 1
    assert int(found["broker"][-1]["memory_limit_bytes"]) == 600_000_000
    table = project.compose("exec", "-T", "app", "hzzray", "compare", "first", "measured")
    assert "worker: CPU [s]" in table
    assert "/runs/compare.png" in table  # issue 11, item 41: not on the read-only root


def test_the_image_reads_root_addresses(image):
    """Issue 11, item 38: .env.example offers root://; there is no server here, and that is what it says."""
    command = ("hzzray", "run", "--engine", "serial", "--release", "2020", "--samples", "data_A", "--run-id", "x")
    said = docker(
        "run", "--rm", "--network", "none", "--tmpfs", "/tmp", "--env", "HZZRAY_RUNS=/tmp/runs", image, "sh", "-c",
        f"{' '.join(command)} --source root://127.0.0.1:1//x 2>&1; true",
    )  # fmt: skip
    assert "needs an extra" not in said
    assert "127.0.0.1:1" in said
    assert docker("run", "--rm", image, "python", "-c", "import XRootD.client; print('here')").strip() == "here"


@pytest.mark.parametrize("service", SERVICES)
def test_containers_have_no_rights(project, service):
    for container in project.inspect(service):
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
        status = docker("exec", container["Id"], "cat", "/proc/self/status")
        rows = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert "0" not in rows["Uid"].split()
        assert [int(rows[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")] == [0, 0, 0]
        assert rows["NoNewPrivs"] == "1"


def test_app_dashboard_and_broker_answer(project, environment):
    for port, path in (("APP_PORT", "_stcore/health"), ("DASHBOARD_PORT", "api/version"), ("RABBITMQ_PORT", "")):
        url = f"http://127.0.0.1:{environment[port]}/{path}"
        wait_for(url, lambda url=url: _status(url))
    # Who has no token starts nothing.
    assert _status(f"http://127.0.0.1:{environment['DASHBOARD_PORT']}/api/jobs/") == 401


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


SURVIVES = [pytest.param(service, marks=[] if service == "bridge" else everything) for service in SERVICES]


@pytest.mark.parametrize("service", SURVIVES)
def test_a_run_survives_a_crash(project, digest, service):
    run_id = f"crash-{service}"
    reader = "bridge" if service == "app" else "app"
    project.publish(run_id, HZZRAY_CHUNK="2")
    project.wait_until_under_way(run_id, reader)
    project.crash(service)
    assert project.result(run_id, reader)["status"] == "running"
    result = project.wait_until_over(run_id, reader)
    assert (result["status"], result["digest"]) == ("complete", digest)


@everything
def test_killed_by_docker_and_started_again(project, digest):
    """``docker kill`` is the user's word: nothing starts again by itself, ``up`` makes it whole."""
    project.publish("killed", HZZRAY_CHUNK="2")
    project.wait_until_under_way("killed")
    for service in ("bridge", "rabbitmq", "ray-worker"):
        docker("kill", *project.containers(service))
    assert project.result("killed")["status"] == "running"
    project.compose("up", "--detach", "--no-build")
    result = project.wait_until_over("killed")
    assert (result["status"], result["digest"]) == ("complete", digest)


@everything
def test_workers_come_and_go_in_the_middle_of_a_run(project, serial):
    # A task an event, so that it lasts longer than the engine takes for all of it.
    project.publish("scaled", HZZRAY_EVENTS=str(2 * EVENTS), HZZRAY_CHUNK="1")
    project.wait_until_under_way("scaled")
    for number in (4, 1, 2):
        project.scale(number)
        assert len(project.containers("ray-worker")) == number
        assert project.result("scaled")["status"] == "running"
    result = project.wait_until_over("scaled")
    assert (result["status"], result["digest"]) == ("complete", serial(2 * EVENTS))


@everything
def test_down_and_up_in_the_middle_of_a_run(project, digest):
    project.publish("resumed", HZZRAY_CHUNK="2")
    project.wait_until_under_way("resumed")
    project.compose("down")
    assert project.left_behind("resumed")["status"] == "running"
    project.compose("up", "--detach", "--no-build")
    result = project.wait_until_over("resumed")
    assert (result["status"], result["digest"]) == ("complete", digest)


@everything
def test_a_browser_sees_the_run(project, environment, digest, tmp_path):
    from tests.support.app import Viewer, chromium

    project.wait_until_over("first")
    with chromium() as browser:
        viewer = Viewer(browser, SimpleNamespace(url=f"http://127.0.0.1:{environment['APP_PORT']}"))
        viewer.open("/?run=first", shows=".st-key-mass svg.marks")
        wait_for("its end", lambda: viewer.state() == "complete")
        viewer.page.get_by_text(digest).wait_for()
        bars = viewer.page.locator(".st-key-mass svg.marks [aria-roledescription='rect mark']")
        assert bars.count() > 34
        viewer.page.screenshot(path=tmp_path / "live.png")
        # The newest run's picture, as its last command left it.
        viewer.open("/runs", shows="[data-testid=stImage] img")
        viewer.page.screenshot(path=tmp_path / "runs.png")
        assert not viewer.errors


@everything
def test_prometheus_has_what_the_dashboard_asks_for(project, environment):
    """Each query of Grafana's dashboard has an answer while a run goes on; Grafana itself isn't started."""
    config = Project(project.name, project.env | {"COMPOSE_PROFILES": "*"}).config()
    name = config["services"]["prometheus"]["image"]
    if not docker("image", "ls", "--quiet", name):
        docker("pull", "--quiet", name, check=False)
        if not docker("image", "ls", "--quiet", name):
            pytest.skip(f"no image {name} to be had")
    dashboard = (compose.ROOT / "deploy/observability/grafana/hzzray.json").read_text()
    queries = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel.get("targets", ())]
    project.compose("--profile", "observability", "up", "--detach", "--no-build", "--no-deps", "prometheus")
    # Ray's nodes report every 10 s, and a rate wants two of them.
    project.publish("observed", HZZRAY_EVENTS=str(2 * EVENTS), HZZRAY_CHUNK="1")
    project.wait_until_under_way("observed")

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{environment['PROMETHEUS_PORT']}/api/v1/{path}") as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def healthy() -> bool:
        targets = (ask("targets") or {}).get("activeTargets", ())
        up = {target["scrapePool"] for target in targets if target["health"] == "up"}
        return up == {"ray", "rabbitmq", "queues"} and all(target["health"] == "up" for target in targets)

    wait_for("all targets", healthy)
    # Of these there are none, and so no series.
    pending = {query for query in queries if not any(name in query for name in ("retried", "failed", "duplicate"))}

    def answered() -> bool:
        for query in tuple(pending):
            said = urllib.parse.urlencode({"query": query.replace("$run", "observed")})
            if _numbers(ask(f"query?{said}")):
                pending.discard(query)
        return not pending

    wait_for("answers, or the run's end", lambda: answered() or project.result("observed")["status"] != "running", 180)
    assert not pending
    project.wait_until_over("observed")


def _numbers(answer: Any) -> list[float]:
    """Those of a query's answer that are more than nothing."""
    return [number for row in (answer or {}).get("result", ()) if (number := float(row["value"][1])) > 0]


@everything
def test_with_tls_between_the_containers(environment, digest, tmp_path):
    certificates = tmp_path / "certificates"
    subprocess.run([compose.ROOT / "deploy" / "certificates.sh", certificates], check=True, timeout=60)
    tls = Project(
        "hzzray-test-tls",
        environment | _ports() | {"HZZRAY_CERTIFICATES": str(certificates)},
        files=("docker-compose.yml", "docker-compose.tls.yml"),
    )
    tls.down()
    try:
        tls.compose("up", "--detach", "--no-build")
        result = tls.wait_until_over("first")
        assert (result["status"], result["digest"]) == ("complete", digest)
        # Plain connections get nowhere.
        assert "refused" in tls.compose("exec", "-T", "app", "python", "-c", _CONNECT.format("rabbitmq", 5672))
        assert "TLSv1" in tls.compose("exec", "-T", "app", "python", "-c", _HANDSHAKE.format("ray-head", 6379))
    finally:
        tls.down()


_CONNECT = """
import socket
try:
    socket.create_connection(({0!r}, {1}), 5)
    print("open")
except ConnectionRefusedError:
    print("refused")
"""
_HANDSHAKE = """
import os, socket, ssl
context = ssl.create_default_context(cafile=os.environ["RAY_TLS_CA_CERT"])
context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
with context.wrap_socket(socket.create_connection(({0!r}, {1}), 5), server_hostname={0!r}) as wrapped:
    print(wrapped.version())
"""


@everything
def test_as_a_swarm_of_one_machine(environment, digest, tmp_path):
    subprocess.run([compose.ROOT / "deploy" / "secrets.sh", tmp_path], check=True, timeout=60)
    with swarm():
        stack = Stack("hzzray-test-swarm", environment | _ports() | {"HZZRAY_SECRETS": str(tmp_path)})
        try:
            stack.deploy()
            result = stack.wait_until_over("first", within=300)
            assert (result["status"], result["digest"], result["environment"]) == ("complete", digest, "swarm")
            stack.scale("ray-worker", 3)
            stack.scale("ray-worker", 1)
            for container in stack.inspect():
                assert container["HostConfig"]["ReadonlyRootfs"]
                assert container["HostConfig"]["CapDrop"]
                assert container["Config"]["User"] not in ("", "0", "root")
        finally:
            stack.remove()
