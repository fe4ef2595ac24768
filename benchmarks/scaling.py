"""Ray against serial: ``python benchmarks/scaling.py --events 10000000 --actors 2``, on toy files made for it.

The pipeline's time is counted from the first commit to the last, with the events in between, so that neither Ray's
start nor the actors' is in it; the cluster is started before, and has come to rest. The serial engine's is counted the
same way. Engines take turns, and the medians are compared: a shared machine's speed drifts.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.engine.cluster import cluster
from hzzray.run import execute, make_settings, make_spec


def rate(ledger: Path) -> float:
    """Events a second between the first commit and the last."""
    database = sqlite3.connect(ledger)
    rows = database.execute("SELECT merged, SUM(events) FROM partials GROUP BY merged ORDER BY merged").fetchall()
    database.close()
    return sum(events for _, events in rows[1:]) / (rows[-1][0] - rows[0][0])


def settle(bound_s: float = 60.0) -> None:
    """Wait until the machine has been idle for two seconds: a new cluster works on itself for some ten."""
    until = time.monotonic() + bound_s
    while psutil.cpu_percent(2.0) > 10 and time.monotonic() < until:
        pass


def main() -> None:
    """Run serially and on Ray in turns, and print rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=200_000)
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
        spec = make_spec(release("toy"))
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
