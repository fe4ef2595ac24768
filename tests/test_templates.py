"""All templates of a run: ``templates.json``, what shows one of them, and which of them the run's figures belong to."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import hist
import numpy as np
import pytest
import uhi.io.json
import uproot

from hzzray.data.catalogue import release
from hzzray.engine import reducer as reducer_module
from hzzray.engine.ledger import Ledger
from hzzray.engine.reducer import TABLES_S, Reducer
from hzzray.engine.template_tables import Table, Tables, tables
from hzzray.errors import UsageError
from hzzray.files import OutputError
from hzzray.physics.histogram import Axis
from hzzray.physics.selection import CHANNELS
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from hzzray.runs.result import Result
from hzzray.runs.run import Settings, execute
from hzzray.runs.templates import _with_bins, as_hist, load_templates, save_root, save_templates, scaled, showing
from tests.support.ledgers import SPEC, partial, start, sums, task, tasks

SAMPLES = ("data_A", "Zee", "llll", "ggH125_ZZ4lep", "ZH125_ZZ4lep")


def run(folder: Path, toys: Path, **options) -> Result:
    """Do half of some samples, so that simulation is scaled."""
    spec = make_spec(release("toy"), samples=SAMPLES, fraction=0.5, **options)
    settings = Settings(runs=folder, run_id="run", sources=(str(toys),), engine="serial")
    return execute(spec, settings, planned=lambda _: None, progress=lambda _: None)


@pytest.fixture(scope="module")
def folder(toys, tmp_path_factory) -> Path:
    """The folder of a run that fills all that h4l does."""
    runs = tmp_path_factory.mktemp("runs")
    run(runs, toys)
    return runs / "run"


@pytest.fixture(scope="module")
def result(folder) -> Result:
    return load_json(folder)


@pytest.fixture(scope="module")
def found(result, folder) -> Tables:
    return load_templates(result, folder)


def histograms(folder: Path) -> dict[str, hist.Hist]:
    """Read a run's templates as the documentation says."""
    with (folder / "templates.json").open(encoding="utf-8") as file:
        read = json.load(file, object_hook=uhi.io.json.object_hook)
    return {name: hist.Hist(one) for name, one in read.items()}


def contents(bins) -> list[list[float]]:
    """Sums of weights and of their squares, flow bins first and last."""
    return [
        [bins.underflow, *bins.sumw, bins.overflow],
        [bins.underflow_sumw2, *bins.sumw2, bins.overflow_sumw2],
    ]


def names(result: Result) -> list[str]:
    return [template.observable for template in result.spec.templates]


# --- the file ---


def test_the_default_set_is_there(result, folder):
    assert names(result) == list(histograms(folder)) == [
        *("m4l", "m12", "m34", "pt4l", "y4l", "pt1", "pt2", "pt3", "pt4", "eta1", "eta2", "eta3", "eta4"),
        *("dr_min", "n_leptons"),
    ]  # fmt: skip


def test_hist_reads_the_numbers_of_the_result(result, folder):
    """Issue 12, item 2: UHI JSON of the first observable, of every sample and region, simulation scaled."""
    first = histograms(folder)["m4l"]
    assert [axis.name for axis in first.axes[:2]] == ["dataset", "region"]
    assert list(first.axes[0]) == list(SAMPLES)
    assert list(first.axes[1]) == list(CHANNELS)
    assert first.axes[2].edges.tolist() == list(result.edges)
    assert result.samples["Zee"].scale == pytest.approx(2.0, rel=0.01)
    assert result.samples["data_A"].scale == 1.0
    for name, sample in result.samples.items():
        for region, bins in sample.channels.items():
            one = first[hist.loc(name), hist.loc(region), :]
            assert [one.values(flow=True).tolist(), one.variances(flow=True).tolist()] == contents(bins)
    assert sum(sample.yield_ for sample in result.samples.values()) > 10


