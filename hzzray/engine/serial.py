"""The engine without Ray: one worker, one reducer, one after the other. The oracle of every other engine."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from hzzray.engine.ledger import Ledger, Wish
from hzzray.engine.monitor import CpuBaseline, Scale, is_actor, measure_host
from hzzray.engine.reducer import Live, Reducer
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, TransientError
from hzzray.messages import Counts, Failure, Task
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
    places: tuple[str, ...] = (),
    progress: Callable[[Counts], None],
    watcher: Callable[[Live], object],
    interval_s: float = 0.0,
) -> Wish:
    """Work through tasks of a run in this process; returns what its user wished last.

    ``watcher`` is told about every second, and in the end, what there is to see. ``interval_s`` is the least time
    between two tasks. SIGTERM and the first Ctrl-C drain: the task in hand is finished.
    """
    with _stopped() as stopped, ExitStack() as stack:
        reducer = Reducer(ledger.path)
        stack.callback(reducer.close)
        worker = Worker(ledger.spec, sources, cache=cache, places=places)
        stack.callback(worker.close)
        baseline = CpuBaseline()
        wish: Wish = "run"
        seen, told = 0, time.monotonic()

        def tell() -> None:
            nonlocal seen, told
            state = reducer.newer(seen)
            seen = seen if state is None else state.version
            scale = Scale(actors=1, pending=0, nodes=1, waiting=reducer.progress()[0].due, in_flight=0)
            used = {usage.actor: usage for usage in (*worker.usage(), measure_host())}
            rows = tuple(usage if is_actor(usage.actor) else baseline(usage) for usage in used.values())
            watcher(Live(state, rows, scale, None, tables=reducer.news()))
            told = time.monotonic()

        for task in tasks:
            if stopped():
                wish = "drain"
                break
            try:
                reducer.merge([retrying(ATTEMPTS)(worker.process, task)])
            except (DataError, TransientError) as error:
                permanent = isinstance(error, DataError)
                attempts = 1 if permanent else ATTEMPTS
                reducer.fail(Failure(task=task, reason=str(error), permanent=permanent, attempts=attempts))
            progress(reducer.progress()[0])
            due = time.monotonic() + interval_s
            while True:
                wish = "drain" if stopped() else reducer.progress()[1]
                if time.monotonic() - told > _TELL_S:
                    tell()
                left = _POLL_S if wish == "pause" else due - time.monotonic()
                if wish in ("drain", "cancel") or left <= 0:
                    break
                time.sleep(min(_POLL_S, left))
            if wish != "run":
                break
        tell()
        return wish


@contextmanager
def _stopped() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM and the first Ctrl-C be asked for; a second Ctrl-C ends at once."""
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    here = threading.current_thread() is threading.main_thread()  # whose business signals are
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)} if here else {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
