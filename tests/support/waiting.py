"""Waiting for something to happen, not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], within: float = 90.0, every: float = 0.02) -> T:
    """Ask until the answer is yes, and return it; fails naming what was waited for."""
    until = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < until, f"waited {within:g} s for {what}"
        time.sleep(every)
    return answer
