"""The explore page: move a cut, and see what it does."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app import charts, explore_charts, formatting, widgets
from app.explore_charts import Slider, Tuning
from app.explore_process import About, Question, RecutResult
from app.services import services
from app.sessions import Exploring
from hzzray.engine.explore_messages import Candidate
from hzzray.errors import HzzrayError, UsageError
from hzzray.physics.analysis import Bound, Cut
from hzzray.physics.selection import rows_with
from hzzray.runs.request import bound_of, bound_text
from hzzray.runs.result import Result
from hzzray.runs.run import new_run_id

# How often the page looks at a session that loads, and at one of which a part is lost [s].
_LOADING_S, _HEALING_S = 0.5, 1.0

# What goes on before the first of a run's events is in memory, by who answers.
_STARTS = {
    "ray": "Ray, its workers and their kernels start; nothing is read yet.",
    "serial": "A process and its kernels start; nothing is read yet.",
}

_CUTS = "cut"  # in the address
_ADDRESSED = "run whose cuts the address has"  # of the session
_MOST_PLOTS = 24


def main() -> None:
    """Let the viewer choose a run; show its session, or offer to start one."""
    names = services().client.run_ids()
    if not names and "run" not in st.query_params:
        widgets.nothing("Explore", "No runs yet. Start one here, or with `hzzray run` in a terminal.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="head"):
        widgets.heading(1, "Explore")
        picked = widgets.pick(names)
        head = st.container(horizontal=True, vertical_alignment="center", gap="small")
    view = widgets.look_at(picked)
    if view is None:
        return
    run_id = view.run_id
    session = services().sessions.find(run_id)
    if session is not None and session.trouble is None:
        with head:
            widgets.badge(view.phase)
            st.space("stretch")
            if session.is_ready and st.button("End the session", icon=":material/stop:", help="For all its viewers."):
                services().sessions.end(run_id)
                st.rerun()
        if session.is_ready:
            _explore(session)
        else:
            st.fragment(_loading, run_every=_LOADING_S)(session)
        return
    if session is not None:
        widgets.wrong([f"The session has ended: {session.trouble}."])
    _start(run_id, has_ledger=view.has_ledger)


def _start(run_id: str, *, has_ledger: bool) -> None:
    """Say what a session is, and start it."""
    with st.container(border=True):
        widgets.heading(2, ":material/tune: Move a cut, and see it answer at once")
        st.markdown(
            "A session reads the run's files once and keeps what it measured in memory. From then on cuts, observables "
            "and bins change while you drag, with the exact numbers that a run of its own would give."
        )
        if not has_ledger:
            st.caption("Its ledger is not in this folder of runs: explore it where it ran.")
        if st.button("Start exploring", type="primary", icon=":material/play_arrow:", disabled=not has_ledger):
            widgets.attempt(lambda: services().sessions.begin(services().client.folder(run_id).path))
        st.caption("All viewers of the run share it. It ends by itself when nobody has asked anything for 15 min.")


def _loading(session: Exploring) -> None:
    """Show how far a session is."""
    if session.is_ready or session.trouble is not None:
        st.rerun()
    try:
        part = session.loaded()
    except HzzrayError:
        st.rerun()
    starts = session.about is None or not part
    says = "Reading the run's files" if part < 1 else "Looking at all variables"
    with st.container(border=True, key="loading"):
        widgets.heading(2, f":material/hourglass_top: {'Starting' if starts else says}")
        st.progress(
            part,
            _STARTS[services().settings.engine] if starts else f"{formatting.percent(part)} of the run is in memory",
        )
        took = formatting.seconds(time.monotonic() - session.begun)
        first = " The first time kernels are compiled for this machine: that takes a minute or two." if starts else ""
        st.caption(f"For {took} so far.{first}")


# What the viewer has moved, kept over pages.


def _tuning(session: Exploring) -> Tuning:
    """Tell what this viewer has changed, and have the address say it.

    At first it is what the address says, where that isn't of the run that was looked at before; and again where the
    viewer goes back to an earlier address.
    """
    key = f"tuning-{session.run_id}"
    known: Tuning = st.session_state.get(key, Tuning())
    is_first = key not in st.session_state and st.session_state.get(_ADDRESSED, session.run_id) == session.run_id
    if is_first:
        known = Tuning(_addressed(session))
    elif _goes_back():
        known = known.put(_addressed(session), time.monotonic())
    _change(session, known)
    return known


def _goes_back() -> bool:
    """Tell whether the page is shown as its viewer went back or forth in the browser's history."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def _addressed(session: Exploring) -> tuple[Bound, ...]:
    """Read the cuts of the address; says which make no sense."""
    bounds, wrong = [], []
    for text in st.query_params.get_all(_CUTS)[:100]:
        try:
            bound = bound_of(text[:200])
        except UsageError as error:
            wrong.append(str(error))
            continue
        if bound.variable in session.sliders:
            bounds.append(bound)
        else:
            wrong.append(f"there is no variable {bound.variable!r} to cut on")
    widgets.wrong(wrong)
    return tuple({bound.variable: bound for bound in bounds}.values())


