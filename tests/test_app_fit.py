"""The Fit page, and what the Live page shows of a fit: without a browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from app import charts
from app import fitter as module
from app.services import services
from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.runs.fit_run import FIT, FIT_LIVE, described, earlier_points, inputs, load_fit, save_fit, unfitted
from hzzray.runs.folder import load_json, save_json
from hzzray.runs.request import make_spec
from hzzray.runs.run import Settings, execute
from hzzray.runs.templates import load_templates
from hzzray.statistics.fit_result import FitResult, MassResult, MassScan, Quantity
from tests.test_app_pages import buttons, figures, look, press, words

FITTED = FitResult(
    observed=True,
    figures={
        "mu": Quantity(value=0.91, definition="signal strength that fits the data best"),
        "mu_error": Quantity(value=0.52, definition="its standard deviation"),
        "mu_stat": Quantity(value=0.48, definition="statistics"),
        "mu_syst": Quantity(value=0.2, definition="systematics"),
        "z_expected": Quantity(value=2.7, unit="σ", definition="expected"),
        "z_observed": Quantity(value=2.2, unit="σ", definition="√q₀ of the data"),
        "limit_observed": Quantity(value=1.8, definition="limit"),
        "limit_expected": Quantity(value=None, definition="limit", withheld="CLs is above 5 %"),
        "gof_p": Quantity(value=0.4, definition="p"),
    },
    parameters=(), names=("mu",), correlations=((1.0,),), yields=(), bins=(), notes=("4e: left out",),
    mass=MassResult(
        figures={
            "mass": Quantity(value=124.3, unit="GeV", definition="m_H"),
            "mass_error": Quantity(value=1.2, unit="GeV", definition="its standard deviation"),
            "mass_error_expected": Quantity(value=1.5, unit="GeV", definition="expected"),
        },
        scan=MassScan(mass=(124.0, 125.0), twice_delta_nll=(0.0, 1.0)),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory) -> Path:
    """The folder of a complete run."""
    runs = tmp_path_factory.mktemp("finished")
    settings = Settings(runs=runs, run_id="one", sources=(str(toys),), engine="serial")
    execute(make_spec(release("toy")), settings, planned=lambda _: None, progress=lambda _: None)
    return runs / "one"


@pytest.fixture
def runs(tmp_path, monkeypatch, finished):
    """A folder of runs with that one, and an app that looks at it."""
    monkeypatch.chdir(tmp_path)
    for name in ("HZZRAY_ADDRESS", "HZZRAY_APP_PASSWORD", "HZZRAY_APP_PASSWORD_FILE", "HZZRAY_SOURCES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HZZRAY_RUNS", str(tmp_path / "runs"))
    shutil.copytree(finished, tmp_path / "runs" / "one")
    services.clear()
    yield tmp_path / "runs"
    services.clear()


class _Started(list[list[str]]):
    child: type


@pytest.fixture
def started(monkeypatch):
    """Commands that would have been started, in place of the processes."""
    commands = _Started()

    class Child:
        code: ClassVar[int | None] = None

        def poll(self):
            return self.code

    def popen(command, **_):
        commands.append(command)
        return Child()

    commands.child = Child
    monkeypatch.setattr(module.subprocess, "Popen", popen)
    return commands


def live(folder: Path) -> None:
    """Have a run look like one that goes on."""
    save_json(load_json(folder).model_copy(update={"status": "running"}), folder)
    with Ledger.open(folder / "ledger.db") as ledger:
        ledger.wish("run")


def fitted(folder: Path, name: str = FIT) -> None:
    save_fit(described(FITTED, load_json(folder), "m4l"), folder, name)


def test_a_run_that_was_not_fitted_offers_it(runs, started):
    test = look("fit")
    assert buttons(test) == ["Fit this run"]
    press(test, "Fit this run")
    assert started[0][1:] == ["-m", "hzzray", "fit", "one", "--runs", str(runs)]
    assert "The fit goes on" in words(test)
    assert buttons(test) == []


def test_what_a_fit_found(runs, started):
    fitted(runs / "one")
    test = look("fit")
    shown = figures(test)
    assert shown["Signal strength µ̂"] == ("0.91 ± 0.52", "0.48 statistics, 0.20 systematics")
    assert shown["Significance"] == ("2.20 σ", "2.70 σ expected")
    assert shown["95 % CLs limit on µ"] == ("1.80", "– expected without signal")
    assert shown["Mass m_H"] == ("124.30 ± 1.20 GeV", "± 1.50 expected")
    table = test.table[0].value
    assert table["value"].tolist()[:2] == ["0.91", "0.52"]
    assert "CLs is above 5 %" in " ".join(table["definition"])
    assert "4e: left out" in words(test)
    assert "A bad fit" not in words(test)
    assert buttons(test) == ["Fit it again"]
    assert started == []


def test_a_bad_fit_says_so(runs, started):
    bad = FITTED.model_copy(update={"figures": FITTED.figures | {"gof_p": Quantity(value=0.01, definition="p")}})
    save_fit(described(bad, load_json(runs / "one"), "m4l"), runs / "one")
    assert "A bad fit: data and model differ by more than chance explains." in words(look("fit"))


def test_pictures_of_a_fit_have_headings_of_a_part(runs, started):
    """Walk of a newcomer: they were larger than the page's own."""
    fitted(runs / "one")
    Image.new("RGB", (4, 4)).save(runs / "one" / "fit-limit.png")
    headings = [one.value for one in look("fit").markdown if one.value.startswith("#")]
    assert "## The upper limit on µ" in headings
    assert not [one for one in headings if one.startswith("###")]


