"""The simulated files: format, statistics, reproducibility."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import awkward as ak
import numpy as np
import pytest
import uproot

from hzzray.data.catalogue import Release, releases
from hzzray.data.reader import Reader
from hzzray.data.toy import allot, write_toys
from hzzray.data.toy_physics import PROCESSES, Z_MASS, boost, higgs, momentum_in_decay, two_body
from hzzray.errors import UsageError
from hzzray.physics.analysis import Bound, Template
from hzzray.physics.filler import Filler
from hzzray.physics.histogram import Axis
from hzzray.physics.selection import H4L, changed, preset, select
from hzzray.runs.sources import write_toys_once
from tests.support.reading import asked, asked_by

SHARED = Path(__file__).parents[1].parent / "shared"
EVENTS = {"toy": 20_000, "2025": 20_000}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both formats, once: release and folder by name."""
    out = {}
    for name, events in EVENTS.items():
        folder = tmp_path_factory.mktemp(name)
        release = releases()[name]
        write_toys(folder, release, events=events, seed=3)
        out[name] = (release, folder)
    return out


def defaults(release: Release, role: str | None = None):
    return [s for s in release.samples if s.default and role in (None, release.role(s))]


def simulated(release: Release):
    return [s for s in defaults(release) if release.role(s) != "data"]


def read(folder, release, sample):
    with uproot.open(folder / sample.path) as file:
        return file[release.schema_.tree].arrays()


def mass(events, schema):
    pt, eta, phi, energy = (
        ak.to_numpy(events[name][:, :4]).astype(float) for name in (schema.pt, schema.eta, schema.phi, schema.energy)
    )
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    total = [component.sum(axis=1) for component in (energy, px, py, pz)]
    return np.sqrt(total[0] ** 2 - total[1] ** 2 - total[2] ** 2 - total[3] ** 2) * schema.gev


def notebook(events, schema):
    types = ak.to_numpy(events[schema.type][:, :4]).sum(axis=1)
    charge = ak.to_numpy(events[schema.charge][:, :4]).sum(axis=1)
    return np.isin(types, [44, 48, 52]) & (charge == 0)


def weights(events, release, sample):
    schema = release.schema_
    product = np.prod([np.asarray(events[name], float) for name in schema.factors], axis=0)
    if schema.divisor:
        product = product / np.asarray(events[schema.divisor])
    return product * release.normalisation(sample, release.luminosity)


# Format


@pytest.mark.parametrize("name", EVENTS)
def test_every_default_sample_has_a_file_with_the_release_s_tree_and_branches(written, name):
    release, folder = written[name]
    schema = release.schema_
    branches = {
        *schema.kinematics,
        *schema.triggers,
        schema.matched,
        *schema.electron_id,
        *schema.muon_id,
        *asked("h4l", schema).reads(schema, simulation=True).branches,
    }
    for sample in defaults(release):
        with uproot.open(folder / sample.path) as file:
            tree = file[schema.tree]
            assert branches <= set(tree.keys())
            assert file.file.compression == uproot.ZLIB(1)
            lepton_branches = [branch for branch in tree.branches if branch.name.startswith("lep_")]
            counters = {branch.count_branch.name for branch in lepton_branches if branch.name != "lep_n"}
            assert counters == {"lep_n"}
    written_files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written_files == {sample.path for sample in defaults(release)}


@pytest.mark.parametrize(
    ("name", "sample", "real"),
    [
        ("2020", "Zee", "atlas2020-13tev/MC/mc_361106.Zee.4lep.root"),
        ("2020", "data_A", "atlas2020-13tev/Data/data_A.4lep.root"),
        (
            "2025",
            "data15_periodD",
            "atlas2025-13tev-beta/ODEO_FEB2025_v0_exactly4lep_data15_periodD.exactly4lep.root",
        ),
    ],
)
def test_dtypes_are_those_of_real_files(tmp_path, name, sample, real):
    real = SHARED / "data" / real
    if not real.exists():
        pytest.skip(f"no real file {real.name} in the shared folder")
    release = releases()[name]
    write_toys(tmp_path, release, events=100)
    tree = release.schema_.tree
    with uproot.open(tmp_path / release.sample(sample).path) as toy, uproot.open(real) as original:
        assert set(toy[tree].keys()) <= set(original[tree].keys())
        for branch in set(toy[tree].keys()) - {"lep_n"}:  # uproot makes every counter an int32
            own, its = (str(file[tree][branch].array().type.content) for file in (toy, original))
            assert own == its, branch


