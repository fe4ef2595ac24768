"""Simulated four-lepton events: decays, boosts and a crude detector, enough for a lifelike m4l plot.

Four-vectors are float64 arrays of shape (4, n): energy and momentum in GeV, in the order E, x, y, z. Numbers
without a source are tuned to what the files of the ATLAS Open Data 2020 hold: yields, m4l, flavours, pt, isolation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Masses and the Z boson's width, GeV (PDG 2024).
HIGGS_MASS = 125.0
Z_MASS, Z_WIDTH = 91.188, 2.4955

ELECTRON, MUON = 11, 13

#: Shares of H→4l and ZZ* events as 4e, 4µ, 2e2µ, after the collection's acceptance.
FLAVOURS = (0.25, 0.15, 0.6)

#: Of pt, for electrons and for muons; how often they radiate, and the mean part of what is lost then.
RESOLUTION = (0.0315, 0.023)
RADIATES = (0.22, 0.13)
LOSS = 0.09

#: What the collection asks of a lepton and of the leading lepton (GeV); the detector's reach in |eta|.
PT_MIN, LEADING_PT_MIN = 7.0, 20.0
ETA_MAX = {ELECTRON: 2.47, MUON: 2.7}


@dataclass(frozen=True, slots=True)
class ToyLeptons:
    """Leptons of n events; every array has shape (n, slots). An empty slot has pt 0.

    ``pt`` in GeV. ``type`` is 11 or 13, ``charge`` ±1. ``prompt`` tells real leptons from fakes.
    """

    pt: Floats
    eta: Floats
    phi: Floats
    type: NDArray[np.int32]
    charge: NDArray[np.int32]
    prompt: Bools

    def __len__(self) -> int:
        return len(self.pt)

    def map(self, change: Callable[..., Any]) -> ToyLeptons:
        """Apply a function to each array."""
        return ToyLeptons(*(change(getattr(self, f.name)) for f in fields(self)))

    def combine(self, other: ToyLeptons, function: Callable[..., Any]) -> ToyLeptons:
        """Apply a function to each array and its namesake."""
        return ToyLeptons(*(function(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[ToyLeptons]) -> ToyLeptons:
        """Put events after events."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def join(self, other: ToyLeptons) -> ToyLeptons:
        """Put the slots of other leptons of the same events after these."""
        return self.combine(other, lambda *slots: np.concatenate(slots, axis=1))


# Kinematics


def boost(vector: Floats, parent: Floats, mass: Floats | float) -> Floats:
    """Take a four-vector from the rest frame of its parent, of a given mass, to the parent's frame."""
    energy = (vector * parent).sum(axis=0) / mass
    out = vector[1:] + parent[1:] * ((vector[0] + energy) / (parent[0] + mass))
    return np.concatenate([energy[None], out])


def momentum_in_decay(mass: Floats | float, first: Floats | float, second: Floats | float) -> Floats:
    """Momentum of the daughters in a two-body decay at rest (PDG review of kinematics); 0 where forbidden."""
    room = np.maximum(mass**2 - (first + second) ** 2, 0.0)
    return np.asarray(np.sqrt(room * (mass**2 - (first - second) ** 2)) / (2 * mass))


def two_body(
    parent: Floats, mass: Floats | float, first: Floats | float, second: Floats | float, rng: Generator
) -> tuple[Floats, Floats]:
    """Decay parents isotropically into two daughters of given masses."""
    n = parent.shape[1]
    momentum = momentum_in_decay(mass, first, second)
    cosine = rng.uniform(-1, 1, n)
    sine = np.sqrt(1 - cosine**2)
    phi = rng.uniform(-np.pi, np.pi, n)
    energy = np.broadcast_to(np.sqrt(np.square(first) + momentum**2), n)
    direction = np.stack([sine * np.cos(phi), sine * np.sin(phi), cosine])
    daughter = boost(np.concatenate([energy[None], momentum * direction]), parent, mass)
    return daughter, parent - daughter


