"""A Ray cluster of this machine's own, started leaner and sooner than ``ray.init`` does it by itself."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil

from hzzray.errors import in_one_line

log = logging.getLogger(__name__)

# Partials are small: the object store needs little, and a laptop has other uses for its memory.
_OBJECT_STORE = 128 * 1024**2

# What a cluster of one machine does without: an autoscaler; what reads the logs of all workers all the time, which
# nobody hears (the dashboard reads them itself). And its agent takes any port: at the fixed one, a second cluster of a
# machine tries for seconds, and is left without.
_LEAN: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False, "dashboard_agent_listen_port": 0}

#: What HZZRAY_DASHBOARD says where nobody wants one.
NO_DASHBOARD = "none"

# A dashboard is there a second or two after its cluster, on a busy machine later.
_DASHBOARD_S = 30.0


class _Dashboard:
    """The start of a cluster's dashboard, beside all else of the cluster's: two seconds that Ray would wait for it."""

    def __init__(self) -> None:
        self.is_settled = threading.Event()
        self.is_settled.set()

    def start(self, begin: Callable[[], None], node: Any) -> None:  # noqa: ANN401 (Ray's)
        """Do in a thread what Ray's node does in place."""
        self.is_settled.clear()
        threading.Thread(target=self._start, args=(begin, node), daemon=True).start()

    def _start(self, begin: Callable[[], None], node: Any) -> None:  # noqa: ANN401
        from ray._private.ray_constants import PROCESS_TYPE_DASHBOARD  # noqa: PLC0415

        try:
            begin()
        except Exception as error:  # noqa: BLE001 (Ray raises bare ones)
            log.warning("no Ray dashboard: %s", in_one_line(error))
        finally:
            self.is_settled.set()
        # The system ends the process with the thread that started it.
        for one in node.all_processes.get(PROCESS_TYPE_DASHBOARD, ()):
            one.process.wait()


_dashboard = _Dashboard()


def start(cpus: int, **common: Any) -> None:  # noqa: ANN401 (options of ray.init)
    """Start Ray on loopback alone, with ``cpus`` slots. Its dashboard follows (see ``await_dashboard``), if wanted."""
    global _dashboard  # noqa: PLW0603 (a process has one cluster, as Ray has)
    import ray  # noqa: PLC0415 (a second to import)
    from ray._private import node, parameter  # noqa: PLC0415 (ray.init has no options for these)

    dashboard = _dashboard = _Dashboard()
    begin = node.Node.start_api_server
    is_wanted = os.environ.get("HZZRAY_DASHBOARD") != NO_DASHBOARD

    def beside(node: Any, **how: bool) -> None:  # noqa: ANN401
        if is_wanted:
            dashboard.start(partial(begin, node, **how), node)

    with (
        _replaced(parameter, "RayParams", partial(parameter.RayParams, **_LEAN)),
        _replaced(node.Node, "start_api_server", beside),
    ):
        ray.init(
            address="local",  # one that runs here already is used only when it is asked for
            num_cpus=cpus,
            num_gpus=0,
            object_store_memory=min(_OBJECT_STORE, psutil.virtual_memory().available // 8),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            **common,
        )


def await_dashboard() -> None:
    """Wait until this process' own cluster, if it has one, has its dashboard, or will have none."""
    _dashboard.is_settled.wait(_DASHBOARD_S)


@contextmanager
def _replaced(owner: object, name: str, by: object) -> Iterator[None]:
    """Let something of Ray's be another for a while."""
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)
