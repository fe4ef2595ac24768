"""The actors page: who works on what, how hard, and how many they are."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pandas as pd
import streamlit as st

from app import charts, formatting, widgets
from app.actor_rows import MOST, SPARK_S, Actor, actors, all_used_s
from app.client import View
from app.services import services
from app.sessions import Exploring
from hzzray.engine.cluster import TOKEN
from hzzray.engine.monitor import NODE, is_actor
from hzzray.runs.compare import peak_rss_bytes
from hzzray.runs.tables import EVENTS, QUEUE, SCALE, USAGE

# Where a Ray cluster's dashboard is unless something else is said.
_USUAL = "http://127.0.0.1:8265"

_ID = re.compile(r"[0-9a-f]{1,64}")
_EVENTS = 200  # rows of what happened that are shown

# Who gives the token that a run's Ray dashboard asks for.
_TOKENS = {
    "none": "It asks for no token.",
    "file": "It asks for a token once: that of this run is in {file}, for the run's user to read.",
    "given": "It asks for a token once: the one that the run was started with (`RAY_AUTH_TOKEN`), "
    "or what `ray get-auth-token` prints.",
}
_ELSEWHERE = (
    "If it asks for a token, its cluster's keeper has it: `RAY_AUTH_TOKEN`, or what `ray get-auth-token` prints."
)


def show(view: View) -> None:
    """Show the actors of a run as they are, or as they were."""
    widgets.wrong(view.trouble(USAGE, SCALE, QUEUE, EVENTS))
    if len(view.usage):
        with widgets.part("The actors"):
            _actors(view)
    else:
        _nobody(view)
    if len(view.queue):
        with widgets.part("The broker"):
            _broker(view)
    session = services().sessions.find(view.run_id)
    if session is not None and session.is_ready and session.trouble is None:
        with widgets.part("The exploring session"):
            _session(session)
    with widgets.part("The pool over time"):
        _over_time(view)
    if len(view.events):
        with widgets.part("What happened"):
            _happened(view)


def _nobody(view: View) -> None:
    with st.container(border=True):
        if view.live:
            widgets.heading(2, ":material/hourglass_top: No actors yet")
            st.caption("They report for the first time some seconds after the run's start.")
        else:
            widgets.heading(2, "No record of actors")
            st.caption(f"Nothing is recorded of this run's actors: its folder has no rows of {USAGE}.")


def _actors(view: View) -> None:
    uses = view.uses
    found = view.once("actors", lambda: actors(view.usage, uses, ended=not view.live))
    workers = [actor for actor in found if is_actor(actor.name)]
    places = [actor for actor in found if not is_actor(actor.name)]
    if view.live:
        _figures(view, workers, places)
    else:
        _figures_of_the_end(view, workers)
    _table(view, workers)
    _dashboard(view)
    _services([actor for actor in places if actor.service])


def _figures(view: View, workers: list[Actor], places: list[Actor]) -> None:
    up = [actor for actor in workers if actor.pid]
    scale = view.scale[-1] if len(view.scale) else None
    with st.container(horizontal=True, gap="small", key="figures"):
        missing = len(workers) - len(up)
        widgets.figure("Actors", f"{len(up)}", f"{missing} pending" if missing else "all up")
        widgets.figure("Nodes", formatting.NONE if scale is None else f"{scale['nodes']}", _busiest(places))
        widgets.figure("CPU of all actors", f"{sum(actor.cpu for actor in workers):.0f} %", "of one core, now")
        events, read = (sum(getattr(actor, name) for actor in workers) for name in ("events_per_s", "bytes_per_s"))
        widgets.figure("Throughput", formatting.quantity(events, "ev/s"), formatting.quantity(read, "B/s"))
        hot = sum(actor.hot for actor in workers)
        of = f"resident, {formatting.quantity(hot, 'B')} of it hot" if hot else "resident, all actors"
        widgets.figure("Memory", formatting.quantity(sum(actor.rss for actor in workers), "B"), of)
        _restarts(workers)
        if scale is not None:
            widgets.figure("In flight", f"{scale['in_flight']} tasks", f"{formatting.number(scale['waiting'])} waiting")


def _busiest(places: list[Actor]) -> str:
    if not places:
        return "no report"
    one = max(places, key=lambda place: place.cpu)
    return f"{formatting.plain(one.service or one.name.removeprefix(NODE), 60)}: CPU {one.cpu:.0f} %"


def _restarts(workers: list[Actor]) -> None:
    restarts, of = sum(actor.restarts for actor in workers), sum(actor.restarts > 0 for actor in workers)
    widgets.figure(
        "Restarts", formatting.number(restarts), f"of {of} actors" if of else "of no actor", bad=restarts > 0
    )


def _figures_of_the_end(view: View, workers: list[Actor]) -> None:
    """Show what the actors of a run took that nobody works on: there is no now."""
    run = view.run() if view.result is not None else None
    with st.container(horizontal=True, gap="small", key="figures"):
        most, nodes = (_most(view, name) for name in ("actors", "nodes"))
        widgets.figure("Actors", formatting.NONE if most is None else f"{most}", "at most, none now")
        widgets.figure("Nodes", formatting.NONE if nodes is None else f"{nodes}", "at most")
        if run is not None:
            cost = run.result.cost
            widgets.figure("CPU of tasks", formatting.seconds(cost.cpu_s), f"in {formatting.seconds(cost.wall_s)}")
            used = all_used_s(view.uses)
            widgets.figure(
                "CPU of workers", formatting.seconds(used),
                f"{formatting.seconds(max(0.0, used - cost.cpu_s))} beside tasks",
                says="All that the workers' processes used. What isn't of tasks is their start and their kernels: "
                "compiled the first time on a machine, loaded later.",
            )  # fmt: skip
            speed = formatting.quantity(cost.bytes_read / cost.wall_s if cost.wall_s else None, "B/s")
            widgets.figure("Throughput", formatting.quantity(cost.events_per_s, "ev/s"), f"{speed} on average")
            widgets.figure("Memory", formatting.quantity(peak_rss_bytes(run), "B"), "of an actor, at most")
        _restarts(workers)


def _most(view: View, field: str) -> int | None:
    return int(view.scale[field].max()) if len(view.scale) else None


def _table(view: View, workers: list[Actor]) -> None:
    """Show a row an actor; of a run that has ended what stays true."""
    dashboard = _address(view)
    rows = [
        {
            "actor": formatting.short(actor.name),
            "state": formatting.short(actor.state) if view.live else "ended",
            "task": formatting.short(actor.sample) if view.live else None,
            "node": formatting.short(actor.node),
            "pid": actor.pid or None,
            "cpu": actor.cpu if actor.pid and view.live else None,
            "spark": actor.spark,
            "memory": actor.rss / 2**20 if actor.pid and view.live else None,
            **({"hot": actor.hot / 2**20} if any(one.hot for one in workers) else {}),
            "events": actor.events_per_s / 1e3 if view.live else None,
            "bytes": actor.bytes_per_s / 1e6 if view.live else None,
            "tasks": actor.tasks,
            "restarts": actor.restarts,
            "dashboard": f"{dashboard}/#/actors/{actor.actor_id}"
            if dashboard and _ID.fullmatch(actor.actor_id)
            else None,
        }
        for actor in workers
    ]
    column = st.column_config
    where = st.container(key="workers")
    where.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height="content" if len(rows) <= 20 else 740,
        placeholder="–",
        column_config={
            "task": column.TextColumn("task", help="The sample that it reads now."),
            "pid": column.NumberColumn("pid", format="%d"),
            "cpu": column.NumberColumn("CPU now [%]", format="%.0f", help="Of one core, over the last second."),
            "spark": column.AreaChartColumn(f"CPU, last {SPARK_S} s", y_min=0, y_max=100, width="medium"),
            "memory": column.NumberColumn("memory [MiB]", format="%.0f"),
            "hot": _hot(),
            "events": column.NumberColumn("kevents/s", format="%.0f", help="Finished tasks of the last seconds."),
            "bytes": column.NumberColumn("MB/s", format="%.1f"),
            "tasks": column.NumberColumn("tasks done"),
            "restarts": column.NumberColumn(
                "restarts", help="Times that its process ended and another took its place."
            ),
            "dashboard": column.LinkColumn("Ray", display_text=":material/open_in_new:", help="In the Ray dashboard."),
        },
    )
    if len(workers) == MOST:
        st.caption(f"The first {MOST} actors.")


def _hot() -> Any:  # noqa: ANN401 (Streamlit keeps the type of its columns to itself)
    return st.column_config.NumberColumn(
        "hot [MiB]", format="%.1f", help="Candidates that an exploring session keeps there, a part of its memory."
    )


def _session(session: Exploring) -> None:
    """Show who keeps the run's candidates hot, and how much memory that takes."""
    rows = [
        {
            "actor": formatting.short(usage.actor),
            "node": formatting.short(usage.node),
            "pid": usage.pid,
            "CPU [s]": usage.user_s + usage.system_s,
            "memory": usage.rss / 2**20,
            "hot": usage.hot / 2**20,
        }
        for usage in session.usages()
    ]
    widgets.heading(2, "Exploring session")
    column = st.column_config
    st.container(key="session").dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height="content" if len(rows) <= 20 else 740,
        column_config={
            "pid": column.NumberColumn("pid", format="%d"),
            "CPU [s]": column.NumberColumn("CPU [s]", format="%.1f", help="Since it began."),
            "memory": column.NumberColumn("memory [MiB]", format="%.0f"),
            "hot": _hot(),
        },
    )