def _change(session: Exploring, tuning: Tuning) -> None:
    """Keep what this viewer has changed, in the address too."""
    st.session_state[f"tuning-{session.run_id}"] = tuning
    st.session_state[_ADDRESSED] = session.run_id
    texts = [bound_text(bound) for bound in tuning.cuts]
    if st.query_params.get_all(_CUTS) != texts:
        st.query_params[_CUTS] = texts


def _own(session: Exploring) -> dict[str, Bound]:
    assert session.about is not None  # noqa: S101 (it is there before sliders are)
    return explore_charts.bounds(session.about.spec.selection.cuts)


def _fixed(session: Exploring, variable: str) -> list[str]:
    """Name the rows that a variable is cut on in, where it can't be moved as there are several."""
    assert session.about is not None  # noqa: S101 (it is there before sliders are)
    rows = rows_with(variable, session.about.spec.selection.cuts)
    return rows if len(rows) > 1 else []


def _move(session: Exploring, bound: Bound) -> None:
    _change(session, _tuning(session).move(bound, _own(session), time.monotonic()))


def _moved(session: Exploring, slider: Slider) -> None:
    """Take a slider's ends for the cut's bounds."""
    _move(session, slider.bound(st.session_state[_key(session, slider)]))


def _switched(session: Exploring, slider: Slider) -> None:
    """Switch a cut off, or on again as the run has it."""
    on = st.session_state[f"on-{_key(session, slider)}"]
    own = _own(session).get(slider.variable)
    last = st.session_state.get(f"last-{_key(session, slider)}")
    bound = (last or own) if on else None
    _move(session, bound or Bound(slider.variable))


def _added(session: Exploring) -> None:
    """Show a slider of one more variable."""
    name = st.session_state["another"]
    if name is not None:
        st.session_state.setdefault(f"added-{session.run_id}", []).append(name)
        st.session_state["another"] = None


def _undo(session: Exploring) -> None:
    _change(session, _tuning(session).undo())


def _reset(session: Exploring) -> None:
    st.session_state.pop(f"added-{session.run_id}", None)
    _change(session, _tuning(session).put((), time.monotonic()))


def _key(session: Exploring, slider: Slider) -> str:
    return f"slider-{session.run_id}-{slider.variable}"


# The page.


@st.fragment
def _explore(session: Exploring) -> None:
    """Show what the cuts give, and the cuts."""
    about = session.about
    if about is None or session.trouble is not None:
        st.rerun()
    tuning = _tuning(session)
    left, right = st.columns([1.75, 1], gap="medium")
    with left, st.container(key="answer"):
        shown = _answer(session, about, tuning)
    with right, st.container(key="cuts"):  # after the answer, which somebody waits for
        _cuts(session, tuning)
    if shown is not None:
        with widgets.part("What more there is"):
            _more(session, shown)


class _Shown(NamedTuple):
    """What is shown: the question, its answer, the one of the run's own cuts, a region or all, whether data hide."""

    question: Question
    found: RecutResult
    own: RecutResult
    region: str | None
    blind: bool


def _answer(session: Exploring, about: About, tuning: Tuning) -> _Shown | None:
    """Show what the cuts give; returns it, or None where there is no answer."""
    viewer = widgets.viewer()
    figures = st.container(horizontal=True, gap="small", key="figures")
    question, before, region, log, overlay, last = _choose(session, about, tuning)
    try:
        found = session.recut(question, viewer)
        own = session.recut(before, f"{viewer}-before")
    except HzzrayError as error:
        if session.trouble is not None:
            st.rerun()
        st.error(formatting.plain(str(error)), icon=":material/error:")
        return None
    shown = _why_shown(found, session.run)
    with last:
        blind = _hide(shown)
    _lacking(found)
    with figures, widgets.part("The numbers"):
        _figures(found.first, own.first, region, blind=blind)
    with widgets.part("The spectrum"):
        _spectrum(found, own, region, log=log, overlay=overlay, blind=blind, says=shown)
    return _Shown(question, found, own, region, blind)


