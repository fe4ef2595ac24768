"""Real transfers from a server on this machine that misbehaves on demand."""

import io
import itertools
import json
import os
import socket
import struct
import sys
import threading
import types
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from hzzray.data.catalogue import Sample, release
from hzzray.data.fetch import FetchStep, check_root, fetch
from hzzray.data.header import read_header
from hzzray.data.storage import matching
from hzzray.errors import DataError, UsageError
from hzzray.report.fetch_progress import bar
from hzzray.urls import join, redact
from tests.support.http_server import serve

SHARED = Path(__file__).parents[1].parent / "shared"
SIZE = 600_000
#: Waits of a millisecond, and no more than that of patience.
QUICK = {"backoff": 0.001, "timeout": 5.0}


def root_file(size=SIZE, seed=0):
    """Bytes with a ROOT file's header over content that differs everywhere from seed to seed."""
    block = bytes((i * 7 + seed) % 251 for i in range(251))
    return (root_head(size) + block * (size // 251 + 1))[:size]


def root_head(size, version=63_400):
    """The first bytes of a ROOT file; from version 1 000 000 on its length has 8 bytes."""
    end = struct.pack(">q" if version >= 1_000_000 else ">i", size)
    return b"root" + struct.pack(">ii", version, 100) + end + b"\xff" * 8


def sample(path, name=None):
    return Sample(name=name or Path(path).stem, group="Data", path=path)


def put(folder, path, content):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    with serve(tmp_path / "web") as server:
        yield server


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here"


def release_at(*sources):
    return release("2020").model_copy(update={"sources": sources})


def cut_midway(web, path, after, then=lambda: None):
    """Let a body be cut once ``after`` of its bytes have arrived; returns the progress that watches."""
    arrived = threading.Event()
    web.fail(path, after=after, hold=arrived)

    def watch(step):
        if step.done >= after and not arrived.is_set():
            then()
            arrived.set()

    return watch


def test_files_arrive_whole_in_their_folders(web, here):
    for path in ("Data/a.root", "MC/b.root"):
        put(web.folder, path, root_file(seed=len(path)))
    report = fetch(release_at(web.url), (sample("Data/a.root"), sample("MC/b.root")), here, **QUICK)
    assert report.fetched == ("a", "b")
    assert not report.skipped
    assert not report.failed
    for path in ("Data/a.root", "MC/b.root"):
        assert (here / path).read_bytes() == (web.folder / path).read_bytes()
    assert sorted(file.name for file in here.rglob("*") if file.is_file()) == ["a.root", "b.root"]


def test_released_file(web, here):
    path = "Data/data_A.4lep.root"
    origin = SHARED / "data" / "atlas2020-13tev"
    if not origin.is_dir():
        pytest.skip("the released files of ../shared aren't here")
    with serve(origin) as server:
        report = fetch(release_at(server.url), (release("2020").sample("data_A"),), here)
    assert report.fetched == ("data_A",)
    assert (here / path).read_bytes() == (origin / path).read_bytes()


def test_whole_file_is_left_alone(web, here):
    put(web.folder, "a.root", root_file(seed=1))
    put(here, "a.root", root_file(seed=2))
    report = fetch(release_at(web.url), (sample("a.root"),), here, **QUICK)
    assert report.skipped == ("a",)
    assert web.requests.total() == 0


def test_file_cut_short_is_fetched_again(web, here):
    put(web.folder, "a.root", root_file())
    put(here, "a.root", root_file()[:-1])
    assert fetch(release_at(web.url), (sample("a.root"),), here, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file()


def test_cut_transfer_is_resumed(web, here):
    put(web.folder, "a.root", root_file())
    watch = cut_midway(web, "a.root", 400_000)
    report = fetch(release_at(web.url), (sample("a.root"),), here, progress=watch, **QUICK)
    assert report.fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file()
    assert [(request.range, request.status) for request in web.log] == [("", 200), ("bytes=400000-", 206)]
    assert web.log[1].if_range.startswith('"')
    assert web.bytes_sent["a.root"] == SIZE


def test_later_call_resumes(web, here):
    put(web.folder, "a.root", root_file())
    watch = cut_midway(web, "a.root", 400_000)
    first = fetch(release_at(web.url), (sample("a.root"),), here, progress=watch, attempts=1, **QUICK)
    assert first.failed["a"] == f"{web.url}: the connection was cut after 400000 bytes"
    assert not (here / "a.root").exists()
    assert fetch(release_at(web.url), (sample("a.root"),), here, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file()
    assert web.bytes_sent["a.root"] == SIZE


@pytest.mark.parametrize("size", [SIZE, SIZE - 1000, SIZE + 1000, 300_000])
def test_changed_file_is_not_glued_to_the_old_one(web, here, size):
    file = put(web.folder, "a.root", root_file())

    def change():
        file.write_bytes(root_file(size, seed=1))
        os.utime(file, ns=(0, 10**18))

    watch = cut_midway(web, "a.root", 400_000, then=change)
    assert fetch(release_at(web.url), (sample("a.root"),), here, progress=watch, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file(size, seed=1)


def test_changed_file_behind_a_server_that_ignores_if_range(web, here, monkeypatch):
    file = put(web.folder, "a.root", root_file())
    watch = cut_midway(web, "a.root", 400_000)
    fetch(release_at(web.url), (sample("a.root"),), here, progress=watch, attempts=1, **QUICK)
    file.write_bytes(root_file(seed=1))  # of the same size: only the validator tells
    monkeypatch.setattr("tests.support.http_server._Handler._range", lambda *_: (400_000, SIZE))
    report = fetch(release_at(web.url), (sample("a.root"),), here, attempts=1, **QUICK)
    assert report.failed["a"] == f"{web.url}: the file has changed while it was fetched"
    monkeypatch.undo()
    assert fetch(release_at(web.url), (sample("a.root"),), here, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file(seed=1)


@pytest.mark.parametrize("lack", ["ranges", "validators"])
def test_server_that_cannot_resume_sends_the_whole_again(web, here, lack):
    setattr(web, lack, False)
    put(web.folder, "a.root", root_file())
    watch = cut_midway(web, "a.root", 400_000)
    assert fetch(release_at(web.url), (sample("a.root"),), here, progress=watch, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file()
    assert web.bytes_sent["a.root"] == 400_000 + SIZE
    assert lack == "ranges" or not any(request.range for request in web.log)


def test_complete_part_of_an_interrupted_call(web, here):
    """Killed between the last byte and the renaming: the server has no more bytes to give (416)."""
    put(web.folder, "a.root", root_file())
    watch = cut_midway(web, "a.root", 400_000)
    fetch(release_at(web.url), (sample("a.root"),), here, progress=watch, attempts=1, **QUICK)
    put(here, "a.root.part", root_file())
    assert fetch(release_at(web.url), (sample("a.root"),), here, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file()


@pytest.mark.parametrize("note", ["", "[]", "{}", '["elsewhere", "\\"x\\"", 1]'])
def test_part_of_unknown_origin_is_not_trusted(web, here, note):
    put(web.folder, "a.root", root_file())
    put(here, "a.root.part", root_file(seed=1)[:1000])
    put(here, "a.root.part.json", note.encode())
    assert fetch(release_at(web.url), (sample("a.root"),), here, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == root_file()


def test_part_of_another_source_is_not_glued(web, tmp_path, here):
    files = put(web.folder, "a.root", root_file()), put(tmp_path / "mirror", "a.root", root_file(seed=1))
    for file in files:
        os.utime(file, ns=(0, 10**18))  # and so of one ETag
    watch = cut_midway(web, "a.root", 400_000)
    fetch(release_at(web.url), (sample("a.root"),), here, progress=watch, attempts=1, **QUICK)
    with serve(tmp_path / "mirror") as mirror:
        fetch(release_at(mirror.url), (sample("a.root"),), here, **QUICK)
        assert mirror.bytes_sent.total() == SIZE
    assert (here / "a.root").read_bytes() == root_file(seed=1)


def test_5xx_then_success(web, here):
    put(web.folder, "a.root", root_file())
    web.fail("a.root", status=503, times=2)
    assert fetch(release_at(web.url), (sample("a.root"),), here, attempts=3, **QUICK).fetched == ("a",)
    assert web.requests["a.root"] == 3


def test_retries_are_bounded(web, here):
    put(web.folder, "a.root", root_file())
    web.fail("a.root", status=503, times=9)
    report = fetch(release_at(web.url), (sample("a.root"),), here, attempts=3, **QUICK)
    assert report.failed == {"a": f"{web.url}: HTTP 503 Service Unavailable"}
    assert web.requests["a.root"] == 3
    assert not list(here.rglob("*.part*"))


def test_silent_server_times_out(web, here):
    put(web.folder, "a.root", root_file())
    web.fail("a.root", after=1000, hold=threading.Event())
    report = fetch(release_at(web.url), (sample("a.root"),), here, backoff=0.001, timeout=0.2, attempts=2)
    assert report.fetched == ("a",)
    assert web.requests["a.root"] == 2


def test_404_is_final_and_the_next_source_is_asked(web, tmp_path, here):
    put(tmp_path / "mirror", "a.root", root_file())
    with serve(tmp_path / "mirror") as mirror:
        assert fetch(release_at(web.url, mirror.url), (sample("a.root"),), here, **QUICK).fetched == ("a",)
    assert web.requests["a.root"] == 1


def test_redirects_without_an_end_are_told(web, here):
    """Issue 11, item 26: they read "0, message='', url=…"."""
    put(web.folder, "a.root", root_file())
    web.fail("a.root", status=302, times=99)
    report = fetch(release_at(web.url), (sample("a.root"),), here, **QUICK)
    assert report.failed == {"a": f"{web.url}: the server redirects from one address to the next without an end"}


def test_one_failure_leaves_the_others(web, here):
    put(web.folder, "a.root", root_file())
    put(web.folder, "c.root", root_file())
    samples = sample("a.root"), sample("b.root"), sample("c.root")
    report = fetch(release_at(web.url), samples, here, **QUICK)
    assert report.fetched == ("a", "c")
    assert report.failed == {"b": f"{web.url}: HTTP 404 Not Found"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>Please log in to this network</html>", "not a ROOT file (it begins with b'<htm')"),
        (b"", "not a ROOT file (it begins with b'')"),
        (root_file()[:-1], f"truncated: {SIZE - 1} bytes, {SIZE} by its header"),
    ],
)
def test_what_is_not_a_whole_root_file_is_refused(web, here, content, reason):
    put(web.folder, "a.root", content)
    report = fetch(release_at(web.url), (sample("a.root"),), here, **QUICK)
    assert report.failed == {"a": f"{web.url}: {reason}"}
    assert web.requests["a.root"] == 1
    assert not [file for file in here.rglob("*") if file.is_file()]


def test_no_more_files_at_once_than_jobs(web, here):
    samples = tuple(sample(f"{name}.root") for name in "abc")
    for one in samples:
        put(web.folder, one.path, root_file())
    steps = []
    fetch(release_at(web.url), samples, here, progress=steps.append, jobs=1, **QUICK)
    assert [name for name, _ in itertools.groupby(step.name for step in steps)] == ["a", "b", "c"]


def test_unreachable_host_is_one_line_and_asked_once(here, web, monkeypatch):
    asked = []
    monkeypatch.setattr("hzzray.data.fetch.join", lambda source, path: asked.append(source) or join(source, path))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://ada:secret@127.0.0.1:{closed.getsockname()[1]}/x?token=secret"
        put(web.folder, "a.root", root_file())
        report = fetch(
            release_at(dead, web.url), (sample("a.root"), sample("b.root")), here, attempts=2, jobs=1, **QUICK
        )
    assert report.fetched == ("a",)
    assert "Cannot connect to host 127.0.0.1" in report.failed["b"]
    assert report.failed["b"].endswith(f"; {web.url}: HTTP 404 Not Found")
    assert "\n" not in report.failed["b"]
    assert "secret" not in report.failed["b"]
    assert asked == [dead, web.url, web.url]


def test_login_never_reaches_the_note(web, here):
    put(web.folder, "a.root", root_file())
    watch = cut_midway(web, "a.root", 400_000)
    source = web.url.replace("://", "://ada:secret@")
    fetch(release_at(source), (sample("a.root"),), here, progress=watch, attempts=1, **QUICK)
    note = (here / "a.root.part.json").read_text()
    assert json.loads(note)[0] == f"{web.url.replace('://', '://***@')}a.root"


def test_names_that_a_url_cannot_hold(web, here):
    path = "mü µ/100% a+b#1?.root"
    put(web.folder, path, root_file())
    assert fetch(release_at(web.url), (sample(path, "odd"),), here, **QUICK).fetched == ("odd",)
    assert (here / path).read_bytes() == root_file()


def test_folder_as_source(tmp_path, here):
    put(tmp_path / "disk", "MC/a.root", root_file())
    samples = sample("MC/a.root"), sample("MC/b.root")
    report = fetch(release_at(), samples, here, sources=(str(tmp_path / "disk"),), **QUICK)
    assert report.fetched == ("a",)
    assert report.failed == {"b": f"{tmp_path / 'disk'}: No such file or directory"}
    assert (here / "MC/a.root").read_bytes() == root_file()


def test_given_source_is_the_only_one(web, tmp_path, here):
    put(web.folder, "a.root", root_file())
    (tmp_path / "empty").mkdir()
    with serve(tmp_path / "empty") as empty:
        report = fetch(release_at(web.url), (sample("a.root"),), here, sources=(empty.url,), **QUICK)
    assert list(report.failed) == ["a"]
    assert web.requests.total() == 0


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ((), "release 2020 lies nowhere on the web"),
        (("/no/such/folder",), "--source /no/such/folder is no folder"),
        (("ftp://ada:secret@host/x",), r"--source ftp://\*\*\*@host/x: expected"),
    ],
)
def test_impossible_source(here, sources, reason):
    with pytest.raises(UsageError, match=reason):
        fetch(release_at(), (sample("a.root"),), here, sources=sources)


def test_root_protocol_needs_an_extra(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec_xrootd", None)
    with pytest.raises(UsageError, match=r"pip install 'hzzray\[xrootd\]'"):
        fetch(release_at(), (sample("a.root"),), here, sources=("root://host//x",))


class Torn(io.BytesIO):
    """A file whose connection breaks once a number of its bytes have been read."""

    limit = SIZE

    def read(self, size=-1):
        if self.tell() >= self.limit:
            raise OSError("Remote file failed to read: [ERROR] Socket error")
        return super().read(min(size, self.limit - self.tell()))


class XRootD(fsspec.AbstractFileSystem):
    """Stands in for fsspec-xrootd: its protocol, its facts, its errors without errno."""

    protocol = "root"
    cachable = False
    folder: Path
    asked: list
    opened: list
    torn_at: list

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("root://host//")

    def info(self, path, **kwargs):
        self.asked.append(path)
        file = self.folder / path
        if not file.exists():
            raise OSError("File stat request failed: [ERROR] Server responded: [3011] No such file or directory")
        return {"name": path, "size": file.stat().st_size, "type": "file", "mtime": int(file.stat().st_mtime)}

    def ls(self, path, detail=True, **kwargs):
        if not (self.folder / path).is_dir():
            raise FileNotFoundError(path)
        there = sorted((self.folder / path).iterdir())
        kinds = {str(one.relative_to(self.folder)): "directory" if one.is_dir() else "file" for one in there}
        return [{"name": name, "size": 0, "type": kind} for name, kind in kinds.items()] if detail else list(kinds)

    def open(self, path, mode="rb", **kwargs):
        file = Torn((self.folder / path).read_bytes())
        file.limit = self.torn_at.pop() if self.torn_at else len(file.getvalue()) + 1
        self.opened.append((self.storage_options, file))
        return file


@pytest.fixture
def xrootd(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "root", XRootD)
    for name, value in {"folder": tmp_path / "eos", "asked": [], "opened": [], "torn_at": []}.items():
        monkeypatch.setattr(XRootD, name, value, raising=False)
    return XRootD


def test_root_protocol_resumes_with_a_timeout(xrootd, here):
    put(xrootd.folder, "MC/a.root", root_file())
    xrootd.torn_at.append(400_000)
    steps = []
    report = fetch(
        release_at("root://host//"),
        (sample("MC/a.root"),),
        here,
        progress=steps.append,
        backoff=0.001,
        timeout=4.5,
    )
    assert report.fetched == ("a",)
    assert (here / "MC/a.root").read_bytes() == root_file()
    assert [options for options, _ in xrootd.opened] == [{"timeout": 5}] * 2
    done = [step.done for step in steps]
    assert done == sorted(done)


def test_root_protocol_starts_again_for_a_changed_file(xrootd, here):
    file = put(xrootd.folder, "a.root", root_file())
    xrootd.torn_at.append(400_000)
    fetch(release_at("root://host//"), (sample("a.root"),), here, attempts=1, **QUICK)
    file.write_bytes(root_file(seed=1))
    os.utime(file, (0, 10**9))
    fetch(release_at("root://host//"), (sample("a.root"),), here, attempts=1, **QUICK)
    assert (here / "a.root").read_bytes() == root_file(seed=1)


def test_root_protocol_without_the_file(xrootd, here):
    xrootd.folder.mkdir()
    report = fetch(release_at("root://host//"), (sample("a.root"),), here, **QUICK)
    assert "[3011] No such file or directory" in report.failed["a"]
    assert xrootd.asked == ["a.root"]


def several(*paths):
    return Sample(name="many", group="Data", path=paths)


def test_a_sample_of_several_files_is_fetched_whole(web, here):
    for name in "ab":
        put(web.folder, f"MC/{name}.root", root_file())
    report = fetch(release_at(web.url), (several("MC/a.root", "MC/b.root", "MC/c.root"),), here, **QUICK)
    assert report.fetched == ("many MC/a.root", "many MC/b.root")
    assert report.failed == {"many MC/c.root": f"{web.url}: HTTP 404 Not Found"}
    assert {file.name for file in (here / "MC").iterdir()} == {"a.root", "b.root"}


def test_a_pattern_is_fetched_from_where_it_can_be_listed(web, here, tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / "disk", f"MC/{name}.root", root_file())
    put(here, "MC/b.root", root_file())
    disk = (str(tmp_path / "disk"),)
    report = fetch(release_at(), (several("MC/*.root", "MC/a.root"),), here, sources=disk, **QUICK)
    assert report.fetched == ("many MC/a.root", "many MC/c.root")
    assert report.skipped == ("many MC/b.root",)
    assert not report.failed
    report = fetch(release_at(), (several("MC/z*.root"),), here, sources=disk, **QUICK)
    assert report.failed == {"many MC/z*.root": "no file matches"}
    report = fetch(release_at(web.url), (several("MC/*.root"), several("a.root")), here, **QUICK)
    assert report.failed["many MC/*.root"] == (
        f"{web.url}: a server of the web can't list its files: instead of MC/*.root, write the list of them"
    )


def test_a_pattern_behind_root_protocol(xrootd, here, monkeypatch):
    for name in ("a1", "a2", "b"):
        put(xrootd.folder, f"MC/{name}.root", root_file())
    (xrootd.folder / "MC" / "a3.root").mkdir()
    monkeypatch.setitem(sys.modules, "fsspec_xrootd", types.ModuleType("fsspec_xrootd"))
    report = fetch(release_at("root://host//"), (several("MC/a*.root"),), here, **QUICK)
    assert report.fetched == ("many MC/a1.root", "many MC/a2.root")
    assert (here / "MC/a2.root").read_bytes() == root_file()
    assert matching("root://host//MC", "b*") == ["b.root"]


def test_a_listing_that_leads_elsewhere_is_refused(xrootd, here, monkeypatch):
    xrootd.folder.mkdir()
    monkeypatch.setitem(sys.modules, "fsspec_xrootd", types.ModuleType("fsspec_xrootd"))
    for place in ("MC/../../escaped.root", "elsewhere.root"):
        monkeypatch.setattr(xrootd, "glob", lambda *_, listed=place, **__: {listed: {"type": "file"}})
        report = fetch(release_at("root://host//MC"), (several("MC/*.root"),), here, **QUICK)
        assert f"the server lists '{place}', which lies elsewhere" in report.failed["many MC/*.root"]
    assert not here.exists()


def test_two_processes_do_not_write_one_file(web, here):
    """A second call while the first holds the part; a call in this process stands in for one of another."""
    put(web.folder, "a.root", root_file())
    second = []

    def again(step):
        if step.outcome is None and not second:
            thread = threading.Thread(
                target=lambda: second.append(fetch(release_at(web.url), (sample("a.root"),), here, **QUICK))
            )
            thread.start()
            thread.join()

    report = fetch(release_at(web.url), (sample("a.root"),), here, progress=again, **QUICK)
    assert report.fetched == ("a",)
    assert second[0].failed == {"a": f"{here / 'a.root'} is being fetched by another process"}
    assert (here / "a.root").read_bytes() == root_file()


def test_disk_that_cannot_be_written(web, here):
    put(web.folder, "a.root", root_file())
    here.write_text("a file where the folder should be")
    report = fetch(release_at(web.url), (sample("a.root"),), here, **QUICK)
    assert report.failed == {"a": f"{here}: File exists"}


def test_a_folder_s_names_are_taken_as_they_are(tmp_path, here):
    """Issue 11, item 24: ``::`` in a name is no chain of file systems, by which another file came under this name."""
    path = "a::b.root"
    put(tmp_path / "disk", path, root_file(seed=1))
    put(tmp_path / "disk", "b.root", root_file(seed=2))
    put(tmp_path / "disk", "local::a.root", root_file(seed=3))
    samples = sample(path), sample("local::a.root", "local")
    report = fetch(release_at(), samples, here, sources=(str(tmp_path / "disk"),), **QUICK)
    assert report.fetched == ("a::b", "local")
    assert (here / path).read_bytes() == root_file(seed=1)
    assert (here / "local::a.root").read_bytes() == root_file(seed=3)
    (tmp_path / "disk" / path).unlink()
    (here / path).unlink()
    report = fetch(release_at(), (sample(path),), here, sources=(str(tmp_path / "disk"),), **QUICK)
    assert "No such file" in report.failed["a::b"]
    assert not (here / path).exists()


def test_names_behind_root_protocol_are_taken_as_they_are(xrootd, here):
    """Issue 11, item 24."""
    put(xrootd.folder, "a::b.root", root_file(seed=1))
    assert fetch(release_at("root://host//"), (sample("a::b.root"),), here, **QUICK).fetched == ("a::b",)
    assert (here / "a::b.root").read_bytes() == root_file(seed=1)


def test_bytes_behind_the_end_are_fetched_as_they_are(web, here):
    """Issue 11, item 24: whoever reads the file has no objection."""
    content = root_file() + b"left by an update that was broken off"
    put(web.folder, "a.root", content)
    assert fetch(release_at(web.url), (sample("a.root"),), here, **QUICK).fetched == ("a",)
    assert (here / "a.root").read_bytes() == content
    assert fetch(release_at(web.url), (sample("a.root"),), here, **QUICK).skipped == ("a",)


def test_a_file_that_was_never_closed_is_refused_as_it_is_by_who_reads_it(web, here):
    """Issue 11, items 23 and 24."""
    put(web.folder, "a.root", root_head(266)[:16] + bytes(8) + root_file()[24:])
    report = fetch(release_at(web.url), (sample("a.root"),), here, **QUICK)
    assert f"never closed: {SIZE} bytes, 266 by its header" in report.failed["a"]


def test_several_sources_are_tried_in_turn(web, tmp_path, here):
    """Issue 11, item 17."""
    put(web.folder, "a.root", root_file(seed=1))
    put(tmp_path / "disk", "b.root", root_file(seed=2))
    sources = (web.url, str(tmp_path / "disk"))
    report = fetch(release_at(), (sample("a.root"), sample("b.root")), here, sources=sources, **QUICK)
    assert report.fetched == ("a", "b")
    with pytest.raises(UsageError, match="no/such is no folder"):
        fetch(release_at(), (sample("a.root"),), here, sources=(web.url, "no/such"))


def test_a_token_comes_as_it_was_signed_and_is_shown_nowhere(web, here):
    """Issue 11, item 18."""
    put(web.folder, "a b.root", root_file())
    web.token = "sig=s3cret%2Fx%3D&user=ada"
    base = web.url.rstrip("/")
    assert fetch(release_at(f"{base}?{web.token}"), (sample("a b.root"),), here, **QUICK).fetched == ("a b",)
    report = fetch(release_at(f"{base}?{web.token}x"), (sample("c.root"),), here, **QUICK)
    assert report.failed == {"c": f"{base}?***: HTTP 403 Forbidden"}


@pytest.mark.parametrize(("version", "size"), [(63_400, 2_000), (999_999, 2_000), (1_063_400, 5_000_000_000)])
def test_length_in_the_header(version, size):
    assert read_header(root_head(size, version), size).end == size


@pytest.mark.parametrize("content", [b"", b"root", b"roof" + b"\0" * 60])
def test_no_root_header(content):
    with pytest.raises(DataError, match="not a ROOT file"):
        read_header(content, len(content))


def test_released_files_are_whole():
    files = sorted((SHARED / "data").rglob("*.root"))
    if not files:
        pytest.skip("the released files of ../shared aren't here")
    for file in files:
        check_root(file)


@pytest.mark.parametrize(
    ("source", "path", "joined"),
    [
        ("http://h/x", "a b.root", "http://h/x/a%20b.root"),
        ("http://h/x/?t=1", "a.root", "http://h/x/a.root?t=1"),
        ("root://h//x", "a b.root", "root://h//x/a b.root"),
        ("root://h//", "a b.root", "root://h//a b.root"),
        ("/x", "a b.root", "/x/a b.root"),
    ],
)
def test_join(source, path, joined):
    assert join(source, path) == joined


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://u:p@ss@h:5672/v", "amqp://***@h:5672/v"),
        ("no http://u:p@h/a?token=x#y, but https://h/b", "no http://***@h/a?***#y, but https://h/b"),
        ("mail@host/x", "mail@host/x"),
    ],
)
def test_redact(text, shown):
    assert redact(text) == shown
    assert redact(f"{redact(text)}: why") == f"{shown}: why", "hidden twice, nothing more is hidden"


def test_plain_lines_without_a_terminal(web, here, capsys):
    put(web.folder, "a.root", root_file())
    samples = sample("a.root"), sample("b.root")
    with bar(2) as progress:
        fetch(release_at(web.url), samples, here, progress=progress, jobs=1, **QUICK)
    assert capsys.readouterr().err.splitlines() == ["fetched a  600.0 kB", "failed  b"]


def test_bars_on_a_terminal():
    screen = io.StringIO()
    with bar(2, Console(file=screen, force_terminal=True, width=120)) as progress:
        progress(FetchStep("a", 100, 100, "skipped"))
        progress(FetchStep("[b]", 0, 500_000))
        progress(FetchStep("[b]", 250_000, 500_000))
    shown = screen.getvalue()
    assert "skipped a  100 bytes" in shown
    assert "1 of 2 files" in shown
    assert "[b]" in shown
    assert "250.0 kB/500.0 kB" in shown
