"""The ledger's promises: a result is there if and only if its task is done, whatever happens meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hzzray import __version__
from hzzray.data.catalogue import release
from hzzray.engine.ledger import FencedError, Ledger, LedgerError
from hzzray.engine.reducer import Reducer
from hzzray.errors import UsageError
from hzzray.messages import Cost, Failure
from hzzray.runs.request import make_spec
from tests.support.ledgers import NAMES, SPEC, contents, entries, files, partial, start, sums, task, tasks, unread

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ledger.db"


@pytest.fixture
def ledger(path):
    """A ledger of four tasks a sample, taken over."""
    start(path, tasks(4), 4)
    with Ledger.open(path) as opened:
        opened.take_over()
        yield opened


def stored(path):
    """Task ids that are marked as merged, and those that have a partial: read past the code under test."""
    with closing(sqlite3.connect(path)) as database:
        done = {name for (name,) in database.execute("SELECT task_id FROM tasks WHERE state = 1")}
        with_partial = {
            name for (name,) in database.execute("SELECT task_id FROM partials JOIN tasks ON number = task")
        }
        (partials,) = database.execute("SELECT COUNT(*) FROM partials").fetchone()
    assert partials == len(with_partial), "a partial of no task"
    return done, with_partial


def failure(of, reason="broken", **changes):
    return Failure(**{"task": of, "reason": reason, "permanent": True, **changes})


def python(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )


# Written at once or not at all.


def test_a_kill_leaves_partials_and_states_that_agree(path):
    planned = tasks(300)
    by_name = {one.task_id: one for one in planned}
    start(path, planned, 300)
    choose = random.Random(7)
    kills = merged_before = 0
    while True:
        child = python("-m", "tests.support.ledgers", path, choose.choice((1, 3, 16)))
        with child:
            for _ in range(choose.randint(1, 25)):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        done, with_partial = stored(path)
        assert done == with_partial
        with Ledger.open(path) as ledger:
            assert contents(ledger.blocks()) == contents(sums(by_name[name] for name in done))
            counts = ledger.counts()
        assert counts.merged == len(done) >= merged_before
        assert counts.events == 10 * counts.merged
        merged_before = counts.merged
        if child.returncode == 0:
            break
        kills += 1
    assert kills >= 5
    assert counts.status == "complete"
    assert counts.duplicates == 0
    assert contents(sums(planned)) == contents(sums(by_name[name] for name in done))


def test_many_in_one_commit(ledger, path):
    planned = tasks(4)
    assert ledger.merge([partial(one) for one in planned]) == ["merged"] * 12
    assert stored(path) == ({one.task_id for one in planned},) * 2
    assert contents(ledger.blocks()) == contents(sums(planned))
    assert ledger.counts() == (12, 12, 0, 120, 0)
    assert ledger.cost() == Cost(12.0, 6.0, 3.0, 1200, 120)


def test_a_second_delivery_changes_nothing(ledger):
    first, second = task(0), task(1)
    assert ledger.merge([partial(first)]) == ["merged"]
    # Merged before, and twice in one batch.
    assert ledger.merge([partial(first), partial(second), partial(second)]) == ["duplicate", "merged", "duplicate"]
    assert contents(ledger.blocks()) == contents(sums([first, second]))
    assert ledger.counts() == (12, 2, 0, 20, 2)


@pytest.mark.parametrize("stranger", [task(99), task(0, spec="b" * 64), task(0).model_copy(update={"sample": "llll"})])
def test_a_batch_with_a_stranger_is_refused_whole(ledger, path, stranger):
    """Of an unplanned range, of another spec, or in another sample's name."""
    with pytest.raises(LedgerError, match=rf"task {stranger.task_id} of sample \w+ was never planned"):
        ledger.merge([partial(task(0)), partial(stranger), partial(task(1))])
    assert stored(path) == (set(), set())
    with pytest.raises(LedgerError, match="was never planned"):
        ledger.fail(failure(stranger))
    assert ledger.failures() == []
    assert ledger.merge([partial(task(0))]) == ["merged"], "and the ledger goes on"


def test_a_stranger_is_not_split(ledger):
    with pytest.raises(LedgerError, match="was never planned"):
        ledger.split(task(99), task(99).halves())
    assert ledger.counts().planned == 12


