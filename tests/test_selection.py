"""Selections: presets, the names of their cuts, what is refused."""

import dataclasses

import pytest

from hzzray.physics.selection import CHANNELS, PRESETS, Selection

ROWS = {
    "notebook-2020": ("all", "four leptons", "flavour", "charge"),
    "notebook-2020-pt": ("all", "four leptons", "pt", "flavour", "charge"),
    "notebook-2025": (
        *("all", "four leptons", "trigger", "trigger-matched", "pt", "identification", "flavour", "charge"),
    ),
    "h4l": (*("all", "four leptons", "two SFOS pairs", "pt", "delta R", "J/psi veto", "Z1 window", "Z2 window"),),
}


def test_the_presets_are_those_of_the_documentation_under_their_own_names():
    assert {name: preset.cuts for name, preset in PRESETS.items()} == ROWS
    assert all(preset.name == name for name, preset in PRESETS.items())
    assert CHANNELS == ("4e", "4mu", "2e2mu")


def test_the_numbers_of_the_notebooks():
    assert PRESETS["notebook-2020"] == Selection("notebook-2020")
    assert PRESETS["notebook-2020-pt"].pt_min == (30.0, 20.0, 10.0)
    assert PRESETS["notebook-2025"].pt_min == (20.0, 15.0, 10.0)
    assert [name for name, preset in PRESETS.items() if preset.absolute_weights] == ["notebook-2025"]
    assert [name for name, preset in PRESETS.items() if preset.trigger or preset.matched or preset.identified] == [
        "notebook-2025"
    ]


def test_the_numbers_of_the_discovery_paper():
    h4l = PRESETS["h4l"]
    assert h4l.leptons == "best"
    assert h4l.pt_min == (20.0, 15.0, 10.0)
    assert (h4l.electron_pt_min, h4l.muon_pt_min) == (7.0, 6.0)
    assert h4l.z1_window == (50.0, 106.0)
    assert (h4l.z2_min, h4l.z2_min_from, h4l.z2_max) == ((17.5, 50.0), (120.0, 190.0), 115.0)
    assert (h4l.dr_same, h4l.dr_other) == (0.1, 0.2)
    assert h4l.sfos_mass_min == 5.0


def test_rows_appear_with_the_cuts_that_are_asked_for():
    everything = {"trigger": True, "matched": True, "pt_min": (20.0,), "identified": True}
    first = Selection("x", **everything)
    assert first.cuts == (
        *("all", "four leptons", "trigger", "trigger-matched", "pt", "identification", "flavour", "charge"),
    )
    best = Selection("x", leptons="best", **everything)
    assert best.cuts == (
        *("all", "four leptons", "trigger", "trigger-matched", "identification", "two SFOS pairs", "pt"),
        *("delta R", "J/psi veto", "Z1 window", "Z2 window"),
    )
    bare = Selection("x", leptons="best")
    assert bare.cuts == (
        "all",
        "four leptons",
        "two SFOS pairs",
        "delta R",
        "J/psi veto",
        "Z1 window",
        "Z2 window",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pt_min": (5.0, 4.0, 3.0, 2.0, 1.0)}, "pt_min names 5 thresholds"),
        ({"pt_min": (10.0, 20.0)}, "pt_min must fall"),
        ({"z1_window": (106.0, 50.0)}, "z1_window must rise, not 106.0 to 50.0"),
        ({"z1_window": (50.0, 50.0)}, "z1_window must rise"),
        ({"z2_min_from": (190.0, 120.0)}, "z2_min_from must rise, not 190.0 to 120.0"),
        ({"z2_min_from": (120.0, 120.0)}, "z2_min_from must rise"),
        ({"z2_min_from": (float("nan"), 120.0)}, "z2_min_from must rise"),
    ],
)
def test_a_selection_that_no_event_could_mean_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Selection("x", **changes)
    with pytest.raises(ValueError, match=message):
        PRESETS["h4l"].with_changes(**changes)


def test_thresholds_may_be_equal():
    assert Selection("x", pt_min=(10.0, 10.0, 10.0, 10.0)).cuts[2] == "pt"


def test_a_changed_selection_is_another_value_with_a_name_that_says_so():
    h4l = PRESETS["h4l"]
    changed = h4l.with_changes(z2_max=120.0)
    assert changed.name == "h4l*"
    assert changed.z2_max == 120.0
    assert dataclasses.replace(changed, name="h4l", z2_max=115.0) == h4l
    assert h4l.with_changes(name="mine").name == "mine"
    assert h4l.z2_max == 115.0


def test_an_unknown_cut_is_refused_and_a_selection_does_not_change():
    with pytest.raises(TypeError, match="z3_window"):
        PRESETS["h4l"].with_changes(z3_window=(0.0, 1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["h4l"].z2_max = 1.0
