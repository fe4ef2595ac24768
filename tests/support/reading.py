"""What our own analyses ask a reader for, and one object for all steps of a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hzzray.data.schema import Schema
from hzzray.physics.analysis import Analysis
from hzzray.physics.columns import Offsets, Reads, Step, empty, needed
from hzzray.physics.lepton_columns import Best, Notebook, columns
from hzzray.physics.selection import Selection, parameters_of, preset


@dataclass(frozen=True)
class Asked:
    """What is asked of four leptons: an analysis' parameters, and variables beside the kinematic ones."""

    parameters: Best | Notebook
    variables: frozenset[str] = frozenset()

    def reads(self, schema: Schema, *, simulation: bool) -> Reads:
        """Say what is read of a release's files."""
        asked = needed(columns(schema, self.parameters), self.variables)
        return Reads(asked, schema.factors, schema.divisor or "") if simulation else Reads(asked)


#: Kinematics alone.
PLAIN = Asked(Best(identified=False, isolated=False))

#: Every kind of branch that the 2020 schema has.
EVERYTHING = Asked(Best(identified=False, isolated=True), frozenset({"triggered", "n_matched"}))


def asked(name: str, schema: Schema) -> Asked:
    """Say what a preset's cuts ask for."""
    return asked_by(*preset(name, schema), schema)


def asked_by(analysis: Analysis, selection: Selection, schema: Schema) -> Asked:
    """Say what a selection's cuts ask for."""
    variables = frozenset(bound.variable for cut in selection.cuts for bound in cut.bounds)
    parameters: Any = parameters_of(analysis, selection, schema.gev)
    return Asked(parameters, variables)


def joined(steps: list[Step], reads: Reads) -> Step:
    """Join steps; of one that is to outlive the reader's next, or the reader, each array must be a copy."""
    if len(steps) == 1:
        return steps[0]
    columns = []
    for i, read in enumerate(reads.columns):
        arrays = [step.columns[i] for step in steps] or [empty(read)]
        if isinstance(read, Offsets):
            ends = np.cumsum([0, *(array[-1] for array in arrays)])
            starts = [array[1:] + end for array, end in zip(arrays, ends, strict=False)]
            arrays = [np.zeros(1, np.int64), *starts]
        columns.append(np.concatenate(arrays))
    return Step(
        sum(step.events for step in steps),
        type(reads.columns)(*columns),
        np.concatenate([step.factors for step in steps], axis=-1) if steps else np.empty((len(reads.factors), 0)),
        np.concatenate([step.divisor for step in steps]) if steps else np.empty(0),
    )


def copied(step: Step) -> Step:
    """Copy a step's arrays, which the reader's next step writes over."""
    columns = type(step.columns)(*(array.copy() for array in step.columns))
    return Step(step.events, columns, step.factors.copy(), step.divisor.copy())