# What is planned.


@pytest.mark.parametrize("other", [(0, 25), (35, 45), (5, 15), (0, 40), (19, 21)])
def test_ranges_that_overlap_are_refused(ledger, other):
    begin, end = other
    with pytest.raises(LedgerError, match=r"entries \d+ to \d+ of file uuid-Zee are planned twice"):
        ledger.plan(files([task(7), task(0, start=begin, stop=end)]))
    assert ledger.counts().planned == 12
    assert ledger.entries() == entries(4)


def test_planning_again_changes_nothing(ledger):
    ledger.merge([partial(task(0))])
    ledger.fail(failure(task(1)))
    ledger.plan(files(tasks(4)))
    assert ledger.counts() == (12, 1, 1, 10, 0)
    ledger.plan(files([task(4), task(0, start=50, stop=50)]))
    assert ledger.counts().planned == 14
    assert ledger.entries()["Zee"] == (50, 50)


@pytest.mark.parametrize("number", [2, 9])
def test_one_file_for_two_samples_is_refused(ledger, number):
    """Their tasks would have the same names, and one sample's would count as planned and merged with the other's."""
    stolen = task(number, sample="llll", uuid="uuid-Zee")
    with pytest.raises(LedgerError, match="file uuid-Zee of sample llll is planned for Zee already"):
        ledger.plan(files([stolen]))
    with pytest.raises(LedgerError, match=r"file new of sample .* is planned for"):
        ledger.plan(files([task(number, uuid="new"), task(number, sample="llll", uuid="new")]))
    assert ledger.counts().planned == 12


def test_relocated_files(ledger):
    elsewhere = [task(0, file="https://host/moved.root"), task(0, sample="llll", uuid="uuid-other", file="/no")]
    ledger.relocate(files(elsewhere))
    assert {one.file for one in ledger.due() if one.sample == "Zee"} == {"https://host/moved.root"}
    assert {one.task_id for one in ledger.due()} == {one.task_id for one in tasks(4)}
    paths = {name: "moved.root" if name == "Zee" else f"{name}.root" for name in NAMES}
    assert ledger.planned_files() == [(name, paths[name], f"uuid-{name}", 40) for name in NAMES]


def test_due_leads_through_the_files_while_others_merge(path, monkeypatch):
    monkeypatch.setattr("hzzray.engine.ledger._PAGE", 7)
    planned = tasks(40)
    start(path, random.Random(1).sample(planned, len(planned)), 40)
    with Ledger.open(path) as ledger, Ledger.open(path) as other:
        other.take_over()
        seen = []
        for i, one in enumerate(ledger.due()):
            seen.append(one)
            if i % 3 == 0:
                other.merge([partial(one)])
        assert seen == sorted(planned, key=lambda one: (one.uuid, one.start))
        assert {one.task_id for one in ledger.due()} == {one.task_id for i, one in enumerate(seen) if i % 3}


# Splits.


@given(st.lists(st.integers(0, 10), min_size=0, max_size=5), st.booleans())
def test_only_parts_that_tile_replace_a_task(borders, right):
    """Parts are drawn from any borders; right ones are sorted, distinct and end where the task does."""
    if right:
        borders = [0, *sorted(set(borders) - {0, 10}), 10]
    pairs = [(a, b) for a, b in pairwise(borders) if a <= b]
    parts = [task(0, start=a, stop=b) for a, b in pairs]
    covered = [i for a, b in pairs for i in range(a, b)]
    tiles = len(pairs) > 1 and covered == list(range(10)) and all(a < b for a, b in pairs)
    with _memory() as ledger:
        if tiles:
            assert ledger.split(task(0), parts)
            assert ledger.counts() == (11 + len(parts), 0, 0, 0, 0)
            assert ledger.merge([partial(part) for part in parts]) == ["merged"] * len(parts)
            assert ledger.merge([partial(task(0))]) == ["superseded"]
        else:
            with pytest.raises(LedgerError, match="don't tile 0 to 10"):
                ledger.split(task(0), parts)
            assert ledger.counts() == (12, 0, 0, 0, 0)


