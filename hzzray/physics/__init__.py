"""Arrays in, arrays out: numpy and numba only. What an analysis of one's own is made of is imported from here."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hzzray.physics.analysis import Analysis, Bound, Cut, Template, Variable
    from hzzray.physics.columns import ELECTRON, MUON, AllOf, AnyOf, Array, Below, Jagged, Offsets, Scalar, Unread
    from hzzray.physics.histogram import Axis
    from hzzray.physics.jit import entry, inlined, kernel
    from hzzray.physics.maths import log, sincos, sinh
    from hzzray.physics.measure_helpers import delta_r, mass, momentum, one_each, put

__all__ = [
    "ELECTRON",
    "MUON",
    "AllOf",
    "Analysis",
    "AnyOf",
    "Array",
    "Axis",
    "Below",
    "Bound",
    "Cut",
    "Jagged",
    "Offsets",
    "Scalar",
    "Template",
    "Unread",
    "Variable",
    "delta_r",
    "entry",
    "inlined",
    "kernel",
    "log",
    "mass",
    "momentum",
    "one_each",
    "put",
    "sincos",
    "sinh",
]

# Where they are: whoever needs nothing that is compiled doesn't wait for numba.
_HOMES = {
    "analysis": ("Analysis", "Bound", "Cut", "Template", "Variable"),
    "columns": (
        "ELECTRON", "MUON", "AllOf", "AnyOf", "Array", "Below", "Jagged", "Offsets", "Scalar", "Unread",
    ),
    "histogram": ("Axis",),
    "jit": ("entry", "inlined", "kernel"),
    "maths": ("log", "sincos", "sinh"),
    "measure_helpers": ("delta_r", "mass", "momentum", "one_each", "put"),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import what is asked for from its module."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
