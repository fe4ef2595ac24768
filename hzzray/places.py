"""Where hzzray keeps what it can make again, and whether there is room for what it can't."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import platformdirs


def cache_folder() -> Path | None:
    """Find the folder of caches, absolute: ``HZZRAY_CACHE`` (empty for none), else the user's own."""
    chosen = os.environ.get("HZZRAY_CACHE")
    if chosen == "":
        return None
    return Path(chosen).absolute() if chosen else platformdirs.user_cache_path("hzzray")


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
