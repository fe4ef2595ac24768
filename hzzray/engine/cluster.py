"""Ray's settings, all of them: attached to the cluster of ``RAY_ADDRESS``, or one of this machine's own."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from hzzray.engine import local_cluster
from hzzray.engine.standing_cluster import claimed
from hzzray.errors import HzzrayError, in_one_line
from hzzray.files import write_whole

log = logging.getLogger(__name__)

NAMESPACE = "hzzray"

#: Files of a run's folder that say where its dashboard is, and hold the token that it asks for.
DASHBOARD, TOKEN = "dashboard.json", "ray-token"

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# A cluster of one machine. Without this all but the dashboard would listen on every interface: Ray turns 127.0.0.1 into
# the machine's address where it is asked for it, except on systems on which it leaves such clusters alone.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# One thread a worker: actors are the parallelism.
_THREADS = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_COMMON: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}

# Tokens that were made here, and that nobody else knows.
_MADE: set[str] = set()

# How long the address of a cluster may take to answer.
_ANSWER_S = 10.0

# How Ray says, in a bare Exception, that its processes took longer to start than it waits for them.
_SLOW = "timed out during startup"


class ClusterError(HzzrayError):
    """Ray can't be started or reached."""


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class Node(NamedTuple):
    """A live node of the cluster: Ray's id of it, what people call it, CPU slots in all and those that are free."""

    id: str
    name: str
    cpus: float
    free: float


def working_nodes() -> list[Node]:
    """List the live nodes that have slots for actors."""
    import ray  # noqa: PLC0415
    from ray._private.state import available_resources_per_node  # noqa: PLC0415 (there is no public way)

    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    rows = [row for row in ray.nodes() if row["Alive"] and row["Resources"].get("CPU", 0) > 0]  # type: ignore[no-untyped-call]
    names = Counter(row["NodeManagerHostname"] for row in rows)
    nodes = []
    for row in rows:
        name, node = row["NodeManagerHostname"], row["NodeID"]
        shown = name if names[name] == 1 else f"{name} ({node[:8]})"  # several on one machine
        nodes.append(Node(node, shown, row["Resources"]["CPU"], free.get(node, {}).get("CPU", 0.0)))
    return nodes


def room() -> float:
    """Tell how many slots the cluster has for actors; infinity where it may grow."""
    from ray._private.worker import global_worker  # noqa: PLC0415 (ray.experimental.internal_kv may have lost its client)

    get = global_worker.gcs_client.internal_kv_get  # type: ignore[attr-defined]
    status = get(b"__autoscaling_status", None)
    version = get(b"extra_usage_tag_autoscaler_version", b"usage_stats")
    return math.inf if has_autoscaler(status, version) else sum(int(node.cpus) for node in working_nodes())


def has_autoscaler(status: bytes | None, version: bytes | None) -> bool:
    """Tell from what Ray's monitor leaves with its head whether there is something that adds nodes.

    Version 2 of the autoscaler leaves its version. Version 1 leaves a ``status`` in JSON; where nothing was configured
    it watches nodes alone, and calls each node's type by its id: ``node_…``.
    """
    if version == b"v2":
        return True
    try:
        types = json.loads(status or b"{}").get("autoscaler_report", {}).get("node_type_mapping") or {}
        return any(not str(kind).startswith("node_") for kind in types.values())
    except (ValueError, AttributeError):
        return False


def actor_id() -> str:
    """Tell Ray's id of the actor that this process is; empty where it is none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return ray.get_runtime_context().get_actor_id() or ""


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """Use Ray for a while: the cluster of ``RAY_ADDRESS``, or one with ``cpus`` slots on this machine.

    Without an address that is the cluster that stays between runs, where there is one with so many slots free (see
    ``standing_cluster``); else, and where the address is ``local``, one that ends with the block. In a process that
    uses Ray already, that stays as it is. Raises ClusterError saying why there is no cluster.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    with ExitStack() as stack:
        if address not in ("", "local"):
            where = f"no Ray cluster at RAY_ADDRESS={address}"
            stack.enter_context(_connected(_driver_settings(address), partial(_attach, address), where))
        elif address or not _joined(stack, cpus):
            where = "a local Ray cluster can't be started"
            start = partial(local_cluster.start, cpus, **_COMMON)
            stack.enter_context(_connected(_LOOPBACK | _THREADS | _token(), start, where))
            stack.callback(local_cluster.await_dashboard)  # Ray ends only what it knows of
        yield


def _joined(stack: ExitStack, cpus: int) -> bool:
    """Use the cluster that stays, until the stack's end, if it has room; tells whether it has."""
    with ExitStack() as tried:
        standing = tried.enter_context(claimed(cpus))
        if standing is None:
            return False
        settings = {} if standing.token is None else {"RAY_AUTH_MODE": "token"}
        if standing.token and "RAY_AUTH_TOKEN" not in os.environ:
            settings["RAY_AUTH_TOKEN"] = standing.token
            _MADE.add(standing.token)
        try:
            attach = partial(_attach, standing.address, {})  # its workers have the keeper's settings
            tried.enter_context(_connected(_LOOPBACK | settings, attach, "the cluster that stays can't be used"))
        except ClusterError as error:
            log.warning("%s: another is started", error)
            return False
        stack.push(tried.pop_all())
        return True


@contextmanager
def _connected(settings: dict[str, str], start: Callable[[], object], where: str) -> Iterator[None]:
    """Use Ray for a while with some settings; raises ClusterError saying ``where`` it could not be, and why."""
    with _environment(_SETTINGS | settings):
        import ray  # noqa: PLC0415 (a second to import, and it reads its settings as it is)

        _reread_settings()
        with _explained(where):
            _patiently(start)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set what isn't set; unset it in the end, so that a later cluster may be another kind."""
    ours = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


