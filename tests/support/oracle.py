"""The selections once more, written for clarity with awkward and vector: what the kernel is judged by.

Masses of very forward leptons are differences of large numbers, so that two correct programs may put an
event on different sides of a cut. The oracle knows each mass to an interval, and lists everything that may
become of an event: one outcome for nearly all of them, more where a quantity lies within rounding of a cut or
of another candidate's.

Events are a record array: jagged ``pt``, ``eta``, ``phi``, ``energy``, ``charge``, ``type``, ``matched``,
``electron_ok``, ``muon_ok``; flat ``trigger`` and ``weight``.
"""

import operator
from dataclasses import dataclass
from functools import reduce

import awkward as ak
import numpy as np
import vector

Z_MASS = 91.1876
MAX_WEIGHT = 2.0**30
LEPTONS_LOOKED_AT = 16

# Relative rounding of a squared mass, in terms of the squares that it is the difference of.
ROUNDING = 64 * 2.0**-52

KINEMATICS = ("pt", "eta", "phi", "energy")
LEPTON = (*KINEMATICS, "charge", "type", "matched", "electron_ok", "muon_ok")

# An awkward array has an attribute of its own called type.
KIND = {"type": "kind"}


@dataclass(frozen=True)
class Verdict:
    """What may become of events.

    ``outcomes`` is jagged, at least one record an event: the cutflow's ``row`` where it stops (the number of
    rows for one that passes), ``channel`` (-1 where stopped), bounds ``low`` and ``high`` on m4l in GeV. And, where
    asked for, ``MEASURED`` to the nearest double or so: nan where that could be one of several values.
    ``finite`` and ``enough``, one an event: no nan or inf in a lepton that matters; four leptons.
    """

    outcomes: ak.Array
    finite: np.ndarray
    enough: np.ndarray


#: What four leptons measure beside m4l; ``n_leptons`` is the event's.
MEASURED = (
    *("m12", "m34", "pt4l", "y4l", "pt1", "pt2", "pt3", "pt4", "eta1", "eta2", "eta3", "eta4", "dr_min", "n_leptons"),
)


def judge(events, selection, gev, *, measured=False):
    """Judge events by a selection; ``gev`` is GeV a unit of pt and energy."""
    with np.errstate(all="ignore"):
        leptons = ak.zip({KIND.get(name, name): events[name] for name in LEPTON})
        for name in ("pt", "energy"):
            leptons[name] = ak.values_astype(leptons[name], np.float64) * gev
        for name in ("eta", "phi"):
            leptons[name] = ak.values_astype(leptons[name], np.float64)
        best = selection.leptons == "best"
        looked_at = leptons if best else leptons[:, :4]
        sound = ak.to_numpy(ak.all(_all([np.isfinite(looked_at[x]) for x in KINEMATICS]), axis=1))
        weight = ak.to_numpy(events.weight)
        finite = sound & (np.abs(weight) < MAX_WEIGHT)
        accepted = leptons[_accepted(leptons, selection)] if best else looked_at
        enough = ak.to_numpy(ak.num(leptons) >= 4) & ak.to_numpy(ak.num(accepted) >= 4)

        masks = [np.ones(len(events), bool), finite & enough]
        if selection.trigger:
            masks.append(ak.to_numpy(events.trigger) != 0)
        if selection.matched:
            masks.append(ak.to_numpy(ak.any(leptons.matched != 0, axis=1)))
        if selection.pt_min and not best:
            pts = _columns(accepted.pt)
            masks.append(np.all([pts[:, i] > bound for i, bound in enumerate(selection.pt_min)], axis=0))
        if selection.identified or selection.isolated:
            good = ((accepted.kind == 11) & (accepted.electron_ok != 0)) | (
                (accepted.kind == 13) & (accepted.muon_ok != 0)
            )
            masks.append(ak.to_numpy(ak.sum(good, axis=1) >= 4))
            accepted = accepted[good] if best else accepted
        number = ak.num(leptons[_accepted(leptons, selection)] if best else leptons)
        if best:
            late = _best(accepted[:, :LEPTONS_LOOKED_AT], selection, len(masks), number if measured else None)
        else:
            masks.append(np.isin(_columns(accepted.kind).sum(axis=1), [44, 48, 52]))
            masks.append(_columns(accepted.charge).sum(axis=1) == 0)
            late = _first(accepted, len(masks), number if measured else None)
        early = np.array([*masks, np.zeros(len(events), bool)]).argmin(axis=0)
        outcomes = ak.concatenate(
            [_where(early < len(masks), _stopped(early, measured)), _where(early == len(masks), late)], axis=1
        )
    return Verdict(outcomes, sound, enough)


