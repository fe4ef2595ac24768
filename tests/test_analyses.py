"""Analyses of a user's own: one file, found by its source, refused in one line; the examples run everywhere alike."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from hzzray import analyses
from hzzray.data.catalogue import release
from hzzray.errors import DataError, UsageError
from hzzray.output import load_json
from hzzray.request import make_spec

EXAMPLES = Path(__file__).parents[1] / "examples"
TOY = release("toy")

MINIMAL = """
from typing import NamedTuple
import numpy as np
from hzzray.physics import Analysis, Axis, Bound, Cut, Jagged, Offsets, Template, Variable, entry, one_each, put

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
        put(out, slots, 0, k, last - first)
        put(out, slots, 1, k, c.pt[first] * p.gev)
        if p.how == 1 and start + k == 60:
            raise ValueError("no such luck")
        if p.how == 4:
            out.region[k] = 10**6
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
        ("mine = Analysis", "yours = Analysis", r"no 'mine' in it; it has yours"),
        ("mine = Analysis", "mine = 1\nyours = Analysis", r"mine is int, not an Analysis"),
        ("@entry\n", "", r"mine: measure isn't compiled: write @entry above it"),
        ("c.pt[first]", "c.pT[first]", r"measure: line 24: TypingError: Unknown attribute 'pT'"),
        ("* p.gev", '* "GeV"', r"measure: line 24: TypingError: No implementation of function .*mul"),
        ("* p.gev", "* gev", r"measure: line 24: TypingError: NameError: name 'gev' is not defined"),
        ("    return Columns(", "    return (", r"columns: returned tuple, not a NamedTuple"),
        ("Jagged(schema.pt)", "schema.pt", r"columns: pt is str, not one of Offsets, Jagged, Scalar"),
        ("schema.pt", "schema.momentum", r"columns: line 16: AttributeError: .*'momentum'"),
        ("schema.pt", "None", r"analysis own.py:mine asks for column pt, which release toy has no branch for"),
        (
            '(Bound("n", 0.5),)',
            '(Bound("n", 0.5))',
            r"line 42: ValueError: cut leptons: bounds: expected a tuple of Bou",
        ),
        (
            'Bound("n", 0.5)',
            'Bound("N", 0.5)',
            r"line 35: ValueError: analysis mine has no variable 'N'; it has n, pt1",
        ),
        ('Bound("n", 0.5)', 'Bound("n", 2.0, 1.0)', r"line 35: ValueError: cut on n: nothing is above 2 and below 1"),
        ("Axis(0.0, 100.0, 20)", "Axis(100.0, 0.0, 20)", r"line 43: ValueError: an axis needs start < stop"),
        ('("all",)', '("all")', r"line 35: ValueError: regions: expected a tuple of str"),
        ("Parameters(),", "Parameters,", r"parameters: expected a NamedTuple, not type: write Parameters\(\)"),
        ('Template("n"', 'Template("pt1"', r"line 35: ValueError: template pt1 is there twice"),
        ("pt_min: float = 7.0", 'pt_min: str = "7"', r"line 35: ValueError: parameters are numbers and flags"),
    ],
)
def test_a_wrong_file_is_told_where_and_why(mine, old, new, said):
    place = mine(old, new)
    with pytest.raises(UsageError, match=said) as caught:
        make_spec(TOY, analysis=place)
    assert "\n" not in str(caught.value)
    assert "own" in str(caught.value)


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
        r"hzzray: analysis xyz.py:mine: measure: line 24: TypingError: Unknown attribute 'pT' of type .*\n", err
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
    _, ref, file = analyses.load(mine())
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


def test_another_content_is_compiled_anew_even_where_date_and_size_are_the_same(mine, tmp_path):
    def measured(place):
        spec = make_spec(TOY, analysis=place)
        analysis = analyses.resolve(spec.analysis, [str(tmp_path)])
        filler = analyses.filler(spec, analysis)
        columns = analysis.columns(TOY.schema_, None)._replace(offsets=np.array([0, 2]), pt=np.array([3e4, 2e4], "f4"))
        filler._measure(0, 1, columns, filler._parameters, filler._layout.slots, filler._candidates)
        return filler._candidates.values[filler._layout.slots[0], 0]

    place = mine()
    stat = (tmp_path / "own.py").stat()
    assert measured(place) == 2.0
    mine("last - first)", "last + first)")
    mine("k, last - first", "k, first - last")
    os.utime(tmp_path / "own.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (tmp_path / "own.py").stat().st_size == stat.st_size
    assert measured(place) == -2.0


def run(cli, tmp_path, source, *options, run_id="one", engine="serial"):
    code, out, err = cli(
        *("run", "--source", source, "--runs", tmp_path / "runs", "--run-id", run_id, "--engine", engine), *options
    )
    return code, err, load_json(tmp_path / "runs" / run_id)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (1, r"data_D.*: analysis own.py:mine: measure: line 26: ValueError: no such luck"),
        (2, r": analysis own.py:mine: measure returned 0 for events 0 to \d+: it must return how many it measured"),
        (3, r": analysis own.py:mine: measure returned \d+ for events 0 to \d+: it must return how many it measured"),
        (5, r": analysis own.py:mine: measure left an event without a candidate"),
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
