"""``hzzray cluster``: a local Ray cluster that stays between runs, so that the next one needn't start its own."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from rich.console import Console

from hzzray.engine import standing_cluster
from hzzray.errors import UsageError
from hzzray.options import AsJson, print_json
from hzzray.report.say import say

app = typer.Typer(no_args_is_help=True, help="A local Ray cluster that stays: runs and app use it while it is there.")
console = Console(emoji=False)

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@app.command()
def up(
    slots: Annotated[int | None, typer.Option(min=1, help="CPU slots for actors. Default: one a CPU.")] = None,
    idle: Annotated[str, typer.Option(metavar="TIME", help="It ends when unused for so long: 90s, 30m, 2h.")] = "30m",
) -> None:
    """Start it, unless it is there."""
    from hzzray.engine.cluster import usable_cpus  # noqa: PLC0415 (imports psutil and more)

    wanted = usable_cpus() if slots is None else slots
    with console.status("a Ray cluster starts: some seconds"):
        record, is_new = standing_cluster.up(wanted, idle_s=_seconds(idle))
    if not is_new and slots not in (None, record.slots):
        raise UsageError(f"there is one with {record.slots} slots: hzzray cluster down ends it")
    _tell(record, "started" if is_new else "is there already")


@app.command()
def down(
    force: Annotated[bool, typer.Option("--force", help="Even where runs use it; what they merged is kept.")] = False,
) -> None:
    """End it."""
    console.print("ended" if standing_cluster.down(force=force) else "there was none")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Tell whether it is there, and who uses it; exit 1 where it isn't."""
    record, users = standing_cluster.find(), standing_cluster.users()
    if as_json:
        claims = [{"pid": claim.process.pid, "slots": claim.slots, "what": claim.what} for claim in users]
        shown = None if record is None else {
            "address": record.address, "slots": record.slots, "idle_s": record.idle_s,
            "keeper": record.keeper.pid, "usable_here": record.is_like_here,
        }  # fmt: skip
        print_json({"cluster": shown, "users": claims})
    elif record is None:
        console.print("no cluster that stays: hzzray cluster up starts one")
    else:
        _tell(record, "is there")
        if not record.is_like_here:
            console.print("it was started with another environment or other programs: runs from here don't use it")
        for claim in users:
            say(console, f"  {claim.slots} slots: {claim.what} (process {claim.process.pid})")
    if record is None:
        raise typer.Exit(1)


def _tell(record: standing_cluster.StandingCluster, how: str) -> None:
    minutes = f"{record.idle_s / 60:.3g} min"
    text = f"the local cluster {how}: {record.slots} slots at {record.address}; it ends when unused for {minutes}"
    say(console, text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise UsageError(f"--idle {text}: a time, such as 90s, 30m, 2h")
    return float(found[1]) * _UNITS[found[2]]
