"""How services' figures reach a run: by word in the runs' folder, by the broker's plugin, by a publisher's account."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bridge.broker_usage import BrokerUsage, look
from bridge.connection import BrokerError
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from bridge.wire import Account, Refusal, account_letter, read_account
from hzzray.engine.monitor import service
from hzzray.engine.service_usage import Services, _Head, read_service_usage, report_usage, write_usage
from tests.support.waiting import wait_for

APP = service("app", "3f2a", user_s=1.5, system_s=0.25, rss=10**8, cpus=1.0, memory_limit=2**31)


def test_word_is_left_and_read(tmp_path):
    """Issue 11, item 37: the app shares the runs' folder with the bridge, and nothing else."""
    assert read_service_usage(tmp_path) == []
    write_usage(tmp_path, APP)
    write_usage(tmp_path, replace(APP, user_s=2.0))
    assert read_service_usage(tmp_path) == [replace(APP, user_s=2.0)]
    (path,) = (tmp_path / ".services").iterdir()
    os.utime(path, (time.time() - 60,) * 2)  # its service is gone
    assert read_service_usage(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "worker-0"},
        {"actor": "service:app@../x"},
        {"user_s": -1.0},
        {"rss": 2**70},
        {"state": "dancing"},
        {"user_s": "NaN"},
        {"more": 1},
    ],
)
def test_word_that_makes_no_sense_is_passed_over(tmp_path, change):
    write_usage(tmp_path, APP)
    (path,) = (tmp_path / ".services").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    left = read_service_usage(tmp_path)
    assert left == ([APP] if "more" in change else [])


def test_no_link_and_no_rubbish_is_read_as_word(tmp_path):
    folder = tmp_path / "runs" / ".services"
    write_usage(tmp_path / "elsewhere", APP)
    folder.mkdir(parents=True)
    (folder / "a.json").symlink_to(tmp_path / "elsewhere" / ".services" / "app.json")
    (folder / "b.json").write_bytes(b"\xff" * 100_000)
    (folder / "c.json").mkdir()
    assert read_service_usage(tmp_path / "runs") == []


def test_outside_of_containers_there_is_the_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("HZZRAY_SERVICE", raising=False)
    write_usage(tmp_path, APP)
    here = Services(tmp_path)()
    assert [usage.actor for usage in here] == [f"node:{socket.gethostname()}"]
    report_usage(tmp_path / "none").set()
    assert not (tmp_path / "none").exists()


def test_a_service_sees_the_others(tmp_path, monkeypatch):
    """Issue 11, item 37: in the bridge's container the bridge, the app, and what is known besides."""
    head, bridge = service("head", "h"), service("bridge", "b", user_s=1.0)
    # Where there is no need to ask the head.
    monkeypatch.setattr("hzzray.engine.service_usage.measure_host", lambda: head)
    write_usage(tmp_path, APP)
    assert Services(tmp_path, lambda: [bridge])() == [APP, bridge, head]


def test_word_is_kept_up(tmp_path, monkeypatch):
    monkeypatch.setattr("hzzray.engine.service_usage.measure_host", lambda: APP)
    ended = report_usage(tmp_path)
    try:
        wait_for("word", lambda: read_service_usage(tmp_path) == [APP], 10)
    finally:
        ended.set()


# What RabbitMQ 4.0 said in a container of one CPU.
METRICS = """\
# TYPE erlang_vm_statistics_runtime_milliseconds counter
# HELP erlang_vm_statistics_runtime_milliseconds The sum of the runtime for all threads in the Erlang runtime system.
erlang_vm_statistics_runtime_milliseconds 3521
erlang_vm_memory_bytes_total{kind="system"} 45713448
erlang_vm_schedulers 2
erlang_vm_schedulers_online 1
rabbitmq_identity_info{rabbitmq_node="rabbit@rabbitmq",rabbitmq_cluster="rabbit@rabbitmq"} 1
rabbitmq_process_resident_memory_bytes 116019200
rabbitmq_resident_memory_limit_bytes 6.0e8
"""


