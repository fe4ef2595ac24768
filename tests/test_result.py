"""A run's numbers: what is scaled while it runs, what adds up to what, and what the window holds."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from pydantic import ValidationError

from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.messages import Cost, Counts, Entries, Failure, RunSpec, RunState
from hzzray.physics.histogram import Blocks, ExactSums, Histogram, Shape, digest
from hzzray.physics.selection import CHANNELS
from hzzray.runs.request import make_spec
from hzzray.runs.result import (
    Bins,
    Result,
    environment,
    expected_in_full,
    moment,
    share_read,
    significance,
    summarise,
    to_read,
    versions,
    with_background_uncertainty,
)
from hzzray.statistics import significance as formulas
from tests.support.ledgers import start, task


def with_luminosity(of_data: float | None, **options) -> RunSpec:
    """Choose a few samples of the toy release, its data_A standing for so many fb⁻¹ of the 10."""
    toy = release("toy")
    samples = [
        sample.model_copy(update={"luminosity": of_data} if sample.name == "data_A" else {}) for sample in toy.samples
    ]
    few = ("data_A", "Zee", "llll", "ZH125_ZZ4lep", "WH125_ZZ4lep")
    chosen = {"selection": "notebook-2020", "samples": few, **options}
    return make_spec(toy.model_copy(update={"samples": tuple(samples)}), **chosen)


SPEC = with_luminosity(10.0)
BINS = SPEC.axis.bins
SHAPE = Shape(len(CHANNELS), (BINS,), len(SPEC.rows))
UNIT = np.array([0, 0, 0, 0, 1, 0])  # 1.0 in limbs


def empty() -> Histogram:
    return Blocks.zeros(SHAPE).histogram()


def shown(histograms: dict[str, Histogram]) -> dict[str, object]:
    """What a state says of histograms."""
    return {"yields": {name: one.yields() for name, one in histograms.items()}, "digest": digest(histograms)}


def histograms_of(read: dict[str, int | None]) -> dict[str, Histogram]:
    """Histograms of all samples."""
    return {name: filled(weight, read[name]) if read[name] else empty() for name, weight in WEIGHTS.items()}


def filled(weight: int, entries: int, stopped: int = 3) -> Histogram:
    """Put one event of a whole-number weight into each bin of each channel; three stopped at the second cut."""
    made = empty()
    made.counts[:] = 1
    made.sumw.limbs[:] = weight * UNIT
    made.sumw2.limbs[:] = weight**2 * UNIT
    made.stopped[1] = stopped
    made.stopped_sumw.limbs[1] = stopped * weight * UNIT
    made.invalid[:] = 2, 1
    return dataclasses.replace(made, entries=entries)


RUNNING = Counts(10, 5, 0)
DONE = Counts(10, 10, 0)
PARTIAL = Counts(10, 9, 1)
IN_ALL = len(CHANNELS) * (BINS + 2)
SIGNAL = "Signal (mH = 125 GeV)"
WEIGHTS = {"data_A": 1, "Zee": 2, "llll": 3, "ZH125_ZZ4lep": 5, "WH125_ZZ4lep": 7}


def state(counts: Counts = RUNNING, read: dict[str, int] | None = None, **changes) -> RunState:
    """Make a run of 1000 entries a sample: all of them read, or 200, or so many of some; of None no file was opened."""
    each = 1000 if counts == DONE else 200
    entries = dict.fromkeys(WEIGHTS, each) | (read or {})
    opened = {name for name, n in entries.items() if n is not None}
    fields = {
        "version": 3, "run_id": "run", "spec": SPEC, "environment": "local", "counts": counts,
        **shown(histograms_of(entries)), "entries": {name: Entries(1000, 1000) for name in WEIGHTS if name in opened},
        "failures": (), "cost": Cost(1.0, 2.0, 3.0, 4, 1000), "wall_s": 4.0,
    }  # fmt: skip
    return RunState(**{**fields, **changes})


@pytest.mark.parametrize(
    ("counts", "scale", "status"), [(RUNNING, 5.0, "running"), (DONE, 1.0, "complete"), (PARTIAL, 5.0, "partial")]
)
def test_simulation_is_that_of_the_whole_sample(counts, scale, status):
    """Issue 11, items 2, 3: what was read of a sample is scaled by total/read, whatever became of the run."""
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
    assert (zee.entries, zee.planned, zee.total, zee.n_out) == (1000 / scale, 1000, 1000, IN_ALL)
    assert (zee.scale, zee.luminosity, data.scale, data.luminosity) == (scale, 10.0, 1.0, 10.0 / scale)
    assert data.sumw == (3.0,) * BINS
    assert data.yield_ == IN_ALL
    assert data.cutflow[-1].yield_ == IN_ALL


def test_each_sample_has_a_scale_of_its_own():
    """Issue 11, item 2: an absent file has no share, and the others aren't scaled by the share of all events."""
    read = {"data_A": 500, "Zee": 1000, "llll": 400, "ZH125_ZZ4lep": 10, "WH125_ZZ4lep": None}
    result = summarise(state(read=read))
    bins = {name: row.sumw[0] / 3 for name, row in result.samples.items()}
    assert bins == {"data_A": 1.0, "Zee": 2.0, "llll": 3.0 * 2.5, "ZH125_ZZ4lep": 5.0 * 100, "WH125_ZZ4lep": 0.0}
    assert result.missing == ("WH125_ZZ4lep",)
    assert (result.samples["WH125_ZZ4lep"].total, result.samples["WH125_ZZ4lep"].luminosity) == (None, None)


