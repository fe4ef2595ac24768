"""What a measurement asks of the machine: that it rests, and that files are in the page cache."""

from __future__ import annotations

import time
from pathlib import Path

import psutil


def settle(bound_s: float = 60.0) -> None:
    """Wait until the machine has been idle for two seconds: a new cluster works on itself for some ten."""
    until = time.monotonic() + bound_s
    while psutil.cpu_percent(2.0) > 10 and time.monotonic() < until:
        pass


def warm(folder: Path) -> None:
    """Read all of a folder's ROOT files: a machine may let go of pages that nobody asked for in a while."""
    for path in folder.rglob("*.root"):
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass
