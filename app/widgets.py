"""What several pages have: the choice of a run, its state, what can be done with it, and what to say without one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import streamlit as st

from app import formatting
from app.charts import ZOOM, Chart
from app.client import Phase, View
from app.services import services
from hzzray.engine.ledger import Wish
from hzzray.errors import HzzrayError
from hzzray.physics.analysis import Template

#: How often a page looks at a run that goes on, and at one that doesn't, where not many look [s].
LIVE_S, IDLE_S = 0.75, 3.0

_SEEN = "run seen last"  # of the session: the widget's own value goes with its page
_NAME = 200  # characters of a run's name that an address asks for
_SKETCH = Path(__file__).with_name("sketch.svg")

_Colour = Literal["red", "orange", "yellow", "blue", "green", "violet", "gray", "primary"]


@dataclass(frozen=True, slots=True)
class _Look:
    colour: _Colour
    icon: str
    says: str


LOOKS: dict[Phase, _Look] = {
    "starting": _Look("blue", ":material/hourglass_top:", "Getting ready: planning, starting Ray and the actors."),
    "waiting": _Look("blue", ":material/schedule:", "Its tasks are in the broker's queue, until a bridge takes them."),
    "running": _Look("green", ":material/play_arrow:", "Results come in about once a second."),
    "paused": _Look("orange", ":material/pause:", "What was in flight has ended; nothing new begins."),
    "draining": _Look("orange", ":material/water_drop:", "It ends after what is in flight; it can be resumed."),
    "stopped": _Look("gray", ":material/stop:", "Ended before it was finished; what is merged is kept."),
    "interrupted": _Look("red", ":material/power_off:", "Nobody works on it any more; what is merged is kept."),
    "failed": _Look("red", ":material/error:", "It could not begin."),
    "partial": _Look("orange", ":material/rule:", "Everything was tried; some tasks failed."),
    "complete": _Look("green", ":material/check_circle:", "Every planned task is merged."),
    "unreadable": _Look("red", ":material/broken_image:", "Its result can't be read."),
}


def heading(level: int, text: str) -> None:
    """Begin a page (1), a part of it (2), or a part of that (3): for those, too, who hear a page rather than see it."""
    st.markdown(f"{'#' * level} {text}", anchors=False, width="content")


@contextmanager
def part(what: str) -> Iterator[None]:
    """Show a part of a page. What a run's folder has there may make no sense: that costs this part, and one line.

    Nobody can foresee all that a file may hold: so whatever numbers and tables raise ends here.
    """
    try:
        yield
    except (HzzrayError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError) as error:
        said = f"{type(error).__name__}: {error}" if not isinstance(error, HzzrayError) else str(error)
        wrong([f"{what} can't be shown: {said}"])


def wrong(lines: list[str]) -> None:
    """Say in one line each what can't be read."""
    for line in lines:
        st.warning(formatting.plain(line), icon=":material/broken_image:")


def draw(chart: Chart, key: str, *, alt: str) -> None:
    """Show a chart; one whose specification stays the same is updated in place."""
    with st.container(key=key):
        st.vega_lite_chart(chart.table, chart.spec, width="stretch", key=f"{key} chart", alt=alt)