def test_a_fit_of_other_bins_says_so(runs, started):
    save_fit(described(FITTED, load_json(runs / "one"), "m4l").model_copy(update={"digest": "0" * 64}), runs / "one")
    assert "The run has other bins by now: fit it again" in words(look("fit"))


def test_a_fit_that_failed_says_why(runs, started, monkeypatch):
    (runs / "one" / module.LOG).write_text("hzzray: run one can't be fitted: not read: llll\n")
    assert "run one can't be fitted: not read: llll" in words(look("fit"))


def test_a_file_that_is_no_fit_costs_one_line(runs, started):
    (runs / "one" / FIT).write_text("{}")
    test = look("fit")
    assert "can't be shown" in words(test)


def test_a_run_that_goes_on_is_fitted_again_and_again(runs, started):
    live(runs / "one")
    test = look("fit")
    assert started[0][1:] == ["-m", "hzzray", "fit", "one", "--runs", str(runs), "--watch"]
    assert "No fit yet: the first fit comes within seconds" in words(test)
    save_fit(unfitted(load_json(runs / "one"), "not read yet: llll"), runs / "one", FIT_LIVE)
    assert "No fit yet: not read yet: llll" in words(test.run())
    fitted(runs / "one", FIT_LIVE)
    test.run()
    assert figures(test)["Signal strength µ̂"][0] == "0.91 ± 0.52"
    assert len(started) == 1, "one process, however often it is looked at"


def test_how_the_strength_came_about_is_drawn_of_two_moments_or_more(runs, started):
    def shown(*fractions):
        points = [FITTED.model_copy(update={"fraction": fraction}).after(()).points[0] for fraction in fractions]
        described_ = described(FITTED, load_json(runs / "one"), "m4l")
        save_fit(described_.model_copy(update={"points": tuple(points)}), runs / "one", FIT_LIVE)
        return look("fit").get("vega_lite_chart")

    assert not shown(0.5)
    assert len(shown(0.5, 1.0)) == 1, "of a run that has ended, too"
    assert started == [], "which nobody watches"
    live(runs / "one")
    assert len(shown(0.2, 0.5)) == 1
    points = load_fit(runs / "one", FIT_LIVE).points
    table = charts.strength((points[0].model_copy(update={"fraction": 0.1, "low": -9.0}), *points)).rows
    assert table["share"].tolist() == [0.2, 0.5]
    assert table["low"].tolist() == [0.91 - 0.52] * 2
    assert table["high"].tolist() == [0.91 + 0.52] * 2


