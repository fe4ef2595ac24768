"""Where a file's baskets lie: read once through uproot, then kept on disk under the file's identity."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import tempfile
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzzray.data.header import HEADER, read_header
from hzzray.data.storage import ByteSource, SeekableBytes
from hzzray.data.tree_record import Kind, Stored, read_record
from hzzray.errors import DataError, TransientError

_CACHE_VERSION = 4


@dataclass(frozen=True, eq=False)
class Branch:
    """Where one branch's values lie.

    ``dtype`` is numpy's name of the values as stored (big-endian), empty where they have another shape than a number, a
    list of numbers (``jagged``) or ``size`` numbers an entry, as a C array of a fixed length has, for which alone it
    isn't 0. ``jagged`` ones have ``header`` bytes before each entry's values. Basket i holds entries
    ``starts[i]`` to ``starts[i + 1]`` (int64, shape (baskets + 1,)) in ``sizes[i]`` bytes at ``seeks[i]`` (int64), or
    where ``seeks[i]`` is 0 in ``embedded[i]``, in the form of a decompressed basket, with values up to its border.
    """

    dtype: str
    jagged: bool
    header: int
    starts: NDArray[np.int64]
    seeks: NDArray[np.int64]
    sizes: NDArray[np.int64]
    embedded: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    size: int = 0

    def baskets(self, start: int, stop: int) -> list[int]:
        """Numbers of the baskets that hold entries start to stop, without empty ones."""
        if stop <= start:
            return []
        starts = self._starts
        first, last = bisect_right(starts, start) - 1, bisect_left(starts, stop)
        return [i for i in range(first, last) if starts[i] < starts[i + 1]]

    def range(self, basket: int) -> tuple[int, int]:
        """Entries that a basket holds: the first, and the one after the last."""
        return self._starts[basket], self._starts[basket + 1]

    def place(self, basket: int) -> tuple[int, int]:
        """Where in the file a basket lies, and its bytes."""
        return self._places[basket]

    # Plain numbers: looking one up in an array would take longer than reading small baskets does.

    @cached_property
    def _starts(self) -> list[int]:
        starts: list[int] = self.starts.tolist()
        return starts

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        return list(zip(self.seeks.tolist(), self.sizes.tolist(), strict=True))


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """One tree of one file: identity, number of entries, and the branches that were asked about and exist.

    ``uuid`` names the content, wherever the file lies: it is made of the file's own UUID, which ROOT keeps when it
    updates a file and which reproducible files share, and of the tree's record, in which all of its baskets' places
    and sizes stand. Equal bytes give equal ones, on any machine.
    """

    uuid: str
    tree: str
    entries: int
    branches: dict[str, Branch]
    others: tuple[str, ...]

    def require(self, names: Iterable[str], where: str, avoidable: Mapping[str, str]) -> None:
        """Raise DataError that names the branches which the file lacks.

        ``avoidable`` names for some branches the options that do without them.
        """
        lacking = [name for name in names if name not in self.branches]
        if not lacking:
            return
        plural = "es" if len(lacking) > 1 else ""
        known = f"{where}: tree {self.tree} has no branch{plural} {', '.join(lacking)}"
        if all(name in avoidable for name in lacking):
            without = " ".join(dict.fromkeys(avoidable[name] for name in lacking))
            raise DataError(f"{known}, which the selection reads: {without} does without")
        found = ", ".join([*self.branches, *self.others][:6])
        known_names = [*self.branches, *self.others]
        near = [close for name in lacking for close in get_close_matches(name, known_names, n=1, cutoff=0.9)]
        hint = f"did you mean {', '.join(near)}, or " if near else ""
        raise DataError(f"{known} (it has {found}…): {hint}is this file of another release?")

    def clusters(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Entries at which no basket of these branches is split, from 0 to the number of entries."""
        common: NDArray[np.int64] | None = None
        for name in names:
            starts = self.branches[name].starts
            common = starts if common is None else np.intersect1d(common, starts)
        ends = np.array([0, self.entries], np.int64)
        return ends if common is None else np.union1d(common, ends)


def identify(source: ByteSource) -> tuple[str, str]:
    """Read a ROOT file's header; returns (its own UUID, a hash that tells versions of the file at this place apart).

    Raises DataError when it isn't a ROOT file, is shorter than its own header says, or was never closed.
    """
    if source.size < HEADER:
        raise DataError(f"{source.name}: not a ROOT file: it has {source.size} bytes")
    (head,) = source.read([(0, HEADER)])
    try:
        header = read_header(head, source.size)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from None
    state = struct.pack(">q", source.size) + source.version.encode()
    return str(uuid.UUID(header.uuid)), hashlib.sha256(head + state).hexdigest()


