"""Messages: names that depend on content alone, one JSON form, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hzzray.data.catalogue import release
from hzzray.errors import UsageError
from hzzray.messages import Cost, Counts, Failure, RunSpec, Task
from hzzray.physics.lepton_columns import VARIABLES
from hzzray.runs.request import make_spec

SPEC = "a" * 64


def task(**changes) -> Task:
    fields = {
        "run_id": "run", "spec": SPEC, "sample": "Zee", "file": "f.root", "uuid": "u", "tree": "mini",
        "start": 0, "stop": 100,
    }  # fmt: skip
    return Task(**{**fields, **changes})


def test_a_task_is_named_by_content_and_nothing_else():
    name = task().task_id
    for elsewhere in ({"run_id": "other"}, {"file": "https://host/f.root"}, {"sample": "Zmumu"}):
        assert task(**elsewhere).task_id == name
    others = [{"spec": "b" * 64}, {"uuid": "v"}, {"tree": "nominal"}, {"start": 1}, {"stop": 99}]
    assert len({name, *(task(**other).task_id for other in others)}) == len(others) + 1


def test_names_hold_for_good():
    """A ledger or a broker that an earlier version filled must be understood: these never change."""
    assert task().task_id == "775886d3646d6314ed1b9c0181c01803"


def test_fields_of_a_name_do_not_run_into_each_other():
    assert task(uuid="u1", tree="x").task_id != task(uuid="u", tree="1x").task_id
    assert task(start=1, stop=23).task_id != task(start=12, stop=13).task_id


@given(st.integers(0, 2**40), st.integers(2, 2**20))
def test_halves_tile_and_are_alike(start, entries):
    whole = task(start=start, stop=start + entries)
    assert whole.task_id  # asked for before it is cut, as the pool does
    first, second = whole.halves()
    assert (first.start, first.stop, second.stop) == (whole.start, second.start, whole.stop)
    assert min(first.entries, second.entries) == entries // 2
    assert len({whole.task_id, first.task_id, second.task_id}) == 3
    assert Task(**{**first.model_dump(), "stop": whole.stop}) == whole


@pytest.mark.parametrize("entries", [0, 1])
def test_what_cannot_be_halved(entries):
    with pytest.raises(ValueError, match=rf"has {entries} entries: it can't be cut in two"):
        task(start=5, stop=5 + entries).halves()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": 3, "stop": 2}, "stop 2 is before start 3"),
        ({"start": -1}, "greater than or equal to 0"),
        ({"stop": 2**63}, "less than"),
        ({"spec": "A" * 64}, "should match pattern"),
        ({"spec": "a" * 63}, "should match pattern"),
        ({"run_id": "../up"}, "should match pattern"),
        ({"run_id": ""}, "should match pattern"),
        ({"run_id": "r" * 65}, "should match pattern"),
        ({"version": 1}, "Input should be 2"),
        ({"start": 0.5}, "valid integer"),
        ({"stop": "many"}, "valid integer"),
        ({"file": None}, "valid string"),
        ({"priority": 3}, "Extra inputs are not permitted"),
        ({"task_id": "0" * 32}, "Extra inputs are not permitted"),
    ],
)
def test_tasks_that_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        task(**changes)


@pytest.mark.parametrize("field", ["run_id", "spec", "sample", "file", "uuid", "tree", "start", "stop"])
def test_every_field_of_a_task_is_needed(field):
    body = task().model_dump()
    del body[field]
    with pytest.raises(ValidationError, match="Field required"):
        Task(**body)


def test_messages_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        task().start = 5


@pytest.mark.parametrize("name", ["toy", "2020", "2025"])
def test_a_spec_travels_and_stays_itself(name):
    spec = make_spec(release(name), fraction=0.3)
    wire = spec.canonical()
    again = RunSpec.model_validate_json(wire)
    assert again == spec
    assert again.digest == spec.digest
    assert again.canonical() == wire == spec.canonical(), "having been named must not show"
    for sample in spec.release.samples:
        normal = spec.release.normalisation(sample, spec.luminosity)
        assert again.release.normalisation(again.release.sample(sample.name), again.luminosity) == normal


def test_tasks_and_failures_travel():
    failure = Failure(task=task(file="/dir/é µ.root"), reason="broken “basket”", permanent=True, attempts=3)
    assert failure.task.task_id
    assert Failure.model_validate_json(failure.canonical()) == failure
    assert Task.model_validate_json(failure.task.canonical()).task_id == failure.task.task_id


def test_the_canonical_form_is_sorted_json_without_spaces():
    wire = task().canonical()
    body = json.loads(wire)
    assert wire == json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    assert list(body) == sorted(task().model_dump())


def test_equal_specs_have_equal_digests_whatever_the_order_of_their_making():
    body = json.loads(make_spec(release("toy")).canonical())
    turned = json.dumps({key: body[key] for key in reversed(body)})
    assert RunSpec.model_validate_json(turned).digest == make_spec(release("toy")).digest


@pytest.mark.parametrize(
    "changes",
    [
        *({"luminosity": 9.0}, {"fraction": 0.5}, {"selection": "notebook-2020"}, {"samples": ("Zee",)}),
        *({"cuts": ["m12=60:"]}, {"parameters": ["electron_pt_min=8"]}, {"window": "120:130"}),
        *({"observables": ["m4l"]}, {"observables": ["m12", "m4l"]}, {"axis": "80:250:68"}),
    ],
)
def test_another_computation_has_another_digest(changes):
    assert make_spec(release("toy"), **changes).digest != make_spec(release("toy")).digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("luminosity",), 0.0),
        (("luminosity",), "Infinity"),
        (("fraction",), 0.0),
        (("fraction",), 1.01),
        (("fraction",), "NaN"),
        (("templates", 0, "axis", "bins"), 0),
        (("templates", 0, "axis", "bins"), 10**6),
        (("templates", 0, "axis", "stop"), -1.0),
        (("templates", 1, "axis", "start"), "NaN"),
        (("templates", 1, "observable"), "m4l"),
        (("templates",), []),
        (("version",), 1),
        (("version",), 3),
        (("window",), [116.0, 131.0]),
        (("window",), [100.0, 300.0]),
        (("window",), ["NaN", 130.0]),
        (("analysis", "name"), ""),
        (("analysis", "module"), "../../secret"),
        (("analysis", "source"), "no digest"),
        (("analysis", "regions"), []),
        (("analysis", "colour"), "red"),
        (("colour",), "red"),
        (("selection", "colour"), "red"),
        (("release", "schema", "gev"), 0),
        (("release", "samples", 0, "group"), "none"),
        (("release", "samples", 0, "path"), "../../secret.root"),
        (("selection", "cuts"), []),
        (("selection", "cuts", 0, "name"), None),
        (("selection", "cuts", 0, "bounds", 0, "low"), "soft"),
        (("selection", "parameters", "identified"), "soon"),
    ],
)
def test_specs_that_are_refused(path, value):
    body = json.loads(make_spec(release("toy")).canonical())
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValidationError):
        RunSpec.model_validate_json(json.dumps(body))


def test_a_selection_that_the_release_has_no_branches_for_is_refused():
    said = "^selection notebook-2025 asks for identification, which release toy has no branch for$"
    with pytest.raises(UsageError, match=said):
        make_spec(release("toy"), selection="notebook-2025")


def test_the_templates_of_a_spec_have_room():
    """Issue 12: a spec from the wire can't ask for more memory than a worker has."""
    others = [variable.name for variable in VARIABLES if variable.name != "m4l"][:18]
    many = ["m4l", *(f"{name}=0:1:10000" for name in others)]
    with pytest.raises(UsageError, match="the observables have 540216 bins in all regions, 524288 at most"):
        make_spec(release("toy"), observables=many)
    assert make_spec(release("toy"), observables=many[:-1]).shape.cells == 3 * (36 + 17 * 10002)


@given(st.integers(0, 10**9), st.floats(0, 1, exclude_min=True))
def test_a_fraction_is_the_leading_part(entries, fraction):
    spec = make_spec(release("toy"), fraction=max(fraction, 1e-300))
    wanted = spec.entries_to_read(entries)
    assert 0 <= wanted <= entries
    assert bool(wanted) == bool(entries)
    assert abs(wanted - entries * fraction) <= 1


@pytest.mark.parametrize(
    ("counts", "due", "status"),
    [
        (Counts(0, 0, 0), 0, "running"),  # not planned yet: nothing was computed that could be complete
        (Counts(3, 0, 0), 3, "running"),
        (Counts(3, 2, 0), 1, "running"),
        (Counts(3, 1, 1), 1, "running"),
        (Counts(3, 3, 0), 0, "complete"),
        (Counts(3, 2, 1), 0, "partial"),
        (Counts(3, 0, 3), 0, "partial"),
    ],
)
def test_status_says_what_is_left(counts, due, status):
    assert (counts.due, counts.status) == (due, status)


def test_costs_add_up():
    assert Cost(1.0, 2.0, 3.0, 4, 5) + Cost(10.0, 20.0, 30.0, 40, 50) == Cost(11.0, 22.0, 33.0, 44, 55)
