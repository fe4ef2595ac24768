"""Worker processes that a cluster which stays has ready: with Ray and what workers import loaded before a run asks."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any

import psutil

from hzzray.errors import in_one_line

log = logging.getLogger(__name__)

_PRELOAD, _MODULE = "RAY_preload_python_modules", "hzzray.engine.worker_modules"

#: What one takes [bytes], and the part of the memory that is there which all of them may take.
_BYTES, _SHARE = 170 * 2**20, 4

_ANSWER_S = 10.0


def preloaded() -> dict[str, str]:
    """Make the setting of Ray's by which worker processes import what they need; a user's own modules stay in it."""
    return {_PRELOAD: ",".join(filter(None, (os.environ.get(_PRELOAD), _MODULE)))}


def wanted(slots: int) -> int:
    """Tell how many are worth having: one a slot and one for the reducer, as far as memory goes."""
    return min(slots + 1, psutil.virtual_memory().available // (_SHARE * _BYTES))


def refill(raylet: psutil.Process, number: int, keep_s: float) -> bool:
    """Start what lacks of so many worker processes without work, for ``keep_s`` seconds; tells whether any did.

    They serve whichever job comes first. There is no public way to ask for them; where Ray refuses, a run starts its
    own, as it would without.
    """
    try:
        lacking = number - len(waiting(raylet))
        if lacking > 0:
            _start(lacking, keep_s)
    except Exception as error:  # noqa: BLE001 (grpc's, psutil's, Ray's: a help, and no more)
        log.warning("no worker processes are kept ready: %s", in_one_line(error))
        return False
    return lacking > 0


def waiting(raylet: psutil.Process) -> list[psutil.Process]:
    """List a node's worker processes that wait for work, or will when they have started."""
    found = []
    for child in raylet.children():
        with suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            # Ray names its processes by what they do; until then they are called by what they were started with.
            if command[:1] == ["ray::IDLE"] or any("default_worker" in word for word in command):
                found.append(child)
    return found


def _start(number: int, keep_s: float) -> None:
    import ray  # noqa: PLC0415 (its settings are in force by now)
    from ray._private.grpc_utils import init_grpc_channel  # noqa: PLC0415
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc  # noqa: PLC0415

    python: Any = common_pb2.Language.PYTHON  # type: ignore[attr-defined]
    ask: Any = node_manager_pb2.PrestartWorkersRequest  # type: ignore[attr-defined]
    request = ask(language=python, num_workers=number, keep_alive_duration_secs=int(keep_s))
    request.runtime_env_info.serialized_runtime_env = "{}"
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = node_manager_pb2_grpc.NodeManagerServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.PrestartWorkers(request, timeout=_ANSWER_S)
