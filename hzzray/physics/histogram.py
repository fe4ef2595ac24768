"""Histograms whose sums are exact, so that no order, chunking or number of workers can change a bit of them.

A double is an integer times a power of two. Here it is cut into 32-bit limbs of one wide fixed-point number, and each
limb is added in an int64 of its own; carries are settled once at the end. Integer addition commutes, so every way to
cut and merge a run gives the same number, and that number is the exact sum: weights of 1e-7 next to weights of 100
lose nothing, nor do their squares. (Two limbs of 2⁻⁵⁰ would keep a square of 1e-14 to a few per cent only.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import deflate
import numpy as np
from numpy.typing import NDArray

#: Limbs of 32 bits an exact sum has. The least bit is worth 2**-UNIT_BITS; the largest sum is 2**63.
LIMBS = 6
UNIT_BITS = 128
_ONE = 1 << UNIT_BITS
LIMB_BITS = 32

#: Weights from here on are refused: their squares would leave the exact range.
MAX_WEIGHT = 2.0**30

#: Bins that an axis may have: a spec from the wire can't ask for more memory than a worker has.
MAX_BINS = 10_000

# Beyond, the edges of an axis are no numbers that a plot or a page could show.
_FAR = 1e30

_MASK = np.int64(2**LIMB_BITS - 1)


@dataclass(frozen=True, slots=True)
class Axis:
    """A regular axis in GeV. ``bins`` bins of equal width from ``start`` to ``stop``."""

    start: float
    stop: float
    bins: int

    def __post_init__(self) -> None:
        """Refuse an empty axis, one of more than ``MAX_BINS``, or of bins without width; raises ValueError."""
        if self.bins != int(self.bins):
            raise ValueError(f"an axis has a whole number of bins, not {self.bins:g}")
        if not (self.bins > 0 and self.start < self.stop and np.isfinite([self.start, self.stop]).all()):
            raise ValueError(f"an axis needs start < stop and at least one bin, not {self}")
        if self.bins > MAX_BINS:
            raise ValueError(f"an axis has {MAX_BINS} bins at most, not {self.bins}")
        if max(abs(self.start), abs(self.stop)) > _FAR or not (np.diff(self.edges) > 0).all():
            raise ValueError(f"an axis from {self.start:g} to {self.stop:g} has bins that can't be told apart")

    @property
    def edges(self) -> NDArray[np.float64]:
        """Bin edges in GeV, shape (bins + 1,)."""
        return np.linspace(self.start, self.stop, self.bins + 1)

    @property
    def width(self) -> float:
        """Width of a bin in GeV."""
        return (self.stop - self.start) / self.bins

    def window(self, low: float, high: float) -> slice:
        """Bins that a window of GeV consists of; raises ValueError where its ends aren't edges of this axis.

        What is counted in it is what lies between its two ends, never in fewer or more bins.
        """
        asked, form = f"window {low:g} to {high:g} GeV", f"{self.bins} bins from {self.start:g} to {self.stop:g} GeV"
        if not low < high:
            raise ValueError(f"{asked}: a window needs low < high")
        tolerance = 1e-9 * (self.stop - self.start)
        if not (self.start - tolerance <= low and high <= self.stop + tolerance):
            raise ValueError(f"{asked} leaves the axis: {form}")
        first, last = (round((end - self.start) / self.width) for end in (low, high))
        edges = self.edges
        if abs(edges[first] - low) > tolerance or abs(edges[last] - high) > tolerance:
            last = max(last, first + 1) if first < self.bins else last
            first = min(first, last - 1)
            raise ValueError(f"{asked} doesn't lie on bin edges ({form}); {edges[first]:g} to {edges[last]:g} GeV does")
        if first == last:  # narrower than what edges are told apart by
            raise ValueError(f"{asked} holds no bin: {form}")
        return slice(first, last)


@dataclass(frozen=True, eq=False, slots=True)
class ExactSums:
    """An array of exact sums: int64 limbs, shape (…, LIMBS), least significant first."""

    limbs: NDArray[np.int64]

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> Self:
        """Make sums of nothing."""
        return cls(np.zeros((*shape, LIMBS), np.int64))

    def settled(self) -> ExactSums:
        """Return the canonical form: every limb but the last in [0, 2**32). Needed after 2**30 additions at most."""
        limbs = self.limbs.copy()
        _carry(limbs)
        return ExactSums(limbs)

    def __add__(self, other: ExactSums) -> ExactSums:
        """Add exactly; the result is settled."""
        return ExactSums(self.limbs + other.limbs).settled()

    def __sub__(self, other: ExactSums) -> ExactSums:
        """Take back exactly what was added; the result is settled."""
        return ExactSums(self.limbs - other.limbs).settled()

    def sum(self, axis: int | tuple[int, ...] | None = None) -> ExactSums:
        """Sum over leading axes (all by default), exactly; the result is settled."""
        leading = tuple(range(self.limbs.ndim - 1)) if axis is None else axis
        return ExactSums(self.settled().limbs.sum(axis=leading)).settled()

    def __getitem__(self, key: Any) -> ExactSums:  # noqa: ANN401 (what numpy takes as an index)
        """Select sums by the leading axes."""
        return ExactSums(self.limbs[key])

    def floats(self) -> NDArray[np.float64]:
        """Round each sum to the nearest double; shape (…)."""
        flat = self.limbs.reshape(-1, LIMBS)
        out = np.zeros(len(flat))
        some = np.flatnonzero(flat.any(axis=1))  # most bins of most samples are empty
        out[some] = [_nearest(row) for row in flat[some].tolist()]
        return out.reshape(self.limbs.shape[:-1])

    def equal(self, other: ExactSums) -> bool:
        """Tell whether two arrays hold the same numbers."""
        return bool(np.array_equal(self.settled().limbs, other.settled().limbs))


def _carry(limbs: NDArray[np.int64]) -> None:
    """Settle sums where they are: one limb after the other hands on what is beyond its bits, or lacking."""
    for i in range(LIMBS - 1):
        limb = limbs[..., i]
        limbs[..., i + 1] += limb >> LIMB_BITS
        limb &= _MASK


def _nearest(limbs: list[int]) -> float:
    """Round one exact sum to a double."""
    total = 0
    for limb in reversed(limbs):
        total = (total << LIMB_BITS) + limb
    return total / _ONE  # of two integers, and so rounded once


@dataclass(frozen=True, eq=False, slots=True)
class Histogram:
    """One template of one sample, in all regions, and the cutflow before it: what an analysis made of some events.

    Attributes
    ----------
    counts
        Raw events in each bin, int64, shape (regions, bins + 2): under- and overflow are the first and last bins.
    sumw, sumw2
        Exact sums of weights and of their squares, same shape.
    stopped
        Raw events that each row of the cutflow lost, int64, shape (cuts,). Row i stopped at cut i; none stops at row 0.
    stopped_sumw
        Exact sum of those events' weights, shape (cuts,).
    invalid
        Events with nan or inf, int64, shape (2,): in a lepton, in a weight. They stop at the second row.
    entries
        Events read.
    """

    counts: NDArray[np.int64]
    sumw: ExactSums
    sumw2: ExactSums
    stopped: NDArray[np.int64]
    stopped_sumw: ExactSums
    invalid: NDArray[np.int64]
    entries: int

    def cutflow(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Raw and weighted events that are left after each cut, shape (cuts,) each."""
        passed = int(self.counts.sum())
        lost = self.stopped[::-1].cumsum()[::-1]
        n = passed + np.append(lost[1:], 0)
        # What is left after the last cut, and at each cut before it what that one stops besides.
        steps = np.concatenate((self.sumw.sum().limbs[np.newaxis], self.stopped_sumw.settled().limbs[:0:-1]))
        weighted = ExactSums(steps.cumsum(axis=0)).settled()
        return n, weighted.floats()[: len(self.stopped)][::-1]

    def yields(self) -> Yields:
        """Round all of it to doubles."""
        n, sumw = self.cutflow()
        return Yields(
            self.counts.copy(), self.sumw.floats(), self.sumw2.floats(), n, sumw, self.invalid.copy(), self.entries
        )

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        """The contents as int64 arrays in canonical form, in a fixed order."""
        return (
            self.counts,
            self.sumw.settled().limbs,
            self.sumw2.settled().limbs,
            self.stopped,
            self.stopped_sumw.settled().limbs,
            self.invalid,
            np.array([self.entries], np.int64),
        )

    def to_bytes(self) -> bytes:
        """Write the contents as little-endian int64, in canonical form."""
        return b"".join(array.astype("<i8").tobytes() for array in self.arrays)


