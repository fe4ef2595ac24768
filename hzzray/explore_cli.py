"""Commands that explore a run: ``hzzray explore`` and ``hzzray skim``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hzzray.errors import HzzrayError, UsageError
from hzzray.options import AsJson, Run, Runs, option, print_json
from hzzray.report.say import say
from hzzray.runs.request import bound_of

if TYPE_CHECKING:
    from hzzray.runs.explore import Answer, Session

app = typer.Typer()
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

Cut = Annotated[list[str] | None, option("cuts")]
Observable = Annotated[
    list[str] | None,
    typer.Option("--observable", metavar="NAME[=START:STOP:BINS]", help="What is filled. Default: all of the run's."),
]
AxisText = Annotated[str | None, option("axis")]
WindowText = Annotated[str | None, option("window")]
Engine = Annotated[Literal["ray", "serial"], option("engine")]
Actors = Annotated[int | None, option("actors")]
HotMemory = Annotated[
    str | None,
    typer.Option(
        "--hot-memory", metavar="SIZE", help="Of an actor, such as 2GB. Default: a quarter of what it may use."
    ),
]

_HOW = """Move a cut: a line of options, as `hzzray run` has them, and the numbers follow. For example:
  --cut m12=60:106 --cut pt1=25: --observable m4l=80:250:34
`keep NAME` writes the last as a run, `command` says what line makes it, `quit` ends.
In Python: hzzray.explore({run!r}).recut({{"m12": (60, 106)}}).hist("m4l")"""


@app.command()
def explore(
    run_name: Run,
    cut: Cut = None,
    observable: Observable = None,
    axis: AxisText = None,
    window: WindowText = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as result.json has it.")] = False,
    engine: Engine = "ray",
    actors: Actors = None,
    hot_memory: HotMemory = None,
    idle: Annotated[
        float, typer.Option(min=1, help="End a session that nobody asks anything for so long, in seconds.")
    ] = 900,
    runs: Runs = Path("runs"),
) -> None:
    """Keep a run's candidates hot and move its cuts: once with options, else line by line."""
    from hzzray.runs.explore import change  # noqa: PLC0415 (help needn't wait for numerics)
    from hzzray.runs.explore import explore as start  # noqa: PLC0415

    memory = _bytes(hot_memory)
    change(run_name, runs=runs, **_wanted(cut, observable, axis, window))  # before anything starts
    with start(run_name, runs=runs, engine=engine, actors=actors, memory=memory, idle_s=idle) as session:
        if cut or observable or axis or window or as_json:
            answer = _answer(session, cut, observable, axis, window)
            if as_json:
                typer.echo(answer.result.model_dump_json(by_alias=True, indent=1))
            else:
                _show(session, answer, cut, observable or ())
        else:
            _talk(session)


