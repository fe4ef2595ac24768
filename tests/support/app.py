"""The app as a server of its own, and a browser that looks at it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.rabbit import free_ports

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@dataclass
class App:
    """A server that runs: where it is, what it said, its working folder."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def runs(self) -> Path:
        """Its folder of runs."""
        return self.folder / "runs"

    def said(self) -> str:
        """Return all that it printed."""
        return self.log.read_text(encoding="utf-8")


@contextmanager
def serve_app(folder: Path, **environ: str) -> Iterator[App]:
    """Run the app in a folder for a while, and end what was started from it."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HZZRAY_", "STREAMLIT_"))}
    cache = str(folder / "cache")  # with a cluster of its own that stays; kernels are compiled once for all tests
    kernels = os.environ.get("HZZRAY_CACHE", cache)
    ours = {"PYTHONPATH": str(ROOT), "HZZRAY_CACHE": cache, "NUMBA_CACHE_DIR": kernels, "HZZRAY_DASHBOARD": "none"}
    env = {**kept, **ours, **environ}
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.port", str(port)]
    (folder / ".streamlit").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".streamlit" / "config.toml", folder / ".streamlit")
    log = folder / "app.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT)
    app = App(f"http://127.0.0.1:{port}", folder, process, log)
    try:
        until = time.monotonic() + 60
        while not _is_up(app):
            assert process.poll() is None, app.said()
            assert time.monotonic() < until, app.said()
            time.sleep(0.1)
        yield app
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def _is_up(app: App) -> bool:
    try:
        with urllib.request.urlopen(f"{app.url}/_stcore/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def chromium():
    """Run Debian's chromium for a while."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium, or make test")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Viewer:
    """One person at the app: a browser context of its own."""

    def __init__(self, browser, app: App, *, width: int = 1400, height: int = 1000, scheme: str = "light") -> None:
        self.app = app
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, path: str = "/", *, shows: str = "[data-testid=stMainBlockContainer] [data-testid=stMarkdown]"):
        """Go to a page, and wait until something is there; again if the network was changed under the browser."""
        from playwright.sync_api import Error

        for patience_s in (20, 20, 60):
            self.page.goto(self.app.url + path)
            try:
                self.page.wait_for_selector(shows, timeout=1000 * patience_s)
            except Error as error:
                failed = error
            else:
                return self
        raise failed

    def figure(self, label: str) -> str:
        """Return the number that a figure shows."""
        metric = self.page.locator("[data-testid=stMetric]", has=self.page.get_by_text(label, exact=True))
        return metric.locator("[data-testid=stMetricValue]").inner_text()

    def number(self, label: str) -> float:
        """Return the number that a figure shows, its prefix taken in."""
        text = self.figure(label)
        found = re.match(r"([\d.]+)\s*([kMG]?)", text)
        return float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.0

    def shows(self, key: str) -> bool:
        """Tell whether a part of the page is there."""
        return self.page.locator(f".st-key-{key}").count() > 0

    def state(self) -> str:
        """Return the state of the run that is shown."""
        return self.page.locator(".st-key-phase").inner_text().split()[-1]

    def go(self, page: str) -> None:
        """Click on a page's name."""
        self.page.get_by_role("link", name=page, exact=True).first.click()

    def close(self) -> None:
        """Leave."""
        self.context.close()
