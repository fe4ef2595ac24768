"""Numbers of a file's type to numbers of a column's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cast(values: NDArray[Any], out: NDArray[Any], *, absolute: bool = False) -> None:
    """Write numbers of any type to ``out``, of a column's type (f4, f8, i4, i8, u1), or their absolute values.

    What is too large for a float becomes infinite, and a signalling nan a quiet one: whether numpy warns of that is up
    to the caller. Of u1 what isn't 0 is 1. Raises ValueError where ``out`` holds integers and something is none, or has
    no place there.
    """
    if out.dtype == np.uint8:
        np.not_equal(values, 0, out=out.view(np.bool_))
        return
    if out.dtype.kind == "i" and not _fit(values, out.dtype, absolute=absolute):
        raise ValueError(f"holds numbers that are no {8 * out.itemsize}-bit integers")
    if absolute and values.dtype.kind in "if":
        np.absolute(values, out=out, dtype=np.promote_types(values.dtype, out.dtype), casting="unsafe")
    else:
        np.copyto(out, values, casting="unsafe")


def _fit(values: NDArray[Any], dtype: np.dtype[Any], *, absolute: bool) -> bool:
    if not len(values) or (np.can_cast(values.dtype, dtype) and not absolute):
        return True
    info = np.iinfo(dtype)
    if values.dtype.kind == "f":  # of which nan is in no range
        limit = float(info.max + 1)
        inside = (values < limit) & (values > -limit if absolute else values >= -limit)
        return bool((inside & (values == np.trunc(values))).all())
    return info.min + absolute <= int(values.min()) and int(values.max()) <= info.max
