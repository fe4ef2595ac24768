"""Adding packed histograms in one go, and settling carries."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hzzray.physics.histogram import LIMB_BITS, LIMBS, UNIT_BITS, ExactSums, Histogram

SHAPE = 3, 5, 4


def random_histogram(seed: int) -> Histogram:
    """Fill a histogram of SHAPE with numbers of which every limb is used; the last one of some is negative."""
    rng = np.random.default_rng(seed)
    made = Histogram.zeros(*SHAPE)
    for sums in (made.sumw, made.sumw2, made.stopped_sumw):
        sums.limbs[:] = rng.integers(0, 2**LIMB_BITS, sums.limbs.shape)
        sums.limbs[..., -1] = rng.integers(-(2**20), 2**20, sums.limbs.shape[:-1])
    made.counts[:] = rng.integers(0, 1000, made.counts.shape)
    made.stopped[:] = rng.integers(0, 1000, made.stopped.shape)
    made.invalid[:] = rng.integers(0, 9, 2)
    return made + Histogram(*(getattr(Histogram.zeros(*SHAPE), name) for name in FIELDS), seed)


FIELDS = ("counts", "sumw", "sumw2", "stopped", "stopped_sumw", "invalid")


@given(st.lists(st.integers(0, 10**6), max_size=8))
def test_the_total_of_packed_ones_is_their_sum(seeds):
    made = [random_histogram(seed) for seed in seeds]
    total = Histogram.total([one.pack() for one in made], *SHAPE)
    assert total.to_bytes() == reduce(add, made, Histogram.zeros(*SHAPE)).to_bytes()
    assert total.entries == sum(seeds)


@given(st.integers(0, 10**6))
def test_packing_loses_nothing(seed):
    made = random_histogram(seed)
    assert Histogram.unpack(made.pack(), *SHAPE).to_bytes() == made.to_bytes()
    assert Histogram.from_bytes(made.to_bytes(), *SHAPE).to_bytes() == made.to_bytes()


def test_damage_and_another_shape_are_refused():
    packed = random_histogram(1).pack()
    with pytest.raises(ValueError, match="a histogram of this shape has"):
        Histogram.unpack(packed, 3, 6, 4)
    with pytest.raises(ValueError, match="a histogram of this shape has"):
        Histogram.total([packed, Histogram.zeros(1, 1, 1).pack()], *SHAPE)
    with pytest.raises(ValueError, match="incomplete"):
        Histogram.unpack(packed[: len(packed) // 2], *SHAPE)
    with pytest.raises(ValueError, match="incorrect header"):
        Histogram.unpack(b"no zlib stream", *SHAPE)


@given(arrays(np.int64, (4, LIMBS), elements=st.integers(-(2**60), 2**60)))
def test_settling_keeps_the_numbers(limbs):
    settled = ExactSums(limbs).settled().limbs
    assert ((settled[:, :-1] >= 0) & (settled[:, :-1] < 2**LIMB_BITS)).all()
    for before, after in zip(limbs.tolist(), settled.tolist(), strict=True):
        # What goes beyond the last limb's 64 bits is outside the range that the module promises.
        values = [sum(limb << (LIMB_BITS * i) for i, limb in enumerate(row)) for row in (before, after)]
        assert values[0] == values[1]


def test_a_carry_runs_through_all_limbs():
    ones = np.array([[2**LIMB_BITS - 1] * (LIMBS - 1) + [0]])
    least = np.array([[1] + [0] * (LIMBS - 1)])
    up = ExactSums(ones) + ExactSums(least)
    assert up.limbs.tolist() == [[0] * (LIMBS - 1) + [1]]
    assert (up - ExactSums(least)).limbs.tolist() == ones.tolist()
    assert up.floats()[0] == 2.0 ** (LIMB_BITS * (LIMBS - 1) - UNIT_BITS)
