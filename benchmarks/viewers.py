"""What a class of viewers costs a run: ``python benchmarks/viewers.py``, with viewers that are no browsers.

Each viewer speaks Streamlit's own protocol over a WebSocket of its own, asks as often as the page in a browser does,
and reads all that the server sends, so that what is measured is the server, not thirty browsers on its cores. First a
run as fast as can be, with nobody watching and with all, in turns. Then runs that take their time are watched by all:
how old is what they are sent, how much CPU and memory the server uses, from the beginning to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import psutil
import report
from scaling import rate
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from watching import Spent, ages_of, environment_of, finish, serve_toys, start

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.app import App

FULL_EVENTS = 5_000_000
SETTLED_S = 15.0  # viewers that have just come cost more
GOALS = "goals: at most 10 % of the run's throughput, an update within 1.5 s at the median, flat memory"


@dataclass
class Seen:
    """What a viewer was sent: when which count of merged tasks, messages, bytes, errors."""

    counts: list[list[float]] = field(default_factory=list)
    messages: int = 0
    octets: int = 0
    errors: list[str] = field(default_factory=list)


class LightViewer:
    """One page in a browser, as far as the server can tell: the run's page, drawn again as often as it asks for."""

    def __init__(self, url: str, run: str) -> None:
        self.seen = Seen()
        self._url = url
        self._query = f"run={run}"
        self._page = ""
        self._known: set[str] = set()
        self._timers: dict[str, asyncio.Task[None]] = {}

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Watch until cancelled."""
        async with session.ws_connect(
            f"{self._url}/_stcore/stream", protocols=("streamlit",), origin=self._url, max_msg_size=0
        ) as socket:
            await self._ask(socket)
            async for message in socket:
                self.seen.messages += 1
                self.seen.octets += len(message.data)
                self._take(socket, ForwardMsg.FromString(message.data))
        raise ConnectionError("the server closed the connection")

    async def _ask(self, socket: aiohttp.ClientWebSocketResponse, fragment: str = "") -> None:
        state = ClientState(
            query_string=self._query,
            page_script_hash=self._page,
            fragment_id=fragment,
            is_auto_rerun=bool(fragment),
            cached_message_hashes=self._known,
        )
        await socket.send_bytes(BackMsg(rerun_script=state).SerializeToString())

    async def _again(self, socket: aiohttp.ClientWebSocketResponse, fragment: str, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self._ask(socket, fragment)

    def _stop(self, fragment: str) -> None:
        if (timer := self._timers.pop(fragment, None)) is not None:
            timer.cancel()

    def _take(self, socket: aiohttp.ClientWebSocketResponse, message: ForwardMsg) -> None:
        if message.metadata.cacheable:
            self._known.add(message.hash)
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._page = message.new_session.page_script_hash
        elif kind == "auto_rerun":
            again = message.auto_rerun
            self._stop(again.fragment_id)
            waits = self._again(socket, again.fragment_id, again.interval)
            self._timers[again.fragment_id] = asyncio.create_task(waits)
        elif kind == "stop_auto_rerun":
            for fragment in message.stop_auto_rerun.fragment_ids:
                self._stop(fragment)
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            element = message.delta.new_element
            if element.WhichOneof("type") == "exception":
                self.seen.errors.append(element.exception.message)
            elif element.WhichOneof("type") == "metric" and element.metric.label == "Tasks":
                merged = float(re.match(r"\d+", element.metric.body)[0])  # type: ignore[index]
                if not self.seen.counts or self.seen.counts[-1][1] != merged:
                    self.seen.counts.append([time.time(), merged])


def watch(url: str, runs: list[str], number: int, end: Connection) -> None:
    """Be so many viewers, spread over the runs, until something comes through the pipe; sends what they saw."""

    async def all_of_them() -> list[Seen]:
        viewers = [LightViewer(url, runs[each % len(runs)]) for each in range(number)]
        async with aiohttp.ClientSession() as session:
            tasks = [asyncio.create_task(viewer.watch(session)) for viewer in viewers]
            over = asyncio.create_task(asyncio.to_thread(end.recv))
            done, _ = await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            for task in done - {over}:
                task.result()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [viewer.seen for viewer in viewers]

    end.send(asyncio.run(all_of_them()))


@dataclass
class Class:
    """The viewers' process, and after its end what each of them saw."""

    pid: int
    seen: list[Seen] = field(default_factory=list)


