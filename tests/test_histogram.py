"""Exact sums against exact fractions, and the histograms that are made of them."""

import dataclasses
import hashlib
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hzzray.physics.fill import Sums
from hzzray.physics.filler import exact
from hzzray.physics.histogram import LIMBS, MAX_WEIGHT, Axis, Blocks, ExactSums, Shape, digest
from hzzray.physics.limbs import CELL, COUNT, SUMW, SUMW2
from tests.support.exact import add_exact, rounded, value

PROFILE = settings(deadline=None, derandomize=True, database=None)

# Magnitudes from far below the least bit to the largest that a weight or its square may have.
MAGNITUDES = st.one_of(
    st.floats(1e-30, 1e9),
    st.floats(0.0, 1e-30),
    st.floats(0.0, 2.0**-1022, allow_subnormal=True),
    st.floats(0.0, 2.0**60, exclude_max=True),
    st.sampled_from([2.0**-128, 2.0**-129, 3 * 2.0**-129, 5 * 2.0**-129, 2.0**-130, 2.0**-181, 2.0**-182, 2.0**-183]),
    st.sampled_from(
        [5e-324, 2.2250738585072014e-308, 1.0, 2.0**32, 2.0**32 - 1, 2.0**31, 2.0**-96, 1.1, 2.0**60 - 256]
    ),
    st.integers(-181, 60).map(lambda e: math.nextafter(2.0**e, 0.0)),
)
NUMBERS = st.builds(math.copysign, MAGNITUDES, st.sampled_from([1.0, -1.0]))


def fill(numbers, sums=None):
    """Add numbers to one sum, as the kernel does."""
    sums = ExactSums.zeros((1,)) if sums is None else sums
    for x in numbers:
        add_exact(sums.limbs, 0, x)
    return sums


def canonical(limbs):
    return bool(((limbs[..., :-1] >= 0) & (limbs[..., :-1] < 2**32)).all())


class TestAxis:
    def test_edges_are_regular_and_end_where_they_should(self):
        edges = Axis(80, 250, 34).edges
        assert edges.shape == (35,)
        assert edges.tolist() == [80.0 + 5 * i for i in range(35)]

    def test_window(self):
        axis = Axis(80, 250, 68)
        window = axis.window(122.5, 130.0)
        assert axis.edges[window].tolist() == [122.5, 125.0, 127.5]
        assert axis.window(80.0, 250.0) == slice(0, 68)
        assert axis.window(80.0, 82.5) == slice(0, 1)
        assert axis.window(247.5, 250.0) == slice(67, 68)

    def test_a_window_forgives_the_rounding_of_an_edge(self):
        axis = Axis(0.0, 0.3, 3)
        low, high = axis.edges[1:3]
        assert axis.window(math.nextafter(low, 1), math.nextafter(high, 0)) == slice(1, 2)

    @pytest.mark.parametrize(
        ("low", "high", "said"),
        [
            (121.0, 131.0, "doesn't lie on bin edges .*; 120 to 130 GeV does"),
            (122.6, 124.9, "doesn't lie on bin edges .*; 122.5 to 125 GeV does"),
            (300.0, 400.0, "leaves the axis"),
            (-1e9, 1e9, "leaves the axis"),
            (130.0, 122.5, "needs low < high"),
            (math.nan, math.nan, "needs low < high"),
        ],
    )
    def test_a_window_that_is_not_of_whole_bins_is_refused(self, low, high, said):
        """Issue 11, item 1: bins that an end cuts were left out without a word."""
        with pytest.raises(ValueError, match=f"window {low:g} to {high:g} GeV.* {said}".replace("+", "[+]")):
            Axis(80, 250, 68).window(low, high)

    @pytest.mark.parametrize(
        "bad",
        [
            (80, 250, 0),
            (80, 250, -1),
            (250, 80, 1),
            (80, 80, 1),
            (math.nan, 1, 1),
            (0, math.inf, 1),
            (-math.inf, 0, 1),
        ],
    )
    def test_an_empty_axis_is_refused(self, bad):
        with pytest.raises(ValueError, match="an axis needs start < stop and at least one bin"):
            Axis(*bad)


