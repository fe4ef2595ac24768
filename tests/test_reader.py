"""Columns are what uproot reads, bit for bit, or a DataError that says what is wrong: never other numbers."""

import random
import struct
import time
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numba
import numpy as np
import pytest
import uproot
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hzzray.data import reader as reader_module
from hzzray.data import unpacking
from hzzray.data.baskets import unpack
from hzzray.data.catalogue import release
from hzzray.data.reader import Buffers, Reader
from hzzray.data.schema import BranchBound
from hzzray.data.storage import LocalBytes
from hzzray.data.toy import write_toys
from hzzray.errors import DataError, TransientError
from hzzray.physics.columns import (
    AllOf,
    AnyOf,
    Array,
    Below,
    Jagged,
    Offsets,
    Reads,
    Scalar,
    Unread,
    needed,
    nothing,
)
from hzzray.physics.lepton_columns import Best, Leptons
from tests.support.http_server import serve
from tests.support.reading import EVERYTHING, PLAIN, Asked, asked, copied, joined
from tests.support.root_files import REAL, REAL_2020, REAL_2025, SCHEMA, columns, write

COMPRESSIONS = {
    "zlib": uproot.ZLIB(1),
    "lzma": uproot.LZMA(1),
    "lz4": uproot.LZ4(1),
    "zstd": uproot.ZSTD(1),
    "none": None,
}

#: Small steps on files whose path pytest made once: hypothesis may go through many examples with them.
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


#: All arrays of a step that our own analyses read.
Columns = NamedTuple("Columns", [(name, Any) for name in (*Leptons._fields, "factors", "divisor")])


def flat(step):
    return Columns(*step.columns, step.factors, step.divisor)


def open_reader(path, *, schema=SCHEMA, selection=EVERYTHING, simulation=True, step=None, **options):
    reads = selection.reads(schema, simulation=simulation)
    return open_reads(path, reads, tree=schema.tree, step=step, **options)


def open_reads(path, reads, *, tree="mini", step=None, **options):
    with pytest.MonkeyPatch.context() as patch:
        if step is not None:
            patch.setattr(reader_module, "STEP", step)
        return Reader(str(path), tree, reads, **options)


def gathered(reader, start, stop):
    """All steps of a range as one: the columns are views that the next step writes over."""
    return flat(joined([copied(step) for step in reader.steps(start, stop)], reader._reads))


def read(path, start=0, stop=None, **options):
    with open_reader(path, **options) as reader:
        return gathered(reader, start, reader.layout.entries if stop is None else stop)


def attempted(path, **options):
    """Columns and no message, or no columns and the message of one of our own errors."""
    try:
        return read(path, **options), ""
    except (DataError, TransientError) as error:
        return None, str(error)


def assert_same(one, other):
    """Equal types, shapes and bits."""
    for name, left, right in zip(one._fields, one, other, strict=True):
        assert left.dtype == right.dtype, name
        assert left.shape == right.shape, name
        assert left.tobytes() == right.tobytes(), name


def expected(path, schema=SCHEMA, selection=EVERYTHING, *, simulation=True, start=0, stop=None):
    """Columns straight from uproot and awkward, with no code of the reader's."""
    names = selection.reads(schema, simulation=simulation).branches
    with uproot.open(path) as file:
        events = file[schema.tree].arrays(names, entry_start=start, entry_stop=stop)
    n = len(events)
    identified, isolated = selection.parameters.identified, selection.parameters.isolated
    if not isinstance(selection.parameters, Best) and "n_identified" not in selection.variables:
        identified = isolated = False

    def flat(name, dtype):
        return ak.to_numpy(ak.flatten(events[name])).astype(dtype)

    def within(bound):
        with np.errstate(invalid="ignore"):
            limit = bound.below * (flat(bound.over, np.float64) if bound.over else 1)
            return flat(bound.branch, np.float64) < limit

    def flags(names, used, bounds=()):
        every = [flat(name, bool) for name in names] if used else []
        every += [within(bound) for bound in bounds] if isolated else []
        return np.all(every, axis=0).view(np.uint8) if every else np.empty(0, np.uint8)

    def scalars(names):
        return np.array([ak.to_numpy(events[name]).astype(np.float64) for name in names]).reshape(len(names), n)

    triggered = (scalars(schema.triggers) != 0).any(axis=0) if "triggered" in selection.variables else np.empty(0)
    return Columns(
        np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(events[schema.pt])))]).astype(np.int64),
        *(flat(name, np.float32) for name in schema.kinematics[:4]),
        *(flat(name, np.int32) for name in schema.kinematics[4:]),
        triggered.astype(np.uint8),
        flags((schema.matched,), "n_matched" in selection.variables),
        flags(schema.electron_id, identified, schema.electron_isolation),
        flags(schema.muon_id, identified, schema.muon_isolation),
        scalars(schema.factors if simulation else ()),
        scalars((schema.divisor,))[0] if simulation and schema.divisor else np.empty(0),
    )


# Every format that there is: real ones, and simulated ones of both releases


def case(path, year):
    name = f"{year}-{path.name}" if path else f"{year}-absent"
    marks = () if path else pytest.mark.skip(reason=f"no real {year} files: ../shared/data is absent")
    return pytest.param(path, year, marks=marks, id=name[:40])


REAL_FILES = [
    *(case(path, "2020") for path in REAL_2020 or [None]),
    *(case(path, "2025") for path in REAL_2025 or [None]),
]


