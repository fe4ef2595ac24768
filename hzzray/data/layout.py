"""Where a file's baskets lie: read once through uproot, then kept on disk under the file's identity."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hzzray.data.header import HEADER, read_header
from hzzray.data.storage import ByteSource, SeekableBytes
from hzzray.data.tree_record import Kind, Stored, read_record
from hzzray.errors import DataError, TransientError

_CACHE_VERSION = 5


class Form(NamedTuple):
    """What a branch's values are as stored: the same in all files of a kind.

    ``dtype`` is numpy's name of their type (big-endian), empty where they have another shape than a number, a list of
    numbers (``jagged``) or ``size`` numbers an entry, as a C array of a fixed length has, for which alone it isn't 0.
    ``jagged`` ones have ``header`` bytes before each entry's values.
    """

    dtype: str
    jagged: bool
    header: int
    size: int = 0


class Branch(NamedTuple):
    """Where one branch's values lie.

    Of ``table`` (int64, shape (baskets + 1, 3)) row i says of basket i with which entry it starts, where it lies and
    how many bytes it has; the last row has the number of entries, where the last basket ends. A basket that lies at 0
    is in ``embedded``, in the form of a decompressed one, with values up to its border.
    """

    form: Form
    table: NDArray[np.int64]
    embedded: Mapping[int, tuple[bytes, int]] = MappingProxyType({})

    @property
    def starts(self) -> NDArray[np.int64]:
        """With which entry each basket starts, and where the last one ends."""
        return self.table[:, 0]

    @property
    def seeks(self) -> NDArray[np.int64]:
        """Where each basket lies."""
        return self.table[:-1, 1]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many bytes each basket has."""
        return self.table[:-1, 2]

    def baskets(self, start: int, stop: int) -> list[int]:
        """Numbers of the baskets that hold entries start to stop, without empty ones."""
        first, end = self.starts[:-1], self.starts[1:]
        held: list[int] = np.flatnonzero((first < stop) & (end > np.maximum(first, start))).tolist()
        return held

    def range(self, basket: int) -> tuple[int, int]:
        """Entries that a basket holds: the first, and the one after the last."""
        return int(self.table[basket, 0]), int(self.table[basket + 1, 0])

    def place(self, basket: int) -> tuple[int, int]:
        """Where in the file a basket lies, and its bytes."""
        return int(self.table[basket, 1]), int(self.table[basket, 2])


def tabled(starts: ArrayLike, seeks: ArrayLike, sizes: ArrayLike) -> NDArray[np.int64]:
    """Make a branch's table of what its baskets start with, where they lie, and how many bytes they have."""
    starts = np.asarray(starts, np.int64)
    table = np.zeros((len(starts), 3), np.int64)
    table[:, 0], table[:-1, 1], table[:-1, 2] = starts, seeks, sizes
    return table


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
        kept = f"{cache}/{key}.layout"
        layout = _load(kept)
        if layout is not None:
            return layout
    layout = _parse(source, own, tree, names)
    if kept is not None:
        _store(Path(kept), layout)
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
    if record is not None and all(
        stored.kind in _forms and _fits(stored, record.entries, source.size) for stored in record.branches.values()
    ):
        found = {
            name: Branch(_forms[stored.kind], tabled(stored.starts, stored.seeks, stored.sizes))
            for name, stored in record.branches.items()
        }
        plain = [found[name] for name, stored in record.branches.items() if stored.is_plain]
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
                _forms[stored.kind] = found[name].form
    return layout


# What branches of each kind hold, as uproot told of the first one: as many as there are kinds in this process' files.
_forms: dict[Kind, Form] = {}


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
    form = Form(
        stored_as.base.str if plain else "",
        jagged,
        int(shape.header_bytes) if jagged else 0,
        stored_as.shape[0] if plain and stored_as.shape else 0,
    )
    return Branch(form, tabled(starts, seeks, sizes), embedded)


def _fits(stored: Stored, entries: int, size: int) -> bool:
    """Whether a branch's baskets are all of its entries, and inside the file."""
    return _are_all(stored.starts, len(stored.seeks), entries) and _are_inside(stored.seeks, stored.sizes, size)


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


# What is kept of a layout: a check sum of the rest; its uuid, its entries, and how many branches, embedded baskets and
# bytes of text there are. Then come numbers (int64): the rows of each branch's table; of each embedded basket its
# branch, its number, its border and its bytes; the tables. Then the text, which files of a kind share, and these bytes.
_KEPT = struct.Struct("<32s40sqqqq")
_DIGEST = 32
_NUMBER = np.dtype("<i8")


def _load(path: str) -> Layout | None:
    """Read a layout that was kept; None where there is none, or what is there isn't what was written."""
    try:
        with FileIO(path) as file:
            kept = file.readall()
    except OSError:
        return None
    if len(kept) < _KEPT.size or hashlib.sha256(kept[_DIGEST:]).digest() != kept[:_DIGEST]:
        return None
    _, own, entries, branches, number, length = _KEPT.unpack_from(kept)
    numbers = np.frombuffer(kept, _NUMBER, (len(kept) - _KEPT.size) // _NUMBER.itemsize, _KEPT.size)
    rows = numbers[:branches].tolist()
    at = branches + 4 * number
    table = numbers[at : at + 3 * sum(rows)].reshape(-1, 3)
    text = _KEPT.size + _NUMBER.itemsize * (at + 3 * len(table))
    tree, others, forms = _shared(kept[text : text + length])
    embedded: defaultdict[int, dict[int, tuple[bytes, int]]] = defaultdict(dict)
    begin = text + length
    for branch, basket, border, size in numbers[branches:at].reshape(-1, 4).tolist():
        embedded[branch][basket] = kept[begin : begin + size], border
        begin += size
    found = {}
    row = 0
    for i, ((name, form), more) in enumerate(zip(forms, rows, strict=True)):
        found[name] = Branch(form, table[row : row + more], embedded.get(i, {}))
        row += more
    return Layout(own.rstrip(b"\0").decode(), tree, entries, found, others)


@lru_cache(maxsize=64)
def _shared(text: bytes) -> tuple[str, tuple[str, ...], tuple[tuple[str, Form], ...]]:
    """Read what files of a kind share: the tree's name, the names of other branches, names and forms of these."""
    body = json.loads(text)
    return body["tree"], tuple(body["others"]), tuple((name, Form(*form)) for name, form in body["branches"].items())


def _store(path: Path, layout: Layout) -> None:
    branches = layout.branches
    shared = {
        "tree": layout.tree,
        "others": layout.others,
        "branches": {name: branch.form for name, branch in branches.items()},
    }
    text = json.dumps(shared, separators=(",", ":")).encode()
    embedded = [(i, *one) for i, branch in enumerate(branches.values()) for one in branch.embedded.items()]
    numbers = [
        *(len(branch.table) for branch in branches.values()),
        *(number for i, basket, (data, border) in embedded for number in (i, basket, border, len(data))),
        *(number for branch in branches.values() for number in branch.table.ravel().tolist()),
    ]
    head = _KEPT.pack(b"", layout.uuid.encode(), layout.entries, len(branches), len(embedded), len(text))
    body = b"".join(
        [head[_DIGEST:], np.array(numbers, _NUMBER).tobytes(), text, *(data for _, _, (data, _) in embedded)]
    )
    with suppress(OSError):  # a cache that can't be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
