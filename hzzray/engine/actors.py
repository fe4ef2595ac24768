"""Ray's actors of a run: what they are called, how they are started, found and killed, what their errors mean."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

from hzzray.engine.cluster import ClusterError, room
from hzzray.engine.faults import Fault, Trouble
from hzzray.engine.instructions import NoAnswer
from hzzray.engine.ledger import FencedError, Ledger
from hzzray.engine.reducer import Reducer, ReducerName
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, HzzrayError, MissingFileError
from hzzray.messages import RunSpec
from hzzray.retry import waits

Handle = Any
"""An actor's handle: Ray types its methods' arguments, not what awaits them."""

Starter = Callable[..., Handle]
"""Starts a worker actor of a name, the first argument; on none of the nodes whose ids are the second one, if given."""

#: What questions about the cluster end in while its head is away.
AWAY = (RayError, RuntimeError, ConnectionError)

# What the reducer answers from a thread of its own, whatever it commits meanwhile.
_READS = ("progress", "snapshot", "newer", "report", "leave", "live", "wish", "is_unseen")

# The label by which Ray knows its nodes.
_NODE_ID = "ray.io/node-id"


def actor_class(plain: type, group: str, methods: Sequence[str] = ()) -> Any:  # noqa: ANN401 (Ray's own says less)
    """Wrap a plain class, with a thread that answers calls of a group while the others work.

    ``methods`` are of the group whoever calls them: a client from outside the cluster can't say so.
    """
    remote: Any = ray.remote
    for name in methods:
        ray.method(concurrency_group=group)(getattr(plain, name))
    return remote(concurrency_groups={group: 1})(plain)


def worker_starter(
    spec: RunSpec, sources: tuple[str, ...], cache: Path | None, places: tuple[str, ...] = ()
) -> Starter:
    """Make what starts a worker actor. It is restarted when it dies, with nothing lost but what it was at.

    It may use analyses in ``places``, beside those that its node's environment allows.
    """
    actor = actor_class(Worker, "monitor")

    def start(name: str, avoid: Collection[str] = ()) -> Handle:
        return actor.options(**worker_options(avoid)).remote(spec, sources, name, cache, places)

    return start


def worker_options(avoid: Collection[str] = ()) -> dict[str, Any]:
    """Make the options that worker actors are started with, on none of some nodes."""
    options: dict[str, Any] = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": 0}
    if avoid:
        elsewhere = NotIn(*avoid)  # type: ignore[no-untyped-call]
        options["scheduling_strategy"] = NodeLabelSchedulingStrategy({_NODE_ID: elsewhere})
    return options


def start_reducer(ledger: Ledger) -> Handle:
    """Start the reducer of a run on this node, where its ledger is; one that is there already is ended.

    Raises ClusterError when the earlier one won't go.
    """
    name = str(ReducerName.of(ledger))
    for wait in itertools.islice(waits(0.05, 1.0), 20):
        with contextlib.suppress(ValueError):  # there is none of that name
            ray.kill(ray.get_actor(name))
        with contextlib.suppress(ValueError):  # the name is still taken
            return _reducer(ledger)
        time.sleep(wait)
    raise ClusterError(f"an earlier {name} of this cluster won't end")


def join_reducer(ledger: Ledger) -> Handle:
    """Find the reducer that another process of this cluster has started for a run, or start it on this node."""
    return _reducer(ledger, get_if_exists=True)


async def reload_reducer(ledger: Ledger) -> None:
    """Let the reducer of a run, if there is one, take note of what was planned or forgiven in its ledger.

    One that dies meanwhile does so as it begins again.
    """
    try:
        await ray.get_actor(str(ReducerName.of(ledger))).reload.remote()
    except (ValueError, RayActorError):
        return


def _reducer(ledger: Ledger, *, get_if_exists: bool = False) -> Handle:
    """Start a reducer: it waits for the disk more than it computes, and so takes no CPU slot."""
    node = ray.get_runtime_context().get_node_id()
    actor = actor_class(Reducer, "read", _READS).options(
        name=str(ReducerName.of(ledger)),
        get_if_exists=get_if_exists,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return actor.remote(ledger.path)


def end(actor: Handle) -> None:
    """Kill an actor for good."""
    ray.kill(actor)


def restart(actor: Handle) -> None:
    """Kill an actor's process; Ray starts it anew."""
    ray.kill(actor, no_restart=False)


