"""Keeps ``app.mirror`` going: started again, with growing waits, when it ends or falls silent."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from app.children import environment
from hzzray.engine.cluster import ClusterError
from hzzray.engine.ledger import Wish

# Connecting takes some seconds, and a dead address its time.
_CONNECT_S = 60.0

#: What Python is to run.
COMMAND: tuple[str, ...] = ("-m", "app.mirror")

#: A mirror that has said nothing for so long hangs [s].
SILENCE_S = 10.0

_FIRST_S, _LONGEST_S = 1.0, 15.0


class Watch:
    """A cluster that is watched from a process of its own; ``trouble`` says what is wrong with it, if anything."""

    def __init__(self, address: str, runs: Path) -> None:
        self._address = address
        self._runs = runs
        self._process: subprocess.Popen[str] | None = None
        self._heard = -1.0
        self._trouble: str | None = f"Connecting to the cluster at {address}…"
        self._closing = threading.Event()
        threading.Thread(target=self._keep_going, name="watch", daemon=True).start()

    @property
    def trouble(self) -> str | None:
        """What the viewers should know; None while all is well."""
        return self._trouble

    def wish(self, run_id: str, wish: Wish) -> None:
        """Pass a wish on to a run's reducer; raises ClusterError where there is no contact."""
        process = self._process
        try:
            if self._trouble is not None or process is None or process.stdin is None:
                raise ClusterError(self._trouble or "No contact with the cluster.")
            process.stdin.write(json.dumps({"run": run_id, "wish": wish}) + "\n")
            process.stdin.flush()
        except (OSError, ValueError) as error:  # it has just ended
            raise ClusterError(f"No contact with the cluster at {self._address}.") from error

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        if self._process is not None:
            self._process.kill()

    def _keep_going(self) -> None:
        wait = _FIRST_S
        while not self._closing.is_set():
            begun = time.monotonic()
            reason = self._once()
            if self._heard > begun:  # it was connected: whatever ended it may pass soon
                wait = _FIRST_S
            self._trouble = f"No contact with the cluster at {self._address}: {reason}. Trying again…"
            self._closing.wait(wait * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            wait = min(_LONGEST_S, 2 * wait)

    def _once(self) -> str:
        """Run a mirror until it ends; returns why it did."""
        command = [sys.executable, *COMMAND, self._address, str(self._runs)]
        self._process = process = subprocess.Popen(  # noqa: S603 (our own program, no shell)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        reason = "it ended"
        done = threading.Event()
        guard = threading.Thread(target=self._guard, args=(process, done), daemon=True)
        guard.start()
        try:
            for line in process.stdout or ():
                said = self._parse(line)
                if "error" in said:
                    reason = str(said["error"])
                elif "runs" in said:
                    self._heard = time.monotonic()
                    self._trouble = None
        finally:
            done.set()
            process.kill()
            guard.join()
            with contextlib.suppress(OSError), process:  # closes its pipes, and waits for it
                pass
        return reason

    @staticmethod
    def _parse(line: str) -> dict[str, Any]:
        """Read a line; what a library printed is none of ours."""
        try:
            said = json.loads(line)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def _guard(self, process: subprocess.Popen[str], done: threading.Event) -> None:
        """End a mirror that is silent for too long."""
        begun = time.monotonic()
        while not done.wait(0.5):
            connected = self._heard > begun
            silent = time.monotonic() - (self._heard if connected else begun)
            if silent > (SILENCE_S if connected else _CONNECT_S):
                process.kill()
                return
            if connected and silent > SILENCE_S / 2:
                self._trouble = f"The cluster at {self._address} has been silent for {silent:.0f} s."
