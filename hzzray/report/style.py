"""Figures that look the same whoever draws them, from whichever thread, whatever the user's matplotlibrc says.

matplotlib looks fonts and ticks up in settings that belong to the process, when it draws: so a figure here carries
its own settings along and puts them in force while it is made, drawn or saved. No pyplot state is used.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

from hzzray.files import write_whole

_DPI = 150

#: One figure at a time has the process's settings.
_lock = threading.RLock()


@contextmanager
def style(settings: dict[Any, Any]) -> Iterator[None]:
    """Put matplotlib settings in force for a while; other threads' figures wait."""
    with _lock, mpl.rc_context(settings):
        yield


class StyledFigure(Figure):
    """A figure that is drawn with its own settings. Make it, and what is in it, inside ``style`` of the same."""

    def __init__(self, settings: dict[Any, Any], **kwargs: Any) -> None:  # noqa: ANN401 (as matplotlib has it)
        self._settings = settings
        super().__init__(**kwargs)

    def draw(self, renderer: RendererBase) -> None:
        """Draw, in its own settings."""
        with style(self._settings):
            super().draw(renderer)

    def savefig(self, fname: Any, **kwargs: Any) -> None:  # noqa: ANN401 (as matplotlib has it)
        """Save, in its own settings."""
        with style(self._settings):
            super().savefig(fname, **kwargs)

    def _repr_png_(self) -> bytes:
        """Show it in a notebook."""
        return png(self)


def png(fig: Figure, dpi: int = 80) -> bytes:
    """Draw a figure as a picture."""
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi, metadata={"Software": None})
    return drawn.getvalue()


def plain(text: str) -> str:
    """Keep matplotlib from reading a text as TeX."""
    return text.replace("$", r"\$")


def save_figure(fig: Figure, stem: Path, title: str) -> tuple[Path, ...]:
    """Write ``stem.png`` (150 dpi) and ``stem.pdf``, each whole or not at all; equal figures give equal bytes.

    Raises OutputError where they can't be written.
    """
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": title, "Software": None},
        "pdf": {"Title": title, "CreationDate": None},
    }
    return tuple(
        write_whole(stem.with_name(f"{stem.name}.{kind}"), partial(fig.savefig, dpi=_DPI, metadata=about))
        for kind, about in metadata.items()
    )
