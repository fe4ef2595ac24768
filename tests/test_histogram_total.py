"""Packing blocks, adding packed ones in one go, and settling carries."""

from __future__ import annotations

import dataclasses
import zlib
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hzzray.physics.histogram import LIMB_BITS, LIMBS, UNIT_BITS, Blocks, ExactSums, Shape

SHAPE = Shape(3, (5, 2), 4)
CELL = 1 + 2 * LIMBS


def random_rows(rng: np.random.Generator, rows: int, sums: int) -> NDArray[np.int64]:
    """Counts of one or more, and so many sums each."""
    limbs = rng.integers(0, 2**LIMB_BITS, (rows, sums, LIMBS))
    limbs[..., -1] = rng.integers(-(2**20), 2**20, (rows, sums))
    return np.concatenate([rng.integers(1, 1000, (rows, 1)), limbs.reshape(rows, sums * LIMBS)], axis=1)


def random_blocks(seed: int) -> Blocks:
    """Fill some cells of SHAPE with numbers of which every limb is used; the last one of some is negative."""
    rng = np.random.default_rng(seed)
    made = Blocks.zeros(SHAPE)
    touched = rng.random(SHAPE.cells) < rng.choice([0.0, 0.3, 1.0])
    made.cells[touched] = random_rows(rng, touched.sum(), 2)
    made.stopped[:] = random_rows(rng, SHAPE.rows, 1)
    made.invalid[:] = rng.integers(0, 9, 2)
    return dataclasses.replace(made, entries=seed)


def same(one: Blocks, other: Blocks) -> bool:
    arrays = ((one.cells, other.cells), (one.stopped, other.stopped), (one.invalid, other.invalid))
    return one.entries == other.entries and all(np.array_equal(a, b) for a, b in arrays)


@given(st.lists(st.integers(0, 10**6), max_size=8))
def test_the_total_of_packed_ones_is_their_sum(seeds):
    made = [random_blocks(seed) for seed in seeds]
    total = Blocks.total([one.pack() for one in made], SHAPE)
    assert same(total, reduce(add, made, Blocks.zeros(SHAPE)))
    assert total.entries == sum(seeds)


@given(st.lists(st.integers(0, 10**6), max_size=8))
def test_one_template_alone_is_that_of_all(seeds):
    packed = [random_blocks(seed).pack() for seed in seeds]
    whole = Blocks.total(packed, SHAPE)
    for i in range(len(SHAPE.bins)):
        one = Blocks.total(packed, SHAPE, i)
        assert one.shape == SHAPE.only(i)
        assert one.histogram().to_bytes() == whole.histogram(i).to_bytes()


def test_what_inflates_to_more_than_its_shape_can_be_is_refused():
    with pytest.raises(ValueError, match="longer than its shape can be"):
        Blocks.unpack(zlib.compress(bytes(10**7)), SHAPE)


@given(st.integers(0, 10**6))
def test_packing_loses_nothing(seed):
    made = random_blocks(seed)
    assert same(Blocks.unpack(made.pack(), SHAPE), made)


def test_only_cells_that_an_event_fell_into_are_packed():
    """Issue 12, item 2: a task of few events, twenty observables: a message must not carry their empty bins."""
    few = Blocks.zeros(Shape(3, (1000,) * 20, 4))
    few.cells[[5, 40_000], 0] = 1
    numbers = np.frombuffer(zlib.decompress(few.pack()), "<i8")
    assert len(numbers) == 4 + 4 * (1 + LIMBS) + 2 * (1 + CELL)
    assert numbers[:4].tolist() == [0, 0, 0, 2]
    assert len(few.pack()) < 100
    assert same(Blocks.unpack(few.pack(), few.shape), few)


def test_a_cell_whose_weights_cancel_was_touched_all_the_same():
    made = Blocks.zeros(SHAPE)
    made.cells[7, 0] = 2
    assert same(Blocks.unpack(made.pack(), SHAPE), made)


def packed(*, head: tuple[int, ...] = (3, 0, 0, 2), at: tuple[int, ...] = (1, 4), more: int = 0) -> bytes:
    """Pack two cells, or damage of that."""
    stopped = np.zeros(SHAPE.rows * (1 + LIMBS), np.int64)
    cells = np.ones(len(at) * CELL + more, np.int64)
    return zlib.compress(b"".join(np.array(part, "<i8").tobytes() for part in (head, stopped, at, cells)))


def test_damage_and_another_shape_are_refused():
    whole = packed()
    assert Blocks.unpack(whole, SHAPE).cells[:, 0].nonzero()[0].tolist() == [1, 4]
    with pytest.raises(ValueError, match="incomplete"):
        Blocks.unpack(whole[: len(whole) // 2], SHAPE)
    with pytest.raises(ValueError, match="incorrect header"):
        Blocks.unpack(b"no zlib stream", SHAPE)
    with pytest.raises(ValueError, match="numbers are not those of 5 cuts"):
        Blocks.unpack(whole, SHAPE._replace(rows=5))
    with pytest.raises(ValueError, match="numbers are not those of 4 cuts and -1 cells"):
        Blocks.total([whole, zlib.compress(b"")], SHAPE)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"more": 1}, "numbers are not those of 4 cuts and 2 cells"),
        ({"more": -1}, "numbers are not those of 4 cuts and 2 cells"),
        ({"head": (3, 0, 0, 1)}, "numbers are not those of 4 cuts and 1 cells"),
        ({"head": (3, 0, 0, -1)}, "numbers are not those of 4 cuts and -1 cells"),
        ({"head": (3, 0, 0, -3), "at": ()}, "numbers are not those of 4 cuts and -3 cells"),
        ({"head": (3, 0, 0, 2**62)}, "numbers are not those of 4 cuts"),
        ({"at": (4, 1)}, "cells are not in order, or not among the 33 of this shape"),
        ({"at": (4, 4)}, "cells are not in order"),
        ({"at": (-1, 4)}, "cells are not in order"),
        ({"at": (1, SHAPE.cells)}, "cells are not in order"),
        ({"at": (-(2**63), 2**63 - 1)}, "cells are not in order"),
        # Differences of these overflow: none of them is negative.
        ({"at": (0, 2**62, 2**63 - 1, -(2**63), -5, 7), "head": (3, 0, 0, 6)}, "cells are not in order"),
    ],
)
def test_cells_that_cannot_be_are_refused(damage, said):
    with pytest.raises(ValueError, match=said):
        Blocks.unpack(packed(**damage), SHAPE)


def test_a_number_cut_in_two_is_refused():
    with pytest.raises(ValueError, match="multiple of element size"):
        Blocks.unpack(zlib.compress(zlib.decompress(packed())[:-3]), SHAPE)


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
