"""What scripts and notebooks call: ``hzzray.run``, ``hzzray.open_run``, and the ``Run`` that both return."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from html import escape
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from rich.console import Console

from hzzray.errors import HzzrayError, UsageError
from hzzray.messages import Counts, RunSpec, Status
from hzzray.report.console import RunProgress
from hzzray.report.say import say
from hzzray.runs.cutflow import By, cutflow, yields
from hzzray.runs.explore import Session, explore
from hzzray.runs.fit_run import drawn, fit_run
from hzzray.runs.folder import RESULT, RunFolder, find_run, load_json
from hzzray.runs.request import RunRequest, make_spec, options
from hzzray.runs.result import Result, Significance
from hzzray.runs.run import execute, settings_for
from hzzray.runs.sources import places_for, release_for, write_toys_once
from hzzray.runs.templates import as_hist, load_templates, showing
from hzzray.statistics.fit_result import FitResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from hzzray.engine.ledger import Wish

# How often what is shown of a run that goes on is drawn anew [s], and what part of the time that may take.
_EVERY_S, _PART = 1.0, 0.2

# How often a run's end is looked for [s].
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """A run: a value that names its folder and reads it when asked, so that a run that goes on shows how it stands.

    All of these raise UsageError where the run has no result yet, OutputError for a file that can't be understood.

    Attributes
    ----------
    path
        The run's folder.
    """

    path: Path

    @property
    def run_id(self) -> str:
        """The run's name."""
        return RunFolder(self.path).run_id

    @property
    def result(self) -> Result:
        """All of ``result.json``, as it is now."""
        return load_json(self.path)

    @property
    def spec(self) -> RunSpec:
        """What the run computes."""
        return self.result.spec

    @property
    def status(self) -> Status:
        """``running``, ``partial`` or ``complete``."""
        return self.result.status

    @property
    def digest(self) -> str:
        """SHA-256 of the first observable's exact bins: the same however the same was computed."""
        return self.result.digest

    @property
    def significance(self) -> Significance:
        """Counts in the window, and their significances: ``asimov`` is what is expected, ``observed`` what is seen."""
        return self.result.significance

    @property
    def observables(self) -> tuple[str, ...]:
        """Names of what ``hist`` and ``plot`` have."""
        return tuple(template.observable for template in self.spec.templates)

    def hist(self, observable: str = "", *, by: By = "sample") -> Any:  # noqa: ANN401 (hist has no types)
        """Return an observable as a weighted ``hist.Hist``; by default the first one.

        Parameters
        ----------
        observable
            One of ``observables``.
        by
            ``sample``: axes dataset, region and the observable, as in ``templates.json``: simulation at the luminosity
            asked for. ``group``: axes group, region and the observable, simulation at that of the data.

        Raises UsageError where the run has no such observable.
        """
        result = self.result
        return as_hist(result, load_templates(result, self.path), observable, by=by)

    def cutflow(self, by: By = "group") -> pd.DataFrame:
        """Tell what each cut leaves, as a data frame indexed by sample or group, and cut.

        Columns are ``n`` (raw events), ``yield``, and efficiencies as shares with binomial errors: ``absolute`` of all,
        ``relative`` of those before, ``weighted_…`` in yields (see ``hzzray.runs.cutflow.CutflowRow``).
        """
        rows = [{by: name, **row.plain()} for name, flow in cutflow(self.result, by).items() for row in flow]
        return _frame(rows).set_index([by, "cut"])

    def yields(self, by: By = "sample", *, observable: str = "") -> pd.DataFrame:
        """Tell what passes all cuts, as a data frame indexed by sample or group.

        Columns are ``group``, ``role``, ``events`` (raw), and yields with their errors √Σw²: ``with_flow`` of all that
        pass, ``on_axis`` of those on the observable's axis, ``in_window`` of those in the significance's window.
        """
        rows = [row.plain() for row in yields(self._showing(observable), by)]
        return _frame(rows).rename(columns={"name": by}).set_index(by)

    def plot(self, observable: str = "", *, channel: str | None = None, log: bool = False) -> Figure:
        """Draw an observable, by default the first one: all regions or one ``channel``, such as ``4mu``.

        Returns a matplotlib figure, which shows itself in a notebook; ``savefig`` writes it.
        """
        from hzzray.report.plotting import figure  # noqa: PLC0415 (matplotlib is a second to import)

        shown, band = drawn(self.result, self.path, observable or None, channel)
        return figure(shown, channel=channel, log=log, systematic=band)

    def fit(self, observable: str = "", *, quick: bool = False) -> FitResult:
        """Fit signal strength and nuisance parameters to an observable, by default the first one.

        Writes ``workspace.json`` and ``fit.json`` into the run's folder. ``.value("mu")`` and so on are the figures
        that ``.figures`` defines; ``hzzray.report.fit_figures`` draws them. A ``quick`` fit has no limit, impacts
        and mass, which take most of the time.

        Raises UsageError where pyhf isn't installed, ModelError or FitError for a run that can't be fitted.
        """
        return fit_run(self.path, observable or None, quick=quick)

    def explore(self, *, engine: Literal["ray", "serial"] = "ray") -> Session:
        """Keep the run's candidates in memory, to move cuts: see ``hzzray.explore``."""
        return explore(self.path, engine=engine)

    def report(self, path: str | Path | None = None) -> Path:
        """Write all of it into one HTML file that opens anywhere, by default ``report.html`` in the run's folder."""
        from hzzray.report.html import save_report  # noqa: PLC0415

        return save_report(RunFolder(self.path), None if path is None else Path(path))

    def _showing(self, observable: str) -> Result:
        result = self.result
        return showing(result, load_templates(result, self.path), observable) if observable else result

    def __repr__(self) -> str:
        """Say what was found, in a few lines."""
        try:
            result = self.result
        except HzzrayError as error:
            return f"Run {self.run_id}: {error}"
        from hzzray.report.html import headline, standing  # noqa: PLC0415

        return (
            f"Run {self.run_id} ({result.spec.release.name}, {result.spec.selection.name})\n{standing(result)}\n"
            f"{headline(result)}\ndigest {result.digest[:16]}, {self.path}"
        )

    def _repr_html_(self) -> str:
        """Show picture, yields, significance: what Jupyter asks for."""
        from hzzray.report.html import card  # noqa: PLC0415

        try:
            return card(self.result)
        except HzzrayError as error:
            return f"<p>Run {escape(self.run_id)}: {escape(str(error))}</p>"


