"""Selections: presets, the names of their cuts, what is changed and refused."""

import dataclasses

import pytest

from hzzray.data.catalogue import release
from hzzray.physics.analysis import Bound, Cut
from hzzray.physics.selection import CHANNELS, H4L, NOTEBOOK, PRESETS, Selection, changed, parameters_of, preset, select
from tests.support.form import FORMS

ROWS = {
    "notebook-2020": ("all", "four leptons", "flavour", "charge"),
    "notebook-2020-pt": ("all", "four leptons", "pt", "flavour", "charge"),
    "notebook-2025": (
        *("all", "four leptons", "trigger", "trigger-matched", "pt", "identification", "flavour", "charge"),
    ),
    "h4l": (*("all", "four leptons", "two SFOS pairs", "pt", "delta R", "J/psi veto", "Z1 window", "Z2 window"),),
}

#: A release that names no trigger, identification or isolation.
BARE = release("2020").schema_.model_copy(
    update={"triggers": (), "electron_id": (), "muon_id": (), "electron_isolation": (), "muon_isolation": ()}
)


def bounds(selection):
    """All bounds of a selection, by variable; each variable has one."""
    every = [bound for cut in selection.cuts for bound in cut.bounds]
    found = {bound.variable: (bound.low, bound.high) for bound in every}
    assert len(found) == len(every)
    return found


def test_the_presets_are_those_of_the_documentation_under_their_own_names():
    assert {name: preset(name, BARE)[1].rows for name in PRESETS} == ROWS
    assert all(preset(name, BARE)[1].name == name for name in PRESETS)
    assert {name: preset(name, BARE)[0].name for name in PRESETS} == dict.fromkeys(PRESETS, "notebook") | {"h4l": "h4l"}
    assert CHANNELS == ("4e", "4mu", "2e2mu") == NOTEBOOK.regions == H4L.regions


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("schema", [BARE, *(release(name).schema_ for name in ("2020", "2025", "toy"))])
def test_each_preset_is_what_the_oracle_takes_it_for(name, schema):
    form = FORMS[name].here(schema) if name == "h4l" else FORMS[name]
    analysis, selection = form.produced()
    made = preset(name, schema)
    assert made[0] is analysis
    assert made[1].rows == form.cuts
    assert [cut.bounds for cut in made[1].cuts] == [cut.bounds for cut in selection.cuts]
    # The oracle's form says nothing of identification where no cut of a notebook's asks for it.
    asked = made[1].parameters if "identification" in form.cuts or name == "h4l" else selection.parameters
    assert asked == selection.parameters
    assert made[1].absolute_weights == selection.absolute_weights


def test_the_numbers_of_the_notebooks():
    found = {name: preset(name, BARE)[1] for name in PRESETS if name != "h4l"}
    plain = {"n_leptons": (3.5, None), "flavours": (0.5, None), "charge": (-0.5, 0.5)}
    assert bounds(found["notebook-2020"]) == plain
    assert bounds(found["notebook-2020-pt"]) == plain | {"pt1": (30.0, None), "pt2": (20.0, None), "pt3": (10.0, None)}
    assert bounds(found["notebook-2025"]) == plain | {
        "pt1": (20.0, None),
        "pt2": (15.0, None),
        "pt3": (10.0, None),
        "triggered": (0.5, None),
        "n_matched": (0.5, None),
        "n_identified": (3.5, None),
    }
    assert [name for name in PRESETS if preset(name, BARE)[1].absolute_weights] == ["notebook-2025"]


def test_the_numbers_of_the_discovery_paper():
    analysis, h4l = preset("h4l", BARE)
    assert bounds(h4l) == {
        "n_leptons": (3.5, None),
        "sfos_pairs": (0.5, None),
        "pt1": (20.0, None),
        "pt2": (15.0, None),
        "pt3": (10.0, None),
        "dr_same": (0.1, None),
        "dr_other": (0.2, None),
        "m_sfos": (5.0, None),
        "m12": (50.0, 106.0),
        "m34_excess": (0.0, None),
        "m34": (None, 115.0),
    }
    assert h4l.parameters == {
        "electron_pt_min": 7.0,
        "muon_pt_min": 6.0,
        "identified": False,
        "isolated": False,
        "m34_low": 17.5,
        "m34_high": 50.0,
        "m4l_low": 120.0,
        "m4l_high": 190.0,
    }
    assert parameters_of(analysis, h4l, 0.001).gev == 0.001


def test_h4l_asks_for_what_a_release_has():
    schema = release("2020").schema_
    assert schema.triggers
    assert preset("h4l", schema)[1].rows[2] == "trigger"
    only_flags = BARE.model_copy(update={"electron_id": ("e",), "muon_id": ("m",)})
    only_numbers = BARE.model_copy(
        update={name: release("2020").schema_.electron_isolation for name in ("electron_isolation", "muon_isolation")}
    )
    for schema, row, asked in (
        (only_flags, "identification", (True, False)),
        (only_numbers, "isolation", (False, True)),
    ):
        made = preset("h4l", schema)[1]
        assert made.rows[2:4] == (row, "two SFOS pairs")
        assert (made.parameters["identified"], made.parameters["isolated"]) == asked
    # Nobody can identify all leptons by what is said of electrons alone.
    assert preset("h4l", BARE.model_copy(update={"electron_id": ("e",)}))[1].rows == ROWS["h4l"]


