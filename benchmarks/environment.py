"""Processes with a time limit, and the peers' virtual environment."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import venv
from pathlib import Path

#: One thread for whatever reads these when it starts.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

INSTALL_TIMEOUT = 1200.0


class Failed(Exception):  # noqa: N818 (a result to list, not a fault of the harness)
    """A process that gave no result; its text is the reason in one line."""


def run(command: list[str], timeout: float) -> str:
    """Run a command and return its standard output; raises Failed. At the time limit its children end too."""
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(f"{Path(command[0]).name}: {error.strerror}") from error
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"no result within {timeout:g} s") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode < 0:
        raise Failed(f"ended by {signal.Signals(-process.returncode).name}")
    if process.returncode:
        raise Failed(_reason(errors))
    return output


def _reason(errors: str) -> str:
    """Find the line that says what went wrong: the last that names an error, or the last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no message"]
    naming = [line for line in lines if re.match(r"([\w.]*(Error|Exception)|ERROR)\b", line)]
    return (naming or lines)[-1][:200]


class Peers:
    """The virtual environment of what hzzray is measured against.

    Attributes
    ----------
    folder
        Where it stands. It is made, or brought up to date, by ``install``.
    requirements
        A pip requirements file with one pinned package a line.
    """

    def __init__(self, folder: Path, requirements: Path) -> None:
        self.folder = folder
        self.requirements = requirements

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    def install(self) -> list[str]:
        """Install what is missing and return what could not be, a line each; raises Failed without a venv."""
        text = self.requirements.read_text(encoding="utf-8")
        digest = hashlib.sha256(f"{sys.version}\n{text}".encode()).hexdigest()
        stamp = self.folder / "installed.sha256"
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
            return []
        try:
            venv.create(self.folder, clear=True, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"no virtual environment in {self.folder.name}: {error}") from error
        (self.folder / ".gitignore").write_text("*\n", encoding="utf-8")
        try:
            self._pip("-r", str(self.requirements))
        except Failed:
            missing = self._one_by_one(text)
        else:
            missing = []
        if not missing:
            stamp.write_text(digest, encoding="utf-8")
        return missing

    def _one_by_one(self, requirements: str) -> list[str]:
        """Install what can be, after one package has spoilt the lot."""
        missing = []
        for line in requirements.splitlines():
            package = line.partition("#")[0].strip()
            if not package:
                continue
            try:
                self._pip("-c", str(self.requirements), package)
            except Failed as failure:
                missing.append(f"{package}: {failure}")
        return missing

    def _pip(self, *arguments: str) -> None:
        run([self.python, "-m", "pip", "install", "--quiet", "--no-input", *arguments], INSTALL_TIMEOUT)
