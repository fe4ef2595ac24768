import io
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.patches import StepPatch

from hzzray.errors import HzzrayError, UsageError
from hzzray.report import plotting
from hzzray.runs.result import Luminosity, Tasks
from hzzray.statistics.significance import poisson_interval
from tests.support.result import make_result, with_groups


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """matplotlib tells of missing fonts and glyphs in its log, not by warnings."""
    yield
    assert [record.message for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def png(fig, **options) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=50, metadata={"Software": None}, **options)
    return buffer.getvalue()


def stairs(axes) -> list[StepPatch]:
    return [patch for patch in axes.patches if isinstance(patch, StepPatch)]


def bars(axes) -> tuple[np.ndarray, np.ndarray]:
    """Points and error bars drawn: shapes (points, 2) and (points, 2, 2)."""
    (points,) = axes.containers
    line, _, (vertical,) = points.lines
    return line.get_xydata(), np.array(vertical.get_segments()).reshape(-1, 2, 2)


def texts(axes) -> str:
    return "\n".join(text.get_text() for text in axes.texts)


def rows(result, role, channel=None):
    groups = [group for group in result.groups.values() if group.role == role]
    return [group.channels[channel] if channel else group for group in groups]


@pytest.mark.parametrize("channel", [None, "4e", "4mu", "2e2mu"])
@pytest.mark.parametrize("release", ["2020", "2025"])
def test_draws_the_numbers(release, channel):
    result = make_result(release)
    main, ratio = plotting.figure(result, channel=channel).axes
    *layers, band = stairs(main)
    simulation = rows(result, "background", channel) + rows(result, "signal", channel)
    below = np.zeros(len(result.edges) - 1)
    assert len(layers) == len(simulation)
    for layer, row in zip(layers, simulation, strict=True):
        drawn = layer.get_data()
        np.testing.assert_array_equal(drawn.edges, result.edges)
        np.testing.assert_allclose(drawn.baseline, below, atol=1e-12)
        below = below + row.sumw
        np.testing.assert_allclose(drawn.values, below)
    error = np.sqrt(np.sum([row.sumw2 for row in simulation], axis=0))
    np.testing.assert_allclose(band.get_data().values, below + error)
    np.testing.assert_allclose(band.get_data().baseline, below - error)

    (data,) = rows(result, "data", channel)
    counts = np.array(data.sumw)
    seen = counts > 0
    points, drawn = bars(main)
    centres = (np.array(result.edges[1:]) + result.edges[:-1]) / 2
    np.testing.assert_allclose(points, np.stack((centres, counts), axis=1)[seen])
    np.testing.assert_allclose(drawn[:, :, 1].T, poisson_interval(counts[seen]))

    (relative,) = stairs(ratio)
    np.testing.assert_allclose(relative.get_data().values, 1 + error / below)
    points, drawn = bars(ratio)
    np.testing.assert_allclose(points[:, 1], (counts / below)[seen])
    np.testing.assert_allclose(drawn[:, :, 1].T, poisson_interval(counts[seen]) / below[seen])


def test_colours_and_legend():
    result = make_result()
    main = plotting.figure(result).axes[0]
    colours = [mpl.colors.to_hex(layer.get_facecolor()) for layer in stairs(main)[:-1]]
    assert colours == ["#7a21dd", "#5790fc", "#e42536"]
    assert [text.get_text() for text in main.get_legend().get_texts()] == [
        "Data",
        "Signal ($m_{H}$ = 125 GeV)",
        "Background $ZZ^{*}$",
        r"Background $Z$, $t\bar{t}$",
        "Stat. uncertainty",
    ]


def test_labels():
    main, ratio = plotting.figure(make_result("2025")).axes
    assert main.get_ylabel() == "Events / 2.5 GeV"
    assert ratio.get_xlabel() == r"$m_{4\ell}$ [GeV]"
    text = texts(main)
    for part in ("ATLAS\n", "Open Data 2025 beta", "= 13 TeV, 36.6 fb", "notebook-2025", "122.5–130 GeV: "):
        assert part in text
    assert "read" not in text
    assert "partial" not in text
    assert "ATLAS" not in texts(plotting.figure(make_result("toy")).axes[0])


def test_significance_is_that_of_all_channels():
    result = make_result()
    shown = f"{result.significance.asimov:.1f}$\\sigma$ expected"
    assert shown in texts(plotting.figure(result).axes[0])
    assert "expected" not in texts(plotting.figure(result, channel="4e").axes[0])
    unknown = result.model_copy(update={"significance": result.significance.model_copy(update={"asimov": None})})
    assert "expected" not in texts(plotting.figure(unknown).axes[0])


