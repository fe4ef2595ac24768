"""The notebooks in examples/, executed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_what_a_notebook_writes_is_not_git_s(tmp_path):
    """As git reads the file, in a repository of its own: what is tested may be none."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for written in ("examples/toy/MC/one.root", "examples/runs/one/result.json", "runs/one/result.json"):
        (tmp_path / written).parent.mkdir(parents=True)
        (tmp_path / written).touch()
    said = subprocess.run(
        ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout == "?? .gitignore\n"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_run(path, toys, tmp_path, compiled):
    """As a user runs them, in a kernel of its own, on few events; the run is drawn in its cell while it goes on."""
    (tmp_path / "toy").symlink_to(toys)
    book = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells), "notebooks are kept without output"
    made = NotebookClient(book, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in made.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data for output in outputs if "data" in output]
    card = next(data["text/html"] for data in shown if "data:image/png" in data.get("text/html", ""))
    assert "complete: 12 tasks planned = 12 merged + 0 failed" in card
    assert any("image/png" in data for data in shown)  # a figure that shows itself
    assert {"toy", "runs"} == {entry.name for entry in tmp_path.iterdir()}
