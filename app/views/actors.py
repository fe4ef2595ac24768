"""The actors page: who works on what, how hard, and how many they are."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import charts, parts, words
from app.actors import SPARK_S, Actor, actors
from app.client import View
from app.services import services
from hzzray.engine.monitor import NODE, CpuUse, cpu_percent, is_actor


def show(view: View) -> None:
    """Show the actors of a run as they are."""
    if not len(view.usage):
        _nobody(view)
        return
    uses = view.once("uses", lambda: cpu_percent(view.usage))
    found = view.once("actors", lambda: actors(view.usage, uses))
    workers = [actor for actor in found if is_actor(actor.name)]
    places = [actor for actor in found if not is_actor(actor.name)]
    _figures(view, workers, places)
    _table(workers)
    _services([actor for actor in places if actor.service])
    _broker(view)
    _over_time(view, uses)


def _nobody(view: View) -> None:
    with st.container(border=True):
        if view.live:
            st.markdown("##### :material/hourglass_top: No actors yet", anchors=False)
            st.caption("They report for the first time some seconds after the run's start.")
        else:
            st.markdown("##### This run had no actors", anchors=False)
            st.caption("The serial engine works in one process and keeps no record of it.")


def _figures(view: View, workers: list[Actor], places: list[Actor]) -> None:
    up = [actor for actor in workers if actor.pid]
    scale = view.scale[-1] if len(view.scale) else None
    with st.container(horizontal=True, gap="small", key="figures"):
        missing = len(workers) - len(up)
        parts.figure("Actors", f"{len(up)}", f"{missing} pending" if missing else "all up")
        parts.figure("Nodes", words.NONE if scale is None else f"{scale['nodes']}", _busiest(places))
        parts.figure("CPU of all actors", f"{sum(actor.cpu for actor in workers):.0f} %", "of one core, now")
        events, read = (sum(getattr(actor, name) for actor in workers) for name in ("events_per_s", "bytes_per_s"))
        parts.figure("Throughput", words.quantity(events, "events/s"), words.quantity(read, "B/s"))
        parts.figure("Memory", words.quantity(sum(actor.rss for actor in workers), "B"), "resident, all actors")
        if scale is not None:
            parts.figure("In flight", f"{scale['in_flight']} tasks", f"{words.number(scale['waiting'])} waiting")


def _busiest(places: list[Actor]) -> str:
    if not places:
        return "no report"
    one = max(places, key=lambda place: place.cpu)
    return f"{words.plain(one.service or one.name.removeprefix(NODE))}: CPU {one.cpu:.0f} %"


def _table(workers: list[Actor]) -> None:
    dashboard = services().settings.dashboard
    rows = [
        {
            "actor": actor.name,
            "state": actor.state,
            "task": actor.sample,
            "node": actor.node,
            "pid": actor.pid or None,
            "cpu": actor.cpu if actor.pid else None,
            "spark": actor.spark,
            "memory": actor.rss / 2**20 if actor.pid else None,
            "events": actor.events_per_s / 1e3,
            "bytes": actor.bytes_per_s / 1e6,
            "tasks": actor.tasks,
            "dashboard": f"{dashboard}/#/actors/{actor.actor_id}" if actor.actor_id else None,
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
            "events": column.NumberColumn("kevents/s", format="%.0f", help="Finished tasks of the last seconds."),
            "bytes": column.NumberColumn("MB/s", format="%.1f"),
            "tasks": column.NumberColumn("tasks done"),
            "dashboard": column.LinkColumn("Ray", display_text=":material/open_in_new:", help="In the Ray dashboard."),
        },
    )


def _services(containers: list[Actor]) -> None:
    """Show what each service uses of what it may, where a run is in containers."""
    if not containers:
        return
    st.markdown("##### Services", anchors=False)
    rows = [
        {
            "service": one.service,
            "state": one.state,
            "container": one.node,
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
    if not len(view.queue):
        return
    now = view.queue[-1]
    st.markdown("##### Broker", anchors=False)
    with st.container(horizontal=True, gap="small", key="broker"):
        waiting, retrying = int(now["waiting"]), int(now["retrying"])
        parts.figure("Queue depth", f"{words.number(waiting)} tasks", f"{words.number(retrying)} wait for another try")
        parts.figure("In flight", f"{words.number(now['held'])} tasks", "taken, not acknowledged")
        parts.figure("Oldest in flight", words.seconds(now["oldest_s"]), "since it was taken")
        dead = int(now["dead"])
        parts.figure("Dead letters", words.number(dead), "of all runs", bad=dead > 0)
        published, done = words.quantity(now["published_per_s"], "/s"), words.quantity(now["acked_per_s"], "/s")
        parts.figure("Acknowledged", done, f"{published} published")
    fields = {"waiting": "waiting", "retrying": "to be tried again", "held": "in flight", "dead": "dead letters"}
    chart = view.once("queue", lambda: charts.steps(view.queue, fields, "messages"))
    parts.draw(chart, "queue", alt="Messages in the broker's queues over time")


def _over_time(view: View, uses: dict[str, CpuUse]) -> None:
    st.markdown("##### CPU over time, stacked by actor", anchors=False)
    parts.draw(view.once("cpu", lambda: charts.cpu(uses)), "cpu", alt="CPU over time, stacked by actor")
    if not len(view.scale):
        return
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("##### Actors and nodes", anchors=False)
        fields = {"actors": "actors", "pending": "pending actors", "nodes": "nodes"}
        scale = view.once("scale", lambda: charts.steps(view.scale, fields, "number"))
        parts.draw(scale, "scale", alt="Actors and nodes over time")
    with right:
        st.markdown("##### Tasks", anchors=False)
        fields_of_tasks = {"waiting": "waiting", "in_flight": "in flight"}
        tasks = view.once("tasks", lambda: charts.steps(view.scale, fields_of_tasks, "tasks"))
        parts.draw(tasks, "tasks", alt="Tasks that wait and that are in flight, over time")


parts.live(show)
