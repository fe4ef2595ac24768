"""Releases: the facts that they state, what a user may add, and how mistakes are named."""

from __future__ import annotations

import json

import pytest
import yaml
from matplotlib.colors import is_color_like

from hzzray.data.catalogue import Sample, mistakes, release, releases
from hzzray.errors import UsageError
from hzzray.physics.histogram import Axis
from hzzray.runs.request import make_spec


@pytest.fixture
def own(tmp_path):
    """Write a catalogue of one's own, from text or from a mapping."""

    def write(content):
        path = tmp_path / "own.yaml"
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def facts(shared, name):
    return json.loads((shared / f"samples-{name}.json").read_text(encoding="utf-8"))


def test_the_facts_of_2020(shared):
    stated, ours = facts(shared, "2020"), release("2020")
    data = stated["groups"]["Data"]
    assert {sample.name for sample in ours.samples} == {*stated["samples"], *data}
    for name, wanted in stated["samples"].items():
        sample = ours.sample(name)
        assert {key: getattr(sample, key) for key in wanted} == wanted, name
        simulated = name not in data
        assert (ours.role(sample) != "data") == simulated
        pattern = stated["file_pattern"]["mc" if simulated else "data"]
        assert sample.path == pattern.format(dsid=sample.dsid, name=name)
        assert (sample.xsec is not None) == simulated
    groups = {group.name: [] for group in ours.groups}
    for sample in ours.samples:
        if sample.default:
            groups[sample.group].append(sample.name)
    assert groups == stated["groups"]
    assert ours.sources == (stated["base_url"], stated["xrootd_base"])


def test_the_facts_of_2025(shared):
    stated, ours = facts(shared, "2025"), release("2025")
    joined, left = "PowhegPythia8EvtGen_NNPDF30_AZNLO_ZH125J_Zincl_H_incl_MINLO", "Sh_2212_lllv"  # see below
    assert {sample.name for sample in ours.samples} == {*stated["samples"], joined}
    assert {sample.name for sample in ours.samples if sample.default} == {*stated["samples"], joined} - {left}
    for name, wanted in stated["samples"].items():
        sample = ours.sample(name)
        assert sample.entries == wanted["entries"], name
        assert sample.path == wanted["file"], name
        assert sample.group == wanted["group"], name
        assert sample.xsec is sample.sumw is None, "the files carry it"
    assert ours.schema_.divisor == "sum_of_weights"
    assert ours.sources == (stated["base_url"], stated["xrootd_base"])


def test_the_list_of_2025_is_that_of_the_notebook_of_today():
    """Issue 11, item 44: 346310 joined the signal in 2025-09, 700601 left ZZ* in 2025-06."""
    ours = release("2025")
    by_number = {sample.dsid: sample for sample in ours.samples}
    joined, left = by_number[346310], by_number[700601]
    assert (joined.default, ours.role(joined), joined.entries) == (True, "signal", 44)
    assert joined.path == by_number[346311].path.replace("346311", "346310").replace("WpH125J_Wincl", "ZH125J_Zincl")
    assert left.default is False
    assert ours.only((left.name,)).samples == (left,)


def test_the_releases_there_are():
    known = releases()
    assert list(known) == ["2020", "2025", "toy"]
    toy = [sample.model_copy(update={"luminosity": None}) for sample in known["toy"].samples]
    assert toy == [sample.model_copy(update={"luminosity": None}) for sample in known["2020"].samples]
    assert known["toy"].entries_vary
    assert known["toy"].sources == ()
    with pytest.raises(UsageError, match="no release '2019'; there are 2020, 2025, toy"):
        release("2019")


def test_normalisation():
    """The 2020 infofile's formula: luminosity · 1000 · xsec / (sumw · red_eff)."""
    ours = release("2020")
    zee = ours.sample("Zee")
    assert ours.normalisation(zee, 10.0) == pytest.approx(10.0 * 1000 * 1950.5295 / 150277594200, rel=1e-15)
    assert ours.normalisation(zee, 5.0) == ours.normalisation(zee, 10.0) / 2
    half = zee.model_copy(update={"red_eff": 0.5})
    assert ours.normalisation(half, 10.0) == 2 * ours.normalisation(zee, 10.0)
    assert ours.normalisation(ours.sample("data_A"), 10.0) == 1.0
    beta = release("2025")
    simulated = next(sample for sample in beta.samples if beta.role(sample) != "data")
    assert beta.normalisation(simulated, 36.6) == 36_600.0


