"""``histograms.root`` as ROOT, uproot and hist see it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import hist
import numpy as np
import pytest
import uproot

from hzzray.engine.template_tables import tables
from hzzray.errors import UsageError
from hzzray.messages import Entries
from hzzray.physics.histogram import LIMBS, Blocks
from hzzray.runs.folder import RunFolder, all_runs, find_run, load_json, save_json
from hzzray.runs.result import summarise
from hzzray.runs.templates import save_root
from tests.support.exact import add_exact
from tests.support.result import make_result
from tests.test_result import DONE, SPEC, shown, state

BINS = SPEC.axis.bins
EVENTS = 3000


def weighed(seed):
    """Fill blocks with weighted events, many of them in the flow bins; returns them, and m4l's bins and weights."""
    random = np.random.default_rng(seed)
    weights = random.normal(1e-3, 2e-3, EVENTS)
    blocks = Blocks.zeros(SPEC.shape)
    found = []
    for template, bins in enumerate(SPEC.shape.bins):
        width = bins + 2
        cells = random.integers(0, SPEC.shape.regions * width, EVENTS)
        flow = random.choice([0, bins + 1], EVENTS // 3)
        cells[: EVENTS // 3] = (cells[: EVENTS // 3] % SPEC.shape.regions) * width + flow
        rows = blocks.cells[SPEC.shape.slice(template)]
        np.add.at(rows[:, 0], cells, 1)
        for cell, weight in zip(cells.tolist(), weights.tolist(), strict=True):
            add_exact(rows[:, 1 : 1 + LIMBS], cell, weight)
            add_exact(rows[:, 1 + LIMBS :], cell, weight * weight)
        found.append(cells % width)
    return replace(blocks, entries=EVENTS) + Blocks.zeros(SPEC.shape), found, weights


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run's ``histograms.root``, and of its sample Zee each event's bin (with flow bins) and weight."""
    filled, bins, weights = weighed(1)
    blocks = {sample.name: Blocks.zeros(SPEC.shape) for sample in SPEC.release.samples} | {"Zee": filled}
    whole = state(DONE, **shown({name: one.histogram() for name, one in blocks.items()}))
    entries = whole.entries | {"Zee": Entries(EVENTS, EVENTS)}
    result = summarise(replace(whole, entries=entries))
    return save_root(result, tables(SPEC, blocks), tmp_path_factory.mktemp("root")), bins, weights


def moments(bins, weights):
    """Sums over an event's weight that ROOT keeps: of w, w², wx, wx², bins at their centres, without flow bins."""
    inside = (bins > 0) & (bins <= BINS)
    w = weights[inside]
    x = (SPEC.axis.edges[1:] + SPEC.axis.edges[:-1])[bins[inside] - 1] / 2
    return w.sum(), (w**2).sum(), (w * x).sum(), (w * x * x).sum()


def test_a_histogram_is_what_filling_it_in_root_would_have_made(written):
    """Issue 11, item 8: entries were Σw, effective ones the integral, flow bins' errors invented, titles empty."""
    path, (bins, *_), weights = written
    with uproot.open(path) as file:
        assert not [key for key in file.keys() if "*" in key]  # noqa: SIM118 (with folders' contents)
        made = file["samples/Zee/all"]
        group = file["groups/Background_ZZ/4mu"]
    assert made.classname == "TH1D"
    assert made.member("fEntries") == EVENTS
    found = [made.member(name) for name in ("fTsumw", "fTsumw2", "fTsumwx", "fTsumwx2")]
    assert found == pytest.approx(moments(bins, weights), rel=1e-12)
    sumw2 = np.bincount(bins, weights**2, BINS + 2)
    assert made.variances(flow=True) == pytest.approx(sumw2, rel=1e-13)
    assert made.values(flow=True) == pytest.approx(np.bincount(bins, weights, BINS + 2), rel=1e-11)
    assert made.title == "Zee"
    assert made.member("fXaxis").member("fTitle") == "m_{4#it{l}} [GeV]"
    assert made.member("fYaxis").member("fTitle") == "Events / 5 GeV"
    assert group.title == "Background ZZ*, 4#mu"
    filled = hist.Hist(made)
    assert filled.variances(flow=True) == pytest.approx(sumw2, rel=1e-13)
    assert filled.axes[0].edges.tolist() == SPEC.axis.edges.tolist()


def test_each_observable_has_a_folder_but_the_first(written):
    """Issue 12, item 2: all templates, each with its own axis, label and unit."""
    path, found, weights = written
    labels = {"m12": "m_{12} [GeV]", "eta1": "#eta^{#it{l}_1}", "dr_min": "smallest #Delta R", "n_leptons": "leptons"}
    with uproot.open(path) as file:
        _, *rest = SPEC.templates
        assert set(file.keys(recursive=False, cycle=False)) == {"samples", "groups", *(t.observable for t in rest)}
        for template, bins in zip(rest, found[1:], strict=True):
            made = file[f"{template.observable}/samples/Zee/all"]
            assert made.axis().edges().tolist() == pytest.approx(template.axis.edges.tolist(), abs=1e-12)
            assert made.values(flow=True) == pytest.approx(
                np.bincount(bins, weights, template.axis.bins + 2), rel=1e-9, abs=1e-15
            )
            assert made.variances(flow=True) == pytest.approx(
                np.bincount(bins, weights**2, template.axis.bins + 2), rel=1e-12
            )
            assert made.member("fEntries") == EVENTS
            assert file[f"{template.observable}/groups/Background_ZZ/4mu"].title == "Background ZZ*, 4#mu"
            if template.observable in labels:
                assert made.member("fXaxis").member("fTitle") == labels[template.observable]
        y = file["y4l/samples/Zee/all"].member("fYaxis").member("fTitle")
        assert y == "Events / 0.2"


def test_root_itself_reads_it(written):
    """Issue 11, item 8, with the package ``root``, where it is installed: as ``GetEntries`` and its like see it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is an alpha version
        root = pytest.importorskip("ROOT")
    path, (bins, *_), weights = written
    sumw, sumw2, sumwx, sumwx2 = moments(bins, weights)
    file = root.TFile.Open(str(path))
    made = file.Get("samples/Zee/all")
    assert (made.GetName(), made.GetTitle()) == ("all", "Zee")
    assert made.GetXaxis().GetTitle() == "m_{4#it{l}} [GeV]"
    assert made.GetEntries() == EVENTS
    assert made.GetEffectiveEntries() == pytest.approx(sumw**2 / sumw2)
    assert made.GetSumOfWeights() == pytest.approx(sumw)
    assert made.GetMean() == pytest.approx(sumwx / sumw)
    assert made.GetStdDev() == pytest.approx(abs(sumwx2 / sumw - (sumwx / sumw) ** 2) ** 0.5)
    for i in (0, 1, BINS, BINS + 1):
        assert made.GetBinError(i) == pytest.approx((weights[bins == i] ** 2).sum() ** 0.5)
    entries = made.GetEntries()
    made.ResetStats()  # ROOT's own account of the bins: what we wrote, but for the raw entries that it can't know
    assert made.GetMean() == pytest.approx(sumwx / sumw)
    assert made.GetEntries() != entries
    file.Close()


def of_one_template():
    """A made-up result of m4l alone: all that is in its file is in the result itself."""
    result = make_result()
    return result.model_copy(update={"spec": result.spec.model_copy(update={"templates": result.spec.templates[:1]})})


def test_names_that_differ_only_in_what_a_key_cannot_hold(tmp_path):
    result = of_one_template()
    row = result.groups["Data"]
    names = ("ZZ*", "ZZ", "ZZ+", "ZZ_2", "µ", "*")
    save_root(result.model_copy(update={"groups": dict.fromkeys(names, row)}), {}, tmp_path)
    with uproot.open(tmp_path / "histograms.root") as file:
        keys = ["ZZ", "ZZ_2", "ZZ_3", "ZZ_2_2", "unnamed", "unnamed_2"]
        assert file["groups"].keys(recursive=False, cycle=False) == keys
        assert [file[f"groups/{key}/all"].title for key in keys] == list(names)


def test_a_result_of_an_earlier_version_has_no_errors_of_flow_bins(tmp_path):
    save_json(of_one_template(), tmp_path)
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text("\n".join(line for line in text.split("\n") if "flow_sumw2" not in line))
    save_root(load_json(tmp_path), {}, tmp_path)
    with uproot.open(tmp_path / "histograms.root") as file:
        variances = np.array(file["groups/Data/all"].member("fSumw2"))
    assert np.isnan(variances[[0, -1]]).all()
    assert np.isfinite(variances[1:-1]).all()


def test_a_runs_folder_knows_its_ledger(tmp_path):
    mine = RunFolder(tmp_path / "mine")
    assert not mine.has_ledger
    with pytest.raises(UsageError, match="no such run"):
        mine.ledger()
    mine.create_ledger(SPEC)
    mine.create_ledger(SPEC)  # by another process
    with mine.ledger() as ledger:
        assert (ledger.run_id, ledger.spec) == ("mine", SPEC)
    (tmp_path / "theirs").mkdir()
    theirs = RunFolder(tmp_path / "theirs")
    theirs.ledger_path.symlink_to(mine.ledger_path)
    assert (mine.has_ledger, theirs.has_ledger) == (True, False)
    assert (mine.shown_status, theirs.shown_status) == (None, None)
    save_json(of_one_template(), mine.path)
    assert mine.shown_status == "complete"
    assert find_run("mine", tmp_path) == find_run(str(tmp_path / "mine"), tmp_path / "other") == mine
    assert find_run("none", tmp_path).path == tmp_path / "none"
    assert [one.run_id for one in all_runs(tmp_path)] == ["mine", "theirs"]


def test_half_of_a_run_says_what_lacks(tmp_path):
    mine = RunFolder(tmp_path / "mine")
    mine.create_ledger(SPEC)
    said = "mine: a run without its result.json, .*: hzzray run --run-id mine, asked for the same as before, writes it"
    with pytest.raises(UsageError, match=said):
        load_json(mine.path)
    save_json(of_one_template(), mine.path)
    mine.ledger_path.unlink()
    said = "mine: its ledger.db is gone, or elsewhere; its result is there: hzzray result mine"
    with pytest.raises(UsageError, match=said):
        mine.ledger()
