"""Analyses of a user's own: one file, found by its source, refused in one line; the examples run everywhere alike."""

import math
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import pytest
import uproot

from hzzray import analyses, physics
from hzzray.data.catalogue import release
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, UsageError
from hzzray.physics import jit
from hzzray.physics.columns import nothing
from hzzray.runs.folder import load_json
from hzzray.runs.plan import make_plan
from hzzray.runs.request import make_spec
from tests.support.bridges import Bridging, Site

EXAMPLES = Path(__file__).parents[1] / "examples"
TOY = release("toy")

MINIMAL = """
from typing import NamedTuple
import numpy as np
from hzzray.physics import Analysis, Axis, Bound, Cut, Jagged, Offsets, Template, Variable, entry, kernel, one_each, put

class Columns(NamedTuple):
    offsets: np.ndarray
    pt: np.ndarray

class Parameters(NamedTuple):
    gev: float = 1.0
    pt_min: float = 7.0
    how: int = 0

def columns(schema, parameters):
    return Columns(Offsets(), Jagged(schema.pt))

@entry
def measure(start, stop, c, p, slots, out):
    events = one_each(start, stop, out)
    for k in range(events):
        first, last = c.offsets[start + k], c.offsets[start + k + 1]
        if p.how == 7 and (last - first) % 2:
            continue
        put(out, slots, 0, k, last - first)
        put(out, slots, 1, k, c.pt[first] * p.gev)
        if p.how == 1 and start + k == 60:
            raise ValueError("no such luck")
        if p.how == 4 or p.how == 8:
            out.region[k] = -1 if p.how == 4 else 10**6
        if p.how == 5:
            out.first[k] = 7
        if p.how == 6 and (start + k) % 2:
            put(out, slots, 1, k, np.nan)
    return 0 if p.how == 2 else events + 1 if p.how == 3 and events else events

mine = Analysis(
    "mine",
    (Variable("n", "leptons"), Variable("pt1", "leading pt", "GeV")),
    ("all",),
    columns,
    Parameters(),
    measure,
    cuts=(Cut("leptons", (Bound("n", 0.5),)),),
    templates=(Template("pt1", Axis(0.0, 100.0, 20)), Template("n", Axis(-0.5, 9.5, 10))),
)
"""

HELPER = "@kernel\ndef helper(x):\n    return x.gone\n\n"


@pytest.fixture
def mine(tmp_path):
    """Write MINIMAL with something in place of something else; returns FILE.py:mine."""

    def write(old="", new="", name="own.py"):
        assert old in MINIMAL
        path = tmp_path / name
        path.write_text(MINIMAL.replace(old, new) if old else MINIMAL)
        return f"{path}:mine"

    return write


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("first, last =", "first last =", r"line 22: SyntaxError: invalid syntax"),
        ("import numpy as np", "import numpy as np\nimport nowhere", r"line 4: ModuleNotFoundError: No module named"),
        ("import numpy as np", "import sys\nsys.exit(0)", r"line 4: SystemExit: 0"),
        ('"leading pt"', '"$p_T^{oops$"', r"mine: the label of pt1, '\$p_T\^{oops\$': "),
        ("mine = Analysis", "yours = Analysis", r"no 'mine' in it; it has yours"),
        ("mine = Analysis", "mine = 1\nyours = Analysis", r"mine is int, not an Analysis"),
        ("@entry\n", "", r"mine: measure isn't compiled: write @entry above it"),
        ("c.pt[first]", "c.pT[first]", r"measure: line 26: TypingError: Unknown attribute 'pT'"),
        ("* p.gev", '* "GeV"', r"measure: line 26: TypingError: No implementation of function .*mul"),
        ("* p.gev", "* gev", r"measure: line 26: TypingError: NameError: name 'gev' is not defined"),
        ("k, last - first)", 'k, "many")', r"measure: line 25: TypingError: No implementation of function .*setitem"),
        (
            "@entry\ndef measure(start, stop, c, p, slots, out):\n",
            f"{HELPER}@entry\ndef measure(start, stop, c, p, slots, out):\n    helper(p)\n",
            r"measure: line 20: TypingError: Unknown attribute 'gone'",
        ),
        ("    return Columns(", "    return (", r"columns: returned tuple, not a NamedTuple"),
        ("Jagged(schema.pt)", "schema.pt", r"columns: pt is str, not one of Offsets, Jagged, Scalar"),
        ("schema.pt", "schema.momentum", r"columns: line 16: AttributeError: .*'momentum'"),
        ("schema.pt", "schema.chrge", r"columns: line 16: AttributeError: .*'chrge'; there is charge"),
        ("schema.pt", "None", r"analysis own.py:mine asks for column pt, which release toy has no branch for"),
        (
            '(Bound("n", 0.5),)',
            '(Bound("n", 0.5))',
            r"line 44: ValueError: cut leptons: bounds: expected a tuple of Bou",
        ),
        (
            'Bound("n", 0.5)',
            'Bound("N", 0.5)',
            r"line 37: ValueError: analysis mine has no variable 'N'; it has n, pt1",
        ),
        ('Bound("n", 0.5)', 'Bound("n", 2.0, 1.0)', r"line 37: ValueError: cut on n: nothing is above 2 and below 1"),
        ("Axis(0.0, 100.0, 20)", "Axis(100.0, 0.0, 20)", r"line 45: ValueError: an axis needs start < stop"),
        ('("all",)', '("all")', r"line 37: ValueError: regions: expected a tuple of str"),
        ("Parameters(),", "Parameters,", r"parameters: expected a NamedTuple, not type: write Parameters\(\)"),
        ('Template("n"', 'Template("pt1"', r"line 37: ValueError: template pt1 is there twice"),
        (
            'Variable("pt1"',
            'Variable("weight"',
            r"line 37: ValueError: variable weight: skims and histograms have a col",
        ),
        ("pt_min: float = 7.0", 'pt_min: str = "7"', r"line 37: ValueError: parameters are numbers and flags"),
    ],
)
def test_a_wrong_file_is_told_where_and_why(mine, old, new, said):
    place = mine(old, new)
    with pytest.raises(UsageError, match=said) as caught:
        make_spec(TOY, analysis=place)
    assert "\n" not in str(caught.value)
    assert "own" in str(caught.value)