def test_a_changed_bound_stays_in_its_row_and_the_name_says_that_it_is_changed():
    analysis, h4l = preset("h4l", BARE)
    made = changed(analysis, h4l, [Bound("m34", None, 120.0), Bound("pt2", 17.0)], {"electron_pt_min": 10.0})
    assert made.name == "h4l*"
    assert made.rows == h4l.rows
    assert bounds(made) == bounds(h4l) | {"m34": (None, 120.0), "pt2": (17.0, None)}
    assert made.parameters == h4l.parameters | {"electron_pt_min": 10.0}
    back = [Bound("m34", None, 115.0), Bound("pt2", 15.0)]
    again = changed(analysis, made, back, {"electron_pt_min": 7.0})
    assert again.name == "h4l*"
    assert dataclasses.replace(again, name="h4l") == h4l
    assert changed(analysis, h4l, [], {}) is h4l


def test_a_bound_on_another_variable_is_a_row_of_its_own_the_last():
    analysis, h4l = preset("h4l", BARE)
    made = changed(analysis, h4l, [Bound("y4l", -1.0, 1.0), Bound("pt4l", 5.0)], {})
    assert made.rows == (*h4l.rows, "y4l", "pt4l")
    assert bounds(made) == bounds(h4l) | {"y4l": (-1.0, 1.0), "pt4l": (5.0, None)}
    with pytest.raises(ValueError, match=r"^cut on y4l: given twice$"):
        changed(analysis, h4l, [Bound("y4l", -1.0, 1.0), Bound("pt4l", 5.0), Bound("y4l", -2.0)], {})


def test_a_bound_that_could_replace_those_of_several_rows_is_refused():
    """It replaced each of them: with ``flavour=0.5:`` the row muons of the example let electrons pass."""
    analysis, h4l = preset("h4l", BARE)
    twice = dataclasses.replace(h4l, cuts=(*h4l.cuts, Cut("low", (Bound("m12", 60.0), Bound("y4l", -2.0)))))
    with pytest.raises(ValueError, match=r"^cut on m12: rows Z1 window, low each have a bound on it, .*m12=: takes"):
        changed(analysis, twice, [Bound("pt1", 30.0), Bound("m12", 70.0)], {})
    assert changed(analysis, twice, [Bound("y4l", -1.0)], {}).cuts[-1].bounds[1] == Bound("y4l", -1.0)
    none = changed(analysis, twice, [Bound("m12")], {})
    assert none.rows == (*(row for row in h4l.rows if row != "Z1 window"), "low")
    assert "m12" not in bounds(none)


def test_a_bound_without_ends_takes_a_cut_away_and_the_last_one_of_a_row_the_row():
    analysis, h4l = preset("h4l", BARE)
    made = changed(analysis, h4l, [Bound("m_sfos"), Bound("pt1"), Bound("y4l")], {})
    assert made.rows == tuple(row for row in h4l.rows if row != "J/psi veto")
    assert bounds(made) == {name: ends for name, ends in bounds(h4l).items() if name not in ("m_sfos", "pt1")}


def test_what_an_analysis_does_not_know_is_refused_and_a_selection_does_not_change():
    analysis, h4l = preset("h4l", BARE)
    with pytest.raises(ValueError, match=r"^analysis h4l has no variable 'm56'; it has m4l, m12, "):
        changed(analysis, h4l, [Bound("m56", 0.0)], {})
    with pytest.raises(ValueError, match=r"^analysis h4l has no parameter 'pt_min'; it has electron_pt_min, "):
        changed(analysis, h4l, [], {"pt_min": 3.0})
    with pytest.raises(ValueError, match=r"^analysis h4l has no parameter gev'?s?"):
        parameters_of(analysis, dataclasses.replace(h4l, parameters={"gevs": 1.0}), 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        h4l.cuts = ()


def test_a_selection_of_everything_is_refused():
    with pytest.raises(ValueError, match=r"^a selection needs at least one cut$"):
        Selection("all", {}, ())
    with pytest.raises(ValueError, match=r"^cut all: there must be one bound at least$"):
        Selection("all", {}, (Cut("all", ()),))
    own = select(NOTEBOOK)
    everything = [Bound(bound.variable) for cut in own.cuts for bound in cut.bounds]
    with pytest.raises(ValueError, match=r"^a selection needs at least one cut$"):
        changed(NOTEBOOK, own, everything, {})


def test_only_the_first_rows_are_passed_by_some_events_of_any_sample():
    assert {cut.name for name in PRESETS for cut in preset(name, BARE)[1].cuts if cut.basic} == {
        "four leptons",
        "flavour",
    }