class TestExactSums:
    @PROFILE
    @given(NUMBERS)
    def test_one_number_is_held_exactly_or_rounded_at_the_least_bit(self, x):
        assert value(fill([x]).limbs[0]) == rounded(x)

    @PROFILE
    @given(st.lists(NUMBERS, max_size=40))
    @example([1e9, 1e-30, -1e9])
    def test_the_sum_is_exact(self, numbers):
        sums = fill(numbers)
        exact = sum(map(rounded, numbers), Fraction(0))
        assert value(sums.limbs[0]) == exact
        settled = sums.settled()
        assert canonical(settled.limbs)
        assert value(settled.limbs[0]) == exact
        assert sums.floats()[0] == settled.floats()[0] == float(exact)

    @PROFILE
    @given(
        st.lists(NUMBERS, max_size=30),
        st.randoms(use_true_random=False),
        st.lists(st.integers(0, 30), max_size=5),
    )
    def test_neither_order_nor_chunks_change_a_bit(self, numbers, random, cuts):
        shuffled = random.sample(numbers, len(numbers))
        borders = [0, *sorted(min(cut, len(numbers)) for cut in cuts), len(numbers)]
        chunks = [fill(shuffled[a:b]) for a, b in pairwise(borders)]
        random.shuffle(chunks)
        merged = sum(chunks, ExactSums.zeros((1,)))
        whole = fill(numbers)
        assert merged.limbs.tolist() == whole.settled().limbs.tolist()
        assert merged.equal(whole)

    @PROFILE
    @given(st.lists(NUMBERS, max_size=20), st.lists(NUMBERS, max_size=20))
    def test_what_was_added_can_be_taken_back(self, a, b):
        first, second = fill(a), fill(b)
        both = first + second
        assert (both - second).limbs.tolist() == first.settled().limbs.tolist()
        assert canonical((first - second).limbs)
        assert value((first - second).limbs[0]) == value(first.limbs[0]) - value(second.limbs[0])

    @PROFILE
    @given(st.lists(st.floats(2.0**-70, 1e9) | st.floats(-1e9, -(2.0**-70)), max_size=50))
    def test_floats_are_those_of_a_correctly_rounded_sum(self, numbers):
        assert fill(numbers).floats()[0] == math.fsum(numbers)

    def test_floats_round_to_nearest_even_and_never_twice(self):
        half = 2.0**-53
        assert fill([1.0, half]).floats()[0] == 1.0
        assert fill([1.0, half, 2.0**-128]).floats()[0] == 1.0 + 2.0**-52
        assert fill([1.0, 3 * half]).floats()[0] == 1.0 + 2.0**-51
        assert fill([1.0, -1.0]).floats()[0] == 0.0

    def test_small_squares_next_to_large_ones_keep_their_digits(self):
        assert fill([1e4, 1e-14, -1e4]).floats()[0] == 1e-14

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("exponent", [60, 59, 32, 31, 0, -1, -44, -75, -76, -96, -127, -128])
    def test_carries_are_settled_after_as_many_additions_as_are_allowed(self, exponent, sign):
        # One value's limbs times 2**30 are what 2**30 additions leave behind.
        x = sign * (2.0**exponent) * (2 - 2.0**-52 if exponent > -76 else 1.0)
        sums = ExactSums(fill([x]).limbs * 2**30)
        assert value(sums.limbs[0]) == rounded(x) * 2**30, "no limb has overflowed"
        settled = sums.settled()
        assert canonical(settled.limbs)
        assert value(settled.limbs[0]) == rounded(x) * 2**30
        assert settled.settled().limbs.tolist() == settled.limbs.tolist()

    def test_settling_leaves_its_input_alone(self):
        sums = ExactSums(np.full((2, LIMBS), -(2**40), np.int64))
        before = sums.limbs.copy()
        assert canonical(sums.settled().limbs)
        assert (sums.limbs == before).all()

    def test_a_row_of_many_sums_gets_only_what_is_meant_for_it(self):
        sums = ExactSums.zeros((3,))
        add_exact(sums.limbs, 1, -2.5)
        assert sums.floats().tolist() == [0.0, -2.5, 0.0]

    def test_sums_over_axes(self):
        rng = np.random.default_rng(1)
        numbers = rng.normal(0, 10.0 ** rng.uniform(-20, 9, (2, 3, 4)))
        sums = ExactSums.zeros((2, 3, 4))
        for row, x in enumerate(numbers.ravel()):
            add_exact(sums.limbs.reshape(-1, LIMBS), row, x)
        for axis in (0, 1, 2, (0, 1), (1, 2), (0, 1, 2)):
            total = sums.sum(axis=axis)
            assert canonical(total.limbs)
            expected = np.apply_over_axes(np.sum, np.vectorize(rounded, otypes=[object])(numbers), axis)
            assert total.floats().tolist() == np.squeeze(expected, axis).astype(float).tolist()
        assert sums.sum().equal(sums.sum(axis=(0, 1, 2)))
        assert sums.sum().limbs.shape == (LIMBS,)
        assert sums[1, 2].floats().tolist() == numbers[1, 2].tolist()

    def test_a_sum_over_cells_with_full_limbs_does_not_overflow(self):
        sums = ExactSums(np.array([[*[2**61] * (LIMBS - 1), 0]] * 8))
        assert value(sums.sum().limbs) == 8 * value(sums.limbs[0])

    def test_equality_is_that_of_the_numbers_not_of_the_limbs(self):
        open_carry = ExactSums(np.array([[2**32, 0, 0, 0, 0, 0]]))
        settled = ExactSums(np.array([[0, 1, 0, 0, 0, 0]]))
        assert open_carry.equal(settled)
        assert not open_carry.equal(fill([2.0**-128]))
        assert not settled.equal(ExactSums.zeros((2,)))