def test_choosing_samples():
    ours = release("2020")
    assert [sample.name for sample in ours.only(("Zee", "data_B", "data_A")).samples] == ["data_A", "data_B", "Zee"]
    assert ours.only(("Zee",)).groups == ours.groups
    assert ours.sample("ttW").default is False
    for choose in (ours.sample, lambda name: ours.only(("Zee", name))):
        with pytest.raises(UsageError, match="release 2020 has no sample 'Zebra'; it has data_A, data_B"):
            choose("Zebra")


def test_a_release_of_ones_own_extends_another(own):
    new = {"name": "tW", "group": "Background Z,ttbar", "path": "MC/tW.root", "xsec": 35.8, "sumw": 4865800}
    group = {"name": "Data", "role": "data", "colour": "grey"}
    path = own({
        "mine": {
            "extends": 2020,  # YAML takes it for a number
            "title": "with tW",
            "luminosity": 5,
            "samples": [new, {"name": "Zee", "xsec": 1.5}],
            "groups": [group],
        },
        "next": {"extends": "mine", "title": "and on"},
    })  # fmt: skip
    base, mine = release("2020"), release("mine", path)
    assert (mine.title, mine.luminosity) == ("with tW", 5.0)
    assert [sample.name for sample in mine.samples] == [*(sample.name for sample in base.samples), "tW"]
    assert mine.sample("Zee") == base.sample("Zee").model_copy(update={"xsec": 1.5})
    assert mine.sample("tW").xsec == 35.8
    assert mine.sample("llll") == base.sample("llll")
    assert [row.colour for row in mine.groups] == ["grey", *(row.colour for row in base.groups[1:])]
    assert (mine.schema_, mine.axis, mine.window) == (base.schema_, base.axis, base.window)
    assert release("next", path).samples == mine.samples
    assert release("2020", path) == base, "what it extends stays as it is"


def test_a_release_from_nothing(own):
    body = yaml.safe_load(
        """
        title: T
        sqrt_s: 13 TeV
        luminosity: 1.0
        selection: notebook-2020
        axis: {start: 0, stop: 10, bins: 10}
        window: [2, 4]
        schema: {tree: t, gev: 1, pt: pt, eta: eta, phi: phi, energy: e, charge: q, type: id}
        groups: [{name: D, role: data, colour: black}]
        samples: [{name: d, group: D, path: d.root}]
        """
    )
    assert release("bare", own({"bare": body})).sample("d").path == "d.root"
    for key in ("selection", "axis", "window"):
        del body[key]
    found = release("bare", own({"bare": body}))
    assert (found.selection, found.axis, found.window) == ("h4l", Axis(80.0, 250.0, 34), (115.0, 130.0))
    body["schema"] = {"tree": "t", "gev": 1, "factors": ["w"]}
    with pytest.raises(UsageError, match=r"selection h4l asks for .*leptons.*, which release bare has no branch for"):
        make_spec(release("bare", own({"bare": body})))
    del body["title"]
    with pytest.raises(UsageError, match=r"own\.yaml: release bare: title: Field required"):
        release("bare", own({"bare": body}))


def luminosities(found):
    return [sample.luminosity for sample in found.samples if found.role(sample) == "data"]


def test_what_data_samples_stand_for(own):
    """Issue 11, item 2: stated, or by entries what the stated ones leave; else unknown."""
    assert luminosities(release("2020")) == [0.5, 1.9, 2.9, 4.7]
    for name in ("2025", "toy"):
        ours = release(name)
        entries = [sample.entries for sample in ours.samples if ours.role(sample) == "data"]
        assert luminosities(ours) == pytest.approx([ours.luminosity * n / sum(entries) for n in entries])
    assert luminosities(release("2025").only(("data15_periodE", "data15_periodD"))) == luminosities(release("2025"))[:2]
    path = own({
        "one": {"extends": "2020", "samples": [{"name": "data_D", "luminosity": None, "entries": None}]},
        "two": {"extends": "one", "samples": [{"name": "data_C", "luminosity": None}]},
    })  # fmt: skip
    assert luminosities(release("one", path)) == pytest.approx([0.5, 1.9, 2.9, 4.7])
    assert luminosities(release("two", path)) == [0.5, 1.9, None, None]
    assert "luminosity" not in release("two", path).sample("Zee").model_dump(), "specs of before keep their digest"


