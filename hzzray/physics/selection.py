"""What an event must be to count, as data: an analysis' parameters and cuts as somebody chose them. And the presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hzzray.physics.analysis import Analysis, Bound, Cut
from hzzray.physics.lepton_columns import (
    CHANNELS,
    M34_EXCESS,
    TEMPLATES,
    TITLE,
    VARIABLES,
    Best,
    Names,
    Notebook,
    columns,
)


@dataclass(frozen=True, slots=True)
class Selection:
    """An analysis' parameters, all of them but ``gev``, and its cuts; ``name`` says whose they are.

    ``absolute_weights`` takes the absolute value of every weight factor, as the 2025 notebook does.
    """

    name: str
    parameters: dict[str, bool | int | float]
    cuts: tuple[Cut, ...]
    absolute_weights: bool = False

    def __post_init__(self) -> None:
        """Refuse a selection without a cut, and a cut without a bound: events that can't be filled stop at one."""
        if not self.cuts:
            raise ValueError("a selection needs at least one cut")
        for cut in self.cuts:
            if not cut.bounds:
                raise ValueError(f"cut {cut.name}: there must be one bound at least")

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the cutflow's rows, in order."""
        return ("all", *(cut.name for cut in self.cuts))


def select(analysis: Analysis, name: str = "") -> Selection:
    """Make an analysis' own selection."""
    parameters = {field: value for field, value in analysis.parameters._asdict().items() if field != "gev"}
    return Selection(name or analysis.name, parameters, analysis.cuts, analysis.absolute_weights)


def parameters_of(analysis: Analysis, selection: Selection, gev: float) -> object:
    """Make the NamedTuple of parameters that an analysis measures with; raises ValueError for what it doesn't have."""
    own = analysis.parameters
    unknown = selection.parameters.keys() - set(own._fields)
    if unknown:
        raise ValueError(f"analysis {analysis.name} has no parameter {', '.join(sorted(unknown))}")
    if not all(math.isfinite(value) for value in selection.parameters.values()):
        raise ValueError(f"analysis {analysis.name}: parameters are finite numbers")
    given = {name: type(getattr(own, name))(value) for name, value in selection.parameters.items()}
    return own._replace(**given, **({"gev": gev} if "gev" in own._fields else {}))


def rows_with(variable: str, cuts: Sequence[Cut]) -> list[str]:
    """Name the rows of the cutflow that have a bound on a variable."""
    return [cut.name for cut in cuts if any(bound.variable == variable for bound in cut.bounds)]


def changed(
    analysis: Analysis,
    selection: Selection,
    bounds: Sequence[Bound],
    parameters: Mapping[str, bool | float],
) -> Selection:
    """Change bounds and parameters; what comes of it is named after its origin, so that results tell them apart.

    A bound takes the place of the one that its variable has, in the same row of the cutflow; one on a variable that has
    none becomes a row of its own, the last. Without ends it takes the variable's bounds away, in all rows. Raises
    ValueError for what the analysis has no variable or parameter for, for a variable that is given twice, and for ends
    that could take the place of several rows' bounds.
    """
    if not bounds and not parameters:
        return selection
    for name in parameters:
        if name not in selection.parameters:
            known = ", ".join(selection.parameters) or "none"
            raise ValueError(f"analysis {analysis.name} has no parameter {name!r}; it has {known}")
    variables = [bound.variable for bound in bounds]
    cuts = list(selection.cuts)
    for bound in bounds:
        analysis.index(bound.variable)
        if variables.count(bound.variable) > 1:
            raise ValueError(f"cut on {bound.variable}: given twice")
        rows = rows_with(bound.variable, cuts)
        if len(rows) > 1 and (bound.low, bound.high) != (None, None):
            raise ValueError(
                f"cut on {bound.variable}: rows {', '.join(rows)} each have a bound on it, which one can't replace; "
                f"{bound.variable}=: takes them all away"
            )
        if not rows:
            cuts.append(Cut(bound.variable, (bound,)))
        cuts = [replace(cut, bounds=tuple(_instead(bound, old) for old in cut.bounds)) for cut in cuts]
    bounded = [replace(cut, bounds=tuple(b for b in cut.bounds if (b.low, b.high) != (None, None))) for cut in cuts]
    return replace(
        selection,
        name=selection.name.removesuffix("*") + "*",
        parameters={**selection.parameters, **parameters},
        cuts=tuple(cut for cut in bounded if cut.bounds),
    )


def _at_least(variable: str, number: int) -> Bound:
    return Bound(variable, number - 0.5)


