"""A run's files, for whoever asks for them. No Streamlit here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hzzray.output import save_root
from hzzray.result import Result


def content(path: Path, result: Result) -> Callable[[], bytes]:
    """Read a run's file when it is asked for, or make it of the result where the run hasn't yet."""

    def read() -> bytes:
        if path.exists():
            return path.read_bytes()
        with tempfile.TemporaryDirectory() as name:
            if path.suffix == ".root":
                save_root(result, Path(name))
            elif path.suffix in (".png", ".pdf"):
                from hzzray.plotting import save  # noqa: PLC0415 (matplotlib: only where there is no picture yet)

                save(result, Path(name))
            return (Path(name) / path.name).read_bytes()

    return read
