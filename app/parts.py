"""What several pages have: the choice of a run, its state, what can be done with it, and what to say without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import words
from app.charts import ZOOM, Chart
from app.client import LIVE, Phase, View
from app.services import services
from hzzray.engine.ledger import Wish
from hzzray.errors import HzzrayError

#: How often a page looks at a run that goes on, and at one that doesn't [s].
LIVE_S, IDLE_S = 0.75, 3.0

_Colour = Literal["red", "orange", "yellow", "blue", "green", "violet", "gray", "primary"]


@dataclass(frozen=True, slots=True)
class _Look:
    colour: _Colour
    icon: str
    says: str


LOOKS: dict[Phase, _Look] = {
    "starting": _Look("blue", ":material/hourglass_top:", "Getting ready: planning, starting Ray and the actors."),
    "running": _Look("green", ":material/play_arrow:", "Results come in about once a second."),
    "paused": _Look("orange", ":material/pause:", "What was in flight has ended; nothing new begins."),
    "draining": _Look("orange", ":material/water_drop:", "It ends after what is in flight; it can be resumed."),
    "stopped": _Look("gray", ":material/stop:", "Ended before it was finished; what is merged is kept."),
    "interrupted": _Look("red", ":material/power_off:", "Nobody works on it any more; what is merged is kept."),
    "failed": _Look("red", ":material/error:", "It could not begin."),
    "partial": _Look("orange", ":material/rule:", "Everything was tried; some tasks failed."),
    "complete": _Look("green", ":material/check_circle:", "Every planned task is merged."),
}


def draw(chart: Chart, key: str, *, alt: str) -> None:
    """Show a chart; one whose specification stays the same is updated in place."""
    with st.container(key=key):
        st.vega_lite_chart(chart.rows, chart.spec, width="stretch", key=f"{key} chart", alt=alt)


def draw_mass(chart: Chart) -> None:
    """Show the mass spectrum. Streamlit takes a zoom back at each update, unless the page asks to know of it."""
    with st.container(key="mass"):
        st.vega_lite_chart(
            chart.rows,
            chart.spec,
            width="stretch",
            key="mass chart",
            alt="Four-lepton mass: stacked simulation, data, and their ratio",
            on_select="rerun",
            selection_mode=[ZOOM],
        )


def figure(
    label: str, value: str, below: str, *, trend: list[float] | None = None, bad: bool = False, says: str | None = None
) -> None:
    """Show a number of a run, what belongs to it below, and how it came about."""
    st.metric(
        label,
        value,
        below,
        delta_color="red" if bad else "off",
        delta_arrow="off",
        border=True,
        height="stretch",
        chart_data=trend,
        chart_type="area",
        help=says,
    )


def badge(phase: Phase) -> None:
    """Show a run's state."""
    look = LOOKS[phase]
    with st.container(key="phase", width="content"):
        st.badge(phase, icon=look.icon, color=look.colour, help=look.says)


def banner() -> None:
    """Say what is wrong with the cluster that is watched, if anything."""
    watch = services().watch
    if watch is not None and watch.trouble:
        st.warning(words.plain(watch.trouble), icon=":material/cloud_off:")


def pick() -> str | None:
    """Let the viewer choose a run; the choice is in the address, and goes along from page to page."""
    client = services().client
    names = client.run_ids()
    if not names:
        return None
    if st.session_state.get("run") not in (None, *names):
        del st.session_state["run"]
    return st.selectbox("Run", names, key="run", bind="query-params", label_visibility="collapsed", width=280)


def nothing(title: str, says: str) -> None:
    """Say that there is nothing to see yet, and what to do about it."""
    with st.container(border=True, horizontal_alignment="center", key="nothing"):
        st.space("small")
        st.markdown("## :material/stacked_bar_chart:", text_alignment="center", anchors=False)
        st.markdown(f"#### {title}", text_alignment="center", anchors=False)
        st.markdown(says, text_alignment="center")
        if st.button("Launch a run", type="primary", icon=":material/rocket_launch:"):
            st.switch_page("views/launch.py")
        st.space("small")


def live(page: Callable[[View], None]) -> None:
    """Show the page of the chosen run, again and again: often while it goes on, seldom when it doesn't."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="head"):
        run_id = pick()
        head = st.container(horizontal=True, vertical_alignment="center", gap="small")
    if run_id is None:
        banner()
        nothing("No runs yet", "Start one here, or with `hzzray run` in a terminal: it appears by itself.")
        _wait_for_the_first()
        return
    try:
        phase = services().client.view(run_id).phase
    except HzzrayError as error:
        st.error(words.plain(str(error)))
        return
    every = LIVE_S if phase in LIVE else IDLE_S
    st.fragment(_shown, run_every=every)(run_id, phase, page, head)


def _shown(run_id: str, was: Phase, page: Callable[[View], None], head: DeltaGenerator) -> None:
    """Show a run as it is now."""
    banner()
    try:
        view = services().client.view(run_id)
    except HzzrayError as error:  # its folder is gone, or what is in it can't be read
        st.error(words.plain(str(error)))
        return
    with head:
        _say(view)
    page(view)
    if view.live != (was in LIVE):
        st.rerun()  # the whole page: from now on it is looked at more often, or less


def _say(view: View) -> None:
    """Say in one line what the run is, and offer what can be done with it."""
    badge(view.phase)
    if view.result is not None:
        spec = view.result.spec
        about = (spec.release.title, spec.selection.name, str(view.result.luminosity), view.result.environment)
        st.caption(" · ".join(about), width="content")
    st.space("stretch")
    controls(view)


@st.fragment(run_every=IDLE_S)
def _wait_for_the_first() -> None:
    if services().client.run_ids():
        st.rerun()


def controls(view: View) -> None:
    """Offer what can be done with a run in its state."""
    with st.container(horizontal=True, gap="small", width="content"):
        if view.phase == "running":
            _wish("Pause", ":material/pause:", view, "pause")
        if view.phase == "paused":
            _wish("Resume", ":material/play_arrow:", view, "run")
        if view.phase in ("running", "paused"):
            _wish("Drain", ":material/water_drop:", view, "drain", "End after what is in flight. It can be resumed.")
            _wish("Cancel", ":material/close:", view, "cancel", "End at once. It can be resumed.")
        if view.phase in ("stopped", "interrupted", "partial"):
            _go_on(view)


def _go_on(view: View) -> None:
    """Offer to have the rest of a run done."""
    failed = view.phase == "partial"
    published = services().settings.broker is not None and len(view.queue) > 0
    can = published or (services().client.folder(view.run_id) / "ledger.db").exists()
    says = None if can else "Its ledger is not in this folder of runs: resume it where it ran."
    label = "Try what failed again" if failed else "Resume"
    if st.button(label, icon=":material/replay:", key=f"replay-{view.run_id}", disabled=not can, help=says):
        attempt(lambda: services().launcher.go_on(view.run_id, failed=failed, published=published))


def _wish(label: str, icon: str, view: View, wish: Wish, says: str | None = None) -> None:
    if st.button(label, icon=icon, key=f"{wish}-{view.run_id}", help=says):
        attempt(lambda: services().wish(view.run_id, wish))


def attempt(deed: Callable[[], object]) -> None:
    """Do something, or say in one line why it can't be done; then show how things are now."""
    try:
        deed()
    except HzzrayError as error:
        st.toast(words.plain(str(error)), icon=":material/error:")
    else:
        st.rerun()