def test_what_is_observed_is_said_beside_what_is_expected():
    result = make_result()
    numbers = {"asimov": 2.51, "asimov_sigma": 1.96, "observed": 2.53, "observed_sigma": 1.98}
    told = result.model_copy(update={"significance": result.significance.model_copy(update=numbers)})
    lines = texts(plotting.figure(told).axes[0]).splitlines()
    assert lines[-3].endswith(r": 2.5$\sigma$ expected")
    assert lines[-2:] == [r"2.5$\sigma$ observed", r"2.0$\sigma$, 2.0$\sigma$ with the error of $b$"]
    without = told.significance.model_copy(update={"observed": None, "observed_sigma": None})
    text = texts(plotting.figure(told.model_copy(update={"significance": without})).axes[0])
    assert "observed" not in text
    assert text.endswith("\n2.0$\\sigma$ with the error of $b$")


def test_what_the_ratio_has_no_room_for_is_an_arrow_and_no_dot():
    result = make_result()
    (data,) = (name for name, group in result.groups.items() if group.role == "data")
    counts = [2.0 * n for n in result.groups[data].sumw]
    groups = {**result.groups, data: result.groups[data].model_copy(update={"sumw": counts})}
    ratio = plotting.figure(result.model_copy(update={"groups": groups})).axes[1]
    ((line, _, _),) = [container.lines for container in ratio.containers]
    above = line.get_ydata() > plotting.RATIO_MAX
    assert above.any()
    assert not above.all()
    assert line.get_markevery() == np.flatnonzero(~above).tolist()
    (arrows,) = [other for other in ratio.lines if other.get_marker() == "^"]
    np.testing.assert_array_equal(arrows.get_xdata(), line.get_xdata()[above])


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.37, "37%"), (0.29, "29%"), (0.9999, "99%"), (0.001, "<1%"), (0.0, "<1%")]
)
def test_fraction_is_stated(fraction, text):
    main = plotting.figure(make_result(fraction=fraction, status="running")).axes[0]
    assert f"{text} of the events read" in texts(main).splitlines()


def at(result, simulation, data):
    luminosity = Luminosity(asked=result.spec.luminosity, simulation=simulation, data=data)
    return result.model_copy(update={"luminosity": luminosity})


def test_the_label_is_the_luminosity_of_what_is_shown():
    """Issue 11, item 6: a part of the data kept the label 10 fb⁻¹."""
    main, _ = plotting.figure(at(make_result(), 0.981, 0.981)).axes
    assert "0.981 fb$^{-1}$" in texts(main)
    assert "the data read of 10 fb$^{-1}$, simulation scaled" in texts(main)
    assert "simulation scaled" not in texts(plotting.figure(make_result()).axes[0])


def test_data_of_another_luminosity_are_not_drawn():
    """Issue 11, item 6: data of 10 fb⁻¹ stood in a stack of 139 fb⁻¹."""
    main, ratio = plotting.figure(at(make_result(), 139.0, 10.0)).axes
    assert "139 fb$^{-1}$" in texts(main)
    assert "not shown: data (10 fb$^{-1}$)" in texts(main)
    assert (list(main.containers), list(ratio.containers)) == ([], [])


def test_a_stack_that_lacks_a_sample_is_no_denominator():
    """Issue 11, items 4, 5: the ratio panel needs all that the stack is to have."""
    result = make_result()
    reasons = {"n_background": "not read: llll", "asimov": "not read: llll"}
    lacking = result.significance.model_copy(update={"withheld": reasons, "asimov": None, "n_background": None})
    main, ratio = plotting.figure(result.model_copy(update={"significance": lacking})).axes
    assert len(bars(main)[0]) > 0
    assert list(ratio.containers) == []
    assert "not read: llll" in texts(main)
    assert "expected" not in texts(main)


def test_the_fraction_that_was_asked_for_is_stated():
    """Issue 11, item 6: 9 % were said where 10 % were asked for."""
    result = make_result(fraction=0.0997)
    spec = result.spec.model_copy(update={"fraction": 0.1})
    main = plotting.figure(result.model_copy(update={"spec": spec})).axes[0]
    assert "10% of each file: 9.97% of the events read" in texts(main).splitlines()


def test_partial_is_stated():
    result = make_result(status="partial", tasks=Tasks(planned=9, merged=6, failed=3), missing=("Zee",))
    assert "partial: 3 tasks failed, 1 sample missing" in texts(plotting.figure(result).axes[0])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [0, 0.01, 1, 1000])