class Yields(NamedTuple):
    """A histogram in doubles, each the nearest one to the exact sum: what is shown of it.

    ``n`` (int64), ``sumw``, ``sumw2`` (float64) have shape (regions, bins + 2); ``left`` (int64) and ``left_sumw``
    (float64) are raw and weighted events after each cut, shape (cuts,); ``invalid`` and ``entries`` as in Histogram.
    """

    n: NDArray[np.int64]
    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]
    left: NDArray[np.int64]
    left_sumw: NDArray[np.float64]
    invalid: NDArray[np.int64]
    entries: int


class Shape(NamedTuple):
    """The form of all that a run fills of a sample: regions, bins of each template, rows of the cutflow.

    Template after template, region after region, bin after bin with flow bins first and last: so cells are numbered.
    After them come, for each of the ``directions`` of the run's variations, those of the first ``varied`` templates.
    """

    regions: int
    bins: tuple[int, ...]
    rows: int
    directions: int = 0
    varied: int = 0

    @property
    def nominal(self) -> int:
        """Cells of all templates."""
        return self._cells(len(self.bins))

    @property
    def cells(self) -> int:
        """Cells of all templates and variations."""
        return self.nominal + self.directions * self._cells(self.varied)

    def block(self, direction: int) -> slice:
        """Find the cells of a direction: of its templates those that ``slice`` has, counted from its start."""
        each = self._cells(self.varied)
        first = self.nominal + direction * each
        return slice(first, first + each)

    def only(self, template: int) -> Shape:
        """Tell the form of one template alone, without variations."""
        return Shape(self.regions, (self.bins[template],), self.rows)

    def slice(self, template: int) -> slice:
        """Find the cells of a template."""
        first = self._cells(template)
        return slice(first, first + self.regions * (self.bins[template] + 2))

    def _cells(self, templates: int) -> int:
        """Count the cells of the first templates."""
        return self.regions * sum(bins + 2 for bins in self.bins[:templates])


