"""What must be known of a run to do it again elsewhere and compare: its result, where it read what, in which ranges."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hzzray.errors import UsageError
from hzzray.files import OutputError, read_own
from hzzray.runs.folder import RESULT, RESULT_BYTES, RunFolder, load_json
from hzzray.runs.plan import CHUNK
from hzzray.runs.result import Result
from hzzray.runs.run import settings_of
from hzzray.urls import redact

#: What a report's record stands in: no program, and nothing that a browser runs.
OPENING = '<script type="application/json" id="hzzray-record">'
CLOSING = "</script>"

_RECORD = re.compile(re.escape(OPENING) + r"(.*?)" + re.escape(CLOSING), re.DOTALL)


class FileRecord(BaseModel):
    """A file that a run has read: its place in the source, the name of its content, its entries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: str
    path: str
    uuid: str
    entries: int


class Record(BaseModel):
    """A run's result with what it was made of; ``sources`` and ``files`` are empty where only the result is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    result: Result
    sources: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()
    chunk: Annotated[int, Field(ge=1)] = CHUNK
    analyses: tuple[str, ...] = ()


def record_of(folder: RunFolder) -> Record:
    """Take the record of a run from its folder; without a ledger it is the result alone.

    Raises UsageError where there is no result.
    """
    result = load_json(folder.path)
    if not folder.has_ledger:
        return Record(result=result)
    _, settings = settings_of(folder)
    with folder.ledger() as ledger:
        files, _ = ledger.laid_out()
    found = {(file.sample, file.path): file for file in files}
    return Record(
        result=result,
        sources=settings.sources,
        files=tuple(
            FileRecord(sample=sample, path=path, uuid=file.uuid, entries=file.entries)
            for (sample, path), file in found.items()
        ),
        chunk=settings.chunk,
        analyses=settings.analyses,
    )


def embedded(record: Record) -> str:
    """Write a record as it stands in a report, which strangers may get: sources without their secrets.

    Nor where an analysis of the user's own lies: whoever verifies says which programs may run on his machine.
    """
    shown = record.model_copy(update={"sources": tuple(map(redact, record.sources)), "analyses": ()})
    text = shown.model_dump_json(by_alias=True).replace("<", "\\u003c")  # so that no text in it can end the element
    return f"{OPENING}{text}{CLOSING}"


def read_record(path: Path) -> Record:
    """Read a record from a run's folder, a report, or a ``result.json``; raises UsageError naming it."""
    if path.is_dir():
        return record_of(RunFolder(path))
    if path.name == RESULT and RunFolder(path.parent).has_ledger:
        return record_of(RunFolder(path.parent))
    try:
        text = read_own(path.resolve(), RESULT_BYTES).decode("utf-8")  # the user names it: a link is his own
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such run, report or result") from error
    except OutputError as error:
        raise UsageError(str(error)) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: neither a report nor a result.json: {error.reason}") from error
    found = _RECORD.search(text)
    try:
        if found is not None:
            return Record.model_validate_json(found[1]).model_copy(update={"analyses": ()})
        return Record(result=Result.model_validate_json(text))
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: neither a report nor a result.json: {what}") from error
