"""All that pages know of runs: read from the folder of runs, once for all viewers, again only where it changed.

A run's folder is its live view: whoever works on it writes its result and its tables there about once a second. Runs of
a cluster elsewhere are written into the same folder by ``app.mirror``, a process of its own. So pages see every run the
same way, and nothing that happens to a cluster can happen to the app.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from app.validation import doubt
from hzzray.engine.cluster import DASHBOARD
from hzzray.engine.ledger import LedgerError, Wish
from hzzray.engine.template_tables import Tables
from hzzray.errors import UsageError
from hzzray.files import OutputError, open_own, read_own
from hzzray.messages import RUN_ID
from hzzray.runs.compare import LoadedRun
from hzzray.runs.folder import LEDGER, LOG, RESULT, RunFolder, load_json
from hzzray.runs.growth import Growth
from hzzray.runs.result import Result
from hzzray.runs.tables import EVENTS, HISTORY, QUEUE, SCALE, USAGE, CpuUse, Rows, cpu_percent, follow
from hzzray.runs.templates import TEMPLATES, load_templates, showing

_T = TypeVar("_T")

Phase = Literal[
    "starting", "waiting", "running", "paused", "draining", "stopped", "interrupted", "failed", "partial", "complete",
    "unreadable",
]  # fmt: skip

#: Phases after which more comes without anybody's doing.
LIVE: tuple[Phase, ...] = ("starting", "waiting", "running", "paused", "draining")

#: A run that goes on writes once a second. One that hasn't for so long is not being worked on [s].
SILENCE_S = 10.0

# Viewers that ask within this time get one answer [s].
_FRESH_S = 0.2

#: File of a run of elsewhere that says what its user wants.
WISH = "wish.txt"

# A run that nobody looks at is forgotten after so long [s].
_FORGET_S = 60.0

_GOING: dict[Wish, Phase] = {"run": "running", "pause": "paused", "drain": "draining", "cancel": "draining"}
_ENDED: dict[Wish, Phase] = {"run": "interrupted", "pause": "interrupted", "drain": "stopped", "cancel": "stopped"}

# Rows of a table that are kept in memory, for pictures of the latest hours.
_ROWS = 50_000

_SHOWN = (RESULT, USAGE, SCALE, HISTORY, QUEUE, EVENTS, LOG)
_FILES = (*_SHOWN, LEDGER, f"{LEDGER}-wal")
_LOG_BYTES = 4096
_LOCAL = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\]):\d{1,5}")


class Stamp(NamedTuple):
    """What tells a file's versions apart; ``changed`` is in ns."""

    inode: int
    size: int
    changed: int