def test_variations_that_an_analysis_cant_have_are_named_with_those_that_it_can(mine):
    said = (
        r"--variations: analysis own.py:mine can't have electron_efficiency: analysis mine has no variable "
        r"'n_electrons'; it has n, pt1; of those asked for it can have trigger, pileup$"
    )
    with pytest.raises(UsageError, match=said):
        make_spec(TOY, analysis=mine(), variations="trigger,electron_efficiency,pileup")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"observables": ["mass=0:1:2"]}, r"--observable mass.*: analysis mine has no variable 'mass'; it has n, pt1"),
        ({"observables": ["pt1=9:1:2"]}, r"--observable pt1=9:1:2: an axis needs start < stop"),
        ({"observables": ["pt1=0:1:2.5"]}, r"--observable pt1=0:1:2.5: 2.5 is no number of bins"),
        ({"cuts": ["mass=0:1"]}, r"analysis mine has no variable 'mass'; it has n, pt1"),
        ({"parameters": ["pt_max=1"]}, r"analysis mine has no parameter 'pt_max'; it has pt_min, how"),
        ({"parameters": ["how=1.5"]}, r"--parameter how=1.5: how must be a whole number"),
        ({"window": "0.5:50"}, r"doesn't lie on bin edges"),
        ({"selection": "h4l"}, r"--selection is of our analyses"),
    ],
)
def test_a_wrong_option_is_told_with_what_there_is(mine, choice, said):
    with pytest.raises(UsageError, match=said):
        make_spec(TOY, analysis=mine(), **choice)


def test_the_command_line_says_it_in_one_line_and_ends_with_2(cli, mine):
    place = mine("c.pt[first]", "c.pT[first]", name="xyz.py")  # :x: would be a picture to rich
    code, out, err = cli("run", "--analysis", place, "--source", "nowhere", "--engine", "serial")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"hzzray: analysis xyz.py:mine: measure: line 26: TypingError: Unknown attribute 'pT' of type .*\n", err
    )
    code, _, err = cli("run", "--analysis", place.removesuffix(":mine") + ":x:")
    assert code == 2
    assert ":x:" in err


