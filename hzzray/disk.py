"""Whether the disk has room for what a run can't make again."""

from __future__ import annotations

import shutil
from pathlib import Path

#: What a run's next commits and files need on the disk, at the least [bytes].
ROOM = 8 * 2**20


def full_disk(runs: Path) -> str | None:
    """Say that the disk of the runs is full; None while there is room, or where nobody can tell."""
    try:
        free = shutil.disk_usage(next(place for place in (runs, *runs.resolve().parents) if place.exists())).free
    except OSError:
        return None
    if free >= ROOM:
        return None
    return f"the disk of {runs} is full ({free / 1e6:.1f} MB left): no result can be stored until there is room"
