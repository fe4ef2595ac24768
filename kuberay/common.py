"""What manifests have in common: labels, security contexts, containers, volumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from kuberay.values import DATA, RUNS, Amount, Sized, Values

#: A manifest, or a part of one.
Object = dict[str, Any]

#: What we made, whatever it is called: ``down`` looks for it.
MANAGED = {"app.kubernetes.io/managed-by": "hzzray"}

#: User and group of the image, and those of RabbitMQ's and Redis'.
USER, BROKER_USER = 1000, 999

#: Why a container ended is kept with its state: what it said last, unless it leaves word itself.
LAST_WORDS = {"terminationMessagePolicy": "FallbackToLogsOnError"}

_PART_OF = "app.kubernetes.io/part-of"
_COMPONENT = "app.kubernetes.io/component"
_USES_RUNS = "hzzray-runs"


def labels(values: Values, component: str) -> dict[str, str]:
    """Label a pod. Never ``app.kubernetes.io/name`` or ``created-by``: KubeRay finds the head by its own."""
    return MANAGED | {_PART_OF: values.name, _COMPONENT: component}


def part_of(values: Values) -> str:
    """Write what kubectl selects all objects of a deployment by."""
    return ",".join(f"{key}={value}" for key, value in (MANAGED | {_PART_OF: values.name}).items())


def is_made_by_us(made: Object) -> bool:
    """Tell whether an object was made here, and may go."""
    return MANAGED.items() <= (made["metadata"].get("labels") or {}).items()


def selector(values: Values, component: str) -> Object:
    """Select the pods of one component."""
    return {"matchLabels": {_PART_OF: values.name, _COMPONENT: component}}


def ray_selector(values: Values, node: Literal["head", "worker"] | None = None) -> Object:
    """Select the cluster's pods, by the labels that KubeRay gives them."""
    return {"matchLabels": {"ray.io/cluster": values.name} | ({"ray.io/node-type": node} if node else {})}


def broker_selector(values: Values) -> Object:
    """Select the broker's pods, whichever kind it is: RabbitMQ's operator labels them so."""
    return {"matchLabels": {"app.kubernetes.io/name": values.broker_name}}


def thing(kind: str, version: str, name: str, values: Values, component: str, **body: Any) -> Object:  # noqa: ANN401
    """Make an object of the deployment's namespace."""
    meta = {"name": name, "namespace": values.namespace, "labels": labels(values, component)}
    return {"apiVersion": version, "kind": kind, "metadata": meta, **body}


def headless(chosen: Mapping[str, str], ports: Sequence[Object]) -> Object:
    """Make the spec of a Service that is a name for a pod's own address.

    The name is known before the pod is ready: who asks for one that isn't would be told so for minutes, from a cache.
    """
    return {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": dict(chosen),
        "ports": list(ports),
    }


def pod_security(user: int = USER) -> Object:
    """Make a pod's security context as the Pod Security Standard "restricted" wants it."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",  # not each file at each start; Erlang's cookie must stay its owner's
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    """Make a container's security context: no rights, nothing written to the image."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def resources(sized: Sized) -> Object:
    """Make what a container is promised, and may use at the most."""
    return {"requests": _amount(sized.requests), "limits": _amount(sized.limits)}


def _amount(amount: Amount) -> dict[str, str]:
    return {"cpu": amount.cpu, "memory": amount.memory}


def env(variables: Mapping[str, str], secrets: Mapping[str, tuple[str, str]] | None = None) -> list[Object]:
    """Make a container's environment: plain values, and those from a Secret's key."""
    plain: list[Object] = [{"name": name, "value": value} for name, value in variables.items()]
    return plain + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, (secret, key) in (secrets or {}).items()
    ]


def token(values: Values) -> dict[str, tuple[str, str]]:
    """Where a container that KubeRay doesn't manage finds Ray's token."""
    return {"RAY_AUTH_TOKEN": (values.token_secret, "auth_token")}


def container(
    values: Values,
    name: str,
    command: Sequence[str],
    sized: Sized,
    *,
    env: Sequence[Object] = (),
    mounts: Iterable[Object] = (),
    **rest: Any,  # noqa: ANN401
) -> Object:
    """Make a container of our image, without rights, with a /tmp of its own to write to."""
    return {
        "name": name,
        "image": values.image.reference,
        "imagePullPolicy": values.image.pull,
        **({"command": list(command)} if command else {}),
        "env": list(env),
        "resources": resources(sized),
        "securityContext": container_security(),
        **LAST_WORDS,
        "volumeMounts": [mount("tmp", "/tmp"), *mounts],  # noqa: S108 (a volume of the pod's own)
        **rest,
    }


