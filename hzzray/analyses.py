"""Analyses by name: ours, and those in files of the user's own that may be used here. And what a run reads for one."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hzzray.errors import DataError, UsageError
from hzzray.messages import AnalysisRef, RunSpec
from hzzray.physics.analysis import Analysis
from hzzray.physics.columns import Reads, needed, nothing
from hzzray.physics.selection import ANALYSES, parameters_of

if TYPE_CHECKING:
    from hzzray.physics.filler import Filler

#: Environment variable with the files, and folders of files, whose analyses may be used; between them ``os.pathsep``.
VARIABLE = "HZZRAY_ANALYSES"

#: A file of more bytes is no analysis.
_MOST_BYTES = 2**20


def allowed(environ: str | None = None) -> tuple[str, ...]:
    """List the files and folders that this process' own configuration allows."""
    text = os.environ.get(VARIABLE, "") if environ is None else environ
    return tuple(part for part in text.split(os.pathsep) if part)


def load(place: str) -> tuple[Analysis, AnalysisRef, str]:
    """Load ``FILE.py:NAME``, which the user asked for; returns the analysis, what names it, and its file.

    Raises UsageError with file, line and cause.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name:
        raise UsageError(f"--analysis {place}: expected FILE.py:NAME, such as examples/dilepton.py:zmumu")
    source = _read(path)
    analysis = _named(path, source, name)
    return analysis, reference(analysis, path.stem, hashlib.sha256(source).hexdigest()), str(path.resolve())


def reference(analysis: Analysis, module: str = "", source: str = "") -> AnalysisRef:
    """Name an analysis for messages and results."""
    return AnalysisRef(name=analysis.name, module=module, source=source, regions=analysis.regions, title=analysis.title)


def resolve(ref: AnalysisRef, places: Sequence[str]) -> Analysis:
    """Find the analysis that a spec names: ours, or one in ``places`` (files and folders) of that very source.

    Raises DataError where there is none: a message can name an analysis, never bring one.
    """
    if not ref.module:
        if ref.name not in ANALYSES:
            raise DataError(f"no analysis {ref.name!r}; there are {', '.join(ANALYSES)}")
        return ANALYSES[ref.name]
    file = f"{ref.module}.py"
    paths = [Path(place) / file if Path(place).is_dir() else Path(place) for place in places]
    others = []
    for path in paths:
        if path.name != file or not path.is_file():
            continue
        try:
            source = _read(path)
            if hashlib.sha256(source).hexdigest() == ref.source:
                return _named(path, source, ref.name)
        except UsageError as error:
            raise DataError(str(error)) from error
        others.append(str(path))
    known = f"{others[0]} has another content" if others else f"{VARIABLE} here allows no {file}"
    raise DataError(f"analysis {ref.module}:{ref.name} of source {ref.source[:12]}: {known}")


def reads(spec: RunSpec, analysis: Analysis, *, simulation: bool) -> Reads:
    """Say what a run reads of a file; raises UsageError naming what the release has no branch for."""
    schema, selection = spec.release.schema_, spec.selection
    variables = {bound.variable for cut in selection.cuts for bound in cut.bounds}
    variables |= {template.observable for template in spec.templates}
    try:
        columns = needed(analysis.columns(schema, parameters_of(analysis, selection, schema.gev)), variables)
    except ValueError as error:
        raise UsageError(
            f"selection {selection.name} asks for {error}, which release {spec.release.name} has no branch for"
        ) from error
    if not simulation:
        return Reads(columns)
    return Reads(columns, schema.factors, schema.divisor or "")


def filler(spec: RunSpec, analysis: Analysis) -> Filler:
    """Make what fills a run's templates, compiled; raises UsageError where an analysis' kernel can't be compiled."""
    from numba.core.errors import NumbaError  # noqa: PLC0415 (takes a while; whoever doesn't fill does without)

    from hzzray.physics.filler import Filler  # noqa: PLC0415 (imports numba)

    made = Filler(analysis, spec.selection, spec.templates, spec.release.schema_.gev)
    try:
        made.warm_up(nothing(reads(spec, analysis, simulation=True)))
    except NumbaError as error:
        raise UsageError(f"analysis {spec.analysis}: measure can't be compiled: {_said(error)}") from error
    return made


_LOADED: dict[str, dict[str, object]] = {}
"""What files define, by their content's digest."""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            source = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"analysis {path}: {error.strerror or error}") from error
    if len(source) > _MOST_BYTES:
        raise UsageError(f"analysis {path}: more than {_MOST_BYTES >> 20} MiB: no analysis")
    return source


def _named(path: Path, source: bytes, name: str) -> Analysis:
    """Take an analysis out of a file; raises UsageError naming file, line and cause."""
    digest = hashlib.sha256(source).hexdigest()
    if digest not in _LOADED:
        _LOADED[digest] = _run(path, source, digest)
    found = _LOADED[digest].get(name)
    if isinstance(found, Analysis):
        return found
    there = [key for key, value in _LOADED[digest].items() if isinstance(value, Analysis)]
    if found is not None:
        raise UsageError(f"analysis {path}: {name} is {type(found).__name__}, not an Analysis")
    raise UsageError(f"analysis {path}: no {name!r} in it; it has {', '.join(there) or 'no Analysis at all'}")


def _run(path: Path, source: bytes, digest: str) -> dict[str, object]:
    """Run a file as a module of its own; its kernels' cache is keyed on its content, and on our sources."""
    from hzzray.physics.jit import cached_for  # noqa: PLC0415 (imports numba)

    # Found by numba when it compiles or loads, and by pickle.
    module_name = f"hzzray_analysis_{path.stem}_{digest[:12]}"
    module = module_from_spec(ModuleSpec(module_name, SourceFileLoader(module_name, str(path)), origin=str(path)))
    module.__file__ = str(path.resolve())
    sys.modules[module_name] = module
    try:
        with cached_for(digest):
            exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 (the user's own file, or an allowed one)
    except Exception as error:
        del sys.modules[module_name]
        raise UsageError(f"analysis {path}{_line(error, str(path))}: {_said(error)}") from error
    return vars(module)


def _line(error: BaseException, file: str) -> str:
    """Find the line of a file that an error comes from."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f", line {error.lineno}"
    last = ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            last = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return last


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
