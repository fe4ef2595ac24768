"""What `hzzray doctor` finds of a machine, and that nothing it asks may hang."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from importlib.metadata import metadata
from types import SimpleNamespace

import pytest

from hzzray import doctor_cli
from hzzray.doctor_cli import Check, ask


def test_this_machine_can_do_the_main_job(cli, tmp_path):
    code, out, err = cli("doctor", "--quick", "--json", "--runs", tmp_path)
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["ready"] is True
    checks = {check["name"]: check for check in said["checks"]}
    assert {"Python", "packages", "memory", "disk", "Docker", "kubectl", "broker", "port 8501"} <= checks.keys()
    assert checks["packages"]["state"] == "works"
    assert checks["Python"]["found"].startswith(".".join(map(str, sys.version_info[:3])))


def test_what_is_needed_and_fails_is_the_exit_code(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(doctor_cli, "ask", lambda command, _: (1, "warning\nRay can't [start] here\n"))
    code, out, _ = cli("doctor", "--runs", tmp_path)
    assert code == 1
    flat = " ".join(out.replace("│", " ").split())
    assert "Ray fails Ray can't [start] here → hzzray run --engine serial does without" in flat
    assert "hzzray run can't do its work yet" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_cluster_that_does_not_start_in_time_is_said_so(monkeypatch):
    monkeypatch.setattr(doctor_cli, "ask", lambda command, patience: (None, ""))
    assert doctor_cli._ray() == Check(
        "Ray", "fails", "no answer in 120 s", "hzzray run --engine serial does without", needed=True
    )


def test_a_program_that_hangs_is_ended_with_what_it_started():
    begun = time.monotonic()
    hanging = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert ask([sys.executable, "-c", hanging], 0.5) == (None, "")
    assert time.monotonic() - begun < 20
    assert ask(["/no/such/program"], 1)[0] == 127
    assert ask([sys.executable, "-c", "print('here')"], 20) == (0, "here\n")


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        check = doctor_cli._port(taken.getsockname()[1], "the app", "take another")
    assert (check.state, check.to_do) == ("taken", "take another")
    assert check.found == "by another program: the app wants it"


def test_a_program_that_is_there_is_not_called_absent(monkeypatch):
    monkeypatch.setattr(doctor_cli.shutil, "which", lambda _: "/bin/kubectl")
    for code, said, found in ((1, "the connection was refused\n", "the connection was refused"), (None, "", "in 5 s")):
        monkeypatch.setattr(doctor_cli, "ask", lambda command, _, answer=(code, said): answer)
        check = doctor_cli._program("kubectl", ["kubectl"], "Kubernetes")
        assert check.state == "no answer"
        assert check.found.endswith(found)
    monkeypatch.setattr(doctor_cli.shutil, "which", lambda _: None)
    assert doctor_cli._program("kubectl", ["kubectl"], "Kubernetes").state == "absent"


def test_all_extras_of_users_are_looked_at():
    extras = set(metadata("hzzray").get_all("Provides-Extra"))
    assert set(doctor_cli._EXTRAS) == extras - {"dev", "docs", "test"}


def test_a_broker_that_is_there_and_one_that_is_not(monkeypatch):
    with socket.socket() as broker:
        broker.bind(("127.0.0.1", 0))
        broker.listen()
        where = f"amqp://me:secret@127.0.0.1:{broker.getsockname()[1]}/"
        monkeypatch.setenv("HZZRAY_BROKER", where)
        assert doctor_cli._broker().state == "works"
    gone = doctor_cli._broker()
    assert gone.state == "fails"
    assert "secret" not in gone.found
    monkeypatch.setenv("HZZRAY_BROKER", "amqp://host:port/")
    assert doctor_cli._broker().state == "fails"
    monkeypatch.delenv("HZZRAY_BROKER")
    assert doctor_cli._broker().state == "absent"


@pytest.mark.parametrize(("free", "state"), [(10**9, "little"), (10**10, "works")])
def test_little_memory(monkeypatch, free, state):
    memory = SimpleNamespace(available=free)
    monkeypatch.setattr(doctor_cli.psutil, "virtual_memory", lambda: memory)
    assert doctor_cli._memory().state == state


def test_a_package_that_is_lacking(monkeypatch):
    monkeypatch.setattr(doctor_cli, "requires", lambda _: ["numpy>=2", "no-such-thing[x]>=1", 'ruff; extra == "dev"'])
    check = doctor_cli._packages()
    assert (check.state, check.found, check.needed) == ("fails", "lacking: no-such-thing", True)


def test_a_full_disk(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("hzzray.disk.shutil.disk_usage", lambda _: usage)
    assert doctor_cli._disk(tmp_path).state == "fails"