#: Numbers of a cell, int64: its count, the limbs of its sum of weights, those of its sum of squared weights.
_CELL = 1 + 2 * LIMBS
_W, _W2 = slice(1, 1 + LIMBS), slice(1 + LIMBS, _CELL)

#: What ``pack`` writes first: its form, entries, events that are invalid for two reasons, touched cells, those of
#: them whose Σw is negated, which numbers of a cell are written (a bit each), whether these fit into 32 bits.
_HEAD, _FORM = 8, 6

#: Bytes of the check sum.
_CHECK = 4

#: For so many sets of numbers in use there is an array of its own, to which adding is three times as fast.
_ALIKE = 4


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """What an analysis made of some events of one sample: all its templates. Merged by ``+``, taken back by ``-``.

    Attributes
    ----------
    cells
        For each cell of a Shape its count and the settled limbs of its two sums, int64, shape (cells, 1 + 2 · LIMBS).
    stopped
        Count and settled limbs of the sum of weights of the events that each row of the cutflow lost, int64, shape
        (rows, 1 + LIMBS).
    invalid, entries
        As Histogram has them.
    """

    shape: Shape
    cells: NDArray[np.int64]
    stopped: NDArray[np.int64]
    invalid: NDArray[np.int64]
    entries: int

    @classmethod
    def zeros(cls, shape: Shape) -> Self:
        """Make the blocks of no events."""
        return cls(
            shape,
            np.zeros((shape.cells, _CELL), np.int64),
            np.zeros((shape.rows, 1 + LIMBS), np.int64),
            np.zeros(2, np.int64),
            0,
        )

    @classmethod
    def settled(
        cls,
        shape: Shape,
        cells: NDArray[np.int64],
        stopped: NDArray[np.int64],
        invalid: NDArray[np.int64],
        entries: int,
    ) -> Self:
        """Make blocks of limbs that have carries still."""
        for limbs in (cells[:, _W], cells[:, _W2], stopped[:, _W]):
            _carry(limbs)
        return cls(shape, cells, stopped, invalid, entries)

    def __add__(self, other: Blocks) -> Blocks:
        """Merge two blocks of the same shape."""
        return Blocks.settled(
            self.shape,
            self.cells + other.cells,
            self.stopped + other.stopped,
            self.invalid + other.invalid,
            self.entries + other.entries,
        )

    def __sub__(self, other: Blocks) -> Blocks:
        """Take back blocks that were merged before."""
        return Blocks.settled(
            self.shape,
            self.cells - other.cells,
            self.stopped - other.stopped,
            self.invalid - other.invalid,
            self.entries - other.entries,
        )

    def histogram(self, template: int = 0) -> Histogram:
        """Show one template, with the cutflow."""
        cells = self._template(self.cells, template)
        return Histogram(
            cells[..., 0],
            ExactSums(cells[..., _W]),
            ExactSums(cells[..., _W2]),
            self.stopped[:, 0],
            ExactSums(self.stopped[:, _W]),
            self.invalid,
            self.entries,
        )

    def varied(self, template: int, direction: int) -> tuple[ExactSums, ExactSums]:
        """Show one direction of a template: exact sums of weights, and of their squares, shape (regions, bins + 2)."""
        cells = self._template(self.cells[self.shape.block(direction)], template)
        return ExactSums(cells[..., _W]), ExactSums(cells[..., _W2])

    def varied_sha(self) -> str:
        """SHA-256 of the exact contents of all variations; empty where the shape has none."""
        cells = self.cells[self.shape.block(0).start :]
        return hashlib.sha256(cells.astype("<i8").tobytes()).hexdigest() if self.shape.directions else ""

    def _template(self, cells: NDArray[np.int64], template: int) -> NDArray[np.int64]:
        return cells[self.shape.slice(template)].reshape(self.shape.regions, -1, _CELL)

    def pack(self) -> bytes:
        """Write them for the wire and the ledger: those cells that an event fell into, and of these the limbs in use.

        Limbs of 32 bits are as good as random, so that nothing is compressed. A check sum is at the end.
        """
        at = np.flatnonzero(self.cells[:, 0])
        return Touched(self.shape, at, self.cells[at], self.stopped, self.invalid, self.entries).pack()

    @classmethod
    def unpack(cls, packed: bytes, shape: Shape) -> Self:
        """Read ``pack``; raises ValueError on damage or another shape."""
        return cls.total((packed,), shape)

    @classmethod
    def total(cls, packed: Iterable[bytes], shape: Shape, template: int | None = None) -> Self:
        """Add up what ``pack`` made, at most 2**30 of it; raises ValueError on damage or another shape.

        Of one template alone, where one is asked for: of the shape that ``Shape.only`` tells.
        """
        whole = cls.zeros(shape if template is None else shape.only(template))
        wanted = slice(0, shape.cells) if template is None else shape.slice(template)
        entries = 0
        alike: dict[int, NDArray[np.int64]] = {}
        for body in packed:
            one = _read(body, shape)
            entries += one.entries
            whole.invalid[:] += one.invalid
            # Carries can wait: they are settled once for all.
            whole.stopped[:] += one.stopped
            used = _used(one.limbs)
            if one.limbs not in alike and len(alike) < _ALIKE:
                alike[one.limbs] = np.zeros((whole.shape.cells, len(used)), np.int64)
            rows = one.rows
            if len(one.negative):
                rows = rows.astype(np.int64)
                rows[one.negative, slice(*np.searchsorted(used, (_W.start, _W.stop)))] *= -1
            those = slice(*np.searchsorted(one.at, (wanted.start, wanted.stop)))
            at, rows = one.at[those].astype(np.int64) - wanted.start, rows[those]
            if one.limbs in alike:
                alike[one.limbs][at] += rows
            else:
                whole.cells[at[:, None], used] += rows
        for limbs, sums in alike.items():
            whole.cells[:, _used(limbs)] += sums
        return cls.settled(whole.shape, whole.cells, whole.stopped, whole.invalid, entries)


