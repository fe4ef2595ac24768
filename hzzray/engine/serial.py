"""The engine without Ray: one worker, one reducer, one after the other. The oracle of every other engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import tenacity

from hzzray.engine.reducer import Reducer
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, TransientError
from hzzray.messages import Failure, Partial, RunSpec, Task
from hzzray.result import RunState

#: How often a task is tried when what fails may pass.
ATTEMPTS = 4


def run_serial(
    path: Path,
    spec: RunSpec,
    tasks: Iterable[Task],
    sources: tuple[str, ...],
    *,
    cache: Path | None,
    progress: Callable[[tuple[int, int, int, int]], None],
) -> RunState:
    """Work through tasks in this process; returns the run as it stands then."""
    worker = Worker(spec, sources, cache=cache)
    reducer = Reducer(path)
    try:
        for task in tasks:
            try:
                reducer.merge(_process(worker, task))
            except (DataError, TransientError) as error:
                permanent = isinstance(error, DataError)
                attempts = 1 if permanent else ATTEMPTS
                reducer.fail(Failure(task=task, reason=str(error), permanent=permanent, attempts=attempts))
            progress(reducer.counts())
        state = reducer.snapshot()
    finally:
        worker.close()
        reducer.close()
    return state


@tenacity.retry(
    stop=tenacity.stop_after_attempt(ATTEMPTS),
    wait=tenacity.wait_random_exponential(0.2, 5.0),
    retry=tenacity.retry_if_exception_type(TransientError),
    reraise=True,
)
def _process(worker: Worker, task: Task) -> Partial:
    return worker.process(task)
