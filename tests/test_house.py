"""What the documents say of the house is so: its floors, its rooms, where changes go."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PICTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
BRIDGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[3]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def contract(name: str) -> dict:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return next(one for one in settings["tool"]["importlinter"]["contracts"] if one["name"] == name)


def modules(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.py") if not file.stem.startswith("__")}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_the_picture_has_the_floors_in_their_order():
    floors = [re.split(r"\W", line.strip())[0] for line in PICTURE.splitlines() if re.match(r"  \w", line)]
    held = [layer.split(" | ")[0] for layer in contract("The floors of hzzray")["layers"] if layer != "__main__"]
    assert [floor for floor in floors if floor in held] == held[:-1]  # errors is named last of those on the ground
    assert floors[:2] == ["app", "bridge"]
    assert PICTURE.rstrip().endswith("errors")


def test_each_room_is_on_its_floor():
    for floor in PICTURE.split("─" * 77):
        for package in re.findall(r"^  (\w+)/", floor, re.MULTILINE):
            if (ROOT / "hzzray" / package).is_dir():
                assert modules(ROOT / "hzzray" / package) <= words(floor), package
    alone = modules(ROOT / "hzzray")
    assert alone <= words(PICTURE)
    assert modules(ROOT / "bridge") == {name for name in words(BRIDGE) if (ROOT / "bridge" / f"{name}.py").exists()}


PATHS = re.findall(r"`([\w/]+\.(?:py|md))`", CONTRIBUTING)


@pytest.mark.parametrize("path", PATHS)
def test_where_changes_go_there_is_a_file(path):
    assert (ROOT / path).is_file()


def test_each_kind_of_change_touches_one_or_two_files():
    rows = [line for line in CONTRIBUTING.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) >= 10
    for row in rows:
        assert 1 <= len(re.findall(r"`[\w/…]+\.(?:py|yaml)`|`[\w/]+/….\w+`", row.split("|")[2])) <= 2, row


def test_the_readmes_of_docs_name_modules_that_there_are():
    """Paths of our modules in the documents are those of files."""
    known = {"hzzray", "bridge", "kuberay", "app", "tests", "benchmarks", "examples"}
    for file in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for path in re.findall(r"\b(\w+(?:/\w+)+\.py)\b", file.read_text(encoding="utf-8")):
            if path.split("/")[0] in known:
                assert (ROOT / path).is_file(), f"{file.name}: {path}"


def test_what_is_printed_of_names_is_printed_as_it_is():
    """Rich takes brackets for markup: what is put together goes through ``say``, or says that it has none."""
    for file in [path for folder in ("hzzray", "bridge", "kuberay") for path in (ROOT / folder).rglob("*.py")]:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "print":
                is_text = isinstance(call.args[0], ast.JoinedStr)
                assert not is_text or "markup" in {given.arg for given in call.keywords}, f"{file}: {call.lineno}"