def open_run(run: str | Path, *, runs: str | Path | None = None) -> Run:
    """Open a run that was done before, or goes on: by its folder, or by its id in the folder of ``runs``.

    Raises UsageError where there is no such run.
    """
    there = Path(run)
    path = there if (there / RESULT).is_file() else find_run(str(run), _runs(runs)).path
    if not (path / RESULT).is_file() and not RunFolder(path).has_ledger:
        raise UsageError(f"{path}: no such run")
    return Run(path)


def run(release: str = "toy", *, runs: str | Path | None = None, progress: bool = True, **chosen: Any) -> Run:  # noqa: ANN401
    """Run the analysis: read, select, merge, plot; what is left of one, where ``run_id`` names a run that exists.

    In Jupyter, progress and plot are shown in place while it goes on; elsewhere progress is told on standard error.
    An interrupt finishes what is in flight; the same call with the same ``run_id`` goes on.

    Parameters
    ----------
    release
        2020, 2025, toy, or one of your catalogue.
    runs
        Folder of runs. Default: that of HZZRAY_RUNS, else ``runs``.
    progress
        Whether anything is shown.
    chosen
        What ``hzzray run`` takes, by these names:

    Raises
    ------
    HzzrayError
        In one line that names what is wrong: UsageError for an option, DataError for a file, StoppedError for a run
        that was interrupted.

    Examples
    --------
    >>> run = hzzray.run("toy", selection="h4l", cuts={"m12": (60, 106)}, engine="serial")
    >>> run.hist("m4l"), run.significance.asimov, run.cutflow()
    """
    known = RunRequest.model_fields.keys()
    for name in chosen.keys() - known:
        near = get_close_matches(name, known, n=1) or [one for one in known if one.startswith(name)]
        hint = f": did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise UsageError(f"no option {name!r}{hint}")
    request = RunRequest.of(release=release, **chosen)
    of = release_for(request)
    spec = make_spec(of, request)
    places = places_for(of, request)
    settings = settings_for(request, places.sources, _runs(runs))
    folder = RunFolder(settings.folder)
    screen: _Screen = _Silence() if not progress else _Cell(folder) if _in_notebook() else _Lines()
    if progress and places.note:
        say(Console(stderr=True, emoji=False), places.note)
    with screen:
        if places.to_simulate is not None:
            from hzzray.data.toy import write_toys  # noqa: PLC0415

            screen.say(f"simulating {places.to_simulate} events")
            write = partial(write_toys, release=of, events=places.to_simulate)
            write_toys_once(Path(places.sources[0]), write)
        work = partial(execute, spec, settings, planned=lambda _: screen.begin(), progress=screen.hear)
        result = _followed(work, screen.look, folder)
        from hzzray.report.plotting import save  # noqa: PLC0415 (matplotlib: the first task needn't wait for it)

        shown, band = drawn(result, settings.folder)
        save(shown, settings.folder, systematic=band)
        screen.end(result)
    return Run(settings.folder)


