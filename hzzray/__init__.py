"""The ATLAS Open Data H→ZZ*→4ℓ analysis as an exact, distributed pipeline.

``run`` does the analysis, ``open_run`` opens one that was done, ``explore`` moves its cuts; ``Run`` has its numbers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from hzzray.version import __version__

if TYPE_CHECKING:
    from hzzray.api import Run, open_run, run
    from hzzray.errors import HzzrayError, UsageError
    from hzzray.runs.explore import explore

__all__ = ["HzzrayError", "Run", "UsageError", "__version__", "explore", "open_run", "run"]

# Imported when they are asked for: that takes a second.
_HOMES = {
    "HzzrayError": "hzzray.errors",
    "Run": "hzzray.api",
    "UsageError": "hzzray.errors",
    "explore": "hzzray.runs.explore",
    "open_run": "hzzray.api",
    "run": "hzzray.api",
}


def __getattr__(name: str) -> object:
    """Import what scripts and notebooks call from its module, when they do."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List it all, for who looks."""
    return [*globals(), *_HOMES]
