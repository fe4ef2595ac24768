"""What becomes of a delivery: each row of the table in docs/messaging.md, what holds of all, and that it is done."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import get_args

import pika
import pytest

from bridge.broker_source import BrokerSource
from bridge.consumer import Delivery
from bridge.settlement import Settlement
from bridge.topology import DELIVERY_LIMIT, Topology
from bridge.verdict import (
    MAX_REDELIVERIES,
    MAX_UNKNOWN,
    Ack,
    Committed,
    DeadLetter,
    Failed,
    GivenUp,
    InLedger,
    Keep,
    Known,
    Leaving,
    Offer,
    Replace,
    Requeue,
    Split,
    Stopped,
    Unhandled,
    UnservedRun,
    Verdict,
    decide,
)
from bridge.wire import Refusal, TaskMessage
from hzzray.engine.ledger import TaskState, Wish
from hzzray.errors import HzzrayError
from hzzray.messages import Failure
from tests.support.ledgers import SPEC, task

PLANNED = task(1)
GIVEN = task(1, file="/elsewhere/Zee.root")  # the message's own path, which is another than the plan's
ALIEN = task(1, spec="b" * 64)
PARTS = PLANNED.halves()
BROKEN = Failure(task=PLANNED, reason="broken", permanent=True, attempts=3)
REFUSAL = Refusal("too big")


def message(of=GIVEN, **more):
    return TaskMessage(of, **more)


def ledger(state="due", **more):
    return InLedger(SPEC.digest, PLANNED, state, **more)


PART_MESSAGES = tuple(TaskMessage(part, published=7.0) for part in PARTS)

TABLE = {
    "can't be read": (REFUSAL, None, DeadLetter("too big")),
    "the bridge is leaving": (message(), Leaving(), Keep()),
    "the bridge is leaving, and it can't be read": (REFUSAL, Leaving(), Keep()),
    "run unknown": (message(unknown=3), None, Requeue(message(unknown=4), 4)),
    "run unknown too often": (
        message(unknown=MAX_UNKNOWN), None, DeadLetter("run run was never announced", run_id="run"),
    ),
    "run not served here or now": (message(attempt=2), UnservedRun(), Requeue(message(attempt=2))),
    "another spec": (
        message(ALIEN, attempt=2), ledger(),
        DeadLetter(f"its spec bbbbbbbbbbbb is not that of run run, {SPEC.digest[:12]}", 2, "run"),
    ),
    "not in the plan": (
        message(), InLedger(SPEC.digest, None), DeadLetter("run run has no such task in its plan", 0, "run"),
    ),
    "another sample": (
        message(task(1, sample="llll")), ledger(), DeadLetter("run run has no such task in its plan", 0, "run"),
    ),
    "outside the sources": (
        message(), ledger(is_inside=False),
        DeadLetter("/elsewhere/Zee.root: outside the sources that this bridge may read", 0, "run"),
    ),
    "merged": (message(), ledger("merged"), Ack()),
    "split": (message(published=7.0), ledger("split", parts=PARTS), Replace(PART_MESSAGES)),
    "failed": (message(), ledger("failed", failure=BROKEN), DeadLetter("broken", 3, "run")),
    "failed, and replayed": (
        message(replay=True), ledger("failed", failure=BROKEN), Offer(message(PLANNED, replay=True), forgives=True),
    ),
    "run paused or ended": (message(), ledger(wish="pause"), Ack(is_due=True)),
    "run paused or ended, and replayed": (
        message(replay=True), ledger("failed", failure=BROKEN, wish="pause"), Ack(is_due=True, forgives=True),
    ),
    "redelivered too often": (
        message(redeliveries=40), ledger(),
        DeadLetter(
            "redelivered 40 times, and never acknowledged", 40, "run",
            Failure(
                task=PLANNED, reason="redelivered 40 times, and never acknowledged", permanent=False, attempts=40
            ),
        ),
    ),
    "due": (message(redeliveries=39), ledger(), Offer(message(PLANNED, redeliveries=39))),
    "committed": (message(), Committed(), Ack()),
    "failed, may pass": (message(attempt=1, replay=True), Failed(2), Requeue(message(attempt=2), 2)),
    "failed, not to blame": (message(attempt=1), Failed(0), Offer(message(attempt=1))),
    "given up": (message(), GivenUp(BROKEN), DeadLetter("broken", 3, "run")),
    "split by a worker": (message(published=7.0), Split(PARTS), Replace(PART_MESSAGES)),
    "nothing to do for the pool": (message(), Stopped("run"), Requeue(message())),
    "stopped by its user": (message(), Stopped("cancel"), Ack(is_due=True)),
    "the ledger can't be used": (message(), Unhandled(HzzrayError("disk full")), Requeue(message())),
    "handling it fails": (message(), Unhandled(KeyError("x")), DeadLetter("it can't be handled: KeyError: 'x'")),
}  # fmt: skip


@pytest.mark.parametrize(("what", "known", "verdict"), TABLE.values(), ids=TABLE)
def test_each_row_of_the_table(what, known, verdict):
    assert decide(what, known) == verdict


WISHES = get_args(Wish)
MESSAGES = [
    REFUSAL,
    *(
        message(of, attempt=attempt, unknown=unknown, replay=replay, redeliveries=redeliveries)
        for of, attempt, unknown, replay, redeliveries in product(
            (PLANNED, GIVEN, ALIEN, task(1, sample="llll"), task(1, file="/a\0b\n\x1b[31m")),
            (0, 3),
            (0, MAX_UNKNOWN - 1, MAX_UNKNOWN, MAX_UNKNOWN + 1),
            (False, True),
            (0, MAX_REDELIVERIES - 1, MAX_REDELIVERIES),
        )
    ),
]
IN_LEDGER = [
    InLedger(SPEC.digest, planned, state, is_inside, parts, failure, wish)
    for planned, state, is_inside, parts, failure, wish in product(
        (None, PLANNED), get_args(TaskState), (False, True), ((), PARTS), (None, BROKEN), WISHES
    )
]
KNOWN = [
    None,
    UnservedRun(),
    Leaving(),
    *IN_LEDGER,
    Committed(),
    *map(Failed, range(4)),
    GivenUp(BROKEN),
    Split(PARTS),
    *map(Stopped, WISHES),
    Unhandled(HzzrayError("disk full")),
    Unhandled(ZeroDivisionError()),
]


@pytest.fixture(scope="module")
def fates():
    """The one fate of all combinations of what may have come and what may be known of it."""
    assert {type(known) for known in KNOWN if known is not None} == set(get_args(Known))
    return [(what, known, decide(what, known)) for what, known in product(MESSAGES, KNOWN)]


def of(fates, kind):
    """Those who end in a kind of verdict; some do."""
    found = [fate for fate in fates if isinstance(fate[2], kind)]
    assert found
    return found


def is_planned(what, known):
    """Whether the ledger has a message's task as it came, in a state that is known."""
    return known.task == PLANNED and what.task.spec == known.spec and what.task.sample == PLANNED.sample


