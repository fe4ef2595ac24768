"""Broker, bridges, publisher, reducer and workers are killed at any moment; every run ends with the serial digest.

Bridges and publishers are the command line, attached to the session's cluster. More of it: HZZRAY_CHAOS_ROUNDS
(default 1, each of 8 kills) and HZZRAY_CHAOS_SEED.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.runs.request import make_spec
from tests.support.bridges import PASSWORDS, Bridging, Site
from tests.support.chaos import actors, check_ledger, nothing_is_left, oracle
from tests.support.waiting import wait_for

ROUNDS = int(os.environ.get("HZZRAY_CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("HZZRAY_CHAOS_SEED", "1"))
KILLS = 8
KINDS = {"worker": 12, "reducer": 7, "bridge": 5, "broker": 5}  # and each run's publisher, half way

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    write_toys(folder, release("toy"), events=60_000, seed=5)
    return folder


@pytest.fixture(scope="module")
def digest(many, tmp_path_factory):
    return oracle(tmp_path_factory.mktemp("serial"), many, make_spec(release("toy"), observables=("m4l",)))


class Command:
    """A command of hzzray in a process of its own, killed and started again."""

    def __init__(self, folder, env, *words):
        self._words = [sys.executable, "-m", "hzzray", *map(str, words)]
        self._env = env
        self._said = folder / f"{words[0]}-{id(self)}.log"
        self._process = None

    def start(self):
        with self._said.open("ab") as log:
            self._process = subprocess.Popen(self._words, env=self._env, stdout=log, stderr=log)

    @property
    def code(self):
        return self._process.poll()

    def kill(self):
        self._process.kill()
        self._process.wait()

    def said(self):
        return self._said.read_text(encoding="utf-8")[-4000:]


@pytest.mark.timeout(600 * ROUNDS)
def test_kills_at_random_moments(broker, vhost, many, digest, tmp_path):
    import ray

    site = Site(vhost, tmp_path / "runs")
    chance = random.Random(SEED)
    print(f"HZZRAY_CHAOS_SEED={SEED}")
    environ = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    environ["HZZRAY_BROKER_MANAGEMENT"] = broker.management_url

    def env(user):
        return environ | {"HZZRAY_BROKER": vhost.url_for(user), "HZZRAY_BROKER_PASSWORD": PASSWORDS[user]}

    serve = ("bridge", "--runs", site.runs, "--source", many, "--actors", 1)
    bridges = [Command(tmp_path, env("bridge"), *serve) for _ in range(2)]
    time.sleep(2)  # a quorum queue's first second may be lost with the node (rabbitmq-server#15725)
    for bridge in bridges:
        bridge.start()
    kills, number = Counter(), 0
    try:
        while kills.total() < KILLS * ROUNDS or len(kills) <= len(KINDS):
            load = ("publish", "--source", many, "--run-id", f"r{number}", "--chunk", 20)
            publisher = Command(tmp_path, env("publisher"), *load)
            publisher.start()
            chaos(site, broker, f"r{number}", bridges, publisher, chance, kills)
            assert site.wait(f"r{number}", within=150).digest == digest
            check_ledger(site.ledger(f"r{number}"))
            number += 1
    finally:
        for command in (*bridges, publisher):
            if command.code is None:
                command.kill()
    print(f"{dict(kills)} in {number} runs")
    assert not site.reasons(), "nothing was given up"
    nothing_is_left()


def chaos(site, broker, run_id, bridges, publisher, chance, kills):
    """Kill something now and then until the run has ended; start again what died."""
    if kill_half_way(publisher, site, chance.randrange(1, 2_000)):
        kills["publisher"] += 1
        print(f"{run_id}: killed the publisher at {site.depth()} tasks")

    def is_over():
        counts = site.counts(run_id)
        return counts.planned > 0 and not counts.due

    while not is_over() and (kills.total() < KILLS * ROUNDS or len(kills) <= len(KINDS)):
        goal = site.counts(run_id).merged + chance.randrange(1, 300)
        until = time.monotonic() + chance.uniform(1, 6)
        while not is_over() and site.counts(run_id).merged < goal and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.3))
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        if kill(kind, broker, bridges, chance):
            kills[kind] += 1
            print(f"{run_id}: killed a {kind} at {site.counts(run_id)}")
        revive(bridges, publisher)
    until = time.monotonic() + 150
    while publisher.code != 0:
        revive(bridges, publisher)
        assert time.monotonic() < until, publisher.said()
        time.sleep(0.1)


def kill_half_way(publisher, site, depth):
    """Kill a publisher when the queue has so many messages; False when it was faster."""
    wait_for("the publisher", lambda: publisher.code is not None or site.depth() >= depth, 60)
    if publisher.code is None:
        publisher.kill()
    return publisher.code == -signal.SIGKILL


def kill(kind, broker, bridges, chance):
    """Kill one of a kind; False where there was none."""
    if kind == "broker":
        broker.kill()
        time.sleep(chance.uniform(0, 2))
        broker.start()
        return True
    victims = [bridge for bridge in bridges if bridge.code is None] if kind == "bridge" else actors(kind.capitalize())
    if not victims:
        return False
    try:
        chance.choice(victims).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def revive(bridges, publisher):
    for command in (*bridges, publisher):
        if command.code not in {None, 0}:
            assert command.code in {-signal.SIGKILL, 1}, command.said()
            assert "Traceback" not in command.said(), command.said()
            command.start()


def test_a_broker_that_crashes_and_comes_back(broker, vhost, many, digest, tmp_path):
    site = Site(vhost, tmp_path / "runs")
    time.sleep(2)
    site.publish(make_spec(release("toy"), observables=("m4l",)), "r", many, 10)
    with Bridging(site, many):
        site.wait_until_merged("r", 300)
        broker.restart()
        assert site.wait("r", within=120).digest == digest
        wait_for("the acknowledgements", lambda: site.unsettled() == 0, 30)
    check_ledger(site.ledger("r"))
