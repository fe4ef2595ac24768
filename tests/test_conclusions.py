"""What a run concludes from what it read, from the files to the console: issue 11, items 1 to 6 and 22.

Each case is one of the issue's, on toy files or, where they are there, on real ones.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.engine.ledger import Ledger
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from hzzray.runs.run import Settings, StoppedError, execute
from hzzray.statistics import significance as formulas
from tests.support.chaos import FEW
from tests.support.root_files import cut_up, damage

TOY = release("toy")
ZZ, SIGNAL = "Background ZZ*", "Signal (mH = 125 GeV)"


def start(folder: Path, source: Path, spec=None, *, stop_after: int | None = None, **settings):
    """Do a run with the serial engine; it is cancelled after so many tasks."""
    chosen = Settings(runs=folder, run_id="run", sources=(str(source),), engine="serial", **settings)

    def progress(counts):
        if counts.merged == stop_after:
            with Ledger.open(chosen.folder / "ledger.db") as ledger:
                ledger.wish("cancel")

    return execute(spec or make_spec(TOY, observables=("m4l",)), chosen, planned=lambda _: None, progress=progress)


@pytest.fixture(scope="module")
def whole(toys, tmp_path_factory):
    """A complete run of all toys."""
    return start(tmp_path_factory.mktemp("whole"), toys)


def said_by(cli, runs: Path, run_id: str = "run") -> str:
    code, out, err = cli("result", run_id, "--runs", runs)
    assert code == 0, err
    return " ".join(out.split())


def test_a_damaged_basket_costs_no_yield(cli, whole, tmp_path):
    """Issue 11, item 2: a damaged basket of llll took ZZ* from 263.5 to 38.2, Asimov up, observed to 1.36."""
    write_toys(tmp_path / "toys", TOY, events=20_000, seed=3, chunk=6_500)
    damage(tmp_path / "toys" / TOY.sample("llll").path)
    result = start(tmp_path, tmp_path / "toys", chunk=1_000)
    llll, before = result.samples["llll"], whole.samples["llll"]
    assert result.status == "partial"
    assert 0 < llll.entries < 0.3 * before.entries, "most of it is lost"
    assert llll.scale == before.entries / llll.entries
    zz, zz_before = result.groups[ZZ], whole.groups[ZZ]
    assert zz.yield_ == pytest.approx(zz_before.yield_, abs=5 * zz.yield_error)
    assert zz.yield_error > 1.5 * zz_before.yield_error, "and fewer events say less"
    assert result.groups[SIGNAL] == whole.groups[SIGNAL]
    found = result.significance
    assert found.asimov == pytest.approx(whole.significance.asimov, rel=0.15)
    assert found.observed == formulas.observed(found.n_data, found.n_background)
    assert f"llll: {llll.entries} of {llll.planned} entries were read: scaled up" in said_by(cli, tmp_path)


@pytest.mark.parametrize("stated", [True, False])
def test_a_sample_of_which_a_file_is_missing(cli, whole, toys, tmp_path, stated):
    """llll is three files, and one isn't there: as many entries as the release states, or nobody knows."""
    source = tmp_path / "files"
    shutil.copytree(toys, source)
    path = source / TOY.sample("llll").path
    cut_up(path, *(source / f"llll/{i}.root" for i in range(3)))
    path.unlink()
    (source / "llll/1.root").unlink()
    samples = [
        one.model_copy(update={"entries": whole.samples[one.name].total} if one.default else {}) for one in TOY.samples
    ]
    places = {"path": tuple(f"llll/{i}.root" for i in range(3))}
    samples = tuple(one.model_copy(update=places) if one.name == "llll" else one for one in samples)
    spec = make_spec(TOY.model_copy(update={"samples": samples, "entries_vary": not stated}), observables=("m4l",))
    result = start(tmp_path, source, spec)
    assert (result.status, result.missing, result.tasks.failed) == ("partial", (), 1)
    llll, before = result.samples["llll"], whole.samples["llll"]
    assert 0.6 < llll.entries / before.entries < 0.7
    said, found = said_by(cli, tmp_path), result.significance
    assert [row.reason for row in result.failures] == [f"{source}/llll/1.root: no such file"]
    if stated:
        assert llll.scale == before.entries / llll.entries
        assert llll.yield_ == pytest.approx(before.yield_, abs=5 * llll.yield_error)
        assert found.asimov == pytest.approx(whole.significance.asimov, rel=0.15)
        assert "llll: 1 of its files left out; the others are taken for a part of the " in said
    else:
        assert (llll.scale, llll.luminosity) == (1.0, None)
        assert (found.n_background, found.asimov, found.observed) == (None, None, None)
        assert "no notebook, s/√b, Asimov, observed: what part of llll was read" in said
        assert "Asimov with σ_b –, Asimov with the notebooks' σ_b = √0.3·b –, observed –, observed with σ_b –" in said
        assert "llll: 1 of its files left out; the others are taken for an unknown part of the sample" in said
        assert result.groups[ZZ].n_out == 0, "it stands beside nothing"
    assert result.groups[SIGNAL] == whole.groups[SIGNAL]


