"""Takes the pictures of ``docs/img`` anew: each page of the app in light and dark, and the live page on a phone.

``python -m tests.support.screenshots [FOLDER]``. Toy data, a run that is under way, runs of two environments to
compare, and one with a damaged file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hzzray.data.catalogue import release
from tests.support.app import ROOT, App, Viewer, chromium, serve_app
from tests.support.waiting import wait_for

WIDTH, PHONE = 1360, 412
EVENTS = 1_000_000


def hzzray(folder: Path, *options: object, **environ: str) -> subprocess.Popen[bytes]:
    """Start a command in a folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HZZRAY_CACHE": str(folder / "cache"), **environ}
    command = [sys.executable, "-m", "hzzray", *map(str, options)]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def prepare(folder: Path) -> None:
    """Write toy files, and runs that have ended."""
    hzzray(folder, "toy", "data/toy-1000000", "--events", EVENTS).wait()
    damaged = folder / "elsewhere"
    for sample in release("toy").samples:
        source = folder / "data" / "toy-1000000" / sample.path
        if source.exists():
            (damaged / sample.path).parent.mkdir(parents=True, exist_ok=True)
            (damaged / sample.path).hardlink_to(source)
    broken = damaged / release("toy").sample("WH125_ZZ4lep").path
    whole = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(whole[: len(whole) // 3])
    (damaged / release("toy").sample("Zmumu").path).unlink()
    hzzray(folder, "run", "--source", damaged, "--engine", "serial", "--run-id", "damaged-file").wait()
    work = ("run", "--source", "data/toy-1000000", "--selection", "h4l", "--chunk", 20_000)
    hzzray(
        folder, *work, "--run-id", "compose-2-actors", "--actors", 2, "--pace", 18, HZZRAY_ENVIRONMENT="compose"
    ).wait()
    hzzray(
        folder, *work, "--run-id", "kuberay-3-actors", "--actors", 3, "--pace", 11, HZZRAY_ENVIRONMENT="kuberay"
    ).wait()


def picture(viewer: Viewer, path: Path, *, most: int = 1250) -> None:
    """Take a picture of the whole page, as far as it goes."""
    page = viewer.page
    page.mouse.move(2, 300)
    block = page.locator("[data-testid=stMainBlockContainer]")
    for _ in range(3):  # charts take their width when they are seen
        height = int(block.evaluate("block => block.scrollHeight"))
        page.set_viewport_size({"width": page.viewport_size["width"], "height": min(most, max(height, 560))})
        page.wait_for_timeout(700)
    page.screenshot(path=path)
    print(path)


def in_both(browser, app: App, out: Path, name: str, path: str, shows: str, do=lambda _: None, **options) -> None:
    """Take a page's picture in light and dark."""
    for scheme in ("light", "dark"):
        viewer = Viewer(browser, app, width=WIDTH, height=900, scheme=scheme).open(path, shows=shows)
        do(viewer)
        viewer.page.wait_for_timeout(1500)
        picture(viewer, out / f"{name}-{scheme}.png", **options)
        viewer.close()


def main(out: Path) -> None:
    """Take all pictures."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        prepare(folder)
        with serve_app(folder) as app:
            in_both(browser, app, out, "runs", "/runs?run=compose-2-actors", "[data-testid=stImage] img", first_run)
            in_both(browser, app, out, "compare", "/runs", "[data-testid=stImage] img", compare)
            in_both(
                browser,
                app,
                out,
                "explore",
                "/explore?run=compose-2-actors&cut=m12%3D60%3A106",
                "h1",
                explore,
                most=1500,
            )
            in_both(browser, app, out, "failures", "/failures?run=damaged-file", "[data-testid=stDataFrame]")
            in_both(browser, app, out, "launch", "/launch", ".st-key-confirm", launch)
            work = ("run", "--source", "data/toy-1000000", "--selection", "h4l", "--chunk", 4_000, "--actors", 3)
            run = hzzray(folder, *work, "--run-id", "discovery", "--pace", 100)
            try:
                shows = ".st-key-mass svg.marks"
                with_run = Viewer(browser, app).open("/?run=compose-2-actors", shows=shows)
                wait_for("the run", (app.runs / "discovery" / "result.json").exists)
                with_run.page.goto(f"{app.url}/?run=discovery")
                wait_for(
                    "half of it", lambda: with_run.shows("figures") and with_run.number("Events read") > EVENTS / 2
                )
                with_run.close()
                in_both(browser, app, out, "live", "/?run=discovery", shows, most=1180)
                in_both(browser, app, out, "actors", "/actors?run=discovery", ".st-key-cpu svg.marks")
                phone = Viewer(browser, app, width=PHONE, height=860, scheme="light").open(
                    "/?run=discovery", shows=shows
                )
                picture(phone, out / "phone-light.png", most=1500)
                phone.close()
            finally:
                run.terminate()
                run.wait()


def _read(viewer: Viewer) -> float:
    return viewer.number("Events read") if viewer.shows("figures") else 0.0


def first_run(viewer: Viewer) -> None:
    """Let the list settle."""
    viewer.page.wait_for_timeout(500)


def compare(viewer: Viewer) -> None:
    """Choose two runs that did the same."""
    viewer.page.get_by_role("tab", name="Compare").click()
    viewer.page.locator(".st-key-bars-wall_s svg.marks").wait_for()


def explore(viewer: Viewer) -> None:
    """Start a session, if there is none, and wait for its plot."""
    page = viewer.page
    page.wait_for_timeout(1000)
    if (start := page.get_by_role("button", name="Start exploring")).count():
        start.click()
    page.locator(".st-key-mass svg.marks").wait_for(timeout=180_000)


def launch(viewer: Viewer) -> None:
    """Name a run, and open the cuts of its selection, which is that of the discovery paper."""
    page = viewer.page
    page.get_by_label("Name of the run").fill("discovery")
    page.locator("code", has_text="discovery").wait_for()
    page.get_by_text("Change its cuts").click()
    page.get_by_role("textbox", name="More cuts").wait_for()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "img")