@pytest.mark.parametrize("name", EVENTS)
def test_leptons_are_sorted_in_the_release_s_unit_and_at_most_a_few_events_have_more_than_four(written, name):
    release, folder = written[name]
    schema = release.schema_
    pt = ak.concatenate([read(folder, release, s)[schema.pt] for s in defaults(release)]) * schema.gev
    assert ak.all(pt[:, 1:] <= pt[:, :-1])
    assert ak.min(pt) >= 6.99
    assert ak.all(pt[:, 0] > 20)
    lengths = np.bincount(ak.to_numpy(ak.num(pt)))
    assert lengths[:4].sum() == 0
    if name == "2025":
        assert len(lengths) == 5
    else:
        assert lengths[6] > 0


# Statistics


@pytest.mark.parametrize("name", EVENTS)
def test_yields_are_the_published_ones_within_statistics(written, name):
    release, folder = written[name]
    for sample in simulated(release):
        events = read(folder, release, sample)
        w = weights(events, release, sample)
        target = PROCESSES[sample.dsid].per_fb * release.luminosity
        # Of a fixed number of entries only the signs and scale factors vary, by 44 % of a weight each at least.
        spread = max(np.std(w), 0.44 * target / len(w))
        assert abs(w.sum() - target) < 5 * spread * np.sqrt(len(w)), sample.name


@pytest.mark.parametrize(
    ("sample", "passing"),
    [("Zee", 243 / 898), ("WH125_ZZ4lep", 9772 / 15379), ("ZH125_ZZ4lep", 11947 / 14485), ("llll", 0.945)],
)
def test_share_that_passes_charge_and_flavour_resembles_the_release(written, sample, passing):
    release, folder = written["toy"]
    passed = notebook(read(folder, release, release.sample(sample)), release.schema_)
    assert abs(passed.mean() - passing) < 0.03 + 3 * np.sqrt(passing * (1 - passing) / len(passed))


def test_yield_does_not_depend_on_the_number_of_events(written, tmp_path):
    release, folder = written["toy"]
    write_toys(tmp_path, release, events=3_000, seed=4)
    sample = release.sample("ggH125_ZZ4lep")
    many, few = (weights(read(where, release, sample), release, sample) for where in (folder, tmp_path))
    assert len(few) < len(many) / 3
    assert few.sum() == pytest.approx(many.sum(), rel=0.03)


@pytest.mark.parametrize("name", EVENTS)
def test_the_higgs_peaks_at_its_mass_with_a_width_of_a_few_gev(written, name):
    release, folder = written[name]
    sample = next(s for s in release.samples if s.dsid == 345060)
    m = mass(read(folder, release, sample), release.schema_)
    counts, edges = np.histogram(m, np.arange(110, 140, 0.5))
    top = counts > 0.5 * counts.max()
    centre = np.average((edges[:-1] + 0.25)[top], weights=counts[top])
    assert abs(centre - 125) < 1
    low, high = np.quantile(m, [0.16, 0.84])
    assert 2 < high - low < 8


def test_continuum_has_the_z_peak_and_rises_where_two_z_bosons_open(written):
    release, folder = written["toy"]
    m = mass(read(folder, release, release.sample("llll")), release.schema_)
    at_z, beside, before, after = (np.count_nonzero((m > low) & (m < low + 10)) for low in (86, 100, 165, 195))
    assert at_z > 5 * beside
    assert after > 1.8 * before


@pytest.mark.parametrize("name", EVENTS)
def test_data_is_what_the_simulation_expects(written, name):
    release, folder = written[name]
    edges = np.array([0, 85, 97, 115, 130, 180, 220, 300, 1e5])
    data = sum(
        np.histogram(mass(read(folder, release, s), release.schema_), edges)[0] for s in defaults(release, "data")
    )
    expected, variance = np.zeros((2, len(edges) - 1))
    for sample in simulated(release):
        events = read(folder, release, sample)
        w = weights(events, release, sample)
        m = mass(events, release.schema_)
        expected += np.histogram(m, edges, weights=w)[0]
        variance += np.histogram(m, edges, weights=w**2)[0]
    if name == "toy":  # as in the release: more pairs of Z bosons in data than in its simulation
        beside = PROCESSES[363490].beside.per_fb * release.luminosity
        assert 0.7 < (data - expected)[5:].sum() / beside < 1.3
        data, expected, variance = (counts[:5] for counts in (data, expected, variance))
    pulls = (data - expected) / np.sqrt(expected + variance)
    assert np.abs(pulls).max() < 4
    assert (pulls**2).sum() < 30


