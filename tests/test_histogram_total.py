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


@given(st.integers(0, 10**6))
def test_packing_loses_nothing(seed):
    made = random_blocks(seed)
    assert same(Blocks.unpack(made.pack(), SHAPE), made)


def test_only_cells_that_an_event_fell_into_are_packed():
    """Issue 12, item 2: a task of few events, twenty observables: a message must not carry their empty bins."""
    few = Blocks.zeros(Shape(3, (1000,) * 20, 4))
    few.cells[[5, 40_000], 0] = 1
    head, stopped = 8 * 8, 8 * 4 * (1 + LIMBS)
    assert len(few.pack()) == head + stopped + 2 * (4 + 4) + 4, "of each cell where it is, and its count"
    assert same(Blocks.unpack(few.pack(), few.shape), few)


def test_a_cell_whose_weights_cancel_was_touched_all_the_same():
    made = Blocks.zeros(SHAPE)
    made.cells[7, 0] = 2
    assert same(Blocks.unpack(made.pack(), SHAPE), made)


def test_a_negative_sum_takes_no_more_limbs_than_a_positive_one():
    def packed(weight: int) -> bytes:
        made = Blocks.zeros(SHAPE)
        made.cells[3, 0] = 1
        made.cells[3, 3] = weight
        return Blocks.settled(*dataclasses.astuple(made)).pack()

    assert len(packed(-5)) == len(packed(5)) + 4
    assert Blocks.unpack(packed(-5), SHAPE).cells[3, 1:7].tolist() == [
        0,
        0,
        2**LIMB_BITS - 5,
        *[2**LIMB_BITS - 1] * 2,
        -1,
    ]


def test_numbers_in_use_that_differ_from_one_to_the_next_add_up():
    made = []
    for column in range(1, CELL):
        one = Blocks.zeros(SHAPE)
        one.cells[[2, 9], 0] = 1
        one.cells[[2, 9], column] = column
        made.append(one)
    total = Blocks.total([one.pack() for one in made], SHAPE)
    assert total.cells[9].tolist() == [CELL - 1, *range(1, CELL)]
    assert same(total, reduce(add, made))


HEAD = (6, 3, 0, 0, 2, 0, 0b11, 1)


def packed(
    *, head: tuple[int, ...] = HEAD, at: tuple[int, ...] = (1, 4), negative: tuple[int, ...] = (), more: int = 0
):
    """Pack two cells, or damage of that that a check sum knows nothing of."""
    stopped = np.zeros(SHAPE.rows * (1 + LIMBS))
    rows = np.ones(2 * len(at) + more)
    parts = ((head, "<i8"), (stopped, "<i8"), (rows, "<u4"), (at, "<u4"), (negative, "<u4"))
    return checked(b"".join(np.array(part).astype(kind).tobytes() for part, kind in parts))


def checked(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def changed(**changes: int) -> tuple[int, ...]:
    names = ("form", "entries", "first", "second", "touched", "negative", "limbs", "fits")
    return tuple(changes.get(name, value) for name, value in zip(names, HEAD, strict=True))


@given(st.data())
def test_a_damaged_bit_is_refused(data):
    whole = bytearray(random_blocks(7).pack())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="check sum"):
        Blocks.unpack(bytes(whole), SHAPE)


def test_damage_and_another_shape_are_refused():
    whole = packed()
    assert Blocks.unpack(whole, SHAPE).cells[:, 0].nonzero()[0].tolist() == [1, 4]
    with pytest.raises(ValueError, match="its check sum is another one"):
        Blocks.unpack(whole[:-1], SHAPE)
    with pytest.raises(ValueError, match="bytes are not those of 4 cuts"):
        Blocks.unpack(whole[: len(whole) // 2], SHAPE)
    with pytest.raises(ValueError, match="bytes are not those of 5 cuts"):
        Blocks.unpack(whole, SHAPE._replace(rows=5))
    with pytest.raises(ValueError, match="0 bytes are not those of 4 cuts"):
        Blocks.total([whole, b""], SHAPE)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"more": 1}, "bytes are not those of 4 cuts and 2 cells"),
        ({"more": -1}, "bytes are not those of 4 cuts and 2 cells"),
        ({"head": changed(form=5)}, "form 5 is not 6"),
        ({"head": changed(limbs=-1)}, "form 6 is not 6"),
        ({"head": changed(limbs=0b111)}, "bytes are not those of 4 cuts and 2 cells"),
        ({"head": changed(fits=0)}, "bytes are not those of 4 cuts and 2 cells"),
        ({"head": changed(touched=1)}, "bytes are not those of 4 cuts and 1 cells"),
        ({"head": changed(touched=-1)}, "bytes are not those of 4 cuts and -1 cells"),
        ({"head": changed(touched=2**62)}, "bytes are not those of 4 cuts"),
        ({"head": changed(negative=-1)}, "bytes are not those of 4 cuts"),
        ({"at": (4, 1)}, "cells are not in order, or not among the 33 of this shape"),
        ({"at": (4, 4)}, "cells are not in order"),
        ({"at": (1, SHAPE.cells)}, "cells are not in order"),
        ({"at": (1, 2**32 - 1)}, "cells are not in order"),
        ({"head": changed(negative=1), "negative": (2,)}, "cells are not in order, or not among the 2"),
    ],
)
def test_cells_that_cannot_be_are_refused(damage, said):
    with pytest.raises(ValueError, match=said):
        Blocks.unpack(packed(**damage), SHAPE)


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
