"""Observed significances of toys of many seeds, and how typical one of them is: ``python benchmarks/seeds.py``."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from hzzray.data.catalogue import Release, release
from hzzray.data.toy import typical_seed, write_toys
from hzzray.runs.request import make_spec
from hzzray.runs.result import Result
from hzzray.runs.run import execute, make_settings


def result_of(chosen: Release, seed: int, events: int, folder: Path) -> Result:
    """Write toys of a release's format and a seed, and run ``h4l`` over them."""
    toys = folder / f"toys-{seed}"
    write_toys(toys, chosen, events=events, seed=seed)
    settings = make_settings(runs=folder, run_id=f"seed-{seed}", sources=(str(toys),), engine="serial")
    spec = make_spec(chosen, selection="h4l", observables=("m4l",))
    return execute(spec, settings, planned=lambda _: None, progress=lambda _: None)


def main() -> None:
    """Print each seed's counts in the window, then the median and the default seed's distance from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", default="toy", help="whose format and luminosity (%(default)s)")
    parser.add_argument("--seeds", type=int, default=200, help="seeds 1 to this (%(default)s)")
    parser.add_argument("--events", type=int, default=20_000, help="simulated events; data don't depend on it")
    options = parser.parse_args()
    observed, chosen = {}, release(options.release)
    typical = typical_seed(chosen)
    for seed in sorted({*range(1, options.seeds + 1), typical}):
        with tempfile.TemporaryDirectory() as folder:
            found = result_of(chosen, seed, options.events, Path(folder)).significance
        if found.observed is None:
            raise SystemExit(f"seed {seed} has no observed significance")
        observed[seed] = found.observed
        print(
            f"seed {seed}: {found.n_data:.0f} data, {found.n_signal:.2f} signal, {found.n_background:.2f} background: "
            f"observed {found.observed:.2f}, expected {found.asimov:.2f}"
        )
    those = [value for seed, value in observed.items() if seed <= options.seeds]
    hundredths, median = statistics.quantiles(those, n=100), statistics.median(those)
    print(f"median of {len(those)} seeds: {median:.2f} (16 to 84 %: {hundredths[15]:.2f} to {hundredths[83]:.2f})")
    print(f"seed {typical}: {observed[typical]:.2f}, {observed[typical] - median:+.2f} from it")


if __name__ == "__main__":
    main()
