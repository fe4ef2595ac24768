"""``hzzray doctor``: what of this machine works for what, and what is to be done about the rest."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import psutil
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hzzray.options import AsJson, Runs, print_json
from hzzray.report.say import say
from hzzray.urls import redact

app = typer.Typer()
console = Console(emoji=False)

State = Literal["works", "absent", "little", "taken", "no answer", "fails"]

#: How long anything that is asked may take to answer, and a Ray cluster to start [s].
ANSWER_S, RAY_S = 5.0, 120.0

# What a run on a laptop needs, about [bytes]: Python, Ray's processes and two workers; Ray's object store.
_MEMORY, _SHARED = 2 * 10**9, 128 * 1024**2

_OLDEST = (3, 11)
_EXTRAS = {
    "app": "streamlit",
    "broker": "pika",
    "fit": "pyhf",
    "notebook": "ipykernel",
    "openmagic": "atlasopenmagic",
    "xrootd": "XRootD",
}
_PORTS = {8265: ("Ray's dashboard", "it takes another"), 8501: ("the app", 'make app ARGS="--server.port 8600"')}
_COLOURS: dict[State, str] = {"works": "green", "fails": "red"}  # the others: yellow

_START_RAY = "from hzzray.engine.cluster import cluster\nwith cluster(1): pass"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at: whether it works, what was found, and what to do; ``needed`` by ``hzzray run`` itself."""

    name: str
    state: State
    found: str
    to_do: str = ""
    needed: bool = False


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Don't start a Ray cluster to see whether it can be.")] = False,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Tell what works on this machine and what to do about the rest; exit 0 where `hzzray run` can do its work."""
    found = list(checks(runs, start_ray=not quick))
    ready = all(check.state == "works" for check in found if check.needed)
    if as_json:
        print_json({"ready": ready, "checks": [asdict(check) for check in found]})
    else:
        table = Table("what", "state")
        table.add_column("found, and what to do", overflow="fold")
        for check in found:
            words = escape(check.found) + (f"\n[bold]→[/] {escape(check.to_do)}" if check.to_do else "")
            table.add_row(check.name, f"[{_COLOURS.get(check.state, 'yellow')}]{check.state}[/]", words)
        console.print(table)
        say(console, "hzzray run can do its work" if ready else "hzzray run can't do its work yet")
    if not ready:
        raise typer.Exit(1)


def checks(runs: Path, *, start_ray: bool = True) -> Iterator[Check]:
    """Look at one thing after the other; each answers in bounded time."""
    yield _python()
    yield _packages()
    yield from map(_extra, _EXTRAS.items())
    yield _memory()
    yield _shared_memory()
    yield _disk(runs)
    if start_ray:
        yield _ray()
    yield from (_port(number, *about) for number, about in _PORTS.items())
    yield _program("Docker", ["docker", "version", "--format", "{{.Server.Version}}"], "Compose: docs/compose.md")
    yield _program("kubectl", ["kubectl", "version", "--request-timeout=4s"], "Kubernetes: docs/kuberay.md")
    yield _broker()


def _python() -> Check:
    text = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST:
        return Check("Python", "fails", text, "install Python 3.11 or newer", needed=True)
    return Check("Python", "works", f"{text}, {sys.executable}", needed=True)


def _packages() -> Check:
    """Look whether what hzzray requires is there."""
    try:
        wanted = [
            re.split(r"[\s\[;<>=!~(]", one, maxsplit=1)[0] for one in requires("hzzray") or () if "extra" not in one
        ]
    except PackageNotFoundError:
        return Check("packages", "fails", "hzzray isn't installed here", "pip install -e .", needed=True)
    lacking = [name for name in wanted if not _is_installed(name)]
    if lacking:
        return Check(
            "packages", "fails", f"lacking: {', '.join(lacking)}", "pip install hzzray, or make run", needed=True
        )
    return Check("packages", "works", f"all {len(wanted)}; hzzray {version('hzzray')}", needed=True)


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _extra(extra: tuple[str, str]) -> Check:
    name, module = extra
    if find_spec(module) is None:
        return Check(f"extra {name}", "absent", f"no {module}", f"pip install 'hzzray[{name}]'")
    return Check(f"extra {name}", "works", module)


