"""Pods of manifests as containers of a Docker Engine: what a kubelet makes of a template, and KubeRay of a group.

Taken over from the manifests: command, arguments, environment with Secrets, user, groups, read-only root, capabilities,
privilege escalation, limits of CPU and memory, all volumes and mounts, shared process namespaces, init containers and
sidecars, restarts, and the names that Services give. A field that is neither taken over nor listed as left out fails.
"""

from __future__ import annotations

import copy
import io
import json
import shlex
import tarfile
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kuberay.values import quantity
from tests.support.compose import docker, last_words

Object = dict[str, Any]

# What an engine has no say in, or a test looks at by itself (probes).
_LEFT_OUT = {
    "name",
    "imagePullPolicy",
    "ports",
    "startupProbe",
    "livenessProbe",
    "readinessProbe",
    "terminationMessagePolicy",
}
_TAKEN = {"command", "args", "env", "image", "resources", "securityContext", "volumeMounts", "restartPolicy"}


def run_arguments(pod: Object, container: Object, volumes: Mapping[str, Volume]) -> list[str]:
    """Write what follows ``docker run`` for a pod's container, image and command last.

    Variables from Secrets are named and not said: ``secret_env`` has what is to be in docker's environment.
    """
    assert not container.keys() - _TAKEN - _LEFT_OUT, container.keys()
    everyone, own = pod["spec"]["securityContext"], container["securityContext"]
    assert own["privileged"] is False
    assert own["seccompProfile"] == everyone["seccompProfile"] == {"type": "RuntimeDefault"}  # as it is docker's
    limits = container["resources"]["limits"]
    said = [f"--user={everyone['runAsUser']}:{everyone['runAsGroup']}", f"--group-add={everyone['fsGroup']}"]
    said += ["--read-only"] if own["readOnlyRootFilesystem"] else []
    said += [f"--cap-drop={each}" for each in own["capabilities"]["drop"]]
    said += [] if own["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
    said += [f"--cpus={quantity(limits['cpu']):g}", f"--memory={int(quantity(limits['memory']))}"]
    for variable in container.get("env", []):
        said.append(f"--env={variable['name']}" + (f"={variable['value']}" if "value" in variable else ""))
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        place = f"target={mount['mountPath']}" + (",readonly" if mount.get("readOnly") else "")
        if "subPath" in mount:
            said.append(f"--mount=type=bind,source={volume.path}/{mount['subPath']},{place}")
        else:
            said.append(f"--mount=type=volume,source={volume.name},{place},volume-nocopy")
    first, *rest = container.get("command") or [None]
    said += [f"--entrypoint={first}"] if first else []
    return [*said, container["image"], *rest, *container.get("args", [])]


def secret_env(container: Object, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Look up the variables that a container has from Secrets."""
    places = {each["name"]: each["valueFrom"] for each in container.get("env", []) if "valueFrom" in each}
    found = {name: place["secretKeyRef"] for name, place in places.items()}
    return {name: secrets[place["name"]][place["key"]] for name, place in found.items()}


def service_names(template: Object, services: Iterable[Object]) -> list[str]:
    """List the host names by which Services lead to a pod."""
    labels = template["metadata"]["labels"].items()
    leading = [each["metadata"] for each in services if each["spec"]["selector"].items() <= labels]
    ends = ("", ".{}", ".{}.svc", ".{}.svc.cluster.local")
    return [meta["name"] + end.format(meta["namespace"]) for meta in leading for end in ends]


def by_kuberay(cluster: Object, group: Object, *, head: bool) -> Object:
    """Make a group's pod template as KubeRay 1.7 does: ``ray start``, its variables, labels, the token.

    Left out: the autoscaler's container, which talks to the API server, and the workers' wait for the head.
    """
    name, space = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    template = copy.deepcopy(group["template"])
    template["metadata"]["labels"] |= {"ray.io/cluster": name, "ray.io/node-type": "head" if head else "worker"}
    template["spec"]["restartPolicy"] = "Never"  # with the autoscaler's second version
    ray = template["spec"]["containers"][0]
    service = f"{name}-head-svc.{space}.svc.cluster.local"
    address = "127.0.0.1:6379" if head else f"{service}:6379"
    options = {
        **({"head": None, "no-monitor": None} if head else {"address": address}),
        **group["rayStartParams"],
        "memory": str(int(quantity(ray["resources"]["limits"]["memory"]))),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        "block": None,
    }
    start = shlex.join(
        ["ray", "start", *(f"--{key}" + (f"={value}" if value else "") for key, value in options.items())]
    )
    assert "command" not in ray
    assert "args" not in ray
    ray["command"] = ["/bin/bash", "-lc", "--"]  # with ENABLE_LOGIN_SHELL; without, our image has nothing to lose
    ray["args"] = [f"ulimit -n 65536; {start}"]
    variables = {
        "FQ_RAY_IP": service,
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": cluster["spec"]["authOptions"]["mode"],
        "RAY_CLUSTER_NAME": name,
        "RAY_NODE_TYPE_NAME": "headgroup" if head else group["groupName"],
        "RAY_PORT": "6379",
    }
    token = {"name": cluster["spec"]["authOptions"].get("secretName", name), "key": "auth_token"}
    ray["env"] += [{"name": key, "value": value} for key, value in variables.items()]
    ray["env"].append({"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": token}})
    return template


@dataclass(frozen=True)
class Volume:
    """A volume of the engine, and where its files are on the engine's machine."""

    name: str
    path: str


@dataclass(frozen=True)
class Pod:
    """A pod that runs: its template, and the prefix of its containers' names."""

    name: str
    template: Object

    def passes(self, name: str, which: str) -> bool:
        """Tell whether a container passes one of its probes now."""
        (container,) = [each for each in self.template["spec"]["containers"] if each["name"] == name]
        probe = container[which]
        if "exec" in probe:
            command = f"{shlex.join(probe['exec']['command'])} >/dev/null && echo passed"
            return "passed" in self.exec(name, "sh", "-c", command, check=False)
        (network,) = json.loads(docker("inspect", self.name))[0]["NetworkSettings"]["Networks"].values()
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        url = f"http://{network['IPAddress']}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        try:
            with urllib.request.urlopen(url, timeout=probe["timeoutSeconds"]) as answer:
                return answer.status == 200
        except OSError:
            return False

    def exec(self, container: str, *command: str, check: bool = True) -> str:
        """Run a command in a container; returns what it printed."""
        return docker("exec", f"{self.name}-{container}", *command, check=check)


class Engine:
    """Runs pods on a network of their own, in which Services are names."""

    def __init__(
        self, name: str, image: str, objects: Iterable[Object], secrets: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.name, self.image, self.secrets = name, image, secrets
        everything = list(objects)
        self._services = [each for each in everything if each["kind"] == "Service"]
        self._configs = {each["metadata"]["name"]: each["data"] for each in everything if each["kind"] == "ConfigMap"}
        self._label = f"--label=hzzray-pods={name}"
        docker("network", "create", self._label, name)

    def start(self, name: str, template: Object, claims: Iterable[Object] = ()) -> Pod:
        """Start a pod: what holds its namespaces, its volumes, init containers one after the other, containers."""
        return self._begin(name, template, claims, to_end=False)[0]

    def run(self, name: str, template: Object) -> str:
        """Run a pod of one container to its end; returns what it printed."""
        pod, said = self._begin(name, template, (), to_end=True)
        self.kill(pod)
        return said

    def _begin(self, name: str, template: Object, claims: Iterable[Object], *, to_end: bool) -> tuple[Pod, str]:
        pod = Pod(f"{self.name}-{name}", template)
        spec = template["spec"]
        listed = [*spec["volumes"], *(_claimed(claim, name) for claim in claims)]
        volumes = {each["name"]: self._volume(pod, each) for each in listed}
        everything = [f"--volume={volume.name}:/pod/{key}:nocopy" for key, volume in volumes.items()]
        aliases = [f"--network-alias={each}" for each in service_names(template, self._services)]
        docker("run", "--detach", "--init", self._label, f"--name={pod.name}", f"--hostname={name}", "--ipc=shareable",
               f"--network={self.name}", *aliases, *everything, "--user=65534", "--read-only", self.image,
               "sleep", "infinity")  # fmt: skip
        self._fill(everything, listed, spec["securityContext"]["fsGroup"])
        shared = ["pid"] if spec.get("shareProcessNamespace") else []
        joined = [f"--{which}=container:{pod.name}" for which in ("network", "ipc", *shared)]
        for container in spec.get("initContainers", []):
            self._run(pod, container, volumes, joined, to_end=container.get("restartPolicy") != "Always")
        return pod, "".join(self._run(pod, each, volumes, joined, to_end=to_end) for each in spec["containers"])

    def _run(
        self, pod: Pod, container: Object, volumes: Mapping[str, Volume], joined: list[str], *, to_end: bool
    ) -> str:
        again = container.get("restartPolicy") or pod.template["spec"].get("restartPolicy", "Always")
        how = [] if to_end else ["--detach", f"--restart={'always' if again == 'Always' else 'no'}"]
        return docker("run", *how, self._label, f"--name={pod.name}-{container['name']}", *joined,
                      *run_arguments(pod.template, container, volumes), env=secret_env(container, self.secrets),
                      timeout=300)  # fmt: skip

    def kill(self, pod: Pod) -> None:
        """Kill a pod's containers at once, and forget it."""
        mine = docker("ps", "--all", "--quiet", f"--filter=name=^{pod.name}(-.*)?$").split()
        if running := docker("ps", "--quiet", f"--filter=name=^{pod.name}(-.*)?$").split():
            docker("kill", *running)
        docker("rm", "--force", *mine)

    def check(self) -> None:
        """Fail with its last words if a container has failed, or starts again and again."""
        ids = docker("ps", "--all", "--quiet", f"--filter={self._label.removeprefix('--')}").split()
        for each in json.loads(docker("inspect", *ids)):
            state = each["State"]
            failed = each["RestartCount"] > 4 or (state["Status"] == "exited" and state["ExitCode"] != 0)
            assert not failed, f"{each['Name']}: {last_words(each['Id'])}"

    def _volume(self, pod: Pod, volume: Object) -> Volume:
        kind, body = next((key, value) for key, value in volume.items() if key != "name")
        claimed = kind == "persistentVolumeClaim"
        name = f"{self.name}-{body['claimName']}" if claimed else f"{pod.name}-{volume['name']}"
        options = []
        if body.get("medium") == "Memory":
            options = ["--opt=type=tmpfs", "--opt=device=tmpfs", f"--opt=o=size={int(quantity(body['sizeLimit']))}"]
        docker("volume", "create", self._label, *options, name)
        return Volume(name, docker("volume", "inspect", "--format={{.Mountpoint}}", name).strip())

    def _fill(self, mounts: list[str], volumes: Iterable[Object], group: int) -> None:
        """Give volumes to the pod's group, with what is in Secrets and ConfigMaps, as a kubelet does."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:

            def add(path: str, mode: int, content: str | None = None) -> None:
                entry = tarfile.TarInfo(path)
                entry.mode, entry.gid = mode, group
                data = None if content is None else content.encode()
                entry.type, entry.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
                archive.addfile(entry, None if data is None else io.BytesIO(data))

            for volume in volumes:
                add(volume["name"], 0o2777 if "emptyDir" in volume else 0o2775)
                if "secret" in volume:
                    body = volume["secret"]
                    for item in body["items"]:
                        content = self.secrets[body["secretName"]][item["key"]]
                        add(f"{volume['name']}/{item['path']}", body["defaultMode"], content)
                if "configMap" in volume:
                    for key, content in self._configs[volume["configMap"]["name"]].items():
                        add(f"{volume['name']}/{key}", 0o644, content)
        docker("run", "--rm", "--interactive", self._label, "--user=0", "--network=none", *mounts, self.image,
               "tar", "-xp", "--same-owner", "-C", "/pod", stdin=packed.getvalue())  # fmt: skip

    def end(self) -> None:
        """Remove all of it, the volumes too."""
        mine = f"--filter={self._label.removeprefix('--')}"
        for listed, remove in (
            (("ps", "--all", "--quiet"), ("rm", "--force")),
            (("volume", "ls", "--quiet"), ("volume", "rm", "--force")),
            (("network", "ls", "--quiet"), ("network", "rm")),
        ):
            if found := docker(*listed, mine).split():
                docker(*remove, *found, check=False)


def _claimed(claim: Object, pod: str) -> Object:
    """Make the volume that a StatefulSet's pod has for one of its claim templates."""
    name = claim["metadata"]["name"]
    return {"name": name, "persistentVolumeClaim": {"claimName": f"{name}-{pod}"}}