def test_no_message_is_given_up_behind_the_ledgers_back():
    assert MAX_REDELIVERIES < DELIVERY_LIMIT


def test_every_combination_has_one_fate(fates):
    assert len(fates) > 50_000
    assert {type(verdict) for _, _, verdict in fates} == set(get_args(Verdict))


def test_what_is_acknowledged_as_it_is_stands_in_the_ledger(fates):
    for what, known, verdict in of(fates, Ack):
        assert isinstance(what, TaskMessage)
        match known:
            case Committed():
                assert not verdict.is_due
            case Stopped(wish=wish):  # it was offered, so it is due
                assert verdict.is_due
                assert wish != "run"
            case InLedger(state="merged"):
                assert is_planned(what, known)
                assert not verdict.is_due
            case InLedger(state=state, wish=wish):
                assert is_planned(what, known)
                assert verdict.is_due
                assert wish != "run"
                assert verdict.forgives == (state == "failed"), "else it would not be due when the run goes on"
                assert state == "due" or what.replay
            case _:
                pytest.fail(f"{what} is lost: {known}")


def test_only_parts_of_what_is_split_in_the_ledger_replace_it(fates):
    for what, known, verdict in of(fates, Replace):
        assert isinstance(known, Split) or (known.state == "split" and is_planned(what, known))
        assert tuple(part.task for part in verdict.parts) == known.parts


