"""Messages: what goes in comes out, and nothing that comes in can do harm."""

from __future__ import annotations

import json
from dataclasses import replace

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import wire
from bridge.announcement import Announcement
from bridge.topology import Topology
from bridge.wire import (
    Order,
    Refusal,
    TaskMessage,
    announcement_letter,
    dead_letter,
    order_letter,
    read_announcement,
    read_order,
    read_task,
    task_letter,
)
from hzzray.errors import UsageError
from hzzray.messages import PlannedFile, RunSpec, UnreadFile
from hzzray.runs.plan import Plan, make_plan
from tests.support.ledgers import SPEC, files, task, unread

TOPOLOGY = Topology()
READERS = (read_task, read_announcement, read_order)


def properties(kind="task", **changes):
    given = {"content_type": "application/json", "type": kind, "message_id": task(1).task_id, "headers": {}}
    return pika.BasicProperties(**(given | changes))


@pytest.fixture(scope="module")
def plan(toys):
    return make_plan(SPEC, "run", (str(toys),), chunk=500)


def test_a_task_comes_back_as_it_went():
    message = TaskMessage(task(3), attempt=2, unknown=1, replay=True, published=1_700_000_000.0)
    letter = task_letter(TOPOLOGY, message, TOPOLOGY.retries[1])
    assert (letter.exchange, letter.key) == ("hzzray.bridge", "hzzray.retry.2")
    assert letter.properties.delivery_mode == 2
    assert letter.properties.message_id == task(3).task_id
    assert read_task(letter.body, letter.properties) == message


@pytest.mark.parametrize("count", [4, pika.compat.long(4)])  # RabbitMQ 4 sends 64 bits
def test_the_broker_counts_redeliveries(count):
    letter = task_letter(TOPOLOGY, TaskMessage(task(3)))
    letter.properties.headers["x-delivery-count"] = count
    assert read_task(letter.body, letter.properties).redeliveries == 4


def test_an_announcement_is_the_whole_plan(plan):
    lacking = unread("llll", "llll.root: no such file", missing=True, path=SPEC.release.sample("llll").path)
    without = Plan(tuple(one for one in plan.files if one.sample != "llll"), (lacking,))
    assert without.missing == ("llll",)
    for one in (plan, without):
        letter = announcement_letter(TOPOLOGY, Announcement.of(SPEC, "run", one), "mark")
        assert letter.properties.correlation_id == "mark"
        read = read_announcement(letter.body, letter.properties)
        assert read.spec == SPEC
        assert read.plan() == one


def test_a_file_without_entries_is_announced():
    one = Plan((PlannedFile(SPEC.release.sample("Zee").path, 0, (task(0, start=0, stop=0),)),), ())
    assert Announcement.of(SPEC, "run", one).plan() == one


def several(path=("a.root", "b.root", "c.root")):
    """A spec whose Zee is several files."""
    samples = tuple(one.model_copy(update={"path": path}) if one.name == "Zee" else one for one in SPEC.release.samples)
    return SPEC.model_copy(update={"release": SPEC.release.model_copy(update={"samples": samples})})


def announced(spec, contents, *lacking):
    """Announce files of Zee by what their paths hold, and others that could not be read."""
    own = {"spec": spec.digest}
    made = [task(0, uuid=uuid, file=f"/files/{path}", **own) for path, uuid in contents.items()]
    gone = [unread("Zee", "gone", missing=True, path=path) for path in lacking]
    gone = [
        replace(one, failure=one.failure.model_copy(update={"task": one.failure.task.model_copy(update=own)}))
        for one in gone
    ]
    return Announcement.of(spec, "run", Plan(tuple(files(made)), tuple(gone)))


def held(announcement):
    """What an announcement has of Zee: its files' contents by path, and the others' paths."""
    found = announcement.plan()
    return {file.path: file.uuid for file in found.files}, [file.path for file in found.unread]


def test_a_sample_of_several_files_is_announced_file_by_file(plan):
    one = announced(several(), {"b.root": "B", "a.root": "A"}, "c.root")
    letter = announcement_letter(TOPOLOGY, one, "mark")
    read = read_announcement(letter.body, letter.properties)
    assert read == one
    assert held(read) == ({"b.root": "B", "a.root": "A"}, ["c.root"])
    again = UnreadFile("c.root", one.plan().failures[0], again=True)
    assert Announcement.of(several(), "run", Plan((), (again,))).plan().unread == (again,)
    single = json.loads(announcement_letter(TOPOLOGY, Announcement.of(SPEC, "run", plan), "mark").body)
    assert all("path" not in row for row in single["files"]), "as ever, where the spec says which file it is"