def richest(path, year):
    """The selection that reads most of what a file has: rewritten files of 2020 have the notebook's branches alone."""
    if year == "2025":
        return asked("notebook-2025", release("2025").schema_)
    with uproot.open(path) as file:
        return EVERYTHING if "lep_trigMatched" in file["mini"] else Asked(PLAIN.parameters, frozenset({"triggered"}))


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Files in both formats, of several baskets a branch: one of simulation and one of data each."""
    made = {}
    for year, sample in (("2020", "ggH125_ZZ4lep"), ("2025", None)):
        whole = release(year)
        data = next(one.name for one in whole.samples if whole.role(one) == "data")
        simulated = sample or next(one.name for one in whole.samples if "ggH125" in one.name)
        folder = tmp_path_factory.mktemp(f"toy{year}")
        made[year] = write_toys(folder, whole.only((data, simulated)), events=3000, chunk=400)
    return made


def check_formats_agree(path, year, ranges, steps):
    simulation = "data" not in Path(path).name
    common = {"schema": release(year).schema_, "selection": richest(path, year), "simulation": simulation}
    for step in steps:
        with open_reader(path, **common, step=step) as fast, open_reader(path, **common, step=step, slow=True) as slow:
            assert fast._fast.all()
            for start, stop in ranges(fast.layout.entries):
                quick = gathered(fast, start, stop)
                assert_same(quick, gathered(slow, start, stop))
                assert_same(quick, expected(path, **common, start=start, stop=stop))
            assert fast._tree is None


@pytest.mark.parametrize(("path", "year"), REAL_FILES)
def test_real_files(path, year):
    check_formats_agree(path, year, lambda n: [(0, n)], steps=[None, 700])


@pytest.mark.parametrize("year", ["2020", "2025"])
def test_toy_files(toys, year):
    for path in toys[year]:
        check_formats_agree(path, year, lambda n: [(0, n)], steps=[None, 333])


def check_any_range(path, year, data):
    """Compare ranges in any order, one reader for all of them, with steps that straddle baskets."""
    simulation = "data" not in Path(path).name
    common = {"schema": release(year).schema_, "selection": richest(path, year), "simulation": simulation}
    whole = expected(path, **common)
    entries = len(whole.offsets) - 1
    step = data.draw(st.integers(max(1, entries // 40), entries + 10), label="step")
    bounds = st.tuples(st.integers(0, entries), st.integers(0, entries)).map(sorted)
    with open_reader(path, **common, step=step) as reader:
        for start, stop in data.draw(st.lists(bounds, min_size=1, max_size=4), label="ranges"):
            if start == stop:
                assert list(reader.steps(start, stop)) == []
                continue
            leptons = slice(whole.offsets[start], whole.offsets[stop])
            part = {
                name: array[..., slice(start, stop) if name in ("trigger", "factors", "divisor") else leptons]
                for name, array in zip(Columns._fields, whole, strict=True)
            }
            part["offsets"] = whole.offsets[start : stop + 1] - whole.offsets[start]
            assert_same(gathered(reader, start, stop), Columns(**part))


@pytest.mark.parametrize(("path", "year"), REAL_FILES)
@settings(RELAXED, max_examples=8)
@given(data=st.data())
def test_any_range_of_real_files(path, year, data):
    check_any_range(path, year, data)


@pytest.mark.parametrize("year", ["2020", "2025"])
@settings(RELAXED, max_examples=20)
@given(data=st.data())
def test_any_range_of_toy_files(toys, year, data):
    check_any_range(data.draw(st.sampled_from(toys[year])), year, data)


def test_a_basket_is_read_once_however_small_the_steps(toys):
    for path in toys["2020"]:
        with open_reader(path, step=37) as reader:
            before = reader.bytes_read
            for _ in reader.steps(0, reader.layout.entries):
                pass
            baskets = sum(int(reader.layout.branches[name].sizes.sum()) for name in reader.names)
            assert reader.bytes_read - before == baskets


def test_readers_that_hand_on_their_buffers(toys):
    """Each file's first basket has the same number: what the last file's held must not pass for it."""
    buffers = Buffers()
    for path in (*toys["2020"], *toys["2020"]):
        simulation = "data" not in path.name
        with open_reader(path, simulation=simulation, step=50, buffers=buffers) as reader:
            stop = min(120, reader.layout.entries)
            assert_same(gathered(reader, 0, stop), expected(path, simulation=simulation, stop=stop))


def test_readers_that_hand_on_their_buffers_to_files_of_other_forms(tmp_path):
    """What was made for one form is no good for another, nor is what has grown too small for longer lists."""
    buffers, paths = Buffers(), []
    for i, (name, change) in enumerate(
        [("lep_pt", np.float64), ("lep_charge", np.int8), ("lep_eta", np.float32), ("mcWeight", np.float64)]
    ):
        content = columns(90, seed=i, least=2 * i)
        change_one = ak.values_astype(content[name], change) if i != 3 else content[name].astype(change)
        paths.append(write(tmp_path / f"{i}.root", content | {name: change_one}, basket=40))
    asked = EVERYTHING.reads(SCHEMA, simulation=True)
    for path in (*paths, *reversed(paths)):
        with open_reads(path, asked, step=50, buffers=buffers) as reader:
            assert reader._fast.all()
            assert_same(gathered(reader, 0, 90), expected(path))


# Isolation from numbers


BOUNDS = SCHEMA.model_copy(
    update={
        "electron_id": ("lep_isTightID",),
        "muon_id": ("lep_isTightID",),
        "electron_isolation": (BranchBound(branch="lep_ptcone30", over="lep_pt", below=0.25),),
        "muon_isolation": (BranchBound(branch="lep_etcone20", below=500.0), BranchBound(branch="lep_pt", below=1e6)),
    }
)


@pytest.mark.parametrize("slow", [False, True])
def test_isolation_is_a_number_below_its_bound_or_below_that_of_another_branch(tmp_path, slow):
    """Issue 11, item 7: 2020 has ``ptcone30`` and ``etcone20`` where 2025 has flags."""
    leptons = {
        "lep_pt": [20_000, 20_000, 8_000, 20_000, 2e6, 20_000],
        "lep_ptcone30": [4_999, 5_000, 4_000, np.nan, 0, -1],
        "lep_etcone20": [499, 500, -3_000, 499, 0, np.inf],
        "lep_isTightID": [True, True, True, True, True, False],
    }
    content = {name: array[:1] for name, array in columns(5, least=6).items()}
    content |= {name: content[name][:, :6] for name in (*SCHEMA.kinematics, "lep_trigMatched")}
    for name, values in leptons.items():
        content[name] = ak.from_regular(np.array([values], bool if name == "lep_isTightID" else np.float32))
    path = write(tmp_path / "a.root", content)
    both = Asked(Best(identified=True, isolated=True), EVERYTHING.variables)
    with open_reader(path, schema=BOUNDS, selection=both, slow=slow) as reader:
        assert (reader._fast != slow).all()
        got = gathered(reader, 0, 1)
    assert got.electron_ok.tolist() == [1, 0, 0, 0, 1, 0]
    assert got.muon_ok.tolist() == [1, 0, 1, 1, 0, 0]
    assert got.pt.tolist() == leptons["lep_pt"]


def test_isolation_of_another_number_of_leptons_is_refused(tmp_path):
    content = columns(20, least=4)
    content["lep_etcone20"] = content["lep_etcone20"][:, :-1]
    with pytest.raises(DataError, match=r"branch lep_etcone20: corrupt: entry 0 "):
        read(write(tmp_path / "a.root", content))


# What uproot can write: compressions, lengths, shapes


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressions(tmp_path, name):
    path = write(tmp_path / "a.root", columns(3000), basket=1100, compression=COMPRESSIONS[name])
    magic = {"zlib": b"ZL", "lzma": b"XZ", "lz4": b"L4", "zstd": b"ZS"}.get(name)
    for basket in baskets_of(path, ("lep_eta", "trigE")):
        assert basket.magic == magic or magic is None
    got = read(path, step=400)
    assert_same(got, expected(path))
    assert_same(got, read(path, slow=True))


def test_a_basket_of_several_compressed_blocks(tmp_path):
    """ROOT and uproot cut what is above 16 MB into blocks."""
    n = 2_200_000
    counts = np.ones(n, np.int64)
    flat = {name: np.resize(np.arange(100), n) for name in SCHEMA.kinematics}
    flat |= {"lep_eta": flat["lep_eta"] / 64, "lep_phi": flat["lep_phi"] / 64}
    flat |= {"lep_charge": np.resize([1, -1], n), "lep_type": np.resize([11, 13, 13], n)}
    types = dict(zip(SCHEMA.kinematics, ["f4"] * 4 + ["i4", "u4"], strict=True))
    content = {name: ak.unflatten(flat[name].astype(types[name]), counts) for name in flat}
    path = write(tmp_path / "a.root", content)
    with open_reader(path, selection=PLAIN, simulation=False) as reader:
        for start in (0, 2_000_000, n - 100):
            got = gathered(reader, start, start + 100)
            np.testing.assert_array_equal(got.pt, flat["lep_pt"][start : start + 100])
            np.testing.assert_array_equal(got.type, flat["lep_type"][start : start + 100])


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (
            {"type": "lep_charge", "charge": "lep_type"},
            "lep_charge can't be the type: of its first .* neither 11",
        ),
        (
            {"charge": "lep_trigType"},
            "lep_trigType can't be the charge: of its first .* neither 1 nor -1: 11, 13",
        ),
        ({"pt": "lep_eta", "eta": "lep_pt"}, "lep_eta can't be the pt: of its first .* below 0: -"),
        ({"energy": "lep_phi", "phi": "lep_E"}, "lep_phi can't be the energy: of its first .* below 0: -"),
        ({"eta": "lep_E", "energy": "lep_phi2"}, "lep_E can't be the eta: of its first .* beyond ±10"),
        ({"phi": "lep_E", "energy": "lep_phi2"}, "lep_E can't be the phi: of its first .* beyond ±2π"),
    ],
)
@pytest.mark.parametrize("start", [0, 900])
def test_a_branch_that_cannot_be_what_the_schema_says_is_named(tmp_path, roles, said, start):
    """Issue 11, item 9: a mistake in the schema gave 0 events, exit 0 and no word."""
    content = columns(1000, least=4)
    content |= {"lep_trigType": content["lep_type"], "lep_phi2": abs(content["lep_phi"])}
    path = write(tmp_path / "a.root", content, basket=300)
    with open_reader(path, schema=SCHEMA.model_copy(update=roles)) as reader, pytest.raises(DataError, match=said):
        list(reader.steps(start, start + 50))


def test_a_few_odd_values_are_no_mistake_of_the_schema(tmp_path):
    content = columns(100, least=4)
    counts = ak.num(content["lep_type"])
    for name, odd in (("lep_type", 15), ("lep_charge", 0), ("lep_pt", -999.0)):
        values = ak.to_numpy(ak.flatten(content[name])).copy()
        values[::4] = odd
        content[name] = ak.unflatten(values, counts)
    path = write(tmp_path / "a.root", content)
    assert_same(read(path), expected(path))


@pytest.mark.parametrize("slow", [False, True])
def test_a_pdg_id_is_as_good_as_a_type(tmp_path, slow):
    """Issue 11, item 26: a type of either sign selected nothing, silently."""
    content = columns(1000, least=4)
    signed = content | {"lep_type": ak.values_astype(content["lep_type"], np.int32) * -content["lep_charge"]}
    plain, own = write(tmp_path / "a.root", content), write(tmp_path / "b.root", signed)
    assert_same(read(own, slow=slow), read(plain, slow=slow))


@pytest.mark.parametrize("events", [0, 1])
def test_almost_nothing(tmp_path, events):
    path = write(tmp_path / "a.root", columns(events, least=4))
    with open_reader(path) as reader:
        assert reader.layout.entries == events
        steps = list(reader.steps(0, events))
    assert len(steps) == events
    if events:
        assert_same(flat(steps[0]), expected(path))


def test_events_without_leptons(tmp_path):
    content = columns(50)
    empty = {name: array[:, :0] if isinstance(array, ak.Array) else array for name, array in content.items()}
    path = write(tmp_path / "a.root", empty, basket=20)
    got = read(path)
    assert got.offsets.tolist() == [0] * 51
    assert_same(got, expected(path))


@pytest.mark.parametrize("slow", [False, True])
def test_nan_and_infinity_are_numbers(tmp_path, slow):
    content = columns(4, least=1)
    odd = np.array([0x7FA00000, 0x7FC00000, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    jagged = [name for name, array in content.items() if isinstance(array, ak.Array)]
    path = write(
        tmp_path / "a.root",
        content
        | {"mcWeight": odd, "lep_pt": ak.unflatten(np.resize(odd, 4), 1)[:4]}
        | {name: content[name][:, :1] for name in jagged if name != "lep_pt"},
    )
    got = read(path, slow=slow)  # the first of them is a signalling nan
    assert np.isnan(got.factors[0]).tolist() == [True, True, False, False]
    assert got.factors[0, 2:].tolist() == [np.inf, -np.inf]
    assert np.isnan(got.pt).tolist() == [True, True, False, False]


@pytest.mark.parametrize("span", [(0, 51), (-1, 5), (7, 6), (51, 51)])
def test_entries_outside_are_refused(tmp_path, span):
    path = write(tmp_path / "a.root", columns(50))
    with (
        open_reader(path) as reader,
        pytest.raises(DataError, match=r"a\.root: entries -?\d+ to \d+ of 50 were asked for"),
    ):
        list(reader.steps(*span))


def float64(array):
    return ak.values_astype(array, np.float64)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, float64) for name in SCHEMA.kinematics),
        ("lep_charge", lambda array: ak.values_astype(array, np.int64)),
        ("lep_charge", lambda array: ak.values_astype(array, np.int8)),
        ("lep_type", lambda array: ak.values_astype(array, np.uint8)),
        ("lep_trigMatched", lambda array: ak.values_astype(array, np.int32) * 256),
        ("lep_trigMatched", lambda array: ak.values_astype(array, np.int8) * 2),
        ("trigE", lambda array: array.astype(np.int64) << 40),
        ("mcWeight", lambda array: array.astype(np.float64)),
        ("mcWeight", lambda array: (array * 10).astype(np.int16)),
    ],
)
def test_numbers_of_another_type_are_the_same_numbers(tmp_path, name, change):
    content = columns(300)
    path = write(tmp_path / "a.root", content | {name: change(content[name])}, basket=90)
    plain = write(tmp_path / "b.root", content, basket=90)
    reference = read(plain)
    if name == "mcWeight":
        reference.factors[0] = change(content[name])
    assert_same(read(path, step=70), reference)


def test_four_leptons_in_a_fixed_array(tmp_path):
    """A C array of constant length is a list an entry too."""
    content = columns(40)
    four = {name: array[:, :4] for name, array in columns(40, least=4).items() if isinstance(array, ak.Array)}
    fixed = ak.to_numpy(four["lep_pt"])
    path = write(tmp_path / "a.root", content | four | {"lep_pt": fixed})
    got = read(path, 10, 40)
    np.testing.assert_array_equal(got.pt, fixed[10:40].ravel())
    assert got.offsets.tolist() == list(range(0, 121, 4))


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [
        ("lep_pt", np.ones(60, np.float32), "float32 an entry, not a list of numbers"),
        ("lep_eta", np.ones(60, np.float32), "float32 an entry, not a list of numbers"),
        ("lep_charge", np.ones(60, np.int32), "int32 an entry, not a list of numbers"),
        ("lep_type", ak.Array(["e"] * 60), "string an entry, not a list of numbers"),
        ("lep_trigMatched", np.ones(60, bool), "bool an entry, not a list of numbers"),
        ("trigE", columns(60)["lep_pt"], "var \\* float32 an entry, not one number"),
        (
            "mcWeight",
            ak.unflatten(np.ones(60, np.float32), np.ones(60, int)),
            "var \\* float32 an entry, not one number",
        ),
        ("trigM", ak.Array(["yes"] * 60), "string an entry, not one number"),
    ],
)
def test_another_shape_names_file_and_branch(tmp_path, name, value, held):
    path = write(tmp_path / "a.root", columns(60) | {name: value}, basket=25)
    for slow in (False, True):
        with pytest.raises(DataError, match=rf"a\.root: branch {name} holds {held}$"):
            read(path, slow=slow)


BARE = Path(__file__).parent / "files" / "offset_map.root"
IN_BARE = Asked(PLAIN.parameters, EVERYTHING.variables)  # all that its branches are read for


def test_baskets_without_entry_offsets_are_read(tmp_path):
    """Issue 11, item 23: kGenerateOffsetMap, as ROOT wrote it (see offset_map.C); the counter says how long each is."""
    counts = np.arange(600) * 7 % 6
    entry, index = np.repeat(np.arange(600), counts), np.concatenate([np.arange(n) for n in counts])
    pt = (1000 * (entry % 64 + 1) + 8 * index).astype(np.float32)
    for step, slow in ((None, False), (97, False), (97, True)):
        got = read(BARE, selection=IN_BARE, step=step, slow=slow)
        assert np.array_equal(np.diff(got.offsets), counts)
        assert np.array_equal(got.pt, pt)
        assert np.array_equal(got.energy, 2 * pt)
        assert np.array_equal(got.eta, (0.25 * index - 0.5).astype(np.float32))
        assert np.array_equal(got.charge, np.where(index % 2, 1, -1))
        assert np.array_equal(got.type, np.where(entry % 2, 11, 13))
        assert np.array_equal(got.matched, (index == 0).astype(np.uint8))
    inner = read(BARE, 101, 333, selection=IN_BARE, step=50)
    chosen = (entry >= 101) & (entry < 333)
    assert np.array_equal(inner.pt, pt[chosen])


def test_a_counter_that_does_not_fit_is_a_data_error(tmp_path):
    """Issue 11, item 23: one length more or less than there are values is damage, and names file and branch."""
    content = bytearray(BARE.read_bytes())
    with uproot.open(BARE) as file:
        seek, size = (int(file["mini/lep_pt"].member(name)[3]) for name in ("fBasketSeek", "fBasketBytes"))
    content[seek + size - 30 : seek + size - 10] = bytes(20)
    (tmp_path / "b.root").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.root: branch lep_pt.*: (corrupt|unreadable)"):
        read(tmp_path / "b.root", selection=IN_BARE)


@pytest.mark.parametrize("value", [1.5, 2.0**31, np.nan, np.inf])
def test_a_charge_that_is_no_integer_is_refused(tmp_path, value):
    content = columns(20, least=1)
    charge = float64(content["lep_charge"]) * 0 + value
    path = write(tmp_path / "a.root", content | {"lep_charge": charge})
    with pytest.raises(DataError, match=r"a\.root: branch lep_charge holds numbers that are no 32-bit integers"):
        read(path)


@pytest.mark.parametrize("name", [*SCHEMA.kinematics[1:], "lep_trigMatched"])
@pytest.mark.parametrize("slow", [False, True])
def test_unequal_numbers_of_leptons_name_branch_and_entry(tmp_path, name, slow):
    content = columns(100, least=1)
    counts = ak.to_numpy(ak.num(content[name]))
    counts[42] -= 1  # entry 42 loses a lepton to entry 43: the totals agree
    counts[43] += 1
    moved = ak.unflatten(ak.flatten(content[name]), counts)
    path = write(tmp_path / "a.root", content | {name: moved}, basket=30)
    pattern = rf"a\.root: branch {name}: .*entry 42 has another number of values than branch lep_pt$"
    with pytest.raises(DataError, match=pattern):
        read(path, slow=slow, step=50)
    assert len(read(path, 0, 42, slow=slow).offsets) == 43
    assert len(read(path, 44, 100, slow=slow).offsets) == 57


# Any analysis' columns


class Mixed(NamedTuple):
    """What a user might ask for: two collections, numbers of an event, arrays, flags, and what isn't needed."""

    photons: Any
    photon_pt: Any
    photon_pt_wide: Any
    photon_id: Any
    photon_charge: Any
    photon_far: Any
    photon_tight: Any
    photon_ok: Any
    photon_small: Any
    jet_pt: Any
    jet_pt_narrow: Any
    jet_offsets: Any
    jet_index: Any
    jet_is_b: Any
    run: Any
    met: Any
    met_narrow: Any
    vertices: Any
    fired: Any
    clean: Any
    beam: Any
    beam_wide: Any
    cells: Any
    bits: Any
    spare: Any
    spare_four: Any


