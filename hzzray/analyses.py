"""Analyses by name: ours, and those in files of the user's own that may be used here. And what a run reads for one."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from hzzray.data.catalogue import release
from hzzray.errors import DataError, UsageError
from hzzray.messages import AnalysisRef, RunSpec
from hzzray.physics.analysis import Analysis, Variation
from hzzray.physics.columns import Read, Reads, Unread, needed, nothing, reads_more
from hzzray.physics.selection import ANALYSES, parameters_of, preset
from hzzray.user_code import error_summary

if TYPE_CHECKING:
    from hzzray.physics.filler import Filler

#: Environment variable with the files, and folders of files, whose analyses may be used; between them ``os.pathsep``.
VARIABLE = "HZZRAY_ANALYSES"

#: A file of more bytes is no analysis.
_MOST_BYTES = 2**20


def allowed() -> tuple[str, ...]:
    """List the files and folders that this process' own configuration allows."""
    return tuple(part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part)


def load(place: str) -> tuple[Analysis, AnalysisRef]:
    """Load ``FILE.py:NAME``, which the user asked for; returns the analysis, and what names it.

    Raises UsageError with file, line and cause.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name:
        raise UsageError(f"--analysis {place}: expected FILE.py:NAME, such as examples/dilepton.py:zmumu")
    if not path.stem.isidentifier():
        raise UsageError(f"analysis {path}: name the file as a Python module: letters, digits, underscores")
    source = _read(path)
    analysis = _named(path, source, name)
    _check_labels(path, analysis)
    return analysis, _reference(analysis, name=name, module=path.stem, source=hashlib.sha256(source).hexdigest())


def reference(analysis: Analysis) -> AnalysisRef:
    """Name one of our analyses for messages and results."""
    return _reference(analysis, name=analysis.name)


def _reference(analysis: Analysis, **which: str) -> AnalysisRef:
    try:
        return AnalysisRef(regions=analysis.regions, title=analysis.title, **which)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"analysis {which['name']}: {first['loc'][0]}: {first['msg']}") from error


def resolve(ref: AnalysisRef, places: Sequence[str]) -> Analysis:
    """Find the analysis that a spec names: ours, or one in ``places`` (files and folders) of that very source.

    Raises DataError where there is none: a message can name an analysis, never bring one.
    """
    found = _found(ref, places)
    if found.regions != ref.regions:
        raise DataError(f"analysis {ref} has regions {', '.join(found.regions)}, not {', '.join(ref.regions)}")
    return found


def _found(ref: AnalysisRef, places: Sequence[str]) -> Analysis:
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
    raise DataError(f"analysis {ref} of source {ref.source[:12]}: {known}")


def reads(spec: RunSpec, analysis: Analysis, *, simulation: bool) -> Reads:
    """Say what a run reads of a file; raises UsageError naming what the release has no branch for."""
    selection = spec.selection
    variables = {bound.variable for cut in selection.cuts for bound in cut.bounds}
    variables |= {template.observable for template in spec.templates}
    variables |= {variation.each for variation in spec.variations if variation.each}
    try:
        columns = needed(_columns(spec, analysis), variables)
    except ValueError as error:
        who = f"analysis {spec.analysis}" if spec.analysis.module else f"selection {selection.name}"
        raise UsageError(f"{who} asks for {error}, which release {spec.release.name} has no branch for") from error
    found = _weighted(spec, columns, simulation=simulation)
    if not (simulation and spec.variations):
        return found
    refused = {one.name: why for one in spec.variations if (why := _refused(one, analysis, columns))}
    if refused:
        name, why = next(iter(refused.items()))
        others = ", ".join(one.name for one in spec.variations if one.name not in refused)
        raise UsageError(
            f"--variations: analysis {spec.analysis} can't have {name}: {why}; of those asked for it can have "
            f"{others or 'none'}"
        )
    return found._replace(more=reads_more(columns, spec.variations))


def _refused(variation: Variation, analysis: Analysis, columns: Any) -> str:  # noqa: ANN401
    """Say why an analysis that reads these columns can't have a variation; empty where it can."""
    try:
        if variation.each:
            analysis.index(variation.each)
        reads_more(columns, (variation,))
    except ValueError as error:
        return str(error)
    return ""


def _weighted(spec: RunSpec, columns: Any, *, simulation: bool) -> Reads:  # noqa: ANN401 (an analysis' own NamedTuple)
    schema = spec.release.schema_
    return Reads(columns, schema.factors, schema.divisor or "") if simulation else Reads(columns)


def measurable(spec: RunSpec, analysis: Analysis) -> tuple[str, ...]:
    """List the variables of an analysis that a release has branches for."""
    columns = _columns(spec, analysis)
    found = []
    for variable in analysis.variables:
        with suppress(ValueError):
            needed(columns, {variable.name})
            found.append(variable.name)
    return tuple(found)


def reads_all(spec: RunSpec, analysis: Analysis, variables: Collection[str], *, simulation: bool) -> Reads:
    """Say what is read of a file to measure some variables, each of them ``measurable``, whatever is cut on.

    With what else the events of a run with variations weigh, and not what else their leptons are.
    """
    found = _weighted(spec, needed(_columns(spec, analysis), set(variables)), simulation=simulation)
    weighed = [one for one in spec.variations if simulation and not one.kinematic]
    return found._replace(more=reads_more(found.columns, weighed))