def test_a_fit_follows_those_of_less_of_the_same_run(runs):
    result = load_json(runs / "one")

    def save(fraction, **more):
        found = FITTED.model_copy(update={"spec": result.spec.digest, "fraction": fraction, **more})
        found = found.after(earlier_points(runs / "one", result))
        save_fit(found, runs / "one", FIT_LIVE)
        return [point.fraction for point in found.points]

    assert earlier_points(runs / "one", result) == ()
    assert save(0.2) == [0.2]
    assert save(0.2) == [0.2], "nothing was read meanwhile"
    assert save(0.6, figures={}) == [0.2], "no fit"
    assert save(0.7) == [0.2, 0.7]
    assert save(0.1) == [0.1], "begun anew"
    assert save(0.3, spec="another") == [0.1, 0.3]
    assert save(0.4) == [0.4]


def test_the_live_page_fits_when_it_is_asked(runs, started):
    live(runs / "one")
    test = look()
    assert started == []
    test.toggle(key="fit-one").set_value(True).run()
    assert started[0][-1] == "--watch"
    fitted(runs / "one", FIT_LIVE)
    shown = figures(test.run())
    assert shown["Signal strength µ̂"] == ("0.91 ± 0.52", "fit of 100 % of the events")
    assert shown["Significance of the fit"] == ("2.20 σ", "2.70 σ expected")


def test_the_live_page_of_a_run_that_has_ended_shows_its_fit(runs, started):
    assert "Signal strength µ̂" not in figures(look())
    fitted(runs / "one")
    assert figures(look())["Signal strength µ̂"] == ("0.91 ± 0.52", "fit of all regions")
    assert started == []


def test_a_fit_that_fails_says_so_beside_an_older_one(runs, started):
    fitted(runs / "one")
    test = look("fit")
    test.button(key="fit-one").click().run()
    why = "hzzray: run one can't be fitted: not read: llll"
    (runs / "one" / module.LOG).write_text(f"{why}\n")
    assert why not in words(test.run()), "it goes on"
    started.child.code = 1
    shown = words(test.run())
    assert "not read: llll" in shown
    assert "0.91 ± 0.52" in figures(test)["Signal strength µ̂"]
    started.child.code = 0
    assert "not read: llll" not in words(test.run())


def test_not_more_than_two_fits_go_on(runs, started):
    fits = module.Fitter(runs)
    for name in ("two", "three"):
        shutil.copytree(runs / "one", runs / name)
    assert [fits.start(name, "fit") for name in ("one", "two", "three")] == [True, True, False]
    assert len(started) == 2
    assert fits.start("one", "fit"), "it goes on already"
    assert len(started) == 2


def test_a_server_without_the_extra_says_so(runs, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    test = look("fit")
    assert buttons(test) == []
    assert "pip install 'hzzray[fit]'" in " ".join(str(one.value) for one in test.info).replace("\\", "")


def test_what_was_watched_is_of_the_run_as_it_stands(runs):
    """The process itself: a run that has ended is fitted once more, and that is all."""
    pytest.importorskip("pyhf", reason="the extra 'fit' isn't installed")
    fits = module.Fitter(runs)
    assert fits.start("one", "watch")
    process = fits._going["one", "watch"]
    assert process.wait(timeout=120) == 0, (runs / "one" / module.LOG).read_text()
    assert not fits.goes_on("one", "watch")
    result = load_json(runs / "one")
    found = load_fit(runs / "one", FIT_LIVE)
    assert (found.digest, found.fraction) == (result.digest, 1.0)
    assert found.value("mu") is not None
    assert "100 % read: signal strength" in fits.said("one")
    assert inputs(result, load_templates(result, runs / "one")).data is not None