def _choose(
    session: Exploring, about: About, tuning: Tuning
) -> tuple[Question, Question, str | None, bool, bool, DeltaGenerator]:
    """Let the viewer choose what is plotted; returns the question, the same of the run's own cuts, and how to show.

    The last one is the place of the switch that hides data: whether there is anything to hide, the answer tells.
    """
    spec = about.spec
    first = spec.templates[0].observable
    names = [first, *(name for name in session.sliders if name != first)]
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="choices"):
        shown = st.selectbox(
            "Observable", names, key="shown", bind="query-params", label_visibility="collapsed",
            format_func=lambda name: session.sliders[name].title if name in session.sliders else name, width=200,
        )  # fmt: skip
        region = st.segmented_control(
            "Region", ["all", *spec.analysis.regions], default="all", required=True, key="channel",
            format_func=lambda name: formatting.plain(name.replace("mu", "µ")), label_visibility="collapsed",
            bind="query-params",
        )  # fmt: skip
        log = st.toggle("Log scale", key="log", bind="query-params")
        axis, window = _binning(session, about, shown)
        overlay = st.toggle("Before", value=True, key="before", bind="query-params",
                            help="The dashed line: what simulation is with the run's own cuts.")  # fmt: skip
        last = st.container(width="content")
    axes = [f"{first}={axis}" if axis and shown == first else first]
    if shown != first:
        axes.append(f"{shown}={axis}")
    question = Question(tuning.cuts, tuple(axes), window=window)
    return question, replace(question, cuts=()), None if region == "all" else region, log, overlay, last


def _why_shown(found: RecutResult, run: Collection[tuple[Cut, ...]]) -> str | None:
    """Say why there are no data to hide; None where there are."""
    first = found.first
    if all(first.groups[sample.group].role != "data" for sample in first.samples.values()):
        return "This run has no data."
    return "These cuts were run: nothing is hidden." if found.cuts in run else None


def _hide(shown: str | None) -> bool:
    """Let the viewer choose whether the data in the window are hidden; tells whether they are.

    ``shown`` says why there are none to hide, where there are none.
    """
    label = "Hide the data in the window"
    if shown is not None:
        st.toggle(label, value=False, key="blind-nothing", disabled=True, help=shown)
        return False
    return st.toggle(
        label, value=True, key="blind", bind="query-params",
        help="While cuts are tuned that were never run, so that nobody tunes them to what the data happen to be.",
    )  # fmt: skip


def _binning(session: Exploring, about: About, shown: str) -> tuple[str | None, str | None]:
    """Let the viewer choose bins, and where is counted; returns what differs from the run's own."""
    spec = about.spec
    first = spec.templates[0]
    known = {template.observable: template.axis for template in (*about.templates, *spec.templates)}
    own = known.get(shown)
    if own is None:
        slider = session.sliders[shown]
        half = slider.half
        usual = f"{slider.low - half:g}:{slider.high + half:g}:{slider.signal.size if slider.counts else 40}"
    else:
        usual = f"{own.start:g}:{own.stop:g}:{own.bins}"
    counted = "" if spec.window is None else ":".join(f"{end:g}" for end in spec.window)
    with st.popover("Bins", icon=":material/tune:"):
        axis = st.text_input(
            "Axis: from, to, bins", usual, key=f"axis-{session.run_id}-{shown}", live=True, max_chars=60,
            bind="query-params",
        )  # fmt: skip
        window = st.text_input(
            f"Window of the significance, in {formatting.plain(first.observable)}", counted,
            key=f"window-{session.run_id}", live=True, max_chars=60, bind="query-params",
            help="From a bin's edge to another's.",
        )  # fmt: skip
    axis, window = axis.replace(" ", ""), window.replace(" ", "")
    if shown == first.observable and axis == usual:
        axis = ""
    return axis or None, None if window == counted or not window else window