class Touched(NamedTuple):
    """Blocks without the cells that no event fell into: of the others, numbered by ``at``, the ``rows`` (int64)."""

    shape: Shape
    at: NDArray[np.int64]
    rows: NDArray[np.int64]
    stopped: NDArray[np.int64]
    invalid: NDArray[np.int64]
    entries: int

    def blocks(self) -> Blocks:
        """Make them whole."""
        cells = np.zeros((self.shape.cells, _CELL), np.int64)
        cells[self.at] = self.rows
        return Blocks(self.shape, cells, self.stopped, self.invalid, self.entries)

    def pack(self) -> bytes:
        """Write them: see ``Blocks.pack``. The rows are good for nothing after that."""
        rows = self.rows
        negative = np.flatnonzero(rows[:, _W.stop - 1] < 0)
        if len(negative):  # they would be of ones up to the last
            rows[negative, _W] = ExactSums(-rows[negative, _W]).settled().limbs
        bits = np.bitwise_or.reduce(rows, axis=0)
        used = np.flatnonzero(bits)
        fits = bool((bits >= 0).all() and (bits <= _MASK).all())
        kept = rows.astype("<u4" if fits else "<i8").take(used, axis=1)
        limbs = int((1 << used).sum())
        form = [_FORM, self.entries, *self.invalid.tolist(), len(rows), len(negative), limbs, fits]
        parts = (
            np.array(form, "<i8"), self.stopped.astype("<i8"), kept, self.at.astype("<u4"), negative.astype("<u4")
        )  # fmt: skip
        body = b"".join(part.tobytes() for part in parts)
        return body + deflate.crc32(body).to_bytes(_CHECK, "little")


