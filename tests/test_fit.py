"""The fit: closure, the same as pyhf's and cabinetry's own, and what is said where there is none."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from rich.console import Console

from hzzray.report import fit_progress, fit_text
from hzzray.statistics.workspace import Rules, make
from tests.support.fits import inputs

pytest.importorskip("pyhf", reason="the extra 'fit' isn't installed")

from hzzray.statistics import fit as module
from hzzray.statistics.fit import FitError, Likelihood, Wanted, goodness, run_fit, significance, upper_limits

QUICK = Wanted(limits=False, impacts=False)


@pytest.fixture(scope="module")
def workspace():
    """With data that were thrown, all kinds of modifiers in it, and few bins."""
    return make(inputs(variations=True, data=4), Rules(least_events=1.0))


@pytest.fixture(scope="module")
def likelihood(workspace):
    return Likelihood.of(workspace.document)


@pytest.fixture(scope="module")
def fitted(workspace):
    told = []
    found = run_fit(workspace, has_data=True, progress=lambda *how: told.append(how))
    assert [what for what, done, total in told if done == total] == ["fit", "significance", "limit", "impacts"]
    return found


def test_a_fit_that_takes_long_says_in_a_pipe_where_it_is(monkeypatch):
    class Pipe(io.StringIO):
        said = Event()

        def flush(self):
            if "impacts" in self.getvalue():
                self.said.set()

    monkeypatch.setattr(fit_progress, "EVERY_S", 0.01)
    pipe = Pipe()
    with fit_progress.fit_progress(Console(file=pipe)) as progress:
        progress("limit", 0, 1)
        progress("impacts", 40, 1020)
        assert pipe.said.wait(30)
    assert re.search(r"^impacts 40 of 1020, \d+ s$", pipe.getvalue(), re.MULTILINE)


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("variations", [False, True])
def test_what_is_injected_is_fitted_back(mu, variations):
    found = run_fit(make(inputs(mu, variations=variations)), has_data=True, wanted=QUICK)
    assert found.value("mu") == pytest.approx(mu, abs=2e-3)
    assert found.value("gof_q") == pytest.approx(0.0, abs=1e-3)
    assert all(abs(row.pull) < 0.02 for row in found.parameters)
    if mu == 1.0:
        assert found.value("z_observed") == pytest.approx(found.value("z_expected"), abs=1e-3)
    if mu == 0.0:
        assert found.value("z_observed") == pytest.approx(0.0, abs=0.05)
        assert found.value("mu_down") is None
        assert found.figures["mu_down"].withheld


def test_it_is_pyhfs_own(likelihood):
    """Significance and CLs are those of pyhf.infer.hypotest."""
    import pyhf

    module.use_pyhf()
    p0 = pyhf.infer.hypotest(0.0, likelihood.data, likelihood.model, test_stat="q0")
    from scipy import stats

    assert significance(likelihood) == pytest.approx(stats.norm.isf(float(p0)), abs=1e-3)
    limit, bands = upper_limits(likelihood, likelihood.asimov(1.0))
    cls, expected = pyhf.infer.hypotest(
        limit, likelihood.data, likelihood.model, test_stat="qtilde", return_expected_set=True
    )
    assert float(cls) == pytest.approx(0.05, rel=1e-3)
    _, expected = pyhf.infer.hypotest(
        bands[2], likelihood.data, likelihood.model, test_stat="qtilde", return_expected_set=True
    )
    assert float(expected[2]) == pytest.approx(0.05, rel=1e-3)
    assert bands == sorted(bands)


def test_cabinetry_finds_the_same(tmp_path):
    """The same workspace.json through cabinetry, with pyhf's own MINUIT: all equal to 10⁻⁴."""
    import pyhf

    cabinetry = pytest.importorskip("cabinetry", reason="cabinetry isn't installed: pip install 'hzzray[test]'")
    document = make(inputs(variations=True, data=4), Rules(least_events=3.0)).document
    likelihood = Likelihood.of(document)
    limit, bands = upper_limits(likelihood, likelihood.asimov(1.0))
    z, p = significance(likelihood), goodness(likelihood)[2]
    path = tmp_path / "workspace.json"
    path.write_text(json.dumps(document))
    model, data = cabinetry.model_utils.model_and_data(cabinetry.workspace.load(path))
    pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(tolerance=1e-3))
    result = cabinetry.fit.fit(model, data, custom_fit=True, tolerance=1e-3, goodness_of_fit=True)
    best, at = likelihood.best, result.labels.index("mu")
    assert best.parameters[likelihood.poi] == pytest.approx(result.bestfit[at], abs=1e-4)
    assert best.errors[likelihood.poi] == pytest.approx(result.uncertainty[at], abs=1e-4)
    assert p == pytest.approx(result.goodness_of_fit, abs=1e-4)
    assert z == pytest.approx(cabinetry.fit.significance(model, data).observed_significance, abs=1e-4)
    theirs = cabinetry.fit.limit(model, data, poi_tolerance=2e-5)
    assert limit == pytest.approx(theirs.observed_limit, abs=1e-4)
    np.testing.assert_allclose(bands, theirs.expected_limit, atol=1e-4)


def test_errors_are_statistics_and_the_rest(fitted):
    assert fitted.value("mu_error") == pytest.approx(math.hypot(fitted.value("mu_stat"), fitted.value("mu_syst")))
    assert 0 < fitted.value("mu_syst") < fitted.value("mu_stat")
    assert fitted.value("mu_down") < fitted.value("mu_error") < fitted.value("mu_up"), "a Poisson's likelihood leans"
    known = inputs()
    for one in known.processes:
        one.sumw2[:] = 0.0
    bare = type(known)(
        *(getattr(known, name) for name in ("observable", "unit", "regions", "edges")),
        tuple(type(one)(one.name, one.group, one.role, one.sumw, one.sumw2) for one in known.processes),
        known.data,
    )
    assert run_fit(make(bare), has_data=True, wanted=QUICK).value("mu_syst") == 0.0


