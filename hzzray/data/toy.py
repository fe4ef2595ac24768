"""Simulated ROOT files in a release's format, for machines without the data (events: ``toy_physics``).

What a file holds depends on release, sample, seed and its number of events alone, never on ``chunk`` or on
other files: each block of attempts has random streams of its own. Between versions of numpy, or processors,
last bits may differ.
"""

from __future__ import annotations

import contextlib
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.random import Generator
from numpy.typing import NDArray

from hzzray.data.catalogue import CONCLUDING, Release, Sample
from hzzray.data.header import header_of
from hzzray.data.schema import Schema
from hzzray.data.toy_physics import ELECTRON, PROCESSES, PT_MIN, ToyLeptons, ToyProcess, simulate
from hzzray.errors import DataError, UsageError

#: Goes up with every change of what is written: no cache may take an old file's metadata for a new one's.
TOY_VERSION = 3

#: When toys were written, as they say.
WRITTEN = datetime(2012, 7, 4, tzinfo=UTC)

#: The seed unless another is chosen, by the release whose format toys have; 100 for others. Typical: the significance
#: that is observed is near the median of many seeds (``benchmarks/seeds.py``; docs/architecture.md has the figures).
SEEDS = {"toy": 100, "2020": 7, "2025": 18}

#: Attempts that share a random stream.
BLOCK = 2**14

#: Entries that a sample gets before the rest is shared out, if the release's sample has as many: Z+jets and tt̄ of 2020
#: have no more than that, and are as long as there.
LEAST_ENTRIES = 1_100

#: Counter of the jagged branches, in both releases.
COUNTER = "lep_n"

#: Factors of the cross section in files that carry their normalisation; any numbers but 1 would do.
KFAC, FILTEFF = 1.1, 0.5

#: How much the scale factors vary.
SPREADS = {"PILEUP": 0.42, "ELE": 0.06, "MUON": 0.015, "LepTRIGGER": 0.13}

#: Uncertainty of electrons' and of muons' pt in the median, as a part of it.
PT_SYST = (0.0057, 0.0037)

Columns = dict[str, NDArray[Any]]


def typical_seed(release: Release) -> int:
    """Return the seed of a release's toys unless another is chosen."""
    return SEEDS.get(release.name, SEEDS["toy"])


def write_toys(
    folder: Path,
    release: Release,
    *,
    events: int = 200_000,
    seed: int | None = None,
    chunk: int = 100_000,
    progress: Callable[[int], None] | None = None,
    replace: bool = True,
) -> tuple[Path, ...]:
    """Write one file for each default sample of a release, at its path in ``folder``.

    Simulated samples get ``events`` entries together, and weights that give the same yields whatever
    ``events`` is. Data is drawn from the same processes, unweighted, with Poisson statistics at the release's
    luminosity.

    Parameters
    ----------
    folder
        Made where it is missing; files that are there are replaced, each at once when its successor is whole.
    release
        Says what is written: samples, trees, branch names and units.
    events
        Entries of all simulated files together, shared in proportion to the release's; one a file at least.
    seed
        Files of one seed are the same to the last byte, whenever they are written. By default a typical one.
    chunk
        Entries a basket, and what is held in memory at a time.
    progress
        Called with the number of entries that were written since the last call.
    replace
        Replace files that are of another content, too, and not only those that would be the same.

    Returns
    -------
    The files, in the order of the release's samples.

    Raises
    ------
    UsageError
        On numbers out of range, a sample of several files or that no process is known for, a file that can't be
        written, or one that must not be replaced.
    """
    seed = typical_seed(release) if seed is None else seed
    for name, value, least in (("events", events, 1), ("chunk", chunk, 1), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}")
    release = release.only(tuple(sample.name for sample in release.samples if sample.default))
    for sample in release.samples:
        if sample.only_path is None:
            raise UsageError(f"sample {sample.name} is several files: toys are one a sample")
    identities = {sample.name: identity(release, sample, events, seed, chunk) for sample in release.samples}
    if not replace:
        _refuse_others({folder / str(sample.only_path): identities[sample.name] for sample in release.samples})
    simulated = [sample for sample in release.samples if release.role(sample) != "data"]
    processes = {sample.name: process_of(release, sample) for sample in simulated}
    entries = dict(zip(processes, allot(simulated, events), strict=True))
    paths = []
    for sample in release.samples:
        path = folder / str(sample.only_path)
        if sample.name in processes:
            blocks = simulation(release, sample, processes[sample.name], entries[sample.name], seed)
        else:
            blocks = data(release, sample, processes, seed)
        numbered = number(rechunk(blocks, chunk), release, sample)
        write(path, release.schema_.tree, numbered, identities[sample.name], progress)
        paths.append(path)
    return tuple(paths)


