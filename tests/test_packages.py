"""What is published: wheel and sdist, the citation, the images' labels, the containers for editors and Binder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import hzzray

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv") or Path(sys.executable).with_name("uv")  # make installs it
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def call(*command: object, cwd: Path, timeout: float = 280, **environ: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def asked(*command: object, cwd: Path) -> None:
    """Do what asks an index of packages for something; skips where none can be reached."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"UV_SYSTEM_CERTS": "1"},
    )  # fmt: skip
    if done.returncode and re.search(r"error sending request|network was disabled", done.stderr):
        pytest.skip(f"no index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Wheel and sdist, built by the backend that pip would call, in a copy without what git ignores."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    if not any(names):
        pytest.skip("no git checkout to build from")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    asked(UV, "build", "--out-dir", folder / "dist", cwd=source)
    return folder / "dist"


@pytest.mark.slow
def test_a_wheel_has_the_packages_and_an_sdist_the_rest(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"hzzray/api.py", "hzzray/data/releases/2020.yaml", "bridge/cli.py", "kuberay/values.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CITATION.cff", "app/main.py", "examples/first_plot.ipynb"} <= inside


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_runs_the_main_job_in_an_empty_environment(built, toys, tmp_path):
    """As `pip install hzzray[app,broker]` does: nothing of this checkout or its environment is seen."""
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "env"
    call(UV, "venv", "--quiet", "--python", sys.executable, home, cwd=tmp_path)
    python = home / "bin" / "python"
    asked(UV, "pip", "install", "--quiet", "--python", python, f"{wheel}[app,broker]", cwd=tmp_path)
    own = {"PYTHONPATH": "", "HZZRAY_CACHE": str(tmp_path / "cache")}
    said = call(
        home / "bin" / "hzzray", "run", "--engine", "serial", "--source", toys, "--run-id", "there", cwd=tmp_path, **own
    )
    assert "complete: 12 tasks planned = 12 merged + 0 failed" in said
    assert (tmp_path / "runs" / "there" / "plot.png").stat().st_size > 10_000
    where = call(
        python, "-c", "import hzzray, bridge, kuberay, streamlit, pika; print(hzzray.__file__)", cwd=tmp_path, **own
    )
    assert str(home) in where


def test_the_citation_is_whole_and_of_this_version():
    """By the schema's own rules (Citation File Format 1.2.0), as far as it asks for something."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] in ("software", "dataset")
    assert cited["version"] == PROJECT["version"] == hzzray.__version__
    assert cited["license"] == PROJECT["license"]
    for author in [*cited["authors"], *(one for entry in cited["references"] for one in entry["authors"])]:
        assert author.keys() <= {"name", "given-names", "family-names", "orcid", "affiliation", "website"}
    assert all(re.fullmatch(r"10\.\d{4,}/\S+", entry["doi"]) for entry in cited["references"])


def test_the_images_labels_say_what_it_is():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', text))
    assert {"title", "description", "licenses", "version", "revision", "authors"} <= labels.keys()
    assert labels["licenses"] == PROJECT["license"]
    assert re.search(r"^ARG VERSION=(\S+)$", text, re.MULTILINE)[1] == PROJECT["version"]


def test_editors_containers_and_binder_install_what_there_is():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).is_file()
    assert "[notebook]" in container["postCreateCommand"]
    assert PROJECT["optional-dependencies"]["notebook"]
    assert 8501 in container["forwardPorts"]
    included = re.findall(r"^-r (.+)$", (ROOT / ".binder" / "requirements.txt").read_text(), re.MULTILINE)
    assert [(ROOT / ".binder" / one).resolve() for one in included] == [ROOT / "requirements.lock"]
    post = ROOT / ".binder" / "postBuild"
    assert os.access(post, os.X_OK)
    subprocess.run(["bash", "-n", post], check=True)
