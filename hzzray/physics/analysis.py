"""The shape of an analysis: what it measures of an event, by what it judges, what it fills. Frozen values.

``measure`` (compiled) turns columns into candidates, each with a row of variables; cuts are bounds on variables;
templates are axes on variables. Nothing here or below knows a variable by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.histogram import Axis, Shape

#: Names that skims, lists of candidates and histograms' axes have themselves: no variable's.
RESERVED = ("sample", "region", "file", "entry", "weight", "run", "event", "dataset", "group", "variation", "threads")


@dataclass(frozen=True, slots=True)
class Variable:
    """A quantity that each candidate has: one float64. ``label`` is what an axis says of it, ``unit`` may be empty."""

    name: str
    label: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a variable must lie between: above ``low`` and below ``high``, not at them; None is no bound.

    nan lies nowhere; infinity isn't beyond an end that is none.
    """

    variable: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuse an end that is no number to compare with; raises ValueError."""
        for end in (self.low, self.high):
            if end is not None and not math.isfinite(end):
                raise ValueError(f"cut on {self.variable}: {end:g} is no bound; None is none")


@dataclass(frozen=True, slots=True)
class Cut:
    """One row of the cutflow: bounds that must all hold.

    A ``basic`` one is passed by some events of any sample that the files hold what they should: else a warning is due.
    """

    name: str
    bounds: tuple[Bound, ...]
    basic: bool = False

    def __post_init__(self) -> None:
        """Refuse what isn't bounds; raises ValueError."""
        _several(f"cut {self.name}: bounds", self.bounds, Bound, least=0)


@dataclass(frozen=True, slots=True)
class Template:
    """One histogram of each region: an observable, which is a variable, on an axis.

    ``label`` (LaTeX) and ``unit`` are the variable's: what an axis says of it.
    """

    observable: str
    axis: Axis
    label: str = ""
    unit: str = ""


#: What may be varied of simulation: see ``Variation``.
VariationKind = Literal["weight", "spread", "branch", "momentum", "resolution"]

# Of each kind, what it must say, and what it may.
_SAYS: dict[VariationKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "weight": (("size",), ("each",)),
    "spread": (("factor", "size"), ()),
    "branch": (("factor", "branches"), ()),
    "momentum": (("flavour",), ("size", "branch")),
    "resolution": (("flavour", "size"), ()),
}

#: The directions of a variation, as names and results have them.
DIRECTIONS = ("up", "down")


@dataclass(frozen=True, slots=True)
class Variation:
    """A systematic: what simulation would be, were something a standard deviation higher, or lower. Data isn't varied.

    With ``weight``, ``spread`` and ``branch`` events weigh otherwise. With ``momentum`` and ``resolution`` leptons (of
    the absolute type ``flavour``) have another pt, and energies in proportion, and all is measured again.

    Attributes
    ----------
    name
        What results call it, ``_up`` and ``_down`` behind it.
    kind
        ``weight``: 1 ± ``size`` times the weight, that to the power of the variable ``each`` where there is one.
        ``spread``: in place of the weight factor f that is the branch ``factor``, 1 + (f - 1)(1 ± ``size``).
        ``branch``: in place of ``factor`` the two ``branches``. ``momentum``: pt is 1 ± ``size`` times what it was,
        or what it was ± the branch ``branch``, one number a lepton. ``resolution``: pt is smeared by ``size`` of it;
        that is what up means, and down is as much to the other side of the nominal templates.
    source
        Where the size is from: words, which are no part of what names a computation.
    default
        Whether it is one of ``all``; else it is there by name alone.
    """

    name: str
    kind: VariationKind
    size: float | None = None
    each: str = ""
    factor: str = ""
    branch: str = ""
    branches: tuple[str, ...] = ()
    flavour: int | None = None
    source: str = ""
    default: bool = True

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (a word that is mistyped in a catalogue is a mistake)

    def __post_init__(self) -> None:
        """Refuse one that says too little, or what its kind has no use for; raises ValueError."""
        if not self.name.isidentifier():
            raise ValueError(f"variation {self.name!r}: its name must be letters, digits and underscores")
        must, may = _SAYS[self.kind]
        for field in ("size", "each", "factor", "branch", "branches", "flavour"):
            value = getattr(self, field)
            said = value is not None and value not in ("", ())
            if said and field not in (*must, *may):
                raise ValueError(f"variation {self.name}: {self.kind} has no {field}")
            if field in must and not said:
                raise ValueError(f"variation {self.name}: {self.kind} needs {field}")
        if self.kind == "momentum" and (self.size is None) == (not self.branch):
            raise ValueError(f"variation {self.name}: momentum needs size or branch, one of them")
        if self.size is not None and not 0 < self.size < 1:
            raise ValueError(f"variation {self.name}: size is relative, above 0 and below 1, not {self.size:g}")
        if self.branches and len(self.branches) != len(DIRECTIONS):
            raise ValueError(f"variation {self.name}: branches are two, one up and one down")

    @property
    def kinematic(self) -> bool:
        """Whether all is measured again."""
        return self.kind in ("momentum", "resolution")

    @property
    def directions(self) -> tuple[str, ...]:
        """Names of what results have of it."""
        return tuple(f"{self.name}_{direction}" for direction in DIRECTIONS)

    @property
    def filled(self) -> tuple[str, ...]:
        """Names of what is filled for it: what is smeared has one direction, of which the other one is made."""
        return self.directions[:1] if self.kind == "resolution" else self.directions