def _address(view: View) -> str | None:
    """Tell where the dashboard of the run's own cluster is; there is none of a run that nobody works on."""
    settings = services().settings
    if not view.live:
        return None
    if settings.dashboard or view.dashboard is None:
        return settings.dashboard or (_USUAL if settings.address else None)
    return view.dashboard.url


def _dashboard(view: View) -> None:
    """Say where the Ray dashboard is, and how to get in."""
    address = _address(view)
    if address is None:
        return
    own = view.dashboard if not services().settings.dashboard else None
    token = services().client.folder(view.run_id).path / TOKEN
    how = _TOKENS[own.token].format(file=formatting.plain(str(token))) if own else _ELSEWHERE
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="dashboard"):
        st.link_button("Ray dashboard", address, icon=":material/open_in_new:")
        st.caption(f"{formatting.plain(address)}. {how}", width="content")


def _services(containers: list[Actor]) -> None:
    """Show what each service uses of what it may, where a run is in containers."""
    if not containers:
        return
    widgets.heading(2, "Services")
    rows = [
        {
            "service": formatting.short(one.service),
            "state": formatting.short(one.state),
            "container": formatting.short(one.node),
            "cpu": None if one.state == "ended" else one.cpu,
            "spark": one.spark,
            "cpus": one.cpus or None,
            "share": one.cpu / 100 / one.cpus if one.cpus and one.state != "ended" else None,
            "used": one.used_s,
            "memory": one.rss / 2**20,
            "limit": one.memory_limit / 2**20 or None,
            "full": one.rss / one.memory_limit if one.memory_limit else None,
        }
        for one in containers
    ]
    column = st.column_config
    st.container(key="services").dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height="content" if len(rows) <= 20 else 740,
        placeholder="–",
        column_config={
            "cpu": column.NumberColumn("CPU now [%]", format="%.0f", help="Of one core, over the last seconds."),
            "spark": column.AreaChartColumn(f"CPU, last {SPARK_S} s", y_min=0, width="medium"),
            "cpus": column.NumberColumn("CPU limit [cores]", format="%.2g", help="None: no limit."),
            "share": column.ProgressColumn("of its limit", format="percent", min_value=0, max_value=1),
            "used": column.NumberColumn(
                "CPU [s]", format="%.1f", help="In this run so far; of a service that has ended, in all its life."
            ),
            "memory": column.NumberColumn("memory [MiB]", format="%.0f"),
            "limit": column.NumberColumn("memory limit [MiB]", format="%.0f", help="None: no limit."),
            "full": column.ProgressColumn("of its limit ", format="percent", min_value=0, max_value=1),
        },
    )
    if any(one.service == "broker" for one in containers):
        st.caption(
            "Of the broker it is what RabbitMQ tells of itself: CPU in user mode, and the memory at which it stops "
            "publishers."
        )


