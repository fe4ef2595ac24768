"""Folders of runs that somebody made to do harm, or that a disk has damaged: each file costs its own part of a page."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.client import Client
from app.downloads import content, offers, picture
from app.formatting import JOINER, plain, short
from app.validation import TEXT, doubt
from hzzray.errors import HzzrayError
from hzzray.files import OutputError
from hzzray.runs.folder import load_json
from hzzray.runs.tables import read_usage
from tests.support.result import make_result
from tests.support.usage import make_run, record
from tests.test_app_pages import figures, finished, look, run, runs, said  # noqa: F401 (fixtures)

MARKUP = "![x](https://evil.example/p.png) <img src=https://evil.example/q.png> :red[z] www.evil.example `c` $x$ **b**"


def change(folder: Path, do: Callable[[dict], object]) -> None:
    """Change a result as JSON."""
    path = folder / "result.json"
    found = json.loads(path.read_text())
    do(found)
    path.write_text(json.dumps(found))


def link(name: str, to: Path) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return do


def write(name: str, what: bytes) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(what)

    return do


def cell(name: str, column: int, value: str) -> Callable[[Path], object]:
    """Change a cell in all rows of a table."""

    def do(folder: Path) -> None:
        head, *lines = (folder / name).read_text().splitlines()
        rows = [line.split(",") for line in lines]
        text = "\n".join([head, *(",".join([*row[:column], value, *row[column + 1 :]]) for row in rows)])
        (folder / name).write_text(text + "\n")

    return do


def pipe(name: str) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return do


def directory(name: str) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return do


def rename(found: dict, old: str, new: str) -> None:
    """Give a group another name, everywhere."""
    found["groups"] = {new if name == old else name: row for name, row in found["groups"].items()}
    for sample in found["samples"].values():
        sample["group"] = new if sample["group"] == old else sample["group"]


def everywhere(found: dict) -> None:
    """Put markup into every name."""
    found["environment"] = found["digest"] = MARKUP
    found["spec"]["release"]["title"] = MARKUP
    found["spec"]["selection"]["name"] = MARKUP
    found["versions"] = {MARKUP: MARKUP}
    found["samples"] = {f"{name} {MARKUP}": row for name, row in found["samples"].items()}
    rename(found, "Background ZZ*", MARKUP)
    found["failures"] = [{"sample": MARKUP, "file": MARKUP, "start": 0, "stop": 1, "reason": MARKUP}]


SECRET = "root:x:0:0:of nobody's business"
SECRETS = Path("/etc/passwd")

#: What was done to a folder, and the file that its pages name for it (none: nothing is wrong but the texts).
HOSTILE: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "result is a link": (link("result.json", SECRETS), "result.json"),
    "result is a pipe": (pipe("result.json"), "result.json"),
    "result is a folder": (directory("result.json"), "result.json"),
    "result is no JSON": (write("result.json", b"{"), "result.json"),
    "result is not text": (write("result.json", bytes(range(256))), "result.json"),
    "result is deep": (write("result.json", b"[" * 100_000), "result.json"),
    "result is large": (write("result.json", b" " * (33 << 20)), "result.json"),
    "a name of 5 MB": (lambda f: change(f, lambda r: r.update(environment="x" * 5_000_000)), "result.json"),
    "no bins": (lambda f: change(f, lambda r: r.update(edges=[])), "result.json"),
    "bins that fall": (lambda f: change(f, lambda r: r.update(edges=r["edges"][::-1])), "result.json"),
    "bins of other number": (lambda f: change(f, lambda r: r["groups"]["Data"].update(sumw=[1.0])), "result.json"),
    "not a number": (lambda f: change(f, lambda r: r["groups"]["Data"]["sumw"].__setitem__(0, 1e999)), "result.json"),
    "data that are no counts": (
        lambda f: change(f, lambda r: r["groups"]["Data"]["sumw"].__setitem__(0, 0.5)), "result.json"
    ),
    "no such group": (lambda f: change(f, lambda r: r["samples"]["Zee"].update(group="none")), "result.json"),
    "a colour from elsewhere": (
        lambda f: change(f, lambda r: r["groups"]["Data"].update(colour="url(https://evil.example/p)")), "result.json"
    ),
    "a number too large": (lambda f: change(f, lambda r: r["cost"].update(events=10**400)), "result.json"),
    "markup in every name": (lambda f: change(f, everywhere), None),
    "ledger is a link": (link("ledger.db", SECRETS), None),
    "ledger is no ledger": (write("ledger.db", b"x" * 5000), None),
    "plot is a link": (link("plot.png", SECRETS), "plot.png"),
    "plot is no picture": (write("plot.png", b"<svg onload=alert(1)>"), "plot.png"),
    "plot is a huge picture": (
        write("plot.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + b"\x08\x06\0\0\0"), "plot.png"
    ),
    "plot is half a picture": (
        write("plot.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\0\0\x09" * 2 + b"\x08\x06\0\0\0"), None
    ),
    "downloads are links": (
        lambda f: [link(name, SECRETS)(f) for name in ("histograms.root", "plot.pdf", "history.csv")], "history.csv"
    ),
    "cpu is a link": (link("cpu.csv", SECRETS), "cpu.csv"),
    "cpu has an over-long integer": (cell("cpu.csv", 4, "9" * 30), "cpu.csv"),
    "cpu has an endless integer": (cell("cpu.csv", 4, "9" * 5000), "cpu.csv"),
    "cpu has a long name": (cell("cpu.csv", 2, "n" * 100_000), "cpu.csv"),
    "cpu has a field beyond bounds": (cell("cpu.csv", 2, "n" * 200_000), "cpu.csv"),
    "cpu has one line without end": (write("cpu.csv", b"x" * (20 << 20)), "cpu.csv"),
    "cpu has no time": (cell("cpu.csv", 0, "nan"), "cpu.csv"),
    "cpu has no end of time": (cell("cpu.csv", 0, "inf"), "cpu.csv"),
    "cpu has names with markup": (cell("cpu.csv", 2, MARKUP), None),
    "cpu has a superscript": (cell("cpu.csv", 2, "worker-²"), None),
    "scale has negative numbers": (cell("scale.csv", 2, "-9"), None),
    "scale has no numbers": (cell("scale.csv", 2, "many"), "scale.csv"),
    "log is a link": (link("run.log", SECRETS), None),
    "dashboard is elsewhere": (write("dashboard.json", b'{"url": "http://evil.example:8265", "token": "none"}'), None),
}  # fmt: skip


#: Pages that name each file.
NAMED_BY = {"result.json": ("live", "actors", "runs", "failures"), "plot.png": ("runs",), "cpu.csv": ("actors", "runs")}


#: Of each kind one whose pages are looked at: what can't be read looks the same, whatever is wrong with it.
LOOKED_AT = [
    "result is a link", "no such group", "markup in every name", "ledger is no ledger", "plot is a link",
    "plot is no picture",
    "plot is half a picture", "cpu has an over-long integer", "cpu has names with markup",
    "scale has negative numbers", "dashboard is elsewhere",
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in ("no such group", "markup in every name")])
def test_what_can_not_be_read_is_said_in_a_line(tmp_path, name):
    """Issue 11, item 13: an over-long integer, a link, a pipe: each named, and the other files read as ever."""
    folder = tmp_path / "one"
    make_run(folder, "one")
    record(folder, "local", 2, 8)
    for other in ("ledger.db", "history.csv"):
        (folder / other).touch()
    do, file = HOSTILE[name]
    do(folder)
    view = Client(tmp_path).view("one")
    wrong = [view.wrong or "", *view.trouble("cpu.csv", "scale.csv", "history.csv")]
    assert "root:x:0" not in f"{wrong} {view.log}"
    assert "\n" not in "".join(wrong)
    assert max(map(len, wrong)) < 1000
    if file not in (None, "plot.png"):
        assert file in "".join(wrong)
    if file != "scale.csv" and not name.startswith("scale"):
        assert len(view.scale) == 8
    assert view.dashboard is None


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_hostile_folder_costs_its_own_part(run, name):  # noqa: F811
    """Issue 11, item 13: a link was followed, Markdown rendered, and a picture that is none ended the page."""
    folder = run("one")
    record(folder, "local", 2, 8)
    shutil.copytree(folder, folder.parent / "good")
    do, file = HOSTILE[name]
    do(folder)
    test = look(run="one")
    for page in ("live", "actors", "runs", "failures"):
        if page != "live":
            test.switch_page(f"views/{page}.py").run()
        assert not test.exception, (page, test.exception)
        text = said(test)
        shown = (text + "".join(table.value.to_csv() for table in test.dataframe)).replace("\\", "")
        assert "root:x:0" not in shown, page
        assert "![x]" not in re.sub(r"\\.", "", text), page
        assert "<img" not in re.sub(r"\\.", "", text), page
        assert len(text) < 50_000, page
        assert test.selectbox(key="run").value == "one", page
        if page in NAMED_BY.get(file or "", ()):
            assert file in shown, page
        if page == "runs":
            assert "good" in test.dataframe[0].value["run"].tolist()
        if page == "actors" and file == "result.json":
            assert figures(test)["Actors"][0] == "2"  # what the other files tell is still shown


def test_no_file_is_had_that_is_not_the_runs_own(tmp_path):
    """Issue 11, item 13: ``histograms.root`` that leads to another file was served by the download button."""
    result = make_run(tmp_path / "run", "run")
    for name in ("histograms.root", "plot.png", "plot.pdf", "cpu.csv", "result.json"):
        link(name, SECRETS)(tmp_path / "run")
        assert not offers(tmp_path / "run" / name)
        with pytest.raises(OutputError, match="a link"):
            content(tmp_path / "run" / name, result)()
    with pytest.raises(OutputError, match="a link"):
        picture(tmp_path / "run" / "plot.png")
    for read in (load_json, read_usage):
        with pytest.raises(OutputError, match="a link"):
            read(tmp_path / "run")


def test_a_folder_that_is_a_link_or_has_another_name_is_no_run(tmp_path):
    """Issue 11, item 13."""
    make_run(tmp_path / "elsewhere" / "run", "run")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run").symlink_to(tmp_path / "elsewhere" / "run")
    shutil.copytree(tmp_path / "elsewhere" / "run", tmp_path / "runs" / "run\n")
    client = Client(tmp_path / "runs")
    assert client.run_ids() == []
    for name in ("run", "run\n"):
        with pytest.raises(HzzrayError, match="no run"):
            client.view(name)


def test_what_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("app.downloads.FILE_BYTES", 100)
    result = make_run(tmp_path, "run")
    with pytest.raises(OutputError, match="too large"):
        content(tmp_path / "result.json", result)()


def test_nothing_is_written_through_a_link(tmp_path):
    """Issue 11, item 13: neither tables nor logs."""
    from app.launcher import Launcher
    from hzzray.engine.ledger import Ledger, LedgerError
    from hzzray.runs.tables import Recorder

    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    for name in ("cpu.csv", "run.log", "ledger.db"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError):
        Recorder(tmp_path / "run", "local")
    with pytest.raises(OutputError):
        Launcher(tmp_path).go_on("run", failed=True, published=False)
    with pytest.raises(LedgerError, match="a link"):
        Ledger.open(tmp_path / "run" / "ledger.db")
    assert (tmp_path / "precious").read_text() == "precious"


def test_an_honest_result_is_not_doubted():
    for name in ("2020", "2025", "toy"):
        assert doubt(make_result(name)) is None


def test_long_texts_are_doubted():
    assert "4000" in doubt(make_result(environment="x" * (TEXT + 1)))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\nb\t c", "a b c"),
        ("\x1b[31mred\u202eevil\0", r" \[31mred evil".strip()),
        ("# title", r"\# title"),
        ("- one", r"\- one"),
        ("1. one", f"1{JOINER}. one"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
        ("me@evil.example", f"me{JOINER}@evil.example"),
        ("see www.evil.example", f"see www{JOINER}.evil.example"),
        ("https://evil.example", rf"https\:{JOINER}//evil.example"),
    ],
)
def test_texts_are_texts(text, written):
    """Issue 11, item 13: Markdown in a title, a selection or a sample's name was rendered."""
    assert plain(text) == written


def test_texts_are_short():
    assert short("x" * 5_000_000, 10) == "x" * 9 + "…"
    assert len(plain("_" * 5000, 100)) <= 200