MIXED = Mixed(
    photons=Offsets(collection="photons"),
    photon_pt=Jagged("ph_pt", "f4", "photons"),
    photon_pt_wide=Jagged("ph_pt", "f8", "photons"),
    photon_id=Jagged("ph_id", "i8", "photons"),
    photon_charge=Jagged("ph_q", "i4", "photons"),
    photon_far=Jagged("ph_q", "i4", "photons", absolute=True),
    photon_tight=Jagged("ph_tight", "u1", "photons"),
    photon_ok=AllOf(("ph_tight", "ph_id"), (Below("ph_iso", 0.5, "ph_pt"), Below("ph_q", 2.0)), "photons"),
    photon_small=Jagged("ph_q", "f8", "photons"),
    jet_pt=Jagged("jet_pt", "f8", "jets"),
    jet_pt_narrow=Jagged("jet_pt", "f4", "jets"),
    jet_offsets=Offsets(collection="jets"),
    jet_index=Jagged("jet_short", "i4", "jets", absolute=True),
    jet_is_b=Jagged("jet_pt", "u1", "jets"),
    run=Scalar("run", "i8"),
    met=Scalar("met"),
    met_narrow=Scalar("met", "f4"),
    vertices=Scalar("n_vertices", "i4"),
    fired=Scalar("trig_a", "u1"),
    clean=AnyOf(("trig_a", "trig_b", "met")),
    beam=Array("beam", 4),
    beam_wide=Array("beam", 4, "f8"),
    cells=Array("cells", 3, "i4"),
    bits=Array("cells", 3, "u1"),
    spare=Unread(Jagged("nowhere", "i8", "jets")),
    spare_four=Unread(Array("nowhere", 2, "f8")),
)
MIXED_READS = Reads(MIXED, ("met", "n_vertices", "weight"), "norm")