def _memory() -> Ledger:
    """Copy of a fresh ledger in memory: hypothesis wants many, quickly."""
    if not _TEMPLATE:
        folder = Path(os.environ["HZZRAY_CACHE"]) / f"template-{os.getpid()}"
        start(folder / "ledger.db", tasks(4), 4)
        _TEMPLATE.append(folder / "ledger.db")
    database = sqlite3.connect(":memory:")
    with closing(sqlite3.connect(_TEMPLATE[0])) as template:
        template.backup(database)
    ledger = Ledger(Path("memory"), database)
    ledger.take_over()
    return ledger


_TEMPLATE: list[Path] = []


@pytest.mark.parametrize("field", ["uuid", "tree", "sample", "spec"])
def test_parts_of_something_else_are_refused(ledger, field):
    first, second = task(0).halves()
    other = second.model_copy(update={field: "c" * 64})
    with pytest.raises(LedgerError, match="don't tile"):
        ledger.split(task(0), (first, other))


def test_a_late_result_of_a_split_task_is_refused(ledger):
    halves = task(0).halves()
    assert ledger.split(task(0), halves)
    before = ledger.counts()
    assert ledger.split(task(0), halves), "asked again, it stands"
    assert ledger.counts() == before
    assert not ledger.fail(failure(task(0)))
    assert ledger.merge([partial(halves[0]), partial(task(0)), partial(halves[1])]) == [
        "merged", "superseded", "merged",
    ]  # fmt: skip
    assert contents(ledger.blocks()) == contents(sums(halves))
    assert ledger.counts() == (13, 2, 0, 10, 0)
    assert task(0) not in list(ledger.due())


def test_halves_of_a_merged_task_are_refused(ledger):
    halves = task(0).halves()
    ledger.merge([partial(task(0))])
    assert not ledger.split(task(0), halves)
    with pytest.raises(LedgerError, match="was never planned"):
        ledger.merge([partial(halves[0])])
    assert ledger.counts() == (12, 1, 0, 10, 0)


def test_halves_are_halved_and_due(ledger):
    first, second = task(0).halves()
    ledger.split(task(0), (first, second))
    quarters = first.halves()
    ledger.split(first, quarters)
    mine = [(one.start, one.stop) for one in ledger.due() if one.sample == "Zee"]
    assert mine == [(0, 2), (2, 5), (5, 10), (10, 20), (20, 30), (30, 40)]
    ledger.plan(files([task(5)]))  # tasks that were split don't count as overlaps


# Failures.


def test_a_failure_is_overtaken_by_a_result(ledger):
    assert ledger.fail(failure(task(0), "first"))
    assert not ledger.fail(failure(task(0), "second"))
    assert [row.reason for row in ledger.failures()] == ["first"]
    assert ledger.counts() == (12, 0, 1, 0, 0)
    assert task(0) not in list(ledger.due())
    assert ledger.merge([partial(task(0))]) == ["merged"]
    assert ledger.failures() == []
    assert ledger.counts() == (12, 1, 0, 10, 0)
    assert not ledger.fail(failure(task(0))), "what is merged can't fail"
    assert not ledger.split(task(0), task(0).halves())


def test_failures_are_listed_in_order_and_forgotten(ledger):
    for number in (3, 1, 2):
        ledger.fail(failure(task(number), attempts=number))
    assert [row.attempts for row in ledger.failures()] == [1, 2, 3]
    ledger.forget_failures()
    assert ledger.failures() == []
    assert ledger.counts() == (12, 0, 0, 0, 0)
    assert len(list(ledger.due())) == 12


def test_a_task_is_looked_up_with_what_became_of_it(ledger):
    ledger.merge([partial(task(0))])
    ledger.fail(failure(task(1)))
    ledger.split(task(2), task(2).halves())
    ledger.merge([partial(task(2).halves()[0])])
    states = {number: ledger.look_up(task(number).task_id) for number in range(5)}
    assert states == {
        0: (task(0), "merged"), 1: (task(1), "failed"), 2: (task(2), "split"), 3: (task(3), "due"), 4: None,
    }  # fmt: skip
    assert ledger.parts(task(2)) == [task(2).halves()[1]]
    assert ledger.parts(task(0)) == []
    assert ledger.failure(task(1)) == failure(task(1))
    assert ledger.failure(task(3)) is None


