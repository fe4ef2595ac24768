"""Trying again what may pass by itself: bounded, with back-off and jitter."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hzzray.errors import TransientError

if TYPE_CHECKING:
    import tenacity

_FIRST_S = 0.2
_LONGEST_S = 5.0


def retrying(attempts: int) -> tenacity.Retrying:
    """Call a function up to ``attempts`` times while it raises TransientError; the last one goes through."""
    import tenacity  # noqa: PLC0415 (it loads all of tornado where that is there; most processes retry nothing)

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential(multiplier=_FIRST_S, max=_LONGEST_S) + tenacity.wait_random(0, _FIRST_S),
        retry=tenacity.retry_if_exception_type(TransientError),
        reraise=True,
    )


def waits(
    first_s: float, longest_s: float, uniform: Callable[[float, float], float] = random.uniform
) -> Iterator[float]:
    """Yield waits in seconds that double from the first to the longest, with jitter, without end."""
    wait = first_s
    while True:
        yield wait * uniform(0.5, 1.0)
        wait = min(longest_s, 2 * wait)
