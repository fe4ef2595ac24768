"""A run through a broker in one process tree: published and served by one command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
from hzzray.engine.sight import require_sight
from hzzray.errors import first_of
from hzzray.messages import Counts, RunSpec
from hzzray.places import cache_folder
from hzzray.runs.folder import load_json
from hzzray.runs.plan import Plan, check_source, make_plan, readable
from hzzray.runs.result import Result, environment
from hzzray.runs.run import Settings, StoppedError, check_same, record, signals


def execute(
    spec: RunSpec,
    settings: Settings,
    broker: BrokerSettings,
    topology: Topology,
    *,
    planned: Callable[[Plan], None],
    progress: Callable[[Counts], None],
) -> Result:
    """Do a run, or the rest of one, its tasks by way of the broker; ends with the run, whose files are written then.

    Raises UsageError when the run exists with another spec, StoppedError when its user ended it, BrokerError when the
    broker is not there for too long.
    """
    for source in settings.sources:
        check_source(source)
    require(broker, topology)
    path = settings.folder.resolve() / "ledger.db"
    if path.exists():
        check_same(path, spec)
    cache = cache_folder()
    plan = make_plan(
        spec, settings.run_id, settings.sources, chunk=settings.chunk, cache=cache, places=settings.analyses
    )
    announced = asyncio.run(_announce(broker, topology, Announcement.of(spec, settings.run_id, plan)))
    if not path.exists():
        Ledger.create(path, settings.run_id, spec, environment()).close()
        check_same(path, spec)
    with Ledger.open(path) as ledger:
        record(ledger, announced.plan())
        ledger.relocate(plan.files)
        bridged = settings.model_copy(update={"bridged": True})
        ledger.keep_settings(bridged.model_dump_json(exclude={"runs", "run_id"}))
    planned(plan)
    with cluster(settings.limits.max_actors):
        mine = settings.model_copy(update={"sources": readable(settings.sources, plan)})
        with Ledger.open(path) as ledger:
            require_sight(ledger.due_files(), mine.sources)
        asyncio.run(_serve(mine, broker, topology, progress))
    result = load_json(settings.folder)
    if result.status == "running":
        left = result.tasks.planned - result.tasks.merged - result.tasks.failed
        raise StoppedError(f"run {settings.run_id}: {left} tasks left; the same --run-id goes on with them")
    return result


async def _announce(broker: BrokerSettings, topology: Topology, mine: Announcement) -> Announcement:
    async with connected(broker, f"hzzray run {mine.run_id}") as publisher:
        return await announce(broker, topology, publisher, mine)


async def _serve(
    settings: Settings, broker: BrokerSettings, topology: Topology, progress: Callable[[Counts], None]
) -> None:
    terms = Terms(
        name="",
        runs=settings.runs,
        sources=settings.sources,
        limits=settings.limits,
        draws=False,
        analyses=settings.analyses,
    )
    only = BridgeSettings(until=settings.run_id, only_it=True)
    bridge = Bridge(broker, topology, terms, only, progress)
    try:
        with signals(bridge.leave):
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(_publish(settings, broker, topology))
                await bridge.serve()
                publishing.cancel()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors


async def _publish(settings: Settings, broker: BrokerSettings, topology: Topology) -> None:
    """Publish what is due."""
    with Ledger.open(settings.folder.resolve() / "ledger.db") as ledger:
        number = ledger.tally().due
        letters = (task_letter(topology, TaskMessage(task)) for task in ledger.due())
        async with connected(broker, f"hzzray run {settings.run_id}") as publisher:
            await send(publisher, letters, number, f"run {settings.run_id}", patience_s=300.0)
