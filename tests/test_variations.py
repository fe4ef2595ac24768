"""Variations of simulation: against weights and leptons that are changed by hand, exact however events are cut up."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise

import awkward as ak
import hist
import numpy as np
import pytest
import uhi.io.json
import uproot
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hzzray import analyses
from hzzray.data.catalogue import release
from hzzray.errors import UsageError
from hzzray.messages import RunSpec
from hzzray.physics.analysis import Bound, Cut, Template, Variation
from hzzray.physics.cached_filler import CachedFiller, UnmeasuredError
from hzzray.physics.candidate_builder import CandidateBuilder
from hzzray.physics.columns import AllOf, AnyOf, Jagged, Offsets, Reads, Scalar, reads_more
from hzzray.physics.filler import Filler, WeightError
from hzzray.physics.histogram import LIMBS, MAX_WEIGHT, Axis, Blocks, Shape, varied_digest
from hzzray.physics.hot_weights import extra_weights
from hzzray.physics.lepton_columns import Leptons
from hzzray.physics.selection import H4L, NOTEBOOK, Selection, select
from hzzray.runs.fit_run import systematic
from hzzray.runs.folder import load_json
from hzzray.runs.request import change_spec, make_spec
from hzzray.runs.run import Settings, execute
from hzzray.runs.templates import load_templates
from tests.support.exact import exact_sum, value
from tests.support.form import FORMS
from tests.test_kernels import PROFILE, check, columns, generated, make_events, part, record

NORM = 0.37
FACTORS = ("mc", "pileup", "trigger")
AXIS = Axis(80, 250, 34)
TEMPLATES = (Template("m4l", AXIS), Template("pt1", Axis(0, 100, 10)), Template("m12", Axis(0, 120, 6)))

ELECTRONS = Variation("electrons", "weight", size=0.01, each="n_electrons")
MUONS = Variation("muons", "weight", size=0.02, each="n_muons")
ALL = Variation("all_alike", "weight", size=0.125)
SPREAD = Variation("pileup", "spread", factor="pileup", size=0.3)
OTHER = Variation("other", "branch", factor="trigger", branches=("trigger_up", "trigger_down"))
PT = Variation("electron_pt", "momentum", flavour=11, branch="pt_syst")
SCALE = Variation("muon_scale", "momentum", flavour=13, size=0.01)
WORSE = Variation("electron_resolution", "resolution", flavour=11, size=0.05)
EVERY = (ELECTRONS, PT, SPREAD, MUONS, WORSE, OTHER, SCALE, ALL)

#: What a reader would read: the columns' roles are what variations go by.
READ = Leptons(
    Offsets(),
    *(Jagged(role, role=role) for role in ("pt", "eta", "phi", "energy")),
    Jagged("charge", "i4", role="charge"),
    Jagged("type", "i4", role="type"),
    AnyOf(("trigger",)),
    Jagged("matched", "u1"),
    AllOf(("e",)),
    AllOf(("m",)),
)


def filler(analysis, variations, varied=1, *, absolute=False):
    own = select(analysis)
    selection = Selection("any", own.parameters, own.cuts, absolute)
    reads = Reads(READ, FACTORS, "", reads_more(READ, variations))
    return Filler(analysis, selection, TEMPLATES, 1.0, variations, varied, reads)


@lru_cache(8)
def events(seed=1, n=900):
    """Events with three factors, as a step."""
    rng = np.random.default_rng(seed)
    step = columns(generated(seed, n, "realistic"))
    factors = rng.gamma(4, 0.25, (3, step.events)) * rng.choice([-1, 1, 1, 1], (3, step.events))
    return step._replace(factors=factors, divisor=np.empty(0))


def more(step, variations, seed=2):
    """What is read beside: ``pt_syst`` for leptons, another trigger factor for events, some of it nonsense."""
    rng = np.random.default_rng(seed)
    made = []
    for read in reads_more(READ, variations):
        size = len(step.columns.pt) if isinstance(read, Jagged) else step.events
        array = rng.gamma(1, 0.2 if isinstance(read, Scalar) else 2.0, size)
        array[rng.random(size) < 0.05] = np.nan
        made.append(array.astype(np.float32) if isinstance(read, Jagged) else array)
    return step._replace(more=tuple(made))


def cells(blocks, template, direction):
    """The cells of a direction: counts, limbs of both sums; shape (regions, bins + 2, 13)."""
    shape = blocks.shape
    own = blocks.cells[shape.block(direction)][shape.slice(template)]
    return own.reshape(shape.regions, -1, own.shape[-1])


def nominal(analysis, step, *, absolute=False):
    """What is filled without any variation."""
    blocks = filler(analysis, (), absolute=absolute).fill([step], NORM)
    return [blocks.cells[blocks.shape.slice(i)].reshape(blocks.shape.regions, -1, 13) for i in range(len(TEMPLATES))]


def weighing(step, weights):
    """The same events with weights of our own, which NORM must not change: a factor that it makes exactly those."""
    return step._replace(factors=np.asarray(weights, np.float64)[None], divisor=np.empty(0))


def own_weights(analysis, step, weights):
    own = select(analysis)
    made = Filler(analysis, Selection("any", own.parameters, own.cuts), TEMPLATES, 1.0)
    blocks = made.fill([weighing(step, weights)], 1.0)
    return [blocks.cells[blocks.shape.slice(i)].reshape(blocks.shape.regions, -1, 13) for i in range(len(TEMPLATES))]


def product(step, *, instead=(), absolute=False):
    """NORM times the factors one after the other, but the one that something stands ``instead`` of, which is last."""
    w = np.full(step.events, NORM)
    for i, factor in enumerate(step.factors):
        if not instead or i != instead[0]:
            w = w * (np.abs(factor) if absolute else factor)
    return w * instead[1] if instead else w


def leptons(analysis, step, which, region):
    """Count electrons or muons of the four: the first ones of the file, or those that make a region what it is."""
    if analysis is H4L:
        return {"n_electrons": (4, 0, 2), "n_muons": (0, 4, 2)}[which][region]  # of regions 4e, 4mu, 2e2mu
    c = step.columns
    flavour = 11 if which == "n_electrons" else 13
    ends = np.minimum(c.offsets[:-1] + 4, c.offsets[1:])
    return np.array([np.count_nonzero(c.type[a:b] == flavour) for a, b in zip(c.offsets, ends, strict=False)])


# --- other weights ---


@pytest.mark.parametrize("analysis", [NOTEBOOK, H4L], ids=lambda one: one.name)
@pytest.mark.parametrize("variation", [ELECTRONS, MUONS, ALL], ids=lambda one: one.name)
def test_a_size_counts_once_for_each_lepton_of_the_candidate_that_counts(analysis, variation):
    step = more(events(), (variation,))
    blocks = filler(analysis, (variation,), len(TEMPLATES)).fill([step], NORM)
    for direction, sign in enumerate((1, -1)):
        for region in range(3):
            times = leptons(analysis, step, variation.each, region) if variation.each else 1
            power = np.cumprod([1.0, *[1.0 + sign * variation.size] * 4])[times]
            wanted = own_weights(analysis, step, product(step) * power)
            for i in range(len(TEMPLATES)):
                assert np.array_equal(cells(blocks, i, direction)[region], wanted[i][region])
    assert nominal(analysis, step)[0][..., 0].sum() > 100


@pytest.mark.parametrize("absolute", [False, True])
def test_something_else_stands_in_the_place_of_a_factor(absolute):
    variations = (OTHER, SPREAD)
    step = more(events(), variations)
    blocks = filler(H4L, variations, absolute=absolute).fill([step], NORM)
    pileup, trigger = step.factors[1], step.factors[2]
    if absolute:
        pileup, trigger = np.abs(pileup), np.abs(trigger)
    others = [np.where(np.isfinite(array), array, trigger) for array in step.more]
    made = [(2, others[0]), (2, others[1]), (1, 1 + (pileup - 1) * 1.3), (1, 1 + (pileup - 1) * 0.7)]
    for direction, instead in enumerate(made):
        wanted = own_weights(H4L, step, product(step, instead=instead, absolute=absolute))
        assert np.array_equal(cells(blocks, 0, direction), wanted[0])
    assert not np.array_equal(cells(blocks, 0, 0), cells(blocks, 0, 1))


def test_an_event_is_divided_by_what_its_file_says():
    step = events()._replace(divisor=np.random.default_rng(3).uniform(1, 9, events().events))
    blocks = filler(H4L, (SPREAD,)).fill([step], NORM)
    instead = (1, 1 + (step.factors[1] - 1) * 1.3)
    rest = NORM * step.factors[0] * step.factors[2] / step.divisor
    assert np.array_equal(cells(blocks, 0, 0), own_weights(H4L, step, rest * instead[1])[0])


def test_weights_that_are_too_large_are_refused_and_leave_nothing_behind():
    step = more(events(), (OTHER,))
    made = filler(H4L, (OTHER,))
    before = made.fill([step], NORM)
    heavy = step._replace(more=(np.full(step.events, 2.0**40), step.more[1]))
    with pytest.raises(WeightError, match="too large"):
        made.fill([heavy], NORM)
    again = made.fill([step], NORM)
    assert np.array_equal(before.cells, again.cells)


@settings(PROFILE, max_examples=12)
@given(
    exponents=st.sampled_from([(-3, 3), (-60, -50), (-140, -100), (-40, 28), (8, 20), (-1, -1)]),
    seed=st.integers(0, 2**31),
    zeros=st.sampled_from([0.0, 0.3]),
)
def test_sums_are_exact_whatever_the_weights(exponents, seed, zeros):
    """Against fractions: all events are one, which passes, so that all go into one cell."""
    rng = np.random.default_rng(seed)
    one = [record(p, *kind, np.random.default_rng(0)) for p, kind in _FOUR]
    step = columns(make_events([one] * 500))
    low, high = exponents
    n = step.events
    w = rng.uniform(1, 2, n) * 2.0 ** rng.integers(low, high + 1, n) * rng.choice([-1, 1], n)
    w[rng.random(n) < zeros] = 0.0
    step = weighing(step, w)._replace(more=())
    made = Filler(
        NOTEBOOK, select(NOTEBOOK), TEMPLATES[:1], 1.0, (ALL, ELECTRONS), 1, Reads(READ, ("w",), "", ())
    )  # fmt: skip
    blocks = made.fill([step], 1.0)
    n_electrons = sum(kind == 11 for _, (kind, _) in _FOUR)
    for direction, scale in enumerate((1.125, 0.875, 1.01, 0.99)):
        power = scale
        for _ in range(n_electrons - 1 if direction > 1 else 0):
            power *= scale
        (cell,) = cells(blocks, 0, direction)[cells(blocks, 0, direction)[..., 0] > 0]
        assert cell[0] == n
        assert value(cell[1 : 1 + LIMBS]) == exact_sum(w * power)
        assert value(cell[1 + LIMBS :]) == exact_sum((w * power) * (w * power))


_FOUR = (
    (np.array([50.0, 5.0, 10.0]), (11, 1)), (np.array([-40.0, 5.0, 20.0]), (11, -1)),
    (np.array([3.0, 30.0, -10.0]), (13, 1)), (np.array([3.0, -25.0, 4.0]), (13, -1)),
)  # fmt: skip


# --- of hot candidates ---


def hot_and_cold(analysis, variations, varied, step, *, absolute=False):
    """Fill what was kept of events, and the same events as they are read; by cuts that aren't the preset's."""
    own = select(analysis)
    selection = Selection("any", own.parameters, (Cut("m12", (Bound("m12", 40.0, 110.0),)), *own.cuts[:-1]), absolute)
    reads = Reads(READ, FACTORS, "", reads_more(READ, variations))
    kept = extra_weights(variations, reads)
    before = Selection("any", own.parameters, own.cuts, absolute)
    keeper = CandidateBuilder(analysis, before, range(len(analysis.variables)), 1.0, kept)
    hot = keeper.keep([step], NORM)
    cold = Filler(analysis, selection, TEMPLATES, 1.0, variations, varied, reads).fill([step], NORM)
    return hot, CachedFiller(analysis, selection.cuts, TEMPLATES, variations, varied), cold


@PROFILE
@given(
    analysis=st.sampled_from([NOTEBOOK, H4L]),
    variations=st.lists(st.sampled_from([ELECTRONS, MUONS, ALL, SPREAD, OTHER]), min_size=1, unique=True),
    varied=st.integers(1, len(TEMPLATES)),
    seed=st.integers(1, 3),
    absolute=st.booleans(),
    divided=st.booleans(),
)
def test_hot_candidates_weigh_otherwise_as_events_do_that_are_read(
    analysis, variations, varied, seed, absolute, divided
):
    step = more(events(seed), variations)
    if divided:
        step = step._replace(divisor=np.random.default_rng(3).uniform(-1, 9, step.events))
    hot, cached_filler, cold = hot_and_cold(analysis, variations, varied, step, absolute=absolute)
    again = cached_filler.fill([hot])
    assert again.pack() == cold.pack()
    assert np.array_equal(again.cells, cold.cells)
    sums = cached_filler.begin()
    cached_filler.add(hot, sums, vary=False)
    assert not cached_filler.end(sums, hot.entries).cells[cold.shape.block(0).start :].any()


def test_hot_candidates_lack_what_nobody_kept_of_them():
    step = more(events(), (OTHER,))
    hot, _, _ = hot_and_cold(H4L, (OTHER,), 1, step)
    lacking = {
        SPREAD: "pileup, weight without pileup",
        PT: "leptons of variation electron_pt",
        Variation("third", "branch", factor="trigger", branches=("trigger_up", "new")): "new",
    }
    for variation, names in lacking.items():
        cached_filler = CachedFiller(H4L, H4L.cuts, TEMPLATES, (ALL, variation))
        sums = cached_filler.begin()
        with pytest.raises(UnmeasuredError, match=f"^{names}$"):
            cached_filler.add(hot, sums)
        assert not sums.cells.any()
        cached_filler.add(hot, sums, vary=False)  # as data
        assert sums.cells.any()


def test_what_is_hot_may_become_too_heavy():
    step = events()
    heavy = step._replace(factors=np.full((1, step.events), 0.95 * MAX_WEIGHT))
    hot = CandidateBuilder(H4L, select(H4L), range(len(H4L.variables)), 1.0).keep([heavy], 1.0)
    with pytest.raises(WeightError, match="events weigh"):
        CachedFiller(H4L, H4L.cuts, TEMPLATES, (ALL,)).fill([hot])


# --- another pt ---


def moved(step, ratios):
    """Events whose leptons' pt and energy are multiplied, rounded to what files hold."""
    c = step.columns
    pt, energy = ((one.astype(np.float64) * ratios).astype(np.float32) for one in (c.pt, c.energy))
    return step._replace(columns=c._replace(pt=pt, energy=energy))