def test_all_templates_are_those_that_the_ledger_holds_and_root_reads(result, folder):
    with Ledger.open(folder / "ledger.db") as ledger:
        exact = tables(ledger.spec, ledger.blocks())
    read = histograms(folder)
    with uproot.open(folder / "histograms.root") as file:
        for template in result.spec.templates:
            name, one = template.observable, read[template.observable]
            assert one.axes[2].edges.tolist() == template.axis.edges.tolist()
            for i, (sample, row) in enumerate(result.samples.items()):
                assert (one.values(flow=True)[i] == exact[name].sumw[i] * row.scale).all()
                assert (one.variances(flow=True)[i] == exact[name].sumw2[i] * row.scale**2).all()
                prefix = "" if name == "m4l" else f"{name}/"
                for region in CHANNELS:
                    mine = one[hist.loc(sample), hist.loc(region), :]
                    theirs = file[f"{prefix}samples/{sample}/{region}"]
                    assert (theirs.values(flow=True) == mine.values(flow=True)).all(), (name, sample, region)
                    assert (theirs.variances(flow=True) == mine.variances(flow=True)).all(), (name, sample, region)


@pytest.mark.parametrize("axis", [Axis(0.0, 300.0, 300), Axis(-2.8, 2.8, 28), Axis(0.0, 0.3, 3), Axis(80.0, 250.0, 34)])
def test_a_histograms_edges_are_those_that_events_were_counted_by(result, found, tmp_path, axis):
    """hist's regular axes have edges and bins of their own: of 300 from 0 to 300 its 55 was in the bin below 55."""
    first, *others = result.spec.templates
    template = dataclasses.replace(first, axis=axis)
    other = result.model_copy(
        update={"spec": result.spec.model_copy(update={"templates": (template, *others)}), "edges": axis.edges.tolist()}
    )
    shape = (len(SAMPLES), len(CHANNELS), axis.bins + 2)
    filled = found | {"m4l": Table(np.zeros(shape), np.zeros(shape), "")}
    shown = _with_bins(other, template, filled["m4l"])
    save_templates(shown, filled, tmp_path)
    save_root(shown, filled, tmp_path)
    inside = np.append(axis.edges[:-1], np.nextafter(axis.edges[1:], -np.inf))
    made = (as_hist(shown, filled), as_hist(shown, filled, by="group"), histograms(tmp_path)["m4l"])
    for one in made:
        mine = one.axes[-1]
        assert mine.edges.tolist() == axis.edges.tolist()
        assert mine.index(inside).tolist() == [*range(axis.bins)] * 2
        assert mine.index(np.array([axis.stop, np.inf, np.nan, np.nextafter(axis.start, -np.inf)])).tolist() == [
            axis.bins, axis.bins, axis.bins, -1,
        ]  # fmt: skip
        assert (mine.name, mine.label) == ("m4l", template.label)
    with uproot.open(tmp_path / "histograms.root") as file:
        assert file["samples/Zee/all"].axis().edges().tolist() == axis.edges.tolist()


def test_the_file_says_whose_it_is(result, folder):
    body = json.loads((folder / "templates.json").read_text())
    for name, one in body.items():
        assert one["metadata"]["run"] == "run"
        assert one["metadata"]["spec"] == result.spec.digest
        assert one["uhi_schema"] == 1
        variable = one["axes"][2]["metadata"]
        template = next(template for template in result.spec.templates if template.observable == name)
        assert variable == {"name": name, "label": template.label, "unit": template.unit}
    assert body["m4l"]["metadata"]["digest"] == result.digest
    assert len({one["metadata"]["digest"] for one in body.values()}) == len(body)


# --- what a template shows ---


def test_what_is_shown_is_in_the_file(result, found, folder):
    read = histograms(folder)
    for name in names(result):
        shown = showing(result, found, name)
        assert (shown.observable.observable, shown.is_first) == (name, name == "m4l")
        assert list(shown.edges) == pytest.approx(read[name].axes[2].edges.tolist(), abs=1e-12)
        for sample, row in shown.samples.items():
            for region, bins in row.channels.items():
                one = read[name][hist.loc(sample), hist.loc(region), :]
                assert [one.values(flow=True).tolist(), one.variances(flow=True).tolist()] == contents(bins)