def _memory() -> Check:
    free = psutil.virtual_memory().available
    text = f"{free / 1e9:.1f} GB free"
    if free < _MEMORY:
        hint = "close something, or hzzray run --engine serial, which takes 0.5 GB"
        return Check("memory", "little", text, hint)
    return Check("memory", "works", text)


def _shared_memory() -> Check:
    place = Path("/dev/shm")  # noqa: S108 (nothing is written)
    if not place.is_dir():
        return Check("shared memory", "absent", "there is no /dev/shm", "Ray takes /tmp in its place, which is slower")
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.2f} GB free in /dev/shm"
    if free < _SHARED:
        return Check("shared memory", "little", text, "in a container: --shm-size 512m, or shm_size of Compose")
    return Check("shared memory", "works", text)


def _disk(runs: Path) -> Check:
    from hzzray.disk import full_disk  # noqa: PLC0415

    place = next(one for one in (runs, *runs.resolve().parents) if one.exists())
    if trouble := full_disk(runs):
        return Check("disk", "fails", trouble, "make room, or --runs elsewhere", needed=True)
    if not os.access(place, os.W_OK):
        return Check("disk", "fails", f"{place} can't be written to", "--runs elsewhere", needed=True)
    return Check("disk", "works", f"{shutil.disk_usage(place).free / 1e9:.0f} GB free for {runs}", needed=True)


def _ray() -> Check:
    """Start a cluster as a run does, or attach to that of RAY_ADDRESS, in a process of its own."""
    where = os.environ.get("RAY_ADDRESS")
    what = f"attached to {redact(where)}" if where else "a local cluster starts"
    code, said = ask([sys.executable, "-c", _START_RAY], RAY_S)
    if code == 0:
        return Check("Ray", "works", what, needed=True)
    found = f"no answer in {RAY_S:g} s" if code is None else _last(said)
    return Check("Ray", "fails", found, "hzzray run --engine serial does without", needed=True)


def _port(number: int, what: str, hint: str) -> Check:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", number))
        except OSError:
            return Check(f"port {number}", "taken", f"by another program: {what} wants it", hint)
    return Check(f"port {number}", "works", f"free for {what}")


def _program(name: str, command: Sequence[str], what_for: str) -> Check:
    if shutil.which(command[0]) is None:
        return Check(name, "absent", f"no {command[0]}", f"only needed for {what_for}")
    code, said = ask(command, ANSWER_S)
    if code == 0:
        return Check(name, "works", " ".join(said.split()))
    found = f"{command[0]} said nothing in {ANSWER_S:g} s" if code is None else _last(said)
    return Check(name, "no answer", found, f"only needed for {what_for}")


def _broker(connect: Callable[..., socket.socket] = socket.create_connection) -> Check:
    url = os.environ.get("HZZRAY_BROKER")
    if not url:
        return Check("broker", "absent", "HZZRAY_BROKER is not set", "only needed for docs/messaging.md")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (5671 if parts.scheme == "amqps" else 5672)
        connect((host, port), timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        return Check("broker", "fails", f"{redact(url)}: {error}", "is it running, and HZZRAY_BROKER right?")
    return Check("broker", "works", f"{redact(url)} answers", "hzzray topology check tells what it lacks")


def ask(command: Sequence[str], patience_s: float) -> tuple[int | None, str]:
    """Call a program that may hang; returns its exit code, None where it took too long, and what it said."""
    try:
        with subprocess.Popen(  # noqa: S603 (our own words)
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=patience_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # it, and what it started
                process.communicate()
                return None, ""
    except OSError as error:
        return 127, str(error)
    return process.returncode, said


def _last(said: str) -> str:
    """Take from what a program said its last line, which has the reason."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed, and said nothing"
