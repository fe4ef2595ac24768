"""The documents: every link leads somewhere, the site builds without a warning and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer

from hzzray import cli
from hzzray.runs.request import options
from hzzray.runs.result import Result

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
#: mkdocs-material's word about the future of mkdocs is no warning about these pages.
QUIET = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    return _CODE.sub("", path.read_text(encoding="utf-8"))


def anchor(heading: str) -> str:
    """As GitHub and mkdocs make it."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {anchor(line) for line in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    text = prose(path)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"https?://|mailto:", link):
            continue
        place, _, part = unquote(link).partition("#")
        target = (path.parent / place).resolve() if place else path
        if target.parent == ROOT / "docs" / "reference":
            assert target.stem in {"commands", "python", "result", "yaml"}, link  # made when the site is built
            continue
        assert target.exists(), f"{path.name}: {link}"
        if part:
            assert part in anchors(target), f"{path.name}: {link}"


def test_the_readme_is_short():
    """Two commands, one picture, four links: what it had beside these is in docs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 45
    assert re.findall(r"^make (\w+)", text, re.MULTILINE) == ["run", "app"]
    assert "`make test`" in text
    assert len(re.findall(r"<img", text)) == 1
    assert len(re.findall(r"^- \*\*\[", text, re.MULTILINE)) == 4
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_each_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for path in (ROOT / "docs").glob("*.md"):
        assert f": {path.name}\n" in navigation, f"{path.name} has no place in mkdocs.yml"


def test_all_commands_are_listed():
    """As the README says of that page."""
    listed = (ROOT / "docs" / "running.md").read_text(encoding="utf-8").partition("## Commands")[2].split("```")[1]
    named = re.findall(r"hzzray ([\w, ]+?)(?:  |$)", listed, re.MULTILINE)
    words = {word for names in named for word in re.split(r", ", names)}
    assert set(typer.main.get_command(cli.app).commands) <= words


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False, env=QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|source)[^>]*\ssrc(?:set)?=[\"']?([^\"'\s>]+)", text)
        loaded += re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|icon|preconnect)[^>]*href=[\"']?([^\"'\s>]+)", text)
        assert not [place for place in loaded if re.match(r"(https?:)?//", place)], page
    assert not [sheet for sheet in site.rglob("*.css") if re.search(r"url\([\"']?https?:", sheet.read_text())]


def test_the_sites_links_stay_in_it(site):
    """Files of the repository, which the site has not, are named there instead."""
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # served from anywhere
            continue
        for link in re.findall(r'<a[^>]*\shref="([^"#]+)', page.read_text(encoding="utf-8")):
            if re.match(r"(https?:)?//|mailto:|\.$", link):
                continue
            assert (page.parent / unquote(link)).exists(), f"{page.name}: {link}"


def test_the_reference_has_every_command_option_and_key(site):
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in typer.main.get_command(cli.app).commands:
        assert f"hzzray {name}" in commands, name
    for _, _, option in options():
        assert option.flag in commands, option.flag
    result = (site / "reference" / "result.html").read_text(encoding="utf-8")
    for name in (name for name, field in Result.model_fields.items() if not field.exclude):
        assert f"<code>{name}</code>" in result, name
    row = re.search(r"<code>wall_s</code>.*?</tr>", result, re.DOTALL)[0]
    assert "<td>s</td>" in row
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ("hzzray.run", "open_run", "cutflow", "yields", "recut"):
        assert name in python
    assert "toy_events" in (site / "reference" / "yaml.html").read_text(encoding="utf-8")