def test_later_announcements_add_files_that_were_not_planned_before():
    pattern = several("*.root")
    first = announced(pattern, {"a.root": "A"}, "bad.root", "worse.root")
    more = announced(pattern, {"a.root": "A", "b.root": "B", "bad.root": "C"}, "worst.root")
    holds = first.with_later(more)
    assert held(holds) == ({"a.root": "A", "b.root": "B", "bad.root": "C"}, ["worse.root", "worst.root"])
    assert holds.with_later(first) == holds.with_later(more) == holds
    # Under another name, or with another content: what was planned stays.
    assert held(first.with_later(announced(pattern, {"z.root": "A"}))) == held(first)
    assert held(first.with_later(announced(pattern, {"a.root": "X"}))) == held(first)
    # One more and one less may be one file in two versions.
    assert held(first.with_later(announced(pattern, {"a.v2.root": "X"}))) == held(first)
    assert held(first.with_later(announced(pattern, {"b.root": "B"}, "a.root")))[0] == {"a.root": "A", "b.root": "B"}


def test_a_pattern_that_nothing_matched_gives_way_to_what_matches_later():
    pattern = several("*.root")
    nothing, something = announced(pattern, {}, "*.root"), announced(pattern, {"a.root": "A"})
    assert held(nothing) == ({}, ["*.root"])
    holds = nothing.with_later(something)
    assert held(holds) == ({"a.root": "A"}, [])
    assert holds.with_later(nothing) == holds


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a["files"][0].pop("path"), "which file of sample Zee is meant"),
        (lambda a: a["files"][1].update(path="a.root"), "a file of a sample is in it twice"),
        (lambda a: a["unread"][0].update(path="a.root"), "a file of a sample is in it twice"),
        (lambda a: a["files"][0].update(path=""), "at least 1 character"),
        (lambda a: a["files"][0].update(sample="llll"), "which file of sample llll is meant"),
    ],
)
def test_an_announcement_of_several_files_that_makes_no_sense_is_refused(change, reason):
    letter = announcement_letter(TOPOLOGY, announced(several(), {"a.root": "A", "b.root": "B"}, "c.root"), "mark")
    body = json.loads(letter.body)
    change(body)
    refusal = read_announcement(json.dumps(body).encode(), letter.properties)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


def test_a_plan_too_big_for_a_message_is_refused(plan, monkeypatch):
    monkeypatch.setattr(wire, "ANNOUNCEMENT_BYTES", 100)
    with pytest.raises(UsageError, match="take a bigger --chunk"):
        announcement_letter(TOPOLOGY, Announcement.of(SPEC, "run", plan), "mark")


def test_later_announcements_add_only_what_could_not_be_planned_before(plan):
    def only(*names, chunked):
        files = tuple(one for one in chunked.files if one.sample in names)
        others = [sample for sample in SPEC.release.samples if sample.name not in names]
        gone = tuple(unread(sample.name, "gone", missing=True, path=sample.path) for sample in others)
        return Announcement.of(SPEC, "run", Plan(files, gone))

    halved = (replace(one, tasks=tuple(half for task in one.tasks for half in task.halves())) for one in plan.files)
    finer = Plan(tuple(halved), ())
    first, second = only("Zee", chunked=plan), only("Zee", "llll", chunked=finer)
    holds = first.with_later(second).with_later(only("Zee", "llll", "data_A", chunked=plan))
    tasks = holds.plan().tasks
    for name, chunked in (("Zee", plan), ("llll", finer), ("data_A", plan)):
        assert [t for t in tasks if t.sample == name] == [t for t in chunked.tasks if t.sample == name]
    assert not holds.unread
    assert first.with_later(second).with_later(first) == first.with_later(second)
    other = RunSpec.model_validate(SPEC.model_dump() | {"fraction": 0.5})
    with pytest.raises(UsageError, match="another spec"):
        first.with_later(Announcement.of(other, "run", Plan((), ())))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a["files"][0]["cuts"].reverse(), "don't tile"),
        (lambda a: a["files"][0]["cuts"].__setitem__(0, 5), "don't tile"),
        (lambda a: a["files"][0].update(entries=1), "don't tile"),
        (lambda a: a["files"][0].update(cuts=[0]), "at least 2 items"),
        (lambda a: a["files"][0].update(cuts=[0, 2**64]), "less than"),
        (lambda a: a["files"][0].update(uuid="unread:Zee"), "no file of uuid"),
        (lambda a: a["files"][0].update(sample="Zxx"), "no sample Zxx"),
        (lambda a: a["files"].append(a["files"][0]), "twice"),
        (lambda a: a["files"][0].update(uuid=a["files"][1]["uuid"]), "a file is in it twice"),
        (lambda a: a.update(run_id="../../etc"), "run_id"),
        (lambda a: a.update(version=1), "version 1: this hzzray reads version 2"),
        (lambda a: a["spec"].update(luminosity=-1), "spec.luminosity"),
        (lambda a: a.update(extra=1), "extra"),
    ],
)
def test_an_announcement_that_makes_no_sense_is_refused(plan, change, reason):
    letter = announcement_letter(TOPOLOGY, Announcement.of(SPEC, "run", plan), "mark")
    body = json.loads(letter.body)
    change(body)
    refusal = read_announcement(json.dumps(body).encode(), letter.properties)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert "\n" not in refusal.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"content_type": "application/x-pickle"}, "content type is 'application/x-pickle'"),
        ({"content_type": None}, "content type is None"),
        ({"content_encoding": "gzip"}, "content encoding 'gzip'"),
        ({"type": "order"}, "a message of type 'order', not task"),
        ({"message_id": "0" * 32}, "message_id is not the id"),
        ({"message_id": None}, "message_id is not the id"),
        ({"headers": {"attempt": -1}}, "must be numbers from 0 on"),
        ({"headers": {"attempt": "many"}}, "must be numbers from 0 on"),
        ({"headers": {"unknown": True}}, "must be numbers from 0 on"),
        ({"headers": {"x-delivery-count": 10**9}}, "must be numbers from 0 on"),
    ],
)
def test_properties_are_checked(changes, reason):
    refusal = read_task(task(1).canonical(), properties(**changes))
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "EOF"),
        (b"\x80\x04K\x01.", "expected value"),
        (b"[" * 60_000, "recursion limit"),
        (b"{}", "Field required"),
        (b"[1, 2]", "object"),
        (b"null", "object"),
        (b" " * 70_000, "too big: 70000 bytes, where 65536 are allowed"),
        (task(1).canonical().replace(b'"version":2', b'"version":7'), "version 7: this hzzray reads version 2"),
        (task(1).canonical().replace(b'"version":2', b'"version":"2"'), "version '2'"),
        (task(1).canonical().replace(b'"start":10', b'"start":-1'), "start"),
        (task(1).canonical().replace(b'"start":10', b'"start":1e3'), "start"),
        (task(1).canonical().replace(b'"run_id":"run"', b'"run_id":"../x"'), "run_id"),
        (task(1).canonical()[:-1] + b',"eval":"os.system"}', "eval"),
    ],
)
def test_bodies_are_checked(body, reason):
    refusal = read_task(body, properties())
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert len(refusal.reason) <= 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["version", "run_id", "start", "x"]), inner),
    max_leaves=10,
)
header_values = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.integers())


