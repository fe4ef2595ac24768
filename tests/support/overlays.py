"""What kustomize makes of an overlay of ours, without kustomize: its own objects, patches, deletions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml


def build(folder: Path) -> list[dict[str, Any]]:
    """Put the objects of a kustomization together."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects: list[dict[str, Any]] = []
    for name in plan["resources"]:
        path = folder / name
        objects += build(path) if path.is_dir() else [yaml.safe_load(path.read_text())]
    for patch in plan.get("patches", []):
        target = (patch["target"]["kind"], patch["target"]["name"])
        (index,) = [i for i, each in enumerate(objects) if (each["kind"], each["metadata"]["name"]) == target]
        steps = yaml.safe_load((folder / patch["path"]).read_text() if "path" in patch else patch["patch"])
        if isinstance(steps, dict):
            assert steps["$patch"] == "delete"
            del objects[index]
        else:
            objects[index] = patched(objects[index], steps)
    return objects


def patched(tree: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Apply a JSON patch (RFC 6902) of the operations add, remove and replace."""
    tree = copy.deepcopy(tree)
    for step in steps:
        *way, last = [name.replace("~1", "/").replace("~0", "~") for name in step["path"].split("/")[1:]]
        place: Any = tree
        for name in way:
            place = place[int(name)] if isinstance(place, list) else place[name]
        key: Any = int(last) if isinstance(place, list) else last
        if step["op"] == "remove":
            del place[key]
        else:
            assert step["op"] == "add" or place[key] is not None
            place[key] = step["value"]
    return tree