def test_events_are_the_same_whatever_is_shown_of_them(result, found):
    for name in names(result):
        shown = showing(result, found, name)
        for old, new in ((result.samples, shown.samples), (result.groups, shown.groups)):
            assert list(old) == list(new)
            for key in old:
                for one, other in (
                    (old[key], new[key]),
                    *((old[key].channels[c], new[key].channels[c]) for c in CHANNELS),
                ):
                    assert other.n_out == one.n_out
                    assert other.yield_ == pytest.approx(one.yield_, rel=1e-12, abs=1e-15), (name, key)
                    assert other.yield_error == pytest.approx(one.yield_error, rel=1e-12, abs=1e-15), (name, key)
        assert shown.significance == result.significance
        assert shown.digest == result.digest
        assert {sample.cutflow for sample in shown.samples.values()} == {
            sample.cutflow for sample in result.samples.values()
        }


def test_groups_are_sums_of_their_samples_in_each_observable(result, found):
    for name in names(result):
        shown = showing(result, found, name)
        for key, group in shown.groups.items():
            members = [sample for sample in shown.samples.values() if sample.group == key]
            for region in (None, *CHANNELS):
                rows = [(member, member if region is None else member.channels[region]) for member in members]
                total = np.sum(
                    [shown.side_by_side(member) * np.array(contents(row)[0]) for member, row in rows], axis=0
                )
                squares = np.sum(
                    [shown.side_by_side(member) ** 2 * np.array(contents(row)[1]) for member, row in rows], axis=0
                )
                own = contents(group if region is None else group.channels[region])
                if members:
                    assert own[0] == pytest.approx(total, rel=1e-12, abs=1e-15), (name, key, region)
                    assert own[1] == pytest.approx(squares, rel=1e-12, abs=1e-15), (name, key, region)
                else:
                    assert not np.any(own)


def test_an_observable_that_the_run_does_not_have(result, found):
    with pytest.raises(UsageError, match=r"^run run has no observable 'm_sfos'; it has m4l, m12, m34, "):
        showing(result, found, "m_sfos")


def test_what_is_shown_is_no_part_of_a_result(result, found):
    shown = showing(result, found, "m12")
    assert "shown" not in shown.model_dump()
    assert showing(shown, found, "m34").observable.observable == "m34"


# --- the first one ---


@pytest.mark.parametrize("name", ["m4l", "m12"])
def test_the_digest_is_that_of_a_run_that_fills_the_first_observable_alone(folder, toys, tmp_path, name):
    alone = run(tmp_path, toys, observables=[name])
    assert names(alone) == [name]
    read = json.loads((folder / "templates.json").read_text())
    assert alone.digest == read[name]["metadata"]["digest"]
    assert (load_json(folder).digest == alone.digest) is (name == "m4l")


def test_a_run_of_another_observable_first(toys, tmp_path, result, cli):
    """Issue 12, item 2: window and significance belong to the first; m4l's window is none of m12's."""
    found = run(tmp_path, toys, observables=["m12=40:120:20", "m4l"])
    reason = "no window is chosen to count in (--window LOW:HIGH)"
    assert found.significance.window is None
    assert set(found.significance.withheld.values()) == {reason}
    figures = found.significance.model_dump(exclude={"window", "withheld"})
    assert set(figures.values()) == {None}
    assert found.edges == tuple(40.0 + 4 * i for i in range(21))
    assert [row.n_out for row in found.samples.values()] == [row.n_out for row in result.samples.values()]
    shown = showing(found, load_templates(found, tmp_path / "run"), "m4l")
    assert [row.sumw for row in shown.samples.values()] == [row.sumw for row in result.samples.values()]
    code, out, _ = cli("result", "run", "--runs", tmp_path)
    assert code == 0
    assert "no window is chosen" in " ".join(out.split())
    assert cli("plot", "run", "--runs", tmp_path)[0] == 0


