"""Ray nodes that come and go: Ray's real autoscaler, and a provider that starts nodes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ray_head import Head, free_ports, ray_head

NODES = {
    "cluster_name": "test",
    "max_workers": 3,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 3,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        # Without it one of two that are asked for together never comes, and the autoscaler waits 600 s for it.
        "launch_multiple": True,
    },
    "auth": {},
    **{key: {} for key in ("file_mounts", "head_node", "worker_nodes")},
    **{key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")},
    **{f"{who}_{what}_commands": [] for who in ("head", "worker") for what in ("setup", "start_ray")},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": {}},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 80_000_000},
            "min_workers": 0,
            "max_workers": 3,
            "node_config": {},
        },
    },
}

# Prints the number of live nodes with CPU slots whenever it changes.
COUNT_NODES = """
import time
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
before = None
while True:
    number = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    if number != before:
        print(number, flush=True)
    before = number
    time.sleep(0.5)
"""


def ray_head_of_nodes(folder: Path, *options: str, env: dict[str, str] | None = None):
    """A head without slots whose autoscaler starts nodes of one slot on this machine."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    (port,) = free_ports(1)
    config = NODES | {"provider": NODES["provider"] | {"gcs_address": f"127.0.0.1:{port}"}}
    path = folder / "nodes.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    return ray_head(
        "--num-cpus=0",
        f"--autoscaling-config={path}",
        *options,
        port=port,
        # The autoscaler knows its head by what the provider calls it.
        env={
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            **(env or {}),
        },
    )


class NodeCounts:
    """How many nodes with slots there were, one number after the other; ``changed`` is notified at each."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._changed = threading.Condition()

    def add(self, number: int) -> None:
        """Note another number."""
        with self._changed:
            self.seen.append(number)
            self._changed.notify_all()

    def wait_for(self, number: int, within: float = 90.0, *, after: int = 0) -> int:
        """Wait until so many are seen, or more, after the first ``after`` numbers; returns how many came until then."""
        with self._changed:
            assert self._changed.wait_for(lambda: max(self.seen[after:], default=-1) >= number, within), self.seen
            return next(at for at, seen in enumerate(self.seen) if at >= after and seen >= number) + 1

    def wait_for_last(self, number: int, within: float = 90.0) -> int:
        """Wait until that is how many there are; returns how many numbers had been seen by then."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.seen[-1:] == [number], within), self.seen
            return len(self.seen)


@contextmanager
def node_counts(head: Head) -> Iterator[NodeCounts]:
    """Watch a cluster's nodes with slots for a while."""
    counts = NodeCounts()
    watch = subprocess.Popen([sys.executable, "-c", COUNT_NODES], env=head.env, stdout=subprocess.PIPE, text=True)

    def note() -> None:
        for line in watch.stdout:
            if line.strip().isdigit():  # Ray says things there too
                counts.add(int(line))

    reader = threading.Thread(target=note)
    reader.start()
    try:
        yield counts
    finally:
        watch.kill()
        watch.wait()
        reader.join()
        watch.stdout.close()