def produce(mass: Floats, pt: float, rng: Generator) -> Floats:
    """Make particles of given masses as a proton collision does, with a median pt in GeV."""
    n = len(mass)
    transverse = pt * np.exp(rng.normal(0, 0.8, n))
    rapidity = rng.normal(0, 1.0, n)
    phi = rng.uniform(-np.pi, np.pi, n)
    mt = np.hypot(mass, transverse)
    return np.stack(
        [mt * np.cosh(rapidity), transverse * np.cos(phi), transverse * np.sin(phi), mt * np.sinh(rapidity)]
    )


def breit_wigner(n: int, rng: Generator) -> Floats:
    """Masses of n Z bosons, GeV, within 50 GeV of the pole."""
    edge = np.arctan(100 / Z_WIDTH)
    return Z_MASS + Z_WIDTH / 2 * np.tan(rng.uniform(-edge, edge, n))


# Leptons


def pair_flavours(n: int, rng: Generator) -> NDArray[np.int32]:
    """Flavours of the leptons of two Z bosons, shape (n, 4)."""
    electrons, muons, mixed = FLAVOURS
    pairs = np.array([[ELECTRON, ELECTRON], [MUON, MUON], [ELECTRON, MUON], [MUON, ELECTRON]], np.int32)
    kind = rng.choice(4, n, p=(electrons, muons, mixed / 2, mixed / 2))
    return pairs[kind].repeat(2, axis=1)


def random_charges(shape: tuple[int, ...], rng: Generator) -> NDArray[np.int32]:
    """Pick charges, +1 or -1."""
    return (2 * rng.integers(0, 2, shape, dtype=np.int8) - 1).astype(np.int32)


def from_vectors(vectors: list[Floats], flavours: NDArray[np.int32], charges: NDArray[np.int32]) -> ToyLeptons:
    """Make prompt leptons of four-vectors; flavours and charges have shape (n, len(vectors))."""
    _, x, y, z = np.stack(vectors, axis=-1)
    pt = np.hypot(x, y)
    return ToyLeptons(pt, np.arcsinh(z / pt), np.arctan2(y, x), flavours, charges, np.ones(pt.shape, np.bool_))


@dataclass(frozen=True, slots=True)
class Fakes:
    """Leptons that aren't prompt: the share of electrons, and how often neighbours have opposite charges."""

    electrons: float = 0.38
    opposite: float = 0.5


USUAL = Fakes()


def soft_leptons(slots: int, n: int, rng: Generator, fakes: Fakes = USUAL) -> ToyLeptons:
    """Leptons of jets and of photon conversions: soft, and a share of the muons hard, as decays in flight are.

    Some lie in one jet.
    """
    shape = (n, slots)
    electron = rng.random(shape) < fakes.electrons
    kind = rng.random(shape)
    scale = np.select([kind < 0.71, (kind < 0.93) | electron], [2.0, 9.0], 60.0)
    eta, phi = rng.uniform(-2.4, 2.4, shape), rng.uniform(-np.pi, np.pi, shape)
    close = rng.random((n, 1)) < 0.3
    eta = np.where(close, eta[:, :1] + np.where(np.arange(slots) > 0, rng.normal(0, 0.3, shape), 0.0), eta)
    phi = np.where(close, phi[:, :1] + np.where(np.arange(slots) > 0, rng.normal(0, 0.3, shape), 0.0), phi)
    flips = (rng.random(shape) < fakes.opposite) & (np.arange(slots) > 0)
    return ToyLeptons(
        PT_MIN + scale * rng.standard_exponential(shape),
        eta,
        np.remainder(phi + np.pi, 2 * np.pi) - np.pi,
        np.where(electron, ELECTRON, MUON).astype(np.int32),
        (random_charges((n, 1), rng) * np.where(flips, -1, 1)).astype(np.int32),
        np.zeros(shape, np.bool_),
    )


