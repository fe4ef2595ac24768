"""A Helm chart of a deployment, made of the same objects as the manifests.

No template is written by hand: while the objects are made, a mark stands for each value that may be set when the chart
is installed, and becomes a reference to that value. What decides which objects there are (an overlay, TLS, Redis, an
ingress), and what names are made of, is chosen when the chart is made: ``hzzray kube chart --overlay production``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from hzzray.files import write_whole
from hzzray.version import __version__
from kuberay.deployment import deployment, key
from kuberay.kustomize import dump
from kuberay.values import Values

#: Values that may be changed when a chart is installed; the rest decides what objects there are, or is computed with.
CHANGEABLE = (
    "image.name",
    "image.tag",
    "redis.image",
    "redis.storage",
    "broker.image",
    "broker.storage",
    "storage.size",
    *(
        f"{part}.{which}.{what}"
        for part in ("ray.head", "ray.autoscaler", "bridge", "broker", "app")
        for which in ("requests", "limits")
        for what in ("cpu", "memory")
    ),
)


def chart(values: Values) -> dict[str, str]:
    """Make a chart's files: path -> content."""
    marks = {f"zz{number}zz": path for number, path in enumerate(CHANGEABLE)}
    marked = values
    for mark, path in marks.items():
        marked = _with(marked, path.split("."), mark)
    written = {}
    for plain, made in zip(deployment(values), deployment(marked), strict=True):
        if plain["kind"] == "Namespace":
            continue  # Helm's business: --create-namespace
        made["metadata"]["name"] = plain["metadata"]["name"]  # a Job's has a digest of its content
        kind, name = key(plain)
        written[f"templates/{kind.lower()}-{name}.yaml"] = _referring(dump(made), marks)
    own: dict[str, Any] = {}
    for path in CHANGEABLE:
        _put(own, path.split("."), _get(values, path.split(".")))
    about = {
        "apiVersion": "v2",
        "name": "hzzray",
        "description": "The ATLAS Open Data H→ZZ*→4ℓ analysis as a live, exact, distributed pipeline on Ray",
        "type": "application",
        "version": __version__,
        "appVersion": values.image.tag,
        "kubeVersion": ">=1.29.0-0",
    }
    return {
        "Chart.yaml": yaml.safe_dump(about, allow_unicode=True, sort_keys=False),
        "values.yaml": yaml.safe_dump(own, allow_unicode=True, sort_keys=False),
        **written,
    }


def write(values: Values, folder: Path) -> int:
    """Write a chart's files; returns how many. Raises OutputError where they can't be."""
    made = chart(values)
    for path, text in made.items():
        target = folder / path
        write_whole(target, lambda part, text=text: part.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    return len(made)


def _referring(text: str, marks: dict[str, str]) -> str:
    """Put references in the place of marks; what Helm would take for one of its own is kept as it is."""
    text = text.replace("{{", '{{ "{{" }}')
    for mark, path in marks.items():
        text = re.sub(rf"(?<=: ){mark}$", f"{{{{ .Values.{path} | quote }}}}", text, flags=re.MULTILINE)
        text = text.replace(mark, f"{{{{ .Values.{path} }}}}")
    return text


def _with(model: Any, path: list[str], value: object) -> Any:  # noqa: ANN401 (a model, or a dict in one)
    """Copy a value with one leaf replaced, unchecked."""
    first, *rest = path
    old = getattr(model, first) if isinstance(model, BaseModel) else model[first]
    new = _with(old, rest, value) if rest else value
    return model.model_copy(update={first: new}) if isinstance(model, BaseModel) else {**model, first: new}


def _get(model: Any, path: list[str]) -> Any:  # noqa: ANN401
    for name in path:
        model = getattr(model, name) if isinstance(model, BaseModel) else model[name]
    return model


def _put(tree: dict[str, Any], path: list[str], value: object) -> None:
    *outer, last = path
    for name in outer:
        tree = tree.setdefault(name, {})
    tree[last] = value
