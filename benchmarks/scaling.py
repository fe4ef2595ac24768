"""Ray against serial: ``python benchmarks/scaling.py --events 10000000 --actors 2``, on toy files made for it.

The pipeline's time is counted from the first commit to the last, with the events in between, so that neither Ray's
start nor the actors' is in it. The serial engine's is counted the same way.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.run import execute, make_settings, make_spec


def rate(ledger: Path) -> tuple[float, float]:
    """Events a second between the first commit and the last, and the seconds that they took."""
    database = sqlite3.connect(ledger)
    rows = database.execute("SELECT merged, SUM(events) FROM partials GROUP BY merged ORDER BY merged").fetchall()
    database.close()
    seconds = rows[-1][0] - rows[0][0]
    return sum(events for _, events in rows[1:]) / seconds, seconds


def main() -> None:
    """Run serially and on Ray, and print rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=200_000)
    parser.add_argument("--toys", type=Path, help="toy files that are there already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        toys = args.toys or folder / "toys"
        if args.toys is None:
            write_toys(toys, release("toy"), events=args.events)
        spec = make_spec(release("toy"))
        found, digests = {}, set()
        for engine in ("serial", "ray"):
            settings = make_settings(
                runs=folder / "runs",
                run_id=engine,
                sources=(str(toys),),
                engine=engine,
                limits={"min_actors": args.actors, "max_actors": args.actors},
                chunk=args.chunk,
            )
            result = execute(spec, settings, planned=lambda _: None, progress=lambda _: None)
            digests.add(result.digest)
            found[engine] = (*rate(settings.folder / "ledger.db"), result.cost.wall_s)
    table = Table("engine", "events/s", "first to last commit [s]", "wall clock [s]")
    for engine, (events_per_s, seconds, wall_s) in found.items():
        table.add_row(engine, f"{events_per_s:,.0f}", f"{seconds:.2f}", f"{wall_s:.2f}")
    console = Console()
    console.print(table)
    ideal = found["serial"][0] * args.actors
    console.print(f"{args.actors} actors take {ideal / found['ray'][0]:.2f} times (serial time / {args.actors})")
    console.print("same digest" if len(digests) == 1 else "THE DIGESTS DIFFER")


if __name__ == "__main__":
    main()
