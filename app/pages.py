"""What the app shows: the page that the address names. ``app/main.py`` serves it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import formatting
from app.services import services
from hzzray.disk import full_disk
from hzzray.errors import UsageError

_HERE = Path(__file__).parent
_SHOWN = "a page was shown"  # to this viewer


def main() -> None:
    """Show the page that the address names."""
    st.set_page_config(page_title="hzzray", page_icon=_HERE / "icon.svg", layout="wide")
    st.html(_HERE / "style.css")
    st.logo(_HERE / "logo.svg", size="large")
    waiting = st.empty()
    if _SHOWN not in st.session_state:  # a viewer's first page, for which a server or a busy machine may take seconds
        waiting.caption(":material/hourglass_top: Loading…")
    pages = [
        st.Page("views/live.py", title="Live", icon=":material/monitoring:", default=True),
        st.Page("views/actors.py", title="Actors", icon=":material/memory:"),
        st.Page("views/runs.py", title="Runs", icon=":material/folder_open:"),
        st.Page("views/explore.py", title="Explore", icon=":material/tune:"),
        st.Page("views/fit.py", title="Fit", icon=":material/function:"),
        st.Page("views/launch.py", title="Launch", icon=":material/rocket_launch:"),
        st.Page("views/failures.py", title="Failures", icon=":material/report:"),
    ]
    try:
        runs = services().settings.runs
    except UsageError as error:
        st.error(formatting.plain(str(error)))
        st.stop()
    page = st.navigation(pages, position="top")
    if trouble := full_disk(runs):
        st.error(formatting.plain(trouble), icon=":material/hard_drive:")
    waiting.empty()
    st.session_state[_SHOWN] = True
    page.run()


main()