def _token() -> dict[str, str]:
    """Make settings that keep other users of this machine out of a local cluster, with nothing written to HOME.

    Who wants to open the dashboard gives a token (``RAY_AUTH_TOKEN``, or ``ray get-auth-token --generate`` once) or
    does without (``RAY_AUTH_MODE=disabled``).
    """
    settings = {"RAY_AUTH_MODE": "token"}
    if "RAY_AUTH_TOKEN_PATH" not in os.environ and not (Path.home() / ".ray" / "auth_token").exists():
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _MADE.add(settings["RAY_AUTH_TOKEN"])
    return settings


def write_dashboard_file(folder: Path) -> list[Path]:
    """Write into a run's folder where the dashboard of this process' cluster is, and how to get in.

    ``dashboard.json`` has its ``url``, and its ``token``: "none" where it asks for none, "file" where it is in
    ``ray-token`` beside, for the run's user alone to read, "given" where the user has it (``RAY_AUTH_TOKEN``, or
    ``ray get-auth-token``). Returns the files that were written; raises OutputError where they can't be.
    """
    import ray  # noqa: PLC0415
    from ray._private.worker import get_dashboard_url  # noqa: PLC0415

    if not ray.is_initialized() or not (url := get_dashboard_url()):  # type: ignore[no-untyped-call]
        return []
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    kind = "none" if os.environ.get("RAY_AUTH_MODE") != "token" else "file" if token in _MADE else "given"
    text = json.dumps({"url": f"http://{url.removeprefix('http://')}", "token": kind})
    written = [write_whole(folder / DASHBOARD, lambda path: path.write_text(text, encoding="utf-8"))]
    if kind == "file":
        written.append(write_whole(folder / TOKEN, lambda path: path.write_text(token, encoding="utf-8"), 0o600))
    return written


def _driver_settings(address: str) -> dict[str, str]:
    """Make settings of a driver of another's cluster, with a token if one is given: Ray alone takes it at times."""
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    # That it answers is known before, so that a few attempts tell whether it takes the token.
    settings = {"RAY_AUTH_MODE": "token" if given else "disabled", "RAY_NUM_REDIS_GET_RETRIES": "3"}
    return settings | (_LOOPBACK if _is_on_loopback_alone(address) else {})


def _is_on_loopback_alone(address: str) -> bool:
    """Tell whether a cluster, host:port, is one of this machine that no other can reach: Ray would look elsewhere."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdecimal():
        return False
    found = (one for rows in psutil.net_if_addrs().values() for one in rows if one.family == socket.AF_INET)
    return not any(_answers(one.address, int(port)) for one in found if not one.address.startswith("127."))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextmanager
def visit(address: str) -> Iterator[None]:
    """Look at another's cluster for a while: ``host:port`` from a node of it, ``ray://host:port`` from anywhere.

    Raises ClusterError saying why there is none.
    """

    def look() -> None:
        import ray  # noqa: PLC0415

        _await_answer(address.removeprefix("ray://"))
        ray.init(address=address, **_COMMON)

    with _connected(_driver_settings(address), look, f"no Ray cluster at {address}"):
        yield


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Say in one line why there is no cluster: Ray's start raises nearly anything, a bare Exception too."""
    try:
        yield
    except Exception as error:
        raise ClusterError(f"{where}: {in_one_line(error)}") from error


def _patiently(start: Callable[[], object]) -> None:
    """Start Ray; once more where it was too slow for its own patience, as it is on a busy machine."""
    import ray  # noqa: PLC0415

    before = set(psutil.Process().children(recursive=True))
    try:
        start()
    except Exception as error:
        if _SLOW not in str(error):
            raise
        log.warning("Ray was slow to start, on a busy machine perhaps: trying once more")
        ray.shutdown()
        _end_rays(set(psutil.Process().children(recursive=True)) - before)
        start()


def _end_rays(processes: Iterable[psutil.Process]) -> None:
    """End what a start that failed has left behind, of which Ray itself lost track."""
    left = []
    for process in processes:
        with suppress(psutil.Error):
            if any(f"{os.sep}ray{os.sep}" in word for word in process.cmdline()[:3]):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=_ANSWER_S)


def _reread_settings() -> None:
    """Make Ray see the settings that it read when it was imported, which may have been before they were set."""
    from ray import _raylet  # noqa: PLC0415
    from ray._private import ray_constants  # noqa: PLC0415

    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1") in ("1", "true")
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]  # of a cluster before


def _attach(address: str, variables: dict[str, str] = _THREADS) -> None:
    """Connect to a cluster that is there: from one of its nodes, or as a job of it, whose workers get ``variables``."""
    import ray  # noqa: PLC0415

    if "://" in address:
        raise ValueError("a run must be on a node of the cluster: start it there, or by ray job submit")
    if address != "auto":
        _await_answer(address)
    # What the job was submitted with goes first: Ray refuses to merge a variable that both set.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    set_by_job = (job.get("runtime_env") or {}).get("env_vars") or {}
    fresh = {key: value for key, value in variables.items() if key not in set_by_job}
    try:
        ray.init(address=address, runtime_env={"env_vars": fresh} if fresh else None, **_COMMON)
    except ConnectionError as error:
        raise ConnectionError("it answers, but lets nobody in without its token (RAY_AUTH_TOKEN)") from error


def _await_answer(address: str) -> None:
    """See whether a gRPC server answers at an address, host:port: Ray itself would try for many minutes."""
    import grpc  # noqa: PLC0415

    if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false"):
        return  # such a server answers only those who have its certificates
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_S)
        except grpc.FutureTimeoutError as error:
            raise ConnectionError(f"no answer within {_ANSWER_S:g} s") from error
