"""Ray's settings, all of them: attached to the cluster of ``RAY_ADDRESS``, or one of this machine's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from hzzray.errors import HzzrayError

NAMESPACE = "hzzray"

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# One thread a worker: actors are the parallelism.
_THREADS = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# Partials are small: the object store needs little, and a laptop has other uses for its memory.
_OBJECT_STORE = 128 * 1024**2


class ClusterError(HzzrayError):
    """Ray can't be started or reached."""


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """Use Ray for a while: the cluster of ``RAY_ADDRESS``, or one with ``cpus`` slots that ends with the block.

    In a process that uses Ray already, that stays as it is. Raises ClusterError saying why there is no cluster.
    """
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    import ray  # noqa: PLC0415 (a second to import, and it reads its settings as it is)

    if ray.is_initialized():
        yield
        return
    _connect(cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(cpus: int) -> None:
    import ray  # noqa: PLC0415

    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": _THREADS}, **common)
            return
        # A cluster of this process alone, on 127.0.0.1: no token is needed, nor written to HOME.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Its processes inherit these; a runtime_env would start each actor's process anew, in seconds.
        for key, value in _THREADS.items():
            os.environ.setdefault(key, value)
        ray.init(
            num_cpus=cpus,
            object_store_memory=min(_OBJECT_STORE, psutil.virtual_memory().available // 8),
            dashboard_host="127.0.0.1",
            include_dashboard=True,
            _node_ip_address="127.0.0.1",
            **common,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
        raise ClusterError(f"{where} can't be reached: {' '.join(str(error).split())}") from error
