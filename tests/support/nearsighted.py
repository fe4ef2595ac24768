"""Workers whose node has only a part of the files; nodes on one machine would else see the same."""

from __future__ import annotations

import os
from pathlib import Path

from hzzray.engine.worker import Worker
from hzzray.errors import MissingFileError
from hzzray.messages import Partial, RunSpec, Task
from tests.support.chaos import Once


class Nearsighted(Worker):
    """Sees files whose sample's number has its place in ``has`` named after its node: "ab" gives each node a half."""

    def __init__(self, spec: RunSpec, source: str, name: str, has: str, marks: Path) -> None:
        super().__init__(spec, (source,), name)
        self._node = os.environ["HZZRAY_TEST_NODE"]
        names = sorted(sample.name for sample in spec.release.samples)
        self._seen = {name for number, name in enumerate(names) if has[number % len(has)] in (self._node, "*")}
        self._marks = Once(marks)

    def process(self, task: Task) -> Partial:
        if task.sample not in self._seen:
            self._marks.count(self._node)
            raise MissingFileError(f"{task.file}: no such file")
        return super().process(task)
