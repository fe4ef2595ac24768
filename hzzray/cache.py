"""Where hzzray keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path | None:
    """Find the folder of caches, absolute: ``HZZRAY_CACHE`` (empty for none), else the user's own."""
    chosen = os.environ.get("HZZRAY_CACHE")
    if chosen == "":
        return None
    return Path(chosen).absolute() if chosen else platformdirs.user_cache_path("hzzray")
