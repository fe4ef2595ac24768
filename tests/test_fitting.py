"""From a run to a fit: what of its numbers goes in, what is refused, and what the command leaves and says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hzzray.data.catalogue import release
from hzzray.engine.rounded import Table
from hzzray.errors import UsageError
from hzzray.runs.fitting import FIT, WORKSPACE, ingredients, load_fit
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from hzzray.runs.result import Luminosity
from hzzray.runs.run import Settings, execute
from hzzray.runs.templates import load_templates, scaled
from hzzray.statistics.workspace import ModelError


@pytest.fixture(scope="module")
def folder(toys, tmp_path_factory) -> Path:
    """The folder of a run of half of each file, all samples."""
    runs = tmp_path_factory.mktemp("runs")
    settings = Settings(runs=runs, run_id="run", sources=(str(toys),), engine="serial")
    execute(make_spec(release("toy"), fraction=0.5), settings, planned=lambda _: None, progress=lambda _: None)
    return runs / "run"


@pytest.fixture(scope="module")
def result(folder):
    return load_json(folder)


@pytest.fixture(scope="module")
def found(result, folder):
    return load_templates(result, folder)


def test_simulation_is_that_of_the_data_that_were_read(result, found):
    made = ingredients(result, found)
    assert result.luminosity.simulation == pytest.approx(5.0, rel=0.02)
    for name, group in result.groups.items():
        members = [one for one in made.processes if one.group == name]
        if group.role == "data":
            assert made.data.sum() == sum(group.sumw)
            continue
        assert sum(one.sumw.sum() for one in members) == pytest.approx(sum(group.sumw))
        assert sum(one.sumw2.sum() for one in members) == pytest.approx(sum(group.sumw2))
        assert {one.role for one in members} == {group.role}
    llll = next(one for one in made.processes if one.name == "llll")
    assert {one.name for one in llll.uncertainties} == {"lumi", "xsec_ZZ"}
    assert made.edges.tolist() == list(result.edges)


def test_variations_go_in_scaled_as_all_else_is(result, found):
    first = found["m4l"]
    with_some = Table(first.sumw, first.sumw2, first.digest, {"pileup_up": 1.1 * first.sumw})
    made = ingredients(result, found | {"m4l": with_some})
    for one in made.processes:
        np.testing.assert_allclose(one.variations["pileup_up"], 1.1 * one.sumw)
    again = scaled(result, {"m4l": with_some})["m4l"]
    np.testing.assert_allclose(again.variations["pileup_up"], 1.1 * again.sumw)


def test_another_observable_can_be_fitted(result, found):
    made = ingredients(result, found, "m34")
    assert made.observable == "m34"
    assert made.total("signal").sum() <= sum(result.groups["Signal (mH = 125 GeV)"].sumw) * 1.001
    with pytest.raises(UsageError, match=r"has no observable 'm56'; it has m4l, "):
        ingredients(result, found, "m56")


def test_what_was_not_read_can_not_be_fitted(result, found):
    absent = result.significance.model_copy(update={"withheld": {"n_background": "not read: llll"}})
    with pytest.raises(ModelError, match="run run can't be fitted: not read: llll"):
        ingredients(result.model_copy(update={"significance": absent}), found)


def test_data_that_stand_for_another_luminosity_are_not_fitted(result, found):
    other = Luminosity(asked=139.0, simulation=139.0, data=5.0)
    made = ingredients(result.model_copy(update={"luminosity": other}), found)
    assert made.data is None
    assert made.no_data


def test_the_command(folder, cli):
    pytest.importorskip("pyhf", reason="the extra 'fit' isn't installed")
    code, out, err = cli("fit", folder, "--quick")
    assert (code, err) == (0, ""), err
    assert "signal strength  µ̂ = " in out
    assert "σ expected" in out
    document = json.loads((folder / WORKSPACE).read_text())
    assert {one["name"] for one in document["channels"]} <= {"4e", "4mu", "2e2mu"}
    fitted = load_fit(folder)
    result = load_json(folder)
    assert (fitted.run_id, fitted.spec, fitted.digest) == ("run", result.spec.digest, result.digest)
    assert fitted.luminosity == result.luminosity.simulation
    assert all(figure.definition for figure in fitted.figures.values())
    raw = json.loads((folder / FIT).read_text())
    assert raw["figures"]["z_expected"]["unit"] == "σ"
    for name in ("regions", "yields", "impacts", "correlations"):
        assert (folder / f"fit-{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (folder / f"fit-{name}.pdf").read_bytes()[:5] == b"%PDF-"


def test_a_fit_that_fails_is_one_line(folder, cli, monkeypatch):
    module = pytest.importorskip("hzzray.statistics.fit", reason="the extra 'fit' isn't installed")
    monkeypatch.setattr(module, "MOST_CALLS", 3)
    code, _, err = cli("fit", folder, "--quick")
    assert code == 1
    assert " ".join(err.split()) == "hzzray: the fit does not converge: its limit of calls was reached"


def test_without_pyhf_it_says_what_to_install(folder, cli, monkeypatch):
    monkeypatch.setattr("hzzray.fit_cli.find_spec", lambda name: None)
    code, _, err = cli("fit", folder)
    assert code == 2
    assert "a fit needs pyhf and iminuit: pip install 'hzzray[fit]'" in err


def test_before_there_is_a_fit_its_file_is_asked_for(tmp_path):
    with pytest.raises(UsageError, match="no fit yet: hzzray fit"):
        load_fit(tmp_path)


def test_the_command_line_waits_for_no_pyhf():
    import subprocess

    code = "import hzzray.cli, sys; print([m for m in ('pyhf', 'scipy', 'iminuit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
