"""The app's server: ``streamlit run app/main.py``. What it shows is in ``pages.py``; who may see it, in ``gate.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

# The app is no installed package: it lies in a checkout, or the image.
sys.path.insert(0, str(Path(__file__).parents[1]))

from app import charts, fit_summary, replay  # noqa: F401 (what pages import: the first viewer would wait for it)
from app.gate import Gate, Lock, allowed_hosts
from app.settings import read_settings
from hzzray.errors import UsageError

try:
    _settings = read_settings()
except UsageError as error:
    sys.exit(f"hzzray: {error}")

app = st.App(
    Path(__file__).with_name("pages.py"),
    middleware=[
        Middleware(
            Gate,
            hosts=allowed_hosts(_settings.hosts),
            lock=Lock(_settings.password) if _settings.password else None,
        )
    ],
)