def _lacking(found: RecutResult) -> None:
    """Say what an answer doesn't cover, and look again."""
    for reason in found.failed[:3]:
        st.warning(formatting.plain(reason), icon=":material/broken_image:")
    if found.fraction < 1:
        st.warning(
            f"This is of {formatting.percent(found.fraction)} of the run's events"
            + (": the rest could not be read." if found.failed else ": the rest is being read again."),
            icon=":material/hourglass_top:",
        )
        if not found.failed:
            st.fragment(_again, run_every=_HEALING_S)(time.monotonic())


def _again(since: float) -> None:
    """Run the page again a while after."""
    if time.monotonic() - since > _HEALING_S / 2:
        st.rerun()


def _figures(now: Result, own: Result, region: str | None, *, blind: bool) -> None:
    """Show what the cuts give in the window."""
    found, before = explore_charts.counts(now, region), explore_charts.counts(own, region)
    said = next(iter(found.withheld.values()), "not defined")
    same = now.spec.selection.cuts == own.spec.selection.cuts

    def was(value: float | None, form: str) -> str:
        return "as in the run" if same else "no such number" if value is None else f"was {format(value, form)}"

    widgets.figure(
        "Expected", formatting.sigma(found.asimov),
        formatting.plain(said) if found.asimov is None else f"{was(before.asimov, '.2f')}{'' if same else ' σ'}",
        says="Asimov: the median significance expected of the Higgs boson.",
    )  # fmt: skip
    widgets.figure("Signal", _number(found.n_signal), was(before.n_signal, ".2f"))
    error = "" if found.n_background_error is None else f"± {found.n_background_error:.2f} statistics · "
    widgets.figure(
        "Background", _number(found.n_background), f"{error}{was(before.n_background, '.2f')}",
        says="The error is that of the simulation's statistics alone; σ_b on the Live page has what the release "
        "states of normalisations besides.",
    )  # fmt: skip
    if blind:
        widgets.figure("Data", "hidden", "cuts that were never run", says="In the window. Switch it below.")
    else:
        observed = f"{formatting.sigma(found.observed)} observed" if found.observed is not None else "in the window"
        widgets.figure("Data", formatting.NONE if found.n_data is None else str(found.n_data), observed)


def _number(value: float | None) -> str:
    return formatting.NONE if value is None else f"{value:.2f}"


def _spectrum(
    found: RecutResult, own: RecutResult, region: str | None, *, log: bool, overlay: bool, blind: bool, says: str | None
) -> None:
    """Draw the observable that was asked for last; ``says`` why there are no data to hide, where there are none."""
    name = list(found.results)[-1]
    result = found.results[name]
    chart = charts.mass(result, channel=region, log=log)
    if blind:
        chart = explore_charts.blinded(chart, result, result.significance.window)
    if overlay and name in own.results and result.spec.selection.cuts != own.cuts:
        chart = explore_charts.overlaid(chart, own.results[name], region)
    widgets.draw_mass(chart, result.observable)
    about = (
        f"Luminosity: {result.luminosity}. Answered in {formatting.seconds(found.seconds)}, digest {found.digest[:16]}."
    )
    hidden = " The data in the window are hidden: these cuts were never run." if result.is_first else (
        " Data are hidden: those in the window are among them, and these cuts were never run."
    )  # fmt: skip
    st.caption(f"{formatting.plain(about)}{hidden if blind else ''}{f' {says}' if says else ''}")


def _cuts(session: Exploring, tuning: Tuning) -> None:
    """Show a slider for each cut; what is behind it is the variable by every other cut of the run."""
    own = _own(session)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        widgets.heading(2, "Cuts")
        st.space("stretch")
        st.button("Undo", icon=":material/undo:", on_click=_undo, args=(session,), disabled=not tuning.past)
        st.button("Reset", icon=":material/restart_alt:", on_click=_reset, args=(session,), disabled=not tuning.cuts,
                  help="Back to the run's own cuts.")  # fmt: skip
    added: list[str] = st.session_state.get(f"added-{session.run_id}", [])
    changed_ones = [bound.variable for bound in tuning.cuts]
    names = [name for name in dict.fromkeys([*own, *changed_ones, *added]) if name in session.sliders]
    with st.container(key="sliders", gap="small"):
        for name in names:
            _slider(session, tuning, session.sliders[name], own)
    rest = [name for name in session.sliders if name not in names]
    st.selectbox(
        "Cut on another variable", rest, index=None, key="another", on_change=_added, args=(session,),
        placeholder="Cut on another variable", label_visibility="collapsed",
        format_func=lambda name: session.sliders[name].title if name in session.sliders else name,
    )  # fmt: skip


