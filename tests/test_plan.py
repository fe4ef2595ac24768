"""Files to tasks: nothing twice, nothing left out, named by content; and what all of it costs over HTTP."""

import contextlib
import hashlib
import os
import shutil
import struct
import threading
from uuid import UUID

import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from hzzray import analyses, retry
from hzzray.data.catalogue import Sample, release
from hzzray.data.layout import read_layout
from hzzray.data.storage import open_bytes
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, TransientError, UsageError
from hzzray.runs.plan import check_source, cuts, make_plan, readable
from hzzray.runs.request import make_spec
from tests.support.http_server import serve
from tests.support.root_files import REAL, REAL_2020, columns, write

RELEASE = release("2020")
SAMPLES = ("data_A", "Zee", "Zmumu")
PATHS = {sample.name: sample.path for sample in RELEASE.samples}

needs_real = pytest.mark.skipif(not REAL.exists(), reason="../shared/data is absent")


def spec(*samples, **choices):
    return make_spec(RELEASE, samples=samples or SAMPLES, **choices)


def put(folder, sample, events, seed=0, basket=None, **content):
    return write(folder / PATHS[sample], columns(events, seed=seed) | content, basket=basket)


@pytest.fixture
def source(tmp_path):
    """A folder with a file of each of three samples."""
    folder = tmp_path / "source"
    for seed, (sample, events) in enumerate({"data_A": 100, "Zee": 1000, "Zmumu": 250}.items()):
        put(folder, sample, events, seed, basket=90)
    return folder


def plan(source, *, of=None, **options):
    sources = source if isinstance(source, tuple) else (source,)
    return make_plan(of or spec(), "run", tuple(map(str, sources)), **options)


def spans(found, sample):
    return [(task.start, task.stop) for task in found.tasks if task.sample == sample]


# Cuts


def borders(stop):
    return st.sets(st.integers(0, stop), max_size=40).map(lambda some: np.array(sorted(some | {0, stop}), np.int64))


@settings(deadline=None)
@given(data=st.data(), stop=st.integers(0, 3000), chunk=st.integers(1, 4000))
def test_cuts_tile_the_entries(data, stop, chunk):
    clusters, baskets = data.draw(borders(stop)), data.draw(borders(stop))
    if stop / chunk > 300:
        chunk = stop // 300
    ranges = list(cuts(stop, chunk, clusters, baskets))
    ends = [0, *(end for _, end in ranges)]
    assert [start for start, _ in ranges] == ends[:-1]
    assert ends[-1] == stop
    assert all(0 < end - start <= 1.5 * chunk for start, end in ranges)
    for start, end in ranges[:-1]:
        wished = start + chunk
        for choice in (clusters, baskets):
            distance = np.abs(choice - wished).min()
            if distance <= chunk / 2:
                assert end in choice
                assert abs(end - wished) == distance
                break
        else:
            assert end == wished


def test_cuts_prefer_clusters_then_baskets():
    none = np.array([0, 10_000])
    assert list(cuts(1000, 400, np.array([0, 300, 1000]), np.array([0, 390, 710, 1000]))) == [
        (0, 300),
        (300, 710),
        (710, 1000),
    ]
    assert list(cuts(1000, 400, none, none)) == [(0, 400), (400, 800), (800, 1000)]
    assert list(cuts(1000, 5000, none, none)) == [(0, 1000)]
    assert list(cuts(0, 10, none, none)) == []
    assert list(cuts(600, 400, np.array([0, 590, 900]), none)) == [(0, 590), (590, 600)]
    assert list(cuts(550, 400, np.array([0, 590, 900]), none)) == [(0, 550)]


# Plans


def test_a_plan_covers_every_entry_once(source):
    found = plan(source, chunk=200)
    assert found.entries == {"data_A": (100, 100), "Zee": (1000, 1000), "Zmumu": (250, 250)}
    assert found.failures == found.missing == ()
    assert spans(found, "data_A") == [(0, 100)]
    assert spans(found, "Zee") == [(0, 180), (180, 360), (360, 540), (540, 720), (720, 900), (900, 1000)]
    assert spans(found, "Zmumu") == [(0, 180), (180, 250)]
    assert len({task.task_id for task in found.tasks}) == len(found.tasks)
    for task in found.tasks:
        assert task.file == str(source / PATHS[task.sample])
        with contextlib.closing(open_bytes(task.file)) as file:
            assert task.uuid == read_layout(file, "mini", ("lep_pt",), None).uuid
    assert [task.sample for task in plan(source).tasks] == list(SAMPLES)


