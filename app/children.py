"""Processes of the app's own. The app is no installed package: it lies in a checkout, or in the image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process' environment, and ``more``, for a child that finds the app's modules."""
    paths = (str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}
