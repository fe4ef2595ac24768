"""The folder of manifests.

``base`` has what the values give; an overlay has what differs, as kustomize wants it: whole objects that are its own,
and JSON patches of those that the base has too. Jobs are files by themselves: they are started, not kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kuberay.common import Object
from kuberay.deployment import Key, deployment, jobs, key
from kuberay.values import load, overlays

HEADER = "# Written by `hzzray kube manifests` from kuberay/values.yaml: change that, and write it again.\n"


def files() -> dict[str, str]:
    """Make the whole folder: path -> content."""
    base = {key(made): made for made in deployment(load())}
    written = {f"base/{_file(name)}": dump(made) for name, made in base.items()}
    written["base/kustomization.yaml"] = _kustomization([_file(name) for name in base])
    written |= {f"jobs/base/{name}.yaml": dump(job) for name, job in jobs(load()).items()}
    for overlay in overlays():
        values = load(overlay)
        written |= {f"overlays/{overlay}/{path}": text for path, text in _overlay(base, deployment(values)).items()}
        written |= {f"jobs/{overlay}/{name}.yaml": dump(job) for name, job in jobs(values).items()}
    return {path: HEADER + text for path, text in written.items()}


def write(folder: Path) -> int:
    """Write the folder anew; returns the number of files."""
    made = files()
    for part in ("base", "overlays", "jobs"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for path, text in made.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return len(made)


def _overlay(base: Mapping[Key, Object], wanted: Sequence[Object]) -> dict[str, str]:
    """Make an overlay's files: what it adds, and a patch for each object that it changes or leaves out."""
    objects = {key(made): made for made in wanted}
    written = {_file(name): dump(made) for name, made in objects.items() if name not in base}
    patches: list[Object] = []
    for name, made in base.items():
        kind, called = name
        if name not in objects:
            gone = {"$patch": "delete", "apiVersion": made["apiVersion"], "kind": kind, "metadata": {"name": called}}
            patches.append({"patch": dump(gone), "target": {"kind": kind, "name": called}})
        elif steps := list(_differences(made, objects[name])):
            path = f"patches/{_file(name)}"
            written[path] = dump(steps)
            patches.append({"path": path, "target": {"kind": kind, "name": called}})
    own = [path for path in written if not path.startswith("patches/")]
    written["kustomization.yaml"] = _kustomization(["../../base", *own], patches)
    return written


def _differences(old: Object, new: Object, path: str = "") -> Iterator[Object]:
    """Tell how to make one tree of another, as the steps of a JSON patch (RFC 6902)."""
    for name in old.keys() - new.keys():
        yield {"op": "remove", "path": f"{path}/{_escaped(name)}"}
    for name, value in new.items():
        where = f"{path}/{_escaped(name)}"
        if name not in old:
            yield {"op": "add", "path": where, "value": value}
        else:
            yield from _change(old[name], value, where)


def _change(old: Any, new: Any, path: str) -> Iterator[Object]:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _differences(old, new, path)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _change(before, after, f"{path}/{index}")
    elif old != new:
        yield {"op": "replace", "path": path, "value": new}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _kustomization(resources: Sequence[str], patches: Sequence[Object] = ()) -> str:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return dump(head | {"resources": list(resources)} | ({"patches": list(patches)} if patches else {}))


def _file(name: Key) -> str:
    kind, called = name
    return f"{kind.lower()}-{called}.yaml"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, lists indented, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001
        super().increase_indent(flow, indentless=False)


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _write_text)


def dump(made: Object | list[Object]) -> str:
    """Write an object as YAML, in the order that it was made in."""
    return yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
