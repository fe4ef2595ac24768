"""Time one way in a process of its own and print one line of JSON: ``measure.py MODULE:FUNCTION FILE``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path


def pin() -> None:
    """Keep this process on one core, the last that it may use, where the system lets it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    """Call the way once to warm it up, then time each call."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("way")
    parser.add_argument("path", type=Path)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--packages", nargs="*", default=[])
    args = parser.parse_args()
    pin()
    module, function = args.way.split(":")
    way = getattr(importlib.import_module(module), function)

    outcome = way(args.path)
    wall, cpu = [], []
    for _ in range(args.repeats):
        started, used = time.perf_counter(), time.process_time()
        outcome = way(args.path)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)

    versions = {name: importlib.metadata.version(name) for name in args.packages}
    if "ROOT" in sys.modules:
        versions["root"] = str(sys.modules["ROOT"].gROOT.GetVersion())
    print(json.dumps({**dataclasses.asdict(outcome), "wall_s": wall, "cpu_s": cpu, "versions": versions}))


if __name__ == "__main__":
    main()