@dataclass(frozen=True, eq=False)
class View:
    """A run as it stands.

    ``result`` is None before its first, then ``log`` tells what is going on; and where it can't be read, then ``wrong``
    says why. ``seen`` is when its folder changed last, in Unix seconds. ``past`` is the moment of the run's clock [s]
    that is shown, where it isn't the last one.
    """

    run_id: str
    phase: Phase
    result: Result | None
    seen: float
    log: str
    wrong: str | None
    _reader: RunReader = field(repr=False)
    past: float | None = None
    _made: dict[object, Any] = field(default_factory=dict, repr=False)

    @property
    def published(self) -> int | None:
        """Tasks that were published of a run that no bridge has taken up yet, as its publisher said in the end."""
        return _published(self.run_id, self.log)

    @property
    def dashboard(self) -> Dashboard | None:
        """The Ray dashboard of the run's own cluster, while there is one on this machine."""
        return self.once("dashboard", self._reader.dashboard) if self.live else None

    @property
    def has_ledger(self) -> bool:
        """Whether the run can be gone on with from this folder."""
        return self._reader.run.has_ledger

    @property
    def live(self) -> bool:
        """Whether more is to come without anybody's doing."""
        return self.phase in LIVE

    @property
    def uses(self) -> dict[str, CpuUse]:
        """CPU use over time of each actor, service and machine."""
        return self.once("uses", lambda: cpu_percent(self.usage))

    @property
    def usage(self) -> Rows:
        """Rows of ``cpu.csv``."""
        return self._table(USAGE)[0]

    @property
    def scale(self) -> Rows:
        """Rows of ``scale.csv``."""
        return self._until_then(self._table(SCALE)[0])

    @property
    def history(self) -> Rows:
        """Rows of ``history.csv``."""
        return self._until_then(self._table(HISTORY)[0])

    @property
    def queue(self) -> Rows:
        """Rows of ``queue.csv``: none of a run without a broker."""
        return self._table(QUEUE)[0]

    @property
    def events(self) -> Rows:
        """Rows of ``events.csv``: none of a run in which nothing happened."""
        return self._table(EVENTS)[0]

    def trouble(self, *tables: str) -> list[str]:
        """Say in one line each why tables can't be read, of those that can't."""
        return [wrong for name in tables if (wrong := self._table(name)[1]) is not None]

    def _until_then(self, rows: Rows) -> Rows:
        return rows if self.past is None else rows[rows["time_s"] <= self.past]

    def as_of(self, time_s: float) -> View:
        """Return a run that nobody works on as it was seen so many seconds from its start, when somebody did.

        Raises UsageError where its ledger isn't here or is another computation's, LedgerError where it can't be read.
        """
        if self.result is None:
            raise UsageError(f"run {self.run_id} has no result yet")
        then = self._reader.as_of(self.result, time_s, "")
        return replace(self, phase="running", result=then, past=time_s, _made={})

    def _table(self, name: str) -> tuple[Rows, str | None]:
        return self.once(("table", name), lambda: self._reader.table(name))

    def once(self, key: object, make: Callable[[], _T]) -> _T:
        """Make something of this view, once for all viewers."""
        if key not in self._made:
            self._made[key] = make()
        made: _T = self._made[key]
        return made

    def showing(self, observable: str) -> tuple[Result | None, str | None]:
        """Return the result as it shows another observable; None, and why in one line, where it can't be shown yet."""
        return self.once(("showing", observable), lambda: self._showing(observable))

    def _showing(self, observable: str) -> tuple[Result | None, str | None]:
        if self.past is None or self.result is None or observable == self.result.observable.observable:
            return self._reader.showing(self.result, observable)
        return self._reader.as_of(self.result, self.past, observable), None

    def run(self) -> LoadedRun:
        """Return what comparisons are made of; raises UsageError before the first result."""
        if self.result is None:
            raise UsageError(f"run {self.run_id} has no result yet")
        return LoadedRun(self.result, self.usage, self.scale)


class Dashboard(NamedTuple):
    """Where a browser of here finds a run's Ray dashboard, and who has its token: see ``write_dashboard_file``."""

    url: str
    token: str


class RunRow(NamedTuple):
    """A run in the list of runs; what its result doesn't tell yet is None."""

    run_id: str
    phase: Phase
    seen: float
    environment: str | None = None
    release: str | None = None
    selection: str | None = None
    events: int | None = None
    wall_s: float | None = None
    events_per_s: float | None = None
    asimov: float | None = None
    merged: int = 0
    planned: int = 0
    wrong: str | None = None


