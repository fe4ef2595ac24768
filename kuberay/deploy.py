"""What ``hzzray kube`` does with a cluster: bring a deployment up, watch it, take it away."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterable, Sequence

from kuberay import objects, redis
from kuberay.broker import USERS
from kuberay.config import Values
from kuberay.health import KINDS, Part, parts
from kuberay.kubectl import MANAGER, Kubectl, KubeError
from kuberay.parts import MANAGED, Object, thing

Say = Callable[[str], None]

#: What we make, in the order in which it goes: Ray first, as its state is cleaned out of Redis before that goes.
_RAY = ("rayjobs.ray.io", "rayclusters.ray.io")
_REST = (
    "rabbitmqclusters.rabbitmq.com",
    "podmonitors.monitoring.coreos.com",
    "ingresses.networking.k8s.io",
    "jobs.batch",
    "deployments.apps",
    "statefulsets.apps",
    "services",
    "configmaps",
    "poddisruptionbudgets.policy",
    "networkpolicies.networking.k8s.io",
)
_DATA = ("persistentvolumeclaims", "secrets")
_SELECTOR = ",".join(f"{key}={value}" for key, value in MANAGED.items())

_EVERY_S = 2.0


def new_secrets(values: Values) -> list[Object]:
    """Make the Secrets of a deployment, with passwords that nobody knows."""

    def secret(name: str, component: str, content: dict[str, str]) -> Object:
        return thing("Secret", "v1", name, values, component, type="Opaque", stringData=content)

    made = [
        secret(values.broker_name, "broker", {user: secrets.token_urlsafe(24) for user in USERS}),
        secret(f"{values.name}-app", "app", {"password": secrets.token_urlsafe(12)}),  # a person types it
    ]
    if values.ray.fault_tolerance:
        password = secrets.token_hex(24)  # in a configuration file: no quotes, no blanks
        content = {"password": password, "auth.conf": f"requirepass {password}\n"}
        made.append(secret(redis.name(values), "redis", content))
    return made


def check(kubectl: Kubectl, values: Values) -> None:
    """See that a cluster answers, and has what is not ours to make. Raises KubeError naming what is missing."""
    kubectl.read("version")
    needed = {"rayclusters.ray.io": "the KubeRay operator"}
    if values.broker.kind == "operator":
        needed["rabbitmqclusters.rabbitmq.com"] = "RabbitMQ's Cluster Operator (or choose broker.kind: statefulset)"
    if values.metrics.pod_monitor:
        needed["podmonitors.monitoring.coreos.com"] = "the Prometheus Operator (or choose metrics.pod_monitor: false)"
    for name, whose in needed.items():
        if not kubectl.serves(name):
            raise KubeError(f"the cluster lacks {whose}: docs/kuberay.md says how to install it")
    for name, what in _brought(values).items():
        if kubectl.find("secret", name) is None:
            raise KubeError(f"namespace {values.namespace} lacks the Secret {name} ({what}): see docs/kuberay.md")
    if values.data.claim and kubectl.find("persistentvolumeclaim", values.data.claim) is None:
        raise KubeError(
            f"namespace {values.namespace} lacks the PersistentVolumeClaim {values.data.claim} (data.claim)"
        )


def _brought(values: Values) -> dict[str, str]:
    """List the Secrets that a user brings."""
    named = {
        values.broker.tls_secret: "tls.crt, tls.key and ca.crt of the broker",
        values.ingress.tls_secret if values.ingress.host else "": "certificate of the app's host",
        values.ray.auth_secret: "Ray's token, as auth_token",
        **dict.fromkeys(values.image.secrets, "login of the image's registry"),
    }
    return {name: what for name, what in named.items() if name}


def up(kubectl: Kubectl, values: Values, say: Say) -> None:
    """Apply everything; what is there already is changed to what it should be, and passwords stay what they are."""
    space, *rest = objects.deployment(values)
    if kubectl.dry:
        say("# what isn't there yet; passwords are never made anew")
        kubectl.change("create", "--filename", "-", objects=[space, *new_secrets(values)])
        say("# what is there already is changed to what it should be")
    else:
        _namespace(kubectl, space, say)
        check(kubectl, values)
        for secret in new_secrets(values):
            if kubectl.find("secret", secret["metadata"]["name"]) is None:
                kubectl.change("create", "--filename", "-", objects=[secret])
    # The autoscaler writes to the RayCluster too: its count of workers, which it will write again.
    ours = ("--server-side", "--force-conflicts", f"--field-manager={MANAGER}")
    said = kubectl.change("apply", *ours, "--filename", "-", objects=rest, timeout_s=120)
    for line in said.splitlines():
        say(line)


def _namespace(kubectl: Kubectl, space: Object, say: Say) -> None:
    """Make the namespace. One that is somebody else's is used as it is, and outlives us."""
    name = space["metadata"]["name"]
    there = kubectl.find("namespace", name)
    if there is None:
        kubectl.change("create", "--filename", "-", objects=[space])
        say(f"namespace {name} created")
    elif not _is_ours(there):
        say(f"namespace {name} is not ours: its labels stay as they are")


