"""Made-up inputs of a fit, in the shape of the real ones: a peak on a background, in three regions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hzzray.data.catalogue import Uncertainty
from hzzray.physics.selection import CHANNELS
from hzzray.statistics.model_inputs import ModelInputs, Process

EDGES = np.linspace(80.0, 250.0, 35)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
SHARES = np.array([0.2, 0.35, 0.45])[:, None]

LUMI = Uncertainty(name="lumi", up=0.02, down=0.02, source="made up")
OF_ZZ = Uncertainty(name="xsec_ZZ", up=0.06, down=0.05, source="made up")
FAKES = Uncertainty(name="fakes", up=0.5, down=0.5, source="made up")


def peak(mean: float = 125.0, width: float = 2.5) -> np.ndarray:
    shape = np.exp(-(((CENTRES - mean) / width) ** 2) / 2)
    return shape / shape.sum()


def process(name, role, events, weight, *uncertainties, **more) -> Process:
    """A process of so many events, shape (bins,), shared out to the regions, each simulated event of one weight."""
    sumw = SHARES * np.asarray(events, float)
    return Process(name, f"group of {name}", role, sumw, sumw * weight, uncertainties=(LUMI, *uncertainties), **more)


def scale(events, weight: float = 0.004) -> dict[str, np.ndarray]:
    """A variation that moves a process' shape and yield."""
    tilt = SHARES * np.asarray(events, float) * (CENTRES - 125.0) / 1000.0
    nominal = SHARES * np.asarray(events, float)
    return {"electron_scale_up": 1.02 * nominal + tilt, "electron_scale_down": 0.98 * nominal - tilt}


def inputs(mu: float = 1.0, *, variations: bool = False, signal: float = 12.0, data: object = "asimov") -> ModelInputs:
    """Make some; ``data`` are those expected of a µ, thrown with a seed, or None."""
    zz = 1.5 + 4.0 / (1 + np.exp(-(CENTRES - 183) / 4))
    top = 1.2 * np.exp(-(CENTRES - 80) / 60)
    higgs = signal * peak()
    processes = (
        process("higgs", "signal", higgs, 0.002, variations=scale(higgs) if variations else {}),
        process("zz", "background", zz, 0.004, OF_ZZ, variations=scale(zz) if variations else {}),
        process("top", "background", top, 0.05, FAKES),
    )
    counts = sum(one.sumw * (mu if one.role == "signal" else 1.0) for one in processes)
    if isinstance(data, int):
        counts = np.random.default_rng(data).poisson(counts).astype(float)
    found = ModelInputs("m4l", "GeV", CHANNELS, EDGES, processes, counts)
    return replace(found, data=None, no_data="no data sample is in this run") if data is None else found