def _accepted(leptons, selection):
    electron = (leptons.kind == 11) & (leptons.pt > selection.electron_pt_min)
    return electron | ((leptons.kind == 13) & (leptons.pt > selection.muon_pt_min))


def _columns(jagged):
    """First four values an event, shape (events, 4), zero where there are fewer."""
    return ak.to_numpy(ak.fill_none(ak.pad_none(jagged, 4, clip=True), 0))


def _stopped(rows, measured):
    """One outcome for each event: it stops."""
    nothing = np.full(len(rows), np.nan)
    fields = ("low", "high", *(MEASURED if measured else ()))
    flat = ak.zip({"row": rows, "channel": np.full(len(rows), -1), **dict.fromkeys(fields, nothing)})
    return _lists_of_one(flat)


def _lists_of_one(flat):
    return ak.unflatten(flat, np.ones(len(flat), int))


def _where(events, jagged):
    """Leave lists only where a mask over events is set."""
    return jagged[ak.broadcast_arrays(events, jagged.row)[0]]


def _momentum(leptons):
    return vector.zip({"pt": leptons.pt, "eta": leptons.eta, "phi": leptons.phi, "E": leptons.energy})


def _m2(leptons):
    """Squared mass of some leptons, known between two bounds."""
    momenta = [_momentum(lepton) for lepton in leptons]
    total = momenta[0]
    for other in momenta[1:]:
        total = total + other
    energy = sum(abs(lepton.energy) for lepton in leptons)
    size = sum(abs(lepton.pt) * np.cosh(lepton.eta) for lepton in leptons)
    error = ROUNDING * (energy**2 + size**2)
    low, high = total.mass2 - error, total.mass2 + error
    return ak.where(np.isnan(low), -np.inf, low), ak.where(np.isnan(high), np.inf, high)


def _mass(leptons):
    return tuple(np.sign(bound) * np.sqrt(abs(bound)) for bound in _m2(leptons))


def _channel(types):
    return ak.where(types == 44, 0, ak.where(types == 52, 1, 2))


def _kinematics(leptons, *, by_pt):
    """What four leptons measure that doesn't depend on how they are paired; hardest first, or in their order."""
    total = reduce(operator.add, map(_momentum, leptons))
    pt, eta = (
        ak.concatenate([getattr(lepton, name)[..., np.newaxis] for lepton in leptons], axis=leptons[0].pt.ndim)
        for name in ("pt", "eta")
    )
    if by_pt:
        order = ak.argsort(pt, axis=-1, ascending=False)
        pt, eta = pt[order], eta[order]
    apart = [_momentum(x).deltaR(_momentum(y)) for i, x in enumerate(leptons) for y in leptons[i + 1 :]]
    return {
        "pt4l": total.pt,
        "y4l": total.rapidity,
        **{f"pt{i + 1}": pt[..., i] for i in range(4)},
        **{f"eta{i + 1}": eta[..., i] for i in range(4)},
        "dr_min": reduce(lambda x, y: ak.where(y < x, y, x), apart),
    }


def _paired(leptons):
    """The masses m12 and m34 of four leptons in a given order: -1 where they are no two SFOS pairs."""
    lepton = dict(zip("abcd", leptons, strict=True))
    found = []
    for z1 in PAIRS:
        pairs = [[lepton[x] for x in pair] for pair in (z1, _rest(z1))]
        sfos = _all([(x.kind == y.kind) & (x.charge == -y.charge) & (x.charge != 0) for x, y in pairs])
        low, high = zip(*(_mass(pair) for pair in pairs), strict=True)
        m12, m34 = (np.asarray((a + b) / 2) for a, b in zip(low, high, strict=True))
        found.append((np.where(sfos, abs(m12 - Z_MASS), np.inf), m12, m34))
    far, m12, m34 = (np.array(part) for part in zip(*found, strict=True))
    nearest = far.argmin(axis=0)
    events = np.arange(far.shape[1])
    best = far[nearest, events]
    rival = (
        np.isfinite(best)
        & (far - best < 1e-6)
        & (np.maximum(abs(m12 - m12[nearest, events]), abs(m34 - m34[nearest, events])) > 1e-9)
    )
    return {
        name: np.where(np.isinf(best), -1.0, np.where(rival.any(axis=0), np.nan, mass[nearest, events]))
        for name, mass in (("m12", m12), ("m34", m34))
    }