def test_a_file_that_imports_another_of_the_users_is_refused(mine, tmp_path, monkeypatch):
    (tmp_path / "helpers_of_mine.py").write_text("FACTOR = 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    place = mine("import numpy as np", "import numpy as np\nfrom helpers_of_mine import FACTOR")
    with pytest.raises(UsageError, match=r"line 4: imports helpers_of_mine from .*: an analysis is one file"):
        make_spec(TOY, analysis=place)


def test_a_message_can_name_an_analysis_but_never_bring_one(mine, tmp_path):
    place = mine()
    _, ref = analyses.load(place)
    file = place.removesuffix(":mine")
    assert analyses.resolve(ref, [file]).name == "mine"
    assert analyses.resolve(ref, [str(tmp_path)]).name == "mine"
    with pytest.raises(DataError, match=r"own.py:mine of source \w+: HZZRAY_ANALYSES here allows no own.py"):
        analyses.resolve(ref, [])
    with pytest.raises(DataError, match=r"HZZRAY_ANALYSES here allows no own.py"):
        analyses.resolve(ref, [str(EXAMPLES)])
    mine("7.0", "8.0")
    with pytest.raises(DataError, match=r"own.py has another content"):
        analyses.resolve(ref, [file])
    (tmp_path / "own.py").unlink()
    with pytest.raises(DataError, match=r"allows no own.py"):
        analyses.resolve(ref, [file])


SHARING = """
from dataclasses import replace
from hzzray.physics import entry, one_each, put
from hzzray.physics.lepton_columns import M4L
from hzzray.physics.selection import NOTEBOOK

@entry
def measure(start, stop, c, p, slots, out):
    events = one_each(start, stop, out)
    for k in range(events):
        put(out, slots, M4L, k, 1.0)
    return events

mine = replace(NOTEBOOK, measure=measure)
"""


def test_another_content_is_compiled_anew_even_where_date_and_size_are_the_same(tmp_path, monkeypatch):
    """With types that both contents share, numba would take one for the other; and forget where its cache is."""
    path = tmp_path / "own.py"

    def measured(content):
        path.write_text(content)
        os.utime(path, (1e9, 1e9))
        spec = make_spec(TOY, analysis=f"{path}:mine", observables=["m4l=0:10:10"], window="0:10")
        filler = analyses.filler(spec, analyses.resolve(spec.analysis, [str(path)]))
        filler._measure(
            0,
            1,
            nothing(analyses.reads(spec, filler._analysis, simulation=True)).columns,
            filler._parameters,
            filler._layout.slots,
            filler._candidates,
        )
        return filler._candidates.values[filler._layout.slots[0], 0]

    monkeypatch.chdir(tmp_path)
    assert measured(SHARING) == 1.0
    monkeypatch.setenv("NUMBA_LOOP_VECTORIZE", "1")
    assert measured(SHARING.replace("1.0", "2.0")) == 2.0
    assert measured(SHARING.replace("1.0", "3.0")) == 3.0
    assert [found.name for found in tmp_path.iterdir()] == ["own.py"]


def test_what_a_file_imports_is_there_and_numba_only_for_those_who_compile():
    assert all(getattr(physics, name) is not None for name in physics.__all__)
    assert sorted(physics._HOME) == sorted(physics.__all__)
    with pytest.raises(ImportError, match="cannot import name 'nothing_of_the_kind'"):
        exec("from hzzray.physics import nothing_of_the_kind")
    code = "import sys; from hzzray.physics import Analysis, Axis, Jagged; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_compiled_code_is_kept_by_all_sources_of_ours_wherever_they_are():
    package = Path(analyses.__file__).parent
    kept = jit.sources()
    compiled = [
        path
        for path in package.rglob("*.py")
        if re.search(r"^@(entry|kernel|inlined)|njit\(", path.read_text(), re.MULTILINE)
    ]
    assert {path.parent.name for path in compiled} == {"physics", "data"}
    assert all(path.read_bytes() in kept for path in compiled)
    assert (package / "physics" / "columns.py").read_bytes() in kept  # whose numbers are compiled in
    assert (package / "cli.py").read_bytes() not in kept


def run(cli, tmp_path, source, *options, run_id="one", engine="serial"):
    code, _, err = cli(
        *("run", "--source", source, "--runs", tmp_path / "runs", "--run-id", run_id, "--engine", engine), *options
    )
    return code, err, load_json(tmp_path / "runs" / run_id)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: {"templates": (replace(spec.templates[0], observable="mass"),)}, "has no variable 'mass'"),
        (lambda spec: {"selection": replace(spec.selection, parameters={"p": 1})}, "has no parameter p"),
        (lambda spec: {"selection": replace(spec.selection, parameters={"how": math.inf})}, "are finite numbers"),
        (
            lambda spec: {"analysis": spec.analysis.model_copy(update={"regions": ("a", "b")})},
            "has regions all, not a, b",
        ),
    ],
)
def test_a_worker_refuses_a_spec_that_its_analysis_doesnt_fit(mine, toys, change, said):
    """A message may say anything: the worker lives on, and its tasks are refused."""
    place = mine()
    spec = make_spec(TOY, analysis=place, samples=("data_A",))
    (task,) = make_plan(spec, "r", (str(toys),), places=(place[:-5],)).tasks
    spec = spec.model_copy(update=change(spec))
    worker = Worker(spec, (str(toys),), places=(place[:-5],))
    with pytest.raises(DataError, match=said):
        worker.process(task.model_copy(update={"spec": spec.digest}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (1, r"data_D.*: analysis own.py:mine: measure: line 28: ValueError: no such luck"),
        (2, r": analysis own.py:mine: measure returned 0 for events 0 to \d+: it must return how many it measured"),
        (3, r": analysis own.py:mine: measure returned \d+ for events 0 to \d+: it must return how many it measured"),
        (5, r": analysis own.py:mine: measure left an event without a candidate"),
        (8, r": analysis own.py:mine: measure gave a candidate region 1000000: there are 0 to \d, and -1 for none"),
    ],
)
def test_a_kernel_that_fails_at_work_fails_its_tasks_and_the_run_goes_on(cli, tmp_path, toys, mine, how, said):
    options = ("--samples", "data_A,data_D", "--parameter", f"how={how}")
    code, _, result = run(cli, tmp_path, toys, "--analysis", mine(), *options)
    assert (code, result.status) == (3, "partial")
    assert result.tasks.failed == (1 if how == 1 else 2)  # data_A has fewer events
    assert any(re.search(said, failure.reason) for failure in result.failures)


