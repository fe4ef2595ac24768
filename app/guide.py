"""A guided first visit: what there is to see, until the visitor closes it."""

from __future__ import annotations

import streamlit as st

_OPEN = "guide-open"

_STEPS = {
    "A lepton pair": "Electrons (e) and muons (µ) are *leptons*. A Z boson becomes two of one flavour and of opposite "
    "charge: a pair. Each event here has two pairs, four leptons, and their mass together is m₄ₗ.",
    "Why a peak": "Four leptons that came from one particle have its mass, but for what the detector gets wrong: "
    "they pile up. Near 91 GeV that is a Z boson, near **125 GeV the Higgs boson**. Others have any mass.",
    "What σ is": "How unlikely it is that background alone looks like this. 1 σ: one time in six. 3 σ: one in 740, "
    "*evidence*. 5 σ: one in 3.5 million, a *discovery*. *Expected* is what simulation promises, *observed* what is "
    "there.",
}


def guide(*, runs: bool) -> None:
    """Explain the live page to who comes to it for the first time: by an address that names no run.

    A link that somebody shares names one. Without ``runs`` there is nothing to explain yet: who comes then is told as
    soon as there is one, though the address names it by then. Who closes it sees it no more.
    """
    if _OPEN not in st.session_state:
        st.session_state[_OPEN] = "run" not in st.query_params
    if not runs or not st.session_state[_OPEN]:
        return
    with st.container(border=True, key="guide"):
        for column, (title, says) in zip(st.columns(len(_STEPS), gap="medium"), _STEPS.items(), strict=True):
            column.markdown(f"**{title}.** {says}")
        st.button("Close this guide", icon=":material/close:", key="guide-close", on_click=_close)


def _close() -> None:
    st.session_state[_OPEN] = False
