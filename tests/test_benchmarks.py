import importlib
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# They run as scripts from their own folder, which is no package.
sys.path.append(str(BENCHMARKS))
environment, floor, report = (importlib.import_module(name) for name in ("environment", "floor", "report"))


def way(name="a", **changes):
    found = {"events": 2_000_000, "selected": 7, "total": 10.0, "bins": [4.0, 6.0]}
    times = {"wall_s": [4.0, 1.0, 2.0], "cpu_s": [4.0, 1.0, 2.0]}
    return report.Measurement(name, f"way {name}", **{**found, **times, **changes})


def test_rates_are_of_the_fastest_and_the_median_pass():
    found = way(cpu_s=[0.5, 0.9, 1.0])
    assert (found.best, found.median, found.by_cpu) == (2.0, 1.0, 4.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"selected": 8},
        {"events": 1_999_999},
        {"total": 10.0 * (1 + 3e-5)},
        {"total": float("nan")},
        {"bins": [4.1, 5.9]},
        {"bins": [float("nan"), 6.0]},
    ],
)
def test_a_way_that_differs_is_named(changes):
    ways = [way("first"), way("same", total=10.0 * (1 + 1e-7)), way("other", **changes)]
    lines = report.disagreements(ways)
    assert len(lines) == 1
    assert "other" in lines[0]
    assert report.remarks(ways)[0] == lines[0]


def test_ways_without_a_selection_are_not_compared():
    ways = [way("floor", selected=None, total=None, bins=None), way("b"), way("c")]
    assert report.disagreements(ways) == []
    assert "2 ways agree: 7 of 2,000,000" in report.agreement(ways)


def test_ratio_and_reasons():
    ways = [
        way("hzzray", wall_s=[0.5], cpu_s=[0.5]),
        way("b"),
        way("late", wall_s=[1.0], cpu_s=[0.5]),
        way("gone", wall_s=[], cpu_s=[], reason="no such package"),
    ]
    assert [row[-1] for row in report.rows(ways, "hzzray")] == ["1.00", "2.00", "2.00", "—"]
    lines = report.remarks(ways)
    assert [line for line in lines if "shared" in line] == ["way late: its core was shared, so its figures are too low"]
    assert lines[-1] == "way gone: not measured (no such package)"


def test_a_section_is_replaced_and_the_rest_stays():
    document = "head\n<!-- bench:begin -->\nold\n<!-- bench:end -->\ntail\n"
    once = report.replace_section(document, "new")
    assert once == "head\n<!-- bench:begin -->\n\nnew\n<!-- bench:end -->\ntail\n"
    assert report.replace_section(once, "new") == once
    with pytest.raises(ValueError, match="bench:begin"):
        report.replace_section("no markers", "new")


@pytest.mark.parametrize("name", ["bench", "engine", "files", "remote", "messaging", "app"])
def test_the_document_has_the_markers(name):
    report.replace_section((BENCHMARKS.parent / "docs" / "performance.md").read_text(encoding="utf-8"), "", name)


def test_a_table_in_markdown():
    assert report.grid(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import sys; sys.exit(3)", "no message"),
        ("import threading; threading.Event().wait()", "no result within 1 s"),
    ],
)
def test_a_process_that_fails_gives_its_reason(code, reason):
    with pytest.raises(environment.Failed, match=reason):
        environment.run([sys.executable, "-c", code], 1 if "wait" in code else 60)


def test_a_missing_interpreter_is_a_reason(tmp_path):
    with pytest.raises(environment.Failed, match="python: No such file"):
        environment.run([str(tmp_path / "python")], 60)


def test_packages_are_installed_one_by_one_after_a_failure(tmp_path, monkeypatch):
    requirements = tmp_path / "peers.txt"
    requirements.write_text("# comment\ngood==1\nbad==2  # why\n\n", encoding="utf-8")
    commands = []

    def run(command, _timeout):
        commands.append(command[-1])
        if command[-1] in ("bad==2", str(requirements)):
            raise environment.Failed("no wheel")

    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(environment.venv, "create", lambda folder, **_: folder.mkdir(exist_ok=True))
    peers = environment.Peers(tmp_path / "venv", requirements)
    assert peers.install() == ["bad==2: no wheel"]
    assert commands == [str(requirements), "good==1", "bad==2"]
    peers.install()
    assert len(commands) == 6, "an environment that lacks a package must be tried again"

    requirements.write_text("good==1\n", encoding="utf-8")
    monkeypatch.setattr(environment, "run", lambda command, _timeout: commands.append(command[-1]))
    assert peers.install() == []
    assert len(commands) == 7
    peers.install()
    assert len(commands) == 7, "a complete environment is left alone"


def test_no_link_to_this_machine_is_committed():
    """Issue 11, item 45: ``.venv-peers``, a link to a folder of some machine, made `make bench` fail on every clone."""
    root = BENCHMARKS.parent
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository: an archive of the files")
    names = [line.split("\t", 1)[1] for line in listed.stdout.splitlines() if line.startswith("120000")]
    assert [name for name in names if not (root / name).resolve().is_relative_to(root.resolve())] == []
    ignored = ["git", "check-ignore", "--no-index", ".venv", ".venv-peers"]  # a link is no folder
    assert subprocess.run(ignored, cwd=root, capture_output=True, text=True, check=False).stdout.split() == ignored[3:]


def test_a_basket_is_cut_into_its_blocks():
    texts = [b"first" * 100, b"second" * 50]
    basket = b""
    for text in texts:
        packed = zlib.compress(text)
        basket += b"ZL\x08" + len(packed).to_bytes(3, "little") + len(text).to_bytes(3, "little") + packed
    assert [(zlib.decompress(stream), size) for stream, size in floor._blocks(basket)] == [(t, len(t)) for t in texts]
    with pytest.raises(ValueError, match="zlib"):
        floor._blocks(b"ZS" + basket)