@pytest.mark.parametrize("counts", [RUNNING, PARTIAL])
def test_what_stands_side_by_side_is_of_one_luminosity(counts):
    """Issue 11, items 2, 3, 5: half of the data, 5 fb⁻¹ of 10, and different parts of the simulation."""
    result = summarise(state(counts, {"data_A": 500, "Zee": 1000, "llll": 100}))
    assert result.luminosity.model_dump() == {"asked": 10.0, "simulation": 5.0, "data": 5.0}
    assert result.luminosity.compared
    assert result.groups["Data"].sumw == (3.0,) * BINS
    assert result.groups["Background Z,ttbar"].sumw == (2.0 * 3 / 2,) * BINS
    assert result.groups["Background ZZ*"].sumw == (3.0 * 3 * 10 / 2,) * BINS
    assert result.groups["Background ZZ*"].sumw2 == (9.0 * 3 * 100 / 4,) * BINS
    found = result.significance
    assert (found.n_background, found.n_data) == (3 * (3.0 + 45.0), 9)
    assert found.observed == formulas.observed(9, 144.0)
    assert str(result.luminosity) == "5 of 10 fb⁻¹: the data that were read, simulation scaled to them"


def test_a_run_reads_the_same_however_far_it_is():
    """Issue 11, items 3, 5: reading all samples evenly shows no excess and no deficit that isn't there."""
    evenly = summarise(state(RUNNING, {"data_A": 170, "Zee": 170, "llll": 170}))
    assert evenly.groups["Background ZZ*"].sumw == pytest.approx((9.0,) * BINS)
    assert evenly.luminosity.simulation == pytest.approx(1.7)


