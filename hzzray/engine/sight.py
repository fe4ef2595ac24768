"""Whether workers see what a run reads: asked of their nodes before it begins."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hzzray.engine.cluster import working_nodes
from hzzray.errors import UsageError
from hzzray.urls import is_remote

#: How long nodes have to answer, in seconds. One that doesn't is taken to see everything.
PATIENCE_S = 20.0


def require_visible(files: Iterable[str], sources: Sequence[str]) -> None:
    """Refuse to begin where no worker sees a source of a run's files; raises UsageError that names it and the nodes."""
    for source, nodes in unreachable(files, sources).items():
        raise UsageError(
            f"source {source}: no worker sees it (on {', '.join(nodes)}): give a folder that each of their nodes has, "
            "or an http(s):// or root:// address"
        )


def unreachable(files: Iterable[str], sources: Sequence[str]) -> dict[str, list[str]]:
    """Tell which local sources no worker's node has any file of, with the nodes that were asked.

    Nothing is asked where this process's node has workers, and the files; nor of a cluster without nodes yet.
    """
    wanted: dict[str, list[str]] = {}
    for file in files:
        if not is_remote(file):
            source = next((one for one in sources if file.startswith(one)), str(Path(file).parent))
            wanted.setdefault(source, []).append(file)
    nodes = working_nodes() if wanted else []
    here = ray.get_runtime_context().get_node_id()
    if any(node.id == here for node in nodes):
        wanted = _without(wanted, _seen(wanted))
    asked: dict[Any, str] = {}
    if wanted:
        look = ray.remote(_seen)
        for node in nodes:
            if node.id != here:
                place = NodeAffinitySchedulingStrategy(node.id, soft=False)
                asked[look.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(wanted)] = node.name
    waiting = list(asked)
    until = time.monotonic() + PATIENCE_S
    while waiting and wanted:
        done, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
        try:
            wanted = _without(wanted, ray.get(done[0])) if done else {}
        except RayError:
            return {}
    return {source: sorted(node.name for node in nodes) for source in wanted} if nodes else {}


def _seen(wanted: Mapping[str, Sequence[str]]) -> list[str]:
    """Tell which sources have a file here; runs on a node."""
    return [source for source, files in wanted.items() if any(Path(file).exists() for file in files)]


def _without(wanted: Mapping[str, list[str]], seen: Sequence[str]) -> dict[str, list[str]]:
    return {source: files for source, files in wanted.items() if source not in seen}
