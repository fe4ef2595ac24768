"""The fit page: signal strength, significance, limits and mass, with their pictures; live while a run goes on."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import charts, fit_summary, formatting, widgets
from app.client import View
from app.downloads import is_there, picture
from app.services import services
from hzzray.errors import UsageError
from hzzray.statistics.fit_result import FitResult

_PICTURES = {
    "regions": "Each region before the fit and after it",
    "impacts": "What each nuisance parameter does to µ̂, and where the fit has it",
    "limit": "The upper limit on µ",
    "mass": "The likelihood along the mass",
    "yields": "Events of each region",
    "correlations": "Correlations",
}


def show(view: View) -> None:
    """Show the fit of a run: of what was read so far while it goes on, else of all of it."""
    if view.result is None:
        st.caption("There is nothing to fit yet.")
        return
    fitter = services().fitter
    if not fitter.able:
        st.info(
            "A fit needs an extra that this server lacks: pip install 'hzzray\\[fit]'.", icon=":material/extension:"
        )
    if view.live:
        _live(view)
        return
    found = fit_summary.load(view)
    busy = fitter.goes_on(view.run_id, "fit")
    stale = found is not None and found.digest != view.result.digest
    if busy:
        st.caption(":material/hourglass_top: The fit goes on: half a minute or so.")
    elif fitter.able:
        label = "Fit this run" if found is None else "Fit it again"
        if st.button(label, icon=":material/function:", key=f"fit-{view.run_id}"):
            widgets.attempt(lambda: _begin(view.run_id))
        if (found is None or fitter.has_failed(view.run_id)) and (line := fitter.said(view.run_id)):
            st.caption(formatting.plain(line))
    if stale:
        st.warning("The run has other bins by now: fit it again.", icon=":material/update:")
    if found is not None:
        with widgets.part("The fit"):
            fit_summary.figures(found)
            _definitions(found)
        with widgets.part("The fit's pictures"):
            _pictures(view)
    watched = fit_summary.load(view, live=True)
    if watched is not None and watched.spec == view.result.spec.digest:
        _as_it_came(watched)


def _begin(run_id: str) -> None:
    if not services().fitter.start(run_id, "fit"):
        raise UsageError("other fits go on: try again in a minute")


def _live(view: View) -> None:
    """Show the quick fit of what was read so far, which a process of its own makes again and again."""
    found = fit_summary.load(view, live=True)
    if found is None or not found.figures:
        why = found.no_data if found is not None else "the first fit comes within seconds"
        st.caption(f":material/hourglass_top: No fit yet: {formatting.plain(why)}.")
        return
    st.caption(
        f"Of the {formatting.percent(found.fraction)} of the events that were read by then; again every few seconds."
    )
    with widgets.part("The fit so far"):
        fit_summary.figures(found)
    _as_it_came(found)


def _as_it_came(found: FitResult) -> None:
    """Draw how the strength came about while the run went on; one moment is no curve."""
    if len(found.points) > 1:
        with widgets.part("The fit as it came about"):
            widgets.heading(2, "Signal strength, as events were read")
            alt = "Signal strength with its error against the share of events read; dashed: as simulated"
            widgets.draw(charts.strength(found.points), "strength", alt=alt)


def _definitions(found: FitResult) -> None:
    rows = [*found.figures.items(), *(found.mass.figures.items() if found.mass is not None else ())]
    with st.expander("Every figure with its definition", icon=":material/function:"):
        table = pd.DataFrame(
            [
                (
                    formatting.plain(name.replace("_", " ")),
                    formatting.NONE if figure.value is None else f"{figure.value:.4g} {figure.unit}".rstrip(),
                    formatting.plain(figure.withheld or figure.definition),
                )
                for name, figure in rows
            ],
            columns=["figure", "value", "definition"],
        )
        st.table(table, border="horizontal", hide_index=True)
        for note in (*found.notes, *(found.mass.notes if found.mass is not None else ())):
            st.caption(formatting.plain(note))


def _pictures(view: View) -> None:
    folder = services().client.folder(view.run_id).path
    for name, says in _PICTURES.items():
        path = folder / f"fit-{name}.png"
        if is_there(path):
            widgets.heading(2, says)
            st.image(picture(path), width="content" if name != "regions" else "stretch")


widgets.live("Fit", show)
