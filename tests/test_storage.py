"""Bytes by range: from a local file, and from a server on this machine that misbehaves on demand."""

import gc
import io
import os
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hzzray import retry
from hzzray.data import storage
from hzzray.data.storage import LocalBytes, RemoteBytes, SeekableBytes, open_bytes
from hzzray.errors import DataError, MissingFileError, TransientError, UsageError
from tests.support.http_server import serve

CONTENT = bytes(i * i % 251 for i in range(100_000))

RANGES = st.lists(
    st.integers(0, len(CONTENT) - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(1, min(9000, len(CONTENT) - start)))
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of milliseconds between two tries."""
    monkeypatch.setattr(retry, "_FIRST_S", 0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("web")
    (path / "a.root").write_bytes(CONTENT)
    (path / "empty.root").write_bytes(b"")
    return path


@pytest.fixture(scope="module")
def server(folder):
    with serve(folder) as running:
        yield running


@pytest.fixture
def web(server):
    server.reset()
    server.ranges = True
    return server


def wanted(ranges):
    return [CONTENT[start : start + length] for start, length in ranges]


def union(ranges):
    """Number of bytes that some ranges cover."""
    covered, end = 0, 0
    for start, length in sorted(ranges):
        covered += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return covered


# Local files


@settings(deadline=None)
@given(ranges=RANGES)
def test_local_ranges_come_in_the_order_asked_for(folder, ranges):
    source = LocalBytes(str(folder / "a.root"))
    try:
        assert source.size == len(CONTENT)
        assert source.read(ranges) == wanted(ranges)
        assert source.bytes_read == sum(length for _, length in ranges)
    finally:
        source.close()


def test_local_faults_name_the_file(folder, tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.root: no such file$"):
        open_bytes(str(folder / "nowhere.root"))
    with pytest.raises(DataError, match=f"^{folder}: Is a directory$"):
        open_bytes(str(folder))
    with pytest.raises(DataError, match="Not a directory"):
        open_bytes(str(folder / "a.root" / "b.root"))


@pytest.mark.parametrize("span", [(len(CONTENT) - 1, 2), (len(CONTENT), 1), (-1, 5), (5, -1), (0, 2**40)])
def test_ranges_outside_the_file_are_refused(folder, web, span):
    for location in (str(folder / "a.root"), f"{web.url}a.root"):
        source = open_bytes(location)
        before = source.bytes_read
        try:
            with pytest.raises(DataError, match=r"a\.root: truncated or corrupt: it has 100000 bytes"):
                source.read([(0, 1), span])
            assert source.bytes_read == before
        finally:
            source.close()


def test_a_local_file_that_is_written_over_is_noticed(tmp_path):
    path = tmp_path / "a.root"
    path.write_bytes(CONTENT)
    source = LocalBytes(str(path))
    try:
        source.read([(0, 10)])
        path.write_bytes(CONTENT[::-1])
        os.utime(path, ns=(1, 1))  # even within one tick of the clock
        with pytest.raises(TransientError, match=r"a\.root: changed while it was read"):
            source.read([(0, 10)])
    finally:
        source.close()


def test_a_local_file_that_is_replaced_stays_the_one_that_was_opened(tmp_path):
    path = tmp_path / "a.root"
    path.write_bytes(CONTENT)
    source = LocalBytes(str(path))
    try:
        (tmp_path / "b").write_bytes(CONTENT[::-1])
        (tmp_path / "b").replace(path)
        assert source.read([(7, 100)]) == [CONTENT[7:107]]
    finally:
        source.close()


def test_a_failing_disk_may_recover(folder, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    source = LocalBytes(str(folder / "a.root"))
    try:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(TransientError, match=r"a\.root: Input/output error"):
            source.read([(0, 1)])
    finally:
        source.close()


def test_close_closes(folder):
    for _ in range(3):
        source = LocalBytes(str(folder / "a.root"))
        source.close()
        with pytest.raises(ValueError, match="closed"):
            source.read([(0, 1)])
    del source
    gc.collect()  # a file left open would be a ResourceWarning, and so an error


# Remote files


@settings(deadline=None)
@given(ranges=RANGES)
def test_remote_ranges_are_right_and_cost_at_most_a_twentieth_more(server, ranges):
    server.reset()
    source = RemoteBytes(f"{server.url}a.root")
    assert source.size == len(CONTENT)
    assert source.read(ranges) == wanted(ranges)
    assert source.bytes_read == server.bytes_sent.total()
    assert source.bytes_read <= 1.05 * union(ranges)


def test_neighbours_share_a_request(web):
    source = RemoteBytes(f"{web.url}a.root")
    web.reset()
    ranges = [(5000, 1000), (1000, 1000), (2000, 1000), (3050, 1000), (3050, 1000), (50_000, 10)]
    assert source.read(ranges) == wanted(ranges)
    asked = sorted(request.range for request in web.log)
    assert asked == ["bytes=1000-4049", "bytes=5000-5999", "bytes=50000-50009"]


def test_gaps_stay_small_next_to_each_of_their_neighbours(web):
    ranges = [(0, 9000), *((9800 + 800 * i, 1) for i in range(20))]
    source = RemoteBytes(f"{web.url}a.root")
    assert source.read(ranges) == wanted(ranges)
    assert source.bytes_read == 9020


def test_nothing_asked_nothing_sent(web):
    source = RemoteBytes(f"{web.url}a.root")
    web.reset()
    assert source.read([]) == []
    assert web.requests.total() == 0


def test_an_empty_file_has_no_bytes(web):
    assert RemoteBytes(f"{web.url}empty.root").size == 0


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_is_told_apart(web, status):
    web.fail("a.root", status=status, times=99)
    with pytest.raises(MissingFileError, match=r"a\.root: no such file$"):
        RemoteBytes(f"{web.url}a.root")
    assert web.requests.total() == 2  # HEAD, then GET: no use in trying again


def test_a_file_that_vanishes_is_missing(web):
    source = RemoteBytes(f"{web.url}a.root")
    web.fail("a.root", status=404)
    with pytest.raises(MissingFileError, match=r"a\.root: no such file$"):
        source.read([(0, 5)])


@pytest.mark.parametrize("status", [500, 502, 503, 408, 429])
def test_a_busy_server_is_asked_again(web, status):
    web.fail("a.root", status=status, times=4)  # HEAD and GET, twice
    source = RemoteBytes(f"{web.url}a.root")
    web.fail("a.root", status=status, times=storage.ATTEMPTS - 1)
    assert source.read([(10, 90)]) == [CONTENT[10:100]]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_stays_busy_is_a_transient_fault_not_a_missing_file(web, status):
    web.fail("a.root", status=status, times=2 * storage.ATTEMPTS)
    with pytest.raises(TransientError, match=rf"a\.root: {status}\b"):
        RemoteBytes(f"{web.url}a.root")
    source = RemoteBytes(f"{web.url}a.root")
    web.fail("a.root", status=status, times=storage.ATTEMPTS)
    with pytest.raises(TransientError, match=rf"a\.root: {status}\b"):
        source.read([(0, 5)])


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_final(web, status):
    web.fail("a.root", status=status, times=99)
    with pytest.raises(DataError, match=rf"a\.root: {status}\b") as caught:
        RemoteBytes(f"{web.url}a.root")
    assert not isinstance(caught.value, MissingFileError)
    web.reset()
    source = RemoteBytes(f"{web.url}a.root")
    web.fail("a.root", status=status, times=99)
    with pytest.raises(DataError, match=rf"a\.root: {status}\b"):
        source.read([(0, 5)])


def test_redirects_without_an_end_are_told(web):
    """Issue 11, item 26: they read "0, message='', url=…", after four tries."""
    web.fail("a.root", status=302, times=999)
    with pytest.raises(DataError, match=r"a\.root: the server redirects from one address to the next without an end$"):
        RemoteBytes(f"{web.url}a.root")
    assert web.requests.total() <= 2 * 11, "once is enough"


def test_cut_connections_are_tried_again(web):
    source = RemoteBytes(f"{web.url}a.root")
    web.fail("a.root", after=40, times=storage.ATTEMPTS - 1)
    assert source.read([(10, 90)]) == [CONTENT[10:100]]
    web.fail("a.root", after=40, times=storage.ATTEMPTS)
    with pytest.raises(TransientError, match=r"a\.root: "):
        source.read([(10, 90)])


def test_one_fault_among_many_ranges_is_tried_again(web):
    source = RemoteBytes(f"{web.url}a.root")
    ranges = [(start, 100) for start in range(0, 90_000, 9000)]
    web.fail("a.root", status=503)
    assert source.read(ranges) == wanted(ranges)


def test_nobody_there_may_pass(monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1/a\.root: "):
        RemoteBytes("http://127.0.0.1:1/a.root")


def test_a_server_without_ranges_is_told_what_to_do_instead(web):
    web.ranges = False
    source = RemoteBytes(f"{web.url}a.root")
    with pytest.raises(DataError, match=r"a\.root: the server ignores byte ranges; .*hzzray fetch"):
        source.read([(0, 128)])
    assert web.requests["a.root"] == 2  # HEAD and one GET


@pytest.mark.parametrize("after", [0, 40])
def test_a_stalled_server_is_given_up_in_time(web, monkeypatch, after):
    monkeypatch.setattr(storage, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    source = RemoteBytes(f"{web.url}a.root")
    hold = threading.Event()
    web.fail("a.root", after=after, hold=hold, times=2)
    begun = time.monotonic()
    try:
        with pytest.raises(TransientError, match=r"a\.root: .*[Tt]imeout"):
            source.read([(10, 90)])
    finally:
        hold.set()
    assert 0.4 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("length", [1, 90])
def test_a_server_that_hardly_sends_is_a_stall_told_tried_again_and_given_up(web, monkeypatch, length):
    """Issue 16, item 3: a byte every 30 s was no silence, and so was waited for without an end."""
    monkeypatch.setattr(storage, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    source = RemoteBytes(f"{web.url}a.root")
    monkeypatch.setattr(web, "drip_s", 0.05)
    web.reset()
    if length == 1:
        assert source.read([(10, 1)]) == [CONTENT[10:11]], "what has all come is no stall"
        return
    with pytest.raises(TransientError, match=r"a\.root: stalled: \d bytes came in 0\.3 s$"):
        source.read([(10, length)])
    assert web.requests["a.root"] == 2
    monkeypatch.setattr(web, "drip_s", 0.0)
    assert source.read([(10, 90)]) == [CONTENT[10:100]]


def test_a_small_file_after_others_is_one_request(tmp_path):
    """Issue 16, item 2: it was six."""
    for i in range(9):
        (tmp_path / f"{i}.root").write_bytes(CONTENT + bytes([i]))
    with serve(tmp_path) as web:
        for i in range(9):
            source = open_bytes(f"{web.url}{i}.root")
            assert source.size == len(CONTENT) + 1
            assert source.read([(len(CONTENT), 1), (500, 9)]) == [bytes([i]), CONTENT[500:509]]
            assert source.read([(0, 700)]) == [CONTENT[:700]]
            assert source.bytes_read == web.bytes_sent[f"{i}.root"] == source.size
            assert source.is_unchanged()
        heads = [request.path for request in web.log if request.method == "HEAD"]
        gets = [request.path for request in web.log if request.method == "GET"]
    assert heads == [f"{i}.root" for i in range(9)]
    assert {path: gets.count(path) for path in gets} == {f"{i}.root": 2 if i < 4 else 1 for i in range(9)}


def test_of_a_large_file_hardly_more_than_what_is_asked_for_comes(tmp_path):
    (tmp_path / "a.root").write_bytes(bytes(storage.WHOLE + 1))
    with serve(tmp_path) as web:
        for _ in range(9):
            source = open_bytes(f"{web.url}a.root")
            source.read([(0, 128), (100_000, 1000)])
            assert source.bytes_read == 1128


def test_a_version_s_marks_are_the_same_however_they_are_asked_for(web):
    """Without its ETag, a file that is written over within the second is taken for what it was."""
    assert RemoteBytes(f"{web.url}a.root").version == open_bytes(f"{web.url}a.root").version
    assert RemoteBytes(f"{web.url}a.root").version.startswith('"')


def test_a_file_that_shrinks_on_the_server(tmp_path):
    (tmp_path / "a.root").write_bytes(CONTENT)
    with serve(tmp_path) as web:
        source = RemoteBytes(f"{web.url}a.root")
        (tmp_path / "a.root").write_bytes(CONTENT[:1000])
        with pytest.raises(TransientError, match=r"a\.root: 100 bytes came at 900 where 200 were asked for"):
            source.read([(900, 200)])
        with pytest.raises(DataError, match=r"a\.root: 416"):
            source.read([(5000, 200)])


def break_nothing_there(web):
    web.fail("a.root", status=404, times=99)


def break_busy(web):
    web.fail("a.root", status=503, times=99)


def break_forbidden(web):
    web.fail("a.root", status=403, times=99)


def break_cut(web):
    web.fail("a.root", after=3, times=99)


def break_ranges(web):
    web.ranges = False


def break_length(web):
    pass


@pytest.mark.parametrize(
    "fault", [break_nothing_there, break_busy, break_forbidden, break_cut, break_ranges, break_length]
)
def test_no_message_shows_a_login_or_a_token(web, fault):
    url = web.url.replace("http://", "http://user:password@") + "a.root?token=password"
    source = RemoteBytes(url)
    fault(web)
    ranges = [(0, 10)] if fault is not break_length else [(0, 10**9)]
    errors = []
    for call in (lambda: source.read(ranges), lambda: RemoteBytes(url).read(ranges)):
        with pytest.raises((DataError, TransientError)) as caught:
            call()
        errors.append(str(caught.value))
    errors.append(source.name)
    for text in errors:
        assert "password" not in text
        assert "user" not in text
        assert "\n" not in text
        assert "a.root" in text


def test_remote_names_with_spaces_and_percents(tmp_path):
    (tmp_path / "a b%20µ.root").write_bytes(CONTENT)
    with serve(tmp_path) as web:
        assert RemoteBytes(f"{web.url}a%20b%2520%C2%B5.root").read([(3, 4)]) == [CONTENT[3:7]]


# Other protocols


def test_xrootd_without_its_extra_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec_xrootd", None)  # importing it fails
    with pytest.raises(UsageError, match=r"hzzray\[xrootd\]") as caught:
        open_bytes("root://user:password@eos//a.root")
    assert "password" not in str(caught.value)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UsageError, match="not s3://"):
        open_bytes("s3://bucket/a.root")


# Files


class InMemory:
    """A byte source that counts."""

    name = "memory"

    def __init__(self, content):
        self.content = content
        self.size = len(content)
        self.bytes_read = 0

    def read(self, ranges):
        self.bytes_read += sum(length for _, length in ranges)
        assert all(start >= 0 and 0 < length <= self.size - start for start, length in ranges)
        return [self.content[start : start + length] for start, length in ranges]

    def close(self):
        pass


class SmallBlocks(SeekableBytes):
    _BLOCK = 7


PLACE = st.integers(-60, 60)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 40)),
        st.tuples(st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]), PLACE),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(content=st.binary(max_size=50), steps=STEPS)
def test_seekable_bytes_are_a_file(content, steps):
    source = InMemory(content)
    ours, oracle = SmallBlocks(source), io.BytesIO(content)
    for what, number in steps:
        if what == "read":
            assert ours.read(number) == oracle.read(number)
        elif {os.SEEK_SET: 0, os.SEEK_CUR: oracle.tell(), os.SEEK_END: len(content)}[what] + number < 0:
            with pytest.raises(ValueError, match="memory"):
                ours.seek(number, what)
        else:
            assert ours.seek(number, what) == oracle.seek(number, what)
        assert ours.tell() == oracle.tell()
    assert not ours.closed


def test_seekable_bytes_read_a_block_once():
    source = InMemory(CONTENT)
    file = SeekableBytes(source)
    assert file.read(10) == CONTENT[:10]
    once = source.bytes_read
    assert 10 < once < 20_000
    file.seek(5)
    assert file.read(100) == CONTENT[5:105]
    assert source.bytes_read == once
    file.seek(0)
    assert file.read() == CONTENT
    assert source.bytes_read == len(CONTENT)
