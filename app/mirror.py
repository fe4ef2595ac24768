"""Writes what goes on in a Ray cluster elsewhere into the folder of runs: ``python -m app.mirror ADDRESS RUNS``.

A process of its own, because one that is connected to a cluster may be ended when the cluster is. Once a second it asks
every reducer for news, writes them down as the run's own driver would, and says so on standard output in a line of
JSON, ``{"runs": [...]}``. A line ``{"run": ..., "wish": ...}`` on standard input is passed on to the run's reducer. It
ends when standard input does, and with an error line and exit code 1 when the cluster is out of reach.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, get_args

from app.client import WISH
from hzzray.engine.cluster import NAMESPACE, ClusterError, visit
from hzzray.engine.ledger import LedgerError, Wish
from hzzray.engine.reducer import TABLES_S, Live, ReducerName
from hzzray.engine.template_tables import Tables
from hzzray.errors import HzzrayError, UsageError
from hzzray.files import write_whole
from hzzray.messages import Counts
from hzzray.runs.folder import RunFolder, save_json
from hzzray.runs.result import moment, summarise
from hzzray.runs.tables import Recorder
from hzzray.runs.templates import save_root, save_templates, scaled

_EVERY_S = 1.0
_PATIENCE_S = 5.0  # for an answer of a reducer
_NAME = 64 - 9  # characters of a run's name that another of the same name leaves room for


class Copy:
    """One run of the cluster, as its folder here shows it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun = time.monotonic()
        self._recorder: Recorder | None = None
        self._wish: Wish | None = None
        self._told_tables = -TABLES_S
        self.version = -1

    @property
    def name(self) -> str:
        """What the run is called here."""
        return self._folder.name

    def wants_tables(self, live: Live) -> bool:
        """Tell whether all templates are due: now and then, and in the end."""
        if live.state is None:
            return False
        ended = live.state.counts.status != "running"
        return ended or time.monotonic() - self._told_tables >= TABLES_S

    def write(self, live: Live, wish: Wish, tables: Tables | None) -> None:
        """Write down what is new."""
        now = time.monotonic() - self._begun
        if wish != self._wish:
            self._wish = wish
            write_whole(self._folder / WISH, lambda path: path.write_text(wish, encoding="utf-8"))
        if live.state is not None:
            self.version = live.state.version
            result = summarise(live.state)
            save_json(result, self._folder)
            if self._recorder is None:
                self._recorder = Recorder(self._folder, live.state.environment, live.state.wall_s)
            self._recorder.add_history(now, moment(result))
            if tables is not None:
                self._told_tables = time.monotonic()
                tables = scaled(result, tables)
                save_templates(result, tables, self._folder)
            if tables is not None and result.status != "running":
                save_root(result, tables, self._folder)
        if self._recorder is not None and live.scale is not None:
            self._recorder.add(now, live.usages)
            self._recorder.add_scale(now, live.scale)
            if live.congestion is not None:
                self._recorder.add_queue(now, live.congestion)

    def close(self) -> None:
        """Close the tables."""
        if self._recorder is not None:
            self._recorder.close()


class UnansweredError(Exception):
    """A reducer that is busy, being restarted, or has ended."""