@app.command()
def skim(
    run_name: Run,
    out: Annotated[Path, typer.Option(help="File to write: .parquet, .arrow, .feather or .root. Its folder is made.")],
    cut: Cut = None,
    engine: Engine = "ray",
    actors: Actors = None,
    hot_memory: HotMemory = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Write a run's candidates, one a row: sample, region, file, entry, weight and all variables."""
    from hzzray.runs.explore import change  # noqa: PLC0415
    from hzzray.runs.explore import explore as start  # noqa: PLC0415
    from hzzray.runs.skim import check_kind  # noqa: PLC0415
    from hzzray.runs.skim import skim as write  # noqa: PLC0415

    check_kind(out)
    memory = _bytes(hot_memory)
    change(run_name, runs=runs, **_wanted(cut, None, None, None))  # before anything starts
    with start(run_name, runs=runs, engine=engine, actors=actors, memory=memory) as session:
        answer = _answer(session, cut, None, None, None)
        written = write(session, answer, out)
    _tell_part(answer)
    if as_json:
        print_json({"files": [str(out)], "candidates": written, "fraction": answer.fraction})
        return
    say(console, f"{out}: {written} candidates")


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return TypeAdapter(ByteSize).validate_python(text.strip())
    except ValidationError:
        raise UsageError(f"--hot-memory {text}: expected a size such as 512MB or 2GB") from None


def _answer(
    session: Session, cut: list[str] | None, observable: list[str] | None, axis: str | None, window: str | None
) -> Answer:
    return session.recut(**_wanted(cut, observable, axis, window))


def _wanted(
    cut: list[str] | None, observable: list[str] | None, axis: str | None, window: str | None
) -> dict[str, Any]:
    """Read options of a re-cut; raises UsageError naming what can't be read."""
    cuts = [bound_of(text) for text in cut or ()]
    return {"cuts": cuts, "observables": observable or (), "axis": axis, "window": window}


def _show(session: Session, answer: Answer, cut: list[str] | None, asked: Sequence[str]) -> None:
    """Print an answer's numbers, and the bins of observables that were asked for.

    Where these bring no window of their own, numbers are of the run's own first observable, and its window.
    """
    from hzzray.report.console import summary  # noqa: PLC0415
    from hzzray.report.console_table import print_table  # noqa: PLC0415

    of_window = answer if answer.spec.window or not session.spec.window else _answer(session, cut, None, None, None)
    summary(of_window.result, console)
    for text in asked:
        print_table(console, _bins(answer, text.partition("=")[0]))
    _tell_part(answer)
    whose = "" if of_window is answer else f"{answer.spec.templates[0].observable} has "
    say(
        console,
        f"answered in {1e3 * answer.seconds:.0f} ms of {100 * answer.fraction:.4g} % of the events; "
        f"{whose}digest {answer.digest[:16]}",
        is_prose=True,
    )


def _bins(answer: Answer, observable: str) -> Table:
    """Lay out an observable's bins by group; those beside each other that have nothing in any are one row."""
    from hzzray.runs.templates import showing  # noqa: PLC0415

    shown = showing(answer.result, answer.tables, observable)
    unit = f" [{shown.observable.unit}]" if shown.observable.unit else ""
    table = Table(escape(f"{observable}{unit}"), *map(escape, shown.groups))
    filled = [
        any(group.sumw[i] or group.sumw2[i] for group in shown.groups.values()) for i in range(len(shown.edges) - 1)
    ]
    for _, bins in groupby(range(len(filled)), key=lambda i: i if filled[i] else -1):
        first, *others = bins
        low, high = shown.edges[first], shown.edges[(others or [first])[-1] + 1]
        values = (
            f"{group.sumw[first]:.4g} ± {group.sumw2[first] ** 0.5:.2g}" if group.sumw2[first] else "0"
            for group in shown.groups.values()
        )
        table.add_row(f"{low:g} to {high:g}", *values)
    return table


def _talk(session: Session) -> None:
    """Answer lines of options until there are no more."""
    begun = time.monotonic()
    answer = session.recut()
    where = session.standing()
    say(
        console,
        f"run {session.run_id}: {answer.result.cost.events} events hot in {time.monotonic() - begun:.1f} s: "
        f"{where.nbytes / 1e6:.1f} MB on {where.actors} actors\n{_HOW.format(run=session.run_id)}",
    )
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["quit"]:
            return
        try:
            if words[:1] == ["command"]:
                say(console, session.command(answer))
            elif words[:1] == ["keep"]:
                folder = session.keep(answer, words[1] if len(words) > 1 else None)
                say(console, folder)
            elif words:
                asked = _options(line)
                answer = _answer(session, **asked)
                _show(session, answer, asked["cut"], asked["observable"])
        except HzzrayError as error:
            say(errors, error, "red")


def _options(line: str) -> dict[str, Any]:
    """Read a line of options; raises UsageError naming what is wrong."""
    found: dict[str, Any] = {"cut": [], "observable": [], "axis": None, "window": None}
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line.strip()}: {error}") from error
    for name, value in zip_longest(words[::2], words[1::2]):
        key = name.removeprefix("--")
        if key not in found or not name.startswith("--") or value is None:
            raise UsageError(
                f"{name}: expected {', '.join(f'--{one}' for one in found)} with a value; keep, command, quit"
            )
        if isinstance(found[key], list):
            found[key].append(value)
        else:
            found[key] = value
    return found


def _tell_part(answer: Answer) -> None:
    for reason in dict.fromkeys(answer.failed):
        say(errors, reason, "yellow")