@pytest.mark.parametrize("release", ["2020", "2025"])
def test_nothing_is_covered(release, scale, log):
    result = make_result(release, status="partial", tasks=Tasks(planned=9, merged=6, failed=3), fraction=0.5)
    names = ("ttbar", "ZZ*", "Signal", "Data")
    groups = {part: row for part in names for name, row in result.groups.items() if part in name}
    result = with_groups(result, **{part: np.rint(np.array(row.sumw) * scale) for part, row in groups.items()})
    fig = plotting.figure(result, log=log)
    fig.draw_without_rendering()
    main = fig.axes[0]
    panel = main.get_window_extent()
    legend = main.get_legend()
    boxes = [item.get_window_extent() for item in (*main.texts, *legend.get_texts(), *legend.get_patches())]
    total = stairs(main)[-1].get_data().values
    tops = [total, np.zeros_like(total)]
    if scale:
        points, drawn = bars(main)
        at = np.searchsorted(result.edges, points[:, 0]) - 1
        tops[1][at] = drawn[:, 1, 1]
    highest = np.maximum(np.max(tops, axis=0), main.get_ylim()[0])
    edges = main.transData.transform(np.column_stack((result.edges, np.full(len(result.edges), main.get_ylim()[0]))))[
        :, 0
    ]
    heights = main.transData.transform(np.column_stack((result.edges[1:], highest)))[:, 1]
    for box in boxes:
        assert panel.x0 <= box.x0
        assert box.x1 <= panel.x1
        assert panel.y0 <= box.y0
        assert box.y1 <= panel.y1
        under = (edges[1:] > box.x0) & (edges[:-1] < box.x1)
        assert heights[under].max() < box.y0
    assert heights.max() < panel.y1
    left = [text.get_window_extent() for text in main.texts]
    right = legend.get_texts() + legend.get_patches()
    assert not any(text.overlaps(item.get_window_extent()) for text in left for item in right)


def cases():
    plain = make_result()
    yield "empty", with_groups(plain, **{"ttbar": 0, "ZZ*": 0, "Signal": 0, "Data": 0})
    yield "no group", plain.model_copy(update={"groups": {}})
    for name in plain.groups:
        yield f"only {name}", plain.model_copy(update={"groups": {name: plain.groups[name]}})
        rest = {other: group for other, group in plain.groups.items() if other != name}
        yield f"no {name}", plain.model_copy(update={"groups": rest})
    yield "negative bins", with_groups(plain, ttbar=np.linspace(-3, 1, 34))
    yield "negative total", with_groups(plain, **{"ttbar": -2, "ZZ*": -1, "Signal": 0})
    yield "no data events", with_groups(plain, Data=0)
    yield "huge", with_groups(plain, **{"ZZ*": 3e7, "Data": 30_000_000})
    yield "tiny", with_groups(plain, **{"ttbar": 0, "ZZ*": 1e-9, "Signal": 1e-12, "Data": 0})


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("name", "result"), [pytest.param(*case, id=case[0]) for case in cases()])
def test_draws_whatever_there_is(name, result, log):
    fig = plotting.figure(result, log=log)
    assert png(fig).startswith(b"\x89PNG")
    bottom, top = fig.axes[0].get_ylim()
    assert np.isfinite([bottom, top]).all()
    assert bottom < top


def test_empty_bins_have_no_point():
    counts = np.arange(34) % 3
    main, ratio = plotting.figure(with_groups(make_result(), Data=counts)).axes
    for axes in (main, ratio):
        assert len(bars(axes)[0]) == np.count_nonzero(counts)


def test_no_ratio_without_prediction():
    values = np.where(np.arange(34) < 4, 0.0, 5.0)
    result = with_groups(make_result(), **{"ttbar": 0, "Signal": 0, "ZZ*": values, "Data": 3})
    main, ratio = plotting.figure(result).axes
    assert len(bars(main)[0]) == 34
    assert len(bars(ratio)[0]) == 30


def test_arrows_for_points_above_the_ratio():
    data = np.full(34, 10)
    data[[3, 20]] = 21
    result = with_groups(make_result(), **{"ttbar": 0, "Signal": 0, "ZZ*": 10.0, "Data": data})
    ratio = plotting.figure(result).axes[1]
    (arrows,) = [line for line in ratio.lines if line.get_marker() == "^"]
    centres = (np.array(result.edges[1:]) + result.edges[:-1]) / 2
    np.testing.assert_allclose(arrows.get_xdata(), centres[[3, 20]])
    assert (np.array(arrows.get_ydata()) < ratio.get_ylim()[1]).all()


def test_dollars_are_no_tex():
    result = make_result()
    names = {rf"{name} $\no{{$": group for name, group in result.groups.items()}
    release = result.spec.release.model_copy(update={"title": r"Cheap $\no{$ data"})
    result = result.model_copy(update={"groups": names, "spec": result.spec.model_copy(update={"release": release})})
    assert png(plotting.figure(result)).startswith(b"\x89PNG")


