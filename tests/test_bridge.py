"""Runs through a real broker: whatever comes, and however often, the result is the serial one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bridge.wire import Letter, TaskMessage, task_letter
from hzzray.data.catalogue import release
from hzzray.engine.monitor import read_usage
from hzzray.errors import UsageError
from hzzray.messages import Task
from hzzray.run import Settings, execute, make_spec
from tests.support.bridges import TOPOLOGY, Bridging, Site
from tests.support.chaos import check_ledger
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def spec():
    return make_spec(release("toy"))


@pytest.fixture(scope="module")
def digest(toys, spec, tmp_path_factory):
    settings = Settings(runs=tmp_path_factory.mktemp("serial"), run_id="s", sources=(str(toys),), engine="serial")
    return execute(spec, settings, planned=lambda _: None, progress=lambda _: None).digest


@pytest.fixture
def site(vhost, tmp_path):
    return Site(vhost, tmp_path / "runs")


def everything_is_settled(site):
    wait_for("the acknowledgements", lambda: site.unsettled() == 0, 20)


def test_a_published_run_is_done(site, spec, toys, digest):
    done = site.publish(spec, "r", toys, 500)
    with Bridging(site, toys):
        result = site.wait("r")
        everything_is_settled(site)
    assert result.digest == digest
    assert check_ledger(site.ledger("r")) == done.tasks
    assert {path.name for path in (site.runs / "r").iterdir()} >= {
        "plot.png",
        "histograms.root",
        "cpu.csv",
        "queue.csv",
    }
    assert not site.reasons()


def test_a_bridge_may_be_there_first_and_ends_with_a_run(site, spec, toys, digest):
    with Bridging(site, toys, until="r") as bridging:
        site.publish(spec, "r", toys)
        bridging.join()
    assert site.wait("r", within=1).digest == digest


def test_duplicates_and_two_bridges(site, spec, toys, digest):
    for chunk in (300, 300, 700):  # the first plan holds, however the others would cut
        done = site.publish(spec, "r", toys, chunk)
    with Bridging(site, toys, actors=1, name="a-") as one, Bridging(site, toys, actors=1, name="b-") as two:
        result = site.wait("r")
        everything_is_settled(site)
        assert not one.error
        assert not two.error
    assert result.digest == digest
    assert check_ledger(site.ledger("r")) == done.tasks
    assert not site.reasons()
    workers = {row["actor"].split("-")[0] for row in read_usage(site.runs / "r") if "worker" in row["actor"]}
    assert workers == {"a", "b"}, "both worked, and one of them wrote down what both used"


def test_another_spec_under_the_same_name_is_refused(site, spec, toys):
    site.publish(spec, "r", toys)
    with pytest.raises(UsageError, match="announced with another spec"):
        site.publish(make_spec(release("toy"), fraction=0.5), "r", toys)


def bad_messages(plan, outside):
    """Make 200 messages of all the kinds that nobody should send."""
    good = [task_letter(TOPOLOGY, TaskMessage(task)) for task in plan.tasks]
    chance = random.Random(1)

    def changed(letter, body=None, **properties):
        kept = {name: getattr(letter.properties, name) for name in ("content_type", "type", "message_id", "headers")}
        made = type(letter.properties)(**(kept | properties), delivery_mode=2)
        return Letter(letter.exchange, letter.key, letter.body if body is None else body, made)

    def forged(task, **changes):
        other = Task.model_validate(task.model_dump() | changes)
        return task_letter(TOPOLOGY, TaskMessage(other))

    def kinds(letter, task):
        cut = chance.randrange(1, len(letter.body))
        return [
            changed(letter, chance.randbytes(chance.randrange(1, 200))),
            changed(letter, letter.body[:cut]),
            changed(letter, b"x" * 70_000),
            changed(letter, letter.body.replace(b'"version":1', b'"version":9')),
            changed(letter, content_type="application/x-python-pickle"),
            changed(letter, type="order"),
            changed(letter, message_id="0" * 32),
            changed(letter, headers={"attempt": "often"}),
            forged(task, spec="0" * 64),
            forged(task, start=task.start + 1),
            forged(task, sample="Zee" if task.sample != "Zee" else "llll"),
            forged(task, file=str(outside)),
            forged(task, file=f"{task.file}/../../../etc/passwd"),
        ]

    made = []
    while len(made) < 200:
        number = chance.randrange(len(good))
        made += kinds(good[number], plan.tasks[number])
    return made[:200]


def test_malformed_messages_are_given_up_with_their_reasons_and_the_rest_goes_on(site, spec, toys, digest, tmp_path):
    plan = site.plan(spec, "r", toys, 500)
    bad = bad_messages(plan, tmp_path / "elsewhere.root")
    site.publish(spec, "r", toys, 500)
    site.send(*bad)
    site.send_tasks(plan)
    with Bridging(site, toys):
        assert site.wait("r").digest == digest
        everything_is_settled(site)
    reasons = site.reasons()
    assert reasons.total() == 200
    kinds = Counter()
    for reason, number in reasons.items():
        kinds[next(kind for kind in REASONS if kind in reason)] += number
    assert set(kinds) == set(REASONS)


REASONS = (
    "too big", "version 9", "content type", "a message of type 'order'", "message_id is not the id", "headers attempt",
    "its spec 000000000000 is not that of run r", "run r has no such task in its plan", "outside the sources",
    "Invalid JSON",
)  # fmt: skip