def _instead(bound: Bound, old: Bound) -> Bound:
    return bound if old.variable == bound.variable else old


# The first row asks for finite numbers too and, for h4l, counts leptons in acceptance only.
FOUR_LEPTONS = Cut("four leptons", (_at_least("n_leptons", 4),), basic=True)
TRIGGER = Cut("trigger", (_at_least("triggered", 1),))
MATCHED = Cut("trigger-matched", (_at_least("n_matched", 1),))
IDENTIFICATION = Cut("identification", (_at_least("n_identified", 4),))
ISOLATION = Cut("isolation", (_at_least("n_identified", 4),))


def leading(*thresholds: float) -> Cut:
    """Ask for pt [GeV] of the leptons, hardest first."""
    return Cut("pt", tuple(Bound(f"pt{i}", least) for i, least in enumerate(thresholds, 1)))


#: The notebooks' analysis: the first four leptons of the file, in the file's order.
NOTEBOOK = Analysis(
    "notebook",
    VARIABLES[:M34_EXCESS],  # its least is a matter of h4l's parameters
    CHANNELS,
    columns,
    Notebook(),
    "hzzray.physics.notebook:measure",
    cuts=(
        FOUR_LEPTONS,
        Cut("flavour", (Bound("flavours", 0.5),), basic=True),
        Cut("charge", (Bound("charge", -0.5, 0.5),)),
    ),
    templates=TEMPLATES,
    title=TITLE,
)

#: The discovery paper's (arXiv:1207.7214, section 4.1): the best quadruplet of two same-flavour, opposite-sign pairs.
H4L = Analysis(
    "h4l",
    VARIABLES,
    CHANNELS,
    columns,
    Best(),
    "hzzray.physics.h4l:measure",
    cuts=(
        FOUR_LEPTONS,
        TRIGGER,
        IDENTIFICATION,
        Cut("two SFOS pairs", (Bound("sfos_pairs", 0.5),)),
        leading(20.0, 15.0, 10.0),
        Cut("delta R", (Bound("dr_same", 0.1), Bound("dr_other", 0.2))),
        Cut("J/psi veto", (Bound("m_sfos", 5.0),)),
        Cut("Z1 window", (Bound("m12", 50.0, 106.0),)),
        Cut("Z2 window", (Bound("m34_excess", 0.0), Bound("m34", high=115.0))),
    ),
    templates=TEMPLATES,
    title=TITLE,
)

#: Those that there are without a file of the user's, by name.
ANALYSES = {analysis.name: analysis for analysis in (NOTEBOOK, H4L)}


def _notebook_2020(_: Names) -> Selection:
    return select(NOTEBOOK, "notebook-2020")


def _notebook_2020_pt(_: Names) -> Selection:
    four, *rest = NOTEBOOK.cuts
    return replace(select(NOTEBOOK, "notebook-2020-pt"), cuts=(four, leading(30.0, 20.0, 10.0), *rest))


def _notebook_2025(_: Names) -> Selection:
    four, *rest = NOTEBOOK.cuts
    cuts = (four, TRIGGER, MATCHED, leading(20.0, 15.0, 10.0), IDENTIFICATION, *rest)
    return replace(select(NOTEBOOK, "notebook-2025"), cuts=cuts, absolute_weights=True)


def _h4l(names: Names) -> Selection:
    """Ask for the trigger, and for identified and isolated leptons, wherever a release says how."""
    own = select(H4L)
    identified = bool(names.electron_id and names.muon_id)
    isolated = bool(names.electron_isolation and names.muon_isolation)
    good = (IDENTIFICATION,) if identified else (ISOLATION,) if isolated else ()
    has = {TRIGGER: (TRIGGER,) if names.triggers else (), IDENTIFICATION: good}
    return replace(
        own,
        parameters={**own.parameters, "identified": identified, "isolated": isolated},
        cuts=tuple(kept for cut in own.cuts for kept in has.get(cut, (cut,))),
    )


_PRESETS: dict[str, tuple[Analysis, Callable[[Names], Selection]]] = {
    "notebook-2020": (NOTEBOOK, _notebook_2020),
    "notebook-2020-pt": (NOTEBOOK, _notebook_2020_pt),
    "notebook-2025": (NOTEBOOK, _notebook_2025),
    "h4l": (H4L, _h4l),
}

#: Names of the presets.
PRESETS = tuple(_PRESETS)


def preset(name: str, names: Names) -> tuple[Analysis, Selection]:
    """Find a preset by name, as a release allows; raises KeyError.

    A notebook's is the notebook's, whatever the release.
    """
    analysis, make = _PRESETS[name]
    return analysis, make(names)