def mixed(events, seed=0):
    rng = np.random.default_rng(seed)
    photons, jets = rng.integers(0, 5, events), rng.integers(0, 9, events)
    n, m = int(photons.sum()), int(jets.sum())
    lists = {
        "ph_pt": (rng.exponential(40, n).astype(np.float32), photons),
        "ph_id": (rng.integers(-1, 2, n) * (1 << 40), photons),
        "ph_q": (rng.integers(-3, 4, n).astype(np.int8), photons),
        "ph_tight": (rng.random(n) < 0.7, photons),
        "ph_iso": (rng.normal(10, 20, n), photons),
        "jet_pt": (rng.exponential(50, m) * (rng.random(m) < 0.8), jets),
        "jet_short": (rng.integers(-300, 300, m).astype(np.int16), jets),
    }
    return {name: ak.unflatten(array, counts) for name, (array, counts) in lists.items()} | {
        "run": rng.integers(1, 1 << 50, events),
        "met": np.where(rng.random(events) < 0.3, 0.0, rng.exponential(30, events)),
        "n_vertices": rng.integers(0, 60, events).astype(np.uint8),
        "trig_a": rng.integers(0, 3, events).astype(np.int32) << 8,
        "trig_b": rng.random(events) < 0.2,
        "beam": rng.normal(0, 1, (events, 4)).astype(np.float32),
        "cells": rng.integers(-2, 3, (events, 3)),
        "weight": rng.normal(1, 1, events).astype(np.float32),
        "norm": rng.exponential(1, events),
    }


def mixed_by_uproot(path, start, stop):
    with uproot.open(path) as file:
        events = file["mini"].arrays(MIXED_READS.branches, entry_start=start, entry_stop=stop)

    def offsets(name):
        return np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(events[name])))]).astype(np.int64)

    def one(name, dtype):
        values = ak.to_numpy(ak.flatten(events[name]) if "_" in name and name[:2] in ("ph", "je") else events[name])
        return (values != 0).astype(np.uint8) if dtype == "u1" else values.astype(dtype)

    isolated = one("ph_iso", "f8") < 0.5 * one("ph_pt", "f8")
    good = (one("ph_tight", "u1") != 0) & (one("ph_id", "u1") != 0) & isolated & (one("ph_q", "f8") < 2)
    columns = Mixed(
        offsets("ph_pt"), one("ph_pt", "f4"), one("ph_pt", "f8"), one("ph_id", "i8"), one("ph_q", "i4"),
        abs(one("ph_q", "i4")), one("ph_tight", "u1"), good.astype(np.uint8), one("ph_q", "f8"), one("jet_pt", "f8"),
        one("jet_pt", "f4"), offsets("jet_pt"), abs(one("jet_short", "i4")), one("jet_pt", "u1"), one("run", "i8"),
        one("met", "f8"), one("met", "f4"), one("n_vertices", "i4"), one("trig_a", "u1"),
        one("trig_a", "u1") | one("trig_b", "u1") | one("met", "u1"), one("beam", "f4"), one("beam", "f8"),
        one("cells", "i4"), one("cells", "u1"), np.empty(0, np.int64), np.empty((0, 2)),
    )  # fmt: skip
    return columns, np.array([one(name, "f8") for name in MIXED_READS.factors]), one("norm", "f8")


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    """Files of all kinds of branches by entries a basket; compressed or not."""
    folder = tmp_path_factory.mktemp("mixed")
    return {
        basket: write(
            folder / f"{basket}.root", mixed(700, basket), basket=basket, compression=COMPRESSIONS[compression]
        )
        for basket, compression in ((1000, "zlib"), (130, "none"), (61, "zlib"), (60, "lz4"))
    }


def check_mixed(path, start, stop, step, *, slow):
    with open_reads(path, MIXED_READS, step=step, slow=slow) as reader:
        if start == stop:
            assert list(reader.steps(start, stop)) == []
            return
        steps = list(map(copied, reader.steps(start, stop)))
        assert (reader._fast != slow).all()
    got = joined(steps, MIXED_READS)
    columns, factors, divisor = mixed_by_uproot(path, start, stop)
    # What is unread has no entries, whichever step it is.
    assert_same(got.columns, columns)
    assert got.events == stop - start
    assert np.array_equal(got.factors, factors)
    assert np.array_equal(got.divisor, divisor)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("basket", [1000, 130, 61, 60])
def test_any_kind_of_column(mixtures, basket, slow):
    check_mixed(mixtures[basket], 0, 700, None, slow=slow)


@settings(RELAXED, max_examples=25)
@given(data=st.data())
def test_any_range_of_any_kind_of_column(mixtures, data):
    path = mixtures[data.draw(st.sampled_from(sorted(mixtures)))]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 700), st.integers(0, 700))))
    check_mixed(path, start, stop, data.draw(st.integers(20, 900)), slow=data.draw(st.booleans()))


def test_baskets_side_by_side_are_read_at_once_in_the_files_order(mixtures, monkeypatch):
    asked = []
    whole = LocalBytes.read_into

    def noted(source, ranges, out):
        asked.append(list(ranges))
        whole(source, ranges, out)

    monkeypatch.setattr(LocalBytes, "read_into", noted)
    with open_reads(mixtures[60], MIXED_READS, step=700) as reader:
        asked.clear()
        for _ in reader.steps(0, 700):
            pass
        branches = [reader.layout.branches[name] for name in reader.names]
    ((*_, ranges),) = [asked]
    ends = [start + length for start, length in ranges]
    assert all(start > end for (start, _), end in zip(ranges[1:], ends, strict=False))
    assert sum(length for _, length in ranges) <= sum(int(branch.sizes.sum()) for branch in branches)
    assert 0 < len(ranges) < sum(len(branch.sizes) for branch in branches)


def test_a_branch_that_several_columns_are_made_of_is_read_once(mixtures):
    with open_reads(mixtures[60], MIXED_READS, step=50) as reader:
        before = reader.bytes_read
        for _ in reader.steps(0, 700):
            pass
        baskets = sum(int(reader.layout.branches[name].sizes.sum()) for name in reader.names)
        assert reader.bytes_read - before == baskets


def test_arrays_have_one_type_however_they_are_read_or_not(mixtures):
    """Else compiled code would be compiled again, in the middle of a task."""

    def types(step):
        return [numba.typeof(array) for array in (*step.columns, step.factors, step.divisor)]

    unread = MIXED._replace(
        **{name: read if isinstance(read, Unread) else Unread(read) for name, read in MIXED._asdict().items()}
    )
    asked = types(nothing(MIXED_READS))
    assert types(nothing(MIXED_READS._replace(columns=unread))) == asked
    for reads in (MIXED_READS, MIXED_READS._replace(columns=unread)):
        for slow in (False, True):
            with open_reads(mixtures[61], reads, step=90, slow=slow) as reader:
                assert all(types(step) == asked for step in reader.steps(10, 200))


