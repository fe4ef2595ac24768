"""Measure hzzray, and what else can do its work, on one generated file: ``python benchmarks/bench.py``."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import report
from environment import Failed, Peers, run
from report import Measurement
from rich.console import Console

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
WRITER = HERE / "make_file.py"

FILE_TIMEOUT = 600.0

#: A run on fewer events or with fewer passes says too little for the documentation.
FULL_EVENTS, FULL_REPEATS = 500_000, 5


@dataclass(frozen=True)
class Way:
    """A way through the file: a function, and the environment that it needs.

    Attributes
    ----------
    name
        Its key in the results.
    title
        What a reader should call it.
    function
        ``module:function``, a module of this folder. It takes the path and returns a ``task.Outcome``.
    packages
        Distributions whose versions matter.
    peer
        It runs in the peers' environment, not in hzzray's.
    """

    name: str
    title: str
    function: str
    packages: tuple[str, ...]
    peer: bool = True


OURS = "hzzray"

WAYS = (
    Way("kernel", "hzzray's kernel alone, columns in memory", "ways:kernel", ("numba",), peer=False),
    Way(OURS, "hzzray, file to histogram", "ways:ours", ("numba", "deflate"), peer=False),
    Way("floor-libdeflate", "decompression alone, libdeflate", "floor:with_libdeflate", ("deflate",)),
    Way("floor-isal", "decompression alone, ISA-L", "floor:with_isal", ("isal",)),
    Way("floor-zlib", "decompression alone, Python's zlib", "floor:with_zlib", ()),
    Way("arrays", "uproot, reading alone", "scikit_hep:arrays", ("uproot", "awkward")),
    Way(
        "arrays-isal",
        "uproot with ISA-L, reading alone",
        "scikit_hep:arrays_isal",
        ("uproot",),
    ),
    Way(
        "notebook",
        "the notebook's loop: uproot, awkward, vector",
        "scikit_hep:notebook",
        ("uproot", "awkward", "vector", "numpy"),
    ),
    Way("rdataframe", "ROOT RDataFrame, compiled, 1 thread", "rdataframe:compiled", ("root",)),
    Way("coffea", "coffea, iterative executor", "coffea_processor:iterative", ("coffea",)),
)


def measure(way: Way, python: str, path: Path, repeats: int, timeout: float) -> Measurement:
    """Time one way in a process of its own; a way that fails has a reason in place of times."""
    command = [python, str(HERE / "measure.py"), way.function, str(path), "--repeats", str(repeats)]
    command += ["--packages", *way.packages]
    try:
        # Libraries may print before.
        found = json.loads(run(command, timeout).rstrip().rpartition("\n")[2])
    except (Failed, json.JSONDecodeError) as failure:
        reason = str(failure).replace(f"{HERE.parent}/", "")
        return Measurement(way.name, way.title, reason=reason)
    return Measurement(way.name, way.title, **found)


def data_file(events: int) -> Path:
    """Name the file of so many events; another version of its writer gives another name."""
    return OUT / f"events-{events}-{hashlib.sha256(WRITER.read_bytes()).hexdigest()[:8]}.root"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=FULL_EVENTS, help="events in the file (%(default)s)")
    parser.add_argument("--repeats", type=int, default=FULL_REPEATS, help="timed passes of each way (%(default)s)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a way may take (%(default)g)")
    parser.add_argument("--no-peers", action="store_true", help="measure hzzray alone, on a file that was kept")
    parser.add_argument("--keep", action="store_true", help="leave the generated file for the next time")
    options = parser.parse_args()
    for name in ("events", "repeats", "timeout"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be above 0")
    return options


def main() -> int:
    """Generate, measure, compare, report. Returns 1 where ways disagree or there is no file."""
    options = arguments()
    console = Console()
    peers = Peers(HERE.parent / ".venv-peers", HERE / "peers.txt")
    path = data_file(options.events)
    kept = path.is_file()
    try:
        if not options.no_peers:
            with console.status("installing the peers"):
                missing = peers.install()
            for line in missing:
                console.print(f"not installed: {line}", style="yellow", markup=False)
        if not kept:
            OUT.mkdir(exist_ok=True)
            run([peers.python, str(WRITER), str(path), "--events", str(options.events)], FILE_TIMEOUT)
    except Failed as failure:
        console.print(failure, style="red", markup=False)
        if not kept:
            console.print("There is no file to read; ROOT, one of the peers, must write it.")
            return 1

    measurements = []
    for way in WAYS:
        if way.peer and options.no_peers:
            continue
        with console.status(way.title):
            python = peers.python if way.peer else sys.executable
            measurements.append(measure(way, python, path, options.repeats, options.timeout))
    facts = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": report.machine(),
        "command": shlex.join(["python", "benchmarks/bench.py", *sys.argv[1:]]),
        "events": options.events,
        "repeats": options.repeats,
        "megabytes": path.stat().st_size / 1e6,
        "versions": report.versions(measurements),
    }
    if not (kept or options.keep):
        path.unlink()

    console.print(report.terminal(measurements, OURS))
    for line in report.remarks(measurements):
        console.print(f"- {line}", markup=False, highlight=False)
    document = {**facts, "ways": [dataclasses.asdict(way) for way in measurements]}
    (OUT / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if report.disagreements(measurements):
        return 1
    if options.no_peers or options.events < FULL_EVENTS or options.repeats < FULL_REPEATS:
        console.print(f"{report.DOCUMENT.name} is left alone: not a full run")
    else:
        report.rewrite("bench", report.markdown(measurements, OURS, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
