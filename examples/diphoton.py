r"""H → γγ as the release's own example selects it: two tight, isolated photons, and the mass of the two.

    python examples/diphoton.py --toy toy-photons
    hzzray run --release photons-toy --catalogue examples/diphoton.yaml --source toy-photons \
        --analysis examples/diphoton.py:diphoton

Files of ATLAS Open Data 2020's GamGam collection have the same branches. There are no leptons in it: the analysis names
its branches itself. The toy writer is the second half of this file.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from hzzray.physics import (
    Analysis,
    Axis,
    Bound,
    Cut,
    Jagged,
    Offsets,
    Scalar,
    Template,
    Variable,
    delta_r,
    entry,
    mass,
    momentum,
    one_each,
    put,
)

VARIABLES = (
    Variable("m_yy", r"$m_{\gamma\gamma}$", "GeV"),
    Variable("pt_yy", r"$p_T^{\gamma\gamma}$", "GeV"),
    Variable("pt1", r"$p_T^{\gamma_1}$", "GeV"),
    Variable("pt2", r"$p_T^{\gamma_2}$", "GeV"),
    Variable("pt1_m", r"$p_T^{\gamma_1} / m_{\gamma\gamma}$"),
    Variable("pt2_m", r"$p_T^{\gamma_2} / m_{\gamma\gamma}$"),
    Variable("eta1", r"$\eta^{\gamma_1}$"),
    Variable("eta2", r"$\eta^{\gamma_2}$"),
    Variable("dr", r"$\Delta R(\gamma, \gamma)$"),
    Variable("n_good", "good photons"),
    Variable("triggered", "fired the trigger"),
    Variable("ptcone", r"larger ptcone30 / $p_T$"),
    Variable("etcone", r"larger etcone20 / $p_T$"),
)
(M_YY, PT_YY, PT1, PT2, PT1_M, PT2_M, ETA1, ETA2, DR, N_GOOD, TRIGGERED, PTCONE, ETCONE) = range(len(VARIABLES))


class Columns(NamedTuple):
    """Photons: a collection of its own, cut into events by its own offsets; and a number an event."""

    offsets: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray
    energy: np.ndarray
    tight: np.ndarray
    ptcone: np.ndarray
    etcone: np.ndarray
    trigger: np.ndarray


class Parameters(NamedTuple):
    """What makes a photon a good one; GeV."""

    gev: float = 1.0
    pt_min: float = 25.0
    eta_max: float = 2.37
    crack_low: float = 1.37
    crack_high: float = 1.52
    tight: bool = True


def columns(schema, parameters):
    photons = {"collection": "photons"}
    return Columns(
        offsets=Offsets(**photons),
        pt=Jagged("photon_pt", role="pt", **photons),
        eta=Jagged("photon_eta", role="eta", **photons),
        phi=Jagged("photon_phi", role="phi", **photons),
        energy=Jagged("photon_E", role="energy", **photons),
        tight=Jagged("photon_isTightID", "u1", **photons),
        ptcone=Jagged("photon_ptcone30", only_for=("ptcone",), **photons),
        etcone=Jagged("photon_etcone20", only_for=("etcone",), **photons),
        trigger=Scalar("trigP", "u1", only_for=("triggered",)),
    )


@entry
def measure(start, stop, c, p, slots, out):
    events = one_each(start, stop, out)
    for k in range(events):
        first, second, n = -1, -1, 0
        for i in range(c.offsets[start + k], c.offsets[start + k + 1]):
            eta = abs(c.eta[i])
            seen = eta < p.eta_max and (eta < p.crack_low or eta > p.crack_high)
            if c.pt[i] * p.gev > p.pt_min and seen and (c.tight[i] or not p.tight):
                n += 1
                if first < 0 or c.pt[i] > c.pt[first]:
                    first, second = i, first
                elif second < 0 or c.pt[i] > c.pt[second]:
                    second = i
        put(out, slots, N_GOOD, k, n)
        if slots[TRIGGERED] >= 0:  # else it isn't read
            put(out, slots, TRIGGERED, k, c.trigger[start + k])
        if n < 2:
            continue
        x1, y1, z1, e1 = momentum(c.pt[first], c.eta[first], c.phi[first], c.energy[first], p.gev)
        x2, y2, z2, e2 = momentum(c.pt[second], c.eta[second], c.phi[second], c.energy[second], p.gev)
        pt1, pt2 = c.pt[first] * p.gev, c.pt[second] * p.gev
        m = mass(x1 + x2, y1 + y2, z1 + z2, e1 + e2)
        put(out, slots, M_YY, k, m)
        put(out, slots, PT_YY, k, np.sqrt((x1 + x2) ** 2 + (y1 + y2) ** 2))
        put(out, slots, PT1, k, pt1)
        put(out, slots, PT2, k, pt2)
        put(out, slots, PT1_M, k, pt1 / m)
        put(out, slots, PT2_M, k, pt2 / m)
        put(out, slots, ETA1, k, c.eta[first])
        put(out, slots, ETA2, k, c.eta[second])
        put(out, slots, DR, k, delta_r(c.eta[first], c.phi[first], c.eta[second], c.phi[second]))
        if slots[PTCONE] >= 0:
            put(out, slots, PTCONE, k, max(c.ptcone[first] / c.pt[first], c.ptcone[second] / c.pt[second]))
        if slots[ETCONE] >= 0:
            put(out, slots, ETCONE, k, max(c.etcone[first] / c.pt[first], c.etcone[second] / c.pt[second]))
    return events


diphoton = Analysis(
    "diphoton",
    VARIABLES,
    ("all photons",),
    columns,
    Parameters(),
    measure,
    cuts=(
        Cut("trigger", (Bound("triggered", 0.5),)),
        Cut("two good photons", (Bound("n_good", 1.5, 2.5),), basic=True),
        Cut("isolation", (Bound("ptcone", high=0.065), Bound("etcone", high=0.065))),
        Cut("pt", (Bound("pt1", 35.0), Bound("pt2", 25.0))),
        Cut("mass", (Bound("m_yy", 105.0, 160.0),)),
    ),
    templates=(
        Template("m_yy", Axis(105.0, 160.0, 55)),
        Template("pt_yy", Axis(0.0, 200.0, 40)),
        Template("pt1", Axis(0.0, 200.0, 40)),
        Template("pt2", Axis(0.0, 160.0, 40)),
        Template("eta1", Axis(-2.4, 2.4, 24)),
        Template("eta2", Axis(-2.4, 2.4, 24)),
    ),
    window=(122.0, 128.0),
    title=r"$H \rightarrow \gamma\gamma$",
)


# Toys: nothing of it belongs to the analysis.

DATA = {"data_A": 0.05, "data_B": 0.19, "data_C": 0.29, "data_D": 0.47}  # parts of the luminosity, the release's
YIELD = {"signal": 1100, "continuum": 60000}  # events in 10 fb⁻¹, before the selection
GENERATED = {"signal": 20000, "continuum": 60000}
PATHS = {"signal": "MC/toy_Hyy.GamGam.root", "continuum": "MC/toy_yy.GamGam.root"}


def boosted(p, beta):
    """Boost four-momenta (E, px, py, pz), shape (4, events), by velocities of shape (3, events)."""
    b2 = (beta**2).sum(axis=0)
    gamma = 1 / np.sqrt(1 - b2)
    along = (beta * p[1:]).sum(axis=0)
    grown = np.divide(gamma - 1, b2, out=np.zeros_like(b2), where=b2 > 0) * along + gamma * p[0]
    return np.concatenate([[gamma * (p[0] + along)], p[1:] + grown * beta])


def simulated(kind, n, random):
    """Events of two photons, GeV: a peak at 125 GeV, or a falling mass."""
    m = random.normal(125.0, 1.7, n) if kind == "signal" else 80 + random.exponential(30.0, n)
    cos, turn = random.uniform(-1, 1, n), random.uniform(0, 2 * np.pi, n)
    sin = np.sqrt(1 - cos**2)
    one = m / 2 * np.array([np.ones(n), sin * np.cos(turn), sin * np.sin(turn), cos])
    two = one * np.array([[1.0], [-1.0], [-1.0], [-1.0]])
    pt, turn, y = random.exponential(25.0, n), random.uniform(0, 2 * np.pi, n), random.normal(0.0, 1.0, n)
    across = np.array([pt * np.cos(turn), pt * np.sin(turn), np.zeros(n)]) / np.hypot(m, pt)
    ahead = np.array([np.zeros(n), np.zeros(n), np.tanh(y)])
    photons = np.array([boosted(boosted(p, across), ahead) for p in (one, two)])  # (2, 4, n)
    at = np.hypot(photons[:, 1], photons[:, 2])
    order = np.argsort(-at, axis=0)
    photons, at = np.take_along_axis(photons, order[:, None], axis=0), np.take_along_axis(at, order, axis=0)
    relative = random.exponential(0.02, (2, 2, n))
    return {
        "pt": at,
        "eta": np.arcsinh(photons[:, 3] / at),
        "phi": np.arctan2(photons[:, 2], photons[:, 1]),
        "E": photons[:, 0],
        "ptcone30": relative[0] * at,
        "etcone20": (relative[1] - 0.01) * at,
        "isTightID": random.uniform(size=(2, n)) < 0.9,
    }


def written(path, events, weight, random):
    """Write events as the GamGam collection has them: MeV, and jagged photons."""
    import awkward as ak
    import uproot

    n = events["pt"].shape[1]
    seen = ak.from_regular(ak.from_numpy(((events["pt"] > 15) & (abs(events["eta"]) < 2.5)).T))
    content = {"trigP": random.uniform(size=n) < 0.97, "mcWeight": np.full(n, weight, "f4")}
    content |= {f"scaleFactor_{name}": random.normal(1.0, 0.01, n).astype("f4") for name in ("PILEUP", "PHOTON")}
    types = {name: values.dtype for name, values in content.items()}
    for name, values in events.items():
        unit = 1000 if name in {"pt", "E", "ptcone30", "etcone20"} else 1
        dtype = "bool" if name == "isTightID" else "float32"
        content[f"photon_{name}"] = ak.from_regular(ak.from_numpy((values * unit).astype(dtype).T))[seen]
        types[f"photon_{name}"] = f"var * {dtype}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with uproot.recreate(path) as file:
        file.mktree("mini", types, counter_name=lambda _: "photon_n").extend(content)


def write_toys(folder, scale=1.0, seed=7):
    """Write toys of all samples; ``scale`` times as many events, of the same cross section."""
    random = np.random.default_rng(seed)
    for kind, n in GENERATED.items():
        many = max(1, int(n * scale))
        # The sum of weights is the catalogue's, however many there are.
        written(Path(folder) / PATHS[kind], simulated(kind, many, random), n / many, random)
    for name, part in DATA.items():
        numbers = {kind: random.poisson(part * n * scale) for kind, n in YIELD.items()}
        both = [simulated(kind, n, random) for kind, n in numbers.items()]
        events = {key: np.concatenate([sample[key] for sample in both], axis=-1) for key in both[0]}
        mixed = random.permutation(events["pt"].shape[1])
        events = {key: values[:, mixed] for key, values in events.items()}
        written(Path(folder) / f"Data/{name}.GamGam.root", events, 1.0, random)


if __name__ == "__main__":
    from argparse import ArgumentParser

    parser = ArgumentParser(description="Write toy files of two photons.")
    parser.add_argument("--toy", metavar="DIR", required=True, help="folder to write them into")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the usual number of events")
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    write_toys(chosen.toy, chosen.scale, chosen.seed)
