"""The app in a real browser: one run from its launch to its files, two viewers, a cluster that goes and comes back."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import uproot

from hzzray.data.catalogue import release
from hzzray.engine.limits import Limits
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from hzzray.runs.run import Settings, execute
from tests.support.app import Viewer, chromium, serve_app
from tests.support.chaos import Driver
from tests.support.ray_head import ray_head
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def browser(compiled):
    with chromium() as browser:
        yield browser


def pids(folder, actor: str) -> list[int]:
    """Process ids that an actor has had."""
    with (folder / "cpu.csv").open() as file:
        seen = [int(row["pid"]) for row in csv.DictReader(file) if row["actor"] == actor]
    return [pid for pid in dict.fromkeys(seen) if pid]


def cpu_bars(viewer: Viewer) -> dict[str, set[str]]:
    """What the chart of CPU over time shows of each actor, in its description for screen readers."""
    labels = viewer.page.locator(".st-key-cpu svg.marks [aria-roledescription='rect mark']").evaluate_all(
        "marks => marks.map(mark => mark.getAttribute('aria-label'))"
    )
    found: dict[str, set[str]] = {}
    for label in labels:
        actor, percent = re.search(r"actor: (worker-\d+)", label), re.search(r"CPU \[%\]: ([\d.]+)", label)
        if actor and percent:
            found.setdefault(actor[1], set()).add(percent[1])
    return found


# Texts that are wider than the place that they have.
_CUT = """texts => texts.filter(text => {
  const own = text.getBoundingClientRect(), place = text.closest("[data-testid=stMetric]").getBoundingClientRect()
  const seen = text.parentElement.getBoundingClientRect()
  return own.right > seen.right + 1 || own.bottom > place.bottom
}).map(text => text.textContent)"""


def mass_range(viewer: Viewer) -> str:
    """What of the mass axis is shown, in its description for screen readers."""
    axis = viewer.page.locator(".st-key-mass svg.marks [aria-label^='X-axis']")
    return axis.get_attribute("aria-label").partition("values ")[2]


def grown(viewer: Viewer, label: str, beyond: float) -> float:
    """Wait until a figure is above a number."""
    wait_for(f"{label} above {beyond:g}", lambda: viewer.number(label) > beyond, 90)
    return viewer.number(label)


def test_a_run_from_its_launch_to_its_files(browser, toys, tmp_path):
    settings = Settings(runs=tmp_path, run_id="serial", sources=(str(toys),), engine="serial", limits=Limits())
    expected = execute(make_spec(release("toy")), settings, planned=lambda _: None, progress=lambda _: None)
    with serve_app(tmp_path / "app", HZZRAY_SOURCES=str(toys), HZZRAY_DASHBOARD="") as app:
        viewer = Viewer(browser, app).open()
        page, folder = viewer.page, app.runs / "story"

        # Launch: from the empty page, with what is validated as it is typed.
        page.get_by_role("button", name="Launch a run").click()
        name = page.get_by_label("Name of the run")
        name.fill("../story")
        page.get_by_text("run-id: must be of letters").wait_for()
        assert page.get_by_role("button", name="Start").is_disabled()
        name.fill("story")
        page.get_by_text("--pace 30 --run-id story").wait_for()
        chunk = page.get_by_role("slider", name="Events a task")
        chunk.focus()
        chunk.press("Home")
        page.get_by_text("--actors 2 --chunk 1000 --pace 30").wait_for()
        page.get_by_role("button", name="Start").click()

        # Live: the events grow, and the significance.
        wait_for("the run's start", lambda: viewer.shows("phase") and viewer.state() == "running")
        events = [grown(viewer, "Events read", 0)]
        significance = viewer.number("Significance so far")
        events.append(grown(viewer, "Events read", events[-1]))

        # What the viewer zooms into stays so while the plot grows: it is the same picture, with new numbers.
        plot = page.locator(".st-key-mass svg.marks").first
        box = plot.bounding_box()
        whole = mass_range(viewer)
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -400)
        page.keyboard.up("Control")
        wait_for("the zoom", lambda: mass_range(viewer) != whole)
        zoomed = mass_range(viewer)
        plot.evaluate("svg => { svg.dataset.seen = 'before' }")
        events.append(grown(viewer, "Events read", events[-1]))
        assert mass_range(viewer) == zoomed
        assert plot.get_attribute("data-seen") == "before"

        # Pause and resume; a second viewer sees the same.
        page.get_by_role("button", name="Pause").click()
        wait_for("the pause", lambda: viewer.state() == "paused")
        other = Viewer(browser, app, width=400, height=800, scheme="dark").open("/?run=story")
        wait_for("what was in flight", lambda: _stands_still(viewer))
        assert other.state() == "paused"
        wait_for("the same numbers", lambda: other.figure("Events read") == viewer.figure("Events read"))
        other.page.get_by_role("button", name="Resume").click()
        wait_for("the run to go on", lambda: viewer.state() == "running")
        events.append(grown(viewer, "Events read", events[-1]))

        # Actors: two of them, with CPU that changes. One is killed and comes back.
        viewer.go("Actors")
        wait_for("two actors with changing CPU", lambda: _all_change(cpu_bars(viewer)))
        os.kill(pids(folder, "worker-0")[0], signal.SIGKILL)
        wait_for("its next life", lambda: len(pids(folder, "worker-0")) > 1, 60)
        reborn = str(pids(folder, "worker-0")[1])
        cells = page.locator(".st-key-workers table td")
        wait_for("the page to say so", lambda: reborn in cells.all_inner_texts())
        wait_for("the count of restarts", lambda: viewer.figure("Restarts") == "1")  # issue 11, item 15
        page.get_by_role("heading", name="What happened").wait_for()
        assert "worker died" in (folder / "events.csv").read_text()
        own = json.loads((folder / "dashboard.json").read_text())["url"]  # issue 11, item 11
        assert page.get_by_role("link", name="Ray dashboard").get_attribute("href") == own

        # Complete: the same numbers as any other engine's.
        viewer.go("Live")
        wait_for("the end", lambda: viewer.shows("phase") and viewer.state() == "complete", 120)
        wait_for("the end for the other viewer", lambda: other.state() == "complete")
        page.get_by_text(expected.digest).wait_for()
        # On a phone, too, figures say all that they have to say, and what they are.
        for text in ("stMetricDelta", "stMetricLabel"):
            assert other.page.locator(f"[data-testid={text}] p").evaluate_all(_CUT) == []
        assert all(before < after for before, after in pairwise(events))
        assert viewer.number("Significance so far") > significance
        assert viewer.figure("Significance so far") == f"{expected.significance.asimov:.2f} σ"

        # Its files.
        viewer.go("Runs")
        with page.expect_download() as download:
            page.get_by_role("button", name="ROOT").click()
        download.value.save_as(tmp_path / "read.root")
        assert download.value.suggested_filename == "story-histograms.root"
        with uproot.open(tmp_path / "read.root") as file:
            for group, row in expected.groups.items():
                safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", group).strip("_.")
                assert file[f"groups/{safe}/all"].values() == pytest.approx(row.sumw)
        # An address that names a run opens it, the newest or not.
        shutil.copytree(folder, app.runs / "later")
        for run_id in ("story", "later"):
            other.open(f"/runs?run={run_id}", shows="h2")
            other.page.get_by_role("heading", name=run_id).wait_for()
        _keeps_its_address(other, app.runs)
        assert viewer.errors == other.errors == []
        assert "Traceback" not in app.said()
        other.close()
        viewer.close()


def _keeps_its_address(viewer: Viewer, runs: Path) -> None:
    """Issue 11, item 10: two runs, a later one the newest; what is shown is in the address, after a reload and back."""
    page = viewer.open("/?run=story", shows=".st-key-mass svg.marks").page
    page.get_by_text("2e2µ", exact=True).click()
    page.get_by_text("Log scale").click()
    page.wait_for_url(re.compile(r"(?=.*run=story)(?=.*channel=2e2)(?=.*log=true)"))
    page.reload()
    page.locator(".st-key-mass svg.marks").wait_for()
    assert page.get_by_role("switch", name="Log scale").is_checked()
    assert "run=story" in page.url
    page.get_by_role("combobox", name="Run").click()
    page.get_by_role("option", name="later").click()
    page.wait_for_url(re.compile("run=later"))
    page.go_back()
    page.wait_for_url(re.compile("run=story"))
    wait_for("the run before", lambda: "story" in page.locator(".st-key-run").inner_html())
    viewer.open("/?run=nosuch", shows=".st-key-run")
    page.get_by_text("There is no run").wait_for()
    assert "run=nosuch" in page.url
    (runs / "later").rename(runs / "nosuch")  # it comes after all: without a reload, and with its head
    wait_for("its state", lambda: viewer.shows("phase") and viewer.state() == "complete")
    assert page.get_by_text("There is no run").count() == 0


def _stands_still(viewer: Viewer) -> bool:
    """Nothing changes for longer than it takes a number to appear."""
    before = viewer.figure("Events read")
    time.sleep(2.5)
    return viewer.figure("Events read") == before


def _all_change(bars: dict[str, set[str]]) -> bool:
    return set(bars) == {"worker-0", "worker-1"} and all(len(values) > 2 for values in bars.values())


def test_a_cut_that_is_moved_and_kept_as_a_run(browser, toys, tmp_path):
    folder = tmp_path / "app"
    settings = Settings(runs=folder / "runs", run_id="base", sources=(str(toys),), engine="serial", limits=Limits())
    own = execute(make_spec(release("toy")), settings, planned=lambda _: None, progress=lambda _: None)
    with serve_app(folder, HZZRAY_SOURCES=str(toys), HZZRAY_EXPLORE="serial") as app:
        viewer = Viewer(browser, app).open("/explore?run=base", shows="h1")
        page = viewer.page
        page.get_by_role("button", name="Start exploring").click()
        page.locator(".st-key-mass svg.marks").wait_for(timeout=180_000)
        assert viewer.figure("Expected") == f"{own.significance.asimov:.2f} σ"
        before = viewer.figure("Background")

        # Each step of a thumb moves the numbers; the data of cuts that were never run are hidden.
        upper = page.get_by_role("slider", name=re.compile("m₁₂ .*end"))
        upper.focus()
        # What the cuts give stays in sight beside the last of them, and nothing is empty below it.
        answer = page.locator(".st-key-answer")
        page.get_by_role("slider").last.focus()
        assert answer.bounding_box()["y"] >= 0
        assert page.get_by_role("slider").last.bounding_box()["y"] < page.viewport_size["height"]
        assert page.locator(".st-key-cuts").bounding_box()["height"] < answer.bounding_box()["height"] + 100
        upper.focus()
        for _ in range(20):
            upper.press("ArrowLeft")
        wait_for("other numbers", lambda: viewer.figure("Background") != before)
        page.wait_for_url(re.compile("cut=m12"))
        wait_for("hidden data", lambda: viewer.figure("Data") == "hidden")
        page.get_by_role("button", name="Undo").click()
        wait_for("the numbers of before", lambda: viewer.figure("Background") == before)
        wait_for("the data", lambda: viewer.figure("Data") == str(own.significance.n_data))

        # A reload shows the same cuts; they are kept as a run, which the command line makes again.
        for _ in range(20):
            upper.press("ArrowLeft")
        wait_for("other numbers", lambda: viewer.figure("Background") != before)
        page.wait_for_url(re.compile("cut=m12"))
        wait_for("a rest", lambda: page.get_by_text("Answered in").count() == 1)
        moved = viewer.figure("Background")
        cut = re.search(r"cut=([^&]+)", page.url)[1]
        page.reload()
        wait_for("the same numbers", lambda: viewer.shows("figures") and viewer.figure("Background") == moved)
        # Who goes back in the browser's history sees what the address says.
        viewer.open("/explore?run=base&cut=m12=50:90", shows=".st-key-figures")
        earlier = viewer.figure("Background")
        switch = page.locator(".st-key-box-m12").get_by_role("switch")
        switch.press("Space")
        wait_for("no cut", lambda: viewer.figure("Background") != earlier)
        page.wait_for_url(lambda url: "50%3A90" not in url)
        page.go_back()
        wait_for("the cut of before", lambda: viewer.figure("Background") == earlier)
        assert "50:90" in page.url or "50%3A90" in page.url
        page.get_by_role("button", name="Undo").wait_for()
        page.go_forward()
        wait_for("no cut", lambda: viewer.figure("Background") != earlier)
        viewer.open(f"/explore?run=base&cut={cut}", shows=".st-key-figures")
        wait_for("the same numbers", lambda: viewer.figure("Background") == moved)
        page.get_by_role("tab", name="Keep as a run").click()
        page.get_by_label("Name of the run to keep").fill("kept")
        page.get_by_role("button", name="Keep this as a run").click()
        page.get_by_text("Run kept is there.").wait_for()
        line = page.locator("[data-testid=stCode]", has_text="hzzray run").inner_text().strip()
        kept = load_json(app.runs / "kept")
        assert kept.digest != own.digest
        page.get_by_text(kept.digest).wait_for()
        again = [*shlex.split(line)[1:], "--run-id", "again", "--engine", "serial", "--runs", str(tmp_path)]
        subprocess.run([sys.executable, "-m", "hzzray", *again], check=True, timeout=300)
        assert load_json(tmp_path / "again").digest == kept.digest
        assert viewer.errors == []
        assert "Traceback" not in app.said()
        viewer.close()


def test_a_replay_plays_to_its_end(browser, toys, tmp_path):
    """A browser is behind with what it tells of the slider that the page moves: replays ended half way."""
    folder = tmp_path / "app"
    settings = Settings(runs=folder / "runs", run_id="base", sources=(str(toys),), engine="serial", limits=Limits())
    execute(make_spec(release("toy"), observables=("m4l",)), settings, planned=lambda _: None, progress=lambda _: None)
    with serve_app(folder) as app:
        viewer = Viewer(browser, app).open("/?run=base&grew=true", shows=".st-key-replay")
        page = viewer.page
        pages = page.evaluate("history.length")
        page.get_by_role("button", name="Play").click()
        page.get_by_role("button", name="Pause").wait_for()
        page.get_by_text("As it stood after").wait_for()
        page.get_by_role("button", name="Play").wait_for()
        page.get_by_text("As it stands in the end").wait_for()
        assert page.evaluate("history.length") <= pages + 2  # not one for each moment
        assert viewer.errors == []
        viewer.close()


def test_a_cluster_that_goes_and_comes_back(browser, toys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as the head has it: 127.0.0.1 is what it says
    source, far, work = str(toys), tmp_path / "far", ("--actors", 2, "--chunk", 100)
    far.mkdir()
    quiet = ("--num-cpus=2", "--include-dashboard=false")
    with ray_head(*quiet) as head:
        port, client = (int(address.rsplit(":", 1)[1]) for address in (head.address, head.client))
        with (
            serve_app(tmp_path / "app", HZZRAY_ADDRESS=head.client) as app,
            Driver(head.address, source, far, "first", *work, "--pace", 600) as driver,
        ):
            viewer = Viewer(browser, app).open(shows=".st-key-phase")
            assert viewer.page.get_by_text("No contact with the cluster").count() == 0
            events = grown(viewer, "Events read", 0)
            viewer.page.get_by_role("button", name="Pause").click()
            wait_for("the pause", lambda: viewer.state() == "paused")
            viewer.page.get_by_role("button", name="Resume").click()
            wait_for("the run to go on", lambda: viewer.state() == "running")
            grown(viewer, "Events read", events)
            head.crash()
            viewer.page.get_by_text("No contact with the cluster").wait_for()
            wait_for("word that nobody works on it", lambda: viewer.state() == "interrupted")
            driver.kill()
            assert "events" in viewer.page.content()  # what was seen last is still there
            with ray_head(*quiet, port=port, client=client) as again:
                wait_for("contact", lambda: viewer.page.get_by_text("No contact with the cluster").count() == 0)
                with Driver(again.address, source, far, "second", *work, "--pace", 8) as second:
                    wait_for("the next run", (app.runs / "second" / "result.json").exists)
                    viewer.page.goto(f"{app.url}/?run=second")
                    wait_for("its end", lambda: viewer.shows("phase") and viewer.state() == "complete")
                    assert second.end() == 0
            assert load_json(app.runs / "second").digest == load_json(far / "second").digest
            assert viewer.errors == []
            viewer.close()
