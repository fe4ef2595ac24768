"""The commands that talk to a broker; ``hzzray`` has them too. Heavy imports wait until a command needs them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from bridge.settings import DEFAULT_PREFIX, BrokerSettings, password_from
from bridge.topology import Topology
from hzzray.errors import UsageError
from hzzray.options import AsJson, option, print_json
from hzzray.report.say import say
from hzzray.runs.request import RunRequest
from hzzray.urls import absolute

if TYPE_CHECKING:
    from bridge.connection import BrokerError
    from bridge.provision import Check
    from bridge.queues import QueuesState

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
topology_app = typer.Typer(no_args_is_help=True, help="What a broker must hold: see, check, put there.")
app.add_typer(topology_app, name="topology")
#: How long a run's workers wait for its next task before they give their slots back.
_IDLE_S = 5.0

console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        envvar="HZZRAY_BROKER",
        help="amqp\\[s]://USER@HOST[:PORT]\\[/VHOST]; "
        "the password comes from HZZRAY_BROKER_PASSWORD or …_PASSWORD_FILE.",
    ),
]
Prefix = Annotated[
    str, typer.Option("--queue-prefix", envvar="HZZRAY_QUEUE_PREFIX", help="What the queues' names begin with.")
]


def broker_settings(url: str | None, prefix: str = DEFAULT_PREFIX) -> BrokerSettings:
    """Read a command's options. Raises UsageError, also when pika is not installed."""
    if find_spec("pika") is None:
        raise UsageError("a broker needs the extra: pip install 'hzzray[broker]'")
    settings = BrokerSettings.from_url(url, prefix=prefix)
    is_typed = url is not None and url != os.environ.get("HZZRAY_BROKER")
    if is_typed and settings.user != "guest" and urlsplit(url).password:
        errors.print(
            "others on this machine can see a password on the command line: set HZZRAY_BROKER_PASSWORD_FILE instead",
            style="yellow",
            soft_wrap=True,
        )
    return settings


@topology_app.command("apply")
def apply_topology(broker: Broker = None, prefix: Prefix = DEFAULT_PREFIX, as_json: AsJson = False) -> None:
    """Make exchanges, queues, bindings and policies, as an administrator, through the management plugin.

    Users are made, or get this password and these rights, if HZZRAY_ADMIN_PASSWORD, HZZRAY_PUBLISHER_PASSWORD or
    HZZRAY_BRIDGE_PASSWORD (each also with _FILE) is set.
    """
    from bridge.provision import apply  # noqa: PLC0415

    topology, settings = Topology(prefix), broker_settings(broker, prefix)
    _report(settings, apply(settings, topology, _passwords(topology)), as_json=as_json)


@topology_app.command("check")
def check_topology(broker: Broker = None, prefix: Prefix = DEFAULT_PREFIX, as_json: AsJson = False) -> None:
    """Tell what the broker lacks, if anything (exit code 1)."""
    from bridge.provision import check  # noqa: PLC0415

    settings = broker_settings(broker, prefix)
    _report(settings, check(settings, Topology(prefix)), as_json=as_json)


