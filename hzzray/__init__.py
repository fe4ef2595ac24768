"""The ATLAS Open Data H→ZZ*→4ℓ analysis as an exact, distributed pipeline."""

from typing import TYPE_CHECKING

from hzzray.version import __version__

if TYPE_CHECKING:
    from hzzray.runs.explore import explore

__all__ = ["__version__", "explore"]


def __getattr__(name: str) -> object:
    """Import what scripts and notebooks call from its module, when they do: it takes a second."""
    if name != "explore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hzzray.runs.explore import explore  # noqa: PLC0415

    return explore
