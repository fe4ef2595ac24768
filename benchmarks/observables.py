"""What observables cost: the same file filled with one, the default ones and twenty, in turn, on one core.

Run by hand: ``python benchmarks/observables.py``. Writes its section of docs/performance.md when it is a full run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import report
from rich.console import Console
from variations import EVENTS, PASSES, SAMPLE, Way, in_turns

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.runs.request import make_spec

#: What issue 12 asks for, of twenty observables.
GOAL = 1.25

FIVE_MORE = ("dr_same=0:5:50", "dr_other=0:5:50", "m_sfos=0:150:50", "n_electrons=0:8:8", "n_muons=0:8:8")


def measure(file: Path, selection: str, passes: int) -> dict[int, tuple[float, float]]:
    """Tell of each number of observables the ns of CPU an event, the fastest pass, and the ratio to one: in turns."""
    default = [one.observable for one in make_spec(release("toy"), selection=selection).templates]
    found: dict[int, Way] = {}
    for chosen in (["m4l"], default, [*default, *FIVE_MORE]):
        spec = make_spec(release("toy"), selection=selection, observables=tuple(chosen))
        found[len(spec.templates)] = Way.of(spec, file)
    return in_turns(found, 1, passes)


def main() -> int:
    """Measure, print, and write the section where the run is a full one; 1 where the goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--passes", type=int, default=PASSES)
    asked = parser.parse_args()
    toy = release("toy")
    rows: list[tuple[str, ...]] = []
    console, missed = Console(), False
    with tempfile.TemporaryDirectory(prefix="hzzray-bench-") as folder:
        write_toys(Path(folder), toy.only((SAMPLE, "data_A")), events=asked.events)
        file = Path(folder) / str(toy.sample(SAMPLE).only_path)
        for selection in ("notebook-2020", "h4l"):
            for number, (nanoseconds, ratio) in measure(file, selection, asked.passes).items():
                missed |= number >= 20 and ratio > GOAL
                rows.append((selection, str(number), f"{nanoseconds:.0f}", f"{ratio:.2f}"))
                console.print(*rows[-1], sep="  ", highlight=False)
    if (asked.events, asked.passes) == (EVENTS, PASSES):
        about = (
            f"; {EVENTS} toy events of {SAMPLE}, read from their file and filled on one core, in turns. CPU time: the "
            f"best of {PASSES} passes, and the median of the ratios of neighbours. Goal: {GOAL} with twenty."
        )
        heads = ["selection", "observables", "ns an event", "times as long as one"]
        report.record("observables", ["benchmarks/observables.py", *sys.argv[1:]], about, report.grid(heads, rows))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
