"""Templates → a HistFactory workspace, by rules that are stated. No pyhf but to say that it is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hzzray.physics.selection import CHANNELS
from hzzray.statistics.workspace import ModelError, Rules, directions, make, merging
from tests.support.fits import CENTRES, inputs, process


def sample(document, region: str, name: str) -> dict:
    channel = next(one for one in document["channels"] if one["name"] == region)
    return next(one for one in channel["samples"] if one["name"] == name)


def modifiers(document, region: str, name: str) -> dict[tuple[str, str], object]:
    return {(one["name"], one["type"]): one["data"] for one in sample(document, region, name)["modifiers"]}


def changed(found, name: str, **changes):
    processes = tuple(replace(one, **changes) if one.name == name else one for one in found.processes)
    return replace(found, processes=processes)


def test_it_is_a_workspace_by_pyhfs_schema():
    import pyhf

    document = make(inputs(variations=True)).document
    pyhf.schema.validate(document, "workspace.json")
    model = pyhf.Workspace(document).model()
    assert model.config.poi_name == "mu"
    assert model.config.channels == sorted(CHANNELS)


def test_modifiers_are_those_that_are_stated():
    document = make(inputs(variations=True), Rules(least_statistics=0.0)).document
    for region in CHANNELS:
        assert list(modifiers(document, region, "higgs")) == [
            ("mu", "normfactor"), (f"staterror_{region}", "staterror"), ("lumi", "lumi"),
            ("electron_scale", "normsys"), ("electron_scale", "histosys"),
        ]  # fmt: skip
        zz = modifiers(document, region, "zz")
        assert ("mu", "normfactor") not in zz
        assert zz["xsec_ZZ", "normsys"] == {"hi": 1.06, "lo": 0.95}
        assert modifiers(document, region, "top")["fakes", "normsys"] == {"hi": 1.5, "lo": 0.5}
    config = document["measurements"][0]["config"]
    lumi = next(one for one in config["parameters"] if one["name"] == "lumi")
    assert (config["poi"], lumi["auxdata"], lumi["sigmas"]) == ("mu", [1.0], [0.02])


def test_counts_are_the_templates():
    found = inputs(data=5)
    document = make(found).document
    for i, region in enumerate(CHANNELS):
        for one in found.processes:
            assert sum(sample(document, region, one.name)["data"]) == pytest.approx(one.sumw[i].sum())
        seen = next(one["data"] for one in document["observations"] if one["name"] == region)
        assert sum(seen) == found.data[i].sum()


def test_a_peak_keeps_its_shape_and_beside_it_bins_are_wide():
    made = make(inputs(signal=40.0))
    for edges in made.edges.values():
        assert (edges[0], edges[-1]) == (80.0, 250.0)
        assert {120.0, 125.0} <= set(edges)
        assert np.diff(edges)[np.array(edges[1:]) <= 115].min() > 5.0
        assert len(edges) < 20


def test_merging_by_hand():
    signal, background = np.array([0, 0, 0.6, 0.6, 0, 0.0]), np.array([4.0, 7, 0.2, 0.1, 3, 8])
    rich = np.array([False, False, True, True, False, False])
    groups = merging(signal, background, background * 1e-4, rich, Rules())
    assert [group.tolist() for group in groups] == [[0, 1], [2], [3], [4, 5]]
    # No background at all where the peak is: no model expects nothing without signal.
    background[2:4] = 0.0
    assert [g.tolist() for g in merging(signal, background, background, rich, Rules())] == [[0, 1, 2, 3], [4, 5]]
    # What is left at the lower end joins the first that is enough.
    low = np.array([0.1, 0.1, 0.2, 0.3, 3, 8])
    assert [g.tolist() for g in merging(signal, low, low * 1e-4, rich, Rules())] == [[0, 1, 2], [3], [4, 5]]
    assert merging(signal * 0, background * 0, background * 0, rich, Rules()) == []
    # What simulation doesn't know is merged until it does: one event of weight 4 isn't known to 50 %.
    noisy = np.array([16.0, 0, 0.01, 0.01, 0.01, 0.01])
    assert merging(signal, low * 20, noisy, rich, Rules())[0].tolist() == [0, 1, 2]


def test_what_is_below_0_is_taken_as_0_and_the_yield_stays():
    found = inputs()
    top = found.processes[2]
    sumw = top.sumw.copy()
    sumw[0, :3] = -2.0
    sumw[0, 20] += 10.0
    made = make(changed(found, "top", sumw=sumw), Rules(least_events=0.0, least_beside=0.0, most_error=1e9))
    data = np.array(sample(made.document, "4e", "top")["data"])
    assert (data >= 0).all()
    assert data.sum() == pytest.approx(sumw[0].sum())
    assert any(note.startswith("4e: top was below 0 in") for note in made.notes)
    # A process whose yield is below 0 has no part in the region.
    made = make(changed(found, "top", sumw=np.where(np.arange(3)[:, None] == 0, -0.01, top.sumw)))
    names = {one["name"] for one in made.document["channels"][0]["samples"]}
    assert names == {"higgs", "zz"}
    assert any("4e: top left out, its yield is -0.34" in note for note in made.notes)


def test_small_backgrounds_are_left_out_together_below_the_rule():
    found = inputs()
    tiny = [process(f"tiny{i}", "background", np.full(34, 1e-3), 0.01) for i in range(4)]
    made = make(replace(found, processes=(*found.processes, *tiny)))
    names = {one["name"] for one in made.document["channels"][0]["samples"]}
    # Together they would be 4·10⁻³ of 1.9 to 2.7 in the emptiest bin: above 0.5 %... but not all of them.
    left = {one.name for one in tiny} - names
    assert left
    assert {"higgs", "zz", "top"} <= names
    assert [note for note in made.notes if note.startswith("left out, ")]
    total = sum(one.sumw for one in (*found.processes[1:], *tiny))
    gone = sum(one.sumw for one in tiny if one.name in left)
    assert (gone <= Rules().prune * total).all()


def test_a_variation_is_a_factor_and_a_shape():
    found = inputs(variations=True)
    up = found.processes[1].variations["electron_scale_up"]
    document = make(found).document
    zz = modifiers(document, "4mu", "zz")
    factor, shape = zz["electron_scale", "normsys"], zz["electron_scale", "histosys"]
    nominal = np.array(sample(document, "4mu", "zz")["data"])
    assert factor["hi"] == pytest.approx(up[1].sum() / nominal.sum())
    assert sum(shape["hi_data"]) == pytest.approx(nominal.sum()), "its yield is the factor's"
    assert factor["hi"] * np.array(shape["hi_data"])[-1] > nominal[-1]
    # One that only scales has no shape, one that does next to nothing isn't there.
    flat = {"pileup_up": 1.1 * found.processes[1].sumw, "pileup_down": 0.9 * found.processes[1].sumw}
    kinds = modifiers(make(changed(found, "zz", variations=flat)).document, "4mu", "zz")
    assert kinds["pileup", "normsys"] == pytest.approx({"hi": 1.1, "lo": 0.9})
    assert ("pileup", "histosys") not in kinds
    none = {"pileup_up": 1.0001 * found.processes[1].sumw}
    assert not any(
        name == "pileup" for name, _ in modifiers(make(changed(found, "zz", variations=none)).document, "4mu", "zz")
    )


def test_few_simulated_events_have_no_shape():
    """One that crosses from one bin to the next would be all of it, and of the other process' statistics besides."""
    zz = inputs(variations=True).processes[1]
    for effective, there in ((90.0, False), (110.0, True)):
        few = zz.sumw.sum(axis=1, keepdims=True) * zz.sumw / effective
        kinds = modifiers(make(changed(inputs(variations=True), "zz", sumw2=few)).document, "4mu", "zz")
        assert (("electron_scale", "histosys") in kinds) is there
        assert ("electron_scale", "normsys") in kinds


