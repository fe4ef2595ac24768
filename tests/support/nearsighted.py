"""Workers whose node has only a part of the files; nodes on one machine would else see the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hzzray.engine.worker import Worker
from hzzray.errors import HzzrayError, MissingFileError
from hzzray.messages import Partial, RunSpec, Task
from tests.support.chaos import Once


class Nearsighted(Worker):
    """Sees files whose sample's number has its place in ``has`` named after its node: "ab" gives each node a half.

    ``marks`` counts for each node the calls in vain: tiny tasks go together, so that a call may hold several of them.
    """

    def __init__(self, spec: RunSpec, source: str, name: str, has: str, marks: Path) -> None:
        super().__init__(spec, (source,), name)
        self._node = os.environ["HZZRAY_TEST_NODE"]
        names = sorted(sample.name for sample in spec.release.samples)
        self._seen = {name for number, name in enumerate(names) if has[number % len(has)] in (self._node, "*")}
        self._marks = Once(marks)

    def process_all(self, tasks: Sequence[Task]) -> list[Partial | HzzrayError]:
        if any(task.sample not in self._seen for task in tasks):
            self._marks.count(self._node)
        return super().process_all(tasks)

    def process(self, task: Task) -> Partial:
        if task.sample not in self._seen:
            raise MissingFileError(f"{task.file}: no such file")
        return super().process(task)