@topology_app.command("definitions")
def definitions(
    vhost: Annotated[str, typer.Option(help="Virtual host that all of it is in.")] = "/",
    prefix: Prefix = DEFAULT_PREFIX,
    output: Annotated[Path | None, typer.Option(help="File to write, for its owner only. Default: print.")] = None,
) -> None:
    """Write the definitions that a broker loads at its start (load_definitions in rabbitmq.conf).

    The users' passwords come from HZZRAY_ADMIN_PASSWORD, HZZRAY_PUBLISHER_PASSWORD and HZZRAY_BRIDGE_PASSWORD, each
    also with _FILE; only their salted hashes are written.
    """
    topology = Topology(prefix)
    passwords = _passwords(topology)
    if missing := [_variable(user.name) for user in topology.users if user.name not in passwords]:
        raise UsageError(f"each user needs a password: {', '.join(missing)} (or …_FILE) is not set")
    text = json.dumps(topology.definitions(vhost, passwords), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.touch(mode=0o600)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write {output}: {error.strerror}") from error
    console.print(output, highlight=False, soft_wrap=True)


@app.command("bridge")
def serve(
    broker: Broker = None,
    runs: Annotated[
        Path, typer.Option(envvar="HZZRAY_RUNS", file_okay=False, help="Folder of runs, shared by all bridges.")
    ] = Path("runs"),
    source: Annotated[
        list[str] | None,
        typer.Option(help="What tasks may read, several times; or HZZRAY_SOURCES. Default: the releases' addresses."),
    ] = None,
    actors: Annotated[int | None, option("actors")] = None,
    min_actors: Annotated[int | None, option("min_actors")] = None,
    max_actors: Annotated[int | None, option("max_actors")] = None,
    prefetch: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Tasks to hold. Default: as suits the pace.")
    ] = None,
    until_complete: Annotated[str | None, typer.Option(metavar="RUN", help="End with this run.")] = None,
    catalogue: Annotated[Path | None, option("catalogue")] = None,
    prefix: Prefix = DEFAULT_PREFIX,
) -> None:
    """Serve runs that are published to a broker, with workers on this Ray cluster: for ever, or until one's end."""
    from bridge.provision import require  # noqa: PLC0415
    from hzzray.engine.cluster import cluster  # noqa: PLC0415
    from hzzray.runs.run import limits_for  # noqa: PLC0415

    settings, topology = broker_settings(broker, prefix), Topology(prefix)
    asked = RunRequest.of(actors=actors, min_actors=min_actors, max_actors=max_actors, run_id=until_complete)
    limits = replace(limits_for(asked), idle_s=_IDLE_S)
    _log_to_console()
    require(settings, topology)
    with cluster(limits.max_actors):
        from bridge.bridge import Bridge, BridgeSettings, serve_until  # noqa: PLC0415
        from bridge.session import Terms  # noqa: PLC0415 (imports Ray)

        terms = Terms(f"{secrets.token_hex(2)}-", runs, tuple(map(absolute, _sources(source, catalogue))), limits)
        bridge = Bridge(settings, topology, terms, BridgeSettings(prefetch=prefetch, until=asked.run_id))
        serve_until(bridge)
    if asked.run_id is not None:
        _exit_as(runs / asked.run_id)


def _sources(given: list[str] | None, catalogue: Path | None) -> tuple[str, ...]:
    """Where tasks may lead: what is given, else the addresses that the catalogue knows."""
    from hzzray.data.catalogue import mistakes, releases  # noqa: PLC0415

    named = given or [part for part in os.environ.get("HZZRAY_SOURCES", "").split(",") if part]
    if named:
        return tuple(named)
    for mistake in mistakes(catalogue):
        typer.echo(f"warning: {mistake}", err=True)
    return tuple(source for one in releases(catalogue).values() for source in one.sources)


def _exit_as(folder: Path) -> None:
    """Exit as a run's status says: 0 complete, 3 partial, 1 anything else."""
    from hzzray.runs.folder import load_json  # noqa: PLC0415

    status = load_json(folder).status
    if status != "complete":
        raise typer.Exit(3 if status == "partial" else 1)