def test_the_cutflow():
    result = summarise(state(DONE))
    zee = result.samples["Zee"]
    assert [row.cut for row in zee.cutflow] == list(SPEC.rows)
    assert [row.n for row in zee.cutflow] == [IN_ALL + 3, IN_ALL, IN_ALL, IN_ALL]
    assert [row.yield_ for row in zee.cutflow] == [2.0 * (IN_ALL + 3), 2.0 * IN_ALL, 2.0 * IN_ALL, 2.0 * IN_ALL]
    assert zee.invalid == {"lepton": 2, "weight": 1}
    running = summarise(state())
    assert running.samples["Zee"].cutflow[0].yield_ == 5 * zee.cutflow[0].yield_
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
            factors = [result.side_by_side(member) for member in members]
            assert total.n_out == sum(row.n_out for row in rows), (name, part)
            for field in ("yield_", "underflow", "overflow"):
                terms = [f * getattr(row, field) for f, row in zip(factors, rows, strict=True)]
                assert getattr(total, field) == pytest.approx(sum(terms), rel=1e-14), (name, part, field)
            for field, power in (("sumw", 1), ("sumw2", 2)):
                terms = [f**power * np.array(getattr(row, field)) for f, row in zip(factors, rows, strict=True)]
                assert np.allclose(getattr(total, field), np.sum(terms, axis=0), rtol=1e-14, atol=0)
            errors = [f * row.yield_error for f, row in zip(factors, rows, strict=True)]
            assert total.yield_error == pytest.approx(math.hypot(*errors), rel=1e-14)
    signal = result.groups["Signal (mH = 125 GeV)"]
    assert signal.sumw == pytest.approx(((5.0 + 7.0) * 3,) * BINS), "a fifth of the data, a fifth of the simulation"
    assert signal.sumw2 == pytest.approx(((25.0 + 49.0) * 3,) * BINS)


@pytest.mark.parametrize("counts", [RUNNING, PARTIAL, DONE])
def test_a_figure_without_its_ingredients_is_absent(counts):
    """Issue 11, item 4: no data, no signal, an empty group: the reason instead of a number."""
    yet = " yet" if counts == RUNNING else ""
    data = summarise(state(counts, {"data_A": None})).significance
    assert (data.n_data, data.observed, data.observed_sigma) == (None, None, None)
    assert data.withheld["observed"] == f"no data sample was read{yet}"
    assert data.asimov == formulas.asimov(108.0 * 5 ** (counts != DONE), 45.0 * 5 ** (counts != DONE))

    signal = summarise(state(counts, {"ZH125_ZZ4lep": 0})).significance
    assert signal.withheld["asimov"] == signal.withheld["n_signal"] == f"not read{yet}: ZH125_ZZ4lep"
    for name in ("n_signal", "notebook", "s_over_sqrt_b", "s_over_sqrt_b_sigma", "asimov", "asimov_sigma"):
        assert getattr(signal, name) is None, name
    assert signal.observed is not None, "it needs no signal"

    background = summarise(state(counts, {"llll": None}))
    found = background.significance
    assert [name for name, value in found if value is None] == [
        name for name in type(found).model_fields if name not in ("window", "n_signal", "n_data", "withheld")
    ]
    assert set(found.withheld.values()) == {f"not read{yet}: llll"}
    assert not background.is_whole


def test_samples_that_the_run_does_not_have():
    """Issue 11, item 4: a group of background that no sample was chosen of is no zero; nor is a signal."""
    for chosen, reason in (
        (("data_A", "Zee", "ZH125_ZZ4lep"), "no sample of Background ZZ* is in this run"),
        (("data_A", "ZH125_ZZ4lep"), "no background sample is in this run"),
    ):
        found = summarise(state(DONE, spec=with_luminosity(10.0, samples=chosen))).significance
        assert (found.asimov, found.observed) == (None, None)
        assert found.withheld["asimov"] == found.withheld["observed"] == reason
    found = summarise(state(DONE, spec=with_luminosity(10.0, samples=("Zee", "llll")))).significance
    assert found.withheld["asimov"] == "no signal sample is in this run"
    assert found.withheld["observed"] == "no data sample is in this run"
    assert found.n_background == 45.0


def test_another_luminosity_than_the_datas_is_no_comparison():
    """Issue 11, item 6: --luminosity 139 beside data of 10 fb⁻¹."""
    result = summarise(state(DONE, spec=with_luminosity(10.0, luminosity=139.0)))
    assert result.luminosity.model_dump() == {"asked": 139.0, "simulation": 139.0, "data": 10.0}
    assert str(result.luminosity) == "simulation 139 fb⁻¹, data 10 fb⁻¹: not compared"
    found = result.significance
    assert (found.observed, found.n_data, found.n_background) == (None, 9, 45.0)
    reason = "the data are 10 fb⁻¹, simulation is scaled to the 139 fb⁻¹ asked for"
    assert found.withheld == dict.fromkeys(("observed", "observed_sigma"), reason)
    assert result.warnings[0] == f"data and simulation are not compared: {reason}"