def _describe() -> None:
    """Give ``run`` the options of a request by their names, which help and editors show."""
    asked = [one for one in options() if one.name != "release"]
    own = [*signature(run).parameters.values()][:-1]
    more = [
        Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.field.get_default(), annotation=one.field.annotation)
        for one in asked
    ]
    run.__signature__ = signature(run).replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    lines = [f"        - ``{one.name}``: {one.field.description}" for one in asked]
    given = "What ``hzzray run`` takes, by these names:"
    run.__doc__ = (run.__doc__ or "").replace(given, "\n".join([given, "", *lines]))


_describe()


def _runs(given: str | Path | None) -> Path:
    return Path(given if given is not None else os.environ.get("HZZRAY_RUNS") or "runs")


def _frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    try:
        import pandas as pd  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise UsageError("data frames need pandas: pip install pandas") from error
    return pd.DataFrame(rows)


def _in_notebook() -> bool:
    """Tell whether there is a cell to draw in: IPython's shell of a kernel, rather than that of a terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def _followed(work: Callable[[], Result], look: Callable[[], None], folder: RunFolder) -> Result:
    """Do a run on a thread of its own, beside the event loop that a notebook has, and look at it meanwhile.

    The first interrupt drains, another one cancels.
    """
    asked = 0
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while True:
            try:
                if wait([done], _LOOK_S).done:
                    return done.result()
                if asked:
                    _wish(folder, "drain" if asked == 1 else "cancel")
                else:
                    look()
            except KeyboardInterrupt:
                asked += 1


def _wish(folder: RunFolder, wish: Wish) -> None:
    """Ask a run to end, as soon as there is one: its plan takes back what was wished before."""
    with suppress(HzzrayError), folder.ledger() as ledger:
        ledger.wish(wish)


class _Screen(Protocol):
    """Shows a run while it goes on. ``hear`` is called by the run's thread, the rest by the user's."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def say(self, text: str) -> None: ...
    def begin(self) -> None: ...
    def hear(self, counts: Counts) -> None: ...
    def look(self) -> None: ...
    def end(self, result: Result) -> None: ...


class _Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def begin(self) -> None:
        pass

    def hear(self, counts: Counts) -> None:
        pass

    def look(self) -> None:
        pass

    def end(self, result: Result) -> None:
        pass


class _Lines(_Silence):
    """Tells progress on standard error: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, emoji=False)
        self._progress = RunProgress(self._console)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        say(self._console, text)

    def begin(self) -> None:
        self._progress.start()

    def hear(self, counts: Counts) -> None:
        self._progress(counts)


class _Cell(_Silence):
    """Draws progress and plot in a notebook's cell, in place."""

    def __init__(self, folder: RunFolder) -> None:
        from IPython.display import HTML, display  # noqa: PLC0415 (an extra)

        self._folder = folder
        self._html = HTML
        self._counts: Counts | None = None
        self._drawn: bytes | None = None
        self._digest = ""
        self._due = 0.0
        self._handle = display(HTML(f"<p>run {escape(folder.run_id)}: planning</p>"), display_id=True)

    def _show(self, html: str) -> None:
        self._handle.update(self._html(html))

    def say(self, text: str) -> None:
        self._show(f"<p>run {escape(self._folder.run_id)}: {escape(text)}</p>")

    def hear(self, counts: Counts) -> None:
        self._counts = counts

    def look(self) -> None:
        """Draw anew, but not so often that the run would suffer."""
        if self._counts is None or time.monotonic() < self._due:
            return
        from hzzray.report.html import live  # noqa: PLC0415
        from hzzray.report.plotting import figure  # noqa: PLC0415
        from hzzray.report.style import png  # noqa: PLC0415

        begun = time.monotonic()
        with suppress(HzzrayError):  # there is no result in the first second
            result = load_json(self._folder.path)
            if result.digest != self._digest:
                self._drawn, self._digest = png(figure(result)), result.digest
        self._show(live(self._folder.run_id, self._counts, self._drawn))
        took = time.monotonic() - begun
        self._due = time.monotonic() + max(_EVERY_S, took / _PART)

    def end(self, result: Result) -> None:
        from hzzray.report.html import card  # noqa: PLC0415

        self._show(card(result))
