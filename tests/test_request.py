"""What can be asked of a run: once in RunRequest, and by the same words in all its homes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from hzzray import cli
from hzzray.errors import UsageError
from hzzray.options import asks
from hzzray.runs.request import RunRequest, options
from hzzray.runs.run import limits_for
from kuberay import app as pages
from kuberay import deployment
from kuberay.values import OF_DATA, OF_WORKERS, load

ROOT = Path(__file__).parents[1]

#: Of each option a value that isn't its default. A new one needs one here, and then a place in each home.
ASKED = {
    "release": "2020",
    "sources": ("https://host.example/a", "https://host.example/b"),
    "samples": ("Zee", "llll"),
    "selection": "h4l",
    "analysis": "/analyses/mine.py:mine",
    "cuts": ("m12=60:106", "pt1=25:"),
    "parameters": ("electron_pt_min=10", "isolated=false"),
    "observables": ("m4l", "m12=40:120:40"),
    "variations": ("all", "muon_scale"),
    "luminosity": 36.1,
    "fraction": 0.125,
    "axis": "80:250:34",
    "window": "115:130",
    "background_uncertainty": 0.25,
    "engine": "serial",
    "actors": 3,
    "min_actors": 2,
    "max_actors": 5,
    "chunk": 1234567,
    "events": 77,
    "pace": 2.5,
    "run_id": "mine",
    "catalogue": "/analyses/mine.yaml",
    "openmagic": True,
}
PUBLISHED = {asked.name for asked in options(published=True)}


def request(names=ASKED, **others) -> RunRequest:
    return RunRequest.of(**{name: ASKED[name] for name in names} | others)


def parsed(words, *, published: bool = False) -> RunRequest:
    """Read words as a command with the options of a request does."""
    taken: list[RunRequest] = []
    app = typer.Typer()

    @app.command()
    @asks(published=published)
    def command(request: RunRequest) -> None:
        taken.append(request)

    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return taken[0]


def test_each_option_has_a_value_here():
    assert ASKED.keys() == RunRequest.model_fields.keys()
    for name, field, _ in options():
        assert getattr(request(), name) != field.get_default(), name
        assert field.description, name


def test_commands_have_all_of_them():
    root = typer.main.get_command(cli.app)
    run = {"broker", "prefix", "runs", "plot", "dry_run", "as_json"}
    own = {"run": run, "publish": run - {"runs", "plot"}}
    for command, names in (("run", ASKED.keys()), ("publish", PUBLISHED)):
        assert {parameter.name for parameter in root.commands[command].params} == names | own[command]
    assert ASKED.keys() - PUBLISHED == {"engine", "actors", "min_actors", "max_actors", "pace"}


@pytest.mark.parametrize("published", [False, True])
def test_its_words_ask_for_the_same(published, monkeypatch):
    monkeypatch.delenv("HZZRAY_CATALOGUE", raising=False)
    names = PUBLISHED if published else ASKED.keys()
    assert parsed(request().words(published=published), published=published) == request(names)
    assert parsed([]) == RunRequest()
    assert RunRequest().words() == []
    assert RunRequest.of(release="toy", fraction=1.0, samples="", axis="").words() == ["--release", "toy"]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"fraction": 2}, "fraction: must be 1 or less, not 2"),
        ({"luminosity": "much"}, "luminosity: must be a number, not 'much'"),
        ({"chunk": 0}, "chunk: must be 1 or more, not 0"),
        ({"run_id": "../up"}, "run-id: must be of letters"),
        ({"min_actors": 3, "max_actors": 2}, "3 actors at least are more than 2 at most"),
        ({"colour": "red"}, "colour: must be left out: nobody knows it"),
    ],
)
def test_what_can_not_be_asked_for(chosen, said):
    with pytest.raises(UsageError, match=said):
        RunRequest.of(**chosen)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"cuts": {"m12": (60, 106), "pt1": (25, None), "m34": None}}, {"cuts": ("m12=60:106", "pt1=25:", "m34=:")}),
        (
            {"parameters": {"isolated": False, "electron_pt_min": 10}},
            {"parameters": ("isolated=false", "electron_pt_min=10")},
        ),
        ({"observables": {"m12": (40, 120, 40)}}, {"observables": ("m12=40:120:40",)}),
        ({"observables": "m12"}, {"observables": ("m12",)}),
        ({"axis": (80, 250, 34), "window": [115.0, 130]}, {"axis": "80:250:34", "window": "115.0:130"}),
        ({"sources": Path("toy")}, {"sources": ("toy",)}),
        ({"samples": ["Zee", "llll"]}, {"samples": "Zee,llll"}),
    ],
)
def test_pythons_own_values_do_as_well_as_texts(given, texts):
    assert RunRequest.of(**given) == RunRequest.of(**texts)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ({}, 4, 4),
        ({"actors": 3}, 3, 3),
        ({"min_actors": 1}, 1, 4),
        ({"min_actors": 6}, 6, 6),
        ({"max_actors": 2}, 2, 2),
        ({"min_actors": 1, "max_actors": 9}, 1, 9),
    ],
)
def test_a_pools_bounds_make_sense(asked, least, most, monkeypatch):
    monkeypatch.setattr("hzzray.runs.run.usable_cpus", lambda: 4)
    limits = limits_for(RunRequest.of(**asked))
    assert (limits.min_actors, limits.max_actors) == (least, most)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_composes_loader_has_it(name, tmp_path, monkeypatch):
    """As a variable of both files and of .env.example, which deploy/loader makes the option of."""
    monkeypatch.delenv("HZZRAY_CATALOGUE", raising=False)
    option = next(asked.option for asked in options() if asked.name == name)
    for path in ("docker-compose.yml", "docker-compose.swarm.yml"):
        assert option.variable in yaml.safe_load((ROOT / path).read_text())["services"]["loader"]["environment"], path
    assert re.search(rf"^# {option.variable}=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    (tmp_path / "hzzray").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "hzzray").chmod(0o755)
    value = ASKED[name]
    text = ",".join(value) if isinstance(value, tuple) else str(value).removesuffix("True") or "1"
    release = {} if name == "events" else {"HZZRAY_RELEASE": "2020"}
    done = subprocess.run(
        ["sh", str(ROOT / "deploy" / "loader")], capture_output=True, text=True, timeout=20, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **release, option.variable: text},
    )  # fmt: skip
    command, *words = done.stdout.splitlines()
    assert command == "publish"
    assert getattr(parsed(words, published=True), name) == getattr(request(), name)


def values_of(folder, **own):
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(own))
    return load(None, path)


def plain(names) -> dict[str, object]:
    return {name: list(value) if isinstance(value := ASKED[name], tuple) else value for name in names}


def test_kubernetes_loader_and_jobs_have_all_of_them(tmp_path, monkeypatch):
    monkeypatch.delenv("HZZRAY_CATALOGUE", raising=False)
    data = {"release": "2020", "source": ASKED["sources"][0], "catalogue": ASKED["catalogue"], "openmagic": True}
    of_all = {"sources": (data["source"],), "events": None}  # toys are written before
    values = values_of(tmp_path, data=data, loader=plain(PUBLISHED - OF_DATA))
    words = next(each for each in containers(pages.loader(values)) if each["name"] == "loader")["command"]
    assert words[:2] == ["hzzray", "publish"]
    assert parsed(words[2:], published=True) == request(PUBLISHED, **of_all)
    asked = ASKED.keys() - OF_DATA - OF_WORKERS
    values = values_of(tmp_path, data=data, job=plain(asked), workers={"max": 5, "actors": 1})
    words = shlex.split(deployment.jobs(values)["batch"]["spec"]["entrypoint"])
    assert words[:2] == ["hzzray", "run"]
    pool = {"engine": "ray", "actors": None, "min_actors": 1, "max_actors": 5}
    assert parsed(words[2:]) == request(**of_all, **pool)


def test_values_yaml_shows_all_of_them():
    """A file of one's own may have what values.yaml has not: there one must see what there is."""
    shown = yaml.safe_load((ROOT / "kuberay" / "values.yaml").read_text())
    assert shown["loader"].keys() == PUBLISHED - OF_DATA
    assert {"release", "source", "toy_events", "catalogue", "openmagic"} <= shown["data"].keys()


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"loader": {"release": "2020"}}, "loader: release: no such value here"),
        ({"loader": {"pace": 5}}, "loader: pace: no such value here"),
        ({"job": {"max_actors": 5}}, "job: max_actors: no such value here"),
        ({"job": {"luminosity": -1}}, "job.luminosity: Input should be greater than 0, not -1"),
        ({"loader": {"min_actors": 9, "max_actors": 1}}, "9 actors at least are more than 1"),
        ({"data": {"catalogue": "mine.yaml"}}, "data.catalogue: String should match pattern"),
    ],
)
def test_values_that_are_somebody_elses_to_say(tmp_path, own, said):
    with pytest.raises(UsageError, match=said):
        values_of(tmp_path, **own)


def test_a_release_of_ones_own_on_kubernetes(tmp_path):
    data = {"catalogue": "/analyses/mine.yaml", "release": "mine", "source": "https://host.example/a"}
    values = values_of(tmp_path, data=data)
    assert values.published().release == "mine"
    head = next(made for made in deployment.deployment(values) if made["kind"] == "RayCluster")
    bridge = head["spec"]["headGroupSpec"]["template"]["spec"]["initContainers"][-1]
    assert bridge["command"][-2:] == ["--catalogue", "/analyses/mine.yaml"]


def containers(job) -> list[dict[str, object]]:
    return job["spec"]["template"]["spec"]["containers"]
