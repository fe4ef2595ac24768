"""A made-up result with the shapes of the real one."""

from __future__ import annotations

from typing import Any

import numpy as np

from hzzray.data.catalogue import release
from hzzray.physics.selection import CHANNELS
from hzzray.runs.request import make_spec
from hzzray.runs.result import Bins, Result
from hzzray.statistics import significance

SHARES = dict(zip(CHANNELS, (0.2, 0.35, 0.45), strict=True))


def bins(sumw, sumw2) -> dict[str, Any]:
    sumw, sumw2 = np.asarray(sumw, float), np.asarray(sumw2, float)
    return {
        "n_out": int(abs(sumw).sum()),
        "yield_": float(sumw.sum()),
        "yield_error": float(np.sqrt(sumw2.sum())),
        "sumw": tuple(sumw.tolist()),
        "sumw2": tuple(sumw2.tolist()),
        "underflow": 0.0,
        "overflow": 0.0,
    }


def shape(role: str, zz: bool, edges) -> tuple[np.ndarray, float]:
    """Events per fb⁻¹ in each bin, and the weight of a simulated event."""
    m = (edges[:-1] + edges[1:]) / 2
    width = edges[1] - edges[0]
    if role == "signal":
        return 0.7 * width / 2.3 * np.exp(-(((m - 124.3) / 2.3) ** 2) / 2) / np.sqrt(2 * np.pi), 0.002
    if zz:
        continuum = 0.10 + 0.62 / (1 + np.exp(-(m - 183) / 4)) * np.exp(-(m - 183).clip(0) / 90)
        return width * (continuum + 0.55 * np.exp(-(((m - 90.5) / 2.5) ** 2) / 2)), 0.004
    return 0.06 * width * np.exp(-(m - 80) / 60), 0.4


def make_result(name: str = "2020", *, seed: int = 11, **changes: Any) -> Result:
    """Build the result of a complete run of a release; ``changes`` are laid over it."""
    rel = release(name)
    spec = make_spec(rel, samples=tuple(sample.name for sample in rel.samples))
    edges = rel.axis.edges
    random = np.random.default_rng(seed)
    expected = {c: np.zeros(rel.axis.bins) for c in CHANNELS}
    rows: dict[str, Any] = {}
    for group in (g for g in rel.groups if g.role != "data"):
        density, weight = shape(group.role, "ZZ" in group.name, edges)
        channels = {}
        for c, share in SHARES.items():
            simulated = random.poisson(density * rel.luminosity * share / weight)
            channels[c] = bins(simulated * weight, simulated * weight**2)
            expected[c] += density * rel.luminosity * share
        rows[group.name] = _group(group, channels)
    for group in (g for g in rel.groups if g.role == "data"):
        counts = {c: random.poisson(expected[c]) for c in CHANNELS}
        rows[group.name] = _group(group, {c: bins(n, n) for c, n in counts.items()})
    groups = {group.name: rows[group.name] for group in rel.groups}

    inside = rel.axis.window(*rel.window)

    def count(role: str, field: str = "sumw") -> float:
        return float(sum(sum(row[field][inside]) for row in groups.values() if row["role"] == role))

    s, b, n = count("signal"), count("background"), count("data")
    error = count("background", "sumw2") ** 0.5
    sigma_b = 0.3**0.5 * b
    entries = sum(sample.entries or 0 for sample in rel.samples)
    body = {
        "run_id": "20261121-120000-abcdef",
        "spec": spec,
        "luminosity": dict.fromkeys(("asked", "simulation", "data"), spec.luminosity),
        "environment": "local",
        "status": "complete",
        "tasks": {"planned": 24, "merged": 24, "failed": 0},
        "digest": "0" * 64,
        "fraction": 1.0,
        "edges": tuple(edges.tolist()),
        "samples": {},
        "groups": groups,
        "significance": {
            "window": rel.window,
            "n_signal": s,
            "n_background": b,
            "n_background_error": error,
            "sigma_b": sigma_b,
            "n_data": int(n),
            "notebook": significance.notebook(s + b, b),
            "s_over_sqrt_b": significance.s_over_sqrt_b(s, b),
            "s_over_sqrt_b_sigma": significance.s_over_sqrt_b_sigma(s, b, sigma_b),
            "asimov": significance.asimov(s, b),
            "asimov_sigma": significance.asimov_sigma(s, b, sigma_b),
            "observed": significance.observed(n, b),
            "observed_sigma": significance.observed_sigma(n, b, sigma_b),
        },
        "missing": (),
        "failures": (),
        "cost": {
            "wall_s": 2.0,
            "cpu_s": 3.0,
            "read_s": 1.0,
            "bytes_read": 10**8,
            "events": entries,
            "events_per_s": 4e5,
        },
        "versions": {"hzzray": "0"},
    }
    return Result.model_validate({**body, **changes})


def _group(group: Any, channels: dict[str, Any]) -> dict[str, Any]:
    total = bins(
        sum(np.array(row["sumw"]) for row in channels.values()),
        sum(np.array(row["sumw2"]) for row in channels.values()),
    )
    return {**total, "role": group.role, "colour": group.colour, "channels": channels}


def with_groups(result: Result, **sumw: Any) -> Result:
    """Replace bin contents: group name (any part of it) to contents; sumw2 is their absolute value."""
    groups = {}
    for name, group in result.groups.items():
        new = next((values for part, values in sumw.items() if part in name), None)
        if new is not None:
            values = np.broadcast_to(np.asarray(new, float), (len(group.sumw),))
            row = bins(values, abs(values))
            channels = {c: Bins.model_validate(row) for c in group.channels}
            group = group.model_copy(update={**row, "channels": channels})  # noqa: PLW2901
        groups[name] = group
    return result.model_copy(update={"groups": groups})
