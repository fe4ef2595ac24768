"""Hot candidates against what fills the same events cold: to the last bit, whatever is cut on and filled."""

import operator
from functools import lru_cache, reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hzzray.engine.hot import Store
from hzzray.physics.analysis import Bound, Cut, Template, lay_out
from hzzray.physics.cached_filler import CachedFiller, UnmeasuredError
from hzzray.physics.candidate_builder import CandidateBuilder
from hzzray.physics.candidates import make_room
from hzzray.physics.filler import Filler, WeightError
from hzzray.physics.histogram import LIMBS, MAX_WEIGHT, Axis
from hzzray.physics.hot_candidates import Hot, Part, shrink
from hzzray.physics.judge import count_passed
from hzzray.physics.selection import H4L, NOTEBOOK, Selection, select
from tests.support.exact import exact_sum, value
from tests.support.form import Form
from tests.test_kernels import AXIS, PROFILE, check, columns, generated, part, weights

NORM = 0.37

#: Others each time; what fails is printed, and how to draw it again.
RANDOM = settings(PROFILE, derandomize=False, print_blob=True)


def sound(step, form=None):
    """Make what would be too heavy nonsense instead: all else stays as odd as it is."""
    heavy = ~(np.abs(weights(step, form or Form("any"), NORM)) < MAX_WEIGHT)
    return step._replace(factors=np.where(heavy, np.nan, step.factors))


@lru_cache(8)
def events(seed, style):
    return sound(columns(generated(seed, 700, style)))


@lru_cache(8)
def kept(analysis, step_of, absolute=False):
    selection = Selection("any", select(analysis).parameters, analysis.cuts, absolute)
    return CandidateBuilder(analysis, selection, range(len(analysis.variables)), 1.0).keep([events(*step_of)], NORM)


def same(hot, cold):
    assert hot.entries == cold.entries
    for name in ("invalid", "stopped", "cells"):
        assert np.array_equal(getattr(hot, name), getattr(cold, name)), name
    assert hot.pack() == cold.pack()


NUMBERS = st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.5, 1.0, 3.5, 4.0, 4.5, 7.0, 15.0, 20.0, 50.0, 91.1876, 106.0, 1e4])
ENDS = st.one_of(st.none(), NUMBERS, st.floats(-200, 300))
AXES = st.builds(
    lambda start, width, bins: Axis(start, start + width, bins),
    st.floats(-50, 120), st.floats(0.5, 400), st.integers(1, 60),
)  # fmt: skip


def asked(analysis):
    """Whatever may be asked of an analysis: with it, cuts and templates."""
    variable = st.sampled_from([variable.name for variable in analysis.variables])
    some = st.lists(st.builds(Bound, variable, ENDS, ENDS), min_size=1, max_size=3).map(tuple)  # may be empty intervals
    cuts = st.lists(st.builds(Cut, st.just("cut"), some), min_size=1, max_size=6)
    templates = st.lists(
        st.builds(Template, variable, AXES), min_size=1, max_size=4, unique_by=lambda template: template.observable
    )
    return st.tuples(st.just(analysis), cuts, templates)


@RANDOM
@given(
    asked=st.sampled_from([H4L, NOTEBOOK]).flatmap(asked),
    step=st.tuples(st.integers(1, 3), st.sampled_from(["realistic", "unrealistic"])),
)
def test_whatever_is_asked_of_hot_candidates_is_filled_as_from_files(asked, step):
    analysis, chosen, templates = asked
    selection = Selection("any", select(analysis).parameters, tuple(chosen))
    cold = Filler(analysis, selection, templates, 1.0).fill([events(*step)], NORM)
    same(CachedFiller(analysis, chosen, templates).fill([kept(analysis, step)]), cold)