def test_unknown_channel():
    with pytest.raises(UsageError, match="'5e'; it has 4e, 4mu, 2e2mu"):
        plotting.figure(make_result(), channel="5e")


def test_bad_colour():
    result = make_result()
    groups = {name: group.model_copy(update={"colour": "bluish"}) for name, group in result.groups.items()}
    with pytest.raises(UsageError, match="group Background Z,ttbar: 'bluish' is not a colour"):
        plotting.figure(result.model_copy(update={"groups": groups}))


def test_settings_are_left_alone():
    before = dict(mpl.rcParams)
    png(plotting.figure(make_result()))
    with pytest.raises(UsageError):
        plotting.figure(make_result(), channel="5e")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("tight", [None, "tight"])
def test_style_does_not_depend_on_the_callers(tight):
    callers = {
        "font.size": 30,
        "xtick.major.size": 40,
        "mathtext.fontset": "cm",
        "font.sans-serif": "DejaVu Sans",
        "savefig.facecolor": "red",
    }
    expected = png(plotting.figure(make_result()), bbox_inches=tight)
    fig = plotting.figure(make_result())
    with mpl.rc_context(callers):
        assert png(fig, bbox_inches=tight) == expected
        assert png(plotting.figure(make_result()), bbox_inches=tight) == expected


def test_a_tall_label_is_not_cropped():
    result = make_result()
    first = replace(result.observable, label=r"$\frac{\sum_{i=1}^{4} p_T^{\ell_i}}{\frac{m_{4\ell}}{m_Z}}$")
    spec = result.spec.model_copy(update={"templates": (first, *result.spec.templates[1:])})
    fig = plotting.figure(result.model_copy(update={"spec": spec}))
    fig.draw_without_rendering()
    assert fig.axes[-1].xaxis.label.get_window_extent().y0 > 0


def test_threads():
    results = [make_result("2020"), make_result("2025")] * 3
    expected = [png(plotting.figure(result)) for result in results[:2]] * 3
    before = dict(mpl.rcParams)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda result: png(plotting.figure(result)), results)) == expected
    assert dict(mpl.rcParams) == before


def test_no_pyplot_figures_and_no_display():
    code = (
        "from tests.support.result import make_result\n"
        "from hzzray.report.plotting import figure\n"
        "import io, matplotlib.pyplot as plt\n"
        "figure(make_result()).savefig(io.BytesIO())\n"
        "assert plt.get_fignums() == []\n"
    )
    path = [str(Path(__file__).parents[1]), *sys.path]
    environment = {"MPLBACKEND": "tkagg", "PYTHONPATH": ":".join(path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_save(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    folder = tmp_path / "runs" / "one"
    paths = plotting.save(make_result(), folder)
    assert paths == (folder / "plot.png", folder / "plot.pdf")
    assert sorted(folder.iterdir()) == sorted(paths)
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG\r\n\x1a\n")
    assert first[0].endswith(b"IEND\xaeB`\x82")
    assert first[1].startswith(b"%PDF-")
    assert first[1].rstrip().endswith(b"%%EOF")
    assert int.from_bytes(first[0][16:20]) == 1200
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert [path.read_bytes() for path in plotting.save(make_result(), folder)] == first


def test_save_leaves_the_old_picture_when_it_fails(tmp_path, monkeypatch):
    old = plotting.save(make_result(), tmp_path)
    before = [path.read_bytes() for path in old]

    def full(self, fname, **_):
        fname.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plotting.Figure, "savefig", full)
    with pytest.raises(HzzrayError, match=r"plot\.png: No space left on device"):
        plotting.save(make_result(seed=3), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(old)
    assert [path.read_bytes() for path in old] == before


def test_save_into_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HzzrayError, match=r"file/plot\.png: File exists"):
        plotting.save(make_result(), tmp_path / "file")


def test_a_systematic_uncertainty_is_in_the_band():
    result = make_result()
    bins = len(result.edges) - 1
    plain, both = (plotting.figure(result, systematic=one) for one in (None, np.full(bins, 3.0)))
    bands = [next(patch for patch in fig.axes[0].patches if patch.get_hatch()).get_data() for fig in (plain, both)]
    error, wider = ((band.values - band.baseline) / 2 for band in bands)
    np.testing.assert_allclose(wider, np.hypot(error, 3.0))
    said = [[text.get_text() for text in fig.axes[0].get_legend().get_texts()] for fig in (plain, both)]
    assert "Stat. uncertainty" in said[0]
    assert any("syst" in text for text in said[1])