def test_a_window_of_another_observable(toys, tmp_path):
    found = run(tmp_path, toys, observables=["m12", "m4l"], window="80:100")
    inside = found.spec.axis.window(80, 100)
    assert found.significance.n_data == round(sum(found.groups["Data"].sumw[inside])) > 0
    assert found.significance.asimov is not None


# --- the command line ---


def test_plots_of_an_observable(cli, folder, tmp_path, result):
    code, out, err = cli("plot", "run", "--runs", folder.parent, "--observable", "m12", "--output", tmp_path)
    assert (code, err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"plot-m12.png", "plot-m12.pdf"}
    assert str(tmp_path / "plot-m12.png") in out
    options = ("--observable", "m12", "--channel", "4e", "--log", "--output", tmp_path)
    assert cli("plot", "run", "--runs", folder.parent, *options)[0] == 0
    assert (tmp_path / "plot-m12-4e-log.png").stat().st_size > 10_000
    # The first one is the plot that the run has anyway.
    assert cli("plot", "run", "--runs", folder.parent, "--observable", "m4l", "--output", tmp_path)[0] == 0
    assert (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--observable", "m56"), "run run has no observable 'm56'; it has m4l, m12, "),
        (("--observable", "m12", "--channel", "5e"), "5e"),
    ],
)
def test_what_a_run_has_no_plot_of(cli, folder, tmp_path, options, said):
    code, _, err = cli("plot", "run", "--runs", folder.parent, "--output", tmp_path, *options)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


# --- files that somebody made to do harm, or that a disk has damaged ---


def changed(change):
    def do(path: Path) -> None:
        body = json.loads(path.read_text())
        change(body)
        path.write_text(json.dumps(body))

    return do


def to_all(value):
    """Put a value in the place of all numbers of m12."""

    def change(body) -> None:
        shape = np.shape(body["m12"]["storage"]["values"])
        body["m12"]["storage"]["values"] = np.full(shape, value).tolist()

    return changed(change)


def instead(make):
    def do(path: Path) -> None:
        path.unlink()
        make(path)

    return do