@pytest.mark.parametrize("asked", [None, 2.4])
def test_a_part_of_the_data_is_compared_with_as_much_simulation(asked):
    """Issue 11, items 2, 6: data of 2.4 fb⁻¹ of 10, asked for by itself or not."""
    result = summarise(state(DONE, spec=with_luminosity(2.4, luminosity=asked)))
    assert (result.luminosity.simulation, result.luminosity.data) == (2.4, 2.4)
    assert result.groups["Background ZZ*"].sumw == pytest.approx((9.0 * (0.24 if asked is None else 1.0),) * BINS)
    assert result.significance.observed is not None


def test_data_of_an_unknown_luminosity_are_not_compared():
    result = summarise(state(DONE, spec=with_luminosity(None)))
    assert (result.luminosity.data, result.luminosity.simulation) == (None, 10.0)
    assert result.significance.withheld["observed"] == "the catalogue doesn't say what luminosity data_A stands for"
    assert result.significance.n_data == 9


def test_files_of_other_lengths_than_stated_are_told():
    """Issue 11, item 22: fewer or more entries than the catalogue states; the toy release states none."""
    spec = make_spec(release("2020"), samples=("data_A", "Zee"))
    histograms = {"data_A": filled(1, 39), "Zee": filled(2, 89)}
    entries = {"data_A": Entries(39, 39), "Zee": Entries(89, 89)}
    result = summarise(state(DONE, spec=spec, **shown(histograms), entries=entries))
    (said,) = [line for line in result.warnings if "states" in line]
    assert said.startswith("Zee: its file has 89 entries, the release states 898; taken as it is")
    assert not any("states" in line for line in summarise(state(DONE)).warnings)


def test_what_was_read_in_part_is_told_when_the_run_has_ended():
    """Issue 11, item 2: llll with a damaged basket."""
    ended = summarise(state(PARTIAL, dict.fromkeys(WEIGHTS, 1000) | {"llll": 160}))
    assert "llll: 160 of 1000 entries were read: scaled up" in ended.warnings
    assert not any("entries were read" in line for line in summarise(state(RUNNING)).warnings)


def stated(entries: int | None):
    """A spec whose files have so many entries as its release states, which they do."""
    toy = SPEC.release
    samples = tuple(sample.model_copy(update={"entries": entries}) for sample in toy.samples)
    return SPEC.model_copy(update={"release": toy.model_copy(update={"samples": samples, "entries_vary": False})})


def test_a_file_of_several_that_was_not_opened_leaves_what_the_release_states():
    """1000 entries of files that were opened, all read, of 4000: each event stands for four."""
    result = summarise(state(PARTIAL, dict.fromkeys(WEIGHTS, 1000), spec=stated(4000), unopened={"Zee": 1}))
    zee, llll = result.samples["Zee"], result.samples["llll"]
    assert (zee.total, zee.scale, zee.unopened, zee.yield_) == (4000, 4.0, 1, 2.0 * IN_ALL * 4)
    assert (llll.total, llll.scale, llll.unopened) == (1000, 1.0, 0), "its files' own entries are its whole"
    assert not result.significance.withheld
    assert to_read(result) == 4 * 1000 + 4000
    assert result.fraction == 5000 / 8000
    assert (
        "Zee: 1 of its files left out; the others are taken for a part of the 4000 that the release states"
        in result.warnings
    )
    data = summarise(state(PARTIAL, dict.fromkeys(WEIGHTS, 1000), spec=stated(4000), unopened={"data_A": 2}))
    assert (data.luminosity.data, data.luminosity.simulation) == (2.5, 2.5)


