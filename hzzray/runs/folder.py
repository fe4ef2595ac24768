"""A run's folder: what lies in it, and where."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hzzray.engine.ledger import Ledger, LedgerError
from hzzray.errors import HzzrayError, UsageError
from hzzray.files import OutputError, read_own, write_whole
from hzzray.messages import RunSpec, Status
from hzzray.runs.result import Result, environment

#: What the ledger, the result and the log of a run that the app started are called.
LEDGER, RESULT, LOG = "ledger.db", "result.json", "run.log"

#: A result of a hundred times as many samples and bins as any release has is smaller [bytes].
RESULT_BYTES = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run, which is there or isn't yet; its name is the run's."""

    path: Path

    @property
    def run_id(self) -> str:
        """What the run is called, wherever it is shown: of a copy, what the copy is called."""
        return Path(os.path.abspath(self.path)).name  # noqa: PTH100 (resolve would name what a link leads to)

    @property
    def ledger_path(self) -> Path:
        """Where its ledger is."""
        return self.path / LEDGER

    @property
    def has_ledger(self) -> bool:
        """Whether there is a ledger: the run's own, not a link to another's."""
        return self.ledger_path.is_file() and not self.ledger_path.is_symlink()

    def ledger(self) -> Ledger:
        """Open its ledger; raises UsageError where there is no run, or none here, LedgerError for a damaged one."""
        try:
            return Ledger.open(self.ledger_path)
        except UsageError as error:
            if not (self.path / RESULT).is_file():
                raise
            where = f"{self.path}: its {LEDGER} is gone, or elsewhere"
            raise UsageError(f"{where}; its result is there: hzzray result {shlex.quote(self.run_id)}") from error

    def make(self) -> None:
        """Make it; raises LedgerError where the folder of runs can't be used."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            runs = self.path.parent
            raise LedgerError(f"{runs}: the folder of runs can't be written to: {error.strerror or error}") from error

    def create_ledger(self, spec: RunSpec) -> None:
        """Start its ledger, or leave the one that another process was faster with; raises LedgerError."""
        self.make()
        Ledger.create(self.ledger_path, self.run_id, spec, environment()).close()

    @property
    def shown_status(self) -> Status | None:
        """What its result says of it; None where there is none that can be read."""
        try:
            return load_json(self.path).status
        except HzzrayError:
            return None


def find_run(name: str, runs: Path) -> RunFolder:
    """Find a run by its id in a folder of runs, or by its own folder; it may not be there.

    Raises UsageError for no name at all, or for a file's.
    """
    if not name.strip():
        raise UsageError("no run is named: give a run's id, or its folder (hzzray runs lists them)")
    there = RunFolder(Path(name))
    if there.has_ledger:
        return there
    if there.path.is_file() and not (runs / name).is_dir():
        raise UsageError(f"{name} is a file: give a run's id, or its folder (hzzray runs lists them)")
    return RunFolder(runs / name)


def all_runs(runs: Path) -> Iterator[RunFolder]:
    """List the runs of a folder that have a ledger, by name."""
    return (RunFolder(path.parent) for path in sorted(runs.glob(f"*/{LEDGER}")))


def save_json(result: Result, folder: Path) -> Path:
    """Write ``result.json``."""
    text = result.model_dump_json(by_alias=True, indent=1) + "\n"
    return write_whole(folder / RESULT, lambda path: path.write_text(text, encoding="utf-8"))


def named(result: Result, folder: Path) -> Result:
    """Give a result the id by which commands find its folder: that may be a copy of another run's."""
    return result.model_copy(update={"run_id": RunFolder(folder).run_id})


def load_json(folder: Path) -> Result:
    """Read ``result.json``; raises UsageError where there is none, OutputError where it can't be understood."""
    path = folder / RESULT
    try:
        return named(Result.model_validate_json(read_own(path, RESULT_BYTES)), folder)
    except FileNotFoundError as error:
        run = RunFolder(folder)
        if not run.has_ledger:
            raise UsageError(f"{folder}: no such run, or one that has no result yet") from error
        again = f"hzzray run --run-id {run.run_id}, asked for the same as before, writes it"
        raise UsageError(f"{folder}: a run without its {RESULT}, which is gone or isn't there yet: {again}") from error
    except ValidationError as error:
        raise OutputError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
