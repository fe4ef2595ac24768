"""How this project compiles: without the GIL, cached on disk, with IEEE arithmetic as written (no fastmath)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import numba as nb
from numba.core import entrypoints
from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys

from hzzray.cache import cache_folder


def sources(package: Path = Path(__file__).parents[1]) -> list[bytes]:
    """Read all of a package that ends up in compiled code: this folder, and whoever imports from this module."""
    found = {path: path.read_bytes() for path in sorted(package.rglob("*.py"))}
    return [text for path, text in found.items() if path.parent.name == "physics" or b"physics.jit import" in text]


class _Cache(FunctionCache):
    """Loads what is cached without what numba prepares to compile: a third of a second of CPU in each process.

    It comes to that where something is to be compiled all the same.
    """

    def load_overload(self, sig: object, target_context: Any) -> Any:  # noqa: ANN401
        rtsys.initialize(target_context)  # compiled code takes its memory from there
        with self._guard_against_spurious_io_errors():
            found = self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]
            if found is None:
                _defer_scipy()
            return found


def _defer_scipy() -> None:
    """Let numba load scipy.linalg when a function needs it, and not to see whether it could: half a second of CPU.

    Each function of linear algebra asks for it again when it is compiled.
    """
    from numba.np import linalg  # noqa: PLC0415 (see _Cache)

    if "numba.np.arraymath" in sys.modules or find_spec("scipy") is None:
        return
    loaded, linalg.ensure_blas = linalg.ensure_blas, lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = loaded


# Compiling all kernels takes some tens of seconds.
_PATIENCE_S, _POLL_S = 120.0, 0.05


def _cache() -> str:
    """Find a folder for compiled code that belongs to these very sources.

    Numba alone looks at the date and size of a function's own file, not at those that it calls into: after an update it
    could go on with code that was compiled from the old ones.
    """
    version = hashlib.sha256(b"".join(sources())).hexdigest()[:16]
    if nb.config.BOUNDSCHECK:  # type: ignore[attr-defined]  # compiled otherwise, of which numba's own key says nothing
        version += "-checked"
    own = os.environ.get("NUMBA_CACHE_DIR")
    caches = Path(own) if own else cache_folder()
    if caches is not None:
        folder = caches / "numba" / version
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return str(folder)
        with contextlib.suppress(OSError):  # filled where a container's image was built, read-only since
            return shutil.copytree(folder, tempfile.mkdtemp(prefix="hzzray-"), dirs_exist_ok=True)
    # Nowhere to keep it: a folder of this process alone, as what is loaded from there is run.
    return tempfile.mkdtemp(prefix="hzzray-")


# Numba's own setting is read when a function is defined. It is lost as soon as the environment has other settings of
# numba's than before, and so it is kept here.
_FOLDER = _cache()
nb.config.CACHE_DIR = _FOLDER  # type: ignore[attr-defined]

_F = TypeVar("_F", bound=Callable[..., Any])


def entry(function: _F) -> _F:
    """Compile what Python calls."""
    return _cached(nb.njit(nogil=True, error_model="numpy")(function))  # type: ignore[no-any-return]


def kernel(function: _F) -> _F:
    """Compile what compiled code calls in loops over events.

    It can't allocate: arrays pass without counting references, which would cost more than the work itself.
    """
    return _cached(nb.njit(nogil=True, error_model="numpy", _nrt=False)(function))  # type: ignore[no-any-return, call-overload]


def _cached(dispatcher: Any) -> Any:  # noqa: ANN401
    dispatcher._cache = _Cache(dispatcher.py_func)  # type: ignore[no-untyped-call]  # noqa: SLF001 (what cache=True does, with numba's own)
    return dispatcher


def inlined(function: _F) -> _F:
    """Compile as a part of the caller, so that a loop around it can be vectorised."""
    return nb.njit(nogil=True, inline="always", error_model="numpy")(function)  # type: ignore[return-value]


def calling(dispatcher: Any) -> Any:  # noqa: ANN401
    """Make a function anew that calls what is inlined in it: what goes wrong as that is compiled tells who calls it."""
    function = dispatcher.py_func
    names = dict(function.__globals__)
    for name, value in names.items():
        if getattr(value, "targetoptions", {}).get("inline") == "always":
            names[name] = nb.njit(error_model="numpy")(value.py_func)
    return nb.njit(error_model="numpy")(FunctionType(function.__code__, names, function.__name__))


@contextlib.contextmanager
def cached_for(source: str) -> Iterator[None]:
    """Keep what is compiled of functions that are defined in this block apart, by the digest of their source.

    Numba goes by a file's date and size, which another content can have. What these functions call into is of this
    package, whose own digest names the folder around.
    """
    nb.config.CACHE_DIR = str(Path(_FOLDER) / source[:16])  # type: ignore[attr-defined]
    try:
        yield
    finally:
        nb.config.CACHE_DIR = _FOLDER  # type: ignore[attr-defined]


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Let no other process compile the same meanwhile: workers that start together would all do so.

    Whoever has waited finds the work done, in the cache; once it is, nobody waits. One that takes too long is waited
    for no longer.
    """
    folder = Path(_FOLDER)
    name = hashlib.sha256(f"{__file__} {what}".encode()).hexdigest()[:16]  # numba keeps apart what two clones compile
    mark = folder / f"{name}.compiled"
    if mark.exists():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("ab") as lock:
        patience = time.monotonic() + _PATIENCE_S
        while not _is_locked(lock.fileno()) and time.monotonic() < patience:
            time.sleep(_POLL_S)
        yield
        mark.touch()


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody else's
        return False
    except OSError:  # a file system that has no locks
        return True
    return True


@contextlib.contextmanager
def without_extensions() -> Iterator[None]:
    """Compile, or load, without what other packages teach numba: it imports all of them first, half a second's work.

    Only what is compiled in this block does without; awkward arrays and the like work in all other code.
    """
    before = entrypoints._already_initialized  # noqa: SLF001 (there is no setting for it)
    entrypoints._already_initialized = True  # noqa: SLF001
    try:
        yield
    finally:
        entrypoints._already_initialized = before  # noqa: SLF001