def _slider(session: Exploring, tuning: Tuning, slider: Slider, own: dict[str, Bound]) -> None:
    bound = tuning.bound(slider.variable, own)
    key = _key(session, slider)
    ends = slider.ends(bound)
    if bound is not None:
        st.session_state[f"last-{key}"] = bound
    if st.session_state.get(key) != ends:
        st.session_state[key] = ends
    if st.session_state.get(f"on-{key}") != (bound is not None):
        st.session_state[f"on-{key}"] = bound is not None
    is_changed = any(one.variable == slider.variable for one in tuning.cuts)
    with st.container(key=f"box-{slider.variable}", gap=None):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.toggle(
                formatting.plain(slider.title), key=f"on-{key}", on_change=_switched, args=(session, slider),
                disabled=bound is None and slider.variable not in own and f"last-{key}" not in st.session_state,
            )  # fmt: skip
            st.space("stretch")
            says = slider.says(bound)
            st.markdown(f"**{formatting.plain(says)}**" if is_changed else formatting.plain(says), width="content")
        st.html(explore_charts.behind(slider, bound))
        fixed = _fixed(session, slider.variable)
        st.slider(
            slider.title, slider.low, slider.high, step=slider.step, format=slider.form, key=key,
            on_change=_moved, args=(session, slider), label_visibility="collapsed", disabled=bool(fixed),
        )  # fmt: skip
        if fixed:
            st.caption(formatting.plain(f"Several rows have a bound on it: {', '.join(fixed)}."))


def _more(session: Exploring, shown: _Shown) -> None:
    """Show all else there is to see of these cuts, one at a time."""
    question, found, own, region, blind = shown
    keep, table, cutflow, scan, but_one, events = st.tabs(
        ["Keep as a run", "Yields", "Cutflow", "Best cut", "Every cut but one", "Events"], key="more",
        on_change="rerun", default="Yields",
    )  # fmt: skip
    with keep:
        if keep.open:
            _keep(session, question, found)
    with table:
        if table.open:
            _yields(found.first, own.first, region, blind=blind)
    with cutflow:
        if cutflow.open:
            _cutflow(found.first, blind=blind)
    with scan:
        if scan.open:
            _scan(session, question, region)
    with but_one:
        if but_one.open:
            _but_one(session, question, blind=blind)
    with events:
        if events.open:
            _events(session, question, found, blind=blind)


def _yields(now: Result, own: Result, region: str | None, *, blind: bool) -> None:
    """Show each group in the window, now and with the run's own cuts."""
    rows = explore_charts.yields(now, own, region, blind=blind)
    table = pd.DataFrame(
        [
            {
                "group": formatting.short(row.group),
                "now": "hidden" if row.now is None else f"{row.now:.2f} ± {row.error:.2f}",
                "the run's own cuts": f"{row.before:.2f}",
                "change": _change_of(row),
            }
            for row in rows
        ]
    )
    st.table(table.map(formatting.plain), border="horizontal", hide_index=True)
    window = now.significance.window
    unit = formatting.plain(now.spec.templates[0].unit)
    where = "of everything" if window is None else f"in {window[0]:g} to {window[1]:g} {unit}".rstrip()
    st.caption(f"Events {where}; errors are those of the statistics.")


def _change_of(row: explore_charts.Yield) -> str:
    return formatting.NONE if row.now is None or not row.before else f"{100 * (row.now / row.before - 1):+.1f} %"


def _cutflow(now: Result, *, blind: bool) -> None:
    """Show how many events each cut leaves, by group."""
    table = pd.DataFrame({"cut": [formatting.short(cut) for cut in now.spec.rows]})
    for sample in now.samples.values():
        if blind and now.groups[sample.group].role == "data":
            continue
        column, factor = formatting.short(sample.group), now.side_by_side(sample)
        values = [factor * row.yield_ for row in sample.cutflow]
        table[column] = table[column] + values if column in table else values
    number = st.column_config.NumberColumn(format="%.2f")
    config = {name: number for name in table.columns if name != "cut"}
    st.dataframe(table, hide_index=True, height="content", key="cutflow", column_config=config)
    st.caption(f"Weighted events of {now.luminosity}.{' Data are hidden.' if blind else ''}")