def read_layout(source: ByteSource, tree: str, names: tuple[str, ...], cache: Path | None) -> Layout:
    """Find where a file's branches lie; raises DataError for a missing tree or a file that can't be understood."""
    own, version = identify(source)
    kept = None
    if cache is not None and source.version:  # else a file that was written over couldn't be told from what it was
        key = hashlib.sha256(f"{_CACHE_VERSION}\0{version}\0{tree}\0{names}".encode()).hexdigest()[:40]
        kept = cache / f"{key}.json"
        layout = _load(kept)
        if layout is not None:
            return layout
    layout = _parse(source, own, tree, names)
    if kept is not None:
        _store(kept, layout)
    return layout


def open_tree(source: ByteSource, tree: str) -> Any:  # noqa: ANN401 (uproot has no types)
    """Open a tree with uproot; raises DataError naming what the file has instead."""
    import uproot  # noqa: PLC0415 (a second to import; a warm cache needs none of it)

    try:
        # No thread of its own, which nobody would end, and nothing kept of arrays that are read once.
        file = uproot.open(SeekableBytes(source), use_threads=False, array_cache=None)
        keys = {key.split(";")[0]: kind for key, kind in file.classnames().items()}
        opened = file[tree] if keys.get(tree) == "TTree" else None
    except (DataError, TransientError):
        raise
    except Exception as error:  # uproot meets damage with whatever its parser stumbles over
        raise DataError(f"{source.name}: corrupt: {first_line(error)}") from error
    if opened is None:
        if "RNTuple" in keys.get(tree, ""):
            raise DataError(f"{source.name}: {tree} is an RNTuple, which hzzray doesn't read: it must be a TTree")
        trees = [key for key, kind in keys.items() if kind == "TTree"]
        found = f"it has {', '.join(trees)}" if trees else "it has no tree"
        raise DataError(f"{source.name}: no tree {tree} ({found}): is this file of another release?")
    return opened


def first_line(error: BaseException) -> str:
    """Say what an error says, in one line, with its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _parse(source: ByteSource, own: str, tree: str, names: tuple[str, ...]) -> Layout:
    record = read_record(source, tree, names)
    if record is not None and all(stored.kind in _shapes for stored in record.branches.values()):
        found = {name: _familiar(stored) for name, stored in record.branches.items()}
        plain = [found[name] for name, stored in record.branches.items() if stored.is_plain]
        if all(_fits(branch, record.entries, source.size) for branch in found.values()):
            others = tuple(name for name in record.names if name not in found)
            return Layout(_name(own, record.raw, source, plain), tree, record.entries, found, others)
    opened = open_tree(source, tree)
    try:
        there = {branch.name: branch for branch in opened.branches}
        entries = int(opened.num_entries)
        found = {name: _branch(there[name], entries, source.size) for name in names if name in there}
        others = tuple(name for name in there if name not in found)
        key = opened.file.root_directory.key(tree)
        raw = opened.file.source.chunk(key.fSeekKey, key.fSeekKey + key.fNbytes).raw_data  # uproot has just read it
        plain = [branch for name, branch in found.items() if _is_stored_plain(opened[name])]
        layout = Layout(_name(own, bytes(raw), source, plain), tree, entries, found, others)
    except (DataError, TransientError):
        raise
    except Exception as error:  # uproot meets damage with whatever its parser stumbles over
        raise DataError(f"{source.name}: corrupt: {first_line(error)}") from error
    if record is not None:
        for name, stored in record.branches.items():
            if name in found:
                _shapes[stored.kind] = _shape(found[name])
    return layout


# What branches of each kind hold, as uproot told of the first one: as many as there are kinds in this process' files.
_shapes: dict[Kind, tuple[str, bool, int, int]] = {}


def _shape(branch: Branch) -> tuple[str, bool, int, int]:
    return branch.dtype, branch.jagged, branch.header, branch.size


def _familiar(stored: Stored) -> Branch:
    """Lay out a branch of a kind that was met before."""
    dtype, jagged, header, size = _shapes[stored.kind]
    return Branch(dtype, jagged, header, stored.starts, stored.seeks, stored.sizes, size=size)


def _name(own: str, record: bytes, source: ByteSource, plain: Iterable[Branch]) -> str:
    """Name a file's content by its own UUID and by the tree's record as it lies there.

    Where nothing is compressed, other values have the same sizes: then the first and last basket of each branch that
    is read count too.
    """
    digest = hashlib.sha256(record)
    ends = [(branch, i) for branch in plain if len(branch.seeks) for i in (0, len(branch.seeks) - 1)]
    places = {branch.place(i) for branch, i in ends if i not in branch.embedded}
    for basket in source.read(sorted(places)) if places else ():
        digest.update(basket)
    return str(uuid.uuid5(uuid.UUID(own), digest.hexdigest()))


def _is_stored_plain(branch: Any) -> bool:  # noqa: ANN401
    return bool(branch.member("fZipBytes") >= branch.member("fTotBytes"))


def _branch(branch: Any, entries: int, size: int) -> Branch:  # noqa: ANN401
    """Lay out a branch; raises ValueError where its baskets aren't all of its entries, or lie outside the file."""
    from uproot.interpretation.jagged import AsJagged  # noqa: PLC0415
    from uproot.interpretation.numerical import AsDtype  # noqa: PLC0415

    shape = branch.interpretation
    jagged = isinstance(shape, AsJagged)
    content = shape.content if jagged else shape
    stored_as = content.from_dtype if isinstance(content, AsDtype) else np.dtype("V")
    plain = stored_as.base.kind in "biuf" and len(stored_as.shape) <= (not jagged)
    number = branch.num_baskets
    stored = number - len(branch.embedded_baskets)
    seeks = np.zeros(number, np.int64)
    sizes = np.zeros(number, np.int64)
    seeks[:stored] = branch.member("fBasketSeek")[:stored]
    sizes[:stored] = branch.member("fBasketBytes")[:stored]
    embedded = {i: _embedded(branch.basket(i)) for i in range(stored, number)} if plain else {}
    starts = np.asarray(branch.entry_offsets, np.int64)
    if not _are_all(starts, number, entries):
        raise ValueError(f"the baskets of branch {branch.name} don't hold its {entries} entries")
    if not _are_inside(seeks[:stored], sizes[:stored], size):
        raise ValueError(f"a basket of branch {branch.name} lies outside the file")
    return Branch(
        stored_as.base.str if plain else "",
        jagged,
        int(shape.header_bytes) if jagged else 0,
        starts,
        seeks,
        sizes,
        embedded,
        stored_as.shape[0] if plain and stored_as.shape else 0,
    )


