"""A run's report in one file, what it records, and a run computed again and compared."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from hzzray.report import fit_text, html
from hzzray.report.run_tables import of_count
from hzzray.runs.fit_run import save_fit
from hzzray.runs.folder import RunFolder
from hzzray.runs.record import read_record, record_of
from hzzray.runs.templates import load_templates
from hzzray.statistics.fit_result import FitResult, Quantity, YieldResult

VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def folder(toys, tmp_path_factory, compiled):
    """A run of the toys in this process."""
    import hzzray

    runs = tmp_path_factory.mktemp("runs")
    made = hzzray.run(
        sources=toys, runs=runs, run_id="told", selection="h4l", observables=["m4l", "m12"], engine="serial",
        progress=False,
    )  # fmt: skip
    return RunFolder(made.path)


@pytest.fixture(scope="module")
def page(folder) -> str:
    return html.report(folder)


class Reader(HTMLParser):
    """Reads a page: its elements closed in order, its tables' cells, what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.alts: list[str | None] = []
        self.headings: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [found[name] for name in ("src", "href", "srcset", "action") if found.get(name)]
        if tag == "img":
            self.alts.append(found.get("alt"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_a_report_is_one_file_that_loads_nothing(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(page.encode()) <= html.MOST_BYTES
    assert all(place.startswith("data:image/png;base64,") for place in reader.loads)
    assert len(reader.loads) >= 6  # the first, three regions, m12, the actors
    assert all(reader.alts)
    assert re.findall(r"<script([^>]*)>", page) == [' type="application/json" id="hzzray-record"']
    assert not re.search(r"url\(|@import|https?://", page.split("<script")[0])


def test_a_report_has_it_all(page, folder):
    reader = Reader()
    reader.feed(page)
    result = record_of(folder).result
    assert reader.headings == ["Result", "Yields", "Cutflow", "Significance", "Cost", "Provenance"]
    for text in (
        result.digest,
        "told",
        "complete: 12 tasks planned = 12 merged + 0 failed",
        "hzzray run --release toy",
    ):
        assert text in page
    assert f"{of_count(result.cost.events_per_s)}/s" in reader.cells
    for text in ("Z2 window", "Asimov", "CPU of the tasks", "worker-0", "Zee", result.spec.digest, "115 to 130 GeV"):
        assert text in reader.cells, text
    files = record_of(folder).files
    assert len(files) == 12
    assert {file.uuid for file in files} <= set(reader.cells)


@pytest.fixture
def fitted(folder):
    """A fit of the run, without data's limit and upper error, with notes; taken away afterwards."""
    result = record_of(folder).result
    fit = FitResult(
        run_id=result.run_id,
        digest=result.digest,
        observable="m4l",
        unit="GeV",
        luminosity=10.0,
        observed=True,
        figures={
            "mu": Quantity(value=1.25, definition=""),
            "mu_error": Quantity(value=0.5, definition=""),
            "mu_up": Quantity(value=None, definition="", withheld="MINOS finds no such µ"),
            "mu_down": Quantity(value=0.4, definition=""),
            "z_expected": Quantity(value=2.5, definition=""),
            "z_observed": Quantity(value=2.75, definition=""),
        },
        parameters=(),
        names=(),
        correlations=(),
        yields=(YieldResult(region="4e", process="total", group="", before=1, before_error=1, after=2, after_error=1),),
        bins=(),
        notes=("4e: <b> left out", "a second note"),
    )
    path = save_fit(fit, folder.path)
    yield fit
    path.unlink()


def test_a_fit_is_told_as_the_command_line_tells_it(page, folder, fitted, monkeypatch):
    assert "<h2>Fit</h2>" not in page
    drawn = html.figure(record_of(folder).result)
    monkeypatch.setattr(html.fit_figures, "figures", lambda *_: iter([("pulls", lambda: drawn)]))
    text = html.report(folder)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "Fit" in reader.headings
    for line in fit_text.lines(fitted):
        name, said = line[:16].strip(), line[16:].strip()
        assert name in reader.cells
        assert said in reader.cells
    assert "<li>4e: &lt;b&gt; left out</li><li>a second note</li>" in text
    assert "pulls" in reader.alts
    assert len(text.encode()) <= html.MOST_BYTES


def test_a_fit_of_other_bins_is_not_shown_as_the_runs(folder, fitted):
    save_fit(fitted.model_copy(update={"digest": "0" * 64}), folder.path)
    text = html._fit(record_of(folder).result, folder.path)
    assert "other bins" in text
    assert "1.25" not in text


def test_a_fits_pictures_have_their_bound(folder):
    drawn = [(str(i), lambda: html.figure(record_of(folder).result)) for i in range(3)]
    assert html._pictures(drawn, 100_000, 60, "fit").count("<img") == 1
    assert "No room here for 1, 2: <code>hzzray fit</code>" in html._pictures(drawn, 100_000, 60, "fit")


def test_no_word_of_a_run_becomes_markup(folder):
    result = record_of(folder).result
    sly = result.model_copy(update={"run_id": "<script>x</script>", "warnings": ("</script><img src=x>",)})
    card = html.card(sly, b"")
    assert "<script" not in card
    assert "<img src=x" not in card
    record = record_of(folder).model_copy(update={"result": sly, "sources": ("https://me:secret@host/x?token=1",)})
    text = html.embedded(record)
    assert text.count("</script>") == 1
    assert "secret" not in text
    assert "token=1" not in text


def test_pictures_that_have_no_room_are_named(folder):
    result = record_of(folder).result
    text = html._others(result, load_templates(result, folder.path), 60_000)
    assert "No room here for" in text
    assert "m12" in text.split("No room here for")[1]
    assert len(text) < 61_000


def test_what_is_recorded_is_read_again(folder, page, tmp_path):
    record = record_of(folder)
    (tmp_path / "sent.html").write_text(page, encoding="utf-8")
    sent = read_record(tmp_path / "sent.html")
    assert sent.result == record.result
    assert (sent.files, sent.chunk) == (record.files, record.chunk)
    (tmp_path / "copy.json").write_bytes((folder.path / "result.json").read_bytes())
    assert read_record(tmp_path / "copy.json").result == record.result
    assert read_record(folder.path) == read_record(folder.path / "result.json") == record


def test_a_report_brings_no_program(folder, tmp_path):
    record = record_of(folder).model_copy(update={"analyses": ("/home/you/evil.py",)})
    assert "evil" not in html.embedded(record)
    sly = html.embedded(record).replace('"analyses":[]', '"analyses":["/home/you/evil.py"]')
    (tmp_path / "sly.html").write_text(sly)
    assert "evil" in sly
    assert read_record(tmp_path / "sly.html").analyses == ()


def test_report_and_verify_as_commands(cli, folder, tmp_path):
    code, out, err = cli("report", "told", "--runs", folder.path.parent, "--output", tmp_path / "sent.html")
    assert (code, err) == (0, "")
    assert re.search(r"sent\.html \(0\.\d\d MB\)", out)
    code, out, err = cli("report", "told", "--runs", folder.path.parent, "--output", tmp_path)
    assert (code, err) == (0, "")
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "sent.html").read_bytes()
    code, out, err = cli("verify", tmp_path / "sent.html")
    assert (code, err) == (0, "")
    assert f"the same, to the last bit: {record_of(folder).result.digest}" in out
    code, out, _ = cli("verify", "told", "--runs", folder.path.parent, "--json")
    assert (code, json.loads(out)["equal"]) == (0, True)


def test_verify_says_which_sample_differs(cli, folder, toys, tmp_path):
    """Data of other files: one sample lacks, the digest is another."""
    for path in toys.rglob("*.root"):
        if "Zee" not in path.name:
            there = tmp_path / "less" / path.relative_to(toys)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path)
    code, out, err = cli("verify", folder.path, "--source", tmp_path / "less")
    assert (code, out) == (1, "")
    assert err.startswith(f"another result: recorded {record_of(folder).result.digest[:16]}, computed ")
    zee = record_of(folder).result.samples["Zee"].entries
    assert f"Zee: {zee} entries read, now 0" in err
    assert "llll" not in err
    assert "no such file" in err


def test_verify_finds_a_changed_number(cli, folder, tmp_path):
    changed = json.loads((folder.path / "result.json").read_text())
    bins = changed["samples"]["llll"]["sumw"]
    bins[3] += 1e-9
    changed["digest"] = "0" * 64
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    source = read_record(folder.path).sources[0]
    code, _, err = cli("verify", tmp_path / "changed.json", "--source", source)
    assert code == 1
    assert "llll: 1 bins differ, the first is number 3" in err


def test_verify_compares_what_the_digest_is_not_of(cli, folder, tmp_path):
    """Whoever changes a yield, a cutflow or a sample of a report leaves its digest as it is."""
    result = json.loads((folder.path / "result.json").read_text())
    source = read_record(folder.path).sources[0]
    changed = json.loads(json.dumps(result))
    changed["samples"]["llll"]["sumw"][3] += 1e-9
    changed["samples"]["Zee"]["cutflow"].pop()
    changed["samples"]["Zee"]["sumw"].pop()
    changed["samples"]["mine"] = changed["samples"]["data_A"]
    changed["variations_digest"] = "0" * 64
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    code, out, err = cli("verify", tmp_path / "changed.json", "--source", source)
    assert (code, out) == (1, "")
    first, *others = err.splitlines()
    assert first == "another result: the digest is the same, other numbers aren't"
    assert "Zee: other sums" in others
    assert "mine: only one of both results has it" in others
    assert f"variations: recorded {'0' * 16}, computed " in others
    assert any(line.startswith("llll: 1 bins differ, the first is number 3: ") for line in others)


def test_verify_follows_a_link_of_the_users_own(cli, folder, tmp_path):
    (tmp_path / "sent.json").symlink_to(folder.path / "result.json")
    code, _, err = cli("verify", tmp_path / "sent.json", "--source", read_record(folder.path).sources[0])
    assert (code, err) == (0, "")
    for what in ("/dev/null", tmp_path / "gone.html"):
        assert cli("verify", what)[0] == 2, "1 would be another result"


@pytest.mark.parametrize(
    ("content", "said"),
    [("<html></html>", "neither a report nor a result.json"), ("{}", "neither a report nor a result.json")],
)
def test_what_is_no_record_is_refused_in_one_line(cli, tmp_path, content, said):
    (tmp_path / "other.html").write_text(content)
    code, _, err = cli("verify", tmp_path / "other.html")
    assert code == 2, "1 would be another result"
    assert said in err
    assert len(err.strip().splitlines()) == 1
    code, _, err = cli("verify", "absent", "--runs", tmp_path)
    assert (code, "no such run" in err) == (2, True)
    code, _, err = cli("report", "absent", "--runs", tmp_path)
    assert (code, "no such run" in err) == (2, True)
