"""The engine without Ray: one worker, one reducer, one after the other. The oracle of every other engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hzzray.engine.ledger import Ledger, Wish
from hzzray.engine.reducer import Reducer
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, TransientError
from hzzray.messages import Counts, Failure, Task
from hzzray.result import RunState
from hzzray.retry import retrying

#: How often a task is tried when what fails may pass.
ATTEMPTS = 4

_POLL_S = 0.2
_TELL_S = 1.0


def run_serial(
    ledger: Ledger,
    tasks: Iterable[Task],
    sources: tuple[str, ...],
    *,
    cache: Path | None,
    progress: Callable[[Counts], None],
    watcher: Callable[[RunState], object],
    interval_s: float = 0.0,
) -> tuple[RunState, Wish]:
    """Work through tasks of a run in this process; returns the run as it stands then, and what its user wished last.

    ``watcher`` is told about every second how the run stands. ``interval_s`` is the least time between two tasks.
    """
    reducer = Reducer(ledger.path)
    worker = Worker(ledger.spec, sources, cache=cache)
    wish: Wish = "run"
    told = time.monotonic()
    try:
        for task in tasks:
            try:
                reducer.merge([retrying(ATTEMPTS)(worker.process, task)])
            except (DataError, TransientError) as error:
                permanent = isinstance(error, DataError)
                attempts = 1 if permanent else ATTEMPTS
                reducer.fail(Failure(task=task, reason=str(error), permanent=permanent, attempts=attempts))
            counts, wish = reducer.progress()
            progress(counts)
            if time.monotonic() - told > _TELL_S:
                watcher(reducer.snapshot())
                told = time.monotonic()
            time.sleep(interval_s)
            while wish == "pause":
                time.sleep(_POLL_S)
                _, wish = reducer.progress()
            if wish != "run":
                break
        state = reducer.snapshot()
    finally:
        worker.close()
        reducer.close()
    return state, wish