def test_ids_depend_on_content_and_on_nothing_else(source, tmp_path):
    ids = [task.task_id for task in plan(source, chunk=200).tasks]
    elsewhere = tmp_path / "else where"
    shutil.copytree(source, elsewhere)
    assert [task.task_id for task in plan(elsewhere, chunk=200).tasks] == ids
    assert [task.task_id for task in make_plan(spec(), "another-run", (str(elsewhere),), chunk=200).tasks] == ids
    with serve(elsewhere) as web:
        assert [task.task_id for task in plan(web.url, chunk=200, cache=tmp_path / "cache").tasks] == ids
    first = plan(source, chunk=200).tasks[0]
    text = f"{spec().digest}\0{first.uuid}\0mini\0{first.start}\0{first.stop}"
    assert first.task_id == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_ids_of_other_content_differ(source):
    before = {task.task_id for task in plan(source).tasks}
    assert before.isdisjoint(task.task_id for task in plan(source, of=spec(luminosity=3)).tasks)
    assert before.isdisjoint(task.task_id for task in plan(source, of=spec(selection="h4l")).tasks)
    put(source, "data_A", 100, seed=0, basket=90)  # the same events in another file
    after = {task.task_id for task in plan(source).tasks}
    assert len(before & after) == 2


def test_a_fraction_is_the_leading_part(source):
    found = plan(source, of=spec(fraction=0.25), chunk=200)
    assert found.entries == {"data_A": (25, 100), "Zee": (250, 1000), "Zmumu": (62, 250)}
    assert spans(found, "Zee") == [(0, 180), (180, 250)]
    assert plan(source, of=spec(fraction=1e-9)).entries["Zee"] == (1, 1000)


def test_a_file_without_entries_is_a_task_of_its_own(source):
    put(source, "Zee", 0)
    found = plan(source)
    assert found.entries["Zee"] == (0, 0)
    assert spans(found, "Zee") == [(0, 0)]
    worker = Worker(spec(), (str(source),))
    partial = worker.process(next(task for task in found.tasks if task.sample == "Zee"))
    worker.close()
    assert partial.cost.events == 0


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_must_hold_something(source, chunk):
    with pytest.raises(UsageError, match=f"chunk must be at least 1, not {chunk}"):
        plan(source, chunk=chunk)


# What cannot be planned


def test_a_missing_sample_is_a_failure_and_the_rest_goes_on(source):
    (source / PATHS["Zee"]).unlink()
    found = plan(source)
    assert found.missing == ("Zee",)
    assert set(found.entries) == {"data_A", "Zmumu"}
    (failure,) = found.failures
    assert failure.permanent
    assert failure.reason == f"{source / PATHS['Zee']}: no such file"
    assert (failure.task.sample, failure.task.start, failure.task.stop) == ("Zee", 0, 0)


def test_no_file_at_all_is_a_wrong_source(tmp_path):
    (tmp_path / "unrelated").write_text("")
    with pytest.raises(UsageError, match=r"^no file of release 2020 in .*: .*data_A\.4lep\.root: no such file$"):
        plan(tmp_path)