def _is_ours(made: Object) -> bool:
    labels = made["metadata"].get("labels") or {}
    return MANAGED.items() <= labels.items()


def look(kubectl: Kubectl, values: Values) -> list[Part]:
    """See how each part of a deployment is."""
    found, events = (kubectl.read(*question)["items"] for question in questions(values))
    return parts(values, objects.deployment(values), found, events)


def questions(values: Values) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write what kubectl is asked by ``look``: what there is, and the warnings about it."""
    kinds = dict(KINDS)
    if values.broker.kind != "operator":
        del kinds["RabbitmqCluster"]
    return ("get", ",".join(kinds.values())), ("get", "events", "--field-selector", "type=Warning")


def wait(kubectl: Kubectl, values: Values, timeout_s: float, say: Say) -> list[Part]:
    """Wait until all is ready, and say what changes meanwhile. Returns what isn't ready after all."""
    until = time.monotonic() + timeout_s
    before: dict[tuple[str, str], Part] = {}
    while True:
        now = {(part.kind, part.name): part for part in look(kubectl, values)}
        for key, part in now.items():
            if before.get(key) != part:
                say(f"{'ready  ' if part.ready else 'waiting'}  {part.kind} {part.name}: {part.says}")
        before = now
        missing = [part for part in now.values() if not part.ready]
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(_EVERY_S)


def token(kubectl: Kubectl, values: Values) -> str:
    """Read Ray's token. Raises KubeError where there is none."""
    secret = kubectl.find("secret", values.token_secret)
    try:
        return base64.b64decode((secret or {})["data"]["auth_token"]).decode()
    except (KeyError, ValueError) as error:
        raise KubeError(f"no Ray token in Secret {values.token_secret}: is the deployment up?") from error


def down(kubectl: Kubectl, values: Values, say: Say, *, keep_data: bool, timeout_s: float) -> None:
    """Remove what we made, found by its label, and nothing else; with ``keep_data`` runs, queues and passwords stay."""
    part_of = f"{_SELECTOR},app.kubernetes.io/part-of={values.name}"
    common = ("--selector", part_of, "--ignore-not-found", "--wait=true", f"--timeout={timeout_s:g}s")
    for kinds in (_RAY, _REST, *(() if keep_data else (_DATA,))):
        if served := _served(kubectl, kinds):
            for line in kubectl.change("delete", ",".join(served), *common, timeout_s=timeout_s).splitlines():
                say(line)
    for made in objects.priorities(values):  # the whole Kubernetes cluster's, so by name
        for line in kubectl.change(
            "delete", "priorityclass", made["metadata"]["name"], "--ignore-not-found"
        ).splitlines():
            say(line)
    if not keep_data:
        _remove_namespace(kubectl, values, say, timeout_s)


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
    if space is None or not _is_ours(space):
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
