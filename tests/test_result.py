"""A run's numbers: what is scaled while it runs, what adds up to what, and what the window holds."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from hzzray.console import warnings
from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.messages import Cost, Counts, Failure
from hzzray.physics import significance as formulas
from hzzray.physics.histogram import ExactSums, Histogram, digest
from hzzray.physics.selection import CHANNELS
from hzzray.result import Bins, Result, RunState, environment, moment, scaled, significance, so_far, summarise, versions
from hzzray.run import make_spec
from tests.support.ledgers import start, task

SPEC = make_spec(
    release("toy"), selection="notebook-2020", samples=("data_A", "Zee", "llll", "ZH125_ZZ4lep", "WH125_ZZ4lep")
)
BINS = SPEC.axis.bins
SHAPE = len(CHANNELS), BINS, len(SPEC.selection.cuts)
UNIT = np.array([0, 0, 0, 0, 1, 0])  # 1.0 in limbs


def filled(weight: int, entries: int, stopped: int = 3) -> Histogram:
    """Put one event of a whole-number weight into each bin of each channel; three stopped at the second cut."""
    made = Histogram.zeros(*SHAPE)
    made.counts[:] = 1
    made.sumw.limbs[:] = weight * UNIT
    made.sumw2.limbs[:] = weight**2 * UNIT
    made.stopped[1] = stopped
    made.stopped_sumw.limbs[1] = stopped * weight * UNIT
    made.invalid[:] = 2, 1
    return Histogram(
        made.counts, made.sumw, made.sumw2, made.stopped, made.stopped_sumw, made.invalid, entries
    )  # fmt: skip


RUNNING = Counts(10, 5, 0)


def state(counts: Counts = RUNNING, **changes) -> RunState:
    weights = {"data_A": 1, "Zee": 2, "llll": 3, "ZH125_ZZ4lep": 5, "WH125_ZZ4lep": 7}
    fields = {
        "version": 3, "run_id": "run", "spec": SPEC, "environment": "local", "counts": counts,
        "histograms": {name: filled(weight, 200) for name, weight in weights.items()},
        "entries": dict.fromkeys(weights, (800, 1000)),
        "failures": (), "cost": Cost(1.0, 2.0, 3.0, 4, 1000), "wall_s": 4.0,
    }  # fmt: skip
    return RunState(**{**fields, **changes})


DONE = Counts(10, 10, 0)
IN_ALL = len(CHANNELS) * (BINS + 2)


@pytest.mark.parametrize(
    ("counts", "scale", "status"),
    [(RUNNING, 4.0, "running"), (DONE, 1.0, "complete"), (Counts(10, 9, 1), 1.0, "partial")],
)
def test_simulation_is_scaled_while_the_run_goes_on(counts, scale, status):
    result = summarise(state(counts))
    assert result.status == status
    zee, data = result.samples["Zee"], result.samples["data_A"]
    assert zee.sumw == (2.0 * 3 * scale,) * BINS
    assert zee.sumw2 == (4.0 * 3 * scale**2,) * BINS
    assert zee.yield_ == 2.0 * IN_ALL * scale
    assert zee.yield_error == pytest.approx(math.sqrt(4 * IN_ALL) * scale, rel=1e-15)
    assert (zee.underflow, zee.overflow) == (6.0 * scale, 6.0 * scale)
    assert zee.channels["4mu"].sumw == (2.0 * scale,) * BINS
    # Counts are what was read, and data are what they are.
    assert (zee.entries, zee.planned, zee.n_out) == (200, 800, IN_ALL)
    assert data.sumw == (3.0,) * BINS
    assert data.yield_ == IN_ALL
    assert data.cutflow[-1].yield_ == IN_ALL


def test_each_sample_has_a_scale_of_its_own():
    entries = {"data_A": (200, 200), "Zee": (200, 200), "llll": (400, 400), "ZH125_ZZ4lep": (2000, 2000)}
    histograms = {**state().histograms, "WH125_ZZ4lep": Histogram.zeros(*SHAPE)}
    result = summarise(state(entries=entries, histograms=histograms))
    bins = {name: row.sumw[0] / 3 for name, row in result.samples.items()}
    assert bins == {"data_A": 1.0, "Zee": 2.0, "llll": 3.0 * 2, "ZH125_ZZ4lep": 5.0 * 10, "WH125_ZZ4lep": 0.0}
    assert result.missing == ("WH125_ZZ4lep",)


def test_the_cutflow():
    result = summarise(state(DONE))
    zee = result.samples["Zee"]
    assert [row.cut for row in zee.cutflow] == list(SPEC.selection.cuts)
    assert [row.n for row in zee.cutflow] == [IN_ALL + 3, IN_ALL, IN_ALL, IN_ALL]
    assert [row.yield_ for row in zee.cutflow] == [2.0 * (IN_ALL + 3), 2.0 * IN_ALL, 2.0 * IN_ALL, 2.0 * IN_ALL]
    assert zee.invalid == {"lepton": 2, "weight": 1}
    running = summarise(state())
    assert running.samples["Zee"].cutflow[0].yield_ == 4 * zee.cutflow[0].yield_
    assert running.samples["Zee"].cutflow[0].n == zee.cutflow[0].n


@pytest.mark.parametrize("counts", [DONE, RUNNING])
def test_groups_are_sums_of_their_samples(counts):
    result = summarise(state(counts))
    assert list(result.groups) == [group.name for group in SPEC.release.groups]
    for name, group in result.groups.items():
        members = [sample for sample in result.samples.values() if sample.group == name]
        assert members
        for part in (None, *CHANNELS):
            rows = [row if part is None else row.channels[part] for row in members]
            total = group if part is None else group.channels[part]
            for field in ("n_out", "yield_", "underflow", "overflow"):
                assert getattr(total, field) == sum(getattr(row, field) for row in rows), (name, part, field)
            for field in ("sumw", "sumw2"):
                assert np.array_equal(getattr(total, field), np.sum([getattr(row, field) for row in rows], axis=0))
            assert total.yield_error == pytest.approx(math.hypot(*(row.yield_error for row in rows)), rel=1e-14)
    signal = result.groups["Signal (mH = 125 GeV)"]
    scale = 4.0 if counts.due else 1.0
    assert signal.sumw == ((5.0 + 7.0) * 3 * scale,) * BINS
    assert signal.sumw2 == ((25.0 + 49.0) * 3 * scale**2,) * BINS


def test_a_group_without_samples_is_empty():
    spec = make_spec(release("toy"), selection="notebook-2020", samples=("Zee",))
    only = state(spec=spec, histograms={"Zee": filled(2, 200)}, entries={"Zee": (200, 200)})
    result = summarise(only)
    assert result.groups["Data"].sumw == (0.0,) * BINS
    assert result.significance.n_signal == 0.0
    assert result.significance.n_background == 2.0 * 3 * 3
    assert result.missing == ()


def test_the_window_counts_whole_bins_inside():
    """115 to 130 GeV are three bins of 5 GeV; the flow bins are never in it."""
    z = summarise(state(DONE)).significance
    assert z.window == (115, 130)
    assert (z.n_signal, z.n_background, z.n_data) == (3 * 3 * 12.0, 3 * 3 * 5.0, 9)
    assert z.n_background_error == pytest.approx(math.sqrt(9 * (4 + 9)))
    assert z.sigma_b == pytest.approx(math.sqrt(0.3) * 45)
    assert z.notebook == formulas.notebook(108.0 + 45.0, 45.0)
    assert z.s_over_sqrt_b == pytest.approx(108 / math.sqrt(45))
    assert z.s_over_sqrt_b_sigma == formulas.s_over_sqrt_b_sigma(108.0, 45.0, z.sigma_b)
    assert z.asimov == formulas.asimov(108.0, 45.0)
    assert z.asimov_sigma == formulas.asimov_sigma(108.0, 45.0, z.sigma_b)
    assert z.observed == formulas.observed(9, 45.0)
    assert z.observed_sigma == formulas.observed_sigma(9, 45.0, z.sigma_b)


def row(contents) -> Bins:
    sumw = tuple(map(float, contents))
    return Bins.model_validate(
        {
            "n_out": 1, "yield": sum(sumw), "yield_error": 1.0, "sumw": sumw, "sumw2": sumw,
            "underflow": 100.0, "overflow": 100.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("window", "n"), [((80, 85), 0), ((80, 250), sum(range(34))), ((84.9, 95.1), 1 + 2), ((245, 250), 33)]
)
def test_any_window(window, n):
    groups = [("data", row(range(BINS))), ("signal", row(range(BINS))), ("background", row(range(BINS)))]
    z = significance(SPEC.axis, window, groups)
    assert (z.n_signal, z.n_background, z.n_data) == (n, n, n)
    if not n:
        assert z.s_over_sqrt_b is None, "nothing over nothing is no number"


def test_the_rest_of_a_result():
    reason = Failure(
        task=task(0, file="https://user:secret@host/f.root?token=abc"), reason="broken", permanent=True
    )  # fmt: skip
    given = state(Counts(10, 9, 1, 500, 2), failures=(reason,), environment="compose")
    result = summarise(given)
    assert (result.run_id, result.environment) == ("run", "compose")
    assert result.tasks.model_dump() == {"planned": 10, "merged": 9, "failed": 1}
    assert result.digest == digest(given.histograms)
    assert result.fraction == 5 * 200 / (5 * 1000)
    assert result.edges == tuple(SPEC.axis.edges)
    (listed,) = result.failures
    assert (listed.sample, listed.start, listed.stop, listed.reason) == ("Zee", 0, 10, "broken")
    assert "secret" not in listed.file
    cost = result.cost
    assert (cost.cpu_s, cost.read_s, cost.bytes_read, cost.wall_s) == (2.0, 3.0, 4, 4.0)
    assert cost.events_per_s == 250.0
    assert summarise(given.with_wall(8.0)).cost.events_per_s == 125.0
    assert summarise(given.with_wall(0.0)).cost.events_per_s == 0.0
    assert Result.model_validate_json(result.model_dump_json()) == result


def test_a_run_of_which_nothing_is_known_yet():
    nothing = {sample.name: Histogram.zeros(*SHAPE) for sample in SPEC.release.samples}
    result = summarise(state(Counts(0, 0, 0), histograms=nothing, entries={}, cost=Cost(), wall_s=0.0))
    assert result.status == "running"
    assert result.fraction == 0.0
    assert len(result.missing) == 5


def test_scaling_does_not_touch_what_is_exact():
    given = state()
    summarise(given)
    assert given.histograms["Zee"].sumw.equal(ExactSums(np.broadcast_to(2 * UNIT, (3, BINS + 2, 6))))
    assert summarise(given).digest == summarise(dataclasses.replace(given, counts=DONE)).digest


@pytest.mark.parametrize(("value", "name"), [(None, "local"), ("", "local"), ("kuberay", "kuberay")])
def test_the_environments_name(monkeypatch, tmp_path, cli, toys, value, name):
    monkeypatch.delenv("HZZRAY_ENVIRONMENT", raising=False)
    if value is not None:
        monkeypatch.setenv("HZZRAY_ENVIRONMENT", value)
    assert environment() == name
    options = ("--engine", "serial", "--source", toys, "--samples", "Zee", "--runs", tmp_path, "--run-id", "run")
    assert cli("run", *options)[0] == 0
    with Ledger.open(tmp_path / "run" / "ledger.db") as ledger:
        assert ledger.environment == name
    assert f'"environment": "{name}"' in (tmp_path / "run" / "result.json").read_text()


def test_a_ledger_keeps_the_environment_that_it_began_in(tmp_path, monkeypatch):
    start(tmp_path / "ledger.db", [task(0)])
    monkeypatch.setenv("HZZRAY_ENVIRONMENT", "swarm")
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert ledger.environment == "local"


def test_versions():
    found = versions()
    assert list(found) == ["hzzray", "python", "numpy", "numba", "uproot", "ray"]
    assert found["numpy"] == np.__version__
    assert all(re.match(r"\d+\.\d+", version) for version in found.values())


def test_what_is_read_so_far_signifies_less():
    result = summarise(state())
    found, now = result.significance, so_far(result)
    assert (now.n_signal, now.n_background) == pytest.approx((found.n_signal / 4, found.n_background / 4))
    assert now.s_over_sqrt_b == pytest.approx(found.s_over_sqrt_b / 2)
    assert now.n_data == found.n_data
    row = moment(result)
    assert (row.events, row.share, row.asimov) == (1000, 0.25, now.asimov)
    assert row.observed == pytest.approx(formulas.observed(found.n_data, found.n_background / 4))


def test_observed_is_against_the_share_of_the_data():
    histograms = state().histograms | {"data_A": filled(1, 800)}
    now = so_far(result := summarise(state(histograms=histograms)))
    found = result.significance
    assert now.n_background == pytest.approx(found.n_background * (800 + 4 * 200) / 4000)
    assert now.observed == pytest.approx(formulas.observed(found.n_data, found.n_background))


def test_nothing_read_yet_signifies_nothing():
    empty = {name: Histogram.zeros(*SHAPE) for name in state().histograms}
    row = moment(summarise(state(Counts(10, 0, 0), histograms=empty)))
    assert (row.share, row.n_background) == (0.0, 0.0)
    assert math.isnan(row.asimov)


def test_scaled_simulation_leaves_the_data():
    found = summarise(state(DONE)).significance
    twice = scaled(found, 2.0)
    assert (twice.n_signal, twice.n_data) == (2 * found.n_signal, found.n_data)
    assert twice.s_over_sqrt_b == pytest.approx(2**0.5 * found.s_over_sqrt_b)
    assert scaled(found, 1.0) == found


@pytest.mark.parametrize(("row", "cut"), [(1, "four leptons"), (2, "flavour")])
def test_a_sample_without_four_electrons_and_muons_is_told(row, cut):
    """Issue 11, item 9: where all events stop for want of an electron or a muon, the schema is wrong."""
    histogram = Histogram.zeros(*SHAPE)
    histogram.stopped[row] = 10
    few = Histogram.zeros(*SHAPE)
    few.stopped[row] = 9
    found = summarise(state(DONE, histograms=state().histograms | {"Zee": histogram, "llll": few}))
    said = [line for line in warnings(found) if "schema" in line]
    assert said == [f"Zee: none of 10 events passes {cut!r}: is the release's schema right?"]
