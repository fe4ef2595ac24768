"""Which baskets a step needs: as a few lines of Python find them."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hzzray.data.layout import Branch, Form, tabled
from hzzray.data.unpacking import BEGIN, END, FROM, NUMBER, TO
from hzzray.data.wants import Finder

ENTRIES = 40


@st.composite
def tables(draw):
    """Branches of a file: cut anywhere, with empty baskets, some in the tree's record, hardly one side by side."""
    made = []
    for _ in range(draw(st.integers(0, 4))):
        inner = draw(st.lists(st.integers(0, ENTRIES), max_size=6).map(sorted))
        seeks = [draw(st.sampled_from([0, *range(100, 400, 5)])) for _ in range(len(inner) + 1)]
        sizes = [draw(st.integers(1, 9)) if seek else 0 for seek in seeks]
        made.append(tabled([0, *inner, ENTRIES], seeks, sizes))
    return made


borders = st.lists(st.integers(0, ENTRIES), min_size=2, max_size=6, unique=True).map(sorted)


@settings(deadline=None, max_examples=200)
@given(made=tables(), ends=borders, data=st.data())
def test_what_steps_need(made, ends, data):
    fast = np.array([data.draw(st.booleans()) for _ in made], np.bool_)
    at_hand = [data.draw(st.integers(-1, 3)) for _ in made]
    branches = [Branch(Form(">f4", False, 0), table) for table in made]
    steps = list(pairwise(ends))
    wants = list(Finder(made, fast).find(steps, np.array(at_hand, np.int64)))
    assert [(want.start, want.stop) for want in wants] == steps
    for want in wants:
        content = [(seek + i) for seek, size in want.ranges for i in range(size)]
        assert len(content) == want.size
        assert all(sum(one) != after[0] for one, after in pairwise(want.ranges))
        needed = 0
        for s, branch in enumerate(branches):
            rows = want.baskets.table[want.baskets.first[s] : want.baskets.first[s + 1]].tolist()
            numbers = branch.baskets(want.start, want.stop) if fast[s] else []
            assert [row[NUMBER] for row in rows] == numbers
            held = numbers[:1] if numbers[:1] == [at_hand[s]] else []
            assert want.held[s] == (held[0] if held else -1)
            for row in rows:
                assert (row[BEGIN], row[END]) == branch.range(row[NUMBER])
                seek, size = branch.place(row[NUMBER])
                there = [] if row[NUMBER] in held or seek == 0 else list(range(seek, seek + size))
                assert content[row[FROM] : row[TO]] == there
                needed += len(there)
            at_hand[s] = numbers[-1] if numbers else at_hand[s]
        assert needed == want.size


def test_baskets_that_lie_side_by_side_are_one_range_in_the_files_order():
    made = [tabled([0, 5, 9], [100, 130], [10, 10]), tabled([0, 9], [110], [20]), tabled([0, 4, 9], [500, 140], [7, 3])]
    (want,) = Finder(made, np.ones(3, np.bool_)).find([(0, 9)], np.full(3, -1))
    assert want.ranges == [(100, 43), (500, 7)]
