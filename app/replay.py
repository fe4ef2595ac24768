"""A run that nobody works on, shown as it grew: a slider over its time, and a button that moves it."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import streamlit as st

from app import formatting, widgets
from app.client import View
from hzzray.runs.result import Result

#: How long a replay takes from the start to the end [s].
LASTS_S = 20.0

_AT, _PLAYING = "at", "replay plays"


class _Playing(NamedTuple):
    """A replay that moves by itself: of which run, and at what moment of it [s] it began, when [monotonic s]."""

    run_id: str
    moment: float
    since: float

    def now(self, end: float, decimals: int) -> float:
        """Tell at what moment it is now [s]."""
        return round(min(end, self.moment + (time.monotonic() - self.since) * end / LASTS_S), decimals)


def is_playing() -> bool:
    """Tell whether this viewer's replay moves by itself: then the page is to be shown often."""
    return _PLAYING in st.session_state


def scale(end: float) -> tuple[float, float, int]:
    """Lay a slider over some seconds: its length, its step, and the decimals that these have; 100 to 1000 steps."""
    end = max(end, 1e-3)
    power = math.floor(math.log10(end / 100))
    step = 10.0**power
    decimals = max(0, -power)
    return round(math.ceil(round(end / step, 6)) * step, decimals), round(step, decimals), decimals


def shown(view: View) -> View:
    """Let the viewer go back in the time of a run that nobody works on; returns it as it stood there."""
    if view.live or not view.has_ledger or view.result is None or not view.result.tasks.merged:
        return view
    end, step, decimals = scale(view.result.cost.wall_s)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="replay"):
        on = st.toggle(
            "As it grew", key="grew", bind="query-params",
            help="Back in the run's time: plot, yields and significance as they stood, to the last bit.",
        )  # fmt: skip
        if not on:
            st.session_state.pop(_PLAYING, None)
            return view
        playing = _playing(view.run_id, end)
        if playing is not None:
            st.session_state[_AT] = playing.now(end, decimals)
        if st.button(
            "Play" if playing is None else "Pause",
            icon=":material/play_arrow:" if playing is None else ":material/pause:", key="play",
            on_click=_play if playing is None else _pause,
            args=(view.run_id, end) if playing is None else (playing, end, decimals),
        ):  # fmt: skip
            st.rerun()  # the whole page: it is looked at more often now, or less
        # While it plays, the page moves it: a browser that is behind still tells where it was before, and the address
        # would have an entry of each moment to go back through.
        at = st.slider(
            "Time since the run's start", 0.0, end, end, step, format=f"%.{decimals}f s", key=_AT,
            bind="query-params" if playing is None else None, disabled=playing is not None,
        )  # fmt: skip
    if at >= end and is_playing():
        _stop()
        st.rerun()
    then = view
    with widgets.part("The run as it grew"):
        if at < end:
            then = view.as_of(at)
        # There always, so that nothing below it moves.
        st.caption(_said(view.result, then.result, at))
    return then


def _said(end: Result, then: Result | None, at: float) -> str:
    """Say what is shown."""
    if then is None or then is end:
        return f"As it stands in the end, after {formatting.seconds(end.cost.wall_s)}."
    # The ledger doesn't say when a task failed.
    failed = f" What failed by the end, {end.tasks.failed}, is among the others." if end.tasks.failed else ""
    return (
        f"As it stood after {formatting.seconds(at)}: {then.tasks.merged} of {end.tasks.planned} tasks merged.{failed}"
    )


def _playing(run_id: str, end: float) -> _Playing | None:
    """Tell what plays of this run, if it does; keeps the slider within a run that is shorter than the one before."""
    playing: _Playing | None = st.session_state.get(_PLAYING)
    if playing is not None and playing.run_id == run_id:
        return playing
    _stop()
    if st.session_state.get(_AT, end) > end:
        st.session_state[_AT] = end
    return None


def _play(run_id: str, end: float) -> None:
    """Begin where the slider is, or anew at its end."""
    at = st.session_state[_AT]
    st.session_state[_PLAYING] = _Playing(run_id, 0.0 if at >= end else at, time.monotonic())


def _pause(playing: _Playing, end: float, decimals: int) -> None:
    """Leave the slider where the replay is."""
    st.session_state[_AT] = playing.now(end, decimals)
    _stop()


def _stop() -> None:
    st.session_state.pop(_PLAYING, None)