@pytest.mark.parametrize("dtype", [">f8", ">i8", ">i4", ">i2", "|u1"])
@pytest.mark.parametrize("follows", [False, True])
def test_vectors_of_any_width_are_copied_from_behind_their_headers(dtype, follows):
    """ROOT's std::vector has 10 bytes before each entry's values, which uproot can't write."""
    counts = np.array([2, 0, 30, 1, 4])
    values = np.arange(counts.sum()).astype(dtype)
    ends = np.cumsum([0, *counts])
    entries = [bytes(10) + part.tobytes() for part in np.split(values, ends[1:-1])]
    starts = np.cumsum([0, *map(len, entries)]).astype(">i4")
    data = b"".join(entries)
    table = np.concatenate([[len(entries)], starts[:-1]]).astype(">i4").tobytes()
    stored = [unpacking.Stored("x", True, 0, 1, 1, 0)] * follows
    stored += [unpacking.Stored("y", True, 10, values.itemsize, 1, 0)]
    unpacker = unpacking.Unpacker(stored, 4)  # has room for 16 values
    if follows:
        unpacker.offsets(1)[:] = ends[1:] - ends[1]
    baskets = unpacking.Baskets(np.array([[0, 0, 5, 0, 0]]), np.array([0] * len(stored) + [1]))
    done = unpacker.copy(
        np.empty(0, np.uint8),
        baskets,
        [{}] * follows + [{0: (data + table, len(data))}],
        np.ones(len(stored), np.bool_),
        int(follows),
        1,
        5,
    )
    assert done == len(stored)
    assert unpacker.offsets(follows).tolist() == [0, 0, 30, 31, 35]
    shown = unpacker.values(follows, 35).view("=i4" if values.itemsize == 4 else dtype)
    assert shown.tolist() == values[2:].tolist()


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize("slow", [False, True])
def test_a_real_file_of_five_collections(slow):
    """CERN's HZZ: C arrays with counters, of muons, electrons, photons, jets."""
    path = REAL / "uproot-HZZ.root"
    fields = {
        f"{kind}_{what}": Jagged(f"{kind}_{what}", dtype, kind)
        for kind in ("Muon", "Electron", "Photon", "Jet")
        for what, dtype in (("Px", "f4"), ("E", "f8"))
    }
    fields |= {f"{kind}_offsets": Offsets(collection=kind) for kind in ("Muon", "Electron", "Photon", "Jet")}
    fields |= {"Muon_Charge": Jagged("Muon_Charge", "i4", "Muon"), "Jet_ID": Jagged("Jet_ID", "u1", "Jet")}
    fields |= {"MET_px": Scalar("MET_px"), "triggerIsoMu24": AnyOf(("triggerIsoMu24",))}
    own = NamedTuple("Own", [(name, Any) for name in fields])
    reads = Reads(own(**fields), ("EventWeight",))
    with open_reads(path, reads, tree="events", step=500, slow=slow) as reader:
        got = joined(list(map(copied, reader.steps(0, reader.layout.entries))), reads)
        assert (reader._fast != slow).all()
    with uproot.open(path) as file:
        events = file["events"].arrays(reads.branches)
    for name, read in fields.items():
        column = getattr(got.columns, name)
        if isinstance(read, Offsets):
            assert np.array_equal(np.diff(column), ak.to_numpy(ak.num(events[f"{read.collection}_Px"]))), name
        else:
            flat = ak.to_numpy(ak.flatten(events[name], axis=None))
            assert np.array_equal(column, flat.astype(column.dtype)), name
    assert np.array_equal(got.factors[0], ak.to_numpy(events["EventWeight"]).astype(np.float64))


def lists(values, length=1):
    """Cut numbers into lists of one length, which are of any length by their type."""
    return ak.unflatten(values, np.full(len(values) // length, length))


class One(NamedTuple):
    """One column of some kind."""

    it: Any


def one_read(path, read, **options):
    with open_reads(path, Reads(One(read)), **options) as reader:
        return joined(list(map(copied, reader.steps(0, reader.layout.entries))), reader._reads).columns.it


SHAPES = {
    "list": (lists, Jagged),
    "number": (lambda values: values, Scalar),
    "array": (lambda values: np.stack([values, values[::-1]], axis=1), lambda branch, dtype: Array(branch, 2, dtype)),
}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("value", "stored", "asked", "fits"),
    [
        (2**40, "i8", "i4", False),
        (2**31, "u4", "i4", False),
        (2**31 - 1, "u4", "i4", True),
        (-(2**31), "i8", "i4", True),
        (-(2**31) - 1, "i8", "i4", False),
        (2**63, "u8", "i8", False),
        (2**63 - 1, "u8", "i8", True),
        (1.5, "f4", "i4", False),
        (np.nan, "f4", "i8", False),
        (np.inf, "f8", "i4", False),
        (2.0**31, "f8", "i4", False),
        (-(2.0**31), "f4", "i4", True),
        (2.0**63, "f8", "i8", False),
        (-(2.0**63), "f8", "i8", True),
        (2.0**62, "f4", "i8", True),
        (2**53 + 1, "i8", "i8", True),
    ],
)
def test_an_integer_that_has_no_place_in_its_column_is_refused(tmp_path, shape, slow, value, stored, asked, fits):
    make, read = SHAPES[shape]
    values = np.zeros(20, stored)
    values[13] = value
    path = write(tmp_path / "a.root", {"x": make(values)}, basket=9)
    if not fits:
        with pytest.raises(
            DataError, match=rf"a\.root: branch x holds numbers that are no {8 * int(asked[1])}-bit int"
        ):
            one_read(path, read("x", asked), slow=slow)
        return
    got = one_read(path, read("x", asked), slow=slow)
    assert got.dtype == asked
    assert int(got.reshape(20, -1)[13, 0]) == int(value)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(("least", "fits"), [(-(2**31), False), (1 - 2**31, True)])
def test_an_absolute_value_has_a_place_too(tmp_path, slow, least, fits):
    values = np.array([least, 5, -5], np.int32)
    path = write(tmp_path / "a.root", {"x": lists(values), "y": lists(values.astype(np.int8))})
    if fits:
        assert one_read(path, Jagged("x", "i4", absolute=True), slow=slow).tolist() == [-least, 5, 5]
    else:
        with pytest.raises(DataError, match=r"a\.root: branch x holds numbers that are no 32-bit integers"):
            one_read(path, Jagged("x", "i4", absolute=True), slow=slow)


def test_a_small_integer_s_absolute_value_is_taken_where_there_is_room(tmp_path):
    path = write(tmp_path / "a.root", {"x": lists(np.array([-128, 127], np.int8))})
    assert one_read(path, Jagged("x", "i4", absolute=True)).tolist() == [128, 127]
    assert one_read(path, Jagged("x", "f4", absolute=True)).tolist() == [128, 127]


@pytest.mark.parametrize("slow", [False, True])
def test_what_is_too_large_for_a_float_is_infinite(tmp_path, slow):
    values = np.array([1e300, -1e300, 0.1, np.nan])
    for make, read in SHAPES.values():
        path = write(tmp_path / "a.root", {"x": make(values)})
        with np.errstate(over="ignore"):
            expected = make(values) if isinstance(make(values), np.ndarray) else values
            assert np.array_equal(one_read(path, read("x", "f4"), slow=slow), expected.astype("f4"), equal_nan=True)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    ("read", "held"),
    [
        (Array("four", 3), r"4 \* float32 an entry, not 3 numbers"),
        (Array("number", 1), "float64 an entry, not 1 numbers"),
        (Array("list", 2), r"var \* float32 an entry, not 2 numbers"),
        (Array("matrix", 6), r"2 \* 3 \* float64 an entry, not 6 numbers"),
        (Scalar("four"), r"4 \* float32 an entry, not one number"),
        (Scalar("list"), r"var \* float32 an entry, not one number"),
        (Jagged("number"), "float64 an entry, not a list of numbers"),
        (Jagged("matrix"), r"2 \* 3 \* float64 an entry, not a list of numbers"),
        (AnyOf(("number", "four")), r"4 \* float32 an entry, not one number"),
        (AllOf((), (Below("list", 1.0, "number"),)), "float64 an entry, not a list of numbers"),
    ],
)
def test_a_column_of_another_shape_than_its_branch_names_both(tmp_path, read, held, slow):
    content = {
        "four": np.ones((30, 4), np.float32),
        "number": np.ones(30),
        "list": lists(np.ones(60, np.float32), 2),
        "matrix": np.ones((30, 2, 3)),
    }
    path = write(tmp_path / "a.root", content, basket=11)
    with pytest.raises(DataError, match=rf"a\.root: branch \w+ holds {held}$"):
        one_read(path, read, slow=slow)


