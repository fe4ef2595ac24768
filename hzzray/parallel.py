"""Calls that wait for others, side by side: a bounded number of threads, results in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

#: Files that are opened at a time: what that takes is mostly round trips to servers.
AT_ONCE = 8

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def side_by_side(call: Callable[[_Item], _Made], items: Sequence[_Item], most: int) -> Iterator[_Made]:
    """Call with each item, ``most`` at a time; yields what came of them in the items' order, and raises as they did.

    When the caller gives up (Ctrl-C), what has not begun never does, and what has is left to itself.
    """
    made = begun(call, items, most)
    try:
        for future in made:
            yield future.result()
    finally:
        for future in made:
            future.cancel()


async def aside(call: Callable[..., _Made], *given: object) -> _Made:
    """Call in a thread that keeps nobody waiting: unlike ``asyncio.to_thread``'s, not even the end of the loop."""
    (made,) = begun(lambda _: call(*given), [None], 1)
    return await asyncio.wrap_future(made)


def begun(call: Callable[[_Item], _Made], items: Sequence[_Item], most: int) -> list[Future[_Made]]:
    """Begin to call with each item, ``most`` at a time; returns what comes of them, in the items' order.

    Unlike an executor's, these threads keep nobody waiting.
    """
    made: list[Future[_Made]] = [Future() for _ in items]
    waiting: SimpleQueue[tuple[Future[_Made], _Item]] = SimpleQueue()
    for pair in zip(made, items, strict=True):
        waiting.put(pair)

    def work() -> None:
        while True:
            try:
                future, item = waiting.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(item))
                except BaseException as error:  # noqa: BLE001 (it is raised where the result is asked for)
                    future.set_exception(error)

    for _ in range(min(most, len(items))):
        Thread(target=work, daemon=True).start()
    return made
