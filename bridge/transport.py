"""A run whose tasks go through a broker, in one process tree: announced, published and served by one command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from bridge.announcement import Announcement
from bridge.bridge import Bridge, BridgeSettings
from bridge.loader import announce
from bridge.provision import require
from bridge.publisher import connected, send
from bridge.session import Terms
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from bridge.wire import TaskMessage, task_letter
from hzzray.engine.cluster import cluster
from hzzray.engine.ledger import Ledger
from hzzray.engine.sight import require_visible
from hzzray.errors import first_of
from hzzray.messages import Counts, RunSpec
from hzzray.runs.folder import load_json
from hzzray.runs.plan import Plan
from hzzray.runs.run import Ended, Settings, signals


@dataclass(frozen=True, slots=True)
class BrokerTransport:
    """Carries the tasks of a run by way of a broker, and ends with the run.

    Its methods raise BrokerError when the broker is not there for too long.
    """

    broker: BrokerSettings
    topology: Topology
    is_bridged: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse a broker that lacks what a run needs; raises BrokerError."""
        require(self.broker, self.topology)

    def agree(self, spec: RunSpec, run_id: str, plan: Plan) -> Plan:
        """Announce the run; returns what holds of it, after all that was announced before. Raises UsageError."""
        return asyncio.run(self._announce(Announcement.of(spec, run_id, plan))).plan()

    def work(self, ledger: Ledger, settings: Settings, progress: Callable[[Counts], None]) -> Ended:
        """Publish what is due, and serve the run, with actors of this process' cluster."""
        with cluster(settings.limits.max_actors):
            require_visible(ledger.due_files(), settings.sources)
            asyncio.run(self._serve(ledger, settings, progress))
        return Ended(load_json(settings.folder), "")

    async def _announce(self, mine: Announcement) -> Announcement:
        async with connected(self.broker, f"hzzray run {mine.run_id}") as publisher:
            return await announce(self.broker, self.topology, publisher, mine)

    async def _serve(self, ledger: Ledger, settings: Settings, progress: Callable[[Counts], None]) -> None:
        terms = Terms(
            name="",
            runs=settings.runs,
            sources=settings.sources,
            limits=settings.limits,
            draws=False,
            analyses=settings.analyses,
        )
        only = BridgeSettings(until=settings.run_id, only_it=True)
        bridge = Bridge(self.broker, self.topology, terms, only, progress)
        try:
            with signals(bridge.leave):
                async with asyncio.TaskGroup() as group:
                    publishing = group.create_task(self._publish(ledger))
                    await bridge.serve()
                    publishing.cancel()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors

    async def _publish(self, ledger: Ledger) -> None:
        """Publish what is due."""
        what = f"run {ledger.run_id}"
        number = ledger.tally().due
        letters = (task_letter(self.topology, TaskMessage(task)) for task in ledger.due())
        async with connected(self.broker, f"hzzray {what}") as publisher:
            await send(publisher, letters, number, what, patience_s=300.0)