def test_data_does_not_depend_on_the_number_of_events(written, tmp_path):
    release, folder = written["toy"]
    write_toys(tmp_path, release, events=500, seed=3)
    for sample in defaults(release, "data"):
        assert ak.array_equal(read(folder, release, sample), read(tmp_path, release, sample))


def test_data_carries_no_weights(written):
    for release, folder in written.values():
        sample = defaults(release, "data")[0]
        events = read(folder, release, sample)
        assert set(np.unique(events["mcWeight"])) == {0.0 if release.schema_.divisor is None else 1.0}


def test_identification_tells_real_leptons_from_fakes(written):
    release, folder = written["2025"]
    shares = []
    for dsid in (345060, 700323):
        events = read(folder, release, next(s for s in release.samples if s.dsid == dsid))
        electron = events.lep_type == 11
        good = ak.where(electron, events.lep_isLooseID, events.lep_isMediumID) & events.lep_isLooseIso
        shares.append(np.mean(ak.all(good, axis=1)))
        assert ak.all(events.lep_isLooseID | ~events.lep_isTightID)
        fired = events.trigE | events.trigM
        assert ak.all(fired == ak.any(events.lep_isTrigMatched, axis=1))
    assert shares[0] > 0.5
    assert shares[1] < 0.02


# The figures of the release: the 2020 collection, notebook-2020 at 10 fb⁻¹, as measured on the real files


@pytest.fixture(scope="module")
def likeness(tmp_path_factory):
    """What toys of the default size and seed hold, by sample: masses, types and weights of the selected events."""
    folder, toy = tmp_path_factory.mktemp("likeness"), releases()["toy"]
    write_toys(folder, toy)
    found = {}
    for sample in defaults(toy):
        events = read(folder, toy, sample)
        kept = notebook(events, toy.schema_)
        w = np.ones(len(events)) if toy.role(sample) == "data" else weights(events, toy, sample)
        types = ak.to_numpy(events.lep_type[:, :4]).astype(int).sum(axis=1)
        found[sample.name] = (len(events), mass(events, toy.schema_)[kept], types[kept], w[kept], ak.num(events.lep_pt))
    return toy, folder, found


@pytest.mark.parametrize(
    ("sample", "entries", "mean", "negative", "effective"),
    [("Zee", 898, 0.18, 0.058, 149), ("Zmumu", 684, 0.20, 0.019, 193), ("ttbar_lep", 1031, 0.08, 0.0, 288)],
)
def test_rare_backgrounds_have_the_release_s_entries_and_weights(likeness, sample, entries, mean, negative, effective):
    """Issue 11, item 42: today 347, 302, 375 entries of weight 0.47, 0.43, 0.21, 17, 18, 12 % of them negative."""
    n, _, _, w, _ = likeness[2][sample]
    assert n == entries
    error = np.std(w) / np.sqrt(len(w))
    assert abs(w.mean() - mean) < 3 * np.hypot(error, mean * 0.05)
    assert abs((w < 0).mean() - negative) < 3 * np.sqrt(2 * negative / len(w)) + 1e-9
    assert w.sum() ** 2 / (w**2).sum() == pytest.approx(effective, rel=0.25)