@pytest.mark.parametrize("form", [FORMS["notebook-2020"], FORMS["h4l"]], ids=lambda one: one.name)
def test_leptons_of_a_flavour_are_moved_and_all_is_measured_again(form):
    analysis, _ = form.produced()
    variations = (SCALE, PT)
    step = more(events(), variations)
    blocks = filler(analysis, variations, len(TEMPLATES)).fill([step], NORM)
    c, (syst,) = step.columns, step.more
    changes = []
    for sign in (1, -1):
        for direction in ("scale", "pt"):
            shift = np.full(len(c.pt), 0.01) if direction == "scale" else syst.astype(np.float64) / c.pt
            ratio = np.maximum(1 + sign * shift, 0)
            flavour = 13 if direction == "scale" else 11
            changes.append(np.where((c.type == flavour) & np.isfinite(ratio), ratio, 1.0))
    for direction, change in enumerate((changes[0], changes[2], changes[1], changes[3])):
        wanted = nominal(analysis, moved(step, change))
        for i in range(len(TEMPLATES)):
            assert np.array_equal(cells(blocks, i, direction), wanted[i])
    assert not np.array_equal(cells(blocks, 0, 0), nominal(analysis, step)[0])


def test_what_is_moved_fares_as_the_oracle_says():
    """The oracle, which shares no line with the kernels, judges events whose muons are scaled by hand."""
    drawn = generated(4, 150, "realistic")
    drawn = ak.with_field(drawn, ak.ones_like(drawn.factors), "factors")
    step = columns(drawn)
    scaled = moved(step, np.where(step.columns.type == 13, 1.01, 1.0))
    counts = np.diff(step.columns.offsets)
    by_hand = ak.with_field(drawn, ak.unflatten(scaled.columns.pt, counts), "pt")
    by_hand = ak.with_field(by_hand, ak.unflatten(scaled.columns.energy, counts), "energy")
    form = FORMS["h4l"]
    check(by_hand, form, 1.0, NORM, AXIS)
    analysis, selection = form.produced()
    reads = Reads(READ, ("w",), "d", ())
    blocks = Filler(analysis, selection, TEMPLATES[:1], 1.0, (SCALE,), 1, reads).fill([step], NORM)
    plain = Filler(analysis, selection, TEMPLATES[:1], 1.0).fill([columns(by_hand)], NORM)
    assert np.array_equal(blocks.cells[blocks.shape.block(0)], plain.cells)


