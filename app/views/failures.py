"""The failures page: what could not be done, why, and another try."""

from __future__ import annotations

import asyncio
from collections import Counter

import pandas as pd
import streamlit as st

from app import formatting, widgets
from app.client import View
from app.services import services
from hzzray.errors import HzzrayError, UsageError
from hzzray.messages import Failure
from hzzray.urls import redact

_MOST = 1000  # rows that are shown
_REASON = 1000  # characters of a reason


def show(view: View) -> None:
    """Show what failed of a run, and what its broker has given up."""
    with widgets.part("What failed"):
        _failed(view)
    if services().settings.broker is not None:
        _dead(view.run_id)


def _dead(run_id: str) -> None:
    """Show the run's dead letters on demand: to be looked at, they are taken from their queue and put back."""
    widgets.heading(2, "Dead letters")
    if not st.toggle("Look into the broker's dead-letter queue", key=f"dead-{run_id}"):
        return
    try:
        letters = _letters(run_id)
    except HzzrayError as error:
        st.error(formatting.plain(str(error)))
        return
    if not letters:
        st.caption("None of this run.")
        return
    st.dataframe(pd.DataFrame(letters), hide_index=True, height="content", key="letters")


@st.cache_data(ttl=15, show_spinner="Asking the broker…")
def _letters(run_id: str) -> list[dict[str, object]]:
    from bridge.dead_letters import dead_letters  # noqa: PLC0415 (pika is an extra)
    from bridge.settings import BrokerSettings  # noqa: PLC0415
    from bridge.topology import Topology  # noqa: PLC0415

    where = BrokerSettings.from_url(services().settings.broker)
    found = asyncio.run(dead_letters(where, Topology(where.prefix), lambda letter: letter.run_id == run_id))
    return [
        {
            "sample": formatting.short(letter.message.task.sample) if letter.message else None,
            "reason": formatting.short(letter.reason, _REASON),
            "attempts": letter.attempts,
            "first": letter.message.task.start if letter.message else None,
            "stop": letter.message.task.stop if letter.message else None,
        }
        for letter in found
    ]


def _failed(view: View) -> None:
    """Show what failed of a run."""
    if view.result is None:
        st.caption("Nothing was tried yet.")
        return
    rows, trouble = view.once("failures", lambda: _rows(view))
    widgets.wrong(trouble)
    if not rows:
        with st.container(border=True, horizontal_alignment="center"):
            widgets.heading(2, ":material/verified: Nothing failed")
            tasks = view.result.tasks
            st.markdown(f"{tasks.merged} of {tasks.planned} tasks are merged.", text_alignment="center")
        return
    table = pd.DataFrame(rows[:_MOST])
    kinds = Counter(str(row["kind"]) for row in rows)
    st.markdown(
        f"**{len(rows)}** of {view.result.tasks.planned} tasks failed: "
        + ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        + ". The rest goes on without them; *try again* once the cause is gone."
        + (f" The first {_MOST} are shown; `hzzray failures` has all." if len(rows) > _MOST else "")
    )
    column = st.column_config
    st.dataframe(
        table,
        hide_index=True,
        height="content" if len(table) <= 20 else 740,
        key="failed",
        column_config={
            "reason": column.TextColumn("reason", width="large"),
            "file": column.TextColumn("file", width="medium"),
            "first": column.NumberColumn("first entry", format="localized"),
            "stop": column.NumberColumn("up to", format="localized"),
            "kind": column.TextColumn("kind", help="A permanent failure comes again as long as its file is as it is."),
        },
    )


def _rows(view: View) -> tuple[list[dict[str, object]], list[str]]:
    """List failures from the ledger, which knows most of them, or from the result of a run of elsewhere.

    With them what is wrong with a ledger that is there and can't be read.
    """
    trouble = []
    try:
        with services().client.folder(view.run_id).ledger() as ledger:
            return [_row(failure) for failure in ledger.failures()], []
    except HzzrayError as error:
        if not isinstance(error, UsageError):
            trouble.append(str(error))
    found = view.result.failures if view.result else ()
    rows: list[dict[str, object]] = [
        {
            "sample": formatting.short(row.sample),
            "reason": formatting.short(row.reason, _REASON),
            "kind": "–",
            "attempts": None,
        }
        | {"file": formatting.short(row.file, _REASON), "first": row.start, "stop": row.stop}
        for row in found
    ]
    return rows, trouble


def _row(failure: Failure) -> dict[str, object]:
    task = failure.task
    return {
        "sample": formatting.short(task.sample),
        "reason": formatting.short(failure.reason.removeprefix(f"{redact(task.file)}: "), _REASON),
        "kind": "permanent" if failure.permanent else "passing",
        "attempts": failure.attempts,
        "file": formatting.short(redact(task.file), _REASON),
        "first": task.start,
        "stop": task.stop,
    }


widgets.live("Failures", show)
