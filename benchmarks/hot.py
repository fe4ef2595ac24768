"""How fast a moved cut answers: judging and filling of hot candidates on one core, and from question to answer.

Run by hand or by ``make bench-hot``. Writes its section of docs/performance.md when it is a full run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import report
from rich.console import Console

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.engine.limits import Limits
from hzzray.physics.cached_filler import CachedFiller
from hzzray.physics.hot_candidates import Hot
from hzzray.runs.explore import Session, explore
from hzzray.runs.request import make_spec
from hzzray.runs.run import execute, make_settings

FULL_EVENTS = 10_000_000
ONE_CORE = 1_000_000
QUESTIONS = 200
PASSES = 7

#: What issue 14 asks for.
GOALS = {"one": 60.0, "ten": 12.0, "p95_ms": 150.0, "ratio": 15.0}


def run(runs: Path, source: Path, run_id: str, actors: int) -> float:
    """Do a run that reads everything; returns the seconds that it took."""
    settings = make_settings(
        runs=runs, run_id=run_id, sources=(str(source),), limits=Limits(min_actors=actors, max_actors=actors)
    )
    spec = make_spec(release("toy"), selection="h4l")
    return execute(spec, settings, planned=lambda _: None, progress=lambda _: None).cost.wall_s


def bandwidth() -> float:
    """Measure how many GB/s one core reads from memory: the sum of an array that no cache holds."""
    array = np.ones(2**25)
    return array.nbytes / best(array.sum) / 1e9


def best(call: Callable[[], object], passes: int = PASSES) -> float:
    """Seconds of CPU of the fastest of some calls: steadier than the wall where others use the machine."""
    call()
    seconds = []
    for _ in range(passes):
        begun = time.process_time()
        call()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def hot_of(session: Session) -> list[Hot]:
    """Find what a session of one process holds."""
    session.recut()
    worker = session._explorer._worker  # noqa: SLF001
    return [worker._store.get(worker.key(number)) for number in range(len(session.tasks))]  # noqa: SLF001


def touched(hot: list[Hot], session: Session, observables: int) -> float:
    """Count the bytes an event that a question of the run's own cuts can't do without."""
    spec = session.spec
    names = [template.observable for template in spec.templates[:observables]]
    bytes_ = 0
    for part in (part for one in hot for part in one.parts):
        bounds = [bound for cut in spec.selection.cuts for bound in cut.bounds]
        read = {
            session.analysis.index(bound.variable)
            for bound in bounds
            if not part.columns[session.analysis.index(bound.variable)].passes(
                -np.inf if bound.low is None else bound.low, np.inf if bound.high is None else bound.high
            )
        }
        read |= {session.analysis.index(name) for name in names}
        bytes_ += sum(part.columns[i].values.nbytes for i in read) + part.weight.values.nbytes + part.region.nbytes
    return bytes_ / sum(one.entries for one in hot)


def one_core(runs: Path, console: Console) -> list[list[str]]:
    """Judge and fill on one core: rows of a table."""
    rows = []
    with explore("one", runs=runs, engine="serial") as session:
        hot = hot_of(session)
        events = sum(one.entries for one in hot)
        speed = bandwidth()
        for observables, goal in ((1, GOALS["one"]), (10, GOALS["ten"])):
            filler = CachedFiller(session.analysis, session.spec.selection.cuts, session.spec.templates[:observables])
            found = events / best(lambda filler=filler: filler.fill(hot)) / 1e6
            need = touched(hot, session, observables)
            rows.append(
                [
                    f"{observables} observable{'s' * (observables > 1)}",
                    f"{found:.0f} M events/s",
                    f"{goal:.0f}",
                    f"{need:.0f} B/event at {speed:.1f} GB/s: {1e3 * speed / need:.0f} M events/s at most",
                ]
            )
            console.print(rows[-1])
        console.print(f"{sum(one.nbytes for one in hot) / events:.0f} bytes an event")
    return rows


def answers(session: Session, questions: int) -> list[float]:
    """Drag a slider; returns seconds from question to answer."""
    rng = np.random.default_rng(1)
    seconds = []
    for low in rng.uniform(45, 70, questions):
        begun = time.perf_counter()
        answer = session.recut({"m12": (float(low), 106)}, observables=["m4l"])
        _ = answer.result.significance
        seconds.append(time.perf_counter() - begun)
        assert answer.fraction == 1.0
        assert answer.read == 0
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=FULL_EVENTS)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--toys", type=Path, help="Folder where toys are kept for another time.")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        runs, toys = Path(folder) / "runs", options.toys or Path(folder)
        for name, events in (("one", min(ONE_CORE, options.events)), ("all", options.events)):
            if not (toys / f"{name}-{events}").exists():
                write_toys(toys / f"{name}-{events}", release("toy"), events=events)
            machine.warm(toys / f"{name}-{events}")
        run(runs, toys / f"one-{min(ONE_CORE, options.events)}", "one", options.actors)
        machine.settle()
        rows = one_core(runs, console)
        cold_s = run(runs, toys / f"all-{options.events}", "all", options.actors)
        with explore("all", runs=runs, actors=options.actors) as session:
            session.recut(observables=["m4l"])
            machine.settle()
            seconds = answers(session, options.questions)
            standing = session.standing()
            session._explorer.end()  # noqa: SLF001
    median, p95 = statistics.median(seconds), float(np.quantile(seconds, 0.95))
    rows += [
        [f"question to answer, {options.actors} actors", f"{1e3 * p95:.0f} ms (p95)", f"{GOALS['p95_ms']:.0f}",
         f"{1e3 * median:.0f} ms at the median of {len(seconds)}"],
        ["re-cut against a cold run", f"{cold_s / median:.0f} ×", f"{GOALS['ratio']:.0f}", f"{cold_s:.1f} s cold"],
        ["memory", f"{standing.nbytes / options.events:.0f} B/event", "", f"{standing.nbytes / 1e6:.0f} MB hot"],
    ]  # fmt: skip
    header = ["", "found", "goal", ""]
    console.print(report.grid(header, rows))
    if options.events >= FULL_EVENTS and options.questions >= QUESTIONS:
        about = (
            f"; {options.events} toy events, the cuts of `h4l`; one core by its CPU time, the best of {PASSES} passes."
        )
        report.record("hot", ["benchmarks/hot.py", *sys.argv[1:]], about, report.grid(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
