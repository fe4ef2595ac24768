"""Where a file's baskets lie: the header, uproot's view of the tree, and what is kept of it on disk."""

import gc
import os
import struct
import threading
import uuid
from contextlib import closing, suppress

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st
from uproot.interpretation.numerical import AsDtype

from hzzray.cache import cache_folder
from hzzray.data import layout
from hzzray.data.catalogue import release
from hzzray.data.layout import Branch, Form, Layout, identify, open_tree, read_layout, tabled
from hzzray.data.storage import LocalBytes, open_bytes
from hzzray.data.tree_record import UNKNOWN, Parser, read_record
from hzzray.errors import DataError, TransientError
from tests.support.http_server import serve
from tests.support.root_files import REAL, REAL_2020, REAL_2025, SCHEMA, branch_type, columns, write

NAMES = SCHEMA.kinematics
UUID = bytes(range(100, 116))
UUID_TEXT = "64656667-6869-6a6b-6c6d-6e6f70717273"
SAME = uuid.UUID(int=7)


class Memory:
    """A byte source with some content, or a fault."""

    def __init__(self, content, name="memory.root", error=None):
        self.name, self.size, self.bytes_read, self.version = name, len(content), 0, ""
        self._content, self.error = content, error
        self.ranges = []

    def read(self, ranges):
        if self.error is not None:
            raise self.error
        self.ranges += ranges
        self.bytes_read += sum(length for _, length in ranges)
        return [self._content[start : start + length] for start, length in ranges]

    def close(self):
        pass


def header(end, *, big=False, magic=b"root", version=63_400):
    """A TFile's header as ROOT lays it out."""
    wide = ">q" if big else ">i"
    parts = [
        magic,
        struct.pack(">ii", version + 1_000_000 * big, 100),
        struct.pack(wide, end),
        struct.pack(wide, end - 60),
        struct.pack(">iii", 60, 1, 58),
        struct.pack(">bi", 8 if big else 4, 101),
        struct.pack(wide, end - 600),
        struct.pack(">ih", 540, 1),
        UUID,
    ]
    return b"".join(parts)


def file_of(size, **changes):
    return (header(changes.pop("end", size), **changes) + bytes(size))[:size]


@pytest.mark.parametrize("big", [False, True])
def test_the_header_of_small_and_of_big_files(big):
    assert identify(Memory(file_of(5000, big=big)))[0] == UUID_TEXT


def test_a_big_file_s_length_has_eight_bytes():
    with pytest.raises(DataError, match=r"memory\.root: truncated: 5000 bytes, 5000000000 by its header"):
        identify(Memory(file_of(5000, big=True, end=5_000_000_000)))


@pytest.mark.parametrize("path", [*REAL_2020[:3], *REAL_2025], ids=lambda path: path.name[:30])
def test_the_uuid_is_the_one_that_uproot_finds(path):
    with uproot.open(path) as file:
        expected = str(file.file.uuid)
    source = LocalBytes(str(path))
    assert identify(source)[0] == expected
    source.close()


def test_the_version_tells_contents_of_one_uuid_apart():
    versions = {
        identify(Memory(content))[1]
        for content in (file_of(5000), file_of(5001, end=5000), file_of(5001), file_of(5000, version=63_600))
    }
    assert len(versions) == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a ROOT file: it has 0 bytes"),
        (file_of(127, end=100), "not a ROOT file: it has 127 bytes"),
        (file_of(5000, magic=b"PK\3\4"), r"not a ROOT file \(it begins with b'PK\\x03\\x04'\)"),
        (file_of(5000, end=5001), "truncated: 5000 bytes, 5001 by its header"),
    ],
)
def test_what_is_no_whole_root_file(content, reason):
    with pytest.raises(DataError, match=f"^memory.root: {reason}$"):
        identify(Memory(content))


# Reading a layout


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    content = columns(500, seed=3)
    return write(tmp_path_factory.mktemp("files") / "a.root", content, basket=120)