@pytest.fixture
def plugin():
    """A server that says what is put into its ``text``; returns it with broker settings that lead to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.server.text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + self.server.lacks))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.text, server.lacks = METRICS, 0
        threading.Thread(target=server.serve_forever).start()
        environ = {"HZZRAY_BROKER_METRICS": f"http://127.0.0.1:{server.server_port}/"}
        yield server, BrokerSettings.from_url("amqp://rabbitmq", environ=environ)
        server.shutdown()


def test_the_broker_tells_what_it_uses(plugin):
    """Issue 11, item 37: the broker runs no code of ours."""
    _, broker = plugin
    assert look(broker) == service(
        "broker", "rabbitmq", user_s=3.521, rss=116_019_200, cpus=1.0, memory_limit=600_000_000
    )


@pytest.mark.parametrize("text", ["", "<html>", METRICS.replace("3521", "3.5e999"), METRICS.replace("116019200", "e")])
def test_what_is_no_broker_tells_nothing(plugin, text):
    server, broker = plugin
    server.text = text
    with pytest.raises(BrokerError, match="no metrics of RabbitMQ at http://127"):
        look(broker)


def test_a_broker_that_dies_while_it_tells_tells_nothing(plugin):
    """The run that wanted to know ended with urllib3's error, and its tasks waited for two minutes."""
    server, broker = plugin
    server.lacks = 100
    with pytest.raises(BrokerError, match=r"no metrics of the broker at http://127.*: ProtocolError"):
        look(broker)


def test_what_was_told_to_another_run_is_not_told_again(plugin, monkeypatch):
    """Issue 11, item 37: what the broker did between two runs is neither's."""
    server, broker = plugin
    monkeypatch.setattr("bridge.broker_usage._STALE_S", 0.2)

    async def told(usages):
        end = time.monotonic() + 10
        while not (rows := usages()):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        return rows[0].user_s

    async def two_runs():
        usages = BrokerUsage(broker)
        assert await told(usages) == 3.521
        server.text = METRICS.replace("3521", "9000")
        assert usages()[0].user_s == 3.521  # for some seconds
        await asyncio.sleep(0.3)
        assert usages() == []
        assert await told(usages) == 9.0

    asyncio.run(two_runs())


def test_a_head_is_asked_anew_for_another_run(monkeypatch):
    """Issue 11, item 37: the last answer to the run before had all that the head did since then ahead of it."""
    head = _Head()
    head._gauge, head._asked, head._last = object(), "an old question", [service("head", "h")]
    monkeypatch.setattr("hzzray.engine.service_usage.time.monotonic", lambda: 100.0)
    head._wanted, head._not_before = 90.0, 101.0
    assert head.usage() == []
    assert head._asked is None


def test_a_broker_that_can_not_be_asked():
    broker = BrokerSettings.from_url("amqp://h", environ={"HZZRAY_BROKER_METRICS": "http://127.0.0.1:1"})
    with pytest.raises(BrokerError, match=r"no metrics of the broker at http://127\.0\.0\.1:1: ConnectionError"):
        look(broker)
    assert BrokerSettings.from_url("amqps://[::1]", environ={}).metrics == "http://[::1]:15692"


def test_a_publishers_account_is_read_back():
    """Issue 11, item 37: the loader has ended before a bridge hears of its run."""
    account = Account.of("r", service("loader", "abc", user_s=2.5, system_s=0.5, rss=5, cpus=1.0, memory_limit=7))
    letter = account_letter(Topology(), account)
    assert letter.key == "hzzray.runs"
    assert read_account(letter.body, letter.properties) == account
    assert account.usage == service(
        "loader", "abc", user_s=2.5, system_s=0.5, rss=5, cpus=1.0, memory_limit=7, state="ended"
    )


@pytest.mark.parametrize(
    "change", [{"service": "a@b"}, {"host": ""}, {"user_s": -1}, {"rss": 2**63}, {"run_id": "../x"}, {"version": 1}]
)
def test_accounts_that_make_no_sense_are_refused(change):
    letter = account_letter(Topology(), Account.of("r", service("loader", "abc")))
    body = json.dumps(json.loads(letter.body) | change).encode()
    assert isinstance(read_account(body, letter.properties), Refusal)