@given(
    body=st.binary() | json_values.map(lambda value: json.dumps(value).encode()),
    kind=st.sampled_from(["task", "announcement", "order"]),
    headers=st.none()
    | st.dictionaries(st.sampled_from(["attempt", "unknown", "x-delivery-count", "y"]), header_values),
    timestamp=st.none() | st.integers() | st.text(),
)
def test_anything_is_read_or_refused(body, kind, headers, timestamp):
    given = properties(kind, headers=headers, timestamp=timestamp)
    for read in READERS:
        found = read(body, given)
        assert isinstance(found, Refusal | TaskMessage | Announcement | Order)


@given(field=st.sampled_from(sorted(type(task(1)).model_fields)), value=json_values)
def test_a_task_with_any_other_field_is_another_task_or_none(field, value):
    body = json.loads(task(1).canonical()) | {field: value}
    found = read_task(json.dumps(body).encode(), properties())
    if isinstance(found, TaskMessage):  # what names it is as it was
        assert found.task.task_id == task(1).task_id


def test_a_dead_letter_says_why_and_is_what_it_was():
    letter = task_letter(TOPOLOGY, TaskMessage(task(1), attempt=3))
    letter.properties.headers |= {"x-death": [{"queue": "q"}], "x-delivery-count": 2}
    dead = dead_letter(TOPOLOGY, letter.body, letter.properties, reason="r" * 5000, attempts=4, run_id="run")
    assert (dead.exchange, dead.key) == ("hzzray.bridge", "hzzray.dead")
    assert dead.properties.headers == {
        "attempt": 3, "x-hzzray-reason": "r" * 1000, "x-hzzray-attempts": 4, "x-hzzray-run": "run",
    }  # fmt: skip
    assert read_task(dead.body, dead.properties) == TaskMessage(
        task(1), attempt=3, published=letter.properties.timestamp
    )


def test_a_dead_letter_of_garbage_can_be_written():
    dead = dead_letter(TOPOLOGY, b"\xff", pika.BasicProperties(), reason="garbage", attempts=0, run_id="")
    assert dead.body == b"\xff"


@pytest.mark.parametrize("order", [Order(run_id="run", wish="pause"), Order(prefetch=12)])
def test_orders(order):
    letter = order_letter(TOPOLOGY, order)
    assert letter.exchange == "hzzray.control"
    assert read_order(letter.body, letter.properties) == order


@pytest.mark.parametrize("body", [{}, {"wish": "run"}, {"run_id": "r"}, {"run_id": "r", "wish": "run", "prefetch": 1},
                                  {"prefetch": -1}, {"run_id": "r", "wish": "explode"}])  # fmt: skip
def test_an_order_is_one_thing(body):
    found = read_order(json.dumps({"version": 2} | body).encode(), properties("order"))
    assert isinstance(found, Refusal)
