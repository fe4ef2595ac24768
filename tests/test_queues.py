"""What is in the queues, and how fast it moves; the broker's commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pika
import pytest

from bridge.connection import BrokerError
from bridge.provision import apply
from bridge.queues import QueuesState, QueueState, look, watch
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from tests.support.waiting import wait_for

TOPOLOGY = Topology()


@pytest.fixture
def address(vhost, monkeypatch):
    """Environment of commands that may do all in a virtual host of their own; returns its URL without password."""
    monkeypatch.setenv("HZZRAY_BROKER_MANAGEMENT", vhost.broker.management_url)
    monkeypatch.setenv("HZZRAY_BROKER_PASSWORD", "guest")
    monkeypatch.setenv("COLUMNS", "200")
    return vhost.url_for("guest")


@pytest.fixture
def settings(address):
    """A broker with the topology."""
    broker = BrokerSettings.from_url(address)
    apply(broker, TOPOLOGY)
    return broker


def send(channel, queue, number):
    for _ in range(number):
        channel.basic_publish(queue.exchange, queue.name, b"x", pika.BasicProperties(delivery_mode=2), mandatory=True)


def test_counts_are_immediate_and_rates_follow(settings):
    with pika.BlockingConnection(settings.parameters("test")) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        assert look(settings, TOPOLOGY).left_s == 0
        send(channel, TOPOLOGY.tasks, 12)
        send(channel, TOPOLOGY.dead, 2)
        send(channel, TOPOLOGY.retries[-1], 3)
        send(channel, TOPOLOGY.runs, 1)
        state = wait_for("12 tasks", lambda: (now := look(settings, TOPOLOGY)).tasks.ready == 12 and now, 30)
        assert (state.dead.ready, state.retries[-1].ready, state.tasks.consumers) == (2, 3, 0)
        assert abs(state.at - time.time()) < 5
        channel.basic_qos(prefetch_count=4)
        channel.basic_consume(TOPOLOGY.tasks.name, lambda *_: None)
        connection.process_data_events()

        def flying():
            connection.process_data_events()
            now = look(settings, TOPOLOGY)
            return now.tasks.unacked == 4 and now.tasks.published_per_s is not None and now.runs.ready == 1 and now

        state = wait_for("four in flight", flying, 30)  # the management plugin lags
        assert (state.tasks.ready, state.tasks.consumers) == (8, 1)
        assert state.backlog == 8 + 4 + 3


def test_what_is_left_is_estimated():
    def state(ready, acked_per_s):
        tasks, empty = QueueState("t", ready, 1, 10, 5.0, acked_per_s), QueueState("e", 0, 0)
        return QueuesState(0.0, tasks, (empty, QueueState("r", 5, 0)), empty, empty)

    assert (state(85, 50.0).backlog, state(85, 50.0).left_s) == (100, 2.0)
    assert state(85, 0.0).left_s is None
    assert state(85, None).left_s is None


def test_without_management_the_counts_are_there(settings):
    nowhere = settings.model_copy(update={"management": "http://127.0.0.1:1"})
    state = look(nowhere, TOPOLOGY)
    assert (state.tasks.ready, state.tasks.unacked, state.tasks.acked_per_s) == (0, None, None)
    assert "no management plugin at http://127.0.0.1:1" in state.unseen


def test_a_queue_that_is_not_there_is_named(vhost, address):
    with pytest.raises(BrokerError, match=r"queue hzzray\.tasks: NOT_FOUND"):
        look(BrokerSettings.from_url(address), TOPOLOGY)


def test_a_watch_outlives_what_goes_wrong(vhost, settings):
    looks = watch(settings, TOPOLOGY, every_s=0.05)
    assert isinstance(next(looks), QueuesState)
    vhost.api("DELETE", "queues/hzzray.dead")
    assert any(isinstance(next(looks), BrokerError) for _ in range(20))
    apply(settings, TOPOLOGY)
    assert any(isinstance(next(looks), QueuesState) for _ in range(20))
    looks.close()


# Commands


def test_topology_commands(vhost, address, cli, tmp_path):
    code, _, said = cli("topology", "check", "--broker", address)
    assert code == 1
    assert "lacks queue hzzray.tasks\n" in said
    code, out, said = cli("topology", "apply", "--broker", address)
    assert (code, said) == (0, "")
    assert out.endswith("has all that hzzray needs\n")
    assert "guest" not in out
    assert cli("topology", "check", "--broker", address)[0] == 0
    assert cli("topology", "check", "--broker", address, "--queue-prefix", "other")[0] == 1
    code, out, _ = cli("topology", "check", "--broker", address, "--json")
    assert (code, json.loads(out)["lacks"]) == (0, [])
    code, out, _ = cli("topology", "check", "--broker", address, "--queue-prefix", "other", "--json")
    assert code == 1
    assert "queue other.tasks" in json.loads(out)["lacks"]


def test_topology_apply_makes_the_users_it_has_passwords_for(vhost, address, cli, monkeypatch):
    monkeypatch.setenv("HZZRAY_BRIDGE_PASSWORD", "secret of the bridge")
    assert cli("topology", "apply", "--broker", address)[0] == 0
    monkeypatch.setenv("HZZRAY_BROKER_PASSWORD", "secret of the bridge")
    assert cli("topology", "check", "--broker", vhost.url_for("bridge"))[0] == 0
    code, _, said = cli("topology", "apply", "--broker", vhost.url_for("bridge"))
    assert code == 1
    assert "refuses user bridge" in said
    assert "secret" not in said


def test_definitions_need_all_passwords(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HZZRAY_ADMIN_PASSWORD", "a")
    monkeypatch.setenv("HZZRAY_BRIDGE_PASSWORD", "b")
    code, out, said = cli("topology", "definitions")
    assert (code, out) == (2, "")
    assert "HZZRAY_PUBLISHER_PASSWORD (or …_FILE) is not set" in said
    monkeypatch.setenv("HZZRAY_PUBLISHER_PASSWORD", "c")
    code, out, _ = cli("topology", "definitions", "--vhost", "physics", "--queue-prefix", "q")
    definitions = json.loads(out)
    assert code == 0
    assert {user["name"] for user in definitions["users"]} == {"admin", "publisher", "bridge"}
    assert {queue["vhost"] for queue in definitions["queues"]} == {"physics"}
    assert cli("topology", "definitions", "--output", tmp_path / "no" / "where")[0] == 2


def test_queues_command(settings, address, cli, monkeypatch):
    code, out, said = cli("queues", "--broker", address)
    assert (code, said) == (0, "")
    assert all(queue.name in out for queue in TOPOLOGY.queues)
    code, out, _ = cli("queues", "--broker", address, "--json")
    assert json.loads(out)["tasks"]["ready"] == 0
    monkeypatch.setenv("HZZRAY_BROKER_WAIT", "0")
    code, _, said = cli("queues", "--broker", "amqp://guest@127.0.0.1:1")
    assert code == 1
    assert said == "hzzray: no broker at amqp://127.0.0.1:1: [Errno 111] Connection refused\n"
    assert cli("queues", "--broker", "http://x")[0] == 2


@pytest.mark.parametrize(
    "command",
    [
        ("publish", "--run-id", "r"),
        ("bridge",),
        ("run", "--broker", "amqp://guest@127.0.0.1:1"),
        ("replay", "r", "--broker", "amqp://guest@127.0.0.1:1"),
        ("failures", "r", "--broker", "amqp://guest@127.0.0.1:1"),
        ("pause", "r", "--broker", "amqp://guest@127.0.0.1:1"),
        ("prefetch", "5"),
        ("queues",),
        ("topology", "check"),
        ("topology", "apply"),
    ],
)
def test_whatever_needs_the_broker_waits_for_it_and_says_so(command, cli, monkeypatch, caplog, tmp_path):
    """Issue 11, item 28: each ended at its first connection, before a broker that was starting could answer."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"": "amqp://guest@127.0.0.1:1", "_PASSWORD": "x", "_WAIT": "0.5"}.items():
        monkeypatch.setenv(f"HZZRAY_BROKER{name}", value)
    monkeypatch.setenv("HZZRAY_BROKER_MANAGEMENT", "http://127.0.0.1:1")
    monkeypatch.setattr("bridge.orders._ANSWER_S", 0.0)  # which is for bridges
    begun = time.monotonic()
    code, _, said = cli(*command)
    assert code == 1
    assert time.monotonic() - begun >= 0.5
    waiting = [record.getMessage() for record in caplog.records]
    assert waiting
    assert all("Connection refused; " in line for line in waiting)
    assert said.splitlines()[-1].startswith("hzzray: no ")
    assert said.endswith(": [Errno 111] Connection refused\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("pause", "no run!"), "must be of letters, digits, dots, dashes and underscores"),
        (("bridge", "--until-complete", "no run!"), "must be of letters, digits, dots, dashes and underscores"),
        (("bridge", "--prefetch", "65536"), "less than or equal to 65535"),
    ],
)
def test_what_no_bridge_could_take_is_told_in_one_line(command, said, cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"": "amqp://guest@127.0.0.1:1", "_PASSWORD": "x", "_WAIT": "0"}.items():
        monkeypatch.setenv(f"HZZRAY_BROKER{name}", value)
    if command[0] == "pause":
        command = (*command, "--broker", "amqp://guest@127.0.0.1:1")
    code, _, err = cli(*command)
    assert code == 2
    assert said in err


