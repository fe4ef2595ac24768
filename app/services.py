"""What all viewers of a server share: made once, when the first of them comes."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from app.client import Client
from app.fitter import Fitter
from app.launcher import Launcher
from app.pace import Pace
from app.sessions import Sessions
from app.settings import AppSettings, read_settings
from app.watch import Watch
from hzzray.engine.cluster import usable_cpus
from hzzray.engine.ledger import Wish
from hzzray.engine.monitor import measure_host


@dataclass(frozen=True, slots=True)
class Services:
    """The runs, and what starts, directs and explores them; ``pace`` is how often pages are drawn.

    ``watch`` is there when a cluster elsewhere is watched.
    """

    settings: AppSettings
    client: Client
    launcher: Launcher
    sessions: Sessions
    fitter: Fitter
    pace: Pace
    watch: Watch | None

    @property
    def is_outside(self) -> bool:
        """Whether the watched cluster can only be looked at: a run's driver must be on one of its nodes."""
        return (self.settings.address or "").startswith("ray://")

    def wish(self, run_id: str, wish: Wish) -> None:
        """Tell whoever works on a run what its user wants; raises HzzrayError where nobody can be told."""
        folder = self.client.folder(run_id)
        if self.watch is not None and not folder.has_ledger:
            self.watch.wish(run_id, wish)
            return
        with folder.ledger() as ledger:
            ledger.wish(wish)
        self.client.look_again(run_id)


@st.cache_resource(show_spinner=False)
def services() -> Services:
    """Return this server's services; raises UsageError for an environment that makes no sense."""
    settings = read_settings()
    inside = settings.address if settings.address and "://" not in settings.address else None
    launcher = Launcher(settings.runs, inside)
    return Services(
        settings=settings,
        client=Client(settings.runs, launcher.started),
        launcher=launcher,
        sessions=Sessions(settings.engine, inside),
        fitter=Fitter(settings.runs),
        pace=Pace(measure_host().cpus or usable_cpus()),
        watch=Watch(settings.address, settings.runs) if settings.address else None,
    )