def _log_to_console() -> None:
    """Let what happens be seen, a line each, on the standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("bridge")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


@app.command()
def prefetch(
    number: Annotated[int, typer.Argument(min=0, max=65_535, help="Tasks to hold; 0: as many as suit the pace.")],
    broker: Broker = None,
    prefix: Prefix = DEFAULT_PREFIX,
) -> None:
    """Change how many tasks each live bridge holds."""
    from bridge.orders import order  # noqa: PLC0415
    from bridge.wire import Order  # noqa: PLC0415

    asyncio.run(order(broker_settings(broker, prefix), Topology(prefix), Order(prefetch=number)))


@app.command()
def queues(
    broker: Broker = None,
    prefix: Prefix = DEFAULT_PREFIX,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a look.")] = False,
) -> None:
    """Show how full the broker's queues are, and how fast they move."""
    from bridge.queues import look  # noqa: PLC0415
    from bridge.queues import watch as looks  # noqa: PLC0415
    from hzzray.report.console_table import print_table  # noqa: PLC0415

    settings, topology = broker_settings(broker, prefix), Topology(prefix)
    if not watch:
        state = look(settings, topology)
        typer.echo(_json(state)) if as_json else print_table(console, _table(state))
        return
    try:
        _follow(looks(settings, topology, every), as_json=as_json)
    except KeyboardInterrupt:
        return


def _follow(looks: Iterable[QueuesState | BrokerError], *, as_json: bool) -> None:
    """Show look after look: a table that changes on a terminal, lines elsewhere."""
    from rich.live import Live  # noqa: PLC0415

    from bridge.connection import BrokerError  # noqa: PLC0415

    live = console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False) if live else nullcontext() as screen:
        for state in looks:
            if isinstance(state, BrokerError):
                errors.print(str(state), style="red", highlight=False, soft_wrap=True, markup=False)
            elif screen is not None:
                screen.update(_table(state), refresh=True)
            else:
                typer.echo(_json(state) if as_json else _line(state))


def _table(state: QueuesState) -> Table:
    table = Table("queue", title=_pace(state), caption=state.unseen or None)
    for column in ("ready", "in flight", "consumers", "in /s", "done /s"):
        table.add_column(column, justify="right")
    for queue in state.all:
        style = "red" if queue is state.dead and queue.ready else None
        numbers = (queue.ready, queue.unacked, queue.consumers, queue.published_per_s, queue.acked_per_s)
        table.add_row(queue.name, *("" if number is None else f"{number:.10g}" for number in numbers), style=style)
    return table


def _line(state: QueuesState) -> str:
    waiting = sum(retry.ready for retry in state.retries)
    flying = "" if state.tasks.unacked is None else f"{state.tasks.unacked} in flight, "
    return (
        f"{state.tasks.ready} ready, {flying}{waiting} wait for another try, {state.dead.ready} dead, "
        f"{state.tasks.consumers} consumers; {_pace(state)}"
    )


def _pace(state: QueuesState) -> str:
    if state.tasks.acked_per_s is None:
        return f"{state.backlog} tasks to do"
    left = "" if state.left_s is None else f", {timedelta(seconds=round(state.left_s))} left"
    return f"{state.backlog} tasks to do, {state.tasks.acked_per_s:.3g} done a second{left}"


def _json(state: QueuesState) -> str:
    return json.dumps(asdict(state) | {"backlog": state.backlog, "left_s": state.left_s})


def _report(settings: BrokerSettings, found: Check, *, as_json: bool) -> None:
    if as_json:
        print_json({"broker": str(settings), "lacks": list(found.lacks), "unseen": list(found.unseen)})
        if found.lacks:
            raise typer.Exit(1)
        return
    for line in found.lacks:
        errors.print(f"lacks {line}", style="red", highlight=False, soft_wrap=True, markup=False)
    for line in found.unseen:
        errors.print(f"not checked: {line}", style="yellow", highlight=False, soft_wrap=True, markup=False)
    if found.lacks:
        raise typer.Exit(1)
    all_of_it = "what could be checked" if found.unseen else "all that hzzray needs"
    say(console, f"{settings} has {all_of_it}")


def _passwords(topology: Topology) -> dict[str, str]:
    given = {user.name: password_from(_variable(user.name)) for user in topology.users}
    return {name: password for name, password in given.items() if password is not None}


def _variable(user: str) -> str:
    return f"HZZRAY_{user.upper()}_PASSWORD"