def test_z_and_top_are_a_smooth_broad_hump_of_the_release_s_size(likeness):
    """Issue 11, item 42: 123 ± 5 events in all, 26.9 ± 2.7 in 115–130 GeV: 10.4, 9.6, 6.9 a bin."""
    found = [likeness[2][name] for name in ("Zee", "Zmumu", "ttbar_lep")]
    m, w = (np.concatenate([sample[i] for sample in found]) for i in (1, 3))
    assert abs(w.sum() - 123.3) < 3 * np.hypot(5.4, np.sqrt((w**2).sum()))
    bins, errors = (np.histogram(m, [105, 110, 115, 120, 125, 130, 140], weights=x)[0] for x in (w, w**2))
    inside = slice(2, 5)
    assert abs(bins[inside].sum() - 26.9) < 2 * np.hypot(2.7, np.sqrt(errors[inside].sum()))
    for got, error, wanted in zip(bins[inside], errors[inside], (10.4, 9.6, 6.9), strict=True):
        assert abs(got - wanted) < 2.5 * np.sqrt(error + 1.7**2)
    # Smooth: no bin stands out from its neighbours by more than its statistics.
    for i in range(1, 4):
        between = (bins[i - 1] + bins[i + 1]) / 2
        assert abs(bins[i] - between) < 3 * np.sqrt(errors[i] + (errors[i - 1] + errors[i + 1]) / 4)


def test_the_signal_is_as_wide_as_in_the_release(likeness):
    """Issue 11, item 42: half the width of 16–84 % is 2.98 GeV, 3.45, 2.31, 2.89 by channel; 1.83 before."""
    _, m, types, w, _ = likeness[2]["ggH125_ZZ4lep"]

    def half_width(masses):
        low, high = np.quantile(masses, [0.16, 0.84])
        return (high - low) / 2

    wanted = {44: (3.45, 0.24), 52: (2.31, 0.16), 48: (2.89, 0.60)}
    assert half_width(m) == pytest.approx(2.98, rel=0.04)
    for kind, (width, share) in wanted.items():
        assert half_width(m[types == kind]) == pytest.approx(width, rel=0.05)
        assert (types == kind).mean() == pytest.approx(share, abs=0.02)
    assert w[(m > 115) & (m < 130)].sum() / w.sum() == pytest.approx(0.95, abs=0.01)


def test_few_events_have_more_than_four_leptons(likeness):
    """Issue 11, item 42: 0.4–1 %, of WH and ZH 7–10 %; 3 % everywhere before."""
    for name, (n, *_, leptons) in likeness[2].items():
        low, high = (0.07, 0.10) if name.startswith(("WH", "ZH")) else (0.004, 0.01)
        share = np.mean(ak.to_numpy(leptons) > 4)
        error = 3 * np.sqrt(high / n)
        assert low - error < share < high + error, name


#: h4l's kinematics alone.
KINEMATICS = changed(
    H4L, select(H4L), [Bound("triggered"), Bound("n_identified")], {"identified": False, "isolated": False}
)


def selected(toy, folder, analysis, selection, samples):
    """Raw counts of some samples, by the kernel, in all and in 115–130 GeV; and their weighted sum."""
    filler = Filler(analysis, selection, (Template("m4l", Axis(115, 130, 1)),), toy.schema_.gev)
    what = asked_by(analysis, selection, toy.schema_)
    counts, yields = np.zeros(3), np.zeros(3)
    for sample in samples:
        simulation = toy.role(sample) != "data"
        reads = what.reads(toy.schema_, simulation=simulation)
        with Reader(str(folder / sample.path), toy.schema_.tree, reads) as reader:
            steps = reader.steps(0, reader.layout.entries)
            filled = filler.fill(steps, toy.normalisation(sample, toy.luminosity)).histogram()
        counts += filled.counts.sum(axis=0)
        yields += filled.sumw.floats().sum(axis=0)
    return counts, yields


@pytest.mark.parametrize(("name", "release_s"), [("notebook-2020", 507), ("h4l", 268)])
def test_data_have_as_many_events_as_the_release(likeness, name, release_s):
    """Issue 11, item 42: 507 with notebook-2020, 268 with h4l's kinematics alone; 358 and 186 before."""
    toy, folder, _ = likeness
    chosen = (H4L, KINEMATICS) if name == "h4l" else preset(name, toy.schema_)
    counts, _ = selected(toy, folder, *chosen, defaults(toy, "data"))
    assert abs(counts.sum() - release_s) < 2 * np.sqrt(2 * release_s)  # both are one draw


