"""The files that containers are made of and started by: what can be said of them without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE, SWARM = ROOT / "docker-compose.yml", ROOT / "docker-compose.swarm.yml"


@pytest.mark.parametrize("path", [COMPOSE, SWARM])
def test_each_service_of_ours_knows_its_name(path):
    """Issue 11, item 37: what a container uses is told under the name of its service."""
    services = yaml.safe_load(path.read_text())["services"]
    names = {
        name: service["environment"].get("HZZRAY_SERVICE")
        for name, service in services.items()
        if str(service.get("image", "")).startswith("${HZZRAY_IMAGE") and name != "topology"
    }
    assert names == {"ray-head": "head", "ray-worker": "worker", "bridge": "bridge", "loader": "loader", "app": "app"}


def test_the_image_has_the_extra_for_root_addresses():
    """Issue 11, item 38."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["xrootd"]
    locked = re.findall(r"^([a-z-]+)==", (ROOT / "requirements-image.lock").read_text(), re.MULTILINE)
    assert locked == [re.split(r"[>=<]", name)[0] for name in extra]
    assert "--requirement /tmp/requirements-image.lock" in (ROOT / "Dockerfile").read_text()
    assert "!requirements-image.lock" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_app_is_no_package_of_everybodys(tmp_path):
    """Issue 13: `app` in site-packages is a name that anybody may have. Its folder is found where its main.py lies."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["hzzray", "bridge", "kuberay"]
    assert "COPY --chmod=755 app app" in (ROOT / "Dockerfile").read_text().splitlines()
    shutil.copytree(ROOT / "app", tmp_path / "app")
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print(sys.modules['app'].__path__[0])"
    command = [sys.executable, "-c", code, str(tmp_path / "app" / "main.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stdout == f"{tmp_path / 'app'}\n", done.stderr


@pytest.fixture
def load(tmp_path):
    """Run deploy/loader with a stand-in for hzzray that prints its arguments, and a folder in place of /data."""
    data, bin_ = tmp_path / "data", tmp_path / "bin"
    data.mkdir()
    bin_.mkdir()
    (bin_ / "hzzray").write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    (bin_ / "hzzray").chmod(0o755)
    script = (ROOT / "deploy" / "loader").read_text().replace("/data", str(data))

    def run(**env):
        return subprocess.run(
            ["sh", "-c", script], env={"PATH": f"{bin_}:/usr/bin:/bin", **env}, capture_output=True, text=True,
            timeout=20, check=False,
        )  # fmt: skip

    run.data = data
    return run


def test_files_of_this_machine_are_what_the_loader_reads(load):
    """Issue 11, item 39: with HZZRAY_DATA alone; the release is the one that `hzzray fetch` takes by default."""
    (load.data / "Data").mkdir()
    done = load(HZZRAY_DATA="/home/me/2020")
    assert done.stdout.split() == ["publish", "--run-id=first", "--release=2020", f"--source={load.data}"]
    done = load(HZZRAY_DATA="/x", HZZRAY_RELEASE="2025", HZZRAY_SOURCE=f"{load.data}/a b")
    assert done.stdout.strip().endswith(f"--release=2025 --source={load.data}/a b")
    assert load().stdout.split()[:4] == ["publish", "--events", "200000", "--run-id=first"]


def test_an_analysis_of_ones_own_is_what_the_loader_publishes_and_workers_may_use(load):
    done = load(HZZRAY_RELEASE="2020", HZZRAY_ANALYSIS="/analyses/dilepton.py:zmumu")
    assert done.stdout.split()[-1] == "--analysis=/analyses/dilepton.py:zmumu"
    image = (ROOT / "Dockerfile").read_text()
    assert "COPY examples /analyses" in image
    assert "HZZRAY_ANALYSES=/analyses" in image
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    mounted = {
        name
        for name, service in services.items()
        if "${HZZRAY_ANALYSES:-./examples}:/analyses:ro" in service.get("volumes", ())
    }
    assert mounted == {"ray-worker", "bridge", "loader", "app"}
    for path in (COMPOSE, SWARM):
        loader = yaml.safe_load(path.read_text())["services"]["loader"]["environment"]
        assert {"HZZRAY_ANALYSIS", "HZZRAY_CATALOGUE"} <= set(loader)


def test_a_folder_that_is_not_there_is_told(load):
    """Issue 11, item 39: the engine makes a folder of a path that isn't there, and the run would miss every sample."""
    done = load(HZZRAY_DATA="/home/me/tpyo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "HZZRAY_DATA=/home/me/tpyo: no such folder on this machine, or nothing in it\n"


def test_targets_that_are_named_are_there():
    """Issue 11, item 41: deploy/secrets/README.md named one that wasn't."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [ROOT / "README.md", ROOT / ".env.example", COMPOSE, SWARM, *ROOT.glob("docs/*.md"), *ROOT.glob("*/*/*.md")]
    named = {
        (target, path.name)
        for path in texts
        if ".venv" not in path.parts
        for target in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 10
    assert {(target, name) for target, name in named if target not in targets} == set()


def test_swarms_network_can_be_plain():
    """Issue 11, item 41: any value of the option `encrypted` is a yes to older engines, so there are two networks."""
    stack = yaml.safe_load(SWARM.read_text())
    assert {tuple(service["networks"]) for service in stack["services"].values()} == {("${HZZRAY_OVERLAY:-encrypted}",)}
    assert "driver_opts" not in stack["networks"]["plain"]
    assert stack["networks"]["encrypted"]["driver_opts"] == {"encrypted": "true"}


def test_all_that_the_image_copies_is_sent_to_its_builder():
    """Issue 11, item 36: a script that .dockerignore left out, and no image could be built."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        words[:-1] for words in map(str.split, lines) if words[:1] == ["COPY"] and "--from" not in " ".join(words)
    ]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    wanted = {name.replace("[t]", "t") for words in copied for name in words[1:] if not name.startswith("--")}
    assert wanted <= sent