def mine(**changes):
    return {"mine": {"extends": "2020", **changes}}


def sample(**changes):
    good = {"name": "new", "group": "Background ZZ*", "path": "MC/new.root", "xsec": 1.0, "sumw": 2.0}
    merged = {**good, **changes}
    return mine(samples=[{key: value for key, value in merged.items() if value is not None}])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("mine: [unclosed", "is not YAML"),
        ("a: 1\n\tb: 2\n", "is not YAML"),
        ("mine: {luminosity: 2020-99-99}", "is not YAML: month must be in 1..12"),
        ("", "expected a mapping of release names to releases"),
        ("- 2020\n", "expected a mapping"),
        ("mine: 5\n", "expected a mapping"),
        ({"also": 5, "mine": {"extends": "also"}}, "release mine: extends also, which has a mistake itself"),
        ({"mine": {"extends": "2019"}}, "release mine: extends 2019, which is unknown"),
        (mine(colour="red"), "release mine: colour: Extra inputs are not permitted"),
        (mine(luminosity=0), "release mine: luminosity: Input should be greater than 0"),
        (mine(luminosity=float("inf")), "release mine: luminosity: Input should be a finite number"),
        (mine(axis={"start": 5, "stop": 5, "bins": 3}), "release mine: axis: Value error, an axis needs start < stop"),
        (mine(window=[121, 122]), "release mine: Value error, window 121 to 122 GeV doesn't lie on bin edges"),
        (mine(window=[116, 131]), "(34 bins from 80 to 250 GeV); 115 to 130 GeV does"),
        (mine(window=[100, 300]), "window 100 to 300 GeV leaves the axis"),
        (mine(window=[130, 115]), "release mine: Value error, window 130 to 115 GeV: a window needs low < high"),
        (mine(axis={"start": 0, "stop": 5, "bins": 10**9}), "an axis has 10000 bins at most"),
        (sample(luminosity=1.0), "sample new is simulation: it has no luminosity of its own"),
        (mine(schema={"gev": 0}), "release mine: schema.gev: Input should be greater than 0"),
        (mine(schema={"type": "lep_pt"}), "release mine: schema: Value error, pt and type are both lep_pt"),
        (mine(schema={"pt": "lep_type"}), "release mine: schema: Value error, pt and type are both lep_type"),
        (mine(schema="mini"), "release mine: schema: Input should be a valid dictionary"),
        (mine(selection="mine"), "release mine: selection: no 'mine'; there are notebook-2020, "),
        (mine(groups=[{"name": "Data", "colour": "blak"}]), "release mine: group Data: 'blak' is not a colour"),
        (mine(groups=[{"name": "Data", "colour": "#12345"}]), "release mine: group Data: '#12345' is not a colour"),
        (mine(groups=[{"name": "Data", "colour": "C0"}]), "release mine: group Data: 'C0' is not a colour"),
        (mine(groups=[{"name": "Data", "colour": "#1234567"}]), "release mine: group Data: '#1234567' is not a colour"),
        (mine(samples={"name": "new"}), "release mine: samples: expected a list of mappings, each with a name"),
        (mine(samples=["new"]), "release mine: samples: expected a list of mappings, each with a name"),
        (mine(groups=[{"role": "data"}]), "release mine: groups: expected a list of mappings, each with a name"),
        (mine(samples=[{"name": 5, "path": "x"}]), "release mine: samples: expected a list"),
        (mine(samples=[{"name": "Zee"}, {"name": "Zee", "xsec": 1}]), "release mine: sample Zee is there twice"),
        (mine(groups=[{"name": "Data"}] * 2), "release mine: group Data is there twice"),
        (sample(colour="red"), "colour: Extra inputs are not permitted"),
        (sample(group="None such"), "sample new is in group 'None such', which the release lacks"),
        (sample(path="/etc/passwd"), "sample new: path must stay inside the source, not /etc/passwd"),
        (sample(path="MC/../../new.root"), "sample new: path must stay inside the source"),
        (sample(sumw=None), "sample new: xsec and sumw go together"),
        (sample(xsec=None), "sample new: xsec and sumw go together"),
        (sample(xsec=None, sumw=None), "sample new needs xsec and sumw: the files carry no normalisation"),
        (sample(xsec=-1.0), "xsec: Input should be greater than 0"),
        (sample(sumw=0.0), "sumw: Input should be greater than 0"),
        (sample(xsec=float("nan")), "xsec: Input should be"),
        (sample(red_eff=0), "red_eff: Input should be greater than 0"),
        (sample(entries=-1), "entries: Input should be greater than or equal to 0"),
        (sample(path=None), "path: Field required"),
        (sample(path=[]), "path: Value error, expected a path, or a list of paths"),
        (sample(path=5), "path: Value error, expected a path, or a list of paths"),
        (sample(path=["a.root", ["b.root"]]), "path: Value error, expected a path, or a list of paths"),
        (sample(path=["a.root", ""]), "path: Value error, expected a path, or a list of paths"),
        (sample(path=["a.root", "../b.root"]), "sample new: path must stay inside the source, not ../b.root"),
        (sample(path=["a.root", "/data/*.root"]), "sample new: path must stay inside the source, not /data/*.root"),
        (sample(path=["a.root", "b.root", "a.root"]), "sample new: path a.root is there twice"),
    ],
)
def test_mistakes_are_named_in_one_line(own, content, said):
    path = own(content)
    with pytest.raises(UsageError) as raised:
        release("mine", path)
    text = str(raised.value)
    assert text.startswith(str(path))
    assert said in text
    assert "\n" not in text