class Both(NamedTuple):
    """Two collections, or one."""

    a: Any
    b: Any
    ends: Any


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i1"])
def test_lengths_must_agree_in_a_collection_alone(tmp_path, slow, dtype):
    counts = np.arange(50) % 4
    other = counts.copy()
    other[[21, 22]] = other[[22, 21]]
    total = int(counts.sum())
    path = write(
        tmp_path / "a.root",
        {"x": ak.unflatten(np.arange(total, dtype="f8"), counts), "y": ak.unflatten(np.ones(total, dtype), other)},
        basket=20,
    )
    apart = Reads(Both(Jagged("x", "f8", "a"), Jagged("y", "f4", "b"), Offsets(collection="b")))
    with open_reads(path, apart, slow=slow, step=30) as reader:
        got = joined(list(map(copied, reader.steps(0, 50))), apart).columns
    assert got.a.tolist() == list(range(total))
    assert np.diff(got.ends).tolist() == other.tolist()
    together = Reads(Both(Jagged("x", "f8"), Jagged("y", "f4"), Offsets()))
    with (
        open_reads(path, together, slow=slow, step=30) as reader,
        pytest.raises(DataError, match=r"a\.root: branch y: .*entry 21 has another number of values than branch x$"),
    ):
        list(reader.steps(0, 50))


def test_offsets_alone_are_those_of_a_branch_that_nothing_else_needs(tmp_path):
    own = Both(
        Jagged("x", only_for=("mass",), collection="a"),
        Jagged("y", only_for=("mass",), collection="b"),
        Offsets(collection="b"),
    )
    asked = needed(own, {"number"})
    assert asked == Both(Unread(own.a), own.b, own.ends)
    counts = np.arange(9) % 3
    content = {"x": lists(np.ones(9)), "y": ak.unflatten(np.ones(9), counts)}
    path = write(tmp_path / "a.root", content)
    with open_reads(path, Reads(asked)) as reader:
        assert reader.names == ("y",)
        (step,) = reader.steps(0, 9)
        assert np.diff(step.columns.ends).tolist() == counts.tolist()
    with pytest.raises(ValueError, match=r"^the offsets of collection 'c'$"):
        needed(own._replace(ends=Offsets(collection="c")), {"mass"})


def test_what_an_asked_for_variable_needs_and_has_no_branch():
    own = Both(
        Scalar("", only_for=("met",), what="missing energy"), AnyOf((), only_for=("fired",), what="trigger"), Offsets()
    )
    lists = Both(*own[:2], Jagged("x"))
    assert needed(lists, {"mass"}) == Both(Unread(own.a), Unread(own.b), Jagged("x"))
    with pytest.raises(ValueError, match=r"^missing energy and trigger$"):
        needed(lists, {"met", "fired"})


def test_columns_that_cannot_be():
    for wrong in (lambda: Jagged("x", "f2"), lambda: Scalar("x", "float"), lambda: Array("x", 3, "i2")):
        with pytest.raises(ValueError, match=r"^a column can't be '\w+': it is one of f4, f8, i4, i8, u1$"):
            wrong()
    with pytest.raises(ValueError, match=r"^an array of 0 numbers an event$"):
        Array("x", 0)


def test_roles_are_judged_in_anybody_s_columns_and_nothing_else_is(tmp_path):
    content = {"x": lists(np.full(40, -5.0)), "y": lists(np.full(80, -5.0), 2)}
    path = write(tmp_path / "a.root", content)
    assert set(one_read(path, Jagged("x"))) == {-5}
    assert set(one_read(path, Jagged("x", role="pt", absolute=True))) == {5}
    both = Reads(Both(Jagged("x", role="eta"), Jagged("y", role="pt", collection="b"), Offsets()))
    with (
        open_reads(path, both) as reader,
        pytest.raises(
            DataError, match=r"a\.root: branch y can't be the pt: of its first 80 values 80 are below 0: -5$"
        ),
    ):
        list(reader.steps(0, 40))


def test_an_isolation_of_eight_bytes_is_compared_as_it_is(tmp_path):
    """0.1 and its neighbour below are one number in four bytes."""
    values = np.array([0.1, np.nextafter(0.1, 0), np.nan, -np.inf])
    path = write(tmp_path / "a.root", {"x": lists(values)})
    for slow in (False, True):
        assert one_read(path, AllOf((), (Below("x", 0.1),)), slow=slow).tolist() == [0, 1, 0, 1]


# Damage


class Basket:
    """Where one basket lies in a file, and what its key says."""

    def __init__(self, content, branch, number, seek, size, entries):
        self.branch, self.number, self.seek, self.size, self.entries = branch, number, seek, size, entries
        self.nbytes, _, self.objlen, _, self.keylen, _ = struct.unpack_from(">ihiIhh", content, seek)
        self.body = seek + self.keylen
        self.compressed = size - self.keylen < self.objlen
        self.magic = content[self.body : self.body + 2] if self.compressed else None
        (last,) = struct.unpack_from(">i", content, self.body - 5)
        self.border = last - self.keylen


def baskets_of(path, names=None):
    content = path.read_bytes()
    with open_reader(path) as reader:
        return [
            Basket(content, name, i, int(branch.seeks[i]), int(branch.sizes[i]), int(np.diff(branch.starts)[i]))
            for name, branch in reader.layout.branches.items()
            for i in range(len(branch.seeks))
            if names is None or name in names
        ]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A file all of whose baskets are compressed by zlib, which has a checksum; its columns and baskets."""
    path = write(tmp_path_factory.mktemp("packed") / "a.root", columns(900), basket=300)
    return path, expected(path), baskets_of(path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The same, not compressed."""
    path = write(tmp_path_factory.mktemp("bare") / "a.root", columns(900), basket=300, compression=None)
    return path, expected(path), baskets_of(path)


def changed(path, folder, at, new):
    content = bytearray(path.read_bytes())
    content[at : at + len(new)] = new
    (folder / "b.root").write_bytes(content)
    return folder / "b.root"


KEY_DAMAGES = {
    "length": (0, struct.pack(">i", 77)),
    "no length": (0, bytes(4)),
    "size": (6, struct.pack(">i", 2**31 - 1)),
    "negative size": (6, struct.pack(">i", -5)),
    "key length": (14, struct.pack(">h", 20)),
    "negative key length": (14, struct.pack(">h", -20)),
    "long key": (14, struct.pack(">h", 32_000)),
    "all": (0, bytes(60)),
}


@pytest.mark.parametrize("what", KEY_DAMAGES)
@pytest.mark.parametrize("branch", ["lep_pt", "lep_charge", "lep_trigMatched", "mcWeight"])
def test_a_damaged_key(packed, tmp_path, what, branch):
    path, _, baskets = packed
    basket = next(one for one in baskets if one.branch == branch and one.number == 1)
    at, new = KEY_DAMAGES[what]
    with pytest.raises(DataError, match=rf"b\.root: branch {branch}, basket 1: corrupt: "):
        read(changed(path, tmp_path, basket.seek + at, new))


@pytest.mark.parametrize("file", ["packed", "bare"])
@pytest.mark.parametrize("branch", ["lep_pt", "lep_eta", "lep_trigMatched", "trigE", "mcWeight"])
@pytest.mark.parametrize(("field", "shift"), [(-9, 1), (-9, -1), (-5, 1), (-5, 4), (-5, -4), (-5, -400), (-5, 10**9)])
def test_a_key_that_miscounts_entries_or_values(request, file, tmp_path, branch, field, shift):
    """The key's end (number of entries, end of the values) has no checksum; a shift by 4 fits the offsets."""
    path, _, baskets = request.getfixturevalue(file)
    basket = next(one for one in baskets if one.branch == branch and one.number == 1)
    (value,) = struct.unpack_from(">i", path.read_bytes(), basket.body + field)
    broken = changed(path, tmp_path, basket.body + field, struct.pack(">i", value + shift))
    with pytest.raises(DataError, match=rf"b\.root: branch {branch}(, basket 1)?: corrupt: "):
        read(broken, 310, 320)  # not even the basket's last entry is asked for


BLOCK_DAMAGES = {
    "algorithm": (0, b"QQ"),
    "old algorithm": (0, b"CS"),
    "another algorithm": (0, b"XZ"),
    "lz4": (0, b"L4"),
    "zstd": (0, b"ZS"),
    "compressed size": (3, b"\xff\xff\xff"),
    "no compressed size": (3, bytes(3)),
    "size": (6, b"\1\0\0"),
    "large size": (6, b"\xff\xff\xff"),
    "no size": (6, bytes(3)),
    "zlib header": (9, b"\0\0"),
    "payload": (30, b"\x55\xaa\x55\xaa"),
    "zeros": (11, bytes(60)),
}