def read(path, *, tree="mini", names=NAMES, cache=None):
    source = LocalBytes(str(path))
    try:
        return read_layout(source, tree, names, cache), source.bytes_read
    finally:
        source.close()


def same(one, other):
    assert (one.uuid, one.tree, one.entries, one.others) == (other.uuid, other.tree, other.entries, other.others)
    assert list(one.branches) == list(other.branches)
    for name, branch in one.branches.items():
        twin = other.branches[name]
        assert branch.form == twin.form
        for array in ("starts", "seeks", "sizes"):
            np.testing.assert_array_equal(getattr(branch, array), getattr(twin, array), strict=True)
        assert branch.embedded == twin.embedded


def test_a_layout_says_what_uproot_says(path):
    found, _ = read(path)
    assert found.entries == 500
    assert set(found.branches) == set(NAMES)
    assert {"trigE", "mcWeight", "n_lep_pt"} <= set(found.others)
    branch = found.branches["lep_pt"]
    assert branch.form == (">f4", True, 0, 0)
    assert branch.starts.tolist() == [0, 120, 240, 360, 480, 500]
    with uproot.open(path) as file:
        assert branch.seeks.tolist() == file["mini/lep_pt"].member("fBasketSeek")[:5].tolist()


@pytest.mark.parametrize(
    "form", ["plain", "packed", "several", "empty", *REAL_2020, *REAL_2025], ids=lambda one: str(one)[-30:]
)
def test_a_form_that_was_met_before_is_told_without_uproot_and_to_the_same(form, tmp_path, monkeypatch):
    """Issue 16, item 2: uproot takes tens of milliseconds a file."""
    monkeypatch.setattr(layout, "_forms", {})
    tree, names, path = "mini", (*NAMES, "trigE", *SCHEMA.factors), form
    if not hasattr(form, "read_bytes"):
        options = {"plain": {"compression": None}, "several": {"basket": 70}}.get(form, {})
        path = write(tmp_path / "a.root", columns(0 if form == "empty" else 500, seed=3), **options)
    elif form in REAL_2025:
        tree, names = "analysis", release("2025").schema_.kinematics
    first, _ = read(path, tree=tree, names=names)
    parsed = []
    monkeypatch.setattr(layout, "open_tree", lambda *args: parsed.append(args) or open_tree(*args))
    again, _ = read(path, tree=tree, names=names)
    same(first, again)
    has_embedded = any(branch.embedded for branch in first.branches.values())
    assert bool(parsed) == has_embedded, "baskets in the record itself are uproot's business"