HOSTILE = {
    "a bin less": (changed(lambda body: body["m12"]["storage"]["values"][0][0].pop()), "m12 isn't (5, 3, 42) numbers"),
    "a sample less": (changed(lambda body: body["m12"]["storage"]["values"].pop()), "m12 isn't (5, 3, 42) numbers"),
    "no numbers": (changed(lambda body: body["m12"]["storage"].update(values=[])), "m12 isn't (5, 3, 42) numbers"),
    "variances of another shape": (
        changed(lambda body: [row[0].append(1.0) for row in body["m34"]["storage"]["variances"]]),
        "m34 isn't (5, 3, 42) numbers",
    ),
    "nan": (to_all(np.nan), "m12 isn't (5, 3, 42) numbers"),
    "inf": (to_all(np.inf), "m12 isn't (5, 3, 42) numbers"),
    "words": (changed(lambda body: body["m12"]["storage"].update(values="many")), "Input should be a valid "),
    "no storage": (changed(lambda body: body["m12"].pop("storage")), "Field required"),
    "another storage": (changed(lambda body: body["m12"]["storage"].update(type="int")), "Input should be 'weighted'"),
    "a list": (lambda path: path.write_text("[]"), "Input should be an object"),
    "no JSON": (lambda path: path.write_bytes(b"\x00\xff" * 100), "Invalid JSON"),
    "half of it": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "Invalid JSON"),
    "nothing": (lambda path: path.write_bytes(b""), "Invalid JSON"),
    "deep": (lambda path: path.write_text("[" * 100_000), "Invalid JSON"),
    "another run's": (changed(lambda body: body.pop("m12")), "no observable m12, which its run has"),
    "too large": (lambda path: os.truncate(path, 2**30), "too large: more than 128 MiB"),
    "a link": (instead(lambda path: path.symlink_to("/etc/passwd")), "a link: none is followed out of a run's folder"),
    "a pipe": (instead(os.mkfifo), "not a file"),
    "a folder": (instead(Path.mkdir), "not a file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_cannot_be_is_refused_in_one_line(cli, folder, tmp_path, kind):
    harm, said = HOSTILE[kind]
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("result.json", "templates.json"):
        shutil.copyfile(folder / name, copy / name)
    harm(copy / "templates.json")
    with pytest.raises(OutputError) as refused:
        load_templates(load_json(copy), copy)
    assert str(copy / "templates.json") in str(refused.value)
    assert said in str(refused.value)
    code, out, err = cli("plot", "run", "--runs", tmp_path, "--observable", "m12")
    assert code == 1
    assert err.startswith(f"hzzray: {copy / 'templates.json'}: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err


def test_a_run_without_templates(cli, folder, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copyfile(folder / "result.json", tmp_path / "run" / "result.json")
    code, _, err = cli("plot", "run", "--runs", tmp_path, "--observable", "m12")
    assert code == 2
    assert "no templates: the run has not got so far yet, or is of an earlier version" in err
    assert cli("plot", "run", "--runs", tmp_path)[0] == 0, "the first observable is in the result itself"


# --- while a run goes on ---


@pytest.fixture
def clock(monkeypatch):
    """The reducer's clock, as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(reducer_module.time, "monotonic", lambda: now[0])
    return now


def test_templates_are_told_when_some_have_changed_and_not_too_often(tmp_path, clock):
    """Issue 12, item 2: snapshots give counts every second, templates now and then."""
    start(tmp_path / "ledger.db", tasks(3), 3)
    reducer = Reducer(tmp_path / "ledger.db")
    assert reducer.news() is not None, "the first time"
    reducer.merge([partial(task(0))])
    clock[0] += TABLES_S - 0.01
    assert reducer.news() is None, "too soon"
    clock[0] += 0.01
    told = reducer.news()
    exact = sums([task(0)])
    for i, template in enumerate(SPEC.templates):
        for sample, name in enumerate(exact):
            h = exact[name].histogram(i)
            assert told[template.observable].sumw[sample].tolist() == h.sumw.floats().tolist()
            assert told[template.observable].sumw2[sample].tolist() == h.sumw2.floats().tolist()
    clock[0] += 10 * TABLES_S
    assert reducer.news() is None, "nothing is new"
    reducer.merge([partial(task(1))])
    assert reducer.news() is not None
    assert TABLES_S >= 5.0
    reducer.close()


def test_a_snapshot_holds_the_first_template_alone(tmp_path):
    start(tmp_path / "ledger.db", tasks(3), 3)
    reducer = Reducer(tmp_path / "ledger.db")
    reducer.merge([partial(one) for one in tasks(3)])
    state = reducer.snapshot()
    for name, blocks in sums(tasks(3)).items():
        assert state.yields[name].sumw.tolist() == blocks.histogram().sumw.floats().tolist()
    assert {yields.n.shape for yields in state.yields.values()} == {(3, SPEC.axis.bins + 2)}
    # What has not changed is not rounded again.
    assert reducer.merge([partial(task(0))]) == ["duplicate"]
    again = reducer.snapshot()
    assert again.version > state.version
    assert all(again.yields[name] is state.yields[name] for name in state.yields)
    reducer.close()


def test_templates_of_a_run_that_goes_on_are_those_of_its_result(tmp_path, result, folder):
    """Whoever writes them while the run goes on scales them as that result is."""
    with Ledger.open(folder / "ledger.db") as ledger:
        of_all = tables(ledger.spec, ledger.blocks())
    samples = result.samples | {"Zee": result.samples["Zee"].model_copy(update={"scale": 7.0})}
    later = result.model_copy(update={"samples": samples})
    save_templates(later, scaled(later, of_all), tmp_path)
    read = histograms(tmp_path)["m34"]
    i = list(SAMPLES).index("Zee")
    assert (read.values(flow=True)[i] == of_all["m34"].sumw[i] * 7.0).all()
    assert (read.variances(flow=True)[i] == of_all["m34"].sumw2[i] * 49.0).all()
    assert not list(tmp_path.glob(".*")), "written whole, in one go"