def hard_leptons(slots: int, n: int, rng: Generator) -> ToyLeptons:
    """Leptons of W bosons and top quarks, in neighbouring pairs of opposite charge."""
    shape = (n, slots)
    sign = random_charges((n, 1), rng)
    return ToyLeptons(
        rng.gamma(2.2, 22.0, shape),
        rng.normal(0, 1.1, shape),
        rng.uniform(-np.pi, np.pi, shape),
        np.where(rng.random(shape) < 0.5, ELECTRON, MUON).astype(np.int32),
        sign * np.where(np.arange(slots) % 2, -1, 1).astype(np.int32),
        np.ones(shape, np.bool_),
    )


def rest_of_event(hard: int, n: int, rng: Generator, fakes: Fakes) -> ToyLeptons:
    """Two more leptons, ``hard`` of which (0 to 2) are prompt, the others as ``fakes`` says."""
    return hard_leptons(hard, n, rng).join(soft_leptons(2 - hard, n, rng, fakes))


# Processes: each makes n events with four leptons, before the detector


def four_leptons(mass: Floats, first: Floats, second: Floats, pt: float, rng: Generator) -> ToyLeptons:
    """Decay particles of given masses through two (virtual) Z bosons of masses ``first`` and ``second``."""
    n = len(mass)
    bosons = two_body(produce(mass, pt, rng), mass, first, second, rng)
    leptons = [*two_body(bosons[0], first, 0.0, 0.0, rng), *two_body(bosons[1], second, 0.0, 0.0, rng)]
    return from_vectors(leptons, pair_flavours(n, rng), np.tile(np.array([1, -1, 1, -1], np.int32), (n, 1)))


@cache
def higgs_pairs() -> tuple[Floats, Floats, Floats, float]:
    """Table of H→ZZ*→4l: centres of cells in m12 and m34 (GeV), cumulative probability, width of a cell.

    The density is that of A. Djouadi, Phys. Rept. 457 (2008) 1, section 2.2, restricted to m34 < m12.
    """
    width = 0.5
    grid = np.arange(4 + width / 2, HIGGS_MASS - 4, width)
    first, second = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="ij"))
    x, y = (first / HIGGS_MASS) ** 2, (second / HIGGS_MASS) ** 2
    root = 2 * momentum_in_decay(HIGGS_MASS, first, second) / HIGGS_MASS
    density = root * (root**2 + 12 * x * y) * first * second * (first + second + width < HIGGS_MASS)
    for m in (first, second):
        density = density / ((m**2 - Z_MASS**2) ** 2 + (Z_MASS * Z_WIDTH) ** 2)
    kept = (density > 0) & (second < first)
    cumulative = np.cumsum(density[kept])
    return first[kept], second[kept], cumulative / cumulative[-1], width


def higgs(n: int, rng: Generator, *, pt: float) -> ToyLeptons:
    """H→ZZ*→4l with a median Higgs pt in GeV."""
    centres12, centres34, cumulative, width = higgs_pairs()
    cell = np.searchsorted(cumulative, rng.random(n))
    first = centres12[cell] + rng.uniform(-width / 2, width / 2, n)
    second = centres34[cell] + rng.uniform(-width / 2, width / 2, n)
    return four_leptons(np.full(n, HIGGS_MASS), first, second, pt, rng)


def continuum(n: int, rng: Generator) -> ToyLeptons:
    """ZZ*: single-resonant Z→4l at m_Z, then Zγ*, then two Z bosons on their shells. At most n events."""
    kind = rng.choice(3, n, p=(0.25, 0.25, 0.5))
    falling = rng.random(n)
    soft = 5 * 16 ** rng.random(n)  # 1/m from 5 to 80 GeV, as a photon's
    on_shell = breit_wigner(n, rng), breit_wigner(n, rng)
    mass = np.choose(kind, [on_shell[0], 95 * falling ** (-1 / 3.6), 172 * falling ** (-1 / 3.6)])
    first = np.choose(kind, [soft + (mass - soft) * rng.random(n), on_shell[0], on_shell[0]])
    return allowed(mass, first, np.choose(kind, [soft, soft, on_shell[1]]), rng)