def _fits(branch: Branch, entries: int, size: int) -> bool:
    """Whether a branch's baskets are all of its entries, and inside the file."""
    return _are_all(branch.starts, len(branch.seeks), entries) and _are_inside(branch.seeks, branch.sizes, size)


def _are_all(starts: NDArray[np.int64], baskets: int, entries: int) -> bool:
    whole = starts[0] == 0 and starts[-1] == entries and len(starts) == baskets + 1
    return bool(whole and (np.diff(starts) >= 0).all())


def _are_inside(seeks: NDArray[np.int64], sizes: NDArray[np.int64], size: int) -> bool:
    return bool((seeks > 0).all() and (sizes > 0).all() and (seeks <= size - sizes).all())


def _embedded(basket: Any) -> tuple[bytes, int]:  # noqa: ANN401
    """Lay out a basket that is part of the tree's own record as one that was decompressed: values, count, offsets."""
    data = np.asarray(basket.data).tobytes()
    if basket.byte_offsets is None:
        return data, len(data)
    offsets = np.concatenate([[len(basket.byte_offsets)], basket.byte_offsets]).astype(">i4")
    return data + offsets.tobytes(), len(data)


def _load(path: Path) -> Layout | None:
    """Read a layout that was kept; None where there is none, or what is there isn't what was written."""
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    body = json.loads(text)
    branches = {
        name: Branch(
            row["dtype"],
            row["jagged"],
            row["header"],
            np.array(row["starts"], np.int64),
            np.array(row["seeks"], np.int64),
            np.array(row["sizes"], np.int64),
            {int(i): (base64.b64decode(data), border) for i, (data, border) in row["embedded"].items()},
            row["size"],
        )
        for name, row in body["branches"].items()
    }
    return Layout(body["uuid"], body["tree"], body["entries"], branches, tuple(body["others"]))


def _store(path: Path, layout: Layout) -> None:
    body = {
        "uuid": layout.uuid,
        "tree": layout.tree,
        "entries": layout.entries,
        "others": layout.others,
        "branches": {
            name: {
                "dtype": branch.dtype,
                "jagged": branch.jagged,
                "header": branch.header,
                "starts": branch.starts.tolist(),
                "seeks": branch.seeks.tolist(),
                "sizes": branch.sizes.tolist(),
                "embedded": {
                    i: (base64.b64encode(data).decode(), border) for i, (data, border) in branch.embedded.items()
                },
                "size": branch.size,
            }
            for name, branch in layout.branches.items()
        },
    }
    text = json.dumps(body, separators=(",", ":")).encode()
    with suppress(OSError):  # a cache that can't be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
