"""Exploring sessions that viewers share: one a run, each a process of its own. No Streamlit here."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as LateError
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.children import environment
from app.explore_charts import Slider, sliders
from app.explore_process import About, Question, RecutResult, SavedRun
from hzzray.engine.cluster import ClusterError
from hzzray.engine.explore_messages import Candidate, OvertakenError, SessionStatus
from hzzray.engine.monitor import Usage
from hzzray.errors import HzzrayError
from hzzray.physics.analysis import Cut

#: A session that nobody looks at for so long ends [s].
IDLE_S = 900.0

#: How often sessions are looked at [s].
TICK_S = 5.0

# An answer takes no longer, unless something hangs [s]; loading takes what it takes.
_LATE_S = 300.0

#: Answers that are kept for all viewers, those that were used last.
_KEPT = 200


class Exploring:
    """A session of a run: a process, and what it has answered. For several threads.

    ``sliders`` are there when all is loaded; ``trouble`` says why there is no session any more.
    """

    def __init__(self, folder: Path, engine: str, address: str | None) -> None:
        self.run_id = folder.name
        self.begun = self.used = time.monotonic()
        self.about: About | None = None
        self.sliders: dict[str, Slider] = {}
        self.trouble: str | None = None
        #: Cuts that were run: the run's own, and those that were kept.
        self.run: set[tuple[Cut, ...]] = set()
        self._lock = threading.Lock()
        self._numbers = 0
        self._futures: dict[int, Future[Any]] = {0: Future()}
        self._answers: OrderedDict[Question, RecutResult] = OrderedDict()
        ours, its = socket.socketpair()
        command = [sys.executable, "-m", "app.explore_process", str(its.fileno()), str(folder.resolve()), engine]
        ray = {"RAY_ADDRESS": address} if address else {}
        with its:
            self._process = subprocess.Popen(  # noqa: S603 (our own program, no shell)
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env=environment(ray),
            )
        self._wire = Connection(ours.detach())
        threading.Thread(target=self._hear, name=f"explore-{self.run_id}", daemon=True).start()
        threading.Thread(target=self._load, name=f"load-{self.run_id}", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether all is loaded."""
        return bool(self.sliders)

    def loaded(self) -> float:
        """Tell which part of the run's ranges is loaded."""
        if self.about is None:
            return 0.0
        standing = self.standing()
        return min(standing.ready, standing.hot_ranges) / standing.ranges

    def standing(self) -> SessionStatus:
        """Tell how the session stands; raises ClusterError."""
        standing: SessionStatus = self._ask("standing")
        return standing

    def usages(self) -> list[Usage]:
        """Tell what the session's workers use; raises ClusterError."""
        usages: list[Usage] = self._ask("usages")
        return usages

    def recut(self, question: Question, viewer: str = "", *, whole: bool = False) -> RecutResult:
        """Answer a question, of what is ready; raises HzzrayError.

        A question that another viewer asked is answered at once.
        """
        with self._lock:
            known = self._answers.get(question)
            if known is not None:
                self._answers.move_to_end(question)
                self.used = time.monotonic()
                return known
        found: RecutResult = self._ask("recut", question, viewer, whole)
        if found.fraction == 1.0:
            with self._lock:
                self._answers[question] = found
                while len(self._answers) > _KEPT:
                    self._answers.popitem(last=False)
        return found

    def candidates(self, question: Question, window: tuple[float, float], samples: tuple[str, ...]) -> list[Candidate]:
        """List candidates in a window of the first observable; raises HzzrayError."""
        found: list[Candidate] = self._ask("candidates", question, window, samples)
        return found

    def command(self, question: Question) -> str:
        """Tell the command line that makes the same; raises UsageError where there is none."""
        line: str = self._ask("command", question)
        return line

    def keep(self, question: Question, run_id: str) -> SavedRun:
        """Write a re-cut as a run; raises UsageError where such a run exists."""
        kept: SavedRun = self._ask("keep", question, run_id)
        self.run.add(self.recut(question).cuts)
        return kept

    def close(self, why: str = "it was ended") -> None:
        """End the session's process."""
        self._fail(why)
        self._process.kill()
        self._process.wait()
        self._wire.close()

    def _ask(self, name: str, *args: object, late_s: float | None = _LATE_S) -> Any:  # noqa: ANN401
        future: Future[Any] = Future()
        with self._lock:
            if self.trouble is not None:
                raise ClusterError(f"The session has ended: {self.trouble}.")
            self.used = time.monotonic()
            self._numbers += 1
            number = self._numbers
            self._futures[number] = future
            try:
                self._wire.send((number, name, args))
            except OSError:
                future.set_exception(ClusterError("The session's process has ended."))
        try:
            return future.result(late_s)
        except LateError as error:
            raise ClusterError(f"The session has not answered within {late_s:g} s.") from error
        finally:
            self.used = time.monotonic()
            self._futures.pop(number, None)

    def _hear(self) -> None:
        """Give answers to those who wait for them."""
        while True:
            try:
                number, said = self._wire.recv()
            except (EOFError, OSError):
                self._fail("its process ended")
                self._process.wait()
                return
            if number == 0 and isinstance(said, HzzrayError):
                self._fail(str(said))  # it ends of this: nothing else is to be told of it
            future = self._futures.get(number)
            with suppress(InvalidStateError):
                if future is not None and isinstance(said, BaseException):
                    future.set_exception(said)
                elif future is not None:
                    future.set_result(said)

    def _fail(self, why: str) -> None:
        with self._lock:
            self.trouble = self.trouble or why
            for future in [future for future in self._futures.values() if not future.done()]:
                with suppress(InvalidStateError):
                    future.set_exception(ClusterError(f"The session has ended: {why}."))

    def _load(self) -> None:
        """Have everything read, and make the sliders of it."""
        try:
            about: About = self._futures[0].result()
            self.about = about
            own: RecutResult = self._ask("recut", Question(), "load", True, late_s=None)  # noqa: FBT003 (over the wire)
            self.run.add(own.cuts)
            self.sliders = sliders(about, lambda question: self.recut(question, "load", whole=True))
        except OvertakenError:  # nobody else asks under that name
            self._fail("another session took its place")
        except HzzrayError as error:
            self._fail(str(error))


class Sessions:
    """All exploring sessions of this server, by run."""

    def __init__(self, engine: str, address: str | None = None) -> None:
        self._engine = engine
        self._address = address
        self._lock = threading.Lock()
        self._there: dict[str, Exploring] = {}
        threading.Thread(target=self._watch, name="idle sessions", daemon=True).start()

    def find(self, run_id: str) -> Exploring | None:
        """Find a run's session."""
        with self._lock:
            return self._there.get(run_id)

    def begin(self, folder: Path) -> Exploring:
        """Find a run's session, or start one; it loads by itself."""
        with self._lock:
            known = self._there.get(folder.name)
            if known is None or known.trouble is not None:
                known = self._there[folder.name] = Exploring(folder, self._engine, self._address)
            return known

    def end(self, run_id: str, why: str = "it was ended") -> None:
        """End a run's session, if there is one."""
        with self._lock:
            session = self._there.pop(run_id, None)
        if session is not None:
            session.close(why)

    def close(self) -> None:
        """End all sessions."""
        for run_id in list(self._there):
            self.end(run_id)

    def _watch(self) -> None:
        """End sessions that nobody asks anything."""
        while True:
            time.sleep(TICK_S)
            for run_id, session in list(self._there.items()):
                if session.trouble is None and time.monotonic() - session.used > IDLE_S:
                    self.end(run_id)