def test_what_is_given_up_has_a_reason_and_its_failure_is_in_the_ledger(fates):
    for what, known, verdict in of(fates, DeadLetter):
        assert verdict.reason
        if verdict.failure is not None:  # the ledger is told before
            assert known.state == "due" or (known.state == "failed" and what.replay)
            assert verdict.failure.task == PLANNED
            assert verdict.reason == verdict.failure.reason
        elif isinstance(known, InLedger) and isinstance(what, TaskMessage) and is_planned(what, known):
            assert known.state == "failed" or not known.is_inside
        else:  # nothing that a plan needs, but for what nobody thought of
            is_bad = isinstance(what, Refusal) or (isinstance(known, InLedger) and not is_planned(what, known))
            assert is_bad or known is None or isinstance(known, GivenUp | Unhandled)


def test_what_is_offered_is_due_as_it_was_planned_and_nothing_stands_in_its_way(fates):
    for what, known, verdict in of(fates, Offer):
        if isinstance(known, Failed):
            assert known.attempts == 0
            assert verdict == Offer(what)
            continue
        assert is_planned(what, known)
        assert verdict.message.task == PLANNED, "the file is that of the plan, whatever the message says"
        assert known.is_inside
        assert known.wish == "run"
        assert what.redeliveries < MAX_REDELIVERIES
        assert known.state == ("failed" if verdict.forgives else "due")
        assert what.replay or not verdict.forgives


def test_what_is_put_off_is_the_same_task_and_not_for_ever(fates):
    for what, known, verdict in of(fates, Requeue):
        again = verdict.message
        assert again.task == what.task
        assert again.published == what.published
        if known is None:
            assert what.unknown < again.unknown == verdict.tries <= MAX_UNKNOWN
        elif isinstance(known, Failed):
            assert (again.attempt, again.replay, verdict.tries) == (known.attempts, False, known.attempts)
        else:
            assert (again, verdict.tries) == (what, None)


def test_a_bridge_that_leaves_settles_nothing_and_only_it(fates):
    for what, known, verdict in fates:
        assert isinstance(verdict, Keep) == isinstance(known, Leaving), what


class Wire:
    """A consumer and publishers that note what they do; the broker confirms when it is told to."""

    def __init__(self):
        self.acked, self.sent = [], []

    def ack(self, delivery):
        self.acked.append(delivery.tag)

    def publish(self, letter):
        confirmed = asyncio.get_running_loop().create_future()
        self.sent.append((letter, confirmed))
        return confirmed


