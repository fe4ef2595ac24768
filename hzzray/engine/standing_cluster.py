"""A local Ray cluster that stays between runs: what is known of it, who uses it, and when it ends.

Its keeper is a process of its own, which starts Ray and waits. What others need to find it lies in a folder of the
cache, for its user alone: a record, and a claim of each process that uses it. A claim holds as long as its process
lives, so that nothing has to be cleaned up after one that was killed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hzzray.cache import cache_folder
from hzzray.errors import HzzrayError
from hzzray.files import OutputError, read_own, write_whole

log = logging.getLogger(__name__)

#: A cluster that nobody uses for so long ends by itself [s].
IDLE_S = 1800.0

#: Environment variable that names a process: while it lives, a cluster that its runs start stays for the next ones.
KEPT_FOR = "HZZRAY_CLUSTER_FOR"

#: Files of its folder: how to reach it, and what its keeper has said.
RECORD, LOG = "record.json", "keeper.log"

#: How long a start and an end may take [s].
START_S, END_S = 120.0, 30.0

_LOCK_S, _LOOK_S = START_S + END_S, 0.1
_MOST_BYTES = 2**20

# What a worker does may depend on these; it has those of the keeper. (A user's shell changes others all the time.)
_MATTERS = ("HZZRAY_", "RAY_", "PYTHON", "NUMBA_", "OMP_", "OPENBLAS_", "AWS_", "X509_", "XRD_", "SSL_", "LD_")
_MATTERS_NOT = {KEPT_FOR, "RAY_CLIENT_MODE"}  # Ray sets it when it is imported
_MATTERS_TOO = {"HOME", "PATH", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"}


_PACKAGE = Path(__file__).parents[1]


class StandingError(HzzrayError):
    """The local cluster that stays can't be started or ended."""