@settings(RANDOM, max_examples=5)
@given(
    seed=st.integers(0, 2**31),
    pt_min=st.lists(st.sampled_from([5.0, 10.0, 15.0, 20.0, 30.0]), max_size=4).map(
        lambda pts: tuple(sorted(pts, reverse=True))
    ),
    z1=st.tuples(st.floats(12, 70), st.floats(80, 140)),
    z2_max=st.floats(60, 140),
    sfos_mass_min=st.floats(0, 12),
    dr=st.floats(0.05, 0.4),
    bins=st.integers(1, 80),
)
def test_hot_candidates_fare_as_the_oracle_says(seed, pt_min, z1, z2_max, sfos_mass_min, dr, bins):
    form = Form(
        "drawn", "best", pt_min, electron_pt_min=7.0, muon_pt_min=6.0, z1_window=z1, z2_max=z2_max,
        sfos_mass_min=sfos_mass_min, dr_same=dr,
    )  # fmt: skip
    axis = Axis(80, 250, bins)
    drawn = generated(seed, 120, "realistic")
    check(drawn, form, 1.0, NORM, axis)  # what is filled cold
    analysis, selection = form.produced()
    step, template = sound(columns(drawn), form), Template("m4l", axis)
    hot = CandidateBuilder(analysis, selection, range(len(analysis.variables)), 1.0).keep([step], NORM)
    cold = Filler(analysis, selection, [template], 1.0).fill([step], NORM)
    same(CachedFiller(analysis, selection.cuts, [template]).fill([hot]), cold)


