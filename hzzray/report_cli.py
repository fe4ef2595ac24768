"""Commands that tell of a run: ``hzzray cutflow``, ``report`` and ``verify``, and what a run would read."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hzzray.errors import UsageError
from hzzray.options import AsJson, Run, Runs, option, print_json
from hzzray.report.say import say
from hzzray.runs.request import Engine, RunRequest, make_spec
from hzzray.runs.sources import places_for, release_for

app = typer.Typer()
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

DIFFERENT = 1


@app.command()
def cutflow(
    run_name: Run,
    sample: Annotated[
        list[str] | None, typer.Option(help="Of this sample instead of the groups. Several times.")
    ] = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Print what each cut leaves: events, yields, and efficiencies with binomial errors; --json has all samples too."""
    from hzzray.report.console_table import print_table  # noqa: PLC0415
    from hzzray.report.run_tables import cutflow_table  # noqa: PLC0415 (help needn't wait for numerics)
    from hzzray.runs.cutflow import cutflow as count  # noqa: PLC0415
    from hzzray.runs.folder import find_run, load_json  # noqa: PLC0415

    result = load_json(find_run(run_name, runs).path)
    samples, groups = count(result), count(result, "group")
    for name in sample or ():
        if name not in samples:
            raise UsageError(f"run {result.run_id} has no sample {name!r}; it has {', '.join(samples)}")
    if as_json:
        plain = {
            title: {name: [row.plain() for row in rows] for name, rows in flows.items() if not sample or name in sample}
            for title, flows in (("samples", samples), ("groups", groups))
        }
        print_json({"run_id": result.run_id, **plain})
        return
    for name, rows in groups.items() if not sample else ((name, samples[name]) for name in sample):
        print_table(console, cutflow_table(name, rows), spare=("of before [%]", "of all [%]"))
    say(
        console,
        f"run {result.run_id}, {result.status}, {result.spec.selection.name}, {result.luminosity}; "
        "events are raw, yields weighted",
        is_prose=True,
    )


@app.command()
def report(
    run_name: Run,
    output: Annotated[
        Path | None, typer.Option(help="File to write, or a folder. Default: report.html in the run's.")
    ] = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Write all of a run into one HTML file to send to somebody: it opens anywhere, without a network."""
    from hzzray.report.html import save_report  # noqa: PLC0415
    from hzzray.runs.folder import find_run  # noqa: PLC0415

    path = save_report(find_run(run_name, runs), output)
    if as_json:
        print_json({"files": [str(path)], "bytes": path.stat().st_size})
        return
    say(console, f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


@app.command()
def verify(
    run_name: Annotated[str, typer.Argument(metavar="RUN|FILE", help="A run, or somebody's report or result.json.")],
    source: Annotated[list[str] | None, typer.Option(help="Read from here. Default: what is recorded.")] = None,
    analysis: Annotated[
        Path | None, typer.Option(help="The file of the run's own analysis, where that lies elsewhere.")
    ] = None,
    engine: Annotated[Engine, option("engine")] = "serial",
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Compute a run again from its recorded spec and compare to the last bit: exit 0 the same, 1 another result."""
    from hzzray.runs.folder import find_run  # noqa: PLC0415
    from hzzray.runs.record import read_record  # noqa: PLC0415
    from hzzray.runs.verify import verify as compute  # noqa: PLC0415

    given = Path(run_name)
    record = read_record(given if given.is_file() else find_run(run_name, runs).path)
    if analysis is not None:
        record = record.model_copy(update={"analyses": (str(analysis.resolve()),)})
    with tempfile.TemporaryDirectory(prefix="hzzray-verify-") as folder:
        found = compute(record, Path(folder), sources=tuple(source or ()), engine=engine)
    if as_json:
        print_json(
            {
                "run_id": record.result.run_id,
                "equal": found.equal,
                "digest": found.digest,
                "again": found.again,
                "differing": found.differing,
                "failures": [row.reason for row in found.result.failures],
            }
        )
    elif found.equal:
        say(console, f"the same, to the last bit: {found.digest}")
    else:
        digests = f"recorded {found.digest[:16]}, computed {found.again[:16]}"
        what = "the digest is the same, other numbers aren't" if found.digest == found.again else digests
        say(errors, f"another result: {what}", "red")
        for name, why in found.differing.items():
            say(errors, f"{name}: {why}")
        for row in found.result.failures:
            say(errors, f"{row.sample}: {row.reason}", "yellow")
    if not found.equal:
        raise typer.Exit(DIFFERENT)


def tell_what_would_be_read(request: RunRequest, runs: Path, *, as_json: bool = False) -> None:
    """Print what a run would read, if somebody did it: nothing is written but the cache of files' metadata."""
    from hzzray.cache import cache_folder  # noqa: PLC0415
    from hzzray.report.console_table import print_table  # noqa: PLC0415
    from hzzray.report.run_tables import about, counted, of_bytes, preview_table  # noqa: PLC0415
    from hzzray.runs.plan import check_source, make_plan  # noqa: PLC0415
    from hzzray.runs.preview import preview  # noqa: PLC0415
    from hzzray.runs.run import settings_for  # noqa: PLC0415

    chosen = release_for(request)
    spec, places = make_spec(chosen, request), places_for(chosen, request)
    if places.note:
        say(errors, places.note, "yellow")
    if places.to_simulate is not None:
        if as_json:
            print_json({"to_simulate": places.to_simulate, "sources": list(places.sources)})
        else:
            text = f"{places.to_simulate} events would be simulated into {places.sources[0]} first, and read from there"
            say(console, text)
        return
    settings = settings_for(request, places.sources, runs)
    for place in settings.sources:
        check_source(place)
    cache = cache_folder()
    plan = make_plan(
        spec, settings.run_id, settings.sources, chunk=settings.chunk, cache=cache, places=settings.analyses
    )
    found = preview(spec, plan, runs=runs, cache=cache, places=settings.analyses)
    if as_json:
        totals = {"files": found.files, "events": found.events, "tasks": found.tasks, "bytes": found.bytes}
        print_json({**asdict(found), **totals, "cpu_s": found.cpu_s})
        return
    print_table(console, preview_table(found))
    for reason in found.unread:
        say(errors, f"not read: {reason}", "yellow")
    workers = 1 if request.engine == "serial" else settings.limits.max_actors
    say(
        console,
        f"{spec.release.title}, {spec.selection.name}: {100 * spec.fraction:.4g} % of each file, "
        f"{spec.luminosity:.4g} fb⁻¹; {counted(found.tasks, 'task')}, {len(found.branches)} branches, "
        f"{of_bytes(found.bytes)}",
        is_prose=True,
    )
    say(
        console,
        f"{about(found.cpu_s)} of CPU, {about(found.cpu_s / workers)} on {counted(workers, 'worker')}, beside start-up "
        f"and waiting for input: {found.basis}",
        is_prose=True,
    )
