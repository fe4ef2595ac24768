"""Starting runs: what the user chooses, checked by the rules of ``hzzray run``, and the process that does it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from hzzray.data.catalogue import Release
from hzzray.data.storage import matching
from hzzray.engine.standing_cluster import KEPT_FOR
from hzzray.errors import UsageError
from hzzray.files import OutputError
from hzzray.messages import RunSpec
from hzzray.runs.folder import LOG, RunFolder
from hzzray.runs.plan import check_source
from hzzray.runs.request import RunRequest, make_spec
from hzzray.urls import is_inside, is_pattern, is_remote


@dataclass(frozen=True, slots=True)
class Choices:
    """A run as the user wants it, of a release of the server's catalogue.

    One that is ``published`` goes to the broker of ``HZZRAY_BROKER``: its bridges decide who works, and how fast.
    """

    release: Release
    request: RunRequest
    published: bool = False

    @classmethod
    def of(cls, release: Release, *, published: bool = False, **options: object) -> Self:
        """Make choices of the options of a request; raises UsageError naming what is wrong.

        No ``samples`` are those of the release; that none at all was chosen is a mistake.
        """
        if options.get("samples") == ():
            raise UsageError("no sample is chosen: choose one at least")
        return cls(release, RunRequest.of(release=release.name, **options), published)

    @property
    def run_id(self) -> str:
        """What the run is called."""
        return self.request.run_id or ""

    @property
    def source(self) -> str | None:
        """Where it reads from; None for the release's own addresses."""
        return next(iter(self.request.sources), None)

    def check(self, runs: Path, sources: Sequence[str]) -> RunSpec:
        """Check all that can be before the start; raises UsageError naming what is wrong. Nothing is read but names."""
        spec = make_spec(self.release, self.request)
        if not self.run_id:
            raise UsageError("a run needs a name")
        if RunFolder(runs / self.run_id).has_ledger:
            raise UsageError(f"there is a run {self.run_id}; take another name")
        if self.source is not None:
            allowed = (*sources, *self.release.sources)
            if self.source not in allowed and not is_inside(self.source, allowed):
                raise UsageError(f"{self.source} is outside the sources of this app")
            if self.request.events is None and not is_remote(self.source):
                check_source(self.source)
        return spec

    def command(self) -> list[str]:
        """Lay the choices out as a command of ``hzzray``, leaving out what is the default anyway."""
        return ["publish" if self.published else "run", *self.request.words(published=self.published)]


def toy_folder(home: str, events: int) -> str:
    """Name the folder of toy files of a size, inside a source."""
    return str(Path(home) / f"toy-{events}")


def places(release: Release, sources: Sequence[str]) -> list[str]:
    """Folders that hold files of a release, at the sources or one level below, and the sources that are addresses."""
    folders = [Path(source) for source in sources if not is_remote(source)]
    candidates = [*folders, *(child for folder in folders for child in _children(folder))]
    found = [str(folder) for folder in candidates if _holds(folder, release) and is_inside(str(folder), sources)]
    return [*found, *(source for source in sources if is_remote(source))]


def lacking(spec: RunSpec, source: str | None) -> list[str] | None:
    """Names of a run's samples of which a folder lacks something.

    None of an address, which is asked only when the run begins.
    """
    if source is None or is_remote(source):
        return None
    folder = Path(source)
    return [sample.name for sample in spec.release.samples if not all(_is_there(folder, path) for path in sample.paths)]


def _holds(folder: Path, release: Release) -> bool:
    return any(_is_there(folder, path) for sample in release.samples for path in sample.paths)


def _is_there(folder: Path, path: str) -> bool:
    """Tell whether a folder has a file, or one that a pattern matches."""
    return bool(matching(str(folder), path)) if is_pattern(path) else (folder / path).is_file()


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []


class _Begun(NamedTuple):
    """A process, and since when there is one [Unix seconds]."""

    process: subprocess.Popen[bytes]
    since: float


class Launcher:
    """Processes that this server has started: each goes on by itself, whatever becomes of the app.

    ``address`` is the cluster that they use, if it isn't one of this machine's own, which stays for the next one.
    """

    def __init__(self, runs: Path, address: str | None = None) -> None:
        self._runs = runs
        self._address = address
        self._lock = threading.Lock()
        self._begun: dict[str, _Begun] = {}

    def run(self, choices: Choices) -> None:
        """Start a run; raises OutputError where its folder can't be written."""
        folder = [] if choices.published else ["--runs", str(self._runs)]
        self._start(choices.run_id, [*choices.command(), *folder])

    def go_on(self, run_id: str, *, failed: bool, published: bool) -> None:
        """Have what was left of a run done, and what ``failed`` tried again; raises OutputError.

        Of a ``published`` run the broker's bridges are told.
        """
        folder = ["--runs", str(self._runs)]
        if not published:
            self._start(run_id, ["replay", run_id, *folder])
        else:  # an empty address: that of the environment, which may hold a password
            self._start(run_id, ["replay" if failed else "resume", run_id, "--broker", "", *folder])

    def started(self, run_id: str) -> float | None:
        """Tell since when [Unix seconds] a process of ours works on a run; None where none does."""
        with self._lock:
            begun = self._begun.get(run_id)
            if begun is None:
                return None
            if begun.process.poll() is None:
                return begun.since
            del self._begun[run_id]
            return None

    def _start(self, run_id: str, options: list[str]) -> None:
        with self._lock:
            begun = self._begun.get(run_id)
            if begun is not None and begun.process.poll() is None:
                return  # a second click
        folder = self._runs / run_id
        command = [sys.executable, "-m", "hzzray", *options]
        ray = {"RAY_ADDRESS": self._address} if self._address else {KEPT_FOR: str(os.getpid())}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(folder / LOG, flags, 0o666), "ab") as log:
                process = subprocess.Popen(  # noqa: S603 (our own program, no shell, checked arguments)
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **ray},
                )
        except OSError as error:
            raise OutputError(f"{folder}: {error.strerror or error}") from error
        with self._lock:
            self._begun[run_id] = _Begun(process, time.time())