def test_a_sample_is_one_file_or_several(own):
    """One path, in a list or not, is what it was before there were lists: specs keep their digests."""
    paths = {"one": "MC/a.root", "listed": ["MC/a.root"], "two": ["MC/a.root", "MC/b[1]?.root"], "any": "MC/a*.root"}
    read = {name: release("mine", own(sample(path=path))).sample("new") for name, path in paths.items()}
    assert {name: one.path for name, one in read.items()} == paths | {"listed": "MC/a.root", "two": tuple(paths["two"])}
    assert {name: one.only_path for name, one in read.items()} == {
        "one": "MC/a.root", "listed": "MC/a.root", "two": None, "any": None,
    }  # fmt: skip
    assert read["two"].paths == ("MC/a.root", "MC/b[1]?.root")
    assert read["one"].model_dump_json() == read["listed"].model_dump_json()
    assert '"path":"MC/a.root",' in read["one"].model_dump_json()
    assert Sample.model_validate_json(read["two"].model_dump_json()) == read["two"]


def test_one_bad_release_blocks_no_other(own, cli):
    """Issue 11, item 9: it did. It is told when it is asked for, and by who lists them all."""
    path = own({"bad": {"extends": "2020", "luminosity": 0}, "worse": 5, "good": {"extends": "toy", "title": "Good"}})
    assert release("good", path).title == "Good"
    assert list(releases(path)) == ["2020", "2025", "toy", "good"]
    said = mistakes(path)
    assert [line.partition(": release ")[2].partition(":")[0] for line in said] == ["bad", "worse"]
    assert mistakes() == ()
    code, _, err = cli("run", "--release", "bad", "--catalogue", path)
    assert code == 2
    assert said[0] in " ".join(err.split())
    with pytest.raises(UsageError, match="there are 2020, 2025, toy, bad, good, worse"):
        release("none", path)


def test_a_schema_may_be_changed_in_part(own):
    """Issue 11, item 9: a schema in part, of a release that extends another, failed: "schema.tree: Field required"."""
    path = own(mine(schema={"type": "lep_pdgId", "divisor": None}, axis={"bins": 68}))
    base, changed = release("2020"), release("mine", path)
    assert changed.schema_ == base.schema_.model_copy(update={"type": "lep_pdgId"})
    assert changed.axis == Axis(base.axis.start, base.axis.stop, 68)


@pytest.mark.parametrize("colour", ["black", "Grey", "rebeccapurple", "#123", "#1234", "#7a21dd", "#7A21DD80"])
def test_colours_that_matplotlib_and_browsers_know(own, colour):
    path = own(mine(groups=[{"name": "Data", "colour": colour}]))
    assert release("mine", path).groups[0].colour == colour
    assert is_color_like(colour)


def test_a_file_that_is_no_text(tmp_path, cli):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00binary")
    code, _, err = cli("run", "--catalogue", path)
    assert code == 2
    assert f"catalogue {path} is not UTF-8 text" in err
    code, _, err = cli("run", "--catalogue", tmp_path)
    assert code == 2
    assert "Is a directory" in err


def test_samples_listed_as_nothing_stay_as_they_were(own):
    path = own("mine:\n  extends: '2020'\n  samples:\n  groups:\n")
    assert release("mine", path).samples == release("2020").samples