def test_at_its_bound_mu_has_an_error_upwards_alone_and_no_part_in_what_is_left():
    """Its curvature there says nothing: 0.00 ± 113 stood in the printout, and in each error after the fit."""
    low = replace(inputs(), data=np.floor(0.7 * inputs(mu=0.0).data))
    found = run_fit(make(low), has_data=True, wanted=QUICK)
    assert found.value("mu") == pytest.approx(0.0, abs=1e-6)
    assert 0 < found.value("mu_up") < 3
    for name in ("mu_error", "mu_stat", "mu_syst", "mu_down"):
        assert found.value(name) is None, name
    assert "at its bound of 0" in found.figures["mu_error"].withheld
    assert fit_text.rows(found)[0] == ("signal strength", f"µ̂ = 0.00 +{found.value('mu_up'):.2f}")
    for row in found.yields:
        assert row.after_error <= 1.5 * row.before_error + 1e-9, row
        assert row.process != "higgs" or row.after_error < 1e-9


def test_impacts_are_shifts_of_mu(fitted, likelihood):
    rows = {row.name: row for row in fitted.parameters}
    assert set(rows) == {name for name, width in zip(likelihood.names, likelihood.widths(), strict=True) if width}
    fakes = rows["fakes"]
    i = likelihood.names.index("fakes")
    moved = (
        likelihood.fit({i: fakes.value + fakes.error}).parameters[likelihood.poi]
        - likelihood.best.parameters[likelihood.poi]
    )
    assert fakes.impact_up == pytest.approx(moved, abs=1e-4)
    assert fakes.impact_up < 0 < fakes.impact_down, "more background, less signal"
    assert abs(fakes.impact_up_before) >= abs(fakes.impact_up) - 1e-4
    assert fakes.constraint <= 1.001
    sizes = [max(abs(row.impact_up), abs(row.impact_down)) for row in fitted.parameters]
    assert sizes == sorted(sizes, reverse=True)
    assert np.hypot.reduce([row.impact_up for row in fitted.parameters]) == pytest.approx(
        fitted.value("mu_syst"), rel=0.3
    )


def test_yields_add_up_and_follow_the_data(fitted, workspace):
    for region in workspace.edges:
        rows = [row for row in fitted.yields if row.region == region]
        total = next(row for row in rows if row.process == "total")
        assert total.after == pytest.approx(sum(row.after for row in rows if row is not total))
        bins = next(row for row in fitted.bins if row.region == region)
        assert sum(map(sum, bins.after.values())) == pytest.approx(total.after)
        assert sum(bins.data) == total.data
        assert total.after_error < total.before_error * 1.5
    matrix = np.array(fitted.correlations)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)


def test_an_error_before_the_fit_by_hand():
    """One uncertainty of 50 % on one process: its yield is known to 50 %."""
    found = run_fit(make(inputs()), has_data=True, wanted=QUICK)
    top = next(row for row in found.yields if row.process == "top" and row.region == "2e2mu")
    assert top.before_error / top.before == pytest.approx(math.hypot(0.5, 0.02), rel=0.02)


def test_without_data_there_is_what_is_expected():
    found = run_fit(
        make(inputs(data=None)), has_data=False, no_data="no data sample was read", wanted=Wanted(impacts=False)
    )
    assert found.value("mu") == pytest.approx(1.0, abs=1e-3)
    for name in ("z_observed", "limit_observed", "gof_q", "gof_p"):
        assert found.value(name) is None
        assert found.figures[name].withheld == "no data sample was read"
    assert found.value("z_expected") > 0
    assert found.value("limit_expected") > 0
    assert all(row.data is None for row in found.yields)
    assert all(figure.definition for figure in found.figures.values())


def test_pseudo_experiments_agree_with_the_formula_and_are_the_seeds():
    made = make(inputs(data=9, signal=6.0), Rules(least_events=3.0))
    one, again, other = (
        run_fit(made, has_data=True, wanted=Wanted(toys=150, seed=seed, limits=False, impacts=False))
        for seed in (1, 1, 2)
    )
    assert one.figures["p_toys"] == again.figures["p_toys"]
    p, z = one.value("p_toys"), one.value("z_observed")
    asymptotic = 0.5 * math.erfc(z / math.sqrt(2))
    assert p == pytest.approx(asymptotic, abs=5 * math.sqrt(asymptotic / 150) + 0.02)
    assert "seed 2" in other.figures["p_toys"].definition


def test_a_fit_that_does_not_converge_says_so(workspace, monkeypatch):
    monkeypatch.setattr(module, "MOST_CALLS", 3)
    with pytest.raises(FitError, match="the fit does not converge: its limit of calls was reached"):
        run_fit(workspace, has_data=True)


def test_where_it_does_not_converge_is_said(likelihood, monkeypatch):
    likelihood.best  # noqa: B018 (made before)
    monkeypatch.setattr(module, "MOST_CALLS", 3)
    with pytest.raises(FitError, match=r"the fit at mu = 3 does not converge"):
        likelihood.fit({likelihood.poi: 3.0})


def test_what_is_no_workspace_is_refused():
    with pytest.raises(FitError, match="the workspace is none"):
        Likelihood.of({"channels": [], "observations": [], "measurements": [], "version": "1.0.0"})
