"""Bridges in a thread of this process, publishers, and what tests ask a broker with its topology."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pika

from bridge.announcement import Announcement
from bridge.bridge import Bridge, BridgeSettings
from bridge.loader import Published, publish
from bridge.orders import order
from bridge.provision import apply
from bridge.session import Terms
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from bridge.wire import REASON, Letter, Order, TaskMessage, announcement_letter, task_letter
from hzzray.engine.ledger import Ledger, Wish
from hzzray.engine.limits import Limits
from hzzray.errors import HzzrayError
from hzzray.messages import Counts, RunSpec
from hzzray.runs.folder import load_json
from hzzray.runs.plan import Plan, make_plan
from hzzray.runs.result import Result
from tests.support.rabbit import Vhost
from tests.support.waiting import wait_for

TOPOLOGY = Topology(delays_s=(0.3, 0.6, 1.0, 2.0))
PASSWORDS = {"admin": "a-secret", "publisher": "p-secret", "bridge": "b-secret"}


class Site:
    """A broker's virtual host with the topology and its users, and a folder of runs."""

    def __init__(self, vhost: Vhost, runs: Path) -> None:
        self.vhost = vhost
        self.runs = runs
        apply(self.settings("guest"), TOPOLOGY, PASSWORDS)

    def settings(self, user: str, **changes: Any) -> BrokerSettings:
        """Connect as one of the users."""
        url = self.vhost.url if user == "guest" else self.vhost.url_for(user, PASSWORDS[user])
        environ = {"HZZRAY_BROKER_MANAGEMENT": self.vhost.broker.management_url}
        return BrokerSettings.from_url(url, environ=environ).model_copy(update=changes)

    def plan(self, spec: RunSpec, run_id: str, source: Path, chunk: int) -> Plan:
        """Plan a run."""
        return make_plan(spec, run_id, (str(source),), chunk=chunk)

    def publish(self, spec: RunSpec, run_id: str, source: Path, chunk: int = 2_000, **more: Any) -> Published:
        """Publish a run, as the publisher."""
        return self.publish_plan(spec, run_id, self.plan(spec, run_id, source, chunk), **more)

    def publish_plan(self, spec: RunSpec, run_id: str, plan: Plan, **more: Any) -> Published:
        """Publish a run that was planned before."""
        return asyncio.run(publish(self.settings("publisher"), TOPOLOGY, spec, run_id, plan, **more))

    def announce(self, spec: RunSpec, run_id: str, plan: Plan) -> None:
        """Announce a run, and publish nothing of it."""
        self.send(announcement_letter(TOPOLOGY, Announcement.of(spec, run_id, plan), "test"))

    def send(self, *letters: Letter) -> None:
        """Publish letters as they are, one after the other."""
        with pika.BlockingConnection(pika.URLParameters(self.vhost.url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for letter in letters:
                channel.basic_publish(letter.exchange, letter.key, letter.body, letter.properties, mandatory=True)

    def send_tasks(self, plan: Plan, **more: Any) -> None:
        """Publish the tasks of a plan."""
        self.send(*(task_letter(TOPOLOGY, TaskMessage(task, **more)) for task in plan.tasks))

    def order(self, run_id: str, wish: Wish) -> None:
        """Tell the bridges a user's wish."""
        asyncio.run(order(self.settings("publisher"), TOPOLOGY, Order(run_id=run_id, wish=wish)))

    def depth(self, queue: str = TOPOLOGY.tasks.name) -> int:
        """How many messages wait in a queue."""
        with pika.BlockingConnection(pika.URLParameters(self.vhost.url)) as connection:
            return int(connection.channel().queue_declare(queue, passive=True).method.message_count)

    def unsettled(self) -> int:
        """How many messages there are in all queues of tasks, with a bridge or not."""
        queues = (TOPOLOGY.tasks, *TOPOLOGY.retries)
        return sum(self.vhost.api("GET", f"queues/{queue.name}").get("messages", 0) for queue in queues)

    def wait_for_dead(self, number: int) -> None:
        """Wait until there are so many dead letters."""
        wait_for(f"{number} dead letters", lambda: self.depth(TOPOLOGY.dead.name) >= number, 60)

    def reasons(self, number: int = 0) -> Counter[str]:
        """Why the dead letters were given up, as soon as there are so many; they are gone after that."""
        self.wait_for_dead(number)
        found: Counter[str] = Counter()
        with pika.BlockingConnection(pika.URLParameters(self.vhost.url)) as connection:
            channel = connection.channel()
            while True:
                method, properties, _ = channel.basic_get(TOPOLOGY.dead.name, auto_ack=True)
                if method is None:
                    return found
                found[str((properties.headers or {}).get(REASON))] += 1

    def ledger(self, run_id: str) -> Path:
        """Path of a run's ledger."""
        return self.runs / run_id / "ledger.db"

    def counts(self, run_id: str) -> Counts:
        """How far a run is."""
        if not self.ledger(run_id).exists():
            return Counts(0, 0, 0)
        with Ledger.open(self.ledger(run_id)) as ledger:
            return ledger.tally()

    def wait(self, run_id: str, status: str = "complete", within: float = 90.0) -> Result:
        """Wait until a run's files say that it has ended so."""

        def ended() -> Result | None:
            try:
                result = load_json(self.runs / run_id)
            except HzzrayError:
                return None
            return result if result.status == status else None

        return wait_for(f"{run_id} to be {status}: {self.counts(run_id)}", ended, within)

    def wait_until_merged(self, run_id: str, number: int, within: float = 60.0) -> None:
        """Wait until so many tasks are merged."""
        wait_for(f"{number} merged tasks of {run_id}", lambda: self.counts(run_id).merged >= number, within)


class Bridging:
    """A bridge in a thread, for as long as the block goes on."""

    def __init__(
        self, site: Site, *sources: object, actors: int = 1, name: str = "", heal_s: float = 30.0,
        settings: BrokerSettings | None = None, limits: Limits | None = None, analyses: tuple[str, ...] = (),
        draws: bool = False,
        **more: Any,
    ) -> None:  # fmt: skip
        limits = limits or Limits(min_actors=actors, max_actors=actors, idle_s=1.0, back_off_s=(0.01, 0.1))
        terms = Terms(name, site.runs, tuple(map(str, sources)), limits, heal_s, draws, analyses)
        self._make = (settings or site.settings("bridge"), TOPOLOGY, terms, BridgeSettings(**more))
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self.bridge = Bridge(*self._make)
            self._ready.set()
            await self.bridge.serve()

        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 (told to the test)
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def join(self, within: float = 60.0) -> None:
        """Wait for its end."""
        self._thread.join(within)
        assert not self._thread.is_alive(), "the bridge goes on"
        if self.error is not None:
            raise self.error

    def leave(self, wish: Wish = "drain") -> None:
        """Ask it to end."""
        self._loop.call_soon_threadsafe(self.bridge.leave, wish)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._thread.is_alive():
            self.leave("cancel")
        self._thread.join(60)
        if kind is None and self.error is not None:
            raise self.error