def test_isolation_removes_fakes_and_keeps_the_rest_as_on_real_files(likeness):
    """Issue 11, items 7 and 42: h4l's isolation keeps 4.94 of 9.22 of the real Z→ee, 48 of 52 data above 180 GeV."""
    toy, folder, _ = likeness
    kept = {}
    for name in ("Zee", "llll", "ggH125_ZZ4lep"):
        before, after = (
            selected(toy, folder, H4L, selection, [toy.sample(name)])[0].sum()
            for selection in (KINEMATICS, preset("h4l", toy.schema_)[1])
        )
        kept[name] = after / before, np.sqrt(1 / before)
    assert abs(kept["Zee"][0] - 37 / 59) < 3 * np.hypot(kept["Zee"][1], 0.06)
    assert abs(kept["llll"][0] - 48 / 52) < 0.06
    assert 0.8 < kept["ggH125_ZZ4lep"][0] < 0.95


def test_every_event_of_2020_was_triggered(written):
    release, folder = written["toy"]
    for sample in defaults(release):
        events = read(folder, release, sample)
        assert ak.all(events.trigE | events.trigM)
        assert ak.all(ak.any(events.lep_trigMatched, axis=1))


# Reproducibility


def test_same_seed_same_content_and_identity_another_seed_another(tmp_path):
    release = releases()["toy"].only(("data_A", "Zee", "ggH125_ZZ4lep"))
    first, again, other = (tmp_path / name for name in "abc")
    for folder, seed in ((first, 1), (again, 1), (other, 2)):
        write_toys(folder, release, events=1_000, seed=seed)
    for sample in release.samples:
        uuids = [uproot.open(folder / sample.path).file.uuid for folder in (first, again, other)]
        assert uuids[0] == uuids[1] != uuids[2]
        assert ak.array_equal(read(first, release, sample), read(again, release, sample))
        assert not ak.array_equal(read(first, release, sample).lep_pt[:20], read(other, release, sample).lep_pt[:20])