@pytest.mark.parametrize("what", BLOCK_DAMAGES)
@pytest.mark.parametrize("branch", ["lep_pt", "lep_eta", "trigM"])
def test_a_damaged_block(packed, tmp_path, what, branch):
    path, _, baskets = packed
    basket = next(one for one in baskets if one.branch == branch and one.number == 2)
    assert basket.magic == b"ZL"
    at, new = BLOCK_DAMAGES[what]
    with pytest.raises(DataError, match=rf"b\.root: branch {branch}, basket 2: corrupt: "):
        read(changed(path, tmp_path, basket.body + at, new))


@pytest.mark.parametrize("what", ["lzma", "lz4", "zstd"])
def test_a_damaged_block_of_other_algorithms(tmp_path, what):
    path = write(tmp_path / "a.root", columns(900), compression=COMPRESSIONS[what])
    basket = next(one for one in baskets_of(path, ("lep_eta",)) if one.compressed)
    whole = path.read_bytes()
    # ZSTD blocks of ROOT files carry no checksum: only their header is sure to be noticed.
    places = [9, basket.size - basket.keylen - 40] if what != "zstd" else [9]
    for at in places:
        new = bytes(byte ^ 0xFF for byte in whole[basket.body + at : basket.body + at + 3])
        with pytest.raises(DataError, match=r"b\.root: branch lep_eta, basket 0: corrupt: "):
            read(changed(path, tmp_path, basket.body + at, new))


@pytest.mark.parametrize("branch", ["lep_pt", "lep_phi", "lep_trigMatched"])
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1, 3, "keylen - 1", "border + 4"])
def test_a_damaged_table_of_offsets(bare, tmp_path, branch, value):
    path, _, baskets = bare
    basket = next(one for one in baskets if one.branch == branch and one.number == 0)
    new = {"keylen - 1": basket.keylen - 1, "border + 4": basket.border + basket.keylen + 4}.get(value, value)
    for entry in (0, 100, basket.entries - 1):
        at = basket.body + basket.border + 4 + 4 * entry
        with pytest.raises(DataError, match=rf"b\.root: branch {branch}.*: corrupt: entr"):
            read(changed(path, tmp_path, at, struct.pack(">i", new)))


def test_an_offset_behind_the_values_is_noticed_by_the_branch_that_has_it(bare, tmp_path):
    """Even where it is the end of the last entry that is read: nothing is made room for."""
    path, _, baskets = bare
    basket = next(one for one in baskets if one.branch == "lep_pt" and one.number == 0)
    for value in (basket.keylen + basket.border + 4, 2**31 - 4):
        at = basket.body + basket.border + 4 + 4 * 100
        broken = changed(path, tmp_path, at, struct.pack(">i", value))
        with pytest.raises(DataError, match=r"b\.root: branch lep_pt: corrupt: entry 99 makes no sense"):
            read(broken, 0, 100)


@pytest.mark.parametrize("shown", [True, False])
def test_compiled_code_unpacks_unless_libdeflate_is_hidden(packed, monkeypatch, shown):
    path, reference, baskets = packed
    with_care = []
    monkeypatch.setattr(unpacking, "unpack", lambda raw, entries: with_care.append(raw) or unpack(raw, entries))
    if not shown:
        monkeypatch.setattr(unpacking, "_library", lambda: None)
    assert_same(read(path), reference)
    assert len(with_care) == (0 if shown else len(baskets))


def test_values_and_offsets_that_are_promised_and_absent(packed):
    """A basket whose key and block agree on more bytes than there are, and one whose table is short."""
    path, _, baskets = packed
    basket = next(one for one in baskets if one.branch == "lep_pt")
    raw = bytearray(path.read_bytes()[basket.seek : basket.seek + basket.size])
    body = unpack(bytes(raw), basket.entries)
    data = np.frombuffer(body.data, np.uint8).copy()

    def fits(length):
        return unpacking._fits(data, np.array([body.border, body.keylen, length]), basket.entries)

    assert fits(len(data))
    for length in (body.border, body.border + 7, len(data) - 4):
        assert not fits(length)
    struct.pack_into(">i", raw, 6, basket.objlen + 4)
    raw[basket.keylen + 6 : basket.keylen + 9] = (basket.objlen + 4).to_bytes(3, "little")
    with pytest.raises(ValueError, match="bytes came out of a block where"):
        unpack(bytes(raw), basket.entries)


@pytest.mark.parametrize("more", [-4, 4, 10**6])
@pytest.mark.parametrize("what", ["zlib", "lzma", "lz4", "zstd"])
def test_a_block_that_holds_another_number_of_bytes_than_it_says(tmp_path, what, more):
    """No more than it says is made room for, and that must come."""
    path = write(tmp_path / "a.root", columns(900), compression=COMPRESSIONS[what])
    basket = next(one for one in baskets_of(path, ("lep_eta",)) if one.compressed)
    raw = bytearray(path.read_bytes()[basket.seek : basket.seek + basket.size])
    assert len(unpack(bytes(raw), basket.entries).data) == basket.objlen
    struct.pack_into(">i", raw, 6, basket.objlen + more)
    raw[basket.keylen + 6 : basket.keylen + 9] = (basket.objlen + more).to_bytes(3, "little")
    with pytest.raises(ValueError, match=r"bytes came out of a block where|^zlib: |^ZSTD: |^LZ4: |^it says"):
        unpack(bytes(raw), basket.entries)


def test_an_xz_block_without_an_end(tmp_path):
    """All bytes are there; what its check stands in isn't."""
    path = write(tmp_path / "a.root", columns(900), compression=COMPRESSIONS["lzma"])
    basket = next(one for one in baskets_of(path, ("lep_eta",)) if one.compressed)
    raw = bytearray(path.read_bytes()[basket.seek : basket.seek + basket.size])
    del raw[-30:]
    struct.pack_into(">i", raw, 0, len(raw))
    raw[basket.keylen + 3 : basket.keylen + 6] = (len(raw) - basket.keylen - 9).to_bytes(3, "little")
    with pytest.raises(ValueError, match="LZMA: the stream has no end"):
        unpack(bytes(raw), basket.entries)


def test_offsets_that_start_late(bare, tmp_path):
    path, reference, baskets = bare
    basket = next(one for one in baskets if one.branch == "lep_pt" and one.number == 0)
    assert reference.offsets[1] > 1  # it could do with a lepton less
    at = basket.body + basket.border + 4
    with pytest.raises(DataError, match=r"b\.root: branch lep_pt, basket 0: corrupt: entry offsets don't fit it"):
        read(changed(path, tmp_path, at, struct.pack(">i", basket.keylen + 4)))


def test_a_truncated_file(packed, tmp_path):
    path, _, _ = packed
    content = path.read_bytes()
    for size in (0, 3, 100, 200, len(content) // 2, len(content) - 1):
        (tmp_path / "b.root").write_bytes(content[:size])
        with pytest.raises(DataError, match=r"b\.root: (truncated|not a ROOT file)"):
            read(tmp_path / "b.root")


def test_a_file_cut_while_it_is_open(packed, tmp_path):
    path, _, _ = packed
    content = path.read_bytes()
    copy = tmp_path / "b.root"
    copy.write_bytes(content)
    with open_reader(copy) as reader:
        copy.write_bytes(content[:2000])
        with pytest.raises(TransientError, match=r"b\.root: changed while it was read"):
            list(reader.steps(0, 900))
    with pytest.raises(DataError, match=r"b\.root: truncated"):
        open_reader(copy)


def test_a_file_replaced_between_layout_and_read(packed, tmp_path):
    """Whoever has a file open goes on reading it; whoever opens it anew sees another uuid."""
    path, columns_before, _ = packed
    copy, cache = tmp_path / "b.root", tmp_path / "cache"
    copy.write_bytes(path.read_bytes())
    other = write(tmp_path / "c.root", columns(900, seed=9), basket=200)
    after = expected(other)
    with open_reader(copy, cache=cache) as reader:
        other.replace(copy)
        assert_same(gathered(reader, 0, 900), columns_before)
        with open_reader(copy, cache=cache) as again:
            assert again.layout.uuid != reader.layout.uuid
            assert_same(gathered(again, 0, 900), after)


def test_a_layout_of_another_file_never_gives_its_numbers(packed, tmp_path, monkeypatch):
    path, _, _ = packed
    copy = tmp_path / "b.root"
    copy.write_bytes(path.read_bytes())
    other = write(tmp_path / "c.root", columns(900, seed=9), basket=300)
    with open_reader(other) as reader:
        layout = reader.layout
    monkeypatch.setattr(reader_module, "read_layout", lambda *_: layout)
    with pytest.raises(DataError, match=r"b\.root: "):
        read(copy)


def damaged_copy(path, folder, flips):
    content = bytearray(path.read_bytes())
    for at, bits in flips:
        content[at] ^= bits
    (folder / "b.root").write_bytes(content)
    return folder / "b.root"


def flips_in(baskets):
    """One to three bytes with other bits, anywhere in the baskets: keys, block headers, payload."""
    places = st.sampled_from(baskets).flatmap(
        lambda basket: st.one_of(
            st.integers(basket.seek, basket.body + 15), st.integers(basket.seek, basket.seek + basket.size - 1)
        )
    )
    return st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=3)


