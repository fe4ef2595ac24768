"""From a run to a fit: what of its numbers goes in, what is refused, and what the command leaves and says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from hzzray.data.catalogue import release
from hzzray.engine.template_tables import Table
from hzzray.errors import UsageError
from hzzray.report import fit_figures, fit_text
from hzzray.runs.fit_run import FIT, WORKSPACE, described, inputs, load_fit, save_fit, systematic
from hzzray.runs.folder import load_json
from hzzray.runs.hepdata import write_hepdata
from hzzray.runs.request import make_spec
from hzzray.runs.result import Luminosity
from hzzray.runs.run import Settings, execute
from hzzray.runs.templates import load_templates, scaled
from hzzray.statistics.fit_result import FitResult, MassResult, MassScan, ParameterResult, Quantity, YieldResult
from hzzray.statistics.workspace import ModelError
from tests.support.result import make_result

MADE_UP = FitResult(
    observed=True,
    figures={
        "mu": Quantity(value=1.1, definition="µ̂"),
        "z_observed": Quantity(value=None, definition="Z", withheld="no"),
    },
    parameters=(
        ParameterResult(
            name="lumi", value=1, error=0.01, known=0.02, pull=0, constraint=0.5, impact_up=0.1, impact_down=-0.1
        ),
    ),
    names=("mu", "lumi"),
    correlations=((1.0, 0.0), (0.0, 1.0)),
    yields=(YieldResult(region="4e", process="llll", group="ZZ", before=1, before_error=0, after=2, after_error=0.5),),
    bins=(),
    mass=MassResult(
        figures={"mass": Quantity(value=125.0, unit="GeV", definition="m_H")},
        scan=MassScan(mass=(124.0, 125.0), twice_delta_nll=(1.0, 0.0)),
    ),
)


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
    made = inputs(result, found)
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
    made = inputs(result, found | {"m4l": with_some})
    for one in made.processes:
        np.testing.assert_allclose(one.variations["pileup_up"], 1.1 * one.sumw)
    again = scaled(result, {"m4l": with_some})["m4l"]
    np.testing.assert_allclose(again.variations["pileup_up"], 1.1 * again.sumw)


def test_the_systematic_band_of_a_spectrum(result, found):
    first = found["m4l"]
    assert systematic(result, found, "m4l") is None, "no variations, no band"
    varied = {
        "m4l": Table(
            first.sumw, first.sumw2, first.digest, {"pileup_up": 1.1 * first.sumw, "pileup_down": 0.8 * first.sumw}
        )
    }
    zz, z = (np.array(result.groups[f"Background {name}"].sumw) for name in ("ZZ*", "Z,ttbar"))
    signal = np.array(result.groups["Signal (mH = 125 GeV)"].sumw)
    band = systematic(result, varied, "m4l")
    known = {one.name: one.relative for one in result.spec.release.uncertainties}
    total = zz + z + signal
    least = np.hypot(0.2 * total, known["lumi"] * total)
    assert (band >= least - 1e-12).all()
    above = np.array(result.edges[:-1]) > 200  # ZZ* and Z alone, but for a trace
    samples = {name: np.array(one.sumw) * result.side_by_side(one) for name, one in result.samples.items()}
    wanted = np.sqrt(
        least**2 + (known["xsec_ZZ"] * zz) ** 2 + (known["fakes"] * z) ** 2
        + (known["xsec_Z"] * (samples["Zee"] + samples["Zmumu"])) ** 2 + (known["xsec_tt"] * samples["ttbar_lep"]) ** 2
    )  # fmt: skip
    np.testing.assert_allclose(band[above], wanted[above], rtol=1e-3)
    parts = [systematic(result, varied, "m4l", region) for region in ("4e", "4mu", "2e2mu")]
    assert (sum(parts) >= band - 1e-12).all(), "of one region, part of it"
    assert all((part <= 1.001 * sum(parts)).all() for part in parts)
    assert systematic(result, varied, "m4l", "5e") is None


def test_another_observable_can_be_fitted(result, found):
    made = inputs(result, found, "m34")
    assert made.observable == "m34"
    assert made.total("signal").sum() <= sum(result.groups["Signal (mH = 125 GeV)"].sumw) * 1.001
    with pytest.raises(UsageError, match=r"has no observable 'm56'; it has m4l, "):
        inputs(result, found, "m56")


def test_what_was_not_read_can_not_be_fitted(result, found):
    absent = result.significance.model_copy(update={"withheld": {"n_background": "not read: llll"}})
    with pytest.raises(ModelError, match="run run can't be fitted: not read: llll"):
        inputs(result.model_copy(update={"significance": absent}), found)


def test_data_that_stand_for_another_luminosity_are_not_fitted(result, found):
    other = Luminosity(asked=139.0, simulation=139.0, data=5.0)
    made = inputs(result.model_copy(update={"luminosity": other}), found)
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
    monkeypatch.setattr("hzzray.runs.fit_run.find_spec", lambda name: None)
    code, _, err = cli("fit", folder)
    assert code == 2
    assert "a fit needs pyhf and iminuit: pip install 'hzzray[fit]'" in err


def test_before_there_is_a_fit_its_file_is_asked_for(tmp_path):
    with pytest.raises(UsageError, match="no fit yet: hzzray fit"):
        load_fit(tmp_path)


def test_the_command_line_waits_for_no_pyhf():
    code = "import hzzray.cli, sys; print([m for m in ('pyhf', 'scipy', 'iminuit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# In a process of its own: it leaves files open.
VALIDATE = """
import sys
from hepdata_validator.full_submission_validator import FullSubmissionValidator
validator = FullSubmissionValidator()
sys.exit(0 if validator.validate(directory=sys.argv[1]) else str(validator.get_messages()))
"""


def test_a_submission_is_hepdatas(folder, cli, tmp_path):
    """With a fit and without one, by HEPData's own validator."""
    fit = (folder / FIT).read_bytes() if (folder / FIT).exists() else None
    (folder / FIT).unlink(missing_ok=True)
    tables = {}
    for name in ("without", "with"):
        if name == "with":
            save_fit(described(MADE_UP, load_json(folder), "m4l"), folder)
        code, out, err = cli("hepdata", folder, "--observable", "m12", "--output", tmp_path / name)
        assert code == 0, err
        done = subprocess.run(
            [sys.executable, "-c", VALIDATE, tmp_path / name], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        tables[name] = {path.name for path in (tmp_path / name).iterdir()} - {"submission.yaml"}
        assert len(out.split()) == len(tables[name]) + 1
    assert tables["without"] == {f"{o}-{r}.yaml" for o in ("m4l", "m12") for r in ("all", "4e", "4mu", "2e2mu")}
    assert tables["with"] - tables["without"] == {"fit.yaml", "yields.yaml", "impacts.yaml", "mass-scan.yaml"}
    spectrum = yaml.safe_load((tmp_path / "with" / "m4l-all.yaml").read_text())
    result = load_json(folder)
    for column, group in zip(spectrum["dependent_variables"], result.groups.values(), strict=True):
        assert [one["value"] for one in column["values"]] == pytest.approx(list(group.sumw))
    (folder / FIT).unlink()
    if fit is not None:
        (folder / FIT).write_bytes(fit)


def test_of_ones_own_analysis_nothing_is_said_of_four_leptons(result, found, tmp_path):
    ref = result.spec.analysis.model_copy(update={"name": "mine", "module": "own", "source": "0" * 64})
    own = result.spec.model_copy(update={"analysis": ref})
    for name, of, there in (("ours", result, True), ("own", result.model_copy(update={"spec": own}), False)):
        write_hepdata(of, found, ["m4l"], None, tmp_path / name)
        said = (tmp_path / name / "submission.yaml").read_text()
        assert [word in said for word in ("HIGGS", "Higgs", "four-lepton")] == [there] * 3
        assert "ATLAS Open Data" in said


def test_a_quick_fit_stays_behind_a_full_one_of_the_same_bins(folder, cli):
    pytest.importorskip("pyhf", reason="the extra 'fit' isn't installed")
    figures = MADE_UP.figures | {"limit_expected": Quantity(value=2.0, definition="")}
    full = described(MADE_UP.model_copy(update={"figures": figures}), load_json(folder), "m4l")
    save_fit(full, folder)
    code, out, err = cli("fit", folder, "--quick")
    assert code == 0, err
    assert load_fit(folder) == full
    assert "fit.json: the full fit of the same bins stays" in " ".join(out.split())
    (folder / "fit-mass.png").write_bytes(b"of another fit")
    save_fit(full.model_copy(update={"digest": "0" * 64}), folder)
    code, out, err = cli("fit", folder, "--quick")
    assert code == 0, err
    assert load_fit(folder).digest == full.digest, "one of other bins is replaced"
    assert not (folder / "fit-mass.png").exists()
    (folder / FIT).unlink()


def test_a_fit_of_other_bins_is_not_submitted(folder, cli, tmp_path):
    other = described(MADE_UP, load_json(folder), "m4l").model_copy(update={"digest": "0" * 64})
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    save_fit(other, copy)
    code, _, err = cli("hepdata", copy)
    assert code == 2
    assert "is of other bins than the run has: hzzray fit run" in " ".join(err.split())


def test_what_a_fit_withholds_is_named_and_leaves_no_gap():
    def figure(value: float | None, why: str = "") -> Quantity:
        return Quantity(value=value, definition="", withheld=why)

    none = "no data sample is in this run"
    names = ("mu", "mu_error", "mu_stat", "mu_syst", "mu_up", "z_expected")
    figures = {name: figure(float(i)) for i, name in enumerate(names)}
    figures |= {"mu_down": figure(None, "µ is not below 0: no such µ")}
    figures |= {name: figure(None, none) for name in ("z_observed", "limit_observed", "gof_q", "gof_p")}
    figures |= {"z_toys": figure(3.5, "none as large: Z is above 3.1 σ, or unlucky"), "p_toys": figure(0.01)}
    figures |= {"limit_expected": figure(2.0), "limit_expected_plus_1": figure(None, "CLs is above 5 %")}
    scale = figure(None, "the run has no variations of lepton energies")
    mass = MassResult(
        figures={"mass": figure(None, none), "mass_error_expected": figure(2.25), "mass_scale": scale},
        scan=MassScan(mass=(), twice_delta_nll=()),
    )
    said = fit_text.lines(MADE_UP.model_copy(update={"figures": figures, "mass": mass}))
    assert said == [
        "signal strength  µ̂ = 0.00 ± 1.00 (+4.00; 2.00 statistics, 3.00 systematics)",
        "significance     5.00 σ expected",
        "by toys          3.50 σ observed, p = 0.01; none as large: Z is above 3.1 σ, or unlucky",
        "95 % CLs limit   2.00 expected without signal",
        "mass             ± 2.25 GeV expected",
        "withheld         lower error of µ̂: µ is not below 0: no such µ",
        f"withheld         observed significance, observed limit, goodness of fit, m_H: {none}",
        "withheld         expected limit: CLs is above 5 %",
        "withheld         error of m_H by lepton energies: the run has no variations of lepton energies",
    ]
    assert not any("–" in line for line in said)


@pytest.mark.parametrize(
    ("p", "word"),
    [
        (0.06, "p = 0.06"),
        (0.01, "p = 0.01: data and model differ by more than chance explains, most in 2e2mu (+3.0 σ in all of it)"),
    ],
)
def test_a_fit_that_describes_its_data_badly_says_where(p, word):
    total = {"process": "total", "group": "", "before": 1.0, "before_error": 0.0}
    yields = (
        YieldResult(region="4e", **total, after=16.0, after_error=3.0, data=11.0),
        YieldResult(region="2e2mu", **total, after=64.0, after_error=6.0, data=94.0),
        YieldResult(region="2e2mu", **total | {"process": "llll"}, after=1.0, after_error=0.0),
    )
    figures = {"gof_p": Quantity(value=p, definition="")}
    fitted = MADE_UP.model_copy(update={"figures": figures, "yields": yields, "mass": None})
    assert dict(fit_text.rows(fitted))["goodness of fit"] == word


def test_nothing_crosses_the_words_of_the_masss_picture():
    masses = np.linspace(119.0, 129.0, 61)
    scan = MassScan(mass=tuple(masses), twice_delta_nll=tuple((masses - 124.0) ** 2))
    figures = {name: Quantity(value=124.0, definition="") for name in ("mass", "mass_up", "mass_down")}
    fitted = MADE_UP.model_copy(update={"mass": MassResult(figures=figures, scan=scan)})
    fig = fit_figures.mass(fitted, make_result())
    fig.draw_without_rendering()
    (axes,) = fig.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    curve = axes.lines[0].get_clip_box()
    (label,) = (box for text, box in boxes.items() if "124.00" in text)
    assert label.y0 > curve.y1
    bars = [line for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[-1] == 124.0]
    assert all(line.get_window_extent().y1 < label.y0 for line in bars)
    for name in (r"1$\sigma$", r"2$\sigma$"):
        assert boxes[name].x1 < axes.bbox.x1 - 0.04 * axes.bbox.width  # ticks are shorter