@pytest.mark.parametrize("entries", [None, 999])
def test_what_is_read_of_an_unknown_whole_is_not_scaled_and_stands_beside_nothing(entries):
    """The release states no entries, or fewer than the files that were opened have."""
    read = dict.fromkeys(WEIGHTS, 1000)
    result = summarise(state(PARTIAL, read, spec=stated(entries), unopened={"Zee": 1, "ZH125_ZZ4lep": 2}))
    zee = result.samples["Zee"]
    assert (zee.total, zee.scale, zee.luminosity, zee.yield_) == (None, 1.0, None, 2.0 * IN_ALL)
    assert result.unread("Background Z,ttbar") is None, "it has no other sample"
    assert result.unread(SIGNAL) == ["ZH125_ZZ4lep"]
    assert result.groups["Background Z,ttbar"].yield_ == 0.0
    assert result.groups[SIGNAL].yield_ == result.samples["WH125_ZZ4lep"].yield_
    found = result.significance
    assert (found.n_background, found.n_signal, found.asimov, found.observed) == (None, None, None, None)
    assert found.withheld["n_background"] == "what part of Zee was read is unknown: not all files were opened"
    assert found.n_data == 9
    assert not result.is_whole
    assert result.fraction == 1.0, "of what is known"
    assert to_read(result) == 5000
    assert "Zee: 1 of its files left out; the others are taken for an unknown part of the sample" in result.warnings


def test_data_of_which_a_file_was_not_opened_are_counted_and_not_compared():
    result = summarise(state(PARTIAL, dict.fromkeys(WEIGHTS, 1000), unopened={"data_A": 1}))
    assert (result.luminosity.data, result.samples["data_A"].luminosity) == (None, None)
    assert result.groups["Data"].n_out == result.samples["data_A"].n_out > 0
    assert result.unread("Data") == []
    found = result.significance
    assert found.withheld["observed"] == "what part of data_A was read is unknown: not all files were opened"
    assert (found.n_data, found.observed, found.asimov is None) == (9, None, False)


def test_a_result_of_another_version_is_refused_by_what_made_it():
    body = summarise(state(DONE)).model_dump(mode="json", by_alias=True)
    assert Result.model_validate(body).digest == body["digest"]
    body["spec"]["version"], body["versions"]["hzzray"] = 1, "0.1.0"
    with pytest.raises(
        ValidationError, match=r"a result of version 1, made by hzzray 0\.1\.0; hzzray .* reads version"
    ):
        Result.model_validate(body)
    for spec in (5, None, {}):  # and nothing else, whatever a file holds
        with pytest.raises(ValidationError):
            Result.model_validate(body | {"spec": spec, "versions": spec})


def test_the_window_counts_whole_bins_inside():
    """115 to 130 GeV are three bins of 5 GeV; the flow bins are never in it."""
    z = summarise(state(DONE)).significance
    assert z.window == (115, 130)
    assert (z.n_signal, z.n_background, z.n_data) == (3 * 3 * 12.0, 3 * 3 * 5.0, 9)
    assert z.n_background_error == pytest.approx(math.sqrt(9 * (4 + 9)))
    # Of 2020: luminosity of all 45, ZZ* of 27; Z and fakes of 18.
    assert z.n_background_stated == pytest.approx(math.hypot(0.017 * 45, 0.064 * 27, 0.05 * 18, 0.5 * 18))
    assert z.sigma_b == pytest.approx(math.hypot(z.n_background_error, z.n_background_stated))
    assert z.asimov_notebook == formulas.asimov_sigma(108.0, 45.0, math.sqrt(0.3) * 45)
    assert z.notebook == formulas.notebook(108.0 + 45.0, 45.0)
    assert z.s_over_sqrt_b == pytest.approx(108 / math.sqrt(45))
    assert z.s_over_sqrt_b_sigma == formulas.s_over_sqrt_b_sigma(108.0, 45.0, z.sigma_b)
    assert z.asimov == formulas.asimov(108.0, 45.0)
    assert z.asimov_sigma == formulas.asimov_sigma(108.0, 45.0, z.sigma_b)
    assert z.observed == formulas.observed(9, 45.0)
    assert z.observed_sigma == formulas.observed_sigma(9, 45.0, z.sigma_b)