def draw_mass(chart: Chart, shown: Template) -> None:
    """Show a spectrum. Streamlit takes a zoom back at each update, unless the page asks to know of it."""
    title = formatting.axis(shown.observable, shown.label, shown.unit)
    with st.container(key="mass"):
        st.vega_lite_chart(
            chart.table,
            chart.spec,
            width="stretch",
            key="mass chart",
            alt=f"{title}: stacked simulation, data, and their ratio",
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
        st.warning(formatting.plain(watch.trouble), icon=":material/cloud_off:")


def pick(names: list[str]) -> str | None:
    """Let the viewer choose a run. What the address says is shown; it always says which run that is.

    Without a run in the address it is the one that this viewer saw last, or the newest: that is written into it, so
    that a reload shows the same, whatever runs come. One that isn't there stays in address and list, to be told.
    """
    asked = _asked(names)
    if asked is None:
        return None
    st.session_state["run"] = st.session_state[_SEEN] = asked
    st.selectbox(
        "Run", names if asked in names else [asked, *names], key="run", on_change=_picked,
        label_visibility="collapsed", width=280,
    )  # fmt: skip
    if st.query_params.get("run") != asked:
        st.query_params["run"] = asked
    return asked


def _asked(names: list[str]) -> str | None:
    asked = st.query_params.get("run") or st.session_state.get(_SEEN) or next(iter(names), None)
    return asked and asked[:_NAME]


def show_run(run_id: str) -> None:
    """Show a run from now on, on whatever page."""
    st.query_params["run"] = st.session_state[_SEEN] = run_id


def _picked() -> None:
    show_run(st.session_state["run"])


def nothing(title: str, says: str) -> None:
    """Say what this is, that there is nothing to see of it yet, and what to do about it."""
    with st.container(border=True, horizontal_alignment="center", key="nothing"):
        heading(1, title)
        st.markdown(
            "In 2012 ATLAS saw the **Higgs boson** decay into two Z bosons and these into four leptons: a bump near "
            "125 GeV in the mass of the four. Here ATLAS's Open Data show it again, event by event, while many "
            "processes read them side by side.",
            text_alignment="center",
        )
        st.image(_SKETCH, width=560)
        st.caption("A sketch of what a run will draw: background, signal, and the data.", text_alignment="center")
        st.markdown(says, text_alignment="center")
        if st.button("Launch a run", type="primary", icon=":material/rocket_launch:"):
            st.switch_page("views/launch.py")


def viewer() -> str:
    """Name who looks, among all viewers."""
    name: str = st.session_state.setdefault("viewer", secrets.token_hex(4))
    return name


def live(title: str, page: Callable[[View], None], *, often: bool = False) -> None:
    """Show the page of the chosen run, again and again: often while it goes on, else seldom unless asked to."""
    names = services().client.run_ids()
    if not names and "run" not in st.query_params:
        banner()
        nothing("Watch the Higgs boson appear", "No runs yet. Start one here, or with `hzzray run` in a terminal.")
        _wait_for_the_first()
        return
    interval = services().pace.interval(LIVE_S if often or _goes_on(_asked(names)) else IDLE_S)
    st.fragment(_shown, run_every=interval)(title, page, often=often, interval=interval)


def _goes_on(run_id: str | None) -> bool:
    try:
        return run_id is not None and services().client.view(run_id).live
    except HzzrayError:  # said where it is shown
        return False


def look_at(run_id: str | None) -> View | None:
    """Look at the run that was picked, if any (the last one may just have gone); says so where it isn't there."""
    if run_id is None:
        return None
    try:
        return services().client.view(run_id)
    except HzzrayError:
        unknown(run_id)
        return None


def unknown(run_id: str) -> None:
    """Say that there is no such run, or that its name hides it."""
    if services().client.is_misnamed(run_id):
        st.error(
            f"The folder {formatting.plain(repr(run_id), 80)} is there, but isn't shown: a run's name is of letters, "
            "digits, dots, dashes and underscores, 64 at most, a letter or digit first. Rename the folder.",
            icon=":material/search_off:",
        )
        return
    st.error(
        f"There is no run {formatting.plain(repr(run_id), 80)} here: it was removed, or the address is mistyped. "
        "The list above has those that there are.",
        icon=":material/search_off:",
    )


def _shown(title: str, page: Callable[[View], None], *, often: bool, interval: float) -> None:
    """Show the chosen run as it is now, and again after so long, or all of the page where that isn't right any more."""
    pace = services().pace
    with pace.drawing(viewer(), interval):
        goes_on = _draw(title, page) or often
    if pace.interval(LIVE_S if goes_on else IDLE_S, interval) != interval:
        st.rerun()


def _draw(title: str, page: Callable[[View], None]) -> bool:
    """Show the chosen run, its head too: a fragment may write only into what it made itself. Tells if it goes on."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="head"):
        heading(1, title)
        run_id = pick(services().client.run_ids())
        head = st.container(horizontal=True, vertical_alignment="center", gap="small")
    banner()
    view = look_at(run_id)
    if view is not None:
        with head:
            _say(view)
        if view.wrong is not None:
            wrong([view.wrong])
        page(view)
    return view is not None and view.live


def _say(view: View) -> None:
    """Say in one line what the run is, and offer what can be done with it."""
    badge(view.phase)
    if view.result is not None:
        spec = view.result.spec
        about = (spec.release.title, spec.selection.name, str(view.result.luminosity), view.result.environment)
        st.caption(" · ".join(formatting.plain(text, 60) for text in about), width="content")
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
    can = published or view.has_ledger
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
        st.toast(formatting.plain(str(error)), icon=":material/error:")
    else:
        st.rerun()
