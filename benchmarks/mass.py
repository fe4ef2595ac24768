"""Bias and coverage of the mass fit in pseudo-experiments: python benchmarks/mass.py RUN [--toys 500] [--runs DIR].

RUN is a finished run with narrow bins of m4l (--axis 80:250:340). Events are thrown as expected of µ = 1 at each mass.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np

from hzzray.runs.fit_run import ingredients
from hzzray.runs.folder import find_run, load_json
from hzzray.runs.templates import load_templates
from hzzray.statistics.mass import MassModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--toys", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--masses", type=float, nargs="*", default=[125.0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    folder = find_run(asked.run, asked.runs).path
    result = load_json(folder)
    model = MassModel.of(ingredients(result, load_templates(result, folder), "m4l"))
    rng = np.random.default_rng(asked.seed)
    for mass in asked.masses:
        begun = time.monotonic()
        expected = model.expected(mass, asked.strength, np.ones(len(model.known)))
        fits = [model.fit(rng.poisson(expected).astype(float)) for _ in range(asked.toys)]
        # As a run's figures are: without a signal to tell it by there is no mass.
        kept = [one for one in fits if one.q0 >= 1.0]
        whole = [one for one in kept if one.down is not None and one.up is not None]
        off = np.array([one.mass - mass for one in kept])
        spread = float(np.diff(np.percentile(off, (16, 84)))[0] / 2)
        # An interval that leaves the range of masses on a side has no end there.
        reach = [(one.down or math.inf, one.up or math.inf) for one in kept]
        covered = np.mean([-up <= shift <= down for (down, up), shift in zip(reach, off, strict=True)])
        error = math.sqrt(covered * (1 - covered) / len(kept))
        print(f"m_H = {mass:g} GeV, µ = {asked.strength:g}: {expected.sum():.1f} events expected")
        print(
            f"  {asked.toys} toys, {len(fits) - len(kept)} without a signal, {len(kept) - len(whole)} with an open end"
        )
        print(f"  half of 16 to 84 %: {spread:.2f} GeV; bias of it: median {np.median(off) / spread:+.3f}, ", end="")
        print(f"mean {off.mean() / spread:+.3f}; coverage {100 * covered:.1f} ± {100 * error:.1f} %; ", end="")
        print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
