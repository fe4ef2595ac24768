"""A run's fits, as several pages show them: read from its folder, where processes of their own write them."""

from __future__ import annotations

import streamlit as st

from app import formatting, widgets
from app.client import View
from app.services import services
from hzzray.errors import UsageError
from hzzray.files import OutputError
from hzzray.report import fit_text
from hzzray.runs.fit_run import FIT, FIT_LIVE, load_fit
from hzzray.statistics.fit_result import FitResult


def load(view: View, *, live: bool = False) -> FitResult | None:
    """Read a run's fit, or the last quick one of a run that goes on; None where there is none.

    Who looks at a run that goes on has it watched: it is fitted again and again. One that can't be read is told.
    """
    if live and view.live and services().fitter.able:
        services().fitter.start(view.run_id, "watch")
    try:
        return load_fit(services().client.folder(view.run_id).path, FIT_LIVE if live else FIT)
    except UsageError:
        return None
    except OutputError as error:
        widgets.wrong([f"The fit can't be shown: {error}"])
        return None


def text(found: FitResult, name: str) -> str:
    """Write a figure of a fit."""
    value = found.value(name)
    return formatting.NONE if value is None else f"{value:.2f}"


def figures(found: FitResult) -> None:
    """Show a fit in a few numbers."""

    def says(name: str) -> str | None:
        figure = found.figures.get(name)
        return None if figure is None else formatting.plain(figure.withheld or figure.definition)

    with st.container(horizontal=True, gap="small", key="figures"):
        below = fit_text.split(found) or "at its bound of 0"
        widgets.figure("Signal strength µ̂", fit_text.strength(found), below, says=says("mu"))
        expected = f"{formatting.sigma(found.value('z_expected'))} expected"
        widgets.figure("Significance", formatting.sigma(found.value("z_observed")), expected, says=says("z_observed"))
        if "limit_expected" in found.figures:
            without = f"{text(found, 'limit_expected')} expected without signal"
            widgets.figure("95 % CLs limit on µ", text(found, "limit_observed"), without, says=says("limit_observed"))
        widgets.figure("Goodness of fit", f"p = {text(found, 'gof_p')}", "saturated model", says=says("gof_p"))
        if found.mass is not None:
            mass = {
                name: formatting.NONE if f.value is None else f"{f.value:.2f}" for name, f in found.mass.figures.items()
            }
            below = f"± {mass['mass_error_expected']} expected"
            widgets.figure("Mass m_H", f"{mass['mass']} ± {mass['mass_error']} GeV", below)
    if doubted := fit_text.doubt(found):
        st.caption(f"A bad fit: {formatting.plain(doubted)}.")
    if not found.observed:
        st.caption(f"Expected events alone: {formatting.plain(found.no_data)}.")
