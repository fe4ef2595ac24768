"""A run's folder: what lies in it, and where."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from hzzray.errors import UsageError
from hzzray.files import OutputError, read_own, write_whole
from hzzray.runs.result import Result

#: A result of a hundred times as many samples and bins as any release has is smaller [bytes].
RESULT_BYTES = 32 * 1024**2


def save_json(result: Result, folder: Path) -> Path:
    """Write ``result.json``."""
    text = result.model_dump_json(by_alias=True, indent=1) + "\n"
    return write_whole(folder / "result.json", lambda path: path.write_text(text, encoding="utf-8"))


def load_json(folder: Path) -> Result:
    """Read ``result.json``; raises UsageError where there is none, OutputError where it can't be understood."""
    path = folder / "result.json"
    try:
        return Result.model_validate_json(read_own(path, RESULT_BYTES))
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: no such run, or one that has no result yet") from error
    except ValidationError as error:
        raise OutputError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