def test_real_data_of_one_period_alone(cli, shared, tmp_path):
    """Issue 11, item 2: data_B damaged, C and D absent: observed was -3.63 σ."""
    source = tmp_path / "files"
    shutil.copytree(shared / "atlas2020-13tev", source)
    for path in (source, *source.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    path = source / release("2020").sample("data_B").path
    path.write_bytes(path.read_bytes()[:30_000])
    result = start(tmp_path, source, make_spec(release("2020")))
    assert result.luminosity.model_dump() == {"asked": 10.0, "simulation": 0.5, "data": 0.5}
    found = result.significance
    assert (found.observed, found.n_background, found.asimov) == (None, None, None)
    assert found.n_data == 2
    assert found.withheld["observed"] == "not read: Zmumu, ttbar_lep, llll"
    zee = result.samples["Zee"]
    assert zee.yield_ == pytest.approx(43.141792, rel=1e-5), "a sample stands for the luminosity asked for"
    assert result.groups["Background Z,ttbar"].yield_ == pytest.approx(43.141792 / 20, rel=1e-5)
    assert result.fraction < 0.1, "absent files count"
    text = said_by(cli, tmp_path)
    assert re.search(r"Background( ZZ\*)?[ │]+–[ │]+–[ │]+–[ │]+–", text), "an empty group is no zero"
    assert "without" in text
    assert "luminosity: 0.5 of 10 fb⁻¹: the data that were read, simulation scaled to them" in text
    assert "observed –" in text
    assert "observed: not read: Zmumu, ttbar_lep, llll" in text


def test_all_background_and_one_period_of_data(whole, toys, tmp_path):
    """Issue 11, item 2: data_C and data_D absent, all simulation there: compared at what A and B stand for."""
    source = tmp_path / "files"
    shutil.copytree(toys, source)
    for name in ("data_C", "data_D"):
        (source / TOY.sample(name).path).unlink()
    result = start(tmp_path, source)
    share = (39 + 156) / 832
    assert result.luminosity.data == result.luminosity.simulation == pytest.approx(10 * share)
    found, full = result.significance, whole.significance
    assert found.n_background == pytest.approx(share * full.n_background)
    assert found.observed == formulas.observed(found.n_data, found.n_background)
    assert abs(found.observed) < 2.5


def test_a_stopped_run_is_compared_with_what_it_read(cli, toys, tmp_path):
    """Issue 11, item 3: at 17 of 47 tasks the data so far stood against all of the simulation: -4.29 σ."""
    paced = {"chunk": 500, "pace_s": 0.01}  # all samples side by side
    with pytest.raises(StoppedError):
        start(tmp_path, toys, stop_after=17, **paced)
    result = load_json(tmp_path / "run")
    assert (result.status, result.tasks.merged) == ("running", 17)
    found = result.significance
    assert 0 < result.luminosity.simulation == result.luminosity.data < 10
    assert found.observed == formulas.observed(found.n_data, found.n_background)
    assert abs(found.observed) < 2.5
    for name, sample in result.samples.items():
        assert sample.scale == (1.0 if name.startswith("data") else sample.total / sample.entries), name
    assert f"observed {found.observed:.2f}" in said_by(cli, tmp_path)


def test_a_run_that_was_stopped_early_says_what_it_has_not_read(cli, toys, tmp_path):
    """Issue 11, item 3: file by file, some samples were not begun: no number stands for them."""
    with pytest.raises(StoppedError):
        start(tmp_path, toys, stop_after=3, chunk=500)
    found = load_json(tmp_path / "run").significance
    assert (found.asimov, found.observed) == (None, None)
    assert found.withheld["asimov"].startswith("not read yet: ")
    assert "not read yet: " in said_by(cli, tmp_path)


@pytest.mark.parametrize(
    ("lacking", "absent", "reason"),
    [
        ("data_", {"observed"}, "observed: no data sample is in this run"),
        ("125_", {"notebook", "s/√b", "Asimov"}, "no signal sample is in this run"),
        ("llll", {"notebook", "s/√b", "Asimov", "observed"}, "no sample of Background ZZ* is in this run"),
    ],
)
def test_no_figure_without_its_ingredients(cli, toys, tmp_path, lacking, absent, reason):
    """Issue 11, item 4: no data gave observed -3.81, no signal Asimov 0.00, an empty group counted as zero."""
    samples = ",".join(sample.name for sample in TOY.samples if sample.default and lacking not in sample.name)
    code, out, _ = cli(
        "run", "--engine", "serial", "--source", toys, "--samples", samples, "--runs", tmp_path, "--run-id", "run", *FEW
    )
    text = " ".join(out.split())
    assert code == 0
    assert reason in text
    (figures,) = re.findall(r"significance: (.*?observed \S+)", text)
    for name in ("notebook", "s/√b", "Asimov", "observed"):
        assert (f"{name} –" in figures) == (name in absent), name


def test_another_luminosity_than_that_of_the_data(cli, toys, tmp_path):
    """Issue 11, item 6: --luminosity 139 on data of 10 fb⁻¹ gave observed -23.4 without a word."""
    options = ("--engine", "serial", "--source", toys, "--runs", tmp_path, "--run-id", "run", "--luminosity", "139")
    code, out, _ = cli("run", *options)
    text = " ".join(out.split())
    assert code == 0
    assert "luminosity: simulation 139 fb⁻¹, data 10 fb⁻¹: not compared" in text
    assert "observed –" in text
    assert "no observed: the data are 10 fb⁻¹, simulation is scaled to the 139 fb⁻¹ asked for" in text
    assert re.search(r"│ Data \(10\b", text), "a row of another luminosity says so"
    assert load_json(tmp_path / "run").significance.asimov is not None, "what 139 fb⁻¹ lets expect"


def test_a_fraction_says_what_it_stands_for(cli, whole, toys, tmp_path):
    """Issue 11, item 6: --fraction 0.1 kept the label 10 fb⁻¹, and said 9 % where 10 % was asked for."""
    options = ("--engine", "serial", "--source", toys, "--runs", tmp_path, "--run-id", "run", "--fraction", "0.1")
    code, out, _ = cli("run", *options)
    text = " ".join(out.split())
    assert code == 0
    result = load_json(tmp_path / "run")
    share = sum(
        sample.luminosity * (int(0.1 * whole.samples[sample.name].entries) / whole.samples[sample.name].entries)
        for sample in TOY.samples
        if TOY.role(sample) == "data"
    )
    assert result.luminosity.data == pytest.approx(share)
    assert f"luminosity: {share:.4g} of 10 fb⁻¹" in text
    assert f"fraction: 10 % of each file; {100 * result.fraction:.3g} % of all events read" in text
    assert 0.099 < result.fraction < 0.1, "whole entries of each file"
    (error,) = {result.groups[ZZ].yield_error}
    assert result.groups[ZZ].yield_ == pytest.approx(share / 10 * whole.groups[ZZ].yield_, abs=5 * error)


def test_the_table_tells_all_masses_from_those_on_the_axis(cli, toys, tmp_path):
    """Issue 11, item 6: 358 data events in the table, 266 in the plot, and not a word."""
    options = ("--engine", "serial", "--source", toys, "--runs", tmp_path, "--run-id", "run")
    text = cli("run", *options, "--axis", "80:250:170", "--window", "116:131")[1]
    result = load_json(tmp_path / "run")
    data = result.groups["Data"]
    flat = " ".join(re.sub(r"[┃│]", " ", text).split())
    for title in ("events and yield: on the axis and beyond", "80 to 250 GeV", "116 to 131 GeV"):
        assert title in flat
    assert data.n_out > sum(data.sumw) > result.significance.n_data
    assert f"Data {data.n_out} {data.yield_:.0f} {sum(data.sumw):.0f} {result.significance.n_data}" in flat


def test_a_window_is_counted_by_its_own_edges(toys, tmp_path):
    """Issue 11, item 1: [116, 131] on 1 GeV bins, against the events themselves."""
    fine = start(tmp_path, toys, make_spec(TOY, axis="116:131:1", window="116:131"))
    spec = make_spec(TOY, axis="80:250:170", window="116:131")
    result = start(tmp_path / "other", toys, spec)
    assert spec.window == result.significance.window == (116.0, 131.0)
    assert result.significance == fine.significance
    assert result.significance.n_data == sum(result.groups["Data"].sumw[36:51])


def test_resuming_with_another_window_says_so(cli, toys, tmp_path):
    options = ("--engine", "serial", "--source", toys, "--runs", tmp_path, "--run-id", "run", "--samples", "data_A")
    assert cli("run", *options)[0] == 0
    code, _, err = cli("run", *options, "--window", "120:130")
    assert (code, "exists with another window;" in err) == (2, True)


def test_a_file_of_another_length_than_stated_is_told(cli, toys, tmp_path):
    """Issue 11, item 22: on the console and in the result; toys read as the release of 2020 have other lengths."""
    options = ("--engine", "serial", "--source", toys, "--runs", tmp_path, "--run-id", "run", "--samples", "llll")
    code, out, _ = cli("run", "--release", "2020", *options)
    assert code == 0
    result = load_json(tmp_path / "run")
    (warning,) = result.warnings
    stated = release("2020").sample("llll").entries
    assert warning.startswith(
        f"llll: its file has {result.samples['llll'].entries} entries, the release states {stated}"
    )
    assert warning in " ".join(out.split())
