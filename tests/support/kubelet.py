"""Containers of manifests as processes of this machine: their commands, their environment, their volumes as folders.

What isn't a container here: no image (commands are those of this environment), no limits, no network, no user.
Paths of volumes, and addresses that are somebody else's, are replaced by those here, word by word.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

Object = dict[str, Any]


class Kubelet:
    """Runs containers of pods. ``replaced`` says what stands here for what is in the manifests."""

    def __init__(self, folder: Path, objects: list[Object], secrets: list[Object], replaced: Mapping[str, str]) -> None:
        self.folder = folder
        self._configs = {made["metadata"]["name"]: made["data"] for made in objects if made["kind"] == "ConfigMap"}
        self._secrets = {made["metadata"]["name"]: made["stringData"] for made in secrets}
        self.replaced = dict(replaced)
        self.processes: list[subprocess.Popen[bytes]] = []

    def secret(self, name: str, key: str) -> str:
        """What a Secret holds."""
        return self._secrets[name][key]

    def volume(self, pod: Object, name: str) -> Path:
        """Lay a pod's volume out as a folder; a claim is one folder for all pods."""
        (spec,) = [each for each in pod["spec"]["volumes"] if each["name"] == name]
        kind, body = next((key, value) for key, value in spec.items() if key != "name")
        if kind == "persistentVolumeClaim":
            place = self.folder / body["claimName"]
        else:
            place = self.folder / f"{id(pod):x}" / name
        place.mkdir(parents=True, exist_ok=True)
        if kind == "secret":
            for item in body["items"]:
                (place / item["path"]).write_text(self._secrets[body["secretName"]][item["key"]])
        if kind == "configMap":
            for key, text in self._configs[body["name"]].items():
                (place / key).write_text(text)
        return place

    def words(self, pod: Object, container: Object, *words: str) -> list[str]:
        """Replace paths of the container's volumes, and what else is elsewhere here."""
        places = {
            mount["mountPath"]: str(self.volume(pod, mount["name"]))
            for mount in container["volumeMounts"]
            if "subPath" not in mount and mount["name"] in {each["name"] for each in pod["spec"]["volumes"]}
        }
        known = places | self.replaced
        longest = sorted(known, key=len, reverse=True)
        # A path is the whole of one, a host comes after // or @.
        whole = {True: r"(?<![\w/])", False: r"(?<!\w)"}
        pattern = re.compile("|".join(whole[each[0] == "/"] + re.escape(each) + r"(?!\w)" for each in longest))
        return [pattern.sub(lambda found: known[found[0]], word) for word in words]

    def environment(self, pod: Object, container: Object) -> dict[str, str]:
        """Make a container's environment: this one's path, and what the manifest says."""
        kept = {key: os.environ[key] for key in ("PYTHONPATH", "HZZRAY_CACHE", "LANG") if key in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        given = {}
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                place = variable["valueFrom"]["secretKeyRef"]
                given[variable["name"]] = self._secrets[place["name"]][place["key"]]
            else:
                (given[variable["name"]],) = self.words(pod, container, variable["value"])
        # Here all of Ray is on 127.0.0.1, which it else takes for the machine's address.
        return {"PATH": path, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **kept, **given}

    def run(self, pod: Object, container: Object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return subprocess.run(
            self.words(pod, container, *container["command"]), env=self.environment(pod, container),
            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def start(self, pod: Object, container: Object) -> subprocess.Popen[bytes]:
        """Start a container; what it says is in ``NAME.log``."""
        with (self.folder / f"{container['name']}.log").open("ab") as log:
            process = subprocess.Popen(
                self.words(pod, container, *container["command"]), env=self.environment(pod, container),
                cwd=Path(__file__).parents[2], stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a container: all its processes, at once."""
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        for each in family:
            each.kill()
        process.wait()
        psutil.wait_procs(family, timeout=5)

    def log(self, name: str) -> str:
        """What a container has said."""
        return (self.folder / f"{name}.log").read_text()

    def end(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)


def ray_start(group: Object, *, head: bool) -> list[str]:
    """Write the options of ``ray start`` of a head or worker group, as KubeRay does."""
    return ["--head"] * head + [f"--{key}={value}" for key, value in sorted(group["rayStartParams"].items())]