def test_what_is_unknown_of_a_record_is_left_to_uproot(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_forms", {})
    path = write(tmp_path / "a.root", columns(500, seed=3), compression=None)
    first, _ = read(path)
    content = path.read_bytes()
    with uproot.open(path) as file:
        key = file.key("mini")
    version = key.fSeekKey + key.fKeylen + 4
    assert content[version : version + 2] == struct.pack(">h", 20)
    path.write_bytes(content[:version] + struct.pack(">h", 21) + content[version + 2 :])
    source = LocalBytes(str(path))
    assert read_record(source, "mini", NAMES) is None
    source.close()
    (tmp_path / "b.root").write_bytes(content)
    same(first, read(tmp_path / "b.root")[0])


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_damage_of_a_record_is_more_than_unknown(path, data):
    content = bytearray(path.read_bytes())
    with uproot.open(path) as file:
        key = file.key("mini")
    plain = content[key.fSeekKey : key.fSeekKey + key.fNbytes]
    assert key.fObjlen == len(plain) - key.fKeylen, "uproot doesn't compress it"
    for at in data.draw(st.lists(st.integers(key.fKeylen, len(plain) - 1), min_size=1, max_size=3)):
        plain[at] = data.draw(st.integers(0, 255))
    with suppress(*UNKNOWN):
        found = Parser(bytes(plain)).tree(NAMES)
        assert set(found.branches) <= set(NAMES)


def test_no_thread_and_no_file_is_left_behind(path):
    before = threading.active_count()
    for _ in range(3):
        read(path)
        with pytest.raises(DataError):
            read(path, tree="other")
    assert threading.active_count() == before
    gc.collect()


def test_a_missing_tree_names_what_is_there(path):
    with pytest.raises(
        DataError, match=r"a\.root: no tree analysis \(it has mini\): is this file of another release\?"
    ):
        read(path, tree="analysis")


def test_a_file_without_a_tree(tmp_path):
    with uproot.recreate(tmp_path / "h.root") as file:
        file["mini"] = np.histogram([1.0], bins=2)
    with pytest.raises(DataError, match=r"h\.root: no tree mini \(it has no tree\)"):
        read(tmp_path / "h.root")


def test_missing_branches_are_named(path):
    found, _ = read(path, names=("lep_pt", "lep_e", "sum_of_weights"))
    found.require(("lep_pt",), "x", {})
    with pytest.raises(DataError, match=r"^a: tree mini has no branch lep_e \(it has lep_pt, .*…\): is this file of"):
        found.require(("lep_pt", "lep_e"), "a", {})
    with pytest.raises(DataError, match="has no branches lep_e, sum_of_weights "):
        found.require(("lep_e", "sum_of_weights"), "a", {"lep_e": "--parameter identified=false"})
    options = {"lep_e": "--parameter identified=false", "trig": "--cut triggered=:", "lep_pt": "--nothing"}
    with pytest.raises(DataError) as caught:
        found.require(("trig", "lep_pt", "lep_e"), "a", options)
    assert str(caught.value) == (
        "a: tree mini has no branches trig, lep_e, which the selection reads: "
        "--cut triggered=: --parameter identified=false does without"
    )


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_a_file_of_another_schema_is_refused():
    with pytest.raises(DataError, match=r"uproot-HZZ\.root: no tree mini \(it has events\)"):
        read(REAL / "uproot-HZZ.root")
    found, _ = read(REAL / "uproot-HZZ.root", tree="events")
    with pytest.raises(DataError, match=r"has no branches lep_pt, lep_eta, .* \(it has NJet, "):
        found.require(NAMES, "HZZ", {})


def test_a_fault_of_the_network_stays_one(path):
    content = path.read_bytes()
    healthy = Memory(content)
    read_layout(healthy, "mini", NAMES, None)
    for reads in range(len(healthy.ranges)):

        class Fails(Memory):
            def read(self, ranges, *, left=[reads]):  # noqa: B006 (counts down)
                left[0] -= 1
                if left[0] < 0:
                    raise TransientError("memory.root: 503")
                return super().read(ranges)

        with pytest.raises(TransientError, match="503"):
            read_layout(Fails(content), "mini", NAMES, None)


@pytest.mark.parametrize("filling", [0, 0xFF, 0x40])
def test_a_tree_that_was_written_over_is_a_data_error(path, filling):
    content = bytearray(path.read_bytes())
    with uproot.open(path) as file:
        key = file.key("mini")
    size = key.fNbytes - 80
    content[key.fSeekKey + 80 : key.fSeekKey + key.fNbytes] = bytes([filling]) * size
    with pytest.raises(DataError, match=r"^memory\.root: (corrupt: \w+: |tree mini has no branches lep_pt, )"):
        read_layout(Memory(bytes(content)), "mini", NAMES, None).require(NAMES, "memory.root", {})


class Interpreted:
    """As much of uproot's branch as a layout looks at."""

    name = "w"
    embedded_baskets = ()

    def __init__(self, offsets, seeks, sizes):
        self.interpretation = AsDtype(">f4")
        self.entry_offsets = offsets
        self.num_baskets = len(seeks)
        self._members = {"fBasketSeek": np.array(seeks), "fBasketBytes": np.array(sizes)}

    def member(self, name):
        return self._members[name]


@pytest.mark.parametrize(
    ("offsets", "seeks", "sizes", "reason"),
    [
        ([0, 5, 9], [200, 300], [90, 90], "hold its 10 entries"),
        ([1, 5, 10], [200, 300], [90, 90], "hold its 10 entries"),
        ([0, 12, 10], [200, 300], [90, 90], "hold its 10 entries"),
        ([0, 10], [200, 300], [90, 90], "hold its 10 entries"),
        ([0, 5, 10], [200, 920], [90, 90], "lies outside"),
        ([0, 5, 10], [200, 2**62], [90, 2**62], "lies outside"),
        ([0, 5, 10], [0, 300], [90, 90], "lies outside"),
        ([0, 5, 10], [200, -300], [90, 90], "lies outside"),
        ([0, 5, 10], [200, 300], [90, 0], "lies outside"),
        ([0, 5, 10], [200, 300], [90, -1], "lies outside"),
    ],
)
def test_baskets_that_cannot_be(offsets, seeks, sizes, reason):
    layout._branch(Interpreted([0, 5, 10], [200, 300], [90, 90]), 10, 1000)
    with pytest.raises(ValueError, match=f"branch w.*{reason}"):
        layout._branch(Interpreted(offsets, seeks, sizes), 10, 1000)


def test_shapes_are_told_apart_and_kept(tmp_path):
    content = {
        "number": np.ones(30, np.int16),
        "four": np.ones((30, 4), np.float32),
        "one": np.ones((30, 1)),
        "matrix": np.ones((30, 2, 3)),
        "list": ak.unflatten(np.ones(60), np.full(30, 2)),
        "text": ak.Array(["a"] * 30),
    }
    path = write(tmp_path / "a.root", content)
    for _ in range(2):  # the second time from the cache
        found, _ = read(path, names=tuple(content), cache=tmp_path / "cache")
        shapes = {name: (one.form.dtype, one.form.jagged, one.form.size) for name, one in found.branches.items()}
        assert shapes == {
            "number": (">i2", False, 0),
            "four": (">f4", False, 4),
            "one": (">f8", False, 1),
            "matrix": ("", False, 0),
            "list": (">f8", True, 0),
            "text": ("", False, 0),
        }


def branch(*starts):
    return Branch(Form(">f4", False, 0), tabled(starts, 1, 1))


def test_clusters_split_no_basket():
    found = Layout(
        "",
        "t",
        20,
        {"a": branch(0, 4, 8, 12, 20), "b": branch(0, 8, 10, 12, 20), "c": branch(0, 5, 5, 8, 20), "d": branch(0, 20)},
        (),
    )
    assert found.clusters(("a", "b")).tolist() == [0, 8, 12, 20]
    assert found.clusters(("a", "b", "c")).tolist() == [0, 8, 20]
    assert found.clusters(("c",)).tolist() == [0, 5, 8, 20]
    assert found.clusters(("d", "a")).tolist() == [0, 20]
    assert found.clusters(()).tolist() == [0, 20]
    assert Layout("", "t", 0, {"a": branch(0)}, ()).clusters(("a",)).tolist() == [0]


def test_baskets_of_a_range():
    one = branch(0, 5, 5, 8, 20)
    assert one.baskets(0, 20) == [0, 2, 3]
    assert one.baskets(0, 5) == [0]
    assert one.baskets(4, 6) == [0, 2]
    assert one.baskets(5, 8) == [2]
    assert one.baskets(19, 20) == [3]
    assert one.baskets(5, 5) == []


# What is kept on disk


@pytest.mark.parametrize(
    "real", [None, *REAL_2020[:1], *(file for file in REAL_2020 if "Zee" in file.name), *REAL_2025], ids=str
)
def test_a_second_read_asks_for_the_header_alone(path, tmp_path, real):
    tree = "analysis" if real in REAL_2025 else "mini"
    first, cost = read(real or path, tree=tree, cache=tmp_path / "new" / "cache")
    again, cost_again = read(real or path, tree=tree, cache=tmp_path / "new" / "cache")
    assert cost_again == 128 < cost
    same(first, again)
    if real in REAL_2020:
        assert all(branch.embedded for branch in again.branches.values())
    assert [file.suffix for file in (tmp_path / "new" / "cache").iterdir()] == [".layout"]


def test_all_of_a_layout_is_kept(tmp_path):
    """Baskets in the record of several branches too, which uproot can't write."""
    many = Branch(Form(">f4", True, 10), tabled([0, 3, 3, 7], [200, 300, 0], [90, 80, 0]), {2: (b"abc", 2)})
    first = Layout(
        str(SAME),
        "mini",
        7,
        {
            "many": many,
            "array": Branch(Form(">i8", False, 0, 4), tabled([0, 7], [400], [50])),
            "inside": Branch(Form("|u1", True, 0), tabled([0, 5, 7], 0, 0), {0: (b"", 0), 1: (b"defgh", 5)}),
            "µ": Branch(Form("", False, 0), tabled([0], [], [])),
        },
        ("lep_n", "other"),
    )
    layout._store(tmp_path / "a.layout", first)
    same(layout._load(f"{tmp_path}/a.layout"), first)


def damage_shorten(content):
    return content[: len(content) // 2]


def damage_empty(content):
    return b""


def damage_number(content):
    return content.replace(struct.pack("<q", 500), struct.pack("<q", 900))


def damage_list(content):
    return b"[]"


def damage_bit(content):
    return content[:-30] + bytes([content[-30] ^ 1]) + content[-29:]


@pytest.mark.parametrize("damage", [damage_shorten, damage_empty, damage_number, damage_list, damage_bit])
def test_a_damaged_cache_file_is_ignored_and_replaced(path, tmp_path, damage):
    first, cost = read(path, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert kept.read_bytes() != whole
    again, cost_again = read(path, cache=tmp_path)
    assert cost_again == cost
    same(first, again)
    assert kept.read_bytes() == whole


def test_another_file_of_the_same_name_is_not_confused(tmp_path):
    cache = tmp_path / "cache"
    place = tmp_path / "a.root"
    write(place, columns(100, seed=1), basket=50)
    first, _ = read(place, cache=cache)
    write(place, columns(100, seed=2), basket=30)
    second, _ = read(place, cache=cache)
    assert first.uuid != second.uuid
    assert len(second.branches["lep_pt"].seeks) == 4
    same(second, read(place, cache=None)[0])


def test_another_version_of_a_file_is_not_confused(path, tmp_path):
    """ROOT updates a file in place under the uuid that it has."""
    _, cost = read(path, cache=tmp_path)
    copy = tmp_path / "a.root"
    copy.write_bytes(path.read_bytes() + b"more")
    assert read(copy, cache=tmp_path)[1] == cost


def test_equal_bytes_have_equal_names_wherever_they_lie(path, tmp_path):
    """Issue 11, item 19: dates of change differ from machine to machine, and ETags from server to server."""
    first, _ = read(path)
    copy = tmp_path / "copy.root"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (1, 1))
    assert read(copy)[0].uuid == first.uuid
    with serve(tmp_path) as web:
        for web.validators in (True, False):
            with closing(open_bytes(f"{web.url}copy.root")) as source:
                assert read_layout(source, "mini", NAMES, tmp_path / "cache").uuid == first.uuid


@pytest.mark.parametrize("compression", [uproot.ZLIB(1), None])
def test_other_content_under_one_uuid_has_another_name(tmp_path, compression):
    """Issue 11, items 19 and 20: also where all sizes are the same, as nothing is compressed."""
    content = columns(500, seed=3)
    changed = content | {"lep_E": content["lep_E"] * 2}
    files = [
        write(tmp_path / f"{i}.root", one, basket=120, compression=compression, identity=SAME)
        for i, one in enumerate((content, changed, columns(500, seed=4)))
    ]
    sources = [LocalBytes(str(file)) for file in files]
    assert {identify(source)[0] for source in sources} == {str(SAME)}
    assert len({read(file)[0].uuid for file in files}) == 3
    for source in sources:
        source.close()


def test_an_update_that_leaves_the_tree_alone_leaves_its_name(tmp_path):
    """Issue 11, item 19: what names the events is the tree, not what lies beside it."""
    path = write(tmp_path / "a.root", columns(100, seed=1), basket=50)
    before, _ = read(path)
    with uproot.update(path) as file:
        file["note"] = "more"
    assert read(path)[0].uuid == before.uuid
    with uproot.update(path) as file:
        file.mktree("mini", {name: branch_type(array) for name, array in columns(1).items()}).extend(columns(80))
    assert read(path)[0].uuid != before.uuid


def test_a_file_written_over_in_place_is_not_taken_from_the_cache(tmp_path):
    """Issue 11, item 19: under the same UUID, in the same size, with the same header."""
    cache, place = tmp_path / "cache", tmp_path / "a.root"
    content = columns(500, seed=3)
    write(place, content, compression=None, identity=SAME)
    before, size = read(place, cache=cache)[0], place.stat().st_size
    write(place, content | {"lep_E": content["lep_E"] * 2}, compression=None, identity=SAME)
    os.utime(place, ns=(1, 1))
    assert place.stat().st_size == size
    assert read(place, cache=cache)[0].uuid != before.uuid


def test_an_rntuple_is_called_so(tmp_path):
    """Issue 11, item 23."""
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mkrntuple("mini", {"lep_pt": np.arange(3.0)})
    with pytest.raises(DataError, match=r"a\.root: mini is an RNTuple, which hzzray doesn't read: it must be a TTree$"):
        read(tmp_path / "a.root")


def never_closed(content):
    """Undo what ROOT writes at last: the header says what it did when the file was made."""
    return content[:12] + struct.pack(">iii", 266, 0, 0) + content[24:]


def test_a_file_that_was_never_closed_names_the_cause(path, tmp_path):
    """Issue 11, item 23: its header ends it at byte 266, where its first basket begins."""
    content = path.read_bytes()
    (tmp_path / "a.root").write_bytes(never_closed(content))
    reason = rf"a\.root: never closed: {len(content)} bytes, 266 by its header: its writer was ended, or still writes"
    with pytest.raises(DataError, match=reason):
        read(tmp_path / "a.root")


def test_bytes_behind_the_end_are_no_fault(path, tmp_path):
    """Issue 11, item 24: ROOT reads such a file, and so do ``run`` and ``fetch``."""
    (tmp_path / "a.root").write_bytes(path.read_bytes() + b"left by an update that was broken off")
    same(read(tmp_path / "a.root")[0], read(path)[0])


def test_each_tree_and_each_choice_of_branches_is_kept_by_itself(path, tmp_path):
    read(path, cache=tmp_path)
    fewer, _ = read(path, names=("lep_pt",), cache=tmp_path)
    assert list(fewer.branches) == ["lep_pt"]
    with pytest.raises(DataError, match="no tree other"):
        read(path, tree="other", cache=tmp_path)


def test_a_cache_that_cannot_be_written_costs_only_time(path, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        found, cost = read(path, cache=tmp_path / "file" / "cache")
        assert cost > 128
    same(found, read(path)[0])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout.Path, "replace", full)
    same(found, read(path, cache=tmp_path / "full")[0])
    assert list((tmp_path / "full").iterdir()) == []


def test_where_layouts_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HZZRAY_CACHE", "")
    assert cache_folder() is None
    monkeypatch.setenv("HZZRAY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("HZZRAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "hzzray"


def test_nowhere_to_keep_nothing_kept(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, cost = read(path)
    assert read(path)[1] == cost
    assert list(tmp_path.iterdir()) == []
