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
from typing import NamedTuple

from hzzray.data.catalogue import Release
from hzzray.data.storage import matching
from hzzray.engine.limits import Limits
from hzzray.errors import UsageError
from hzzray.files import OutputError
from hzzray.messages import RunSpec
from hzzray.runs.plan import CHUNK, check_source
from hzzray.runs.request import make_spec
from hzzray.runs.run import make_settings
from hzzray.urls import is_inside, is_pattern, is_remote


@dataclass(frozen=True, slots=True)
class Choices:
    """A run as the user wants it; the fields are the options of ``hzzray run``.

    Without ``samples`` it has the release's own. One that is ``published`` goes to the broker of ``HZZRAY_BROKER``: its
    bridges decide who works, and how fast.
    """

    release: Release
    source: str | None
    run_id: str
    samples: tuple[str, ...] | None = None
    selection: str = ""
    cuts: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    observables: tuple[str, ...] = ()
    luminosity: float | None = None
    fraction: float = 1.0
    axis: str = ""
    window: str = ""
    min_actors: int = 1
    max_actors: int = 1
    chunk: int = CHUNK
    pace_s: float = 0.0
    events: int | None = None
    published: bool = False

    def check(self, runs: Path, sources: Sequence[str]) -> RunSpec:
        """Check all that can be before the start; raises UsageError naming what is wrong. Nothing is read but names."""
        if self.samples == ():
            raise UsageError("no sample is chosen: choose one at least")
        spec = make_spec(
            self.release,
            samples=self.samples or (),
            selection=self.selection or None,
            luminosity=self.luminosity,
            fraction=self.fraction,
            cuts=self.cuts,
            parameters=self.parameters,
            observables=self.observables,
            axis=self.axis,
            window=self.window,
        )
        if self.min_actors > self.max_actors:
            raise UsageError(f"{self.min_actors} actors at least are more than {self.max_actors} at most")
        make_settings(
            runs=runs,
            run_id=self.run_id,
            sources=(self.source,) if self.source else self.release.sources,
            limits=Limits(min_actors=self.min_actors, max_actors=self.max_actors),
            chunk=self.chunk,
            pace_s=self.pace_s,
        )
        if (runs / self.run_id / "ledger.db").exists():
            raise UsageError(f"there is a run {self.run_id}; take another name")
        if self.source is not None:
            allowed = (*sources, *self.release.sources)
            if self.source not in allowed and not is_inside(self.source, allowed):
                raise UsageError(f"{self.source} is outside the sources of this app")
            if self.events is None and not is_remote(self.source):
                check_source(self.source)
        return spec

    def command(self) -> list[str]:
        """Lay the choices out as a command of ``hzzray``, leaving out what is the default anyway."""
        release = self.release
        default = [sample.name for sample in release.samples if sample.default]
        options = ["publish" if self.published else "run", "--release", release.name, "--run-id", self.run_id]
        for name, value, usual in (
            ("source", self.source, None),
            ("events", self.events, None),
            ("samples", ",".join(self.samples or ()), ",".join(default)),
            ("selection", self.selection, release.selection),
            ("luminosity", self.luminosity, release.luminosity),
            ("fraction", self.fraction, 1.0),
            ("axis", self.axis, ""),
            ("window", self.window, ""),
            ("chunk", self.chunk, CHUNK),
            ("pace", 0.0 if self.published else self.pace_s, 0.0),
        ):
            if value not in (None, "", usual):
                options += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
        for name, changes in (("cut", self.cuts), ("parameter", self.parameters), ("observable", self.observables)):
            options += [word for change in changes for word in (f"--{name}", change)]
        if self.published:
            return options
        if self.min_actors == self.max_actors:
            return [*options, "--actors", str(self.min_actors)]
        return [*options, "--min-actors", str(self.min_actors), "--max-actors", str(self.max_actors)]


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

    ``address`` is the cluster that they use, if it isn't one of their own.
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
        ray = {"RAY_ADDRESS": self._address} if self._address else {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(folder / "run.log", flags, 0o666), "ab") as log:
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
