"""Bias and coverage of the mass fit in pseudo-experiments: python benchmarks/mass.py RUN [--toys 500] [--runs DIR].

RUN is a finished run with narrow bins of m4l (--axis 80:250:340). Events are thrown as expected of µ = 1 at each mass.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np

from hzzray.runs.fit_run import inputs
from hzzray.runs.folder import find_run, load_json
from hzzray.runs.templates import load_templates
from hzzray.statistics.mass import LEAST_Q0, MassFit, MassModel, reach_of


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
    model = MassModel.of(inputs(result, load_templates(result, folder), "m4l"))
    rng = np.random.default_rng(asked.seed)
    for mass in asked.masses:
        begun = time.monotonic()
        factors = np.ones(len(model.known))
        expected = model.expected(mass, asked.strength, factors)
        truth = MassFit(mass, math.nan, None, None, asked.strength, math.nan, math.nan, tuple(factors))
        reach = reach_of(model.heights(truth, asked.toys, asked.seed + 1), asked.toys, asked.seed + 1)
        # As a run's figures are: without a signal to tell it by there is no mass.
        fits, usual = [], []
        for _ in range(asked.toys):
            toy, counts = model.toy(truth, rng)
            fits.append(toy.reaching(counts, toy.fit(counts, errors=False), reach.height))
            usual.append(float(toy.at(counts, mass, fits[-1]).fval) - fits[-1].twice_nll)
        kept = [one for one in fits if one.q0 >= LEAST_Q0]
        off = np.array([one.mass - mass for one in kept])
        spread = float(np.diff(np.percentile(off, (16, 84)))[0] / 2)
        print(f"m_H = {mass:g} GeV, µ = {asked.strength:g}: {expected.sum():.1f} events expected")
        print(
            f"  {asked.toys} toys, {len(fits) - len(kept)} without a signal; half of 16 to 84 %: {spread:.2f} GeV;",
            end="",
        )
        error = off.std() / spread / math.sqrt(len(kept))
        print(f" bias of it: median {np.median(off) / spread:+.3f}, mean {off.mean() / spread:+.3f} ± {error:.3f}")
        # An interval that leaves the range of masses on a side has no end there.
        ends = [(one.down or math.inf, one.up or math.inf) for one in kept]
        said = covered([-up <= shift <= down for (down, up), shift in zip(ends, off, strict=True)])
        one = covered([at <= 1.0 for at, fit in zip(usual, fits, strict=True) if fit.q0 >= LEAST_Q0])
        print(f"  −2 ln λ of the true mass is at most 1 in {one}; intervals up to {reach.height:.2f}, the height of as")
        print(f"  many others, hold it in {said}; {time.monotonic() - begun:.0f} s")


def covered(found: list[bool]) -> str:
    """Write a share with its error."""
    share = float(np.mean(found))
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / len(found)):.1f} %"


if __name__ == "__main__":
    main()