@pytest.mark.parametrize(("number", "lost"), [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize(
    ("verdict", "keys"),
    [
        (Ack(), []),
        (Ack(is_due=True), []),
        (Requeue(message(), 1), ["hzzray.retry.1"]),
        (Requeue(message(), 3), ["hzzray.retry.3"]),
        (Requeue(message(), 9), ["hzzray.retry.4"]),
        (Requeue(message()), ["hzzray.retry.4"]),
        (Replace(PART_MESSAGES), ["hzzray.tasks"] * 2),
        (Replace(()), []),
        (DeadLetter("broken", 3, "run"), ["hzzray.dead"]),
    ],
)
def test_a_delivery_is_acknowledged_once_all_that_stands_for_it_is_confirmed(verdict, keys, number, lost):
    async def go():
        wire = Wire()
        settlement = Settlement(Topology(), wire, wire, wire)
        deliveries = [Delivery(1, tag, b"{}", pika.BasicProperties()) for tag in range(number)]
        for delivery in deliveries:
            settlement.came(delivery)
        settlement.settle(verdict, deliveries)
        each = number if isinstance(verdict, DeadLetter) else 1
        assert [letter.key for letter, _ in wire.sent] == keys * each
        if lost:
            settlement.lost()
        for _, confirmed in wire.sent:
            assert len(wire.acked) < number
            confirmed.set_result(None)
            await asyncio.sleep(0)
        nobody = bool(lost and wire.sent)  # on another channel these tags are others'
        assert wire.acked == ([] if nobody else list(range(number)))
        assert (settlement.unacked, settlement.acknowledged) == (0, len(wire.acked))

    asyncio.run(go())


@pytest.mark.parametrize("verdict", [Keep(), Offer(message())])
def test_what_is_kept_or_offered_the_broker_is_not_told_of(verdict):
    wire = Wire()
    settlement = Settlement(Topology(), wire, wire, wire)
    delivery = Delivery(1, 1, b"{}", pika.BasicProperties())
    settlement.came(delivery)
    settlement.settle(verdict, [delivery])
    assert (wire.acked, wire.sent, settlement.unacked) == ([], [], 1)


def holding(*given, settlement=None):
    """A source that holds messages of these tasks, each delivered twice; the first is with a worker."""
    source = BrokerSource(settlement or Noted(), lambda: None)
    for number, one in enumerate(given):
        for copy in range(2):
            source.offer(message(one), Delivery(1, 10 * number + copy, b"", pika.BasicProperties()))
    return source


class Noted:
    """Notes what is to be settled: the kind of verdict, and the deliveries' tags."""

    def __init__(self):
        self.settled = []

    def settle(self, verdict, deliveries):
        self.settled.append((type(verdict), [delivery.tag for delivery in deliveries]))


FIRST, SECOND = task(1), task(2)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda source: source.ack(FIRST), Ack),
        (lambda source: source.retry(FIRST, 2), Requeue),
        (lambda source: source.reject(BROKEN), DeadLetter),
        (lambda source: source.split(FIRST, PARTS), Replace),
    ],
)
def test_all_deliveries_of_a_task_share_its_fate(answer, kind):
    async def go():
        noted = Noted()
        source = holding(FIRST, SECOND, settlement=noted)
        assert await source.get() == FIRST
        answer(source)
        assert (noted.settled, source.held) == ([(kind, [0, 1])], 1)

    asyncio.run(go())


def test_a_task_that_is_not_to_blame_is_offered_again_unless_it_comes_again_by_itself():
    async def go():
        noted = Noted()
        source = holding(FIRST, SECOND, settlement=noted)
        assert await source.get() == FIRST
        source.retry(FIRST)
        assert (await source.get(), source.held, noted.settled) == (FIRST, 2, [])
        source.lost()
        assert source.held == 1, "what a worker has goes on"
        source.retry(FIRST)
        assert not await source.offered(0)
        assert (source.held, noted.settled) == (0, [(Offer, [])])

    asyncio.run(go())


@pytest.mark.parametrize(
    ("known", "idle_only", "settled", "is_due"),
    [
        (Leaving(), False, [], False),
        (UnservedRun(), False, [(Requeue, [0, 1]), (Requeue, [10, 11])], False),
        (Stopped("run"), False, [(Requeue, [0, 1]), (Requeue, [10, 11])], False),
        (Stopped("drain"), False, [(Ack, [0, 1]), (Ack, [10, 11])], True),
        (Stopped("pause"), True, [(Ack, [10, 11])], True),
    ],
)
def test_what_is_held_is_released(known, idle_only, settled, is_due):
    async def go():
        noted = Noted()
        source = holding(FIRST, SECOND, settlement=noted)
        await source.get()
        assert source.release(known, all_of_it=not idle_only) == is_due
        assert noted.settled == settled
        assert source.held == 2 - len(settled)
        assert await source.offered(0) == (not settled), "nobody is given what has gone"

    asyncio.run(go())
