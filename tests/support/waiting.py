"""Waiting for something to happen, not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LONGEST_S = 0.5


def wait_for(what: str, condition: Callable[[], T], within: float = 90.0, every: float = 0.02) -> T:
    """Ask until the answer is yes, and return it; fails naming what was waited for.

    What takes long to ask is asked less often: whoever is waited for needs the machine.
    """
    until = time.monotonic() + within
    while True:
        begun = time.monotonic()
        if answer := condition():
            return answer
        now = time.monotonic()
        assert now < until, f"waited {within:g} s for {what}"
        time.sleep(max(every, min(_LONGEST_S, 5 * (now - begun))))
