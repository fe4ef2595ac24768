"""The data loader: plans a run, announces it, publishes its tasks. Killed half way and started again, it does no harm.

An announcement goes to a stream, which keeps an order: of several for one run the first decides, and all who read the
stream come to the same plan. So a loader appends its own, reads up to it, and publishes what then holds.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from bridge.announcement import Announcement
from bridge.connection import Link
from bridge.publisher import PATIENCE_S, Progress, Publisher, PublishError, connected, send
from bridge.run_log import RunLog
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from bridge.wire import Account, Order, TaskMessage, account_letter, announcement_letter, order_letter, task_letter
from hzzray.engine.monitor import measure_host
from hzzray.errors import UsageError
from hzzray.messages import RunSpec
from hzzray.runs.plan import Plan
from hzzray.urls import redact


@dataclass(frozen=True, slots=True)
class Published:
    """What came of publishing a run: how many tasks, and what of its plan no task stands for."""

    run_id: str
    tasks: int
    plan: Plan


async def publish(
    broker: BrokerSettings,
    topology: Topology,
    spec: RunSpec,
    run_id: str,
    plan: Plan,
    *,
    progress: Progress = lambda *_: None,
    patience_s: float = PATIENCE_S,
) -> Published:
    """Announce a run and publish its tasks, all of them confirmed by the broker when this returns.

    Raises UsageError when the run was announced with another spec, PublishError when the broker took nothing for
    ``patience_s``, BrokerError when there is none.
    """
    async with connected(broker, f"hzzray publish {run_id}", patience_s) as publisher:
        mine = Announcement.of(spec, run_id, plan)
        holds = (await announce(broker, topology, publisher, mine, patience_s)).plan()
        # Bridges that listen take the run up at once, also one that was paused or cancelled.
        go_on = order_letter(topology, Order(run_id=run_id, wish="run"), mandatory=False)
        await send(publisher, [go_on], 1, f"run {run_id}", patience_s=patience_s)
        letters = (task_letter(topology, TaskMessage(task)) for task in holds.tasks)
        await send(publisher, letters, len(holds.tasks), f"run {run_id}", progress=progress, patience_s=patience_s)
        if (around := measure_host()).is_service:
            account = account_letter(topology, Account.of(run_id, around))
            await send(publisher, [account], 1, f"run {run_id}", patience_s=patience_s)
    return Published(run_id, len(holds.tasks), holds)


async def announce(
    broker: BrokerSettings, topology: Topology, publisher: Publisher, mine: Announcement, patience_s: float = PATIENCE_S
) -> Announcement:
    """Announce a run; returns what holds of it, after all that was announced before.

    Raises UsageError when it was announced with another spec or other files, PublishError when it can't be published.
    """
    mark = secrets.token_hex(16)
    holds: asyncio.Future[Announcement] = asyncio.get_running_loop().create_future()
    before: list[Announcement] = []

    def read(announcement: Announcement, its_mark: str) -> None:
        if announcement.run_id == mine.run_id and not holds.done():
            try:
                before.append(before.pop().with_later(announcement) if before else announcement)
            except UsageError as error:
                if its_mark == mark:
                    holds.set_exception(error)
                return
            if its_mark == mark:
                holds.set_result(before[0])

    await send(publisher, [announcement_letter(topology, mine, mark)], 1, f"run {mine.run_id}", patience_s=patience_s)
    reader = Link(broker, f"hzzray publish {mine.run_id}: runs")
    run_log = RunLog(reader, topology.runs.name, read)
    try:
        await reader.start(patience_s)
        announced = await asyncio.wait_for(holds, patience_s)
    except TimeoutError:
        raise PublishError(
            f"run {mine.run_id}: announced, but {topology.runs.name} can't be read: {run_log.trouble or 'it is silent'}"
        ) from None
    finally:
        await reader.stop()
    contents = {(row.sample, row.uuid) for row in announced.files}
    for row in mine.files:
        if (row.sample, row.uuid) not in contents:
            raise UsageError(
                f"{redact(row.file)}: another file than the one that run {mine.run_id} was announced with, or another "
                "content; take another --run-id"
            )
    return announced
