"""The process of an exploring session: ``python -m app.explore_process FD FOLDER ENGINE``, started by ``app.sessions``.

It has the session's Ray client, or the worker itself, so that nothing that happens to them can happen to the app. It
answers on the socket that it has inherited from the app, which nobody else has a way to, and ends with it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hzzray.engine.explore_messages import Candidate, SessionStatus
from hzzray.engine.monitor import Usage
from hzzray.errors import HzzrayError
from hzzray.messages import RunSpec
from hzzray.physics.analysis import Bound, Cut, Template, Variable
from hzzray.runs.folder import load_json
from hzzray.runs.result import Result
from hzzray.runs.templates import showing

if TYPE_CHECKING:
    from hzzray.runs.explore import Session

#: Questions that are asked side by side, at the most.
_MOST = 16


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the arguments of ``Session.recut``, ``observables`` as the command line has them."""

    cuts: tuple[Bound, ...] = ()
    observables: tuple[str, ...] = ()
    axis: str | None = None
    window: str | None = None


class About(NamedTuple):
    """What a session says of itself first: the run's spec, the variables that cuts may use, the analysis' templates."""

    spec: RunSpec
    variables: tuple[Variable, ...]
    templates: tuple[Template, ...]


@dataclass(frozen=True, eq=False)
class RecutResult:
    """What a re-cut gives: a result by observable; the rest as ``hzzray.runs.explore.Answer`` has it."""

    results: dict[str, Result]
    digest: str
    fraction: float
    failed: tuple[str, ...]
    seconds: float

    @property
    def first(self) -> Result:
        """The result as it shows the first observable, which has significance and digest."""
        return next(iter(self.results.values()))

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts that this is of."""
        return self.first.spec.selection.cuts


class SavedRun(NamedTuple):
    """A re-cut that was written as a run of its own."""

    run_id: str
    digest: str


class Asked:
    """What a session is asked by name; each raises HzzrayError."""

    def __init__(self, session: Session, *, alone: bool) -> None:
        self._session = session
        # One worker of one viewer drops what was asked before: here others wait, and nothing is dropped.
        self._turn = threading.Lock() if alone else None

    def about(self) -> About:
        """Tell what is explored."""
        analysis = self._session.analysis
        named = tuple(analysis.variable(name) for name in self._session.variables)
        return About(self._session.spec, named, analysis.templates)

    def standing(self) -> SessionStatus:
        """Tell how much is loaded."""
        return self._session.standing()

    def usages(self) -> list[Usage]:
        """Tell what the session's workers use."""
        return self._session.usages()

    def recut(self, question: Question, viewer: str, whole: bool) -> RecutResult:  # noqa: FBT001 (comes over the wire)
        """Answer with a result of each observable."""
        spec = self._spec(question)

        def ask() -> RecutResult:
            answer = self._session.answer(spec, viewer=viewer, whole=whole)
            names = [template.observable for template in spec.templates]
            results = {name: showing(answer.result, answer.tables, name) for name in names}
            return RecutResult(results, answer.digest, answer.fraction, answer.failed, answer.seconds)

        found: RecutResult = self._in_turn(ask)
        return found

    def candidates(self, question: Question, window: tuple[float, float], samples: tuple[str, ...]) -> list[Candidate]:
        """List candidates in a window of the first observable."""
        spec = self._spec(question)
        return self._session.candidates(spec, window, samples=samples, whole=False)

    def command(self, question: Question) -> str:
        """Tell the command line that makes the same."""
        return self._session.command(self._spec(question))

    def keep(self, question: Question, run_id: str) -> SavedRun:
        """Write a re-cut as a run."""
        spec = self._spec(question)
        folder = self._in_turn(lambda: self._session.keep(spec, run_id))
        return SavedRun(folder.name, load_json(folder).digest)

    def _spec(self, question: Question) -> RunSpec:
        return self._session.change(
            question.cuts, observables=question.observables, axis=question.axis, window=question.window
        )

    def _in_turn(self, ask: Callable[[], Any]) -> Any:  # noqa: ANN401
        if self._turn is None:
            return ask()
        with self._turn:
            return ask()


def _serve(wire: Connection, asked: Asked) -> None:
    """Answer until the other end is closed."""
    speaking = threading.Lock()

    def answer(number: int, name: str, args: tuple[Any, ...]) -> None:
        said: object
        try:
            said = getattr(asked, name)(*args)
        except HzzrayError as error:
            said = error
        except Exception as error:  # noqa: BLE001 (whatever it is, somebody waits for an answer)
            said = HzzrayError(f"{type(error).__name__}: {error}".splitlines()[0])
        with speaking:
            wire.send((number, said))

    with ThreadPoolExecutor(_MOST) as pool:
        while True:
            try:
                number, name, args = wire.recv()
            except (EOFError, OSError):
                os._exit(0)  # nobody hears what still is computed
            pool.submit(answer, number, name, args)


def main(fd: int, folder: str, engine: Literal["ray", "serial"]) -> None:
    """Serve."""
    from hzzray.runs.explore import explore  # noqa: PLC0415 (imports numerics, which the app itself does without)

    wire = Connection(fd)
    try:
        session = explore(folder, engine=engine)
    except HzzrayError as error:
        wire.send((0, error))
        return
    asked = Asked(session, alone=engine == "serial")
    wire.send((0, asked.about()))
    _serve(wire, asked)


if __name__ == "__main__":
    from app import explore_process  # noqa: PLW0406 (by its own name, which is that of what it sends)

    explore_process.main(int(sys.argv[1]), sys.argv[2], "serial" if sys.argv[3] == "serial" else "ray")