def test_one_failure_is_forgiven(ledger):
    for number in (1, 2):
        ledger.fail(failure(task(number)))
    assert ledger.forgive(task(1))
    assert not ledger.forgive(task(1))
    assert [row.task for row in ledger.failures()] == [task(2)]
    assert ledger.counts().failed == 1
    with pytest.raises(LedgerError, match="never planned"):
        ledger.forgive(task(77))


def test_tasks_that_failed_in_planning_are_planned_and_failed_at_once(path):
    Ledger.create(path, "run", SPEC, "test").close()
    lacking = unread("llll")
    with Ledger.open(path) as ledger:  # which no reducer has taken over
        for _ in range(2):
            ledger.plan(files([task(0)]), [lacking])
        assert ledger.counts()[:3] == (2, 0, 1)
        assert ledger.failures() == [lacking.failure]
        assert (ledger.entries(), ledger.unopened()) == ({"Zee": (10, 10)}, {"llll": 1})


def test_a_file_that_could_not_be_read_is_planned_when_it_can(path):
    start(path, tasks(2)[:4])
    with Ledger.open(path) as ledger:
        ledger.take_over()
        ledger.plan([], [unread("llll")])
        ledger.merge([partial(one) for one in tasks(2)[:4]])
        assert ledger.counts().status == "partial"
        assert "llll" not in [file.sample for file in ledger.planned_files()]
        ledger.forget_failures()
        assert ledger.counts().status == "running", "a start that is killed here must not look complete"
        ledger.plan(files(tasks(2)))
        assert ledger.counts() == (6, 4, 0, 40, 0)
        assert [one.sample for one in ledger.due()] == ["llll"] * 2


def test_retracting_a_sample_is_exact(path):
    start(path, tasks(4), 4)
    with Ledger.open(path) as ledger:
        ledger.take_over()
        ledger.split(task(3), task(3).halves())
        ledger.fail(failure(task(2)))
        others = [one for one in tasks(4) if one.sample != "Zee"]
        mine = [task(0), task(1), *task(3).halves()]
        ledger.merge([partial(one) for one in (*others, *mine)])
        assert contents(ledger.blocks()) == contents(sums([*others, *mine]))
        assert ledger.forget_sample("Zee") == 4
        assert contents(ledger.blocks()) == contents(sums(others))
        assert "Zee" not in ledger.entries()
        assert "Zee" not in [file.sample for file in ledger.planned_files()]
        assert [(row.task.sample, row.reason) for row in ledger.failures()] == [("Zee", "retracted")]
        assert ledger.counts() == (9, 8, 1, 80, 0)
        assert ledger.counts().status == "partial", "what was retracted is missing"
        with pytest.raises(FencedError):
            ledger.merge([partial(task(0))])
        assert ledger.forget_sample("Zee") == 0
        # Read again, cut otherwise.
        ledger.take_over()
        ledger.forget_failures()
        again = [task(0, start=0, stop=33), task(0, start=33, stop=40)]
        ledger.plan(files(again))
        ledger.merge([partial(one) for one in again])
        assert ledger.counts().status == "complete"
        assert contents(ledger.blocks()) == contents(sums([*others, *again]))


def several(number=3):
    """Three files of one sample, with two tasks each."""
    made = []
    for i in range(number):
        own = {"uuid": f"uuid-{i}", "file": f"/files/{i}.root"}
        made += files([task(0, **own), task(1, **own)], {f"uuid-{i}": 50})
    return made


def test_the_files_of_a_sample_add_up_and_are_known_one_by_one(path):
    start(path, [])
    with Ledger.open(path) as ledger:
        ledger.plan(several(), [unread("Zee", path="3.root"), unread("llll"), unread("llll", path="again.root")])
        assert ledger.entries() == {"Zee": (60, 150)}
        assert ledger.unopened() == {"Zee": 1, "llll": 2}
        assert ledger.planned_files() == [("Zee", f"{i}.root", f"uuid-{i}", 20) for i in range(3)]
        assert ledger.counts() == (9, 0, 3, 0, 0)
        ledger.plan([], [replace(unread("llll", path="again.root"), again=True)])
        assert ledger.unopened() == {}, "nothing is lacking of what is there again; what is not named any more is gone"
        assert ledger.counts()[:3] == (7, 0, 1)


