"""Ray's settings, all of them: attached to the cluster of ``RAY_ADDRESS``, or one of this machine's own."""

from __future__ import annotations

import os
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


def connect(cpus: int) -> Any:  # noqa: ANN401 (Ray's context)
    """Attach to ``RAY_ADDRESS``, or start a cluster with ``cpus`` slots; raises ClusterError saying why it can't."""
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    import ray  # noqa: PLC0415 (a second to import, and reading its settings as it does)

    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            return ray.init(address=address, runtime_env={"env_vars": _THREADS}, **common)
        # A cluster of this process alone, on 127.0.0.1: no token is needed, nor written to HOME.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Its processes inherit these; a runtime_env would start each actor's process anew, in seconds.
        for key, value in _THREADS.items():
            os.environ.setdefault(key, value)
        return ray.init(
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


def disconnect() -> None:
    """Leave the cluster; one that ``connect`` started ends."""
    import ray  # noqa: PLC0415

    ray.shutdown()
