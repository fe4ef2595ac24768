"""Options of commands, made of the fields of a RunRequest: each is described there, and nowhere else.

And what commands have in common: which run they are about, and how they print data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from hzzray.errors import UsageError
from hzzray.report.say import say
from hzzray.runs.request import Asked, RunRequest, options, separated

Command = Callable[..., None]

# How files end that commands write into a folder.
_OF_FILES = (".png", ".pdf", ".csv", ".json", ".yaml")

Run = Annotated[str, typer.Argument(help="A run's id, or its folder.")]
Runs = Annotated[Path, typer.Option(envvar="HZZRAY_RUNS", file_okay=False, help="Folder of runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be read, and about how long, and do nothing.")]


def print_json(value: object) -> None:
    """Print what a command tells, for a program."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))


def tell_files(paths: Iterable[Path], console: Console, *, as_json: bool) -> None:
    """Tell what a command wrote: a line each, or for a program."""
    written = [str(path) for path in paths]
    if as_json:
        print_json({"files": written})
        return
    for path in written:
        say(console, path)


def output_folder(given: Path | None, usual: Path) -> Path:
    """Choose the folder to write to; raises UsageError for the name of a file, of which there are several."""
    if given is not None and given.suffix in _OF_FILES and not given.is_dir():
        raise UsageError(f"--output {given} is to be a folder, in which files get names of their own")
    return given or usual


def option(name: str) -> Any:  # noqa: ANN401 (typer's own, which stands in an Annotated)
    """Make the option that asks for a field of a request."""
    return _option(next(asked for asked in options() if asked.name == name))


def asks(*, published: bool = False) -> Callable[[Command], Command]:
    """Give a command the options of a request in place of its parameter ``request``, which it is called with.

    Those that say how the work is done are left out where the run is ``published``.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        chosen = list(options(published=published))
        parameters: list[Parameter] = []
        for own in signature(command).parameters.values():
            if own.name == "request":
                parameters += [_parameter(asked) for asked in chosen]
            else:
                parameters.append(own.replace(annotation=hints[own.name], kind=Parameter.KEYWORD_ONLY))

        @wraps(command)
        def asked_for(**given: object) -> None:
            wanted = {asked.name: given.pop(asked.name) for asked in chosen}
            command(RunRequest.of(**wanted), **given)

        asked_for.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
        asked_for.__annotations__ = {own.name: own.annotation for own in parameters}
        return asked_for

    return decorate


def _parameter(asked: Asked) -> Parameter:
    """Make a command's parameter as typer reads it."""
    kind, default = asked.field.annotation, asked.field.get_default()
    if default == ():
        kind, default = (str if asked.option.is_list else list[str]), None
    if default is None and type(None) not in get_args(kind):
        kind = kind | None  # type: ignore[operator,assignment]
    annotation = Annotated[kind, _option(asked)]  # type: ignore[valid-type]
    return Parameter(asked.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _named(asked: Asked) -> Callable[[str | None], str | None]:
    """Refuse a list without a name: left out, an option means all or none, and a variable of a script may be empty."""

    def check(given: str | None) -> str | None:
        if given is not None and not separated(given):
            raise UsageError(f"no {asked.name.removesuffix('s')} is named: {asked.option.flag} wants NAME,NAME")
        return given

    return check


def _option(asked: Asked) -> Any:  # noqa: ANN401
    form = asked.option
    bounds = [getattr(rule, "ge", None) for rule in asked.field.metadata]
    return typer.Option(
        form.flag,
        metavar=form.metavar,
        envvar=form.envvar,
        callback=_named(asked) if form.is_list else None,
        min=next((bound for bound in bounds if bound is not None), None),
        help=escape(asked.field.description or ""),
    )
