"""The command line. Exit codes: 0 complete, 3 partial, 2 wrong arguments, 130 interrupted, 1 else, or drained."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from importlib import import_module
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from bridge.cli import Broker as BrokerUrl
from bridge.cli import Prefix, broker_settings
from bridge.cli import app as broker_commands
from bridge.settings import DEFAULT_PREFIX
from hzzray.cluster_cli import app as cluster_commands
from hzzray.data.catalogue import Release, release
from hzzray.doctor_cli import app as doctor_commands
from hzzray.errors import HzzrayError, UsageError
from hzzray.explore_cli import app as explore_commands
from hzzray.fit_cli import app as fit_commands
from hzzray.options import AsJson, DryRun, Run, Runs, asks, option, output_folder, print_json, tell_files
from hzzray.report.say import say
from hzzray.report_cli import app as report_commands
from hzzray.report_cli import tell_what_would_be_read
from hzzray.runs.request import RunRequest, make_spec
from hzzray.runs.sources import places_for, release_for, release_of, write_toys_once
from hzzray.urls import absolute, is_remote, redact
from hzzray.version import __version__
from kuberay.cli import app as kube_commands

if TYPE_CHECKING:
    from hzzray.engine.ledger import Wish
    from hzzray.messages import Counts, RunSpec, Task
    from hzzray.runs.folder import RunFolder
    from hzzray.runs.result import Result
    from hzzray.runs.run import Settings, Transport


class _InterruptError(Exception):
    """The user's Ctrl-C, where a command doesn't do anything about it itself."""


#: Options of which nothing is a choice: no broker, whatever the environment says, and failures for whatever reason.
_OR_NOTHING = frozenset({"--broker", "--reason"})


class _Commands(TyperGroup):
    """Lets an interrupt come to ``main``, as typer would end without a word, and takes nothing that is empty."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's own)
        """Take apart what was given; raises UsageError for what is empty: as a path it would be the current folder."""
        for before, word in pairwise(["hzzray", *args]):
            name, is_joined, value = word.partition("=")
            is_empty = not word or (name.startswith("--") and is_joined and not value)
            if is_empty and _OR_NOTHING.isdisjoint({before, name}):
                raise UsageError(f"{name or f'what follows {before}'} is empty: is a variable of the shell not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 (typer's own)
        """Do a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptError from error


app = typer.Typer(
    name="hzzray",
    cls=_Commands,
    help="The ATLAS Open Data H→ZZ*→4ℓ analysis as an exact, distributed pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.add_typer(broker_commands)
app.add_typer(doctor_commands)
app.add_typer(explore_commands)
app.add_typer(fit_commands)
app.add_typer(report_commands)
app.add_typer(cluster_commands, name="cluster")
app.add_typer(kube_commands, name="kube")
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

PARTIAL, INTERRUPTED = 3, 130

# What a write says where a disk, or what a user may have of it, is full.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Catalogue = Annotated[Path | None, option("catalogue")]
OpenMagic = Annotated[bool, option("openmagic")]
OfBroker = Annotated[str | None, typer.Option("--broker", help="Of a run that bridges work on: their broker.")]
GoesThrough = Annotated[
    str | None,
    typer.Option(
        "--broker",
        help="Of a run that bridges work on: their broker. Default for such a run: HZZRAY_BROKER. memory: none.",
    ),
]
Background = Annotated[float | None, option("background_uncertainty")]
Reason = Annotated[str, typer.Option(help="Only failures whose reason has this in it.")]


def _show_version(wanted: bool) -> None:  # noqa: FBT001 (typer's callback)
    if wanted:
        say(console, f"hzzray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@asks()
def run(
    request: RunRequest,
    broker: Annotated[
        str, typer.Option(help="amqp\\[s]://USER@HOST[:PORT]\\[/VHOST]: tasks go through RabbitMQ. memory: they don't.")
    ] = "memory",
    prefix: Prefix = DEFAULT_PREFIX,
    runs: Runs = Path("runs"),
    plot: Annotated[
        bool, typer.Option("--plot/--no-plot", help="Draw it at the end; hzzray plot does so later.")
    ] = True,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON, for a program.")] = False,
) -> None:
    """Run the analysis: read, select, merge, plot."""
    from hzzray.runs.run import settings_for  # noqa: PLC0415 (help needn't wait for numerics)

    if broker != "memory" and (request.engine != "ray" or request.pace):
        raise UsageError("--broker goes with --engine ray, and without --pace")
    if dry_run:
        tell_what_would_be_read(request, runs, as_json=as_json)
        return
    if as_json:
        raise UsageError("--json goes with --dry-run; hzzray result RUN --json prints a run's numbers")
    chosen = release_for(request)
    spec = make_spec(chosen, request)
    settings = settings_for(request, _sources(chosen, request), runs)
    _execute(spec, settings, None if broker == "memory" else _transport(broker, prefix), draws=plot)


@app.command()
@asks(published=True)
def publish(
    request: RunRequest,
    broker: BrokerUrl = None,
    prefix: Prefix = DEFAULT_PREFIX,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Plan a run and publish it to a broker, for `hzzray bridge` to work on. Killed, the same command goes on."""
    if dry_run:
        tell_what_would_be_read(request, Path("runs"), as_json=as_json)
        return
    where = broker_settings(broker, prefix)
    from bridge.loader import publish as load  # noqa: PLC0415
    from bridge.provision import require  # noqa: PLC0415
    from bridge.topology import Topology  # noqa: PLC0415
    from hzzray.cache import cache_folder  # noqa: PLC0415
    from hzzray.report.console import published  # noqa: PLC0415
    from hzzray.runs.plan import check_source, make_plan  # noqa: PLC0415
    from hzzray.runs.run import settings_for  # noqa: PLC0415

    require(where, Topology(prefix))
    chosen = release_for(request)
    spec = make_spec(chosen, request)
    # Bridges work elsewhere, in folders of their own.
    sources = [
        place if is_remote(place) else str(Path(absolute(place)).resolve()) for place in _sources(chosen, request)
    ]
    settings = settings_for(request, tuple(sources), Path("runs"))
    for place in settings.sources:
        check_source(place)
    cache = cache_folder()
    plan = make_plan(
        spec, settings.run_id, settings.sources, chunk=settings.chunk, cache=cache, places=settings.analyses
    )
    with published(errors if as_json else console) as progress:
        done = asyncio.run(load(where, Topology(prefix), spec, settings.run_id, plan, progress=progress))
    for failure in done.plan.failures:
        say(errors, f"{failure.task.sample}: {failure.reason}", "yellow")
    if as_json:
        failed = [{"sample": failure.task.sample, "reason": failure.reason} for failure in done.plan.failures]
        print_json({"run_id": done.run_id, "tasks": done.tasks, "failures": failed})
        return
    say(console, f"published run {done.run_id}: {done.tasks} tasks")


@app.command()
def replay(
    run_name: Run,
    source: Annotated[list[str] | None, typer.Option(help="Read from here now. Several times.")] = None,
    actors: Annotated[int | None, option("actors")] = None,
    runs: Runs = Path("runs"),
    reason: Reason = "",
    broker: GoesThrough = None,
    prefix: Prefix = DEFAULT_PREFIX,
    as_json: AsJson = False,
) -> None:
    """Try a run's failed tasks again, and what was left of it, the way it was last worked on.

    Through a broker they are published again, for a bridge to work on: dead letters, and failures of the ledger where
    it is at hand.
    """
    broker = _broker_of(_folder(run_name, runs), broker)
    if broker is not None:
        if source is not None or actors is not None:
            raise UsageError(
                "--source and --actors are the bridge's to choose: leave them out, or take --broker memory"
            )
        number = _replay_through(broker, prefix, run_name, runs, reason)
        run_id = _folder(run_name, runs).run_id
        if as_json:
            print_json({"run_id": run_id, "published": number})
        else:
            say(console, f"{run_id}: {number} tasks published again")
        return
    if reason:
        raise UsageError("--reason goes with --broker")
    from hzzray.engine.limits import Limits  # noqa: PLC0415
    from hzzray.runs import run as runner  # noqa: PLC0415

    spec, settings = runner.settings_of(_folder(run_name, runs))
    changes: dict[str, object] = {}
    if source:
        changes["sources"] = tuple(source)
    if actors is not None:
        changes["limits"] = Limits(min_actors=actors, max_actors=actors)
    _execute(spec, runner.make_settings(**{**dict(settings), **changes}), as_json=as_json)


def _broker_of(folder: RunFolder, given: str | None) -> str | None:
    """Find the broker that a run's tasks go through: the given one, else that of the environment; None for none.

    The environment's is meant only by runs that bridges work on: their ledgers say so, or are elsewhere.
    """
    if given is not None:
        return None if given == "memory" else given
    known = os.environ.get("HZZRAY_BROKER")
    if not known or not folder.has_ledger:
        return known or None
    from hzzray.runs.run import settings_of  # noqa: PLC0415

    _, settings = settings_of(folder)
    return known if settings.bridged else None


def _replay_through(broker: str, prefix: str, run_name: str, runs: Path, reason: str) -> int:
    """Publish again what failed; returns how many tasks."""
    settings = broker_settings(broker, prefix)
    from bridge.dead_letters import replay as bring_back  # noqa: PLC0415
    from bridge.topology import Topology  # noqa: PLC0415
    from hzzray.messages import UNREAD  # noqa: PLC0415

    folder = _folder(run_name, runs)
    with folder.ledger() if folder.has_ledger else nullcontext() as ledger:
        failed = [] if ledger is None else [row.task for row in ledger.failures() if reason in row.reason]
        return asyncio.run(
            bring_back(
                settings,
                Topology(prefix),
                lambda letter: letter.run_id == folder.run_id and reason in letter.reason,
                [task for task in failed if not task.uuid.startswith(UNREAD)],
                lambda task: ledger is not None and ledger.is_merged(task.task_id),
            )
        )


def _transport(broker: str, prefix: str) -> Transport:
    """Have tasks go through a broker."""
    where = broker_settings(broker, prefix)
    from bridge.topology import Topology  # noqa: PLC0415
    from bridge.transport import BrokerTransport  # noqa: PLC0415

    return BrokerTransport(where, Topology(prefix))


def _execute(
    spec: RunSpec,
    settings: Settings,
    transport: Transport | None = None,
    *,
    as_json: bool = False,
    draws: bool = True,
) -> None:
    """Do a run, show how it goes and what it found, draw its plot, and exit as its status says."""
    from hzzray.report.console import run_progress, summary  # noqa: PLC0415
    from hzzray.runs.run import execute  # noqa: PLC0415

    at_the_end = ["uproot", *(["hzzray.report.plotting"] if draws else [])]
    loading = threading.Thread(target=_load, args=(at_the_end,), daemon=True)
    try:
        with run_progress(errors if as_json else console) as progress:

            def told(counts: Counts) -> None:
                if loading.ident is None:  # others work from here on, and this process waits
                    loading.start()
                progress(counts)

            result = execute(spec, settings, planned=lambda _: progress.start(), progress=told, transport=transport)
    except KeyboardInterrupt:
        say(errors, f"interrupted; what is merged is kept: --run-id {settings.run_id} goes on")
        raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        summary(result, console)
    plots: tuple[Path, ...] = ()
    if draws:
        from hzzray.report.plotting import save  # noqa: PLC0415 (matplotlib: the first task needn't wait for it)
        from hzzray.runs.fit_run import drawn  # noqa: PLC0415

        shown, band = drawn(result, settings.folder)
        plots = save(shown, settings.folder, systematic=band)
    if as_json:
        about = {"run_id": result.run_id, "status": result.status, **result.tasks.model_dump()}
        print_json({**about, "digest": result.digest, "files": [str(path) for path in plots]})
    elif plots:
        say(console, f"plot: {plots[0]}")
    if result.status == "partial":
        raise typer.Exit(PARTIAL)


def _load(modules: Iterable[str]) -> None:
    """Load what a run's last files are written with, a second or two, while its workers work."""
    for name in modules:
        import_module(name)


@app.command()
def result(
    run_name: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
    background_uncertainty: Background = None,
    runs: Runs = Path("runs"),
) -> None:
    """Print a run's numbers."""
    from hzzray.report.console import summary  # noqa: PLC0415
    from hzzray.runs.folder import load_json  # noqa: PLC0415

    loaded = _counted(load_json(_folder(run_name, runs).path), background_uncertainty)
    if as_json:
        typer.echo(loaded.model_dump_json(by_alias=True, indent=1))
    else:
        summary(loaded, console)


def _counted(result: Result, background_uncertainty: float | None) -> Result:
    """Count with another uncertainty of the background, where one is asked for."""
    from hzzray.runs.result import with_background_uncertainty  # noqa: PLC0415

    asked = RunRequest.of(background_uncertainty=background_uncertainty).background_uncertainty
    return result if asked is None else with_background_uncertainty(result, asked)


@app.command()
def plot(
    run_name: Run,
    observable: Annotated[str | None, typer.Option(help="Another one than the run's first, such as m12.")] = None,
    channel: Annotated[str | None, typer.Option(help="One region alone, such as 4mu.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic scale.")] = False,
    background_uncertainty: Background = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write to. Default: the run's.")] = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Draw a run's plot again, from its result."""
    from hzzray.report.plotting import save  # noqa: PLC0415
    from hzzray.runs.fit_run import drawn  # noqa: PLC0415
    from hzzray.runs.folder import load_json  # noqa: PLC0415

    folder = _folder(run_name, runs).path
    into = output_folder(output, folder)
    shown, band = drawn(_counted(load_json(folder), background_uncertainty), folder, observable, channel)
    tell_files(save(shown, into, channel=channel, log=log, systematic=band), console, as_json=as_json)


@app.command()
def status(run_name: Run, as_json: AsJson = False, runs: Runs = Path("runs")) -> None:
    """Tell how far a run is, from its ledger."""
    _tell_of_full_disk(runs)
    folder = _folder(run_name, runs)
    with folder.ledger() as ledger:
        counts, wish = ledger.counts(), ledger.wished()
    if as_json:
        numbers = {"due": counts.due, "status": counts.status, "wish": wish}
        print_json({"run_id": folder.run_id, **counts._asdict(), **numbers})
        return
    asked = f", asked to {wish}" if wish != "run" and counts.due else ""
    say(
        console,
        f"{folder.run_id}: {counts.status}{asked}: {counts.planned} tasks planned, {counts.merged} merged, "
        f"{counts.failed} failed, {counts.due} due; {counts.events} events, {counts.duplicates} duplicates refused",
    )


def _tell_of_full_disk(runs: Path) -> None:
    """Say so before a ledger is opened, which may fail for it."""
    from hzzray.disk import full_disk  # noqa: PLC0415

    if trouble := full_disk(runs):
        say(errors, trouble, "red")


@app.command()
def failures(
    run_name: Run,
    runs: Runs = Path("runs"),
    reason: Reason = "",
    as_json: AsJson = False,
    broker: OfBroker = None,
    prefix: Prefix = DEFAULT_PREFIX,
) -> None:
    """List a run's failed tasks with their reasons: from its ledger, or from a broker's dead letters."""
    from hzzray.report.console_table import print_table  # noqa: PLC0415

    folder = _folder(run_name, runs)
    rows = _failed(folder) if broker is None else _dead(broker, prefix, folder.run_id)
    chosen = [row for row in rows if reason in row.reason]
    if as_json:
        print_json(
            [
                {
                    "sample": task.sample, "file": redact(task.file), "start": task.start, "stop": task.stop,
                    "attempts": attempts, "reason": why,
                }
                for task, attempts, why in chosen
            ]
        )  # fmt: skip
        return
    if not chosen:
        console.print("no failed tasks")
        return
    table = Table("sample", "entries", "attempts", "reason")
    for task, attempts, why in chosen:
        said = why if redact(task.file) in why else f"{redact(task.file)}: {why}"
        table.add_row(*map(escape, (task.sample, f"{task.start}–{task.stop}", f"{attempts}", said)))
    print_table(console, table, long={"reason"})


class _FailureRow(NamedTuple):
    """A failed task as it is listed."""

    task: Task
    attempts: int
    reason: str


def _failed(folder: RunFolder) -> list[_FailureRow]:
    with folder.ledger() as ledger:
        return [_FailureRow(row.task, row.attempts, row.reason) for row in ledger.failures()]


def _dead(broker: str, prefix: str, run_id: str) -> list[_FailureRow]:
    settings = broker_settings(broker, prefix)
    from bridge.dead_letters import dead_letters  # noqa: PLC0415
    from bridge.topology import Topology  # noqa: PLC0415

    letters = asyncio.run(dead_letters(settings, Topology(prefix), lambda letter: letter.run_id == run_id))
    return [
        _FailureRow(letter.message.task, letter.attempts, letter.reason)
        for letter in letters
        if letter.message is not None
    ]


@app.command()
def pause(run_name: Run, runs: Runs = Path("runs"), broker: OfBroker = None, prefix: Prefix = DEFAULT_PREFIX) -> None:
    """Let a live run wait: what is in flight ends, nothing new begins."""
    _wish(run_name, runs, "pause", broker, prefix)


@app.command()
def resume(
    run_name: Run, runs: Runs = Path("runs"), broker: GoesThrough = None, prefix: Prefix = DEFAULT_PREFIX
) -> None:
    """Let a paused run go on. One that has ended goes on with `hzzray run --run-id`, or so through its broker."""
    _wish(run_name, runs, "run", _broker_of(_folder(run_name, runs), broker), prefix)


@app.command()
def drain(run_name: Run, runs: Runs = Path("runs"), broker: OfBroker = None, prefix: Prefix = DEFAULT_PREFIX) -> None:
    """End a live run after what is in flight; it can be resumed."""
    _wish(run_name, runs, "drain", broker, prefix)


@app.command()
def cancel(run_name: Run, runs: Runs = Path("runs"), broker: OfBroker = None, prefix: Prefix = DEFAULT_PREFIX) -> None:
    """End a live run at once; it can be resumed."""
    _wish(run_name, runs, "cancel", broker, prefix)


def _wish(run_name: str, runs: Path, wish: Wish, broker: str | None, prefix: str) -> None:
    """Leave word for who works on a run, and say so; of one that has ended there is nothing to say."""
    folder = _folder(run_name, runs)
    verb = "resume" if wish == "run" else wish
    asked = f"run {folder.run_id}: asked to {verb}"
    if broker is not None:
        settings = broker_settings(broker, prefix)
        from bridge.orders import order  # noqa: PLC0415
        from bridge.topology import Topology  # noqa: PLC0415
        from bridge.wire import Order  # noqa: PLC0415

        asyncio.run(order(settings, Topology(prefix), Order.of(run_id=folder.run_id, wish=wish)))
    else:
        with folder.ledger() as ledger:
            status = ledger.counts().status
            if status == "running":
                ledger.wish(wish)
            else:
                asked = f"run {folder.run_id} is {status}: nothing to {verb}"
    say(console, asked)


@app.command()
def retract(
    run_name: Run,
    sample: Annotated[str, typer.Argument(help="Of which a file turned out bad.")],
    file: Annotated[str | None, typer.Option(help="Of its files this one alone, as its place in the source.")] = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Take a sample's results out of a run, or a file's, exactly; the next start of the run reads it anew."""
    from hzzray.report.plotting import save  # noqa: PLC0415
    from hzzray.runs import run as runner  # noqa: PLC0415
    from hzzray.runs.fit_run import drawn  # noqa: PLC0415

    folder = _folder(run_name, runs)
    gone, left = runner.retract(folder, sample, file)
    shown, band = drawn(left, folder.path)
    save(shown, folder.path, systematic=band)
    tasks = left.tasks
    if as_json:
        print_json({"run_id": left.run_id, "retracted": gone, "status": left.status, **tasks.model_dump()})
        return
    say(
        console,
        f"{left.run_id}: {gone} merged tasks of {file or sample} retracted; {left.status}: "
        f"{tasks.planned} tasks planned, {tasks.merged} merged, {tasks.failed} failed",
    )


@app.command("runs")
def list_runs(as_json: AsJson = False, runs: Runs = Path("runs")) -> None:
    """List the runs of a folder."""
    from hzzray.engine.ledger import LedgerError  # noqa: PLC0415
    from hzzray.report.console_table import print_table  # noqa: PLC0415
    from hzzray.runs.folder import all_runs  # noqa: PLC0415

    _tell_of_full_disk(runs)
    rows: list[dict[str, str | int]] = []
    for folder in all_runs(runs):
        try:
            with folder.ledger() as ledger:
                spec, counts = ledger.spec, ledger.counts()
                rows.append(
                    {
                        "run": folder.run_id, "release": spec.release.name, "selection": spec.selection.name,
                        "environment": ledger.environment, "status": counts.status, "planned": counts.planned,
                        "merged": counts.merged, "failed": counts.failed,
                    }
                )  # fmt: skip
        except LedgerError as error:
            rows.append({"run": folder.run_id, "error": str(error)})
    if as_json:
        print_json(rows)
        return
    table = Table("run", "release", "selection", "environment", "status", "merged", "failed")
    damaged = [row for row in rows if "error" in row]
    for row in (row for row in rows if "error" not in row):
        names = (row[name] for name in ("run", "release", "selection", "environment", "status"))
        table.add_row(*(escape(str(one)) for one in names), f"{row['merged']} of {row['planned']}", f"{row['failed']}")
    if table.row_count:
        print_table(console, table, spare=("environment", "release", "selection"))
    elif not rows:
        say(console, f"no runs in {runs}")
    for row in damaged:
        say(console, f"{row['run']}: {row['error']}", "red")


@app.command()
def compare(
    run_names: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Runs' ids, or their folders.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for compare.csv, compare.png and compare.pdf. Default: that of the runs."),
    ] = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Lay runs of different environments side by side: CPU over time, cost, throughput, scale."""
    from hzzray.report.console_table import print_table  # noqa: PLC0415
    from hzzray.report.timelines import save_comparison  # noqa: PLC0415
    from hzzray.runs.compare import differences, load, records, summarise, table, write_csv  # noqa: PLC0415

    folder = output_folder(output, runs)
    loaded = load([_folder(name, runs).path for name in run_names])
    summaries = [summarise(one) for one in loaded]
    written = (write_csv(summaries, folder / "compare.csv"), *save_comparison(loaded, folder))
    if as_json:
        print_json({"runs": records(summaries), "differences": differences(loaded)})
        return
    print_table(console, table(summaries))
    for difference in differences(loaded):
        say(console, difference, "yellow", is_prose=True)
    for path in written:
        say(console, path)


@app.command()
def scale(run_name: Run, as_json: AsJson = False, runs: Runs = Path("runs")) -> None:
    """Draw a run's actors, nodes and queue over time (scale.png), from its scale.csv."""
    from hzzray.report.timelines import save_scale  # noqa: PLC0415
    from hzzray.runs.compare import load  # noqa: PLC0415

    folder = _folder(run_name, runs).path
    (loaded,) = load([folder])
    tell_files(save_scale(loaded, folder), console, as_json=as_json)


@app.command()
def toy(
    folder: Annotated[Path, typer.Argument(help="Where to write, laid out as the release.")] = Path("toy"),
    release_name: Annotated[
        str, typer.Option("--release", help="Whose format: toy (that of 2020), 2020, 2025.")
    ] = "toy",
    events: Annotated[int, typer.Option(min=1, help="Simulated events in all.")] = 200_000,
    seed: Annotated[int | None, typer.Option(help="Same seed, same content. Default: a typical one.")] = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Leave a folder that is there as it is.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are of other events or seeds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write simulated files, for machines without the data."""
    said = errors if as_json else console
    chosen, written = release(release_name), 0
    if not if_absent:
        written = _write_toys(chosen, folder, events, seed, said, replace=force)
    elif not folder.exists():
        written = _write_toys_once(chosen, folder, events, seed, said)
    if as_json:
        print_json({"folder": str(folder), "written": written})
    elif not if_absent:
        say(console, f"wrote {written} files to {folder}")


@app.command()
def fetch(
    folder: Annotated[Path, typer.Argument(help="Where to put the files, laid out as the release.")] = Path("data"),
    release_name: Annotated[str, typer.Option("--release", help="2020, 2025, or one of your catalogue.")] = "2020",
    source: Annotated[
        list[str] | None, typer.Option(help="Fetch from here instead of the release's address. Several times.")
    ] = None,
    samples: Annotated[str | None, option("samples")] = None,
    catalogue: Catalogue = None,
    openmagic: OpenMagic = False,
    as_json: AsJson = False,
) -> None:
    """Download a release's files; resumes, checks sizes, skips what is there."""
    from hzzray.data.fetch import fetch as bring  # noqa: PLC0415
    from hzzray.report.fetch_progress import bar  # noqa: PLC0415

    chosen = release_of(release_name, catalogue, openmagic=openmagic)
    wanted = RunRequest.of(samples=samples).samples or tuple(sample.name for sample in chosen.samples if sample.default)
    fetched = chosen.only(wanted).samples
    said = errors if as_json else console
    with bar(sum(len(sample.paths) for sample in fetched), said) as progress:
        report = bring(chosen, fetched, folder, sources=tuple(source or ()), progress=progress)
    if as_json:
        print_json({"fetched": report.fetched, "skipped": report.skipped, "failed": dict(report.failed)})
    for name, reason in report.failed.items():
        say(errors, f"{name}: {reason}", "red")
    if report.failed:
        raise typer.Exit(PARTIAL if report.fetched or report.skipped else 1)


def _write_toys(
    chosen: Release,
    folder: Path,
    events: int,
    seed: int | None = None,
    said: Console = console,
    *,
    replace: bool = False,
) -> int:
    """Write toy files, of the typical seed unless another is chosen; returns how many."""
    from rich.progress import Progress  # noqa: PLC0415

    from hzzray.data.toy import write_toys  # noqa: PLC0415

    with Progress(console=said, disable=not said.is_terminal) as bar:
        row = bar.add_task("simulating", total=events)
        paths = write_toys(
            folder, chosen, events=events, seed=seed, progress=lambda n: bar.advance(row, n), replace=replace
        )
    return len(paths)


def _write_toys_once(
    chosen: Release, folder: Path, events: int, seed: int | None = None, said: Console = console
) -> int:
    """Write toy files into a folder that isn't there; returns how many, none where another process was faster."""
    say(said, f"simulating {events} events")
    written = 0

    def write(part: Path) -> None:
        nonlocal written
        written = _write_toys(chosen, part, events, seed, said)

    write_toys_once(folder, write)
    return written


def _sources(chosen: Release, request: RunRequest) -> tuple[str, ...]:
    """Where to read from, with toys written if there are to be some."""
    places = places_for(chosen, request)
    if places.note:
        say(errors, places.note, "yellow")
    if places.to_simulate is not None:
        _write_toys_once(chosen, Path(places.sources[0]), places.to_simulate)
    return places.sources


def _folder(name: str, runs: Path) -> RunFolder:
    """Find a run by id or by folder."""
    from hzzray.runs.folder import find_run  # noqa: PLC0415

    return find_run(name, runs)


def main() -> None:
    """Run the command line: a user's mistake gets one line, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # where Greek can't be written, numbers still can
            stream.reconfigure(errors="replace")
    try:
        app()
    except HzzrayError as error:
        _end(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        sys.stdout = None  # Python would try to write the rest at its end
        _end(f"the output can't be written: {error.strerror}", 1)
    except (KeyboardInterrupt, _InterruptError):
        _end("interrupted", INTERRUPTED)


def _end(why: str, code: int) -> NoReturn:
    say(errors, f"hzzray: {why}", "red")
    sys.exit(code)
