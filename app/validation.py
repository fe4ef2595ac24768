"""What a run's folder says is somebody else's word: whether its result can be shown. No Streamlit here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from pydantic import BaseModel

from hzzray.runs.result import Bins, GroupResult, Result, SampleResult

#: What no name, and no reason why a task failed, is longer than [characters].
TEXT = 4000

# Bins of an axis, at the most: a browser draws each several times.
_BINS = 2000

# What counts may be: more is no number of events or bytes.
_MOST = 2**62

# A colour by its number or its name: no address of a picture to fill with.
_COLOUR = re.compile(r"#[0-9A-Fa-f]{3,8}|[A-Za-z0-9:]{1,40}")


def doubt(result: Result) -> str | None:
    """Say in one line why a result can't be shown; None for one that can."""
    return next(_doubts(result), None)


def _doubts(result: Result) -> Iterator[str]:
    if any(len(text) > TEXT for text in _texts(result)):
        yield f"it has a text of more than {TEXT} characters"
    edges = result.edges
    if not 2 <= len(edges) <= _BINS + 1 or not _finite(edges) or any(a >= b for a, b in pairwise(edges)):
        yield f"its bins are not 1 to {_BINS} that follow each other"
    yield from _doubts_of_samples(result)
    yield from _doubts_of_groups(result)
    rows: list[tuple[str, SampleResult | GroupResult]] = [*result.samples.items(), *result.groups.items()]
    for name, row in rows:
        if not all(_fits(bins, len(edges) - 1) for bins in (row, *row.channels.values())):
            yield f"the bins of {name[:60]!r} are not those of its axis, or hold what is no number"
    cost = result.cost
    if not _finite((*(result.significance.window or ()), cost.wall_s, cost.cpu_s, cost.read_s, cost.events_per_s)):
        yield "it holds what is no number"
    if max(cost.events, cost.bytes_read, result.tasks.planned, result.significance.n_data or 0) > _MOST:
        yield "it holds a number that is too large"


def _doubts_of_samples(result: Result) -> Iterator[str]:
    cuts = list(result.spec.rows)
    for name, sample in result.samples.items():
        if sample.group not in result.groups:
            yield f"its sample {name[:60]!r} is of no group"
        if [row.cut for row in sample.cutflow] not in ([], cuts):
            yield f"the cutflow of its sample {name[:60]!r} is not its selection's"
        if not 0 <= sample.entries <= _MOST or not 0 <= sample.planned <= _MOST:
            yield f"the entries of its sample {name[:60]!r} can't be"


def _doubts_of_groups(result: Result) -> Iterator[str]:
    for name, group in result.groups.items():
        if not _COLOUR.fullmatch(group.colour):
            yield f"the colour of its group {name[:60]!r} is none"
        counts = [n for bins in (group, *group.channels.values()) for n in bins.sumw]
        if group.role == "data" and any(n < 0 or not n.is_integer() for n in counts):
            yield f"the data of its group {name[:60]!r} are no counts"


def _fits(bins: Bins, number: int) -> bool:
    rest = (bins.underflow, bins.overflow, bins.yield_, bins.yield_error)
    return (
        len(bins.sumw) == len(bins.sumw2) == number
        and _finite(bins.sumw)
        and _finite(bins.sumw2)
        and _finite(rest)
        and min(bins.sumw2, default=0.0) >= 0
        and abs(bins.n_out) <= _MOST
    )


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def _texts(value: object) -> Iterator[str]:
    """All texts in a value, names of fields and keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel):
        yield from _texts(vars(value))
    elif isinstance(value, Mapping):
        yield from _texts(list(value.keys()))
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple) and value and not isinstance(value[0], float):
        for part in value:
            yield from _texts(part)