def test_retracting_a_file_leaves_the_others(path):
    start(path, [])
    with Ledger.open(path) as ledger:
        ledger.take_over()
        ledger.plan(several())
        ledger.merge([partial(one) for file in several() for one in file.tasks])
        assert [ledger.has_merged(f"uuid-{i}") for i in range(4)] == [True, True, True, False]
        assert ledger.forget_sample("Zee", {"uuid-1"}) == 2
        assert [ledger.has_merged(f"uuid-{i}") for i in range(3)] == [True, False, True]
        assert contents(ledger.blocks()) == contents(sums(one for file in several()[::2] for one in file.tasks))
        assert (ledger.entries(), ledger.unopened()) == ({"Zee": (40, 100)}, {"Zee": 1})
        assert [(row.task.file, row.reason) for row in ledger.failures()] == [("/files/1.root", "retracted")]
        assert ledger.counts().status == "partial"
        with pytest.raises(FencedError):
            ledger.merge([partial(several()[1].tasks[0])])
        ledger.take_over()
        ledger.forget_failures()
        ledger.plan([several()[1]])
        assert ledger.counts() == (6, 4, 0, 40, 0)
        assert (ledger.entries(), ledger.unopened()) == ({"Zee": (60, 150)}, {})
        assert ledger.forget_sample("Zee") == 4


# Who writes.


def test_a_later_reducer_fences_off_the_earlier(ledger, path):
    ledger.merge([partial(task(0))])
    with Ledger.open(path) as later:
        with pytest.raises(FencedError, match="another process has taken over run run"):
            later.merge([partial(task(1))])  # it has not taken over yet
        later.take_over()
        for write in (
            lambda: ledger.merge([partial(task(1))]),
            lambda: ledger.fail(failure(task(1))),
            lambda: ledger.split(task(1), task(1).halves()),
        ):
            with pytest.raises(FencedError, match=str(path)):
                write()
        assert later.counts() == (12, 1, 0, 10, 0)
        assert later.merge([partial(task(0)), partial(task(1))]) == ["duplicate", "merged"]


def test_wishes_and_settings_and_time(ledger, path):
    assert ledger.wished() == "run"
    assert ledger.settings() == "{}"
    with Ledger.open(path) as user:
        user.wish("drain")
        user.keep_settings('{"chunk": 5}')
        user.add_wall(1.5)
        user.add_wall(2.0)
    assert ledger.wished() == "drain"
    assert ledger.settings() == '{"chunk": 5}'
    assert ledger.wall_s() == 3.5
    with Ledger.open(path) as again:
        assert (again.run_id, again.environment, again.spec) == ("run", "local", SPEC)


def test_a_copy_is_called_as_its_folder(ledger, path):
    """Its reducer was the original's, whose ledger took its results; its tasks went to the original's bridges."""
    ledger.fail(Failure(task=task(0), reason="broken", permanent=False))
    ledger.close()
    copy = shutil.copytree(path.parent, path.parent.with_name("copy")) / path.name
    odd = shutil.copytree(path.parent, path.parent.with_name("no run's name")) / path.name
    with Ledger.open(path) as first, Ledger.open(copy) as second, Ledger.open(odd) as third:
        assert [one.run_id for one in (first, second, third)] == ["run", "copy", "run"]
        assert {one.run_id for one in second.due()} == {"copy"}
        assert [failure.task.run_id for failure in second.failures()] == ["copy"]
        assert second.failure(task(0)).task.run_id == "copy"
        assert len({one.mark for one in (first, second, third)}) == 3


def test_a_ledger_is_created_once(path):
    start(path, [task(0)])
    with Ledger.create(path, "other", SPEC, "local") as ledger:
        assert (ledger.run_id, ledger.counts().planned) == ("run", 1)
    assert [entry.name for entry in path.parent.iterdir()] == ["ledger.db"], "nothing else is left behind"


def test_a_wish_tells_the_one_before(ledger):
    assert [ledger.wish("pause"), ledger.wish("cancel"), ledger.wish("run")] == ["run", "pause", "cancel"]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"ledger\.db: .*Not a directory|File exists"):
        Ledger.create(tmp_path / "file" / "ledger.db", "run", SPEC, "local")
    with pytest.raises(UsageError, match="no such run"):
        Ledger.open(tmp_path / "none" / "ledger.db")