@dataclass(frozen=True, slots=True)
class Analysis:
    """An analysis: what it reads, what it measures, by what it judges, what it fills.

    Attributes
    ----------
    name
        What the command line and results call it.
    variables
        What each candidate has.
    regions
        Categories, of which each candidate that passes the cuts has one.
    columns
        ``columns(schema, parameters)`` says what is read: a NamedTuple of the values in ``hzzray.physics.columns``.
        ``schema`` is the release's: its names of branches.
    parameters
        A NamedTuple of numbers and flags that change the measuring, as they are unless somebody changes them. A field
        ``gev`` gets the GeV that the release's unit of energy is.
    measure
        ``measure(start, stop, columns, parameters, slots, candidates)``, compiled (``hzzray.physics.jit.entry``).
        It measures events from ``start`` on and returns how many it did: up to ``stop``, which is ``BLOCK`` events
        away at most, or as many as have room. ``slots`` (int64, one a variable) says in which row of
        ``candidates.values`` a variable is wanted; -1 for none. Or the place of such a function, ``module:name``.
    cuts
        What an event must pass unless somebody changes it.
    templates
        What is filled unless somebody asks for something else; the first has the run's digest and significance.
    absolute_weights
        Take the absolute value of every weight factor.
    window
        Where the first template's significance is counted, from a bin's edge to another's; None for nowhere.
    title
        What a plot calls it, with LaTeX between dollars: ``Z → ℓℓ``; its name where that is empty.
    """

    name: str
    variables: tuple[Variable, ...]
    regions: tuple[str, ...]
    columns: Callable[[Any, Any], Any]
    parameters: Any
    measure: Callable[..., int] | str
    cuts: tuple[Cut, ...]
    templates: tuple[Template, ...]
    absolute_weights: bool = False
    window: tuple[float, float] | None = None
    title: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no analysis; raises ValueError."""
        _several("variables", self.variables, Variable)
        _several("regions", self.regions, str)
        _several("templates", self.templates, Template)
        _several("cuts", self.cuts, Cut)
        _once("variable", [variable.name for variable in self.variables])
        _once("region", self.regions)
        _once("cut", [cut.name for cut in self.cuts])
        _once("template", [template.observable for template in self.templates])
        for variable in self.variables:
            if not variable.name.isidentifier():
                raise ValueError(f"variable {variable.name!r}: its name must be letters, digits and underscores")
            if variable.name in RESERVED:
                raise ValueError(f"variable {variable.name}: skims and histograms have a column or axis of that name")
        for cut in self.cuts:
            _several(f"cut {cut.name}: bounds", cut.bounds, Bound)
        for bound in (bound for cut in self.cuts for bound in cut.bounds):
            self.index(bound.variable)
            if bound.low is not None and bound.high is not None and not bound.low < bound.high:
                raise ValueError(f"cut on {bound.variable}: nothing is above {bound.low:g} and below {bound.high:g}")
        for template in self.templates:
            self.index(template.observable)
            _several(f"template {template.observable}: axis", (template.axis,), Axis)
        if self.window is not None:
            self.templates[0].axis.window(*self.window)
        for name, function in (("columns", self.columns), ("measure", self.measure)):
            if not callable(function) and (name, type(function)) != ("measure", str):
                raise ValueError(f"{name} is no function")
        if not all(isinstance(value, bool | int | float) for value in _fields("parameters", self.parameters).values()):
            raise ValueError("parameters are numbers and flags: true or false")

    def variable(self, name: str) -> Variable:
        """Find a variable by name; raises ValueError with the names there are."""
        return self.variables[self.index(name)]

    def index(self, variable: str) -> int:
        """Find the number of a variable; raises ValueError with the names there are."""
        for i, known in enumerate(self.variables):
            if known.name == variable:
                return i
        names = ", ".join(known.name for known in self.variables)
        raise ValueError(f"analysis {self.name} has no variable {variable!r}; it has {names}")

    def compiled(self) -> Callable[..., int]:
        """Find the compiled function."""
        if not isinstance(self.measure, str):
            return self.measure
        module, name = self.measure.split(":")
        found: Callable[..., int] = getattr(import_module(module), name)
        return found


def _several(what: str, values: object, kind: type, least: int = 1) -> None:
    """Refuse what isn't a tuple of a kind; raises ValueError."""
    if not isinstance(values, tuple):
        raise ValueError(f"{what}: expected a tuple of {kind.__name__}; one alone needs a comma: (x,)")  # noqa: TRY004
    if len(values) < least:
        raise ValueError(f"{what}: there must be one at least")
    other = next((value for value in values if not isinstance(value, kind)), None)
    if other is not None:
        raise ValueError(f"{what}: expected {kind.__name__}, not {type(other).__name__}")