def test_the_uncertainty_of_the_background_is_what_somebody_says():
    """Beside the simulation's statistics, which stay; by the run, its release, or afterwards. No digest moves."""
    whole = summarise(state(DONE))
    assert make_spec(release("toy"), background_uncertainty=0.3).digest == make_spec(release("toy")).digest
    asked = whole.spec.model_copy(
        update={"release": whole.spec.release.model_copy(update={"background_uncertainty": 0.3})}
    )
    assert RunSpec.model_validate_json(asked.canonical()).release.background_uncertainty == 0.3
    assert RunSpec.model_validate(asked.model_dump(by_alias=True)).digest == SPEC.digest
    said = summarise(dataclasses.replace(state(DONE), spec=asked))
    assert said.significance.sigma_b == pytest.approx(math.hypot(math.sqrt(117), 0.3 * 45))
    assert said.significance == with_background_uncertainty(whole, 0.3).significance
    assert with_background_uncertainty(whole, 0.0).significance.sigma_b == whole.significance.n_background_error
    notebooks = with_background_uncertainty(whole, math.sqrt(0.3)).significance
    assert notebooks.asimov_sigma < whole.significance.asimov_notebook, "statistics are in it, too"


def test_what_is_withheld_stays_so_with_another_uncertainty():
    for absent in (summarise(state(DONE, {"llll": None})), summarise(state(DONE, {"data_A": None}))):
        found, again = absent.significance, with_background_uncertainty(absent, 0.3).significance
        assert again.withheld == found.withheld
        assert {name for name, value in again if value is None} == {name for name, value in found if value is None}


def row(contents) -> Bins:
    sumw = tuple(map(float, contents))
    return Bins.model_validate(
        {
            "n_out": 1, "yield": sum(sumw), "yield_error": 1.0, "sumw": sumw, "sumw2": sumw,
            "underflow": 100.0, "overflow": 100.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("window", "n"), [((80, 85), 0), ((80, 250), sum(range(34))), ((245, 250), 33)])
def test_any_window(window, n):
    groups = [("data", row(range(BINS))), ("signal", row(range(BINS))), ("background", row(range(BINS)))]
    z = significance(SPEC.axis, window, groups)
    assert (z.n_signal, z.n_background, z.n_data) == (n, n, n)
    if not n:
        assert z.s_over_sqrt_b is None, "nothing over nothing is no number"
        assert z.withheld["s_over_sqrt_b"] == "not defined for s = 0, b = 0"


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (
            (116, 131),
            "window 116 to 131 GeV doesn't lie on bin edges (34 bins from 80 to 250 GeV); 115 to 130 GeV does",
        ),
        ((84.9, 95.1), "window 84.9 to 95.1 GeV doesn't lie on bin edges"),
        (
            (121, 122),
            "window 121 to 122 GeV doesn't lie on bin edges (34 bins from 80 to 250 GeV); 120 to 125 GeV does",
        ),
        ((100, 300), "window 100 to 300 GeV leaves the axis: 34 bins from 80 to 250 GeV"),
        ((75, 100), "leaves the axis"),
        ((130, 115), "needs low < high"),
        ((115, 115), "needs low < high"),
        ((math.nan, 130), "needs low < high"),
        ((115, math.inf), "leaves the axis"),
        ((249, 250), "245 to 250 GeV does"),
        ((115, 115 + 1e-8), "holds no bin"),
    ],
)
def test_a_window_that_is_not_of_whole_bins_is_refused(window, said):
    """Issue 11, item 1: it was shrunk to whole bins, and labelled as asked."""
    with pytest.raises(ValueError, match=re.escape(said)):
        significance(SPEC.axis, window, [])


