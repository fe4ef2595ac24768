"""Small ROOT files with the branch names of the 2020 release, written by uproot."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import awkward as ak
import numpy as np
import uproot

from hzzray.data.catalogue import release

SHARED = Path(__file__).parents[2].parent / "shared"
REAL = SHARED / "data"
REAL_2020 = sorted((REAL / "atlas2020-13tev").rglob("*.root"))
REAL_2025 = sorted((REAL / "atlas2025-13tev-beta").rglob("*.root"))

SCHEMA = release("2020").schema_


def columns(events: int, seed: int = 0, least: int = 0) -> dict[str, Any]:
    """Make random columns of some events with ``least`` to 7 leptons each."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(least, 8, events)
    leptons = int(counts.sum())
    flat = {
        "lep_pt": rng.exponential(30_000, leptons).astype(np.float32),
        "lep_eta": rng.normal(0, 1.2, leptons).round(1).astype(np.float32),
        "lep_phi": rng.uniform(-3, 3, leptons).round(1).astype(np.float32),
        "lep_E": rng.exponential(60_000, leptons).round(-2).astype(np.float32),
        "lep_charge": rng.choice([-1, 1], leptons).astype(np.int32),
        "lep_type": rng.choice([11, 13], leptons).astype(np.uint32),
        "lep_trigMatched": rng.random(leptons) < 0.5,
        "lep_ptcone30": (rng.exponential(8_000, leptons) * (rng.random(leptons) < 0.5)).astype(np.float32),
        "lep_etcone20": rng.normal(2_000, 4_000, leptons).astype(np.float32),
    }
    scalars = {
        "trigE": rng.random(events) < 0.5,
        "trigM": rng.random(events) < 0.5,
        **{name: rng.normal(1, 0.1, events).round(2).astype(np.float32) for name in SCHEMA.factors},
    }
    return {name: ak.unflatten(array, counts) for name, array in flat.items()} | scalars


def branch_type(array: Any) -> Any:
    """Say to uproot what a column's branch holds: lists, or for numpy's arrays one row an entry."""
    return array.type.content if isinstance(array, ak.Array) else np.dtype((array.dtype, array.shape[1:]))


def write(
    path: Path,
    content: dict[str, Any],
    *,
    tree: str = "mini",
    basket: int | None = None,
    compression: Any = uproot.ZLIB(1),  # noqa: B008 (never changed)
    identity: UUID | None = None,
) -> Path:
    """Write columns as a TTree, ``basket`` entries a basket; jagged ones as C arrays with counters of their own.

    The file has the UUID ``identity``, if one is given, as one has that was updated in place or copied from another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    events = len(next(iter(content.values())))
    own = {} if identity is None else {"uuid_function": lambda: identity}
    with uproot.recreate(path, compression=compression, **own) as file:
        types = {name: branch_type(array) for name, array in content.items()}
        target = file.mktree(tree, types, counter_name=lambda name: f"n_{name}")
        for start in range(0, events, basket or max(events, 1)):
            stop = start + (basket or events)
            target.extend({name: array[start:stop] for name, array in content.items()})
    return path


def cut_up(whole: Path, *parts: Path) -> None:
    """Write the events of a file into several, in order, some in each; they are written as ``write`` does."""
    with uproot.open(whole) as file:
        tree = file["mini"]
        content = {name: tree[name].array() for name in columns(0) if name in tree}
    events = len(next(iter(content.values())))
    borders = [events * i // len(parts) for i in range(len(parts) + 1)]
    for part, (start, stop) in zip(parts, pairwise(borders), strict=True):
        lists = {name: array[start:stop] for name, array in content.items()}
        write(part, {name: one if one.ndim > 1 else ak.to_numpy(one) for name, one in lists.items()})


def damage(path, *, branch="lep_eta", basket=0):
    """Make one basket of a file unreadable, and nothing else of it; returns what puts it right."""
    with uproot.open(path) as file:
        about = file["mini"][branch]
        seek, size = (int(about.member(name)[basket]) for name in ("fBasketSeek", "fBasketBytes"))
    whole = path.read_bytes()
    middle = seek + size // 2
    path.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])
    return lambda: path.write_bytes(whole)