SHAPE = Shape(3, (5,), 4)


def make(seed, cells=200, shape=SHAPE):
    """Blocks with something everywhere: a template's histogram is a view of them, so that they are filled by it."""
    rng = np.random.default_rng(seed)
    blocks = Blocks.zeros(shape)
    for template in range(len(shape.bins)):
        h = blocks.histogram(template)
        for counts, all_sums in ((h.counts, (h.sumw, h.sumw2)), (h.stopped, (h.stopped_sumw,))):
            for where in rng.integers(0, counts.size, cells):
                index = np.unravel_index(where, counts.shape)
                counts[index] += 1
                for sums in all_sums:
                    add_exact(sums.limbs[index[:-1]], index[-1], rng.normal(0, 10.0 ** rng.uniform(-12, 6)))
    return dataclasses.replace(blocks, invalid=rng.integers(0, 9, 2), entries=2 * cells)


def one_region(bins, rows):
    """A histogram of nothing, to be written into."""
    return Blocks.zeros(Shape(1, (bins,), rows)).histogram()


class TestBlocks:
    def test_nothing_has_the_shape_that_was_asked_for(self):
        blocks = Blocks.zeros(Shape(3, (34, 7), 8))
        for template, bins in enumerate((34, 7)):
            h = blocks.histogram(template)
            assert h.counts.shape == h.sumw.floats().shape == h.sumw2.floats().shape == (3, bins + 2)
            assert h.stopped.shape == h.stopped_sumw.floats().shape == (8,)
            assert h.entries == 0
            assert not any(array.any() for array in h.arrays)
        assert blocks.cells.shape == (3 * (36 + 9), 1 + 2 * LIMBS)

    @PROFILE
    @given(st.integers(0, 2**32))
    def test_accumulators_are_settled_as_numpy_settles_them(self, seed):
        rng = np.random.default_rng(seed)
        counts = rng.integers(0, 3, SHAPE.cells + SHAPE.rows)
        sums = rng.integers(-(2**62), 2**62, (len(counts), CELL)) * (counts > 0)[:, np.newaxis]
        sums[:, COUNT] = counts
        used = [COUNT, *range(SUMW, SUMW + LIMBS), *range(SUMW2, SUMW2 + LIMBS)]
        cells, stopped = np.split(sums, [SHAPE.cells])
        expected = Blocks.settled(SHAPE, cells[:, used], stopped[:, used[: 1 + LIMBS]], np.array([1, 2]), 3)
        made = exact(SHAPE, Sums(cells.ravel(), stopped.ravel(), np.array([1, 2, 4])), 3)
        for field in ("cells", "stopped", "invalid"):
            assert np.array_equal(getattr(made, field), getattr(expected, field)), field
        assert (made.shape, made.entries) == (SHAPE, 3)

    def test_merging_is_commutative_and_associative_and_adds_every_field(self):
        a, b, c = make(1), make(2), make(3)
        assert (a + b).pack() == (b + a).pack()
        assert ((a + b) + c).pack() == (a + (b + c)).pack()
        assert (a + Blocks.zeros(SHAPE)).pack() == (Blocks.zeros(SHAPE) + a).pack()
        both, one, two = ((a + b).histogram(), a.histogram(), b.histogram())
        assert (both.counts == one.counts + two.counts).all()
        assert (both.stopped == one.stopped + two.stopped).all()
        assert (both.invalid == one.invalid + two.invalid).all()
        assert both.entries == one.entries + two.entries == 800
        for name in ("sumw", "sumw2", "stopped_sumw"):
            summed, first, second = (getattr(h, name).limbs.reshape(-1, LIMBS) for h in (both, one, two))
            assert [value(row) for row in summed] == [value(x) + value(y) for x, y in zip(first, second, strict=True)]

    def test_merged_blocks_are_taken_back_to_the_last_bit(self):
        nothing = Blocks.zeros(SHAPE)
        a, b = make(1) + nothing, make(2) + nothing  # settled
        assert ((a + b) - b).pack() == a.pack()
        assert ((a + b) - a).pack() == b.pack()
        assert (a - a).pack() == nothing.pack()
        assert not (a - a).cells.any()

    def test_merging_leaves_what_is_merged_alone(self):
        a, b = make(1), make(2)
        before = [array.tobytes() for of in (a, b) for array in (of.cells, of.stopped, of.invalid)]
        a + b, a - b, Blocks.total([a.pack(), b.pack()], SHAPE)
        assert [array.tobytes() for of in (a, b) for array in (of.cells, of.stopped, of.invalid)] == before

    def test_templates_of_several_lengths_keep_to_their_own_cells(self):
        shape = Shape(2, (3, 1, 6), 2)
        blocks = Blocks.zeros(shape)
        for template, bins in enumerate(shape.bins):
            h = blocks.histogram(template)
            h.counts[:] = 100 * template + np.arange(2 * (bins + 2)).reshape(2, -1)
        assert shape.cells == 2 * (5 + 3 + 8)
        assert [len(blocks.cells[shape.slice(template)]) for template in range(3)] == [10, 6, 16]
        flat = [100 * template + i for template, n in enumerate((10, 6, 16)) for i in range(n)]
        assert blocks.cells[:, 0].tolist() == flat
        again = Blocks.unpack(blocks.pack(), shape)
        assert [again.histogram(template).counts.tolist() for template in range(3)] == [
            blocks.histogram(template).counts.tolist() for template in range(3)
        ]

    def test_all_templates_have_the_cutflow_in_common(self):
        blocks = make(6, shape=Shape(3, (5, 2), 4))
        one, other = blocks.histogram(0), blocks.histogram(1)
        assert one.stopped.tolist() == other.stopped.tolist()
        assert one.stopped_sumw.equal(other.stopped_sumw)
        assert (one.invalid.tolist(), one.entries) == (other.invalid.tolist(), other.entries)