def test_the_rest_of_a_result():
    reason = Failure(
        task=task(0, file="https://user:secret@host/f.root?token=abc"), reason="broken", permanent=True
    )  # fmt: skip
    given = state(Counts(10, 9, 1, 500, 2), failures=(reason,), environment="compose")
    result = summarise(given)
    assert (result.run_id, result.environment) == ("run", "compose")
    assert result.tasks.model_dump() == {"planned": 10, "merged": 9, "failed": 1}
    assert result.digest == given.digest
    assert result.fraction == 0.2
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
    nothing = {sample.name: empty() for sample in SPEC.release.samples}
    result = summarise(state(Counts(0, 0, 0), **shown(nothing), entries={}, cost=Cost(), wall_s=0.0))
    assert result.status == "running"
    assert result.fraction == 0.0
    assert len(result.missing) == 5


def test_scaling_does_not_touch_what_is_exact():
    histograms = histograms_of(dict.fromkeys(WEIGHTS, 200))
    given = state(**shown(histograms))
    summarise(given)
    assert histograms["Zee"].sumw.equal(ExactSums(np.broadcast_to(2 * UNIT, (3, BINS + 2, 6))))
    assert given.yields["Zee"].sumw.tolist() == [[2.0] * (BINS + 2)] * 3
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
    """Issue 11, item 5: the history has the numbers of the result, all of one luminosity."""
    result = summarise(state())
    found, full = result.significance, expected_in_full(result)
    assert (full.n_signal, full.n_background) == pytest.approx((5 * found.n_signal, 5 * found.n_background))
    assert full.s_over_sqrt_b == pytest.approx(found.s_over_sqrt_b * 5**0.5)
    assert full.n_data == found.n_data
    assert full.observed is None, "data are never held against another luminosity"
    row = moment(result)
    assert (row.events, row.share, row.asimov) == (1000, 0.2, found.asimov)
    assert row.observed == found.observed == formulas.observed(9, found.n_background)


def test_all_that_was_asked_for():
    done = summarise(state(DONE))
    full = expected_in_full(done)
    assert (full.asimov, full.n_signal) == (done.significance.asimov, done.significance.n_signal)
    lacking = expected_in_full(summarise(state(DONE, {"llll": None})))
    assert (lacking.asimov, lacking.withheld["asimov"]) == (None, "not read: llll")


def test_an_absent_file_counts_in_the_share_that_was_read():
    """Issue 11, item 2: an absent file was planned 0, so that its share was 1."""
    spec = make_spec(release("2020"), samples=("data_A", "data_C"))
    histograms = {"data_A": filled(1, 39), "data_C": empty()}
    result = summarise(state(PARTIAL, spec=spec, **shown(histograms), entries={"data_A": Entries(39, 39)}))
    assert (to_read(result), share_read(result)) == (39 + 237, 39 / (39 + 237))
    assert result.fraction == 39 / (39 + 237)
    assert (result.luminosity.data, result.samples["data_C"].total) == (0.5, 237)


def test_nothing_read_yet_signifies_nothing():
    row = moment(summarise(state(Counts(10, 0, 0), dict.fromkeys(WEIGHTS, 0))))
    assert (row.share, row.n_data) == (0.0, 0)
    assert math.isnan(row.n_background)
    assert math.isnan(row.asimov)


@pytest.mark.parametrize(("row", "cut"), [(1, "four leptons"), (2, "flavour")])
def test_a_sample_without_four_electrons_and_muons_is_told(row, cut):
    """Issue 11, item 9: where all events stop for want of an electron or a muon, the schema is wrong."""
    histogram = empty()
    histogram.stopped[row] = 10
    few = empty()
    few.stopped[row] = 9
    found = summarise(
        state(DONE, **shown(histograms_of(dict.fromkeys(WEIGHTS, 1000)) | {"Zee": histogram, "llll": few}))
    )
    said = [line for line in found.warnings if "schema" in line]
    assert said == [f"Zee: none of 10 events passes {cut!r}: is the release's schema right?"]