def _first(four, rows, number):
    """Outcomes of events that are judged by their first four leptons, and passed all cuts."""
    full = ak.num(four) == 4
    leptons = [four[full][:, i] for i in range(4)]
    low, high = _mass(leptons)
    types = sum(lepton.kind for lepton in leptons)
    infinite = ~np.isfinite(sum(abs(lepton.pt * np.sinh(lepton.eta)) for lepton in leptons))
    more = {}
    if number is not None:
        more = {**_paired(leptons), **_kinematics(leptons, by_pt=False), "n_leptons": number[full]}
    passed = ak.zip({"row": rows, "channel": _channel(types), "low": low, "high": high, **more})
    nonsense = ak.zip({"row": 1, "channel": -1, "low": low, "high": high, **more})
    possible = [_lists_of_one(passed), _lists_of_one(nonsense)]
    outcomes = ak.concatenate([_where(~infinite, possible[0]), _where(~np.isfinite(high - low), possible[1])], axis=1)
    counts = np.zeros(len(four), int)
    counts[full] = ak.num(outcomes)
    return ak.unflatten(ak.flatten(outcomes), counts)


PAIRS = (("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"))


def _best(leptons, selection, pairs_row, number):
    """Outcomes of events that are judged by their best quadruplet; row ``pairs_row`` asks for two pairs."""
    leptons = ak.with_field(leptons, ak.local_index(leptons), "number")
    quads = ak.combinations(leptons, 4, fields=list("abcd"))
    pair = {(x, y): (quads[x], quads[y]) for x, y in PAIRS}
    sfos = {k: (x.kind == y.kind) & (x.charge == -y.charge) & (x.charge != 0) for k, (x, y) in pair.items()}
    mass = {k: _mass(two) for k, two in pair.items()}
    m4l = _mass([quads[x] for x in "abcd"])

    # Cuts on the quadruplet: pairs of arrays, "surely passes" and "may pass".
    cuts = []
    if selection.pt_min:
        hardest = ak.concatenate([quads[x].pt[..., np.newaxis] for x in "abcd"], axis=2)
        hardest = ak.sort(hardest, axis=2, ascending=False)
        enough = _all([hardest[..., i] > bound for i, bound in enumerate(selection.pt_min)])
        cuts.append((enough, enough))
    apart = [_far_apart(x, y, selection) for x, y in pair.values()]
    cuts.append(tuple(_all(side) for side in zip(*apart, strict=True)))
    heavy = [[~sfos[k] | (m2 > selection.sfos_mass_min**2) for m2 in _m2(two)] for k, two in pair.items()]
    cuts.append(tuple(_all(side) for side in zip(*heavy, strict=True)))

    # Six ways to call one pair Z1 and the rest Z2, in a third dimension.
    def six(of):
        return ak.concatenate([of(z1, _rest(z1))[..., np.newaxis] for z1 in PAIRS], axis=2)

    def each(quantity):
        return six(lambda *_: quantity)

    allowed = six(lambda z1, z2: sfos[z1] & sfos[z2])
    m12 = [six(lambda z1, _, side=side: mass[z1][side]) for side in (0, 1)]
    m34 = [six(lambda _, z2, side=side: mass[z2][side]) for side in (0, 1)]
    far, near = _from_z(m12), _from_z(m34)
    floor = [_z2_min(bound, selection) for bound in m4l]
    floor_low, floor_high = (ak.where(floor[0] < floor[1], floor[i], floor[1 - i]) for i in (0, 1))
    cuts = [[each(side) for side in cut] for cut in cuts]
    cuts.append(_within(m12, *selection.z1_window, selection.z1_window[0]))
    cuts.append(_within(m34, floor_high, selection.z2_max, floor_low))

    # In a quadruplet, Z1 is the pair nearest m_Z: those that may be it.
    nearest = ak.min(ak.where(allowed, far[1], np.inf), axis=2)
    candidate = allowed & (far[0] <= nearest)
    sure = ak.concatenate([c[0][..., np.newaxis] for c in cuts], axis=3)
    surely_passed = _leading(sure)
    guaranteed = ak.min(ak.where(candidate, surely_passed, len(cuts)), axis=2)
    more = {}
    if number is not None:
        more = {name: each(of) for name, of in _kinematics([quads[x] for x in "abcd"], by_pt=True).items()}
        more |= {"m12": (m12[0] + m12[1]) / 2, "m34": (m34[0] + m34[1]) / 2}
        more |= {"n_leptons": each(ak.broadcast_arrays(number, m4l[0])[0])}
    table = ak.zip(
        {
            "quad": each(ak.local_index(guaranteed)),
            "z1": six(lambda z1, _: quads[z1[0]].number * 100 + quads[z1[1]].number),
            "guaranteed": each(guaranteed),
            "sole": each(ak.sum(candidate, axis=2) == 1),
            "nearest": each(nearest),
            "far": far[0],
            "near": near[0],
            "near_high": near[1],
            "channel": each(_channel(sum(quads[x].kind for x in "abcd"))),
            "low": each(m4l[0]),
            "high": each(m4l[1]),
            **more,
        }
    )
    everything = []
    may = ak.ones_like(allowed) == 1
    for passed in range(len(cuts) + 1):
        stops = ~cuts[passed][0] if passed < len(cuts) else True
        everything.append(ak.with_field(table, passed, "passed")[candidate & may & stops])
        may = may & cuts[passed][1] if passed < len(cuts) else may
    outcomes = ak.flatten(ak.concatenate(everything, axis=2), axis=2)
    rivals = ak.flatten(table[candidate], axis=2)

    # Among quadruplets, more cuts passed wins, then m12, then m34. Only what nobody surely beats is left.
    most = ak.fill_none(ak.max(rivals.guaranteed, axis=1), -1)
    outcomes, rivals = outcomes[outcomes.passed >= most], rivals[rivals.guaranteed == most]
    ours, theirs = ak.unzip(ak.cartesian([outcomes, rivals], axis=1, nested=True))
    closer = theirs.nearest < ours.far
    same_z1 = theirs.sole & (theirs.z1 == ours.z1) & (theirs.near_high < ours.near)
    beaten = (theirs.quad != ours.quad) & (theirs.guaranteed >= ours.passed) & (closer | same_z1)
    outcomes = outcomes[~ak.any(beaten, axis=2)]

    passes = outcomes.passed == len(cuts)
    final = ak.zip(
        {
            "row": outcomes.passed + pairs_row + 1,
            "channel": ak.where(passes, outcomes.channel, -1),
            "low": outcomes.low,
            "high": outcomes.high,
            **{name: outcomes[name] for name in more},
        }
    )
    nonsense = ak.with_field(final[passes & ~np.isfinite(outcomes.high - outcomes.low)], 1, "row")
    pairless = _where(ak.num(final) == 0, _stopped(np.full(len(leptons), pairs_row), number is not None))
    return ak.concatenate([final, nonsense, pairless], axis=1)


