"""A run's files: ``result.json`` and ``histograms.root``. Each is written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import ValidationError

from hzzray.errors import HzzrayError, UsageError
from hzzray.physics.histogram import Axis
from hzzray.result import Bins, GroupResult, Result, SampleResult

#: A result of a hundred times as many samples and bins as any release has is smaller [bytes].
RESULT_BYTES = 32 * 1024**2


class OutputError(HzzrayError):
    """A file of the run that can't be written or read."""


@contextmanager
def open_own(path: Path) -> Iterator[BinaryIO]:
    """Open a file of a run's folder to read: one that lies there itself, whoever may have put what into the folder.

    Raises FileNotFoundError where there is none, OutputError naming it for anything else: a link, which could lead out
    of the folder, a pipe, which would be waited for, a folder, a file that may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "a link: none is followed out of a run's folder" if error.errno == errno.ELOOP else error.strerror
        raise OutputError(f"{path}: {why}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OutputError(f"{path}: not a file")
    with os.fdopen(handle, "rb") as file:
        yield file


def read_own(path: Path, most: int) -> bytes:
    """Read a file of a run's folder whole, as ``open_own`` does; raises OutputError where it has more bytes."""
    try:
        with open_own(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    if len(content) > most:
        raise OutputError(f"{path}: too large: more than {most / 2**20:g} MiB")
    return content


def write_whole(path: Path, write: Callable[[Path], object], mode: int = 0o644) -> Path:
    """Write a file under another name in its folder, then move it into place; raises OutputError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        try:
            write(Path(part))
            Path(part).chmod(mode)
            Path(part).replace(path)
        finally:
            Path(part).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    return path


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
        raise OutputError(f"{path}: {error.errors()[0]['msg']}") from error


def save_root(result: Result, folder: Path) -> Path:
    """Write ``histograms.root``: a full TH1D for each sample and group, all channels together and each.

    Names are ``samples/NAME/all``, ``samples/NAME/4e`` and so on; likewise under ``groups``. In a name, what is no
    letter, digit, dot, hyphen or underscore becomes an underscore; titles have it as it was.
    """
    import uproot  # noqa: PLC0415 (a second to import)

    axis = Axis(result.edges[0], result.edges[-1], len(result.edges) - 1)

    tables: dict[str, dict[str, SampleResult | GroupResult]]
    tables = {"samples": {**result.samples}, "groups": {**result.groups}}

    def write(path: Path) -> None:
        with uproot.recreate(path) as file:
            for folder_name, rows in tables.items():
                for key, (name, row) in zip(_keys(rows), rows.items(), strict=True):
                    for channel, bins in (("all", row), *row.channels.items()):
                        title = name if channel == "all" else f"{name}, {channel.replace('mu', '#mu')}"
                        file[f"{folder_name}/{key}/{channel}"] = _filled(bins, axis, title)

    return write_whole(folder / "histograms.root", write)


def _keys(names: Iterable[str]) -> list[str]:
    """Make names that a path in a ROOT file, and what is typed to get there, can hold; each once."""
    keys: list[str] = []
    for name in names:
        key = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.") or "unnamed"
        numbered = (f"{key}_{number}" for number in count(2))
        keys.append(next(free for free in chain((key,), numbered) if free not in keys))
    return keys


def _filled(bins: Bins, axis: Axis, title: str) -> object:
    """Make a TH1D that ROOT has nothing to guess of: raw entries, errors of the flow bins, sums for mean and width.

    Those sums leave the flow bins out and take bins at their centres, as ``TH1::ResetStats`` does: nothing else is
    known of an event that is in a bin.
    """
    from uproot.writing.identify import to_TAxis, to_TH1x  # noqa: PLC0415 (a second to import)

    centres = (axis.edges[1:] + axis.edges[:-1]) / 2
    sumw, sumw2 = np.array(bins.sumw), np.array(bins.sumw2)
    flow2 = np.array([bins.underflow_sumw2, bins.overflow_sumw2], np.float64)  # nan where an old result lacks them
    return to_TH1x(
        fName=None,
        fTitle=title,
        data=np.array([bins.underflow, *sumw, bins.overflow]),
        fEntries=float(bins.n_out),
        fTsumw=sumw.sum(),
        fTsumw2=sumw2.sum(),
        fTsumwx=(sumw * centres).sum(),
        fTsumwx2=(sumw * centres**2).sum(),
        fSumw2=np.array([flow2[0], *sumw2, flow2[1]]),
        fXaxis=to_TAxis("xaxis", "m_{4#it{l}} [GeV]", axis.bins, axis.start, axis.stop),
        fYaxis=to_TAxis("yaxis", f"Events / {(axis.stop - axis.start) / axis.bins:g} GeV", 1, 0.0, 1.0),
    )