def test_a_wrong_host_name_is_told_at_once_and_not_waited_for_for_ever(tmp_path):
    """Issue 11, item 28: who mistyped the host sees it before the wait is over."""
    command = [sys.executable, "-m", "hzzray", "publish", "--broker", "amqp://guest@no-broker.invalid"]
    env = {**os.environ, "HZZRAY_BROKER_PASSWORD": "x", "HZZRAY_BROKER_WAIT": "3", "COLUMNS": "200"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        first = process.stderr.readline()
        assert process.poll() is None
        rest = process.stderr.read()
    assert first.startswith("no broker at amqp://no-broker.invalid: ")
    assert first.endswith("; waiting for it, 3 s at the most\n")
    assert process.returncode == 1
    assert rest.startswith("hzzray: no broker at amqp://no-broker.invalid: ")
    assert len(rest.splitlines()) == 1


def test_a_password_on_the_command_line_is_warned_of(vhost, address, cli, monkeypatch):
    with_password = vhost.url_for("somebody", "hunter2")
    code, _, said = cli("queues", "--broker", with_password)
    assert code == 1
    assert "HZZRAY_BROKER_PASSWORD_FILE" in said
    monkeypatch.setenv("HZZRAY_BROKER", with_password)
    assert "HZZRAY_BROKER_PASSWORD_FILE" not in cli("queues")[2]
    assert "hunter2" not in said


def test_watching_queues_ends_with_ctrl_c(settings, address):
    sensitive = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # where we run in a background
    )
    command = [sys.executable, "-c", f"{sensitive}; from hzzray.cli import main; main()"]
    command += ["queues", "--watch", "--every", "0.2"]
    env = {**os.environ, "HZZRAY_BROKER": address, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert all(line.startswith("0 ready, ") for line in lines), lines
    assert (process.returncode, said) == (0, "")
