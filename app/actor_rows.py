"""What a run's actors do now, in one row each, from the rows of ``cpu.csv``. No Streamlit here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.charts import binned, in_order
from hzzray.engine.monitor import is_actor, service_of
from hzzray.runs.tables import CpuUse, Rows

#: What a rate is taken over: tasks count when they end, and take about so long [s].
RATE_S = 5.0

#: So many actors have a row, at the most.
MOST = 1000

#: What a sparkline shows: so many seconds, in bins of one.
SPARK_S = 60


@dataclass(frozen=True, eq=False, slots=True)
class Actor:
    """An actor, a machine or a service's container.

    ``cpu`` is per cent of one core now, ``spark`` over the last minute, ``used_s`` seconds of CPU in the run. ``rss``
    and ``memory_limit`` are bytes, ``cpus`` cores; a limit of 0 is none. ``hot`` are those bytes of ``rss`` that an
    exploring session's candidates take.
    """

    name: str
    node: str
    pid: int
    state: str
    sample: str
    events_per_s: float
    bytes_per_s: float
    cpu: float
    spark: NDArray[np.float64]
    rss: int
    tasks: int
    restarts: int
    actor_id: str
    used_s: float
    cpus: float
    memory_limit: int
    hot: int

    @property
    def service(self) -> str:
        """The service that it is a container of; empty where it is none."""
        return service_of(self.name)


def actors(rows: Rows, uses: dict[str, CpuUse], *, ended: bool = False) -> list[Actor]:
    """Put each actor into one row: those that the last report knows or, of a run that has ``ended``, all there were.

    ``uses`` is ``cpu_percent(rows)``.
    """
    if not len(rows):
        return []
    now = float(rows["time_s"][-1])
    last = (_last_of_each(rows) if ended else rows[rows["time_s"] == now])[:MOST]
    return [_actor(row, rows[rows["actor"] == row["actor"]], uses.get(str(row["actor"])), now) for row in _sorted(last)]


def _last_of_each(rows: Rows) -> Rows:
    _, first = np.unique(rows["actor"][::-1], return_index=True)
    return rows[::-1][first]


def all_used_s(uses: dict[str, CpuUse]) -> float:
    """Tell how many seconds of CPU all actors used together."""
    return sum(_used_s(use) for name, use in uses.items() if is_actor(name))


def _used_s(use: CpuUse | None) -> float:
    return float(np.diff(use.edges) @ use.percent / 100) if use is not None else 0.0


def _sorted(rows: Rows) -> list[np.void]:
    by_name = {str(row["actor"]): row for row in rows}
    workers = [name for name in by_name if is_actor(name)]
    return [by_name[name] for name in [*in_order(workers), *in_order(by_name.keys() - set(workers))]]


def _actor(row: np.void, own: Rows, use: CpuUse | None, now: float) -> Actor:
    known = own[own["actor_id"] != ""]
    return Actor(
        name=str(row["actor"]),
        node=str(row["node"]),
        pid=int(row["pid"]),
        state=str(row["state"]),
        sample=str(row["sample"]),
        events_per_s=_rate(own, "events", now),
        bytes_per_s=_rate(own, "bytes_read", now),
        cpu=_cpu(row, use, now),
        spark=_spark(use, now),
        rss=int(row["rss_bytes"]),
        tasks=int(_grown(own["tasks"]).sum()),
        restarts=max(0, len(set(own["pid"][own["pid"] > 0].tolist())) - 1),
        actor_id=str(known["actor_id"][-1]) if len(known) else "",
        used_s=_used_s(use),
        cpus=float(row["cpu_limit"]),
        memory_limit=int(row["memory_limit_bytes"]),
        hot=int(row["hot_bytes"]),
    )


def _cpu(row: np.void, use: CpuUse | None, now: float) -> float:
    """Tell how busy an actor is now; a container or a machine over some seconds, as not all tell every second."""
    if use is None or not row["pid"] or row["state"] == "ended":
        return 0.0
    return float(use.percent[-1] if is_actor(str(row["actor"])) else binned(use, np.array([now - RATE_S, now]))[0])


def _rate(own: Rows, field: str, now: float) -> float:
    """Growth of a counter over the last seconds."""
    late = own[own["time_s"] >= now - RATE_S]
    span = float(late["time_s"][-1] - late["time_s"][0]) if len(late) else 0.0  # it may have ended long ago
    return float(_grown(late[field])[1:].sum()) / span if span else 0.0


def _grown(counter: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell how much a counter had grown at each row since the one before; one that fell began anew."""
    steps = np.diff(counter, prepend=0)
    return np.where(steps < 0, counter, steps)


def _spark(use: CpuUse | None, now: float) -> NDArray[np.float64]:
    if use is None:
        return np.zeros(SPARK_S)
    return binned(use, np.linspace(now - SPARK_S, now, SPARK_S + 1)).round()