def _scan(session: Exploring, question: Question, region: str | None) -> None:
    """Let the viewer scan one cut: what significance each threshold gives, all else as it is."""
    own = _own(session)
    names = list(dict.fromkeys([*own, *(bound.variable for bound in question.cuts), *session.sliders]))
    names = [name for name in names if name in session.sliders and not _fixed(session, name)]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        name = st.selectbox("Variable", names, key=f"scanned-{session.run_id}", width=260,
                            format_func=lambda name: session.sliders[name].title)  # fmt: skip
        side = st.segmented_control("Keep what is", ["above", "below"], default="above", required=True, key="side")
        go = st.button("Scan", icon=":material/search:", type="primary")
    slider, above = session.sliders[name], side == "above"
    now = next((bound for bound in question.cuts if bound.variable == name), own.get(name))
    others = tuple(bound for bound in question.cuts if bound.variable != name)
    asked = replace(question, cuts=others, observables=question.observables[:1])
    key = (asked, name, above, now, region)
    kept = f"scan-{session.run_id}"
    if go:
        points = []
        bar = st.progress(0.0, "Scanning")
        values = explore_charts.thresholds(slider)
        for i, threshold in enumerate(values, 1):
            bound = explore_charts.with_threshold(slider, now, threshold, above=above)
            answer = session.recut(replace(asked, cuts=(*others, bound)), f"{widgets.viewer()}-scan")
            points.append(explore_charts.point(threshold, answer.first, region))
            bar.progress(i / len(values), f"{i} of {len(values)} thresholds")
        bar.empty()
        st.session_state[kept] = key, points
    was, points = st.session_state.get(kept, (None, []))
    if was != key:
        st.caption("Each threshold is a re-cut of all events; the other end of the cut, and all other cuts, stay.")
        return
    end = None if now is None else slider.ends(now)[0 if above else 1]
    widgets.draw(
        explore_charts.scan_chart(points, slider, end, above=above), "scan", alt="Expected significance by threshold"
    )
    top = explore_charts.best(points)
    if top is None:
        st.caption("No threshold gives a significance.")
        return
    error = "" if top.error is None else f" ± {top.error:.2f}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"Best: **{top.asimov:.2f}{error} σ** at {top.threshold:g}.", width="content")
        st.caption("The band is the statistics of simulation.", width="content")
        st.button(
            "Take it", icon=":material/check:", on_click=_move,
            args=(session, explore_charts.with_threshold(slider, now, top.threshold, above=above)),
        )  # fmt: skip


def _but_one(session: Exploring, question: Question, *, blind: bool) -> None:
    """Draw each variable that is cut on, by every cut but its own."""
    assert session.about is not None  # noqa: S101 (it is there before sliders are)
    own = _own(session)
    tuning = Tuning(question.cuts)
    names = [name for name in dict.fromkeys([*own, *(bound.variable for bound in question.cuts)])
             if name in session.sliders and tuning.bound(name, own) is not None][:_MOST_PLOTS]  # fmt: skip
    asked = explore_charts.all_but_one(names, session.sliders, question.cuts, session.about.spec.templates[0])
    columns = st.columns(3, gap="medium")
    for i, (name, one) in enumerate(asked.items()):
        with columns[i % 3], widgets.part(f"The plot of {name}"):
            result = session.recut(one, f"{widgets.viewer()}-but-one").results[name]
            chart = explore_charts.but_one_chart(result, session.sliders[name], tuning.bound(name, own), data=not blind)
            widgets.draw(chart, f"but-one-{name}", alt=f"{session.sliders[name].title} by every cut but its own")
    st.caption(f"Grey: what the variable's own cut takes away.{' Data are hidden.' if blind else ''}")