def test_an_event_of_no_region_has_no_place_and_nan_is_counted(cli, tmp_path, toys, mine):
    _, _, result = run(cli, tmp_path, toys, "--analysis", mine(), "--parameter", "how=4")
    assert result.status == "complete"
    assert all(sample.n_out == 0 for sample in result.samples.values())
    _, _, result = run(cli, tmp_path, toys, "--analysis", mine(), "--parameter", "how=6", run_id="two")
    row = result.samples["llll"]
    assert row.n_out == (row.entries + 1) // 2
    assert (
        f"llll: {row.entries // 2} of {row.entries} events left out: nan or inf in what is measured" in result.warnings
    )


def test_what_is_not_put_is_not_there_whatever_an_earlier_event_had(cli, tmp_path, toys, mine):
    _, _, result = run(cli, tmp_path, toys, "--analysis", mine(), "--parameter", "how=7", "--chunk", 300)
    numbers = ak.num(read(toys / TOY.sample("data_D").path, ["lep_pt"])["lep_pt"])
    assert 0 < result.samples["data_D"].n_out == ak.sum(numbers % 2 == 0) < len(numbers)


class Example(NamedTuple):
    """An example, the files that it reads here, and what the command line needs to do so."""

    place: str
    release: Any
    source: Path
    options: tuple[object, ...]

    @property
    def file(self):
        """Its own file."""
        return self.place.rpartition(":")[0]


@pytest.fixture(scope="session")
def photons(tmp_path_factory):
    """Toys of the example with photons, written as a user would."""
    folder = tmp_path_factory.mktemp("photons")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["diphoton.py", "--toy", str(folder), "--scale", "0.1"])
        runpy.run_path(str(EXAMPLES / "diphoton.py"), run_name="__main__")
    return folder


@pytest.fixture(params=["zll", "diphoton"])
def example(request, toys, photons):
    if request.param != "diphoton":
        place = f"{EXAMPLES}/dilepton.py:{request.param}"
        return Example(place, TOY, toys, ("--analysis", place))
    place, catalogue = f"{EXAMPLES}/diphoton.py:diphoton", EXAMPLES / "diphoton.yaml"
    options = ("--analysis", place, "--release", "photons-toy", "--catalogue", catalogue)
    return Example(place, release("photons-toy", catalogue), photons, options)


def read(path, names):
    with uproot.open(path) as file:
        return file["mini"].arrays(names)


def leading(events, names, by, good):
    """Take the two leading ones of each event that has two, as numpy has them."""
    kept = events[[*names]][good]
    order = ak.argsort(kept[by], axis=1, ascending=False)
    return [{name: ak.to_numpy(kept[name][order][:, i]).astype(float) for name in names} for i in (0, 1)]


def mass_of(one, two, pt, eta, phi, energy):
    def vector(p):
        at = p[pt]
        return np.array([p[energy], at * np.cos(p[phi]), at * np.sin(p[phi]), at * np.sinh(p[eta])]) / 1000

    e, x, y, z = vector(one) + vector(two)
    return np.sqrt(e**2 - x**2 - y**2 - z**2)