# Damage.


def finished(folder: Path, number: int = 40) -> Path:
    path = folder / "run" / "ledger.db"
    start(path, tasks(number), number)
    with Ledger.open(path) as ledger:
        ledger.take_over()
        ledger.merge([partial(one) for one in tasks(number)])
    return path


def foreign(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE run (run_id)")


def of_version(path, number, *, unsigned=False):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"PRAGMA user_version = {number}")
        if unsigned:
            database.execute("ALTER TABLE run DROP COLUMN made_by")


def of_no_run(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM run")


def with_a_broken_spec(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE run SET spec = '{}'")


def with_a_broken_partial(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE partials SET blocks = x'00' WHERE task = 3")


def with_a_broken_page(path):
    body = bytearray(path.read_bytes())
    body[4096 * 3 : 4096 * 6] = os.urandom(4096 * 3)
    path.write_bytes(body)


def with_a_broken_index(path):
    """Damage what no sum is read from."""
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_tasks_1'"
        (page,) = database.execute(query).fetchone()
    body = bytearray(path.read_bytes())
    body[4096 * (page - 1) : 4096 * page] = bytes(4096)
    path.write_bytes(body)


DAMAGE = {
    "text": (lambda path: path.write_text("ledger of my own\n" * 300), "file is not a database"),
    "empty": (lambda path: path.write_bytes(b""), "not a ledger of hzzray"),
    "foreign": (lambda path: (path.unlink(), foreign(path)), "not a ledger of hzzray"),
    "older": (
        lambda path: of_version(path, 4, unsigned=True),
        f"a ledger of version 4, made by an earlier hzzray; hzzray {__version__} reads version 6: take another",
    ),
    "newer": (
        lambda path: of_version(path, 99),
        f"a ledger of version 99, made by hzzray {__version__}; hzzray {__version__} reads version 6",
    ),
    "of no run": (of_no_run, "a ledger of no run"),
    "spec": (with_a_broken_spec, "its spec can't be read: Field required"),
    "truncated to a page": (lambda path: os.truncate(path, 4096), "malformed"),
    "truncated in the header": (lambda path: os.truncate(path, 50), "malformed"),
    "truncated in a page": (lambda path: os.truncate(path, path.stat().st_size - 1), "truncated"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_gets_one_line_and_exit_code_1(cli, toys, tmp_path, kind):
    path = finished(tmp_path)
    damage, said = DAMAGE[kind]
    damage(path)
    before = path.read_bytes()
    commands = [("status",), ("failures",), ("pause",), ("replay",), ("retract", "Zee")]
    calls = [(name, "run", *rest, "--runs", tmp_path) for name, *rest in commands]
    run = ("run", "--engine", "serial", "--source", toys, "--runs", tmp_path, "--run-id", "run")
    for call in (*calls, run):
        code, out, err = cli(*call)
        assert code == 1, (call, out, err)
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith(f"hzzray: {path}: ")
        assert said in err
        assert "Traceback" not in out + err
    assert path.read_bytes() == before, "what isn't ours is left as it is"
    code, out, _ = cli("runs", "--runs", tmp_path)
    assert code == 0
    assert "run" in out


def test_no_truncation_is_taken_for_a_ledger(cli, tmp_path):
    path = finished(tmp_path)
    whole = path.read_bytes()
    choose = random.Random(3)
    lengths = [0, 1, 99, 100, 511, 512, 4095, len(whole) - 1, *(choose.randrange(len(whole)) for _ in range(20))]
    for length in lengths:
        path.write_bytes(whole[:length])
        code, out, err = cli("status", "run", "--runs", tmp_path)
        assert code == 1, (length, out)
        assert err.startswith(f"hzzray: {path}: "), length
        assert len(err.strip().splitlines()) == 1
    path.write_bytes(whole)
    assert cli("status", "run", "--runs", tmp_path)[0] == 0


def test_a_lost_log_loses_its_last_commits_whole(tmp_path):
    """A power cut may take the end of the write-ahead log with it: never half a commit."""
    path = tmp_path / "ledger.db"
    start(path, tasks(40), 40)
    ledger = Ledger.open(path)
    ledger.take_over()
    for i in range(0, 120, 4):
        ledger.merge([partial(one) for one in tasks(40)[i : i + 4]])
    body, log = path.read_bytes(), path.with_name("ledger.db-wal").read_bytes()
    ledger.close()
    choose = random.Random(5)
    seen = set()
    for i in range(12):
        copy = tmp_path / f"copy{i}" / "ledger.db"
        copy.parent.mkdir()
        copy.write_bytes(body)
        copy.with_name("ledger.db-wal").write_bytes(log[: choose.randrange(len(log))])
        try:
            with Ledger.open(copy) as cut:
                cut.take_over()
                merged = cut.counts().merged
        except LedgerError:
            continue  # cut before the planning was checkpointed
        done, with_partial = stored(copy)
        assert done == with_partial
        assert merged == len(done)
        assert merged % 4 == 0
        seen.add(merged)
    assert len(seen) > 3


@pytest.mark.parametrize("damage", [with_a_broken_partial, with_a_broken_page, with_a_broken_index])
def test_damage_inside_is_found_before_anything_is_added(tmp_path, damage):
    path = finished(tmp_path)
    damage(path)
    with pytest.raises(LedgerError, match=str(path)):
        Reducer(path)


# A full disk.

FULL = """
import resource, sys
from pathlib import Path
from hzzray.engine.ledger import LedgerError
from hzzray.engine.reducer import Reducer
from tests.support.ledgers import digest_of, partial, sums, tasks

path = Path(sys.argv[1])
reducer = Reducer(path)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # writes beyond fail, as on a full disk
done = []
left = tasks(100)
try:
    while left:
        reducer.merge([partial(one) for one in left[:5]])
        done, left = done + left[:5], left[5:]
except LedgerError as error:
    print(error)
print(len(done))
assert reducer.snapshot().digest == digest_of(sums(done))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(reducer.merge([partial(one) for one in left]).count("merged"))
assert reducer.snapshot().digest == digest_of(sums(tasks(100)))
reducer.close()
"""


def test_a_write_that_fails_stores_nothing_and_may_be_done_again(path):
    start(path, tasks(100), 100)
    with python("-c", FULL, path) as child:
        said = child.communicate(timeout=60)[0].splitlines()
    assert child.returncode == 0
    assert said[0].startswith(f"{path}: ")
    assert 0 < int(said[1]) < 300
    assert int(said[1]) + int(said[2]) == 300
    done, with_partial = stored(path)
    assert done == with_partial == {one.task_id for one in tasks(100)}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not shutil.which("mount") or not sys.platform.startswith("linux"):
        pytest.skip("no mount here")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk can't be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", [20_000, 400_000])
def test_a_run_survives_a_full_disk(cli, toys, tmp_path, small_disk, room):
    """Full when the run is planned, or between commits: one line, and the run goes on when there is room."""
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(small_disk).free - room))
    options = ("--engine", "serial", "--source", toys, "--chunk", 200, "--run-id", "run")
    code, _, err = cli("run", *options, "--runs", small_disk)
    assert code == 1
    assert err.startswith(f"hzzray: {small_disk / 'run' / 'ledger.db'}: ")
    assert len(err.strip().splitlines()) == 1
    path = small_disk / "run" / "ledger.db"
    if room > 100_000:
        done, with_partial = stored(path)
        assert done == with_partial
        with Ledger.open(path) as ledger:
            counts = ledger.counts()
        assert 0 < counts.merged == len(done) < counts.planned
    else:
        assert not path.exists()
        assert not list(path.parent.iterdir())
    filler.unlink()
    code, _, err = cli("run", *options, "--runs", small_disk)
    assert code == 0, err
    assert cli("run", *options, "--runs", tmp_path / "roomy")[0] == 0
    texts = [(folder / "run" / "result.json").read_text() for folder in (small_disk, tmp_path / "roomy")]
    digests = [line for text in texts for line in text.splitlines() if '"digest"' in line]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_two_specs_have_two_ledgers(path):
    """A task of another spec is unknown, even of the same file and range."""
    other = make_spec(release("toy"), fraction=0.5)
    with Ledger.create(path, "run", other, "local") as ledger:
        ledger.plan(files([task(0, spec=other.digest)]))
        ledger.take_over()
        with pytest.raises(LedgerError, match="was never planned"):
            ledger.merge([partial(task(0))])
