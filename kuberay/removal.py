"""Taking a deployment away: what we made, and nothing else."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Sequence

from kuberay import deployment
from kuberay.common import Object, is_made_by_us, part_of
from kuberay.health import is_ours
from kuberay.kubectl import Kubectl, KubeError, Say
from kuberay.values import Values

#: What we make, in the order in which it goes: Ray first, as its state is cleaned out of Redis before that goes.
_RAY = ("rayjobs.ray.io", "rayclusters.ray.io")
BUDGETS = "poddisruptionbudgets.policy"
_RABBITMQ = "rabbitmqclusters.rabbitmq.com"
_REST = (
    _RABBITMQ,
    "podmonitors.monitoring.coreos.com",
    "ingresses.networking.k8s.io",
    "jobs.batch",
    "deployments.apps",
    "statefulsets.apps",
    "services",
    "configmaps",
    BUDGETS,
    "networkpolicies.networking.k8s.io",
)
_DATA = ("persistentvolumeclaims", "secrets")

# KubeRay holds a cluster with state in Redis back until a pod has cleaned that up, or five minutes have passed.
_CLEANING = "ray.io/gcs-ft-redis-cleanup-finalizer"
_CLEAN_S = 60.0

_EVERY_S = 2.0


def down(kubectl: Kubectl, values: Values, say: Say, *, keep_data: bool, timeout_s: float) -> None:
    """Remove what we made, found by its label, and nothing else, until its pods have gone.

    With ``keep_data`` runs, queues and passwords stay. Raises KubeError naming what is still there after ``timeout_s``.
    """
    until = time.monotonic() + timeout_s
    _remove_ray(kubectl, values, say, keep_data=keep_data, timeout_s=timeout_s)
    rest: tuple[str, ...] = _REST
    if keep_data:
        rest = tuple(kind for kind in _REST if kind != _RABBITMQ)
        _rest_rabbitmq(kubectl, values, say)
    for kinds in (rest, *(() if keep_data else (_DATA,))):
        named = (",".join(_served(kubectl, kinds)), "--selector", part_of(values), "--ignore-not-found")
        waiting = ("--wait=true", f"--timeout={timeout_s:g}s")
        _tell(say, kubectl.change("delete", *named, *waiting, timeout_s=timeout_s))
    for made in deployment.priorities(values):  # the whole Kubernetes cluster's, so by name
        _tell(say, kubectl.change("delete", "priorityclass", made["metadata"]["name"], "--ignore-not-found"))
    if not kubectl.dry:
        _see_them_go(kubectl, values, say, until)
    if not keep_data:
        _remove_namespace(kubectl, values, say, timeout_s)


def _tell(say: Say, said: str) -> None:
    for line in said.splitlines():
        say(line)


def _remove_ray(kubectl: Kubectl, values: Values, say: Say, *, keep_data: bool, timeout_s: float) -> None:
    """Remove Ray's clusters and jobs.

    Their state is cleaned out of Redis by a pod, which may not be able to run. That isn't waited for where Redis goes
    too, and not for long where it stays: the next cluster has a place of its own there.
    """
    served = ",".join(_served(kubectl, _RAY))
    if not served:
        return
    ours = (served, "--selector", part_of(values))
    _tell(say, kubectl.change("delete", *ours, "--ignore-not-found", "--wait=false"))
    if kubectl.dry:
        return
    begun = time.monotonic()
    while left := kubectl.read("get", *ours)["items"]:
        waited = time.monotonic() - begun
        if waited > timeout_s:
            names = ", ".join(f"{made['kind']} {made['metadata']['name']}" for made in left)
            raise KubeError(f"still there after {timeout_s:g} s: {names}; is the KubeRay operator up?")
        for made in left:
            held = made["metadata"].get("finalizers") or []
            if _CLEANING in held and waited >= (_CLEAN_S if keep_data else 0.0):
                others = {"metadata": {"finalizers": [each for each in held if each != _CLEANING]}}
                which = f"{made['kind'].lower()}s.ray.io", made["metadata"]["name"]
                with contextlib.suppress(KubeError):  # it may have gone just now; else it is tried again
                    kubectl.change("patch", *which, "--type=merge", f"--patch={json.dumps(others)}")
                if keep_data:
                    say(f"Redis was not cleaned up within {_CLEAN_S:g} s: what it holds of this cluster stays, unused")
        time.sleep(_EVERY_S)


def _rest_rabbitmq(kubectl: Kubectl, values: Values, say: Say) -> None:
    """Scale what RabbitMQ's operator runs to nothing: it owns the queues' volumes, and takes them with its cluster."""
    if kubectl.dry:
        say(f"# a RabbitmqCluster stays, scaled to nothing: kubectl patch {_RABBITMQ} … replicas: 0")
        return
    if not _served(kubectl, (_RABBITMQ,)):
        return
    for made in kubectl.read("get", _RABBITMQ, "--selector", part_of(values))["items"]:
        name = made["metadata"]["name"]
        # Its nodes would wait for each other, and none stop while it is needed for a majority.
        pods = ("pods", "--selector", f"app.kubernetes.io/name={name}")
        kubectl.change("label", *pods, "skipPreStopChecks=true", "--overwrite")
        kubectl.change("patch", _RABBITMQ, name, "--type=merge", '--patch={"spec": {"replicas": 0}}')
        say(f"RabbitmqCluster {name} stays, scaled to nothing: its volumes, with the queues, would go with it")


def _see_them_go(kubectl: Kubectl, values: Values, say: Say, until: float) -> None:
    """Wait for the pods: a head that drains may take its time, and a volume is free when it is gone."""
    told = False
    while left := [made["metadata"]["name"] for made in kubectl.read("get", "pods")["items"] if is_ours(values, made)]:
        names = ", ".join(left)
        if time.monotonic() > until:
            raise KubeError(f"pods that are still there: {names}")
        if not told:
            say(f"waiting for pods to end: {names}")
            told = True
        time.sleep(_EVERY_S)


def _served(kubectl: Kubectl, kinds: Iterable[str]) -> Sequence[str]:
    """Leave out the kinds of operators that the cluster lacks."""
    if kubectl.dry:
        return tuple(kinds)
    return [
        kind for kind in kinds if not kind.endswith((".ray.io", ".rabbitmq.com", ".coreos.com")) or kubectl.serves(kind)
    ]


def _remove_namespace(kubectl: Kubectl, values: Values, say: Say, timeout_s: float) -> None:
    """Remove the namespace if we made it, and nobody else has something in it."""
    if kubectl.dry:
        say("# if `up` made it, and nobody else has something in it")
        kubectl.change("delete", "namespace", values.namespace)
        return
    space = kubectl.find("namespace", values.namespace)
    if space is None or not is_made_by_us(space):
        return
    kinds = "pods,services,configmaps,secrets,persistentvolumeclaims,deployments,statefulsets,jobs"
    left = [made for made in kubectl.read("get", kinds)["items"] if not _comes_with(made)]
    if left:
        names = ", ".join(f"{made['kind']} {made['metadata']['name']}" for made in left[:3])
        say(f"namespace {values.namespace} stays: {names}{' …' if len(left) > 3 else ''} in it")
        return
    kubectl.change("delete", "namespace", values.namespace, f"--timeout={timeout_s:g}s", timeout_s=timeout_s)
    say(f"namespace {values.namespace} deleted")


def _comes_with(made: Object) -> bool:
    """Tell what each namespace has of itself, or what is on its way out."""
    meta = made["metadata"]
    return (
        meta.get("deletionTimestamp") is not None
        or (made["kind"] == "ConfigMap" and meta["name"] in {"kube-root-ca.crt", "istio-ca-root-cert"})
        or (made["kind"] == "Secret" and made.get("type") == "kubernetes.io/service-account-token")
    )