class Mirror:
    """The runs of a cluster that have no ledger in the folder of runs: those are written where they are worked on.

    Each has a folder of its name. Where another run has that already, its mark is added. ``ask`` calls a method of the
    reducer of a run, and waits for the answer; raises UnansweredError.
    """

    def __init__(self, runs: Path, ask: Callable[..., Any]) -> None:
        self._runs = runs
        self._ask = ask
        self._copies: dict[ReducerName, Copy] = {}
        self._wishes: dict[str, Wish] = {}

    def wish(self, name: str, wish: Wish) -> None:
        """Pass a wish on with the next look, or the first after it that finds the reducer."""
        self._wishes[name] = wish

    def look(self, sought: set[ReducerName]) -> list[str]:
        """Write down the news of each run; returns the names here of those that gave an answer."""
        for one, copy in list(self._copies.items()):
            if one not in sought or RunFolder(self._runs / copy.name).ledger_path.exists():
                self._copies.pop(one).close()
        for new in sorted(sought - self._copies.keys()):
            if (name := self._name(new)) is not None:
                self._copies[new] = Copy(self._runs / name)
        names = {copy.name for copy in self._copies.values()}
        self._wishes = {name: wish for name, wish in self._wishes.items() if name in names}
        return sorted(copy.name for one, copy in self._copies.items() if self._look(one, copy))

    def _name(self, new: ReducerName) -> str | None:
        """Find a name that no other run has here; None for one whose ledger is here."""
        taken = {copy.name for copy in self._copies.values()}
        for name in (new.run_id, f"{new.run_id[:_NAME]}-{new.mark}"):
            mark = self._mark(name)
            if mark == new.mark:
                return None
            if mark is None and name not in taken:
                return name
        return None

    def _mark(self, name: str) -> str | None:
        """Tell the mark of the ledger that is here under a name; None where there is none."""
        try:
            with RunFolder(self._runs / name).ledger() as ledger:
                return ledger.mark
        except UsageError:
            return None
        except LedgerError:
            return ""  # no one's that can be told

    def _look(self, sought: ReducerName, copy: Copy) -> bool:
        try:
            if copy.name in self._wishes:
                self._ask(sought, "wish", self._wishes[copy.name])
                del self._wishes[copy.name]
            live: Live = self._ask(sought, "live", copy.version)
            progress: tuple[Counts, Wish] = self._ask(sought, "progress")
            tables: Tables | None = self._ask(sought, "tables") if copy.wants_tables(live) else None
        except UnansweredError:
            return False
        copy.write(live, progress[1], tables)
        return True


def _ask(sought: ReducerName, method: str, *args: object) -> Any:  # noqa: ANN401 (whatever the reducer returns)
    """Call a reducer; raises UnansweredError."""
    import ray  # noqa: PLC0415 (a second to import)
    from ray.exceptions import GetTimeoutError, RayActorError  # noqa: PLC0415

    try:
        reducer = ray.get_actor(str(sought), namespace=NAMESPACE)
    except ValueError as error:  # there is none of that name any more
        raise UnansweredError from error
    try:
        return ray.get(getattr(reducer, method).remote(*args), timeout=_PATIENCE_S)
    except (RayActorError, GetTimeoutError) as error:
        raise UnansweredError from error


def _sought() -> set[ReducerName]:
    """Tell which runs have a reducer."""
    import ray  # noqa: PLC0415

    found = (ReducerName.read(row["name"]) for row in ray.util.list_named_actors(all_namespaces=True))
    return {one for one in found if one is not None}


def _listen(lines: TextIO, wishes: queue.Queue[tuple[str, Wish]]) -> None:
    """Take wishes until whoever started this is gone."""
    for line in lines:
        asked = json.loads(line)
        if asked["wish"] in get_args(Wish):
            wishes.put((asked["run"], asked["wish"]))
    os._exit(0)


def main(address: str, runs: Path) -> None:
    """Mirror until standard input ends; raises HzzrayError when the cluster can't be reached any more."""
    wishes: queue.Queue[tuple[str, Wish]] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, wishes), daemon=True).start()
    with visit(address):
        from ray.exceptions import RayError  # noqa: PLC0415

        mirror = Mirror(runs, _ask)
        try:
            while True:
                begun = time.monotonic()
                while not wishes.empty():
                    mirror.wish(*wishes.get())
                _say(runs=mirror.look(_sought()))
                time.sleep(max(0.0, _EVERY_S - (time.monotonic() - begun)))
        except (RayError, ConnectionError, RuntimeError) as error:
            raise ClusterError(f"{address}: {error}") from error


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except HzzrayError as error:
        _say(error=" ".join(str(error).split())[:500])
        sys.exit(1)