def mixed(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def deviates(pt, eta, phi):
    """Nearly normal numbers of leptons' own bits."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    pt, eta, phi = (one.view(np.uint32).astype(np.uint64) for one in (pt, eta, phi))
    with np.errstate(over="ignore"):
        z = ((pt << np.uint64(32)) | phi) + golden * eta
        bits = np.array([mixed(z), mixed(z + golden)])
    parts = np.array([(bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]).astype(np.float64)
    return ((parts.sum(axis=(0, 1)) + 4) / 65536 - 4) * 1.224744871391589


def test_leptons_are_smeared_by_their_own_bits():
    step = events()
    c = step.columns
    drawn = deviates(c.pt, c.eta, c.phi)
    change = np.where(c.type == 11, np.maximum(1 + 0.05 * drawn, 0), 1.0)
    blocks = filler(H4L, (WORSE,)).fill([step], NORM)
    assert blocks.shape.directions == 1
    assert np.array_equal(cells(blocks, 0, 0), nominal(H4L, moved(step, change))[0])
    assert abs(drawn.mean()) < 4 / len(drawn) ** 0.5
    assert abs(drawn.std() - 1) < 4 / (2 * len(drawn)) ** 0.5
    assert 0.6 < (np.abs(drawn) < 1).mean() < 0.76


# --- all together ---


def test_nominal_templates_are_those_of_a_run_without_variations():
    step = more(events(), EVERY)
    plain, varied = filler(H4L, ()).fill([step], NORM), filler(H4L, EVERY, 3).fill([step], NORM)
    assert np.array_equal(varied.cells[: plain.shape.cells], plain.cells)
    for name in ("stopped", "invalid", "entries"):
        assert np.array_equal(getattr(varied, name), getattr(plain, name))
    assert varied.histogram(2).to_bytes() == plain.histogram(2).to_bytes()


def test_data_is_not_varied():
    step = events()
    blocks = filler(H4L, EVERY).fill([step], NORM, vary=False)
    plain = filler(H4L, ()).fill([step], NORM)
    assert not blocks.cells[plain.shape.cells :].any()
    assert blocks.pack() == plain.pack()  # which holds what an event fell into: nothing is to be paid for


@settings(PROFILE, max_examples=10)
@given(cuts=st.lists(st.integers(0, 900), max_size=4), order=st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_how_events_are_cut_up_or_merged(cuts, order):
    step = more(events(), EVERY)
    made = filler(H4L, EVERY, 2)
    whole = made.fill([step], NORM)
    ends = [0, *sorted(cuts), step.events]
    parts = []
    for start, stop in pairwise(ends):
        own = part(step._replace(divisor=np.empty(step.events)), start, stop)
        first, last = step.columns.offsets[[start, stop]]
        beside = [array[first:last] if len(array) == len(step.columns.pt) else array[start:stop] for array in step.more]
        parts.append(made.fill([own._replace(divisor=np.empty(0), more=tuple(beside))], NORM).pack())
    order.shuffle(parts)
    total = Blocks.total(parts, whole.shape)
    assert total.pack() == whole.pack()
    assert varied_digest({"a": total.varied_sha()}) == varied_digest({"a": whole.varied_sha()}) != ""
    assert not (whole - total).cells.any()


def test_the_shape_has_variations_behind_the_nominal_cells():
    shape = Shape(3, (5, 2), 4, directions=2, varied=1)
    assert shape.cells == 3 * (7 + 4) + 2 * 3 * 7
    assert [shape.slice(1), shape.block(0), shape.block(1)] == [slice(21, 33), slice(33, 54), slice(54, 75)]
    assert Shape(3, (5, 2), 4).cells == 33


# --- what may be asked for ---


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"kind": "weight"}, "weight needs size"),
        ({"kind": "weight", "size": 0.1, "factor": "f"}, "weight has no factor"),
        ({"kind": "spread", "size": 0.1}, "spread needs factor"),
        ({"kind": "branch", "factor": "f", "branches": ("a",)}, "branches are two"),
        ({"kind": "momentum", "flavour": 11}, "momentum needs size or branch"),
        ({"kind": "momentum", "flavour": 11, "size": 0.1, "branch": "b"}, "momentum needs size or branch"),
        ({"kind": "resolution", "size": 0.1}, "resolution needs flavour"),
        ({"kind": "weight", "size": 1.5}, "above 0 and below 1, not 1.5"),
        ({"kind": "weight", "size": 0.1, "name": "a b"}, "letters, digits and underscores"),
    ],
)
def test_a_variation_says_what_its_kind_needs(said, wrong):
    with pytest.raises(ValueError, match=wrong):
        Variation(**{"name": "v", **said})


CATALOGUE = """
mine:
  extends: "2020"
  variations:
    - {name: v, kind: weight, %s}
"""


@pytest.mark.parametrize(
    ("says", "wrong"), [("size: 2", "size is relative"), ("sise: 0.1", "sise"), ("size: x", "size")]
)
def test_a_mistake_in_a_catalogue_is_named(tmp_path, says, wrong):
    path = tmp_path / "own.yaml"
    path.write_text(CATALOGUE % says)
    with pytest.raises(UsageError, match=rf"release mine: variations.*{wrong}"):
        release("mine", path)
    path.write_text(CATALOGUE % "size: 0.1")
    assert [one.name for one in release("mine", path).variations] == ["v"]


def names(spec):
    return [one.name for one in spec.variations]


@pytest.mark.parametrize("name", ["2020", "2025", "toy"])
def test_each_release_has_variations_each_with_a_source(name):
    made = release(name)
    assert {"electron_efficiency", "muon_efficiency", "trigger", "pileup"} <= {one.name for one in made.variations}
    assert all(one.source for one in made.variations)
    spec = make_spec(made, variations="all")
    assert names(spec) == [one.name for one in made.variations if one.default]
    assert any(one.kinematic for one in spec.variations)


def test_variations_are_asked_for_by_name():
    toy = release("toy")
    assert make_spec(toy, variations=("none",)) == make_spec(toy)
    assert names(make_spec(toy, variations="pileup,muon_scale")) == ["pileup", "muon_scale"]
    assert "muon_scale" in names(make_spec(toy, variations="all,muon_scale"))
    with pytest.raises(UsageError, match="release toy has no 'bogus'; it has electron_efficiency, muon_efficiency"):
        make_spec(toy, variations="bogus")
    with pytest.raises(UsageError, match="has no 'none'"):
        make_spec(toy, variations="none,pileup")
    without = toy.model_copy(update={"variations": ()})
    with pytest.raises(UsageError, match="release toy states none"):
        make_spec(without, variations="all")


def test_a_spec_has_them_only_where_they_are_asked_for():
    toy = release("toy")
    plain, varied = make_spec(toy), make_spec(toy, variations="all")
    assert not any(name in plain.canonical() for name in (b'"variations"', b'"varied"'))
    assert varied.digest != plain.digest
    assert varied.varied == 1
    assert make_spec(toy, variations="all", observables=("m4l", "m12")).varied == 2
    assert make_spec(toy, observables=("m4l", "m12")).varied == 1
    assert RunSpec.model_validate_json(varied.model_dump_json(by_alias=True)) == varied
    # Where a size is from is words, and so no part of a computation's name.
    reworded = toy.model_copy(
        update={"variations": tuple(Variation(**{**_fields(one), "source": "new"}) for one in toy.variations)}
    )
    assert make_spec(reworded, variations="all").digest == varied.digest
    assert change_spec(varied, analyses.resolve(varied.analysis, ())) == plain


def _fields(one):
    return {name: getattr(one, name) for name in Variation.__dataclass_fields__}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"variations": (PT, PT)}, "electron_pt_up is there twice"),
        ({"variations": (PT,), "varied": 99}, "99 observables are to be varied"),
        ({"variations": tuple(Variation(f"v{i}", "weight", size=0.1) for i in range(1000)), "varied": 15}, "at most"),
    ],
)
def test_a_spec_from_the_wire_is_looked_at(changes, wrong):
    spec = make_spec(release("toy"))
    fields = {name: getattr(spec, name) for name in RunSpec.model_fields}
    with pytest.raises(ValueError, match=wrong):
        RunSpec(**{**fields, **changes})


def test_what_an_analysis_can_not_vary_is_said():
    toy = release("toy")
    bad = toy.model_copy(update={"variations": (Variation("v", "spread", factor="nope", size=0.1),)})
    spec = make_spec(bad, variations="all")
    with pytest.raises(UsageError, match="v: nope is none of the release's weight factors: mcWeight"):
        analyses.filler(spec, analyses.resolve(spec.analysis, ()))
    bad = toy.model_copy(update={"variations": (Variation("v", "weight", size=0.1, each="n_taus"),)})
    with pytest.raises(UsageError, match="has no variable 'n_taus'"):
        make_spec(bad, variations="all")
    with pytest.raises(ValueError, match="variation muon_scale needs columns with the roles pt, type"):
        reads_more(READ._replace(pt=Jagged("pt"), type=Jagged("type", "i4")), (SCALE,))


# --- a run ---

SAMPLES = ("data_A", "Zee", "ggH125_ZZ4lep")


def run(folder, toys, **options):
    asked = {"samples": SAMPLES, "variations": "all,muon_resolution", "observables": ("m4l", "m12"), **options}
    settings_ = Settings(runs=folder, run_id="run", sources=(str(toys),), engine="serial")
    return execute(make_spec(release("toy"), **asked), settings_, planned=lambda _: None, progress=lambda _: None)


@pytest.fixture(scope="module")
def made(toys, tmp_path_factory):
    """The folder of a run with variations, and of the same one without."""
    runs = tmp_path_factory.mktemp("runs")
    run(runs / "varied", toys, fraction=0.5)
    run(runs / "plain", toys, fraction=0.5, variations=())
    return runs / "varied" / "run", runs / "plain" / "run"


def test_a_run_gives_templates_of_each_direction(made):
    folder, plain = made
    result, without = load_json(folder), load_json(plain)
    assert (result.digest, result.samples, result.groups) == (without.digest, without.samples, without.groups)
    assert len(result.variations_digest) == 64
    assert "variations_digest" not in json.loads((plain / "result.json").read_text())
    found = load_templates(result, folder)
    for observable, table in found.items():
        assert tuple(table.variations) == tuple(table.variations2) == result.spec.directions
        assert np.array_equal(table.sumw, load_templates(without, plain)[observable].sumw)
        for name, sumw in table.variations.items():
            assert sumw.shape == table.sumw.shape
            assert np.array_equal(sumw[0], table.sumw[0]), name  # data
            assert not np.array_equal(sumw[2], table.sumw[2]), name
        up, down = (table.variations[f"muon_resolution_{way}"] for way in ("up", "down"))
        assert up + down == pytest.approx(2 * table.sumw)
        signal = table.sumw[2].sum(axis=1)
        by_electrons = table.variations["electron_efficiency_up"][2].sum(axis=1) / signal
        assert by_electrons == pytest.approx([1.01**4, 1.0, 1.01**2])
    assert not load_templates(without, plain)["m4l"].variations


def test_hist_reads_them(made):
    folder, plain = made
    result = load_json(folder)
    table = load_templates(result, folder)["m4l"]
    with (folder / "templates.json").open() as file:
        read = hist.Hist(json.load(file, object_hook=uhi.io.json.object_hook)["m4l"])
    assert read.axes.name == ("variation", "dataset", "region", "m4l")
    assert list(read.axes[0]) == ["nominal", *result.spec.directions]
    assert np.array_equal(read["nominal", :, :, :].values(flow=True), table.sumw)
    assert np.array_equal(read["pileup_down", ...].values(flow=True), table.variations["pileup_down"])
    assert np.array_equal(read["pileup_down", ...].variances(flow=True), table.variations2["pileup_down"])
    with (plain / "templates.json").open() as file:
        assert "variation" not in file.read()


def test_root_files_have_them(made):
    folder, plain = made
    result = load_json(folder)
    tables = load_templates(result, folder)
    with uproot.open(folder / "histograms.root") as file:
        for observable, place in (("m4l", ""), ("m12", "m12/")):
            for name in result.spec.directions:
                own = file[f"variations/{name}/{place}samples/Zee/2e2mu"].values(flow=True)
                assert own == pytest.approx(tables[observable].variations[name][1, 2]), name
    with uproot.open(plain / "histograms.root") as file:
        assert "variations" not in file


def test_what_is_submitted_and_drawn_of_a_run_has_its_systematics(made, toys, cli, tmp_path):
    folder, _ = made
    result = load_json(folder)
    code, _, err = cli("hepdata", folder, "--output", tmp_path / "hepdata")
    assert code == 0, err
    (all_regions,) = (tmp_path / "hepdata").glob("m4l-all.yaml")
    columns = yaml.safe_load(all_regions.read_text())["dependent_variables"]
    simulated = 0
    for column, (name, group) in zip(columns, result.groups.items(), strict=True):
        told = [{error["label"]: error["symerror"] for error in one.get("errors", ()) if "symerror" in error}
                for one in column["values"]]  # fmt: skip
        if group.role != "data" and any(group.sumw):
            simulated += 1
            moved = systematic(result, load_templates(result, folder), "m4l", group=name, scaled=False)
            assert [one.get("sys", 0.0) for one in told] == pytest.approx(list(moved)), name
            assert moved.any()
            assert [one.get("stat", 0.0) for one in told] == pytest.approx(list(np.sqrt(group.sumw2)))
    assert simulated
    # The picture that a run leaves is the one that is drawn of it afterwards.
    words = ("--source", toys, "--engine", "serial", "--variations", "pileup", "--fraction", 0.2)
    code, _, err = cli("run", *words, "--runs", tmp_path, "--run-id", "drawn")
    assert code == 0, err
    left = (tmp_path / "drawn" / "plot.png").read_bytes()
    code, _, err = cli("plot", "drawn", "--runs", tmp_path)
    assert code == 0, err
    assert (tmp_path / "drawn" / "plot.png").read_bytes() == left


def test_a_file_without_what_a_variation_needs_is_named(shared, tmp_path):
    spec = make_spec(release("2020"), samples=("Zee", "WH125_ZZ4lep"), variations="electron_pt,pileup", selection="h4l")
    settings_ = Settings(runs=tmp_path, run_id="run", sources=(str(shared / "atlas2020-13tev"),), engine="serial")
    result = execute(spec, settings_, planned=lambda _: None, progress=lambda _: None)
    assert result.status == "partial"
    (failure,) = result.failures
    assert failure.sample == "WH125_ZZ4lep"
    assert "lep_pt_syst" in failure.reason
    assert "--variations other than electron_pt does without" in failure.reason
    table = load_templates(result, tmp_path / "run")["m4l"]
    assert table.variations["electron_pt_up"][0].sum() != table.sumw[0].sum()
