"""Candidates out: a row each, for pandas, polars, awkward, ROOT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hzzray.errors import UsageError
from hzzray.files import write_whole
from hzzray.runs.explore import Answer, Session
from hzzray.urls import redact

#: How a file's name says what it is to be.
KINDS = (".parquet", ".arrow", ".feather", ".root")


class Names(NamedTuple):
    """What samples, regions and files are called, whose numbers rows have."""

    sample: list[str]
    region: list[str]
    file: list[str]


class Rows(NamedTuple):
    """Some candidates of a file: sample, region and file as numbers, and the other columns by name."""

    sample: int
    region: np.ndarray[Any, np.dtype[np.int32]]
    file: int
    columns: dict[str, np.ndarray[Any, Any]]

    @property
    def numbers(self) -> dict[str, np.ndarray[Any, np.dtype[np.int32]]]:
        """The columns that stand for names."""
        size = len(self.region)
        return {
            "sample": np.full(size, self.sample, np.int32),
            "region": self.region,
            "file": np.full(size, self.file, np.int32),
        }


def check_kind(path: Path) -> None:
    """Refuse a file of another kind, or one that lacks what writes it; raises UsageError."""
    if path.suffix not in KINDS:
        raise UsageError(f"--out {path}: its name must end in {', '.join(KINDS)}")
    if path.suffix != ".root":
        try:
            import pyarrow  # noqa: F401, ICN001, PLC0415 (comes with the app)
        except ImportError as error:
            raise UsageError(f"--out {path}: needs pyarrow: pip install 'hzzray[app]', or write .root") from error


def skim(session: Session, answer: Answer, path: Path) -> int:
    """Write the candidates that an answer is filled with, all of a run's; returns how many there are.

    Columns are ``sample``, ``region``, ``file`` and ``entry`` (in that file), ``weight`` (as in the result: a sample's
    sum is its yield), and each variable that was measured. Raises UsageError for a file of another kind.
    """
    check_kind(path)
    names = Names(
        [sample.name for sample in answer.spec.release.samples],
        list(answer.spec.analysis.regions),
        list(dict.fromkeys(redact(task.file) for task in session.tasks)),
    )
    write = _root if path.suffix == ".root" else _arrow
    written = 0

    def rows() -> Iterator[Rows]:
        nonlocal written
        for one in _rows(session, answer, names):
            written += len(one.region)
            yield one

    write_whole(path, lambda part: write(part, path.suffix, names, rows()))
    return written


def _rows(session: Session, answer: Answer, names: Names) -> Iterator[Rows]:
    variables = [variable.name for variable in session.analysis.variables]
    for number, picked in session.picked(answer):
        task = session.tasks[number]
        scale = answer.result.samples[task.sample].scale
        values = {name: picked.values[variables.index(name)] for name in session.variables}
        yield Rows(
            names.sample.index(task.sample),
            picked.region.astype(np.int32),
            names.file.index(redact(task.file)),
            {"entry": task.start + picked.entry, "weight": picked.weight * scale, **values},
        )


def _arrow(path: Path, suffix: str, names: Names, rows: Iterator[Rows]) -> None:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    writer: Any = None
    for one in rows:
        named = {
            name: pa.DictionaryArray.from_arrays(numbers, getattr(names, name)) for name, numbers in one.numbers.items()
        }
        table = pa.table({**named, **one.columns})
        if writer is None:
            make: Callable[..., Any] = pq.ParquetWriter if suffix == ".parquet" else pa.ipc.new_file
            writer = make(str(path), table.schema)
        writer.write_table(table)
    if writer is None:
        raise UsageError("no candidate could be read")
    writer.close()


def _root(path: Path, _: str, names: Names, rows: Iterator[Rows]) -> None:
    import uproot  # noqa: PLC0415 (a second to import)

    tree: Any = None
    with uproot.recreate(path) as file:
        for one in rows:
            columns = {**one.numbers, **one.columns}
            if tree is None:
                tree = file.mktree("candidates", {name: column.dtype for name, column in columns.items()})
            tree.extend(columns)
        for name, known in names._asdict().items():
            file[f"{name}s"] = "\n".join(known)
    if tree is None:
        raise UsageError("no candidate could be read")