def _broker(view: View) -> None:
    """Show how full the broker's queues are, of a run whose tasks come through one."""
    now = view.queue[-1]
    widgets.heading(2, "Broker")
    if view.live:
        with st.container(horizontal=True, gap="small", key="broker"):
            waiting, retrying = int(now["waiting"]), int(now["retrying"])
            again = f"{formatting.number(retrying)} wait for another try"
            widgets.figure("Queue depth", f"{formatting.number(waiting)} tasks", again)
            widgets.figure("In flight", f"{formatting.number(now['held'])} tasks", "taken, not acknowledged")
            widgets.figure("Oldest in flight", formatting.seconds(now["oldest_s"]), "since it was taken")
            dead = int(now["dead"])
            widgets.figure("Dead letters", formatting.number(dead), "of all runs", bad=dead > 0)
            published, done = (
                formatting.quantity(now["published_per_s"], "/s"),
                formatting.quantity(now["acked_per_s"], "/s"),
            )
            widgets.figure("Acknowledged", done, f"{published} published")
    fields = {"waiting": "waiting", "retrying": "to be tried again", "held": "in flight", "dead": "dead letters"}
    chart = view.once("queue", lambda: charts.steps(view.queue, fields, "messages"))
    widgets.draw(chart, "queue", alt="Messages in the broker's queues over time")