def many(number):
    """So many events that pass, as a step: those of a few, again and again."""
    few = columns(generated(5, 200, "realistic"))
    times = -(-number // few.events)
    offsets = np.concatenate([[0], np.cumsum(np.tile(np.diff(few.columns.offsets), times))])
    tiled = {name: np.tile(getattr(few.columns, name), times) for name in few.columns._fields if name != "offsets"}
    return few._replace(events=few.events * times, columns=few.columns._replace(offsets=offsets, **tiled))


@pytest.mark.parametrize("lowest", [-140, -39, -38, -20, 0, 13, 14, 19, "spread", "same"])
def test_sums_of_hot_candidates_are_exact_whatever_the_weights(lowest):
    step = many(70_000)
    rng = np.random.default_rng(2)
    if lowest == "same":
        w = np.full(step.events, 0.1)
    else:
        octaves = (
            rng.integers(-140, 30, step.events) if lowest == "spread" else lowest + rng.choice([0, 10], step.events)
        )
        w = np.ldexp(2 - rng.random(step.events) * 2.0 ** -rng.integers(0, 53, step.events), octaves)
        w *= rng.choice([1, 1, 1, -1], step.events)
    w = np.where(np.abs(w) < MAX_WEIGHT, w, 1.0)
    step = step._replace(factors=w[np.newaxis], divisor=np.empty(0))
    selection = select(H4L)
    hot = CandidateBuilder(H4L, selection, range(len(H4L.variables)), 1.0).keep([step], 1.0)
    fast = [part.octave for part in hot.parts if part.first is None and part.entry.size > 5_000]
    assert fast
    assert (None not in fast) == (lowest in (-38, -20, 0, 13, "same"))
    cold = Filler(H4L, selection, H4L.templates[:3], 1.0).fill([step], 1.0)
    same(CachedFiller(H4L, selection.cuts, H4L.templates[:3]).fill([hot]), cold)
    first = cold.histogram()
    cells = [*first.stopped_sumw.limbs, *first.sumw.limbs.reshape(-1, LIMBS)]
    assert sum(map(value, cells)) == exact_sum(w)
    in_parts = Filler(H4L, selection, H4L.templates[:3], 1.0)
    parts = [in_parts.fill([part(step, start, start + 3_500)], 1.0) for start in range(0, step.events, 3_500)]
    same(reduce(operator.add, parts), cold)


def test_events_that_are_alike_and_of_no_region_are_only_counted():
    hot = kept(H4L, (1, "realistic"))
    whole = sum(part.entry.size for part in hot.parts)
    counted = int(hot.sums[:, 0].sum()) + int(hot.invalid_sums[0])
    assert whole + counted == hot.entries == 700
    assert counted > 100
    assert len(hot.classes.T) < counted / 2


def test_a_column_is_kept_in_the_smallest_type_that_holds_it():
    rng = np.random.default_rng(1)
    for values, dtype, size in (
        (np.full(100, 91.1876), np.float64, 1),
        (np.full(100, np.nan), np.float64, 1),
        (rng.integers(-128, 128, 100).astype(float), np.int8, 100),
        (rng.normal(size=100).astype(np.float32).astype(float), np.float32, 100),
        (rng.normal(size=100), np.float64, 100),
        (np.append(np.zeros(99), -0.0), np.float32, 100),
        (np.append(np.zeros(99), 0.1), np.float64, 100),
    ):
        column = shrink(values)
        assert (column.values.dtype, column.values.size) == (dtype, size)
        assert np.array_equal(np.broadcast_to(column.values.astype(float), 100).view(np.int64) if size > 1 else
                              np.full(100, column.values[0]).view(np.int64), values.view(np.int64))  # fmt: skip


LEAST, MOST = (sign * np.finfo(float).max for sign in (-1, 1))


@pytest.mark.parametrize(
    ("ends", "inside"),
    [
        ((None, None), [-np.inf, LEAST, 0.0, 0.1, MOST, np.inf]),
        ((0.0, None), [0.1, MOST, np.inf]),
        ((None, 0.1), [-np.inf, LEAST, 0.0]),
        ((MOST, None), [np.inf]),
        ((None, LEAST), [-np.inf]),
        ((LEAST, MOST), [0.0, 0.1]),
        ((-0.0, 0.2), [0.1]),
    ],
)
def test_an_open_end_lets_infinity_pass_and_nan_nowhere_passes(ends, inside):
    """The lower end let none pass: a row lost -inf that asked for nothing but less than something."""
    values = np.array([-np.inf, LEAST, 0.0, 0.1, MOST, np.inf, np.nan])
    n, passes = values.size, np.isin(values, inside)
    cuts = [Cut(name, (Bound("m12", *ends),)) for name in ("one", "another")]  # what fails stops at the first
    cold = make_room(1)
    cold.values[0, :n] = values
    alive, passed = np.empty(n, bool), np.empty(n, np.int64)
    count_passed(n, cold, lay_out(H4L, cuts, ()), passed, alive)
    assert (passed == 2 * passes).all()
    m12 = H4L.index("m12")
    filler = CachedFiller(H4L, cuts, [Template("m12", AXIS)])
    columns_of = [shrink(values), shrink(values[:6]), *(shrink(values[i : i + 1].repeat(2)) for i in range(n))]
    found = []
    for column in columns_of:
        size = {0: n, 1: 6}.get(len(found), 2)
        columns = tuple(column if i == m12 else None for i in range(len(H4L.variables)))
        numbers = np.arange(size, dtype=np.uint32)
        part = Part(columns, np.zeros(size, np.int8), shrink(np.ones(size)), numbers, None, np.empty((2, 0)), 0)
        found.append(filler.judge(part)[1].copy())
    assert (found[0] == 2 * passes).all()
    assert (found[1] == 2 * passes[:6]).all()
    assert [one.tolist() for one in found[2:]] == [[2 * number] * 2 for number in passes.tolist()]
    classes = np.full((len(H4L.variables), n), np.nan)
    classes[m12] = values
    sums = np.zeros((n, 1 + LIMBS), np.int64)
    sums[:, 0] = 1
    counted = Hot(n, (), classes, sums, np.zeros(2, np.int64), np.zeros(1 + LIMBS, np.int64), frozenset({m12}))
    assert filler.fill([counted]).stopped[:, 0].tolist() == [0, n - passes.sum(), passes.sum()]


def test_what_was_not_measured_is_told():
    analysis = H4L
    hot = CandidateBuilder(analysis, select(analysis), [analysis.index("m4l")], 1.0).keep(
        [events(1, "realistic")], NORM
    )
    cached_filler = CachedFiller(analysis, [Cut("m12", (Bound("m12", 50.0),))], [Template("m4l", AXIS)])
    with pytest.raises(UnmeasuredError, match=r"^m12$"):
        cached_filler.fill([hot])


def test_weights_that_are_too_large_are_told_as_from_files():
    step = events(1, "realistic")
    step = step._replace(factors=np.where(np.arange(700) == 5, 1e12, step.factors), divisor=np.ones(700))
    with pytest.raises(WeightError) as cold:
        Filler(H4L, select(H4L), H4L.templates, 1.0).fill([step], NORM)
    with pytest.raises(WeightError) as hot:
        CandidateBuilder(H4L, select(H4L), range(len(H4L.variables)), 1.0).keep([step], NORM)
    assert str(hot.value) == str(cold.value)


def hot_of(size):
    """Something hot that takes so many bytes."""
    return Hot(1, (), np.zeros((1, size // 8)), np.zeros((0, 7), np.int64), np.zeros(2), np.zeros(7), frozenset())


def test_what_was_not_used_for_the_longest_time_goes_first():
    store = Store(1000)
    keys = [("digest", "uuid", i, i + 1) for i in range(4)]
    for key in keys[:3]:
        store.put(key, hot_of(320))
    assert store.get(keys[0]) is not None
    store.put(keys[3], hot_of(320))
    assert [key in store for key in keys] == [True, False, True, True]
    assert store.nbytes == 960
    store.put(keys[1], hot_of(2000))  # never has room
    assert [key in store for key in keys] == [True, False, True, True]