def _columns(spec: RunSpec, analysis: Analysis) -> Any:  # noqa: ANN401 (an analysis' own NamedTuple)
    """Ask an analysis what it reads; raises UsageError with what is wrong there."""
    schema = spec.release.schema_
    try:
        parameters = parameters_of(analysis, spec.selection, schema.gev)
    except ValueError as error:
        raise UsageError(str(error)) from error
    where = f"analysis {spec.analysis}: columns"
    try:
        columns = analysis.columns(schema, parameters)
    except Exception as error:  # somebody's own function may raise what it likes
        code = getattr(analysis.columns, "__code__", None)
        raise UsageError(f"{where}: {error_summary(error, code.co_filename if code else '')}") from error
    if not isinstance(columns, tuple) or not hasattr(columns, "_asdict"):
        raise UsageError(f"{where}: returned {type(columns).__name__}, not a NamedTuple")
    for name, read in columns._asdict().items():
        if not isinstance(read, Read | Unread):
            kinds = ", ".join(kind.__name__ for kind in (*get_args(Read), Unread))
            raise UsageError(f"{where}: {name} is {type(read).__name__}, not one of {kinds}")
    return columns


def filler(spec: RunSpec, analysis: Analysis) -> Filler:
    """Make what fills a run's templates, compiled.

    Raises UsageError where an analysis' kernel can't be compiled, or a spec asks for what the analysis doesn't know.
    """
    from hzzray.physics.filler import Filler, MeasureError  # noqa: PLC0415 (imports numba)

    found = reads(spec, analysis, simulation=True)
    try:
        made = Filler(
            analysis, spec.selection, spec.templates, spec.release.schema_.gev, spec.variations, spec.varied, found
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        made.warm_up(nothing(found))
    except MeasureError as error:
        raise UsageError(f"analysis {spec.analysis}: {error}") from error
    return made


def warm_up(*, last_first: bool = False) -> None:
    """Compile what our own analyses and the reader run, or load it from the cache.

    Two processes that begin at opposite ends are done in little more than half the time.
    """
    from hzzray.data import unpacking, wants  # noqa: PLC0415 (imports numba)
    from hzzray.physics import hot_kernels  # noqa: PLC0415

    pieces: list[Callable[[], None]] = [
        partial(_warm_up, "notebook-2020"),
        unpacking.warm_up,
        wants.warm_up,
        hot_kernels.warm_up,
        partial(_warm_up, "h4l"),
    ]
    for piece in reversed(pieces) if last_first else pieces:
        piece()


def _warm_up(name: str) -> None:
    """Compile what a preset runs on the toys."""
    from hzzray.physics import candidate_builder  # noqa: PLC0415
    from hzzray.physics.filler import Filler  # noqa: PLC0415

    toy = release("toy")
    schema = toy.schema_
    analysis, selection = preset(name, schema)
    columns = needed(analysis.columns(schema, parameters_of(analysis, selection, schema.gev)), set())
    found = Reads(columns, schema.factors, more=reads_more(columns, toy.variations))
    made = Filler(analysis, selection, analysis.templates, schema.gev, toy.variations, 1, found)
    made.warm_up(nothing(found))
    candidate_builder.CandidateBuilder(analysis, selection, (0,), schema.gev).warm_up(
        nothing(Reads(columns, schema.factors))
    )


_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()

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
    from numba.core.dispatcher import Dispatcher  # noqa: PLC0415 (takes a while)

    digest = hashlib.sha256(source).hexdigest()
    if digest not in _LOADED:
        _LOADED[digest] = _run(path, source, digest)
    found = _LOADED[digest].get(name)
    if isinstance(found, Analysis):
        if not isinstance(found.measure, Dispatcher):
            raise UsageError(f"analysis {path}: {name}: measure isn't compiled: write @entry above it")
        return found
    there = [key for key, value in _LOADED[digest].items() if isinstance(value, Analysis)]
    if found is not None:
        raise UsageError(f"analysis {path}: {name} is {type(found).__name__}, not an Analysis")
    raise UsageError(f"analysis {path}: no {name!r} in it; it has {', '.join(there) or 'no Analysis at all'}")


def _check_labels(path: Path, analysis: Analysis) -> None:
    """Refuse a label that no plot could show, for who draws: workers do without. Raises UsageError."""
    from matplotlib.mathtext import MathTextParser  # noqa: PLC0415 (takes a while)

    labels = {variable.name: variable.label for variable in analysis.variables}
    for name, label in {**labels, "title": analysis.title}.items():
        try:
            MathTextParser("path").parse(label)
        except ValueError as error:
            said = str(error).strip().splitlines()[-1]
            raise UsageError(f"analysis {path}: {analysis.name}: the label of {name}, {label!r}: {said}") from error


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
        _stand_alone(source, path)
    except UsageError:
        del sys.modules[module_name]
        raise
    except (Exception, SystemExit) as error:  # somebody's own file may raise what it likes
        del sys.modules[module_name]
        raise UsageError(f"analysis {path}: {error_summary(error, str(path))}") from error
    return vars(module)


def _is_installed(file: Path) -> bool:
    """Tell whether a module's file is of the standard library, or of a package that is installed."""
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or file.is_relative_to(_LIBRARY)


def _stand_alone(source: bytes, path: Path) -> None:
    """Refuse what imports other files of the user's: the source that a message names must be all of it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for name in names:
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and name.partition(".")[0] != "hzzray" and not _is_installed(Path(file).resolve()):
                raise UsageError(
                    f"analysis {path}: line {node.lineno}: imports {name} from {file}: an analysis is one file, beside "
                    "what is installed"
                )