class ProcessIdentity(BaseModel):
    """A process that can't be taken for a later one of the same number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Find a process; None where there is none."""
        try:
            return cls(pid=pid, started=psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    @property
    def lives(self) -> bool:
        """Tell whether it is still there, and not only waited for by its parent."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class Claim(BaseModel):
    """What a process has of the cluster: CPU slots, none if it only wants it to stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity
    slots: int
    what: str


class StandingCluster(BaseModel):
    """A cluster that stays: how to reach it, and what it is made for.

    Without a ``token`` it asks for none; an empty one is its user's own, which Ray finds where it found it before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keeper: ProcessIdentity
    address: str
    token: str | None
    slots: Annotated[int, Field(ge=1)]
    idle_s: float
    environment: str

    @property
    def is_like_here(self) -> bool:
        """Tell whether its workers are what this process' own would be."""
        return self.environment == environment(os.environ)


def environment(variables: Mapping[str, str]) -> str:
    """Name, by a digest, all that workers take from the environment of who starts the cluster, and its programs."""
    chosen = {
        name: value
        for name, value in variables.items()
        if name not in _MATTERS_NOT and (name.startswith(_MATTERS) or name.upper() in _MATTERS_TOO)
    }
    programs = sys.executable, sys.prefix, version("ray"), str(_PACKAGE), sources()
    return hashlib.sha256(repr((programs, sorted(chosen.items()))).encode()).hexdigest()


def sources() -> str:
    """Name what our own files are, by a digest of their dates and sizes: workers that wait have loaded them already."""
    found = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        with suppress(FileNotFoundError):  # an update takes it away just now
            about = path.stat()
            found.append((str(path), about.st_mtime_ns, about.st_size))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def folder() -> Path | None:
    """Find where the cluster's record and claims are; None where there is no folder of caches."""
    cache = cache_folder()
    return None if cache is None else cache / "cluster"


def find() -> StandingCluster | None:
    """Find the cluster that stays; None where there is none."""
    place = folder()
    return None if place is None else _read(place)


def _read(place: Path) -> StandingCluster | None:
    try:
        record = StandingCluster.model_validate_json(read_own(place / RECORD, _MOST_BYTES))
    except (FileNotFoundError, OutputError, ValidationError):
        return None  # of another version, or not written yet
    return record if record.keeper.lives else None


def claims(place: Path) -> list[Claim]:
    """List who uses the cluster. The claims of processes that have gone are taken away."""
    found = []
    for path in sorted((place / "claims").glob("*.json")):
        try:
            claim = Claim.model_validate_json(read_own(path, _MOST_BYTES))
        except FileNotFoundError:
            continue
        except (OutputError, ValidationError):
            claim = None
        if claim is not None and claim.process.lives:
            found.append(claim)
        else:
            path.unlink(missing_ok=True)
    return found


def users() -> list[Claim]:
    """List who uses the cluster that stays."""
    place = folder()
    return [] if place is None else claims(place)


@contextmanager
def claimed(slots: int) -> Iterator[StandingCluster | None]:
    """Have slots of the cluster that stays for a while.

    None where there is no such cluster, where it has not so many free, or where its workers would not have this
    process' environment and programs. Where ``HZZRAY_CLUSTER_FOR`` names a process and there is none, one is started.
    """
    place = folder()
    path = standing = None
    if place is not None:
        kept_for = os.environ.get(KEPT_FOR, "")
        if kept_for.isdecimal() and _read(place) is None:
            try:
                up(slots, kept_for=int(kept_for))
            except HzzrayError as error:  # it is a help, and no more
                log.warning("%s", error)
        if _read(place) is not None:
            with _lock(place):
                standing = _read(place)
                if standing is not None and standing.is_like_here and _taken(place) + slots <= standing.slots:
                    path = _claim(place, os.getpid(), slots)
    try:
        yield None if path is None else standing
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _taken(place: Path) -> int:
    return sum(claim.slots for claim in claims(place))


def retired(place: Path, *, is_wanted: bool) -> bool:
    """Take the cluster's record away, unless somebody uses it, or it ``is_wanted`` by whom it is kept for."""
    with _lock(place):
        found = claims(place)
        if any(claim.slots for claim in found) or (is_wanted and found):
            return False
        (place / RECORD).unlink(missing_ok=True)
        return True


def _claim(place: Path, pid: int, slots: int) -> Path | None:
    """Write a process' claim down; None where it has gone already."""
    if (process := ProcessIdentity.of(pid)) is None:
        return None
    what = " ".join(word for word in psutil.Process(pid).cmdline()[1:4] if not word.startswith("-"))
    claim = Claim(process=process, slots=slots, what=what)
    path = place / "claims" / f"{pid}-{secrets.token_hex(4)}.json"
    return write_whole(path, lambda part: part.write_text(claim.model_dump_json(), encoding="utf-8"), 0o600)


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    """Be the only one that starts, ends or claims the cluster."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(place / "lock", timeout=_LOCK_S, mode=0o600):
            yield
    except Timeout as error:
        raise StandingError(
            f"{place}: another process has been starting or ending the cluster for {_LOCK_S:g} s"
        ) from error
    except OSError as error:
        raise StandingError(f"{place}: {error.strerror or error}") from error


def up(slots: int, *, idle_s: float = IDLE_S, kept_for: int | None = None) -> tuple[StandingCluster, bool]:
    """Start a cluster that stays, unless there is one: until it is ended, or nobody has used it for ``idle_s``.

    With ``kept_for`` it ends with that process and the last of those that use it. Returns it, and whether it is new.
    Raises StandingError saying why there is none.
    """
    place = folder()
    if place is None:
        raise StandingError(
            "a cluster that stays is remembered in the folder of caches, and HZZRAY_CACHE= says there is none"
        )
    with _lock(place):
        if (known := _read(place)) is not None:
            return known, False
        if kept_for is not None:
            _claim(place, kept_for, 0)
        return _begin(place, slots, idle_s, ends_with_last=kept_for is not None), True


def _begin(place: Path, slots: int, idle_s: float, *, ends_with_last: bool) -> StandingCluster:
    """Start the keeper, and wait for its record."""
    (place / RECORD).unlink(missing_ok=True)
    command = [sys.executable, "-m", "hzzray.engine.cluster_keeper", str(slots), str(idle_s), str(int(ends_with_last))]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(place / LOG, flags, 0o600), "wb") as output:
        keeper = subprocess.Popen(  # noqa: S603 (our own program, no shell)
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    threading.Thread(target=keeper.wait, daemon=True).start()  # or it would stay a zombie of a process that goes on
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if (record := _read(place)) is not None:
            return record
        if keeper.poll() is not None:
            break
        time.sleep(_LOOK_S)
    else:
        keeper.terminate()
    last = (place / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise StandingError(
        f"the cluster did not start: {''.join(last) or f'no answer within {START_S:g} s'}; see {place / LOG}"
    )


def down(*, force: bool = False) -> bool:
    """End the cluster that stays; tells whether there was one.

    Raises StandingError naming who uses it, unless by ``force``, and where it doesn't end.
    """
    place = folder()
    if place is None:
        return False
    with _lock(place):
        known = _read(place)
        if known is None:
            return False
        users = [claim for claim in claims(place) if claim.slots]
        if users and not force:
            who = ", ".join(f"{claim.what} (process {claim.process.pid})" for claim in users)
            raise StandingError(f"in use by {who}; --force ends it under them")
        keeper = psutil.Process(known.keeper.pid)
        keeper.terminate()
        try:
            keeper.wait(END_S)
        except psutil.TimeoutExpired as error:
            raise StandingError(f"its keeper, process {keeper.pid}, does not end within {END_S:g} s") from error
        return True