class _Packed(NamedTuple):
    """What ``pack`` wrote: cells that were touched, which of their numbers are written, whose Σw are negated."""

    entries: int
    invalid: NDArray[np.int64]
    stopped: NDArray[np.int64]
    limbs: int
    rows: NDArray[np.int64 | np.uint32]
    at: NDArray[np.uint32]
    negative: NDArray[np.uint32]


def _used(limbs: int) -> NDArray[np.int64]:
    """List which numbers of a cell are in use."""
    return np.array([column for column in range(_CELL) if limbs >> column & 1], np.int64)


def _read(body: bytes, shape: Shape) -> _Packed:
    """Find the parts of what ``pack`` wrote; raises ValueError on damage or another shape."""
    fixed = 8 * (_HEAD + shape.rows * (1 + LIMBS))
    if len(body) < fixed + _CHECK:
        raise ValueError(f"{len(body)} bytes are not those of {shape.rows} cuts")
    if deflate.crc32(memoryview(body)[:-_CHECK]) != int.from_bytes(body[-_CHECK:], "little"):
        raise ValueError("its check sum is another one")
    head = np.frombuffer(body, "<i8", _HEAD)
    form, entries, _, _, touched, negatives, limbs, fits = head.tolist()
    if form != _FORM or not 0 <= limbs < 1 << _CELL:
        raise ValueError(f"form {form} is not {_FORM}")
    width = 4 if fits else 8
    used = limbs.bit_count()
    if min(touched, negatives) < 0 or len(body) != fixed + touched * (used * width + 4) + 4 * negatives + _CHECK:
        raise ValueError(f"{len(body)} bytes are not those of {shape.rows} cuts and {touched} cells")
    stopped = np.frombuffer(body, "<i8", shape.rows * (1 + LIMBS), 8 * _HEAD).reshape(shape.rows, 1 + LIMBS)
    rows = np.frombuffer(body, "<u4" if fits else "<i8", touched * used, fixed).reshape(touched, used)
    at = np.frombuffer(body, "<u4", touched, fixed + rows.nbytes)
    negative = np.frombuffer(body, "<u4", negatives, fixed + rows.nbytes + at.nbytes)
    for rising, most in ((at, shape.cells), (negative, touched)):
        if len(rising) and not (rising[-1] < most and (rising[1:] > rising[:-1]).all()):
            raise ValueError(f"cells are not in order, or not among the {most} of this shape")
    return _Packed(entries, head[2:4], stopped, limbs, rows, at, negative)


def varied_digest(samples: Mapping[str, str]) -> str:
    """SHA-256 over what names the exact contents of samples' variations (``Blocks.varied_sha``); empty for none."""
    if not any(samples.values()):
        return ""
    return hashlib.sha256("".join(f"{name}\0{samples[name]}\0" for name in sorted(samples)).encode()).hexdigest()


def digest(histograms: Mapping[str, Histogram]) -> str:
    """SHA-256 over the names and the exact contents of histograms, whatever their order."""
    sha = hashlib.sha256()
    for name in sorted(histograms):
        body = histograms[name].to_bytes()
        sha.update(f"{name}\0{len(body)}\0".encode())
        sha.update(body)
    return sha.hexdigest()