def _all(masks):
    return reduce(operator.and_, masks)


def _rest(pair):
    return next(other for other in PAIRS if not set(other) & set(pair))


def _leading(flags):
    """How many flags are set before the first that isn't; over the last axis."""
    misses = ak.local_index(flags, axis=-1) + ak.where(flags, 1000, 0)
    first = ak.min(misses, axis=-1)
    return ak.where(first >= 1000, ak.num(flags, axis=-1), first)


def _far_apart(x, y, selection):
    delta_r = _momentum(x).deltaR(_momentum(y))
    bound = ak.where(x.kind == y.kind, selection.dr_same, selection.dr_other)
    error = 1e-11 + 1e-9 * delta_r
    return delta_r - error > bound, delta_r + error > bound


def _from_z(mass):
    """Bounds on the distance of a mass from that of the Z."""
    below, above = Z_MASS - mass[1], mass[0] - Z_MASS
    least = ak.where(below > above, below, above)
    most = ak.where(-below > -above, -below, -above)
    return ak.where(least > 0, least, 0.0), most


def _within(mass, low, high, low_at_best):
    surely = (mass[0] > low) & (mass[1] < high)
    return surely, (mass[1] > low_at_best) & (mass[0] < high)


def _z2_min(m4l, selection):
    """Lower bound on m34 for one m4l."""
    (start, stop), (low, high) = selection.z2_min_from, selection.z2_min
    flat = ak.flatten(m4l, axis=None)
    return ak.unflatten(np.interp(flat, [start, stop], [low, high]), ak.num(m4l))