def leptons_by_hand(path):
    names = ("lep_pt", "lep_eta", "lep_phi", "lep_E", "lep_charge", "lep_type")
    events = read(path, names)
    one, two = leading(events, names, "lep_pt", events["lep_pt"] > 7000)
    m = mass_of(one, two, *names[:4])
    passed = (one["lep_pt"] > 25e3) & (two["lep_pt"] > 15e3) & (one["lep_charge"] == -two["lep_charge"])
    return m[passed & (one["lep_type"] == two["lep_type"]) & (m > 66) & (m < 116)]


def photons_by_hand(path):
    names = [f"photon_{name}" for name in ("pt", "eta", "phi", "E", "isTightID", "ptcone30", "etcone20")]
    events = read(path, [*names, "trigP"])
    eta = abs(events["photon_eta"])
    good = (events["photon_pt"] > 25e3) & (eta < 2.37) & ((eta < 1.37) | (eta > 1.52)) & events["photon_isTightID"]
    chosen = events["trigP"] & (ak.sum(good, axis=1) == 2)
    one, two = leading(events[chosen], names, "photon_pt", good[chosen])
    m = mass_of(one, two, *names[:4])
    isolated = [p[cone] / p["photon_pt"] < 0.065 for p in (one, two) for cone in ("photon_ptcone30", "photon_etcone20")]
    return m[np.all(isolated, axis=0) & (one["photon_pt"] > 35e3) & (m > 105) & (m < 160)]


def test_the_examples_select_what_uproot_and_numpy_do(cli, tmp_path, example):
    by_hand = photons_by_hand if "diphoton" in example.place else leptons_by_hand
    code, _, result = run(cli, tmp_path, example.source, *example.options)
    assert (code, result.status) == (0, "complete")
    for sample in example.release.samples:
        if sample.name in result.samples:
            masses = by_hand(example.source / sample.path)
            assert result.samples[sample.name].n_out == len(masses), sample.name
            if example.release.role(sample) == "data":
                assert result.samples[sample.name].sumw == tuple(np.histogram(masses, result.edges)[0])


def test_each_example_has_one_digest_serial_with_ray_and_through_a_broker(
    cli, tmp_path, example, ray_cluster, vhost, monkeypatch
):
    code, _, serial = run(cli, tmp_path, example.source, *example.options, "--chunk", 700)
    assert (code, serial.status) == (0, "complete")
    assert run(cli, tmp_path, example.source, *example.options, run_id="ray", engine="ray")[2].digest == serial.digest

    site = Site(vhost, tmp_path / "bridged")
    spec = make_spec(example.release, analysis=example.place)
    plan = make_plan(spec, "r", (str(example.source),), chunk=5_000, places=(example.file,))
    site.publish_plan(spec, "r", plan)
    with Bridging(site, example.source, analyses=(str(EXAMPLES),)):
        assert site.wait("r").digest == serial.digest
    assert not site.reasons()


def test_the_documentations_example_does_what_it_says(cli, tmp_path, toys):
    text = (EXAMPLES.parent / "docs" / "analysis.md").read_text()
    path = tmp_path / "leading.py"
    path.write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    code, _, result = run(cli, tmp_path, toys, "--analysis", f"{path}:leading")
    assert (code, result.status) == (0, "complete")
    pt = read(toys / TOY.sample("data_D").path, ["lep_pt"])["lep_pt"] / 1000
    good = pt[pt > 7]
    hardest = ak.max(good[ak.num(good) > 2], axis=1)
    assert result.samples["data_D"].sumw == tuple(np.histogram(hardest, result.edges)[0])
    for option in ("observables", "cuts", "parameters"):
        told = re.findall(rf"--{option[:-1]} (\w+=[-.:\d]+)", text.partition("## What a wrong file")[0])
        assert told, option
        make_spec(TOY, analysis=f"{path}:leading", **{option: told})


def test_a_bridge_without_the_file_refuses_each_task_and_replay_brings_it_back(
    tmp_path, toys, ray_cluster, vhost, mine
):
    site = Site(vhost, tmp_path / "runs")
    place = mine()
    spec = make_spec(TOY, analysis=place, samples=("data_A", "data_B"))
    plan = make_plan(spec, "r", (str(toys),), places=(str(tmp_path),))
    (tmp_path / "own.py").unlink()
    site.publish_plan(spec, "r", plan)
    with Bridging(site, toys, until="r"):
        result = site.wait("r", "partial")
    assert result.tasks.failed == result.tasks.planned == 2
    (reason,) = site.reasons(2)
    assert re.fullmatch(r"analysis own.py:mine of source \w{12}: HZZRAY_ANALYSES here allows no own.py", reason)
    assert {failure.reason for failure in result.failures} == {reason}