def z_pairs(n: int, rng: Generator) -> ToyLeptons:
    """Two Z bosons on their shells. At most n events."""
    mass = 172 * rng.random(n) ** (-1 / 3.6)
    return allowed(mass, breit_wigner(n, rng), breit_wigner(n, rng), rng)


def allowed(mass: Floats, first: Floats, second: Floats, rng: Generator) -> ToyLeptons:
    """Decay what phase space allows: it is closed where the two are heavier than the whole."""
    kept = (second < first) & (rng.random(len(mass)) * mass < 2 * momentum_in_decay(mass, first, second))
    return four_leptons(mass[kept], first[kept], second[kept], 25.0, rng)


def z_jets(n: int, rng: Generator, *, flavour: int, hard: int = 0, fakes: Fakes = USUAL) -> ToyLeptons:
    """One Z boson on its shell and two more leptons, ``hard`` of them prompt (tt̄Z, VVV, WZ)."""
    mass = breit_wigner(n, rng)
    leptons = two_body(produce(mass, 20.0, rng), mass, 0.0, 0.0, rng)
    flavours = np.full((n, 2), flavour, np.int32)
    z = from_vectors([*leptons], flavours, np.tile(np.array([1, -1], np.int32), (n, 1)))
    return z.join(rest_of_event(hard, n, rng, fakes))


def top(n: int, rng: Generator, *, hard: int = 0, fakes: Fakes = USUAL) -> ToyLeptons:
    """Two leptons of W bosons, not resonant, and two more, ``hard`` of them prompt (tt̄W, WWW, 4 tops)."""
    return hard_leptons(2, n, rng).join(rest_of_event(hard, n, rng, fakes))


# The detector


def lose_softest(leptons: ToyLeptons, share: float, rng: Generator) -> ToyLeptons:
    """In a share of the events put an unrelated lepton in the softest one's place."""
    n, slots = leptons.pt.shape
    chosen = rng.random((n, 1)) < share
    lost = chosen & (np.arange(slots) == np.argmin(leptons.pt, axis=1)[:, None])
    return leptons.combine(soft_leptons(1, n, rng), lambda own, other: np.where(lost, other, own))


def smear(leptons: ToyLeptons, rng: Generator) -> ToyLeptons:
    """Measure pt: a resolution, and a tail of energy that electrons, less often muons, radiate."""
    electron = leptons.type == ELECTRON
    shape = electron.shape
    radiates = rng.random(shape, np.float32) < np.where(electron, RADIATES[0], RADIATES[1])
    lost = np.where(radiates, LOSS * rng.standard_exponential(shape, np.float32), 0.0)
    resolution = 1 + np.where(electron, RESOLUTION[0], RESOLUTION[1]) * rng.standard_normal(shape, np.float32)
    return replace(leptons, pt=leptons.pt * resolution * np.exp(-lost))


def accepted(leptons: ToyLeptons) -> Bools:
    """Tell which events the collection keeps, shape (n,)."""
    reach = np.where(leptons.type == ELECTRON, ETA_MAX[ELECTRON], ETA_MAX[MUON])
    each = (leptons.pt > PT_MIN) & (np.abs(leptons.eta) < reach)
    return np.asarray(each.all(axis=1) & (leptons.pt.max(axis=1) > LEADING_PT_MIN))


def with_extras(leptons: ToyLeptons, shares: tuple[float, float], rng: Generator) -> ToyLeptons:
    """Add a fifth lepton to a share of events and a sixth to a part of those; the result has six slots."""
    extra = soft_leptons(len(shares), len(leptons), rng)
    there = rng.random(len(leptons))[:, None] < np.array(shares)
    return leptons.join(replace(extra, pt=np.where(there, extra.pt, 0.0)))


def sorted_by_pt(leptons: ToyLeptons) -> ToyLeptons:
    """Order each event's leptons, hardest first."""
    order = np.argsort(-leptons.pt, axis=1, kind="stable")
    return leptons.map(lambda array: np.take_along_axis(array, order, axis=1))


