"""How computations that take long tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Is told what is done, how far it is, and how long it will be."""


def quiet(what: str, done: int, total: int) -> None:
    """Tell nobody."""