def _over_time(view: View) -> None:
    if len(view.usage):
        widgets.heading(2, "CPU over time, stacked by actor")
        uses = view.uses
        chart = view.once("cpu", lambda: charts.cpu(uses))
        widgets.draw(chart, "cpu", alt="CPU over time, stacked by actor")
        st.caption(
            "Of the workers' processes, all that they do: they start, load or compile their kernels, and work on tasks."
        )
    if not len(view.scale):
        return
    left, right = st.columns(2, gap="medium")
    with left:
        widgets.heading(2, "Actors and nodes")
        fields = {"actors": "actors", "pending": "pending actors", "nodes": "nodes"}
        scale = view.once("scale", lambda: charts.steps(view.scale, fields, "number"))
        widgets.draw(scale, "scale", alt="Actors and nodes over time")
    with right:
        widgets.heading(2, "Tasks")
        fields_of_tasks = {"waiting": "waiting", "in_flight": "in flight"}
        tasks = view.once("tasks", lambda: charts.steps(view.scale, fields_of_tasks, "tasks"))
        widgets.draw(tasks, "tasks", alt="Tasks that wait and that are in flight, over time")


def _happened(view: View) -> None:
    """List what happened, the latest first."""
    widgets.heading(2, "What happened")
    counted = Counter(view.events["kind"].tolist()).most_common(12)
    st.caption(" · ".join(f"{formatting.plain(kind, 40)}: {formatting.number(number)}" for kind, number in counted))
    rows = [
        {
            "after": formatting.seconds(float(row["time_s"])),
            "what": formatting.short(str(row["kind"])),
            "who": formatting.short(str(row["who"])),
            "more": formatting.short(str(row["what"])),
        }
        for row in view.events[::-1][:_EVENTS]
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height="content" if len(rows) <= 10 else 390,
        key="events",
        column_config={"more": st.column_config.TextColumn("more", width="large")},
    )


widgets.live("Actors", show)