@settings(RELAXED, max_examples=80)
@given(data=st.data())
def test_flipped_bytes_never_give_other_numbers(packed, tmp_path_factory, data):
    path, reference, baskets = packed
    assume(all(basket.magic == b"ZL" for basket in baskets))
    broken = damaged_copy(path, tmp_path_factory.getbasetemp(), data.draw(flips_in(baskets)))
    got, message = attempted(broken, step=data.draw(st.sampled_from([100, 10_000])))
    if got is None:
        assert "b.root: branch " in message
        assert "\n" not in message
    else:
        assert_same(got, reference)


@settings(RELAXED, max_examples=80)
@given(data=st.data())
def test_flipped_bytes_without_a_checksum_never_crash(bare, tmp_path_factory, data):
    """Without compression ROOT has no checksum: numbers may differ, but all stays inside its bounds."""
    path, reference, baskets = bare
    broken = damaged_copy(path, tmp_path_factory.getbasetemp(), data.draw(flips_in(baskets)))
    got, message = attempted(broken, step=data.draw(st.sampled_from([100, 10_000])))
    if got is None:
        assert "b.root: branch " in message
    else:
        assert np.all(np.diff(got.offsets) >= 0)
        assert {len(array) for array in got[1:7]} == {got.offsets[-1]}
        assert got.factors.shape == reference.factors.shape


@settings(RELAXED, max_examples=150)
@given(raw=st.binary(max_size=200), entries=st.integers(1, 50))
def test_any_bytes_are_a_basket_or_a_value_error(raw, entries):
    try:
        body = unpack(raw, entries)
    except ValueError:
        return
    assert body.border <= len(body.data)


def test_flipped_metadata_is_an_error_or_harmless(packed, tmp_path):
    """Header, directory and tree: what uproot makes of them is its own; nothing but our errors comes out."""
    path, reference, baskets = packed
    rng = random.Random(7)
    first = min(basket.seek for basket in baskets)
    outcomes = set()
    for _ in range(60):
        flips = [(rng.randrange(first), rng.randrange(1, 256)) for _ in range(3)]
        got, _ = attempted(damaged_copy(path, tmp_path, flips))
        if got is None:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert set(map(len, got[1:7])) == {got.offsets[-1]}
            if len(got.offsets) == 901:
                assert got.pt.tobytes() == reference.pt.tobytes()
    assert outcomes == {"refused", "read"}


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is absent")
def test_damage_in_embedded_baskets(tmp_path):
    """They lie in the tree's own record, compressed as one, which uproot opens."""
    path = next(path for path in REAL_2020 if "data_B" in path.name)
    with uproot.open(path) as file:
        key = file.key("mini")
    reference = read(path, simulation=False)
    rng = random.Random(5)
    for _ in range(10):
        at = rng.randrange(key.fSeekKey, key.fSeekKey + key.fNbytes)
        got, message = attempted(damaged_copy(path, tmp_path, [(at, rng.randrange(1, 256))]), simulation=False)
        if got is None:
            assert message.startswith(f"{tmp_path}/b.root: ")
        else:
            assert_same(got, reference)


# Faults of the source


def busy(_, ranges, out):
    """Stand in for a read of a server that answers 503."""
    if ranges:
        raise TransientError("a.root: 503")


def test_a_transient_fault_on_the_slow_path_stays_one(packed, monkeypatch):
    path, reference, _ = packed
    whole = LocalBytes.read_into
    with open_reader(path, slow=True) as reader:
        monkeypatch.setattr(LocalBytes, "read_into", busy)
        with pytest.raises(TransientError, match="503"):
            list(reader.steps(0, 900))
        monkeypatch.setattr(LocalBytes, "read_into", whole)
        assert_same(gathered(reader, 0, 900), reference)


def test_after_a_transient_fault_the_reader_goes_on(packed, monkeypatch):
    path, reference, _ = packed
    whole = LocalBytes.read_into
    with open_reader(path, step=100) as reader:
        gathered(reader, 0, 450)
        monkeypatch.setattr(LocalBytes, "read_into", busy)
        with pytest.raises(TransientError, match="503"):
            gathered(reader, 450, 900)
        monkeypatch.setattr(LocalBytes, "read_into", whole)
        assert_same(gathered(reader, 0, 900), reference)


def test_a_reader_that_cannot_start_closes_its_file(tmp_path, monkeypatch):
    closed = []
    close = LocalBytes.close
    monkeypatch.setattr(LocalBytes, "close", lambda self: (closed.append(self.name), close(self)))
    path = write(tmp_path / "a.root", {"lep_pt": columns(5)["lep_pt"]})
    with pytest.raises(DataError, match=r"a\.root: tree mini has no branches lep_eta, "):
        open_reader(path)
    assert closed == [str(path)]


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (["lep_etcone20"], "branch lep_etcone20, which the selection reads: --parameter isolated=false does without"),
        (
            ["trigM", "lep_ptcone30", "trigE"],
            (
                "branches trigE, trigM, lep_ptcone30, which the selection reads: "
                "--cut triggered=: --parameter isolated=false does without"
            ),
        ),
        (["lep_etcone20", "mcWeight"], "branches lep_etcone20, mcWeight (it has lep_pt, "),
        (["lep_pt"], "branch lep_pt (it has lep_eta, "),
    ],
)
def test_a_branch_that_is_missing_comes_with_what_does_without(tmp_path, lacking, said):
    content = {name: array for name, array in columns(5).items() if name not in lacking}
    path = write(tmp_path / "a.root", content)
    with pytest.raises(DataError) as caught:
        open_reader(path)
    assert str(caught.value).startswith(f"{path}: tree mini has no {said}")


def test_one_layout_in_the_cache_does_for_all_who_know_of_the_same_branches(packed, tmp_path):
    path, _, _ = packed
    everything = EVERYTHING.reads(SCHEMA, simulation=True).branches
    uuids = set()
    for simulation in (False, True):
        with open_reader(path, simulation=simulation, known=everything, cache=tmp_path) as reader:
            assert set(reader.names) == set(everything) - (set() if simulation else set(SCHEMA.factors))
            uuids.add(reader.layout.uuid)
    assert len(uuids) == len(list(tmp_path.iterdir())) == 1


def test_only_what_the_selection_needs_is_read(packed):
    path, _, _ = packed
    with open_reader(path, selection=PLAIN, simulation=False) as reader:
        assert reader.names == SCHEMA.kinematics
        got = gathered(reader, 0, 900)
        needed = sum(int(reader.layout.branches[name].sizes.sum()) for name in SCHEMA.kinematics)
        with open_reader(path, selection=PLAIN, simulation=False) as other:
            assert reader.bytes_read - other.bytes_read == needed
    assert got.trigger.shape == got.matched.shape == got.electron_ok.shape == got.divisor.shape == (0,)
    assert got.factors.shape == (0, 900)


def test_remote_steps_are_fetched_ahead_and_give_the_same(tmp_path, monkeypatch):
    """Issue 16, item 3: while a step is worked on, the next ones are on their way."""
    path = write(tmp_path / "a.root", columns(3000, seed=5), basket=110)
    monkeypatch.setattr(reader_module, "REMOTE_STEP", 250)
    monkeypatch.setattr("hzzray.data.storage.WHOLE", 0)
    with open_reader(path) as reader:
        expected = [copied(step) for step in reader.steps(0, 3000)]
        needed = reader.bytes_read
    with serve(tmp_path) as web, open_reader(f"{web.url}a.root") as reader:
        web.reset()
        steps = reader.steps(0, 3000)
        got = [copied(next(steps))]
        for second in reader.layout.branches["lep_pt"].place(2), reader.layout.branches["lep_pt"].place(5):
            assert wait_until(lambda at=second[0]: any(covers(request.range, at) for request in web.log), 30)
        assert not any(covers(request.range, reader.layout.branches["lep_pt"].place(20)[0]) for request in web.log)
        got += map(copied, steps)
        assert web.bytes_sent.total() <= 1.05 * needed
    ours, theirs = (joined(steps, reader._reads) for steps in (got, expected))
    for one, other in zip((*ours.columns, ours.factors), (*theirs.columns, theirs.factors), strict=True):
        np.testing.assert_array_equal(one, other)


def covers(asked, at):
    """Tell whether a Range header asks for a byte."""
    first, last = map(int, asked.removeprefix("bytes=").split("-"))
    return first <= at <= last


def wait_until(holds, within_s):
    """Wait for what another thread brings about."""
    until = time.monotonic() + within_s
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)
    return holds()