class RunReader:
    """One run's folder. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = RunFolder(folder)
        self._lock = threading.Lock()
        self._tables = threading.Lock()
        self._followers = {table: follow(folder, table, _ROWS) for table in (USAGE, SCALE, HISTORY, QUEUE, EVENTS)}
        self._templates: tuple[Stamp | None, Tables] | None = None
        self._growth: tuple[Stamp | None, Growth] | None = None
        self._stamps: dict[str, Stamp] = {}
        self._looked = -_FRESH_S
        self._view: View | None = None
        self._row: tuple[Stamp | None, RunRow] | None = None

    def view(self, started: float | None) -> View:
        """Return the run as it stands; ``started`` is since when a process started here works on it, if one does."""
        with self._lock:
            if self._view is None or time.monotonic() - self._looked >= _FRESH_S:
                self._view = self._look(started)
                self._looked = time.monotonic()
            return self._view

    def dashboard(self) -> Dashboard | None:
        """Read where the dashboard is: an address of this machine, or nobody's word for one."""
        try:
            said = json.loads(read_own(self.folder / DASHBOARD, 1000))
            return Dashboard(str(said["url"]), said["token"]) if _LOCAL.fullmatch(str(said["url"])) else None
        except (FileNotFoundError, OutputError, ValueError, LookupError, TypeError):
            return None

    def showing(self, result: Result | None, observable: str) -> tuple[Result | None, str | None]:
        """Put another observable in place of a result's first; see ``View.showing``."""
        if result is None or observable == result.observable.observable:
            return result, None
        try:
            with self._tables:
                stamp = _stamp(self.folder / TEMPLATES)
                if self._templates is None or self._templates[0] != stamp:
                    self._templates = stamp, load_templates(result, self.folder)
                return showing(result, self._templates[1], observable), None
        except (UsageError, OutputError) as error:
            return None, str(error)

    def as_of(self, result: Result, time_s: float, observable: str) -> Result:
        """Tell what stood at a moment of a run whose last result is this; see ``View.as_of``."""
        with self._tables:
            stamp = _stamp(self.folder / RESULT)
            if self._growth is None or self._growth[0] != stamp:
                self._growth = stamp, Growth(self.run, self._followers[HISTORY].rows())
            growth = self._growth[1]
            if growth.spec != result.spec:
                raise UsageError(f"{self.run.ledger_path}: of another computation than {RESULT}")
            then = growth.at(time_s, observable)
        wrong = doubt(then)
        if wrong:
            raise UsageError(f"{self.run.ledger_path}: {wrong}")
        return then

    def look_again(self) -> None:
        """Look at the folder the next time, however soon that is."""
        self._looked = -_FRESH_S

    def row(self, started: float | None) -> RunRow:
        """Return the run in short. Of one that has ended, nothing but this is kept in memory."""
        stamp = _stamp(self.folder / RESULT)
        if self._row is None or self._row[0] != stamp or self._row[1].phase in LIVE or started is not None:
            self._row = stamp, _row(self.view(started))
        if self._row[1].phase not in LIVE and time.monotonic() - self._looked > _FORGET_S:
            with self._lock:
                self._view = self._templates = self._growth = None
        return self._row[1]

    def table(self, name: str) -> tuple[Rows, str | None]:
        """Read a table on; one that can't be read has no rows, but a line that says why."""
        follower = self._followers[name]
        with self._tables:
            try:
                return follower.rows(), None
            except OutputError as error:
                return follower.none(), str(error)

    def _look(self, started: float | None) -> View:
        stamps = {name: stamp for name in _FILES if (stamp := _stamp(self.folder / name)) is not None}
        seen = max((stamp.changed for stamp in stamps.values()), default=0) / 1e9
        last, changed = self._view, {name for name in _SHOWN if stamps.get(name) != self._stamps.get(name)}
        known = (last.result, last.wrong) if last and RESULT not in changed else self._result()
        result, wrong = known
        log = self._log() if result is None or started is not None else ""
        phase: Phase = "unreadable" if wrong else self._phase(result, stamps, seen, started)
        if phase == "failed" and _published(self.folder.name, log) is not None:
            phase = "waiting"
        if last and not changed and phase == last.phase:
            return last
        self._stamps = stamps
        return View(self.folder.name, phase, result, seen, log, wrong, self)

    def _result(self) -> tuple[Result | None, str | None]:
        """Read the result; one that can't be read, or shown, is none, but a line that says why."""
        try:
            result = load_json(self.folder)
        except UsageError:
            return None, None
        except OutputError as error:
            return None, str(error)
        wrong = doubt(result)
        return (None, f"{self.folder / 'result.json'}: {wrong}") if wrong else (result, None)

    def _phase(self, result: Result | None, stamps: dict[str, Stamp], seen: float, started: float | None) -> Phase:
        fresh = time.time() - seen < SILENCE_S
        written = stamps[RESULT].changed / 1e9 if RESULT in stamps else 0.0
        if started is not None and written < started:
            return "starting"
        if result is None:
            if LEDGER not in stamps:
                return "failed"
            return "starting" if fresh else "interrupted"
        if result.status != "running":
            return result.status
        return _GOING[self._wish()] if fresh else _ENDED[self._wish()]

    def _wish(self) -> Wish:
        """Tell what the run's user wants; a run of elsewhere has no ledger here, but a file of this one word."""
        try:
            with self.run.ledger() as ledger:
                return ledger.wished()
        except (UsageError, LedgerError):
            return self._word()

    def _word(self) -> Wish:
        try:
            said = read_own(self.folder / WISH, 100).decode(errors="replace")
        except (FileNotFoundError, OutputError):
            said = ""
        return next((wish for wish in get_args(Wish) if wish == said), "run")

    def _log(self) -> str:
        """Return the end of what the process that was started here said."""
        try:
            with open_own(self.folder / LOG) as file:
                file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
                return file.read(_LOG_BYTES).decode(errors="replace").strip()
        except (OSError, OutputError) as error:
            return "" if isinstance(error, FileNotFoundError) else str(error)