def _refuse_others(wanted: Mapping[Path, uuid.UUID]) -> None:
    """Raise UsageError where files are there that are not the wanted ones: runs may be made of them."""
    others = [path for path, one in wanted.items() if path.is_file() and not _is(path, one)]
    if others:
        more = f" and {len(others) - 1} other files are" if len(others) > 1 else " is"
        raise UsageError(
            f"{others[0]}{more} there, of other content, and runs may be made of them: --force replaces them"
        )


def _is(path: Path, wanted: uuid.UUID) -> bool:
    try:
        return header_of(path).uuid == wanted.hex
    except (OSError, DataError):
        return False


def allot(samples: Sequence[Sample], events: int) -> list[int]:
    """Share events over samples by their entries in the release, LEAST_ENTRIES first if there are as many."""
    if not samples:
        return []
    stated = np.array([sample.entries or LEAST_ENTRIES for sample in samples])
    floor = np.minimum(stated, max(1, min(LEAST_ENTRIES, events // len(samples))))
    weight = stated - floor if (stated > floor).any() else stated
    ends = np.rint(max(0, events - floor.sum()) * np.cumsum(weight) / weight.sum()).astype(np.int64)
    shared: list[int] = (floor + np.diff(ends, prepend=0)).tolist()
    return shared


def process_of(release: Release, sample: Sample) -> ToyProcess:
    """Find what a simulated sample holds; raises UsageError."""
    if sample.dsid not in PROCESSES:
        raise UsageError(
            f"release {release.name}: there is no toy process for sample {sample.name} (dsid {sample.dsid})"
        )
    return PROCESSES[sample.dsid]


def identity(release: Release, sample: Sample, events: int, seed: int, chunk: int) -> uuid.UUID:
    """UUID of a file: equal for equal content and equal baskets only, since readers cache both under it."""
    versions = (TOY_VERSION, uproot.__version__, np.__version__)
    form = release.model_dump_json(exclude=set(CONCLUDING))
    return uuid.uuid5(uuid.NAMESPACE_OID, repr((versions, form, sample.name, events, seed, chunk)))


# Events


def stream(release: Release, sample: Sample, seed: int, *key: int) -> Generator:
    """Random numbers that no other sample and no other key shares."""
    return np.random.default_rng([seed, zlib.crc32(f"{release.name}/{sample.name}".encode()), *key])


def draw(process: ToyProcess, entries: int, streams: Iterable[Generator], *, extras: bool) -> Iterator[ToyLeptons]:
    """Make exactly so many events, in at least one block, each block from a stream of its own."""
    attempts = min(BLOCK, 64 + 8 * entries)
    for rng in streams:
        leptons = simulate(process, attempts, rng, extras=extras)
        yield leptons.map(lambda array, left=entries: array[:left])
        entries -= len(leptons)
        if entries <= 0:
            return


def simulation(release: Release, sample: Sample, process: ToyProcess, entries: int, seed: int) -> Iterator[Columns]:
    """Columns of a simulated sample, block by block."""
    streams = (stream(release, sample, seed, 0, block) for block in count())
    for block, leptons in enumerate(draw(process, entries, streams, extras=has_extras(release.schema_))):
        rng = stream(release, sample, seed, 1, block)
        weights = simulated_weights(release, sample, process, entries, len(leptons), rng)
        columns = lepton_columns(leptons, release.schema_, rng)
        own = stream(release, sample, seed, 2, block)  # what came later must not change what the others give
        yield {**columns, **uncertainties(leptons, release.schema_, own), **weights}


def data(release: Release, sample: Sample, processes: dict[str, ToyProcess], seed: int) -> Iterator[Columns]:
    """Columns of a data sample, in one block: its share of the collisions, by the release's entries."""
    if not processes:
        raise UsageError(f"release {release.name} has no simulation that data could be drawn from")
    together = sum(other.entries or 1 for other in release.samples if release.role(other) == "data")
    luminosity = release.luminosity * (sample.entries or 1) / together
    rng = stream(release, sample, seed, 1)
    parts: list[ToyLeptons] = []
    known = list(processes.values())
    for row, process in enumerate([*known, *(process.beside for process in known if process.beside)]):
        streams = (stream(release, sample, seed, 0, row, block) for block in count())
        drawn = int(rng.poisson(process.per_fb * luminosity))
        parts += draw(process, drawn, streams, extras=has_extras(release.schema_))
    leptons = ToyLeptons.concatenate(parts)
    order = rng.permutation(len(leptons))
    leptons = leptons.map(lambda array: array[order])
    columns = lepton_columns(leptons, release.schema_, rng)
    weights = data_weights(release.schema_, len(leptons))
    yield {**columns, **uncertainties(leptons, release.schema_, None), **weights}


def has_extras(schema: Schema) -> bool:
    """Tell whether events may have more than four leptons: those of the 2025 format have exactly four."""
    return schema.divisor is None


# Columns: shape (n,) for one number an event, (n, slots) for one a lepton; empty slots have pt 0


def lepton_columns(leptons: ToyLeptons, schema: Schema, rng: Generator) -> Columns:
    """All that is measured in an event, in the release's names and units."""
    shape = leptons.pt.shape
    electron = leptons.type == ELECTRON
    fires = np.select([~leptons.prompt, electron], [0.2, 0.9], 0.75)
    matched = (leptons.pt > 25) & (rng.random(shape, np.float32) < fires)
    if schema.divisor is None:
        matched[:, 0] |= ~matched.any(axis=1)  # the collection of 2020 holds triggered events only
    fired = {"trigE": (matched & electron).any(axis=1), "trigM": (matched & ~electron).any(axis=1)}
    columns: Columns = {
        schema.pt: leptons.pt / schema.gev,
        schema.eta: leptons.eta,
        schema.phi: leptons.phi,
        schema.energy: leptons.pt * np.cosh(leptons.eta) / schema.gev,
        schema.charge: leptons.charge,
        schema.type: leptons.type,
        **{name: fired.get(name, matched.any(axis=1)) for name in schema.triggers},
        "lep_z0": rng.standard_normal(shape, np.float32) * np.where(leptons.prompt, 0.1, 20.0),
    }
    if schema.matched:
        columns[schema.matched] = matched
    if schema.divisor is None:
        columns |= identification_2020(leptons, rng)
        columns[schema.type] = leptons.type.astype(np.uint32)
    else:
        columns |= identification_2025(leptons, rng)
    return {name: single(array) for name, array in columns.items()}


def uncertainties(leptons: ToyLeptons, schema: Schema, rng: Generator | None) -> Columns:
    """Uncertainty of each lepton's pt, as the 2020 format has it (MeV): some per mille, with a long tail; 0 in data."""
    if schema.divisor is not None:
        return {}
    shape = leptons.pt.shape
    electron = leptons.type == ELECTRON
    spread = np.zeros(shape) if rng is None else np.exp(rng.normal(0.0, np.where(electron, 0.95, 0.65)))
    relative = np.where(electron, PT_SYST[0], PT_SYST[1]) * spread
    return {"lep_pt_syst": single(np.minimum(relative, 1.0) * leptons.pt / schema.gev)}


def single(array: NDArray[Any]) -> NDArray[Any]:
    """Narrow doubles to the floats that files hold."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def identification_2020(leptons: ToyLeptons, rng: Generator) -> Columns:
    """Identification, isolation (MeV) and missing momentum (MeV) of the 2020 format.

    Most cones hold no track; what there is, is little beside a prompt lepton, and a part of its pt beside a fake.
    """
    shape = leptons.pt.shape
    n = len(leptons)
    electron, prompt = leptons.type == ELECTRON, leptons.prompt
    tight = np.where(
        electron, np.where(prompt, 0.97 - 0.5 * np.exp((PT_MIN - leptons.pt) / 10), 0.45), np.where(prompt, 0.86, 0.8)
    )
    empty = rng.random(shape, np.float32) < np.where(prompt, 0.84, 0.5)
    tracks = rng.standard_exponential(shape, np.float32) * np.where(prompt, 0.07, np.where(electron, 0.35, 0.25))
    deposits = np.where(prompt, 0.005, np.where(electron, 0.07, 0.0)) * leptons.pt
    return {
        "lep_isTightID": rng.random(shape, np.float32) < tight,
        "lep_ptcone30": np.where(empty, 0.0, tracks) * leptons.pt * 1000,
        "lep_etcone20": (rng.standard_normal(shape, np.float32) * 1.5 + deposits) * 1000,
        "met_et": rng.gamma(2, 12_000, n),
        "met_phi": rng.uniform(-np.pi, np.pi, n),
    }


def identification_2025(leptons: ToyLeptons, rng: Generator) -> Columns:
    """Nested identification, isolation (GeV) and its flags, missing momentum (GeV) of the 2025 format."""
    shape = leptons.pt.shape
    n = len(leptons)
    score = rng.random(shape, np.float32)
    cone = rng.standard_exponential(shape, np.float32) * np.where(leptons.prompt, 0.04, 0.4)
    return {
        "lep_isLooseID": score < np.where(leptons.prompt, 0.94, 0.3),
        "lep_isMediumID": score < np.where(leptons.prompt, 0.92, 0.22),
        "lep_isTightID": score < np.where(leptons.prompt, 0.8, 0.12),
        "lep_isLooseIso": cone < 0.15,
        "lep_isTightIso": cone < 0.06,
        "lep_ptvarcone30": cone * leptons.pt,
        "lep_topoetcone20": rng.standard_normal(shape, np.float32) * 1.5 + cone * leptons.pt,
        "met": rng.gamma(2, 12, n),
        "met_phi": rng.uniform(-np.pi, np.pi, n),
    }


def simulated_weights(
    release: Release, sample: Sample, process: ToyProcess, entries: int, n: int, rng: Generator
) -> Columns:
    """Weights of n events such that a file of ``entries`` is expected to give the process' yield.

    2020: lumi·1000·xsec/(sumw·red_eff) is the catalogue's, so mcWeight makes up for it. 2025: the file's
    cross section is that of the process, and its mcWeight is ±1.
    """
    schema = release.schema_
    net = entries * (1 - 2 * process.negative)
    if schema.divisor is None:
        magnitude = process.per_fb * release.luminosity / (net * release.normalisation(sample, release.luminosity))
        own: dict[str, np.floating[Any]] = {
            "XSection": np.float32(sample.xsec),
            "SumWeights": np.float32(sample.sumw),
        }
    else:
        magnitude = 1.0
        own = {
            "xsec": np.float32(process.per_fb / 1000 / (KFAC * FILTEFF)),
            "kfac": np.float32(KFAC),
            "filteff": np.float32(FILTEFF),
            schema.divisor: np.float64(net),
        }
    columns: Columns = {name: np.full(n, value) for name, value in own.items()}
    columns["mcWeight"] = np.where(rng.random(n) < process.negative, -magnitude, magnitude)
    for name in schema.factors:
        if name not in columns:
            columns[name] = scale_factors(name, n, rng)
    return {name: single(array) if name != schema.divisor else array for name, array in columns.items()}


def scale_factors(name: str, n: int, rng: Generator) -> NDArray[np.float64]:
    """Corrections of one kind, 1 on average, that vary as in the release."""
    spread = SPREADS.get(name.rpartition("_")[2], 0.05)
    return rng.gamma(spread**-2, spread**2, n)


def data_weights(schema: Schema, n: int) -> Columns:
    """Fill the weights as the released data files do: zeros in 2020, ones in 2025."""
    if schema.divisor is None:
        return {
            **{name: np.full(n, np.float32(1)) for name in ("XSection", "SumWeights")},
            **{name: np.zeros(n, np.float32) for name in schema.factors},
        }
    absent = ("xsec", "kfac", "filteff")
    factors: Columns = {name: np.full(n, np.float32(name not in absent)) for name in schema.factors}
    return {**factors, schema.divisor: np.ones(n)}


def rechunk(blocks: Iterable[Columns], size: int) -> Iterator[Columns]:
    """Cut blocks anew into chunks of equal size; the last, or only, one has what is left."""
    held: list[Columns] = []
    n = 0
    for block in blocks:
        held.append(block)
        n += entries_of(block)
        if n > size:
            whole = merge(held)
            last = (n - 1) // size * size
            for start in range(0, last, size):
                yield {name: array[start : start + size] for name, array in whole.items()}
            held = [{name: array[last:] for name, array in whole.items()}]
            n -= last
    yield merge(held)


def merge(parts: Sequence[Columns]) -> Columns:
    """Put columns of one schema after each other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def entries_of(columns: Columns) -> int:
    """Count the events that columns hold."""
    return len(next(iter(columns.values())))


def number(chunks: Iterable[Columns], release: Release, sample: Sample) -> Iterator[Columns]:
    """Add run, channel and event numbers."""
    run = 300_000 if release.role(sample) == "data" else 284_500
    small, large = (np.int32, np.int32) if release.schema_.divisor is None else (np.uint32, np.uint64)
    done = 0
    for chunk in chunks:
        n = entries_of(chunk)
        yield {
            "runNumber": np.full(n, run, small),
            "eventNumber": np.arange(done, done + n).astype(large),
            "channelNumber": np.full(n, sample.dsid or run, small),
            **chunk,
        }
        done += n


# Files


def write(
    path: Path,
    tree: str,
    chunks: Iterable[Columns],
    identity: uuid.UUID,
    progress: Callable[[int], None] | None,
) -> None:
    """Write chunks as a TTree, under another name until it is whole; raises UsageError naming the file.

    Equal chunks make equal bytes: a file is known by its content (``layout``), in which ROOT keeps the time of writing,
    and nodes of a cluster that each write their own must have the same.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    compression = uproot.ZLIB(1)
    compression.library = "deflate"  # of this object only: the process' default stays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _dated(), uproot.recreate(temporary, compression=compression, uuid_function=lambda: identity) as file:
            target = None
            for chunk in chunks:
                if target is None:
                    types = {name: branch_type(array) for name, array in chunk.items()}
                    target = file.mktree(tree, types, tree, counter_name=lambda _: COUNTER)
                target.extend(jagged(chunk))
                if progress is not None:
                    progress(entries_of(chunk))
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _dated() -> Iterator[None]:
    """Let uproot write the same time into every record; it has no option for that."""
    own = uproot._util.datetime_to_code  # noqa: SLF001
    code = own(WRITTEN)
    uproot._util.datetime_to_code = lambda _: code  # noqa: SLF001
    try:
        yield
    finally:
        uproot._util.datetime_to_code = own  # noqa: SLF001


def branch_type(array: NDArray[Any]) -> Any:  # noqa: ANN401 (what uproot takes as a type)
    """Type of a column's branch."""
    return ak.types.ListType(ak.types.NumpyType(array.dtype.name)) if array.ndim == 2 else array.dtype


def jagged(chunk: Columns) -> dict[str, Any]:
    """Leave the empty slots out."""
    filled = chunk[next(name for name, array in chunk.items() if array.ndim == 2)] > 0
    offsets = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    index = ak.index.Index64(offsets)

    def lists(array: NDArray[Any]) -> ak.Array:
        return ak.Array(ak.contents.ListOffsetArray(index, ak.contents.NumpyArray(array[filled])))

    return {name: lists(array) if array.ndim == 2 else array for name, array in chunk.items()}