@dataclass(frozen=True, slots=True)
class ToyProcess:
    """What a simulated sample holds.

    ``per_fb`` is the expected number of its events in the collection per fb⁻¹, ``negative`` the share of
    those with negative generator weight, ``lost`` the share in which a lepton isn't from the decay, ``extra`` the
    shares with at least a fifth, and with a sixth lepton. ``beside`` is what data hold of the same kind and the sample
    lacks.
    """

    generate: Callable[[int, Generator], ToyLeptons]
    per_fb: float
    negative: float = 0.002
    lost: float = 0.02
    extra: tuple[float, float] = (0.005, 0.0002)
    beside: ToyProcess | None = None


def simulate(process: ToyProcess, attempts: int, rng: Generator, *, extras: bool) -> ToyLeptons:
    """Make what the collection keeps of some attempts; shape (at most attempts, 6 if extras else 4)."""
    made = smear(process.generate(attempts, rng), rng)
    kept = accepted(made)
    leptons = lose_softest(made.map(lambda array: array[kept]), process.lost, rng)
    return sorted_by_pt(with_extras(leptons, process.extra, rng) if extras else leptons)


def _z(flavour: int, per_fb: float, *, hard: int = 0, negative: float = 0.055, fakes: Fakes = USUAL) -> ToyProcess:
    return ToyProcess(partial(z_jets, flavour=flavour, hard=hard, fakes=fakes), per_fb, negative=negative)


def _top(per_fb: float, *, hard: int = 0, negative: float = 0.0, fakes: Fakes = USUAL) -> ToyProcess:
    return ToyProcess(partial(top, hard=hard, fakes=fakes), per_fb, negative=negative)


def _higgs(pt: float, per_fb: float, *, lost: float = 0.02, extra: tuple[float, float] = (0.004, 0.0001)) -> ToyProcess:
    return ToyProcess(partial(higgs, pt=pt), per_fb, lost=lost, extra=extra)


#: What each dataset of the releases is. Yields of 2020 are those of the released files, as far as published;
#: those of 2025 leave, after identification, a plot like the published one.
PROCESSES = {
    345060: _higgs(18, 0.881),
    344235: _higgs(70, 0.0792),
    341964: _higgs(60, 0.0342, lost=0.48, extra=(0.073, 0.0004)),
    341947: _higgs(65, 0.000183, lost=0.24, extra=(0.097, 0.027)),
    # Data have more events above 180 GeV than the release's llll says, which holds no gg→ZZ.
    363490: ToyProcess(continuum, 28.0, negative=0.05, lost=0.07, beside=ToyProcess(z_pairs, 10.0)),
    361106: _z(ELECTRON, 16.9),
    361107: _z(MUON, 13.9, negative=0.02, fakes=Fakes(0.2, 0.56)),
    361108: _top(0.2),
    410000: _top(8.3, fakes=Fakes(0.3, 0.65)),
    410155: _top(0.05, hard=1),
    346228: _higgs(70, 0.0792),
    346310: _higgs(65, 0.004, lost=0.24),
    346311: _higgs(60, 0.002, lost=0.48),
    346312: _higgs(60, 0.002, lost=0.48),
    346340: _higgs(90, 0.004),
    346341: _higgs(90, 0.004, lost=0.3),
    346342: _higgs(90, 0.001, lost=0.5),
    364242: _top(0.01, hard=1),
    364243: _z(MUON, 0.12, hard=2),
    364246: _z(ELECTRON, 0.02, hard=1),
    364248: ToyProcess(continuum, 0.03),
    410218: _z(ELECTRON, 0.2, hard=2),
    410219: _z(MUON, 0.2, hard=2),
    410470: _top(40.0),
    412043: _top(0.01, hard=2),
    700320: _z(ELECTRON, 60.0),
    700321: _z(ELECTRON, 80.0),
    700322: _z(ELECTRON, 110.0),
    700323: _z(MUON, 60.0),
    700324: _z(MUON, 80.0),
    700325: _z(MUON, 110.0),
    700600: ToyProcess(continuum, 28.0, negative=0.05, lost=0.07),
    700601: _z(ELECTRON, 8.0, hard=1),
}
