"""Tasks to actors: a lane for each place in flight takes a task, sees it processed and merged, and only then acks it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from hzzray.engine.cluster import WORKER_ENVIRONMENT
from hzzray.engine.reducer import Reducer
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, HzzrayError
from hzzray.messages import Failure, RunSpec, Task
from hzzray.result import RunState
from hzzray.source import TaskSource

#: Tasks in flight an actor: one that it computes, one that waits so that it never does.
IN_FLIGHT = 2

#: How often a task is tried when what fails may pass.
ATTEMPTS = 5

_BACK_OFF_S = (0.2, 5.0)
_PROGRESS_S = 0.25


class Pool:
    """Worker actors and the reducer actor of one run."""

    def __init__(self, path: Path, spec: RunSpec, sources: tuple[str, ...], actors: int, cache: Path | None) -> None:
        environment = {"env_vars": WORKER_ENVIRONMENT}
        worker = ray.remote(Worker).options(num_cpus=1, max_restarts=-1, max_task_retries=0, runtime_env=environment)
        self._workers = [worker.remote(spec, sources, f"worker-{i}", cache) for i in range(actors)]
        # The reducer waits for the disk more than it computes; it shares a core with the driver.
        self._reducer: Any = ray.remote(Reducer).options(num_cpus=0, max_restarts=-1, max_task_retries=0).remote(path)
        self._attempts: dict[str, int] = {}

    async def run(self, source: TaskSource, progress: Callable[[tuple[int, int, int, int]], None]) -> RunState:
        """Work until the source ends; returns the run as it stands then."""
        reporter = asyncio.create_task(self._report(progress))
        try:
            async with asyncio.TaskGroup() as lanes:
                for worker in self._workers:
                    for _ in range(IN_FLIGHT):
                        lanes.create_task(self._lane(worker, source))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            reporter.cancel()
        progress(await self._reducer.counts.remote())
        state: RunState = await self._reducer.snapshot.remote()
        return state

    async def _lane(self, worker: Any, source: TaskSource) -> None:  # noqa: ANN401 (an actor's handle)
        while (task := await source.get()) is not None:
            try:
                await self._reducer.merge.remote(worker.process.remote(task))
            except RayError as error:
                await self._faulty(source, task, error)
            else:
                self._attempts.pop(task.task_id, None)
                source.ack(task)

    async def _faulty(self, source: TaskSource, task: Task, error: RayError) -> None:
        """Try a task again after a while, or give it up with its reason."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        attempts = self._attempts[task.task_id] = self._attempts.get(task.task_id, 0) + 1
        permanent = isinstance(cause, DataError)
        if isinstance(cause, HzzrayError) or isinstance(cause, RayError):
            reason = str(cause) if isinstance(cause, HzzrayError) else _died(cause)
        else:
            raise error  # a bug, ours: no retry makes it right
        if permanent or attempts >= ATTEMPTS:
            failure = Failure(task=task, reason=reason, permanent=permanent, attempts=attempts)
            await self._reducer.fail.remote(failure)
            source.reject(failure)
            return
        low, high = _BACK_OFF_S
        await asyncio.sleep(min(high, low * 2**attempts) * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
        source.retry(task)

    async def _report(self, progress: Callable[[tuple[int, int, int, int]], None]) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            try:
                progress(await self._reducer.counts.remote())
            except RayActorError:
                continue  # the reducer is being restarted; the next time tells


def _died(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{type(error).__name__}: {first}"