def test_a_source_that_can_hold_nothing(tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        check_source(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="the folder is empty"):
        check_source(str(tmp_path))
    (tmp_path / "a.root").write_text("")
    with pytest.raises(UsageError, match=r"a\.root: is a file; give the folder"):
        check_source(str(tmp_path / "a.root"))
    check_source(str(tmp_path))
    check_source("https://example.org/nothing-is-asked")


def test_no_source_is_refused():
    with pytest.raises(UsageError, match="no source to read from"):
        make_plan(spec(), "run", ())


@needs_real
def test_a_file_of_another_release_names_the_trees_that_it_has(source):
    shutil.copy(REAL / "uproot-HZZ.root", source / PATHS["Zee"])
    found = plan(source)
    (failure,) = found.failures
    assert failure.permanent
    assert found.missing == ()
    assert f"{PATHS['Zee']}: no tree mini (it has events): is this file of another release?" in failure.reason


def test_a_file_of_another_schema_names_the_branches_that_it_lacks(source):
    content = columns(50)
    del content["lep_E"], content["mcWeight"]
    write(source / PATHS["Zee"], content)
    (failure,) = plan(source).failures
    assert f"{PATHS['Zee']}: tree mini has no branches lep_E, mcWeight (it has lep_pt, " in failure.reason


def test_data_needs_no_weights(source):
    content = columns(50)
    write(source / PATHS["data_A"], {name: content[name] for name in RELEASE.schema_.kinematics})
    assert plan(source).failures == ()


@pytest.mark.parametrize("content", [b"", b"not a ROOT file" * 100])
def test_a_file_that_is_no_root_file(source, content):
    (source / PATHS["Zee"]).write_bytes(content)
    (failure,) = plan(source).failures
    assert "Zee.4lep.root: not a ROOT file" in failure.reason


def test_the_same_file_under_two_samples_counts_once(source):
    shutil.copy(source / PATHS["Zee"], source / PATHS["Zmumu"])
    found = plan(source)
    assert set(found.entries) == {"data_A", "Zee"}
    (failure,) = found.failures
    assert failure.task.sample == "Zmumu"
    assert "Zmumu.4lep.root: the file of sample Zee again (same content)" in failure.reason


def test_two_files_of_one_uuid_both_count(source):
    """Issue 11, item 20: reproducible writes and copies of a skeleton share their UUID; 300 and 500 entries."""
    for sample, events in {"Zee": 300, "Zmumu": 500}.items():
        write(source / PATHS[sample], columns(events, seed=events), identity=UUID(int=1))
    found = plan(source)
    assert found.failures == ()
    assert (found.entries["Zee"], found.entries["Zmumu"]) == ((300, 300), (500, 500))
    assert len({task.task_id for task in found.tasks}) == len({task.uuid for task in found.tasks}) == 3
    shutil.copy(source / PATHS["Zee"], source / PATHS["Zmumu"])
    (failure,) = plan(source).failures
    assert "the file of sample Zee again (same content), left out" in failure.reason


def test_an_rntuple_and_a_file_that_was_never_closed_are_named_as_such(source):
    """Issue 11, item 23."""
    (source / PATHS["Zee"]).unlink()
    with uproot.recreate(source / PATHS["Zee"]) as file:
        file.mkrntuple("mini", {"lep_pt": np.arange(3.0)})
    path = source / PATHS["Zmumu"]
    content = path.read_bytes()
    path.write_bytes(content[:12] + struct.pack(">iii", 266, 0, 0) + content[24:])
    rntuple, open_ = plan(source).failures
    assert "mini is an RNTuple" in rntuple.reason
    assert f"never closed: {len(content)} bytes, 266 by its header" in open_.reason


# Several files


def cut_in_three(source, sample="Zee", events=1000):
    """Put the events of a sample into three files, which a release has as a list."""
    (source / PATHS[sample]).unlink(missing_ok=True)
    paths = tuple(f"MC/{sample}.{i}.root" for i in range(3))
    for i, path in enumerate(paths):
        write(source / path, columns(events, seed=i), basket=90)
    return paths


def with_path(path, sample="Zee", samples=SAMPLES):
    """A spec whose sample has another path."""
    changed = [
        one if one.name != sample else Sample.model_validate({**one.model_dump(), "path": path})
        for one in RELEASE.samples
    ]
    return make_spec(RELEASE.model_copy(update={"samples": tuple(changed)}), samples=samples)


def test_a_sample_of_several_files_is_planned_file_by_file(source):
    paths = cut_in_three(source)
    of = with_path(paths[::-1])
    found = plan(source, of=of, chunk=600)
    assert found.unread == ()
    assert found.entries == {"data_A": (100, 100), "Zee": (3000, 3000), "Zmumu": (250, 250)}
    mine = [file for file in found.files if file.sample == "Zee"]
    assert [(file.path, file.file, file.entries) for file in mine] == [
        (path, str(source / path), 1000) for path in paths[::-1]
    ]
    assert [[(task.start, task.stop) for task in file.tasks] for file in mine] == [[(0, 630), (630, 1000)]] * 3
    assert len({file.uuid for file in mine}) == 3
    assert [task.sample for task in found.tasks] == ["data_A", *["Zee"] * 6, "Zmumu"]
    tenth = plan(source, of=of.model_copy(update={"fraction": 0.1}))
    assert tenth.entries["Zee"] == (300, 3000)
    assert [file.planned for file in tenth.files if file.sample == "Zee"] == [100] * 3


def test_a_pattern_stands_for_the_files_that_sources_have(source, tmp_path):
    paths = cut_in_three(source)
    second = tmp_path / "second"
    shutil.copytree(source, second)
    write(second / "MC/deeper/Zee.9.root", columns(10, seed=9))
    (second / "MC/Zee.dir.root").mkdir()
    (second / "MC/.Zee.hidden.root").write_bytes(b"")
    (source / paths[1]).unlink()
    (second / paths[2]).unlink()

    def found(pattern):
        made = plan((source, second), of=with_path(pattern, samples=("Zee",)))
        assert made.unread == ()
        return [(file.path, file.file) for file in made.files]

    three = [(paths[0], str(source / paths[0])), (paths[1], str(second / paths[1])), (paths[2], str(source / paths[2]))]
    deep = ("MC/deeper/Zee.9.root", str(second / "MC/deeper/Zee.9.root"))
    assert found("MC/Zee*.root") == three
    assert found("MC/**/Zee*.root") == [*three, deep]
    assert found("MC/Z*.[02].root") == [three[0], three[2]]
    assert found(["MC/deeper/Zee.9.root", "MC/Zee*.root", paths[1]]) == [deep, *three], "each once"


def test_a_pattern_that_nothing_matches_is_a_missing_sample(source):
    found = plan(source, of=with_path("MC/none*.root"))
    assert found.missing == ("Zee",)
    (failure,) = found.failures
    assert failure.reason == f"{source}/MC/none*.root: no file matches"
    assert failure.permanent
    with pytest.raises(UsageError, match=r"^no file of release 2020 in .*: no file matches$"):
        plan(source, of=with_path("MC/none*.root", samples=("Zee",)))


def test_a_pattern_needs_a_source_that_can_be_listed(source):
    with serve(source) as web, pytest.raises(UsageError) as refused:
        plan((source, web.url), of=with_path("MC/*.root"))
    assert str(refused.value) == (
        f"{web.url}: a server of the web can't list its files: instead of MC/*.root, write the list of them"
    )


def test_one_file_of_several_that_is_missing_or_damaged_is_named_and_the_others_are_planned(source):
    paths = cut_in_three(source)
    (source / paths[0]).unlink()
    (source / paths[2]).write_bytes((source / paths[2]).read_bytes()[:-10])
    found = plan(source, of=with_path(paths))
    assert found.missing == ()
    assert found.entries["Zee"] == (1000, 1000)
    assert [(file.path, file.missing, file.again) for file in found.unread] == [
        (paths[0], True, False), (paths[2], False, False),
    ]  # fmt: skip
    absent, damaged = found.failures
    assert absent.reason == f"{source / paths[0]}: no such file"
    assert damaged.reason.startswith(f"{source / paths[2]}: truncated")
    assert absent.task.task_id != damaged.task.task_id
    for path in paths:
        (source / path).unlink(missing_ok=True)
    assert plan(source, of=with_path(paths)).missing == ("Zee",)


def test_a_file_that_is_there_again_is_left_out_and_named(source):
    paths = cut_in_three(source)
    shutil.copy(source / paths[0], source / paths[1])
    shutil.copy(source / paths[2], source / PATHS["Zmumu"])
    found = plan(source, of=with_path(paths))
    assert found.entries == {"data_A": (100, 100), "Zee": (2000, 2000)}
    same, others = found.unread
    assert same.failure.reason == f"{source / paths[1]}: {paths[0]} of sample Zee again (same content), left out"
    assert (same.sample, same.again) == ("Zee", True)
    assert others.failure.reason.endswith(f"{paths[2]} of sample Zee again (same content), left out")
    assert (others.sample, others.again) == ("Zmumu", False)


def test_files_are_opened_side_by_side(source, monkeypatch):
    """Each of the later ones waits for two others to be opened: one after the other, that would be for ever."""
    paths = cut_in_three(source)
    together = threading.Barrier(3, timeout=30)

    def opened(location):
        if location.endswith(paths):
            together.wait()
        return open_bytes(location)

    monkeypatch.setattr("hzzray.runs.plan.open_bytes", opened)
    assert plan(source, of=with_path(paths)).entries["Zee"] == (3000, 3000)


def test_a_server_that_is_down_is_asked_for_two_of_many_files(source, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_S", 0.001)
    paths = [f"MC/{i}.root" for i in range(20)]
    with serve(source) as web:
        for path in [*PATHS.values(), *paths]:
            web.fail(path, status=503, times=99)
        with pytest.raises(TransientError, match=r"no file of release 2020 can be read now: .*503"):
            plan(web.url, of=with_path(paths))
        assert len(web.requests) == 2


# Links


def linked(source, folder):
    """A folder of links to the files of another one."""
    for path in PATHS.values():
        if (source / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(source / path)
    return folder


def test_what_the_user_s_own_plan_leads_to_may_be_read_and_no_more(source, tmp_path):
    """Issue 11, item 17: a worker of tasks from elsewhere is told the link and its target."""
    links = linked(source, tmp_path / "links")
    found = plan(links, of=spec("Zee"))
    (task,) = found.tasks
    sources = (str(links),)
    own = Worker(spec("Zee"), readable(sources, found))
    assert own.process(task).cost.events == 1000
    other = task.model_copy(update={"file": str(source / PATHS["Zmumu"])})
    with pytest.raises(DataError, match="outside the sources that this worker may read"):
        own.process(other)
    own.close()
    confined = Worker(spec("Zee"), sources)
    with pytest.raises(DataError) as refused:
        confined.process(task)
    assert str(refused.value) == (
        f"{task.file}: outside the sources that this worker may read "
        f"({task.file} is a link to {source / PATHS['Zee']}: add that to the sources)"
    )
    trusting = Worker(spec("Zee"), (*sources, str(source)))
    assert trusting.process(task).cost.events == 1000
    trusting.close()
    assert readable(sources, plan(source)) == (str(links), *sorted(str(source / path) for path in PATHS.values()
                                               if (source / path).exists()))  # fmt: skip
    assert readable((str(source),), plan(source)) == (str(source),)


@pytest.mark.parametrize("file", ["/data/\x00.root", "/data/" + "x" * 5000, "http://host/\x00", "\x00"])
def test_a_task_whose_file_can_be_none_is_a_data_error(source, file):
    """Issue 11, item 35, as far as it is the worker's."""
    (task,) = plan(source, of=spec("Zee")).tasks
    worker = Worker(spec("Zee"), (str(source), "http://host/"))
    with pytest.raises(DataError, match="outside the sources"):
        worker.process(task.model_copy(update={"file": file}))


# Several sources


def test_the_first_source_that_has_the_file_is_taken(source, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(source, second)
    (source / PATHS["Zee"]).unlink()
    found = plan((source, second))
    assert {task.sample: task.file for task in found.tasks} == {
        "data_A": str(source / PATHS["data_A"]),
        "Zee": str(second / PATHS["Zee"]),
        "Zmumu": str(source / PATHS["Zmumu"]),
    }


@pytest.mark.parametrize("fault", ["truncated", "other tree", "other branches"])
def test_a_source_with_a_bad_file_falls_through_to_the_next(source, tmp_path, fault):
    second = tmp_path / "second"
    shutil.copytree(source, second)
    bad = source / PATHS["Zee"]
    if fault == "truncated":
        bad.write_bytes(bad.read_bytes()[:-10])
    elif fault == "other tree":
        write(bad, columns(10), tree="analysis")
    else:
        write(bad, {"lep_pt": columns(10)["lep_pt"]})
    found = plan((source, second))
    assert found.failures == ()
    assert next(task.file for task in found.tasks if task.sample == "Zee") == str(second / PATHS["Zee"])


def test_of_several_reasons_the_one_that_is_more_than_absence_is_told(source, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(source, second)
    (source / PATHS["Zee"]).unlink()
    (second / PATHS["Zee"]).write_bytes(bytes(500))
    for sources in ((source, second), (second, source)):
        found = plan(sources)
        (failure,) = found.failures
        assert failure.reason == f"{second / PATHS['Zee']}: not a ROOT file (it begins with b'\\x00\\x00\\x00\\x00')"
        assert found.missing == ()


def test_a_server_that_is_down_is_not_asked_for_every_file(source, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_S", 0.001)
    with serve(source) as web:
        for path in PATHS.values():
            web.fail(path, status=503, times=99)
        found = plan((web.url, source))
        assert found.failures == ()
        assert len(web.requests) == 2, "the third file came from the other source at once"
        web.reset()
        for path in PATHS.values():
            web.fail(path, status=503, times=99)
        with pytest.raises(TransientError, match=r"no file of release 2020 can be read now: .*503"):
            plan(web.url)
        assert len(web.requests) == 2


def test_a_busy_server_is_a_failure_that_may_pass_and_no_message_shows_its_login(source, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_S", 0.001)
    with serve(source) as web:
        url = web.url.replace("http://", "http://user:password@")
        web.fail(PATHS["Zee"], status=503, times=99)
        shutil.copy(source / PATHS["data_A"], source / PATHS["Zmumu"])
        found = plan(url)
        busy, twice = found.failures
        assert (busy.task.sample, busy.permanent) == ("Zee", False)
        assert "503" in busy.reason
        assert twice.permanent
        shutil.rmtree(source)
        source.mkdir()
        with pytest.raises(UsageError, match="no file of release") as caught:
            plan(url, of=spec("data_A"))
    for text in (busy.reason, twice.reason, str(caught.value)):
        assert "password" not in text


def test_a_worker_opens_a_file_anew_after_a_fault(source):
    """A file that was put right under its name is read as it is now, by a worker that had the bad one open."""
    path = source / PATHS["Zee"]
    (task,) = plan(source, of=spec("Zee")).tasks
    whole = path.read_bytes()
    worker = Worker(spec("Zee"), (str(source),))
    expected = worker.process(task).packed
    worker.close()
    with contextlib.closing(open_bytes(str(path))) as opened:
        seek = int(read_layout(opened, "mini", ("lep_pt",), None).branches["lep_pt"].seeks[3])
    replaced = path.with_suffix(".part")
    replaced.write_bytes(whole[:seek] + bytes(60) + whole[seek + 60 :])
    replaced.replace(path)
    with pytest.raises(DataError, match="branch lep_pt, basket 3: corrupt"):
        worker.process(task)
    replaced.write_bytes(whole)
    replaced.replace(path)
    assert worker.process(task).packed == expected
    path.write_bytes(whole)  # under the worker's eyes
    os.utime(path, ns=(1, 1))
    with pytest.raises(TransientError, match="changed while it was read"):
        worker.process(task)
    assert worker.process(task).packed == expected
    worker.close()


@pytest.mark.parametrize("validators", [True, False])
def test_a_file_written_over_on_a_server_between_two_tasks_is_noticed(source, tmp_path, validators, monkeypatch):
    """Issue 11, item 19: every basket lies where it did, and the file has the same UUID and size."""
    monkeypatch.setattr(retry, "_FIRST_S", 0.001)
    path = source / PATHS["Zee"]
    content = columns(1000, seed=3)
    write(path, content, compression=None, identity=UUID(int=1))
    with serve(source) as web:
        web.validators = validators
        found = plan(web.url, of=spec("Zee"), chunk=500, cache=tmp_path / "cache")
        first, second = found.tasks
        worker = Worker(spec("Zee"), (web.url,), cache=tmp_path / "cache")
        before, whole = worker.process(first).packed, path.read_bytes()
        write(path, content | {"lep_E": content["lep_E"] * 2}, compression=None, identity=UUID(int=1))
        with pytest.raises(TransientError, match=r"Zee\.4lep\.root: changed while it was read"):
            worker.process(second)
        with pytest.raises(DataError, match=r"another file since it was planned \(its content changed\)"):
            worker.process(second)
        path.write_bytes(whole)
        os.utime(path, (1, 1))
        assert worker.process(first).packed == before
        os.utime(path, (2, 2))  # a server of the same address that has another date for the same bytes
        assert worker.process(second).cost.events == 500
        worker.close()


# What it costs over HTTP


def test_small_files_are_planned_and_read_with_three_requests_each_and_side_by_side(source, tmp_path):
    """Issue 16, item 2: it was ten, one after the other."""
    (source / PATHS["Zee"]).unlink()
    paths = tuple(f"MC/{i:02}.root" for i in range(16))
    for i, path in enumerate(paths):
        write(source / path, columns(30, seed=i))
    whole = with_path(paths)
    here = computed(whole, plan(source, of=whole), (str(source),), None)
    with serve(source) as web:
        plan(web.url, of=with_path(paths[:4]))  # four small ones are known
        web.reset()
        found = plan(web.url, of=whole, cache=tmp_path / "cache")
        tasks = [task for task in found.tasks if task.sample == "Zee"]
        worker = Worker(whole, (web.url,), cache=tmp_path / "cache")
        together = threading.Barrier(16, timeout=30)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hzzray.engine.worker.open_bytes", lambda url: together.wait() >= 0 and open_bytes(url))
            partials = worker.process_all(tasks)
        worker.close()
        assert {path: web.requests[path] for path in paths} == dict.fromkeys(paths, 3)
        assert [one.packed for one in partials][-1] == here["Zee"]


def test_a_file_that_changes_while_others_of_its_call_are_read_fails_alone(source, tmp_path, monkeypatch):
    paths = cut_in_three(source)
    whole = with_path(paths)
    monkeypatch.setattr(retry, "_FIRST_S", 0.001)
    with serve(source) as web:
        tasks = [task for task in plan(web.url, of=whole).tasks if task.sample == "Zee"]
        worker = Worker(whole, (web.url,))
        work = worker._work

        def then_changed(task, confirm):
            made = work(task, confirm)
            if task is tasks[1]:
                write(source / paths[1], columns(1000, seed=9), basket=90)
            return made

        monkeypatch.setattr(worker, "_work", then_changed)
        first, second, third = worker.process_all(tasks)
        worker.close()
    assert (first.cost.events, third.cost.events) == (1000, 1000)
    assert isinstance(second, TransientError)
    assert str(second).endswith("changed while it was read")


REAL_SAMPLES = tuple(sample.name for sample in RELEASE.samples if REAL / "atlas2020-13tev" / sample.path in REAL_2020)


def computed(whole, found, sources, cache):
    """Histograms of all tasks, by sample, as one worker makes them."""
    worker = Worker(whole, sources, cache=cache)
    try:
        return {task.sample: worker.process(task).packed for task in found.tasks}
    finally:
        worker.close()


def needed_bytes(whole, folder):
    """Bytes of the baskets that the selection reads, as they lie in the files.

    Small files have their baskets in the tree's own record, which is compressed as one: there is no getting at one of
    them without all of it, so that it counts as a whole.
    """
    schema, total = whole.release.schema_, 0
    analysis = analyses.resolve(whole.analysis, ())
    for sample in whole.release.samples:
        simulation = whole.release.role(sample) != "data"
        names = analyses.reads(whole, analysis, simulation=simulation).branches
        source = open_bytes(str(folder / sample.path))
        branches = read_layout(source, schema.tree, names, None).branches
        source.close()
        total += sum(int(branch.sizes.sum()) for branch in branches.values())
        if any(branch.embedded for branch in branches.values()):
            with uproot.open(folder / sample.path) as file:
                total += file.key(schema.tree).fNbytes
    return total


@needs_real
def test_over_http_the_same_histograms_for_hardly_more_than_the_baskets_needed(tmp_path):
    folder = REAL / "atlas2020-13tev"
    whole = spec(*REAL_SAMPLES)
    needed = needed_bytes(whole, folder)
    here = computed(whole, plan(folder, of=whole), (str(folder),), None)
    assert len(here) == len(REAL_SAMPLES) == 7
    with serve(folder) as web:
        found = plan(web.url, of=whole, cache=tmp_path)
        assert computed(whole, found, (web.url,), tmp_path) == here
        first = web.bytes_sent.total() / needed
        # Another process, such as a worker, has what the planner kept: headers and baskets are all that it asks for.
        web.reset()
        assert computed(whole, found, (web.url,), tmp_path) == here
        second = web.bytes_sent.total() / needed
        web.reset()
        assert computed(whole, plan(web.url, of=whole), (web.url,), None) == here
        uncached = web.bytes_sent.total() / needed
    assert first <= 1.1
    assert second <= 1.001
    assert uncached <= 1.2