@contextmanager
def cluster(app: App, slots: int) -> Iterator[None]:
    """Have a local cluster that all runs use: ten of them that start at once take minutes, on two cores."""
    hzzray, env = (sys.executable, "-m", "hzzray", "cluster"), environment_of(app)
    subprocess.run([*hzzray, "up", "--slots", str(slots)], env=env, check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([*hzzray, "down", "--force"], env=env, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def viewers(app: App, runs: list[str], number: int) -> Iterator[Class]:
    """Have viewers for a while; nobody at all where the number is zero. Ends the program where one of them fails."""
    if not number:
        yield Class(0)
        return
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=watch, args=(app.url, runs, number, theirs))
    process.start()
    theirs.close()
    they = Class(process.pid or 0)
    try:
        yield they
    finally:
        with contextlib.suppress(OSError):
            mine.send("over")
        try:
            they.seen = mine.recv() if mine.poll(60) else []
        except EOFError:
            they.seen = []  # it failed, and has said why; whoever counts them says that they are too few
        finally:
            process.kill()
            process.join()
    problems = [error for seen in they.seen for error in seen.errors]
    if problems or len(they.seen) < number:
        raise SystemExit(f"viewers got {len(problems)} errors: {problems[:1]}\n{app.said()[-2000:]}")


def memory(app: App) -> float:
    """Return the server's own memory [MB]: what no other process has too."""
    return float(psutil.Process(app.process.pid).memory_full_info().uss / 1e6)


def main() -> int:
    """Measure, print, and write the document's section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=FULL_EVENTS, help="events of a run (%(default)s)")
    parser.add_argument("--viewers", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=10, help="runs that go on at once (%(default)s)")
    parser.add_argument("--pace", type=float, default=600.0, help="seconds that a watched run takes (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="fast runs with and without viewers (%(default)s)")
    options = parser.parse_args()
    with serve_toys(options.events) as (app, toys):
        alone, seen = turns(app, toys, options.viewers, options.repeat)
        with cluster(app, options.at_once):
            paced = watched(app, toys, options.viewers, options.at_once, options.pace)
    lines = [
        *paced,
        ("a fast run, nobody watching, events/s", f"{alone:,.0f}"),
        (f"a fast run, {options.viewers} viewers, events/s", f"{seen:,.0f}"),
        ("the same, of its throughput", f"{seen / alone:.1%}"),
    ]
    title = f"{options.viewers} viewers, {options.at_once} runs at once; {GOALS}"
    about = f"; {options.viewers} viewers without browsers, on the same cores. {GOALS.capitalize()}."
    command = ["benchmarks/viewers.py", *sys.argv[1:]]
    report.conclude("viewers", title, lines, about, command, whole=options.events >= FULL_EVENTS)
    return 0


def turns(app: App, toys: Path, number: int, repeat: int) -> tuple[float, float]:
    """Do runs as fast as can be, without and with viewers in turns; returns the medians of events/s."""
    rates: dict[int, list[float]] = {0: [], number: []}
    for _ in range(repeat):
        for many, found in rates.items():
            with viewers(app, ["watched"], many):
                time.sleep(SETTLED_S if many else 0.0)
                finish(start(app, toys))
            found.append(rate(app.runs / "watched" / "ledger.db"))
    alone, seen = (statistics.median(found) for found in rates.values())
    return alone, seen


def watched(app: App, toys: Path, number: int, at_once: int, pace: float) -> list[tuple[str, str]]:
    """Have all watch runs that take their time; returns rows of what was seen of them and of the server."""
    names = [f"watched{each}" for each in range(at_once)]
    runs: list[subprocess.Popen[bytes]] = []
    used = []
    try:
        runs = [start(app, toys, "--chunk", 20_000, "--pace", pace, name=each, actors=1) for each in names]
        until = time.monotonic() + 240
        while not all((app.runs / each / "result.json").exists() for each in names):
            if time.monotonic() > until:
                raise SystemExit(f"not all of {at_once} runs began within 240 s")
            time.sleep(0.2)
        with viewers(app, names, number) as they:
            began = time.perf_counter()
            spent = Spent({"app": app.process.pid, "viewers": they.pid})
            spent.start()
            while any(run.poll() is None for run in runs):
                used.append(memory(app))
                time.sleep(min(5.0, pace / 60))
            took = time.perf_counter() - began
            cpu = {who: seconds / took for who, seconds in spent.stop().items()}
            for run in runs:
                finish(run)
    finally:
        for run in runs:
            run.terminate()
    found = [age for each, seen in enumerate(they.seen) for age in ages_of(app, names[each % at_once], seen.counts)]
    quarter = max(1, len(used) // 4)
    first, last = statistics.median(used[quarter : 2 * quarter]), statistics.median(used[-quarter:])
    octets = sum(seen.octets for seen in they.seen) / number / took
    return [
        (f"{at_once} runs at once took, s", f"{took:.0f}"),
        ("from commit to viewer, median, s", f"{statistics.median(found):.2f}"),
        ("from commit to viewer, 95 %, s", f"{statistics.quantiles(found, n=20)[-1]:.2f}"),
        ("CPU of the app, of one core", f"{cpu['app']:.1%}"),
        ("CPU of the viewers, of one core", f"{cpu['viewers']:.1%}"),
        ("sent to a viewer, kB/s", f"{octets / 1000:.1f}"),
        ("memory of the app, second quarter of the time, MB", f"{first:.0f}"),
        ("memory of the app, last quarter, MB", f"{last:.0f}"),
    ]


if __name__ == "__main__":
    sys.exit(main())
