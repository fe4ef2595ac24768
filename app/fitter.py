"""Fits, each a process of its own behind all others: ``hzzray fit``. What they find is in the runs' folders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from app.children import environment
from hzzray.files import OutputError, read_own

#: What the last fit of a run said.
LOG = "fit.log"

Kind = Literal["fit", "watch"]

# That go on at a time: a fit takes a core for a minute or so.
_MOST = 2

_LOG_BYTES = 4096


class Fitter:
    """Starts fits of the runs of a folder."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._able = False
        self._lock = threading.Lock()
        self._going: dict[tuple[str, Kind], subprocess.Popen[bytes]] = {}

    @property
    def able(self) -> bool:
        """Whether there is what a fit takes: an extra, which may still come."""
        self._able = self._able or all(find_spec(name) is not None for name in ("pyhf", "iminuit"))
        return self._able

    def start(self, run_id: str, kind: Kind) -> bool:
        """Start a fit, or the watch of a run that goes on, unless it goes on already; False where too many do.

        Raises OutputError where the run's folder can't be written.
        """
        with self._lock:
            self._going = {key: process for key, process in self._going.items() if process.poll() is None}
            if (run_id, kind) in self._going:
                return True
            if len(self._going) >= _MOST:
                return False
            self._going[run_id, kind] = self._begin(run_id, kind)
            return True

    def goes_on(self, run_id: str, kind: Kind) -> bool:
        """Tell whether a fit of a run goes on."""
        with self._lock:
            process = self._going.get((run_id, kind))
        return process is not None and process.poll() is None

    def has_failed(self, run_id: str) -> bool:
        """Tell whether the last fit of a run that was started here has failed."""
        with self._lock:
            process = self._going.get((run_id, "fit"))
        return process is not None and bool(process.poll())

    def said(self, run_id: str) -> str:
        """Return the last line of what the last fit of a run said."""
        try:
            text = read_own(self._runs / run_id / LOG, 2**20)[-_LOG_BYTES:].decode(errors="replace")
        except (FileNotFoundError, OutputError):
            return ""
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

    def _begin(self, run_id: str, kind: Kind) -> subprocess.Popen[bytes]:
        folder = self._runs / run_id
        command = [sys.executable, "-m", "hzzray", "fit", run_id, "--runs", str(self._runs)]
        command += ["--watch"] if kind == "watch" else []
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(folder / LOG, flags, 0o666), "wb") as log:
                return subprocess.Popen(  # noqa: S603 (our own program, no shell, a run's name that was checked)
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment()
                )
        except OSError as error:
            raise OutputError(f"{folder}: {error.strerror or error}") from error
