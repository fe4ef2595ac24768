"""The app: ``streamlit run app/main.py``."""

from __future__ import annotations

import hmac
import time
from pathlib import Path

import streamlit as st

from app import words
from app.services import services
from hzzray.errors import UsageError
from hzzray.places import full_disk

_HERE = Path(__file__).parent
_SLOW_S = 1.0  # a wrong password costs so long


def _is_let_in() -> bool:
    """Tell whether this viewer may see anything."""
    return services().settings.password is None or bool(st.session_state.get("let in"))


def _ask() -> None:
    """Ask for the password."""
    _, middle, _ = st.columns([1, 1.4, 1])
    with middle, st.form("password", border=True):
        st.markdown("#### hzzray", anchors=False)
        given = st.text_input("Password", type="password", autocomplete="current-password")
        if st.form_submit_button("Enter", type="primary", width="stretch"):
            if hmac.compare_digest(given.encode(), (services().settings.password or "").encode()):
                st.session_state["let in"] = True
                st.rerun()
            time.sleep(_SLOW_S)
            st.error("That is not the password.")


def main() -> None:
    """Show the page that the address names."""
    st.set_page_config(page_title="hzzray", page_icon=_HERE / "icon.svg", layout="wide")
    st.html(_HERE / "style.css")
    st.logo(_HERE / "logo.svg", size="large")
    pages = [
        st.Page("views/live.py", title="Live", icon=":material/monitoring:", default=True),
        st.Page("views/actors.py", title="Actors", icon=":material/memory:"),
        st.Page("views/runs.py", title="Runs", icon=":material/folder_open:"),
        st.Page("views/launch.py", title="Launch", icon=":material/rocket_launch:"),
        st.Page("views/failures.py", title="Failures", icon=":material/report:"),
    ]
    try:
        allowed = _is_let_in()
    except UsageError as error:
        st.error(words.plain(str(error)))
        st.stop()
    page = st.navigation(pages, position="top" if allowed else "hidden")
    if allowed:
        if trouble := full_disk(services().settings.runs):
            st.error(words.plain(trouble), icon=":material/hard_drive:")
        page.run()
    else:
        _ask()


main()
