"""Ray against serial: ``python benchmarks/scaling.py --events 10000000 --actors 2``, on toy files made for it.

Time is counted from when every actor has its first task in the ledger until the last commit, so that neither Ray's
start nor the actors' is in it; the serial engine's from its first commit. A task that was being worked on when the
count began counts by the part of its time that was left. The cluster is started before, and has come to rest; the
files are read once before each run. Engines take turns, and the medians are compared: a shared machine's speed drifts.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
from pathlib import Path

from machine import settle, warm
from rich.console import Console
from rich.table import Table

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.engine.cluster import cluster
from hzzray.runs.plan import CHUNK
from hzzray.runs.request import make_spec
from hzzray.runs.run import execute, make_settings


def rate(ledger: Path) -> float:
    """Events a second from when all workers were at work to the last commit."""
    database = sqlite3.connect(ledger)
    ((begun,),) = database.execute("SELECT MAX(first) FROM (SELECT MIN(merged) AS first FROM partials GROUP BY worker)")
    ((events, last),) = database.execute(
        "SELECT SUM(events * MIN(1.0, (merged - ?1) / wall_s)), MAX(merged) FROM partials WHERE merged > ?1", (begun,)
    )
    database.close()
    return float(events / (last - begun))


def main() -> None:
    """Run serially and on Ray in turns, and print rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=CHUNK)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--toys", type=Path, help="toy files that are there already")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"serial": [], "ray": []}
    digests = set()
    with tempfile.TemporaryDirectory() as scratch, cluster(args.actors):
        folder = Path(scratch)
        toys = args.toys or folder / "toys"
        if args.toys is None:
            write_toys(toys, release("toy"), events=args.events)
        spec = make_spec(release("toy"), selection="notebook-2020")
        for number in range(args.repeat):
            for engine, found in rates.items():
                settings = make_settings(
                    runs=folder / "runs",
                    run_id=f"{engine}{number}",
                    sources=(str(toys),),
                    engine=engine,
                    limits={"min_actors": args.actors, "max_actors": args.actors},
                    chunk=args.chunk,
                )
                settle()
                warm(toys)
                digests.add(execute(spec, settings, planned=lambda _: None, progress=lambda _: None).digest)
                found.append(rate(settings.folder / "ledger.db"))
    table = Table("engine", "events/s, median", "each")
    for engine, found in rates.items():
        table.add_row(engine, f"{statistics.median(found):,.0f}", ", ".join(f"{one:,.0f}" for one in found))
    console = Console()
    console.print(table)
    ratio = args.actors * statistics.median(rates["serial"]) / statistics.median(rates["ray"])
    console.print(f"{args.actors} actors take {ratio:.2f} times (serial time / {args.actors})")
    console.print("same digest" if len(digests) == 1 else "THE DIGESTS DIFFER")


if __name__ == "__main__":
    main()