def _once(what: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{what} {twice} is there twice")


def _fields(what: str, values: object) -> dict[str, object]:
    """Take a NamedTuple's values by name; raises ValueError where it is none."""
    if not isinstance(values, tuple) or not hasattr(values, "_asdict"):
        hint = ": write Parameters(), with the brackets" if isinstance(values, type) else ""
        raise ValueError(f"{what}: expected a NamedTuple, not {type(values).__name__}{hint}")
    found: dict[str, object] = values._asdict()
    return found


class Layout(NamedTuple):
    """Cuts and templates as numbers, for compiled code. ``rows`` is how many variables are wanted.

    Bound i belongs to cut ``bound_cut[i]`` (int64) and wants row ``bound_row[i]`` of the candidates' values between
    ``bound_low[i]`` and ``bound_high[i]``. Template t takes row ``axis_row[t]``; ``axes[t]`` (float64) is where its
    bins start and stop, how many there are and how wide they are; its cells, with flow bins, region after region, are
    those from ``axis_cell[t]`` on, for so many ``regions``.
    """

    slots: NDArray[np.int64]
    rows: int
    bound_cut: NDArray[np.int64]
    bound_row: NDArray[np.int64]
    bound_low: NDArray[np.float64]
    bound_high: NDArray[np.float64]
    axis_row: NDArray[np.int64]
    axes: NDArray[np.float64]
    axis_cell: NDArray[np.int64]
    regions: int


def shape_of(
    regions: Sequence[str],
    cuts: Sequence[Cut],
    templates: Sequence[Template],
    variations: Sequence[Variation] = (),
    varied: int = 1,
) -> Shape:
    """Tell the form of all that is filled of a sample; the cutflow's first row is that of all events.

    ``varied`` is how many of the templates, from the first on, have the variations too.
    """
    bins = tuple(template.axis.bins for template in templates)
    directions = sum(len(variation.filled) for variation in variations)
    return Shape(len(regions), bins, 1 + len(cuts), directions, varied if directions else 0)


def lay_out(analysis: Analysis, cuts: Sequence[Cut], templates: Sequence[Template], also: Sequence[str] = ()) -> Layout:
    """Lay out what is wanted of an analysis: only variables that a cut or a template uses, or ``also``, have a row."""
    shape = shape_of(analysis.regions, cuts, templates)
    slots = np.full(len(analysis.variables), -1, np.int64)

    def row(variable: str) -> int:
        i = analysis.index(variable)
        if slots[i] < 0:
            slots[i] = slots.max() + 1
        return int(slots[i])

    bounds = [(number, row(bound.variable), bound) for number, cut in enumerate(cuts) for bound in cut.bounds]
    observables = [row(template.observable) for template in templates]
    for variable in also:
        row(variable)
    axes = [template.axis for template in templates]
    return Layout(
        slots=slots,
        rows=int(slots.max()) + 1,
        bound_cut=np.array([number for number, _, _ in bounds], np.int64),
        bound_row=np.array([at for _, at, _ in bounds], np.int64),
        bound_low=np.array([-math.inf if bound.low is None else bound.low for _, _, bound in bounds], np.float64),
        bound_high=np.array([math.inf if bound.high is None else bound.high for _, _, bound in bounds], np.float64),
        axis_row=np.array(observables, np.int64),
        axes=np.array([(axis.start, axis.stop, axis.bins, axis.width) for axis in axes], np.float64),
        axis_cell=np.array([shape.slice(i).start for i in range(len(axes))], np.int64),
        regions=shape.regions,
    )
