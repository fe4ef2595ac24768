"""The values of a deployment: what may be chosen, and what is refused, in words."""

from __future__ import annotations

import pytest
import yaml

from hzzray.errors import UsageError
from kuberay.values import load, overlays, quantity


def test_there_are_two_overlays():
    assert overlays() == ("minikube", "production")


def test_a_users_file_goes_on_top_of_an_overlay(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("workers: {max: 3}\nimage: {tag: mine}\n")
    values = load("minikube", own)
    assert values.workers.max == 3
    assert values.image.reference == "hzzray:mine"
    assert values.workers.requests == load("minikube").workers.requests


def test_numbers_may_stand_for_text(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("data: {release: 2025}\nray: {head: {requests: {cpu: 1}, limits: {cpu: 2.5}}}\n")
    values = load(None, own)
    assert values.data.release == "2025"
    assert values.ray.head.limits.cpu == "2.5"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"wrokers": {}}, "wrokers: no such value"),
        ({"workers": {"maximum": 3}}, "workers.maximum: no such value"),
        ({"workers": {"min": 9}}, "workers: min 9 is more than max 4"),
        ({"workers": {"actors": 3}}, "workers: requests.cpu 1 is less than a CPU for each of 3 actors"),
        ({"app": {"requests": {"memory": "2Gi"}}}, "app: requests.memory 2Gi is more than limits.memory 1Gi"),
        ({"app": {"limits": {"cpu": "many"}}}, "app.limits.cpu: not a quantity like 500m or 2Gi: 'many'"),
        ({"broker": {"nodes": 3}}, "nodes: 3, but kind statefulset is of one node: take kind operator"),
        ({"broker": {"kind": "operator", "nodes": 2}}, "take an odd number"),
        ({"broker": {"kind": "kafka"}}, "broker.kind: Input should be 'statefulset' or 'operator', not 'kafka'"),
        (
            {"broker": {"kind": "operator", "image": "rabbitmq:4.0.9-management"}},
            "broker: image rabbitmq:4.0.9-management: RabbitMQ's operator asks its nodes for a check that is new in",
        ),
        ({"network": {"kuberay": {"selector": "kuberay"}}}, "network.kuberay.selector: String should match pattern"),
        ({"name": "Hzzray"}, "name: String should match pattern"),
        ({"namespace": "a b"}, "namespace: String should match pattern"),
        ({"data": {"release": "2016"}}, "data.release: one of 2020, 2025, toy, not '2016'"),
        ({"data": {"source": "ftp://x"}}, "data.source: String should match pattern"),
        ({"data": {"source": "https://x", "claim": "c"}}, "data: source and claim are two places: choose one"),
        ({"loader": {"fraction": 2}}, "loader.fraction: Input should be less than or equal to 1, not 2"),
        ({"network": {"api_ports": [70000]}}, "network.api_ports.0: Input should be less than or equal to 65535"),
        ({"ray": {"version": "latest"}}, "ray.version: String should match pattern"),
        ({"image": {"tag": 1.0}}, "image.tag: Input should be a valid string, not 1.0"),
        ({"storage": None}, "storage: Input should be a valid dictionary"),
    ],
)
def test_wrong_values_are_named(tmp_path, own, said):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(own))
    with pytest.raises(UsageError) as error:
        load(None, path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("image", "fits"),
    [
        ("rabbitmq:4-management", True),
        ("rabbitmq:4.2-management", True),
        ("rabbitmq:4.2.4", True),
        ("rabbitmq:4.3.0-management-alpine", True),
        ("registry.example.org:5000/rabbitmq:5", True),
        ("rabbitmq:management", True),
        ("rabbitmq", True),
        ("rabbitmq:4.2.3-management", False),
        ("rabbitmq:4.1", False),
        ("registry.example.org:5000/rabbitmq:3-management", False),
    ],
)
def test_the_operators_broker_is_new_enough(tmp_path, image, fits):
    """Issue 11, item 30: with an older one the operator's start-up probe never passes."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"broker": {"kind": "operator", "nodes": 3, "image": image}}))
    if fits:
        assert load(None, path).broker.image == image
    else:
        with pytest.raises(UsageError, match=r"new in 4\.2\.4"):
            load(None, path)
    path.write_text(yaml.safe_dump({"broker": {"image": image}}))
    assert load(None, path).broker.image == image  # a node of our own has another probe


def test_any_release_of_the_catalogue_may_be_analysed(tmp_path, monkeypatch):
    """Issue 11, item 33: three were written down here, and another one was refused."""
    from hzzray.data import catalogue

    there = catalogue.releases()
    monkeypatch.setattr("kuberay.values.releases", lambda: there | {"2030": there["2025"]})
    path = tmp_path / "own.yaml"
    path.write_text("data: {release: 2030, source: 'https://example.org/2030'}\n")
    assert load(None, path).data.release == "2030"


@pytest.mark.parametrize(
    ("text", "said"), [("- 1\n", "not a mapping of values"), ("a: [\n", "not YAML"), (None, "can't read")]
)
def test_files_that_are_no_values(tmp_path, cli, text, said):
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    code, _, err = cli("kube", "up", "--dry-run", "--values", path)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_an_unknown_overlay_is_named(cli):
    code, _, err = cli("kube", "up", "--dry-run", "--overlay", "moon")
    assert code == 2
    assert "no overlay 'moon'; there are minikube, production" in err


def test_an_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("{}\n")
    assert load("production", path) == load("production")


@pytest.mark.parametrize(("text", "number"), [("500m", 0.5), ("2", 2), ("1.5", 1.5), ("2Gi", 2 * 2**30), ("3M", 3e6)])
def test_quantities(text, number):
    assert quantity(text) == number