def test_where_nothing_is_simulated_nothing_moves():
    zz = inputs(variations=True).processes[1]
    holed = zz.sumw.copy()
    holed[:, :3] = 0.0
    document = make(
        changed(inputs(variations=True), "zz", sumw=holed), Rules(least_events=0.0, least_beside=0.0)
    ).document
    nominal = np.array(sample(document, "4mu", "zz")["data"])
    shape = modifiers(document, "4mu", "zz")["electron_scale", "histosys"]
    assert (nominal == 0).any()
    for moved in shape.values():
        assert (np.array(moved)[nominal == 0] == 0).all()
        assert sum(moved) == pytest.approx(nominal.sum())


def test_one_direction_is_mirrored():
    nominal = np.array([10.0, 5.0])
    (pair,) = directions({"syst_up": np.array([11.0, 4.0])}, nominal).values()
    np.testing.assert_allclose(pair[1], [9.0, 6.0])
    (pair,) = directions({"lep_pt_syst": np.array([11.0, 4.0])}, nominal).values()
    np.testing.assert_allclose(pair, [[11.0, 4.0], [9.0, 6.0]])
    (pair,) = directions({"syst_down": np.array([25.0, 4.0])}, nominal).values()
    np.testing.assert_allclose(pair[0], [0.0, 6.0]), "never below 0"


def test_statistics_are_in_where_they_matter():
    found = inputs()
    every = make(found, Rules(least_statistics=0.0)).document
    staterror = modifiers(every, "2e2mu", "zz")["staterror_2e2mu", "staterror"]
    assert all(value > 0 for value in staterror)
    assert staterror[0] == pytest.approx(np.sqrt(0.004 * sample(every, "2e2mu", "zz")["data"][0]))
    few = make(found, Rules(least_statistics=0.3))
    assert any("simulation's statistics left out" in note for note in few.notes)


@pytest.mark.parametrize("role", ["signal", "background"])
def test_without_signal_or_background_there_is_no_model(role):
    found = inputs()
    kept = tuple(one for one in found.processes if one.role != role)
    with pytest.raises(ModelError, match=f"no {role} to fit"):
        make(replace(found, processes=kept))


def test_a_region_that_expects_nothing_is_left_out():
    found = inputs()
    empty = [
        replace(one, sumw=one.sumw * [[0], [1], [1]], sumw2=one.sumw2 * [[0], [1], [1]]) for one in found.processes
    ]
    made = make(replace(found, processes=tuple(empty)))
    assert list(made.edges) == ["4mu", "2e2mu"]
    assert "4e: left out, it expects less than 0.5 events" in made.notes
    nothing = tuple(replace(one, sumw=one.sumw * 0) for one in found.processes)
    with pytest.raises(ModelError, match="no region has signal and background"):
        make(replace(found, processes=nothing))


def test_without_data_what_is_expected_stands_for_it():
    made = make(inputs(data=None))
    seen = next(one["data"] for one in made.document["observations"] if one["name"] == "4e")
    total = sum(np.array(one["data"]) for one in made.document["channels"][0]["samples"])
    np.testing.assert_allclose(seen, total)
    assert CENTRES[0] == 82.5