class TestHistogram:
    def test_cutflow(self):
        h = one_region(1, 4)
        h.counts[0] = [1, 2, 3]
        h.stopped[:] = [0, 10, 20, 30]
        for cell, w in enumerate([0.5, 0.25, 2.0]):
            add_exact(h.sumw.limbs[0], cell, w)
        for row, w in enumerate([0.0, -3.0, 1e-20, 8.0]):
            add_exact(h.stopped_sumw.limbs, row, w)
        n, weighted = h.cutflow()
        assert n.tolist() == [66, 56, 36, 6]
        assert weighted.tolist() == [7.75 + 1e-20, 10.75 + 1e-20, 10.75, 2.75]

    def test_the_weighted_cutflow_is_exact_where_weights_cancel(self):
        h = one_region(1, 3)
        for cell, w in enumerate([1e9, 1e-12, -1e9]):
            add_exact(h.sumw.limbs[0], cell, w)
        add_exact(h.stopped_sumw.limbs, 1, 1e9)
        add_exact(h.stopped_sumw.limbs, 2, 1e-12)
        assert h.cutflow()[1].tolist() == [1e9, 2e-12, 1e-12]

    def test_cutflow_of_nothing(self):
        n, weighted = Blocks.zeros(SHAPE).histogram().cutflow()
        assert n.tolist() == weighted.tolist() == [0, 0, 0, 0]

    def test_yields_are_all_of_it_in_doubles(self):
        h = make(7).histogram()
        yields = h.yields()
        assert yields.n.tolist() == h.counts.tolist()
        for rounded_, sums in ((yields.sumw, h.sumw), (yields.sumw2, h.sumw2)):
            exact = [float(value(limbs)) for limbs in sums.limbs.reshape(-1, LIMBS)]
            assert rounded_.ravel().tolist() == exact
        assert [yields.left.tolist(), yields.left_sumw.tolist()] == [part.tolist() for part in h.cutflow()]
        assert (yields.invalid.tolist(), yields.entries) == (h.invalid.tolist(), 400)

    def test_bytes_are_little_endian_int64_in_canonical_form(self):
        h = one_region(1, 2)
        h.counts[0, 0] = 258
        h.sumw.limbs[0, 0, 0] = 2**32
        data = h.to_bytes()
        assert data[:8] == bytes([2, 1, 0, 0, 0, 0, 0, 0])
        assert data[3 * 8 : 5 * 8] == bytes(8) + bytes([1, 0, 0, 0, 0, 0, 0, 0])
        assert len(data) == 8 * (3 * (1 + 2 * LIMBS) + 2 * (1 + LIMBS) + 2 + 1)

    def test_the_digest_does_not_depend_on_the_order_of_names_or_of_merging(self):
        a, b, c = make(1), make(2), make(3)
        one = digest({"x": (a + b + c).histogram(), "y": c.histogram()})
        assert one == digest({"y": c.histogram(), "x": (c + b + a).histogram()})
        assert len(one) == 64
        assert digest({}) == hashlib.sha256().hexdigest()

    def test_the_digest_does_not_depend_on_open_carries(self):
        h = make(1).histogram()
        carried = dataclasses.replace(h, sumw=h.sumw.settled())
        assert carried.sumw.limbs.tolist() != h.sumw.limbs.tolist()
        assert digest({"x": h}) == digest({"x": carried})

    def test_the_digest_sees_every_number_and_every_name(self):
        blocks = make(5) + Blocks.zeros(SHAPE)
        h = blocks.histogram()
        seen = {digest({"x": h}), digest({"y": h}), digest({"x": h, "y": h}), digest({"xy": h})}
        size = 0
        for array in (blocks.cells, blocks.stopped, blocks.invalid):
            flat = array.reshape(-1)
            for i in range(flat.size):
                flat[i] ^= 1
                seen.add(digest({"x": h}))
                flat[i] ^= 1
                size += 1
        seen.add(digest({"x": dataclasses.replace(h, entries=h.entries ^ 1)}))
        assert len(seen) == size + 1 + 4

    def test_the_digest_cannot_be_fooled_by_moving_a_border(self):
        a, b = make(1).histogram(), make(2).histogram()
        assert digest({"x": a, "y": b}) != digest({"x": b, "y": a})

    def test_weights_whose_squares_are_in_range_are_those_below_the_bound(self):
        assert value(fill([MAX_WEIGHT**2]).limbs[0]) == Fraction(MAX_WEIGHT) ** 2
