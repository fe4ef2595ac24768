"""How this project compiles: without the GIL, cached on disk, with IEEE arithmetic as written (no fastmath)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba as nb

_F = TypeVar("_F", bound=Callable[..., Any])


def entry(function: _F) -> _F:
    """Compile what Python calls."""
    return nb.njit(nogil=True, cache=True, error_model="numpy")(function)  # type: ignore[return-value]


def kernel(function: _F) -> _F:
    """Compile what compiled code calls in loops over events.

    It can't allocate: arrays pass without counting references, which would cost more than the work itself.
    """
    compiled: Any = nb.njit(nogil=True, cache=True, error_model="numpy", _nrt=False)(function)  # type: ignore[call-overload]
    return compiled  # type: ignore[no-any-return]


def inlined(function: _F) -> _F:
    """Compile as a part of the caller, so that a loop around it can be vectorised."""
    return nb.njit(nogil=True, inline="always", error_model="numpy")(function)  # type: ignore[return-value]