def restarts(actor: Handle) -> int:
    """Tell how often Ray has restarted an actor."""
    return int(_known(actor).get("NumRestarts", 0))


def node_of(actor: Handle) -> str:
    """Tell Ray's id of the node that an actor is on; empty where it is on none."""
    return str(_known(actor).get("Address", {}).get("NodeID", ""))


def waiting(but: Collection[Handle]) -> set[str]:
    """Tell Ray's ids of the actors that wait for slots in a cluster that can't grow, without some."""
    from ray._private.state import actors  # noqa: PLC0415 (as below)

    if math.isinf(room()):
        return set()
    rows = actors(actor_state_name="PENDING_CREATION")
    # One that has a port has a process, which begins.
    return {one for one, row in rows.items() if not row["Address"]["Port"]} - {one._actor_id.hex() for one in but}  # noqa: SLF001


def _known(actor: Handle) -> dict[str, Any]:
    """Tell what the cluster's head knows of an actor."""
    from ray._private.state import actors  # noqa: PLC0415 (the public way asks the dashboard, which needn't be there)

    found: dict[str, Any] = actors(actor._actor_id.hex())  # noqa: SLF001
    return found


# What errors mean.


def fault_of(error: Exception) -> Fault:
    """Tell what went wrong with a call of a worker, wherever: in the task itself, or on the way to it.

    ``error`` is what the call raised, or what a worker returned in the place of a partial.
    """
    cause = _cause(error)
    match cause:
        case _ if _is_fall(error):
            out_of_memory = isinstance(cause, OutOfMemoryError)
            return Fault("out of memory" if out_of_memory else "death", _first_line(cause))
        case MissingFileError():
            return Fault("missing", str(cause))
        case DataError():
            return Fault("data", str(cause))
        case MemoryError():
            return Fault("memory", _first_line(cause))
        case HzzrayError():
            return Fault("passing", str(cause))
        case _:
            return Fault("passing", _first_line(cause))


def no_answer(worker: str, error: Exception, before: int, now: int) -> NoAnswer:
    """Tell what it means that a worker that was looked for raised an error, or was silent (TimeoutError).

    ``before`` and ``now`` are how often it had been restarted.
    """
    return NoAnswer(
        worker,
        silent=isinstance(error, TimeoutError),
        restarting=isinstance(error, ActorUnavailableError),
        is_dead=isinstance(error, ActorDiedError),
        reason=_reason(error),
        before=before,
        restarts=now,
    )


def trouble_of(error: RayError) -> Trouble:
    """Tell what went wrong with a call of the reducer."""
    match error:
        case RayTaskError():
            return Trouble("fenced" if isinstance(error.cause, FencedError) else "refused", _first_line(error.cause))
        case ActorDiedError():
            return Trouble("unborn" if error.actor_init_failed else "ended", _reason(error))
        case RayActorError():
            return Trouble("away", _first_line(error))
        case _:
            return Trouble("other", _first_line(error))


def own_error(error: Exception) -> Exception:
    """Tell what to raise in the place of an error that Ray has wrapped around one of ours."""
    cause = _cause(error)
    return cause if isinstance(cause, HzzrayError) else error


def _cause(error: Exception) -> Exception:
    return error.cause if isinstance(error, RayTaskError) else error


def _is_fall(error: Exception) -> bool:
    """Whether it was the actor that failed, rather than its task."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, RayActorError | OutOfMemoryError)
    return isinstance(error, RayError)


def _reason(error: Exception) -> str:
    """Say in one line why an actor died: in its constructor, what that raised."""
    cause = _cause(error)
    if isinstance(cause, RayActorError) and cause.actor_init_failed:
        return str(cause).strip().splitlines()[-1]
    return _first_line(cause)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