@pytest.mark.parametrize("chunk", [1, 997, 25_000])
def test_chunks_change_the_baskets_but_not_the_content(tmp_path, chunk):
    release = releases()["toy"].only(("ggH125_ZZ4lep",))
    events = 50 if chunk == 1 else 30_000
    seen = []
    whole = write_toys(tmp_path / "whole", release, events=events)
    cut = write_toys(tmp_path / "cut", release, events=events, chunk=chunk, progress=seen.append)
    sample = release.samples[0]
    a, b = read(tmp_path / "whole", release, sample), read(tmp_path / "cut", release, sample)
    assert len(b) == events == sum(seen)
    assert max(seen) == chunk
    assert ak.array_equal(a, b)
    with uproot.open(whole[0]) as one, uproot.open(cut[0]) as many:
        assert many["mini/lep_pt"].num_baskets == len(seen) == -(-events // chunk)
        assert one.file.uuid != many.file.uuid


# Events and their split


def test_events_are_shared_by_entries_with_a_least_number(written):
    release, _ = written["toy"]
    samples = simulated(release)
    shared = dict(zip((s.name for s in samples), allot(samples, 1_000_000), strict=True))
    assert sum(shared.values()) == 1_000_000
    assert (shared["Zee"], shared["Zmumu"], shared["ttbar_lep"]) == (898, 684, 1031)
    assert shared["llll"] / shared["ggH125_ZZ4lep"] == pytest.approx(554279 / 164716, rel=0.02)
    assert set(allot(samples, 1)) == {1}


def test_each_of_a_few_events_is_written(tmp_path):
    release = releases()["toy"]
    write_toys(tmp_path, release, events=1)
    assert [len(read(tmp_path, release, sample)) for sample in simulated(release)] == [1] * 8


# Errors


@pytest.mark.parametrize("wrong", [{"events": 0}, {"chunk": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        write_toys(tmp_path, releases()["toy"], **wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_t_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match="taken"):
        write_toys(tmp_path / "taken", releases()["toy"], events=10)


def test_a_seed_makes_the_same_bytes_whenever_they_are_written(tmp_path, monkeypatch):
    """Each node of a cluster writes its own toys, and a task's file is known by its content on all of them."""
    from uproot.writing import _cascade, _cascadetree

    made = []
    for year in (2001, 2024):
        clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda year=year: datetime(year, 5, 4, tzinfo=UTC)))
        for module in (_cascade, _cascadetree):
            monkeypatch.setattr(module, "datetime", clock)
        folder = tmp_path / str(year)
        write_toys(folder, releases()["toy"], events=200)
        made.append({path.name: path.read_bytes() for path in folder.rglob("*.root")})
    assert made[0] == made[1]
    assert len(made[0]) == 12


def test_files_of_other_content_are_not_replaced_unasked(cli, tmp_path):
    folder = tmp_path / "toy"
    assert cli("toy", folder, "--events", 500)[0] == 0
    files = sorted(folder.rglob("*.root"))
    before = {path: path.read_bytes() for path in files}
    for other in (("--events", 600), ("--events", 500, "--seed", 7), ("--events", 500, "--release", "2020")):
        code, _, err = cli("toy", folder, *other)
        assert code == 2
        assert "11 other files are there, of other content" in err
        assert len(err.splitlines()) == 1
        assert "--force" in err
        assert {path: path.read_bytes() for path in files} == before
    assert cli("toy", folder, "--events", 500)[0] == 0
    assert cli("toy", folder, "--events", 600, "--force")[0] == 0
    assert all(path.read_bytes() != before[path] for path in files)


def test_a_sample_without_a_process_is_named_before_anything_is_written(tmp_path):
    release = releases()["toy"]
    unknown = release.sample("llll").model_copy(update={"dsid": 1, "name": "new"})
    with pytest.raises(UsageError, match="new"):
        write_toys(tmp_path, release.model_copy(update={"samples": (*release.samples, unknown)}), events=10)
    assert not list(tmp_path.iterdir())


def test_data_alone_has_nothing_to_be_drawn_from(tmp_path):
    with pytest.raises(UsageError, match="no simulation"):
        write_toys(tmp_path, releases()["toy"].only(("data_A",)))


def test_a_writer_that_is_stopped_leaves_the_old_file_and_nothing_half(tmp_path):
    release = releases()["toy"].only(("ggH125_ZZ4lep",))
    (path,) = write_toys(tmp_path, release, events=100)
    before = path.read_bytes()

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_toys(tmp_path, release, events=300, chunk=100, progress=stop)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Kinematics


def test_a_decay_conserves_energy_momentum_and_masses():
    rng = np.random.default_rng(0)
    parent = np.stack([np.full(100, 300.0), *rng.uniform(-100, 100, (3, 100))])
    m = np.sqrt(parent[0] ** 2 - (parent[1:] ** 2).sum(axis=0))
    daughters = two_body(parent, m, 91.0, 25.0, rng)
    np.testing.assert_allclose(sum(daughters), parent)
    for daughter, expected in zip(daughters, (91.0, 25.0), strict=True):
        np.testing.assert_allclose(np.sqrt(daughter[0] ** 2 - (daughter[1:] ** 2).sum(axis=0)), expected)


def test_a_boost_from_rest_gives_the_parent():
    parent = np.array([[130.0], [30.0], [-20.0], [5.0]])
    m = float(np.sqrt(130**2 - 30**2 - 20**2 - 5**2))
    np.testing.assert_allclose(boost(np.array([[m], [0], [0], [0]]), parent, m), parent)


def test_momentum_in_decay_is_zero_where_the_daughters_are_too_heavy():
    got = momentum_in_decay(np.array([100.0, 100.0, 100.0]), np.array([50.0, 60.0, 150.0]), 41.0)
    assert got[0] > 0
    assert list(got[1:]) == [0, 0]


def test_a_higgs_decay_has_one_z_near_its_shell():
    leptons = higgs(20_000, np.random.default_rng(0), pt=20)
    pt, eta, phi = (array[:, :2] for array in (leptons.pt, leptons.eta, leptons.phi))
    m12 = np.sqrt(2 * pt.prod(axis=1) * (np.cosh(np.diff(eta)[:, 0]) - np.cos(np.diff(phi)[:, 0])))
    assert abs(np.median(m12) - Z_MASS) < 2
    assert 0.5 < np.mean(np.abs(m12 - Z_MASS) < 4) < 0.9


def test_a_simulation_that_is_interrupted_leaves_nothing_behind(tmp_path):
    def write(part):
        part.mkdir()
        (part / "a.root").write_bytes(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_toys_once(tmp_path / "toy", write)
    assert list(tmp_path.iterdir()) == []