def _published(run_id: str, log: str) -> int | None:
    """Read from the end of what a publisher said how many tasks it published; None where it didn't come so far."""
    found = re.search(rf"published\s+run\s+{re.escape(run_id)}:\s+(\d{{1,12}})\s+tasks\s*$", log)
    return int(found[1]) if found else None


def _row(view: View) -> RunRow:
    result = view.result
    if result is None:
        return RunRow(view.run_id, view.phase, view.seen, wrong=view.wrong)
    spec, cost = result.spec, result.cost
    return RunRow(
        run_id=view.run_id,
        phase=view.phase,
        environment=result.environment,
        release=spec.release.name,
        selection=spec.selection.name,
        events=cost.events,
        wall_s=cost.wall_s,
        events_per_s=cost.events_per_s,
        asimov=result.significance.asimov,
        merged=result.tasks.merged,
        planned=result.tasks.planned,
        seen=view.seen,
    )


def _stamp(path: Path) -> Stamp | None:
    """Tell a file's version; a link's is its own: it is not followed."""
    try:
        about = path.lstat()
    except OSError:
        return None
    return Stamp(about.st_ino, about.st_size, about.st_mtime_ns)


def _has_a_runs_file(folder: Path) -> bool:
    """Tell a run's folder from any other, as the list of runs does."""
    return any(_stamp(folder / name) is not None for name in _FILES)


class Client:
    """The runs of a folder. One for all viewers of a server; safe to use from several threads.

    ``started`` tells since when a process that this server started works on a run.
    """

    def __init__(self, runs: Path, started: Callable[[str], float | None] = lambda _: None) -> None:
        self._runs = runs
        self._started = started
        self._readers: dict[str, RunReader] = {}
        self._lock = threading.Lock()

    def run_ids(self) -> list[str]:
        """Names of all runs, the one that changed last first."""
        found = []
        try:
            for folder in self._runs.iterdir():
                stamps = [stamp.changed for name in _FILES if (stamp := _stamp(folder / name)) is not None]
                if stamps and re.fullmatch(RUN_ID, folder.name) and not folder.is_symlink():
                    found.append((max(stamps), folder.name))
        except OSError:
            return []
        return [name for _, name in sorted(found, reverse=True)]

    def is_misnamed(self, name: str) -> bool:
        """Tell whether a folder of this name has a run's files, but a name that no run can have."""
        try:
            here = [folder for folder in self._runs.iterdir() if folder.name == name and not folder.is_symlink()]
        except OSError:
            return False
        return not re.fullmatch(RUN_ID, name) and any((folder / file).is_file() for folder in here for file in _FILES)

    def view(self, run_id: str) -> View:
        """Return a run as it stands; raises UsageError where there is none."""
        return self._reader(run_id).view(self._started(run_id))

    def rows(self) -> tuple[list[RunRow], list[str]]:
        """Return all runs in short, and in one line each what is wrong with those that can't be read."""
        rows, wrong = [], []
        for run_id in self.run_ids():
            try:
                reader = self._reader(run_id)
            except UsageError:  # it has gone meanwhile
                continue
            row = reader.row(self._started(run_id))
            rows.append(row)
            if row.wrong:
                wrong.append(row.wrong)
        return rows, wrong

    def look_again(self, run_id: str) -> None:
        """Read a run anew the next time it is asked for: something was done to it."""
        self._reader(run_id).look_again()

    def folder(self, run_id: str) -> RunFolder:
        """Return a run's folder; raises UsageError where there is no such run."""
        return self._reader(run_id).run

    def _reader(self, run_id: str) -> RunReader:
        folder = self._runs / run_id
        if not re.fullmatch(RUN_ID, run_id) or folder.is_symlink() or not _has_a_runs_file(folder):
            raise UsageError(f"no run {run_id!r} in {self._runs}")
        with self._lock:
            return self._readers.setdefault(run_id, RunReader(folder))