def _keep(session: Exploring, question: Question, found: RecutResult) -> None:
    """Write these cuts as a run, and say how to make it from nothing."""
    asked = _to_keep(session, question)
    suggested = st.session_state.setdefault("suggested to keep", new_run_id())
    wish = f"to keep-{session.run_id}"
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        run_id = st.text_input("Name of the run to keep", suggested, max_chars=64, width=320, live=True)
        # Told before the page is run: a run of it that comes to nothing, as questions may, loses no click.
        st.button(
            "Keep this as a run",
            type="primary",
            icon=":material/save:",
            disabled=found.fraction < 1 and not found.failed,
            on_click=st.session_state.__setitem__,
            args=(wish, asked),
        )
    wished: Question | None = st.session_state.pop(wish, None)
    if wished is not None:
        try:
            done = session.keep(wished, run_id)
        except HzzrayError as error:
            st.error(formatting.plain(str(error)), icon=":material/error:")
        else:
            st.session_state["suggested to keep"] = new_run_id()
            st.session_state[f"kept-{session.run_id}"] = done
            st.rerun()  # the data of these cuts are hidden no more
    kept = st.session_state.get(f"kept-{session.run_id}")
    if kept is not None:
        st.success(f"Run {formatting.plain(kept.run_id)} is there. Digest {kept.digest}", icon=":material/verified:")
        if st.button("See it", icon=":material/arrow_forward:"):
            widgets.show_run(kept.run_id)
            st.switch_page("views/live.py")
    st.caption("The same from nothing, in a terminal:")
    try:
        st.code(session.command(asked), language="bash", wrap_lines=True)
    except HzzrayError as error:
        st.caption(formatting.plain(str(error)))


def _to_keep(session: Exploring, question: Question) -> Question:
    """Fill what the run fills, and what is shown besides."""
    assert session.about is not None  # noqa: S101 (it is there before sliders are)
    own = [template.observable for template in session.about.spec.templates]
    asked = {text.partition("=")[0]: text for text in question.observables}
    if all(text == name for name, text in asked.items()) and set(asked) <= set(own):
        return replace(question, observables=())
    return replace(question, observables=tuple(asked.pop(name, name) for name in own) + tuple(asked.values()))


def _events(session: Exploring, question: Question, found: RecutResult, *, blind: bool) -> None:
    """List candidates in the window, and show one of them."""
    result = found.first
    release = result.spec.release
    data = [name for name, sample in result.samples.items() if result.groups[sample.group].role == "data"]
    rest = [name for name in result.samples if name not in data]
    options = [*(["data"] if data else []), *rest]
    signal = [name for name in rest if result.groups[result.samples[name].group].role == "signal"]
    start = options.index(signal[0]) if blind and signal else 0
    chosen = st.selectbox("Candidates of", options, index=start, key=f"of-{session.run_id}-{blind}", width=260,
                          format_func=formatting.short)  # fmt: skip
    window = result.significance.window
    if chosen == "data" and blind:
        st.info("The data in the window are hidden: these cuts were never run.", icon=":material/visibility_off:")
        return
    samples = tuple(data) if chosen == "data" else (release.sample(chosen).name,)
    low, high = window or (float("-inf"), float("inf"))
    found_ones = session.candidates(replace(question, observables=question.observables[:1]), (low, high), samples)
    if not found_ones:
        st.caption("None in the window.")
        return
    _event_table(found_ones, session)


def _event_table(found: Sequence[Candidate], session: Exploring) -> None:
    """Show candidates as a table, as CSV, and the chosen one's leptons."""
    masses = [name for name, slider in session.sliders.items() if name.startswith("m") and "GeV" in slider.title]
    table = explore_charts.listed(found, masses)
    picked = st.dataframe(
        table, hide_index=True, key="candidates", on_select="rerun", selection_mode="single-row", height=300,
        column_config={name: st.column_config.NumberColumn(session.sliders[name].title, format="%.2f")
                       for name in masses},
    )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.download_button("CSV", explore_charts.as_csv(found), f"{session.run_id}-candidates.csv", "text/csv",
                           on_click="ignore", icon=":material/download:", key="candidates csv")  # fmt: skip
        leptons = explore_charts.draws_leptons(session.sliders)
        st.caption(f"{formatting.number(len(found))} candidates.{' Choose one to see its leptons.' if leptons else ''}")
    if not leptons:
        return
    rows = picked.selection.rows
    one = found[rows[0] if rows and rows[0] < len(found) else 0]
    if not one.leptons:
        st.caption("Its leptons could not be read.")
        return
    name = f"run {one.run}, event {one.event}" if one.event is not None else f"entry {one.entry}"
    widgets.heading(3, f"{formatting.plain(one.region.replace('mu', 'µ'))}, {name}")
    across, along = st.columns(2, gap="medium")
    with across:
        widgets.draw(explore_charts.display(one, "r-phi"), "r-phi", alt="The leptons across the beam")
        st.caption("Across the beam (r–φ). A line is as long as the lepton's pT [GeV].")
    with along:
        widgets.draw(explore_charts.display(one, "r-z"), "r-z", alt="The leptons along the beam")
        st.caption("Along the beam (r–z): directions; lengths are pT again.")


main()