def mount(volume: str, path: str, *, read_only: bool = False) -> Object:
    """Make a volume's place in a container."""
    return {"name": volume, "mountPath": path} | ({"readOnly": True} if read_only else {})


def empty(name: str, size: str | None = None, *, memory: bool = False) -> Object:
    """Make a volume that lives as long as its pod."""
    body = ({"medium": "Memory"} if memory else {}) | ({"sizeLimit": size} if size else {})
    return {"name": name, "emptyDir": body}


def keys(name: str, secret: str, items: Mapping[str, str]) -> Object:
    """Make a volume of some of a Secret's keys, by the file names they get."""
    chosen = [{"key": key, "path": path} for key, path in items.items()]
    # The group's, as the volume's owner is root.
    return {"name": name, "secret": {"secretName": secret, "items": chosen, "defaultMode": 0o440}}


def pod(values: Values, component: str, *, user: int = USER, annotations: Object | None = None, **spec: Any) -> Object:  # noqa: ANN401
    """Make a pod template. It has no business with the Kubernetes API unless its spec says so."""
    meta: Object = {"labels": labels(values, component)}
    if annotations:
        meta["annotations"] = annotations
    body = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": priority(values, "workers" if component in ("worker", "loader", "submitter") else "core"),
        "securityContext": pod_security(user),
        **({"imagePullSecrets": [{"name": name} for name in values.image.secrets]} if values.image.secrets else {}),
        **spec,
    }
    return {"metadata": meta, "spec": body}


def priority(values: Values, which: Literal["core", "workers"]) -> str:
    """Name a priority class; those are the whole Kubernetes cluster's, so the namespace is in it."""
    return "-".join(dict.fromkeys((values.namespace, values.name, which)))


def spread(selector: Object, *keys: str, strict: bool = False) -> list[Object]:
    """Spread a selection of pods over machines, or over what else ``keys`` name."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "DoNotSchedule" if strict else "ScheduleAnyway",
            "labelSelector": selector,
        }
        for key in keys
    ]


MACHINE, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"


def runs_volume(values: Values) -> Object:
    """Make the volume of the runs."""
    return {"name": "runs", "persistentVolumeClaim": {"claimName": f"{values.name}-runs"}}


def with_runs(values: Values, template: Object) -> Object:
    """Bind a pod that mounts the runs to the machine of the others that do.

    Ledgers are SQLite's: their locks, and the memory that their readers share, are one machine's. The first of these
    pods goes anywhere: it matches its own rule.
    """
    marked = {_USES_RUNS: values.name}
    template["metadata"]["labels"] |= marked
    rule = {"labelSelector": {"matchLabels": marked}, "topologyKey": MACHINE}
    template["spec"]["affinity"] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}}
    return template


def data_volumes(values: Values) -> list[Object]:
    """Make the volume of the data, if containers need one."""
    if values.data.claim:
        return [{"name": "data", "persistentVolumeClaim": {"claimName": values.data.claim, "readOnly": True}}]
    return [empty("data", "1Gi")] if values.data.is_simulated else []


def data_mounts(values: Values) -> list[Object]:
    """Make the data's place in a container."""
    return [mount("data", DATA, read_only=True)] if data_volumes(values) else []


def data_init(values: Values, sized: Sized) -> list[Object]:
    """Make what comes before a container that needs toy files: they are the same in each pod."""
    if not values.data.is_simulated:
        return []
    command = ["hzzray", "toy", DATA, "--events", str(values.data.toy_events)]
    return [container(values, "toy-data", command, sized, mounts=[mount("data", DATA)])]


def analysis_env(service: str = "") -> dict[str, str]:
    """Make the environment of all that runs hzzray; a ``service`` tells what it uses under that name."""
    return ({"HZZRAY_SERVICE": service} if service else {}) | {
        "HOME": "/tmp",  # noqa: S108 (a volume of the pod's own)
        "HZZRAY_ENVIRONMENT": "kuberay",
        "HZZRAY_RUNS": RUNS,
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
