"""What a cluster must have before a deployment can be: operators that answer, and what its user brings."""

from __future__ import annotations

from dataclasses import dataclass

from kuberay import deployment
from kuberay.common import Object
from kuberay.health import state_of_pod
from kuberay.kubectl import APPLY, Kubectl, KubeError, Say
from kuberay.values import Values

_HOW = "docs/kuberay.md says how to install it"


@dataclass(frozen=True, slots=True)
class _Operator:
    """Somebody whose work we ask for: by which kind, by which labels of its pods, and what it can't do without."""

    title: str
    kind: str
    resource: str
    pods: str
    instead: str = ""
    needs: str = ""


def check(kubectl: Kubectl, values: Values, say: Say) -> None:
    """See that a cluster answers, and has what is not ours to make. Raises KubeError naming what is missing."""
    kubectl.read("version")
    operators = _operators(values)
    for operator in operators:
        if not kubectl.serves(operator.resource):
            raise KubeError(f"the cluster lacks {operator.title}{operator.instead}: {_HOW}")
        _see_it_runs(kubectl, operator, say)
    if values.metrics.pod_monitor and not kubectl.serves("podmonitors.monitoring.coreos.com"):
        raise KubeError(f"the cluster lacks the Prometheus Operator (or choose metrics.pod_monitor: false): {_HOW}")
    for name, what in _brought(values).items():
        if kubectl.find("secret", name) is None:
            raise KubeError(f"namespace {values.namespace} lacks the Secret {name} ({what}): see docs/kuberay.md")
    if values.data.claim and kubectl.find("persistentvolumeclaim", values.data.claim) is None:
        raise KubeError(
            f"namespace {values.namespace} lacks the PersistentVolumeClaim {values.data.claim} (data.claim)"
        )
    made = {each["kind"]: each for each in deployment.deployment(values)}
    for operator in operators:
        _see_it_answers(kubectl, operator, made[operator.kind])


def _operators(values: Values) -> list[_Operator]:
    """List whom the deployment needs."""
    kuberay = _Operator("the KubeRay operator", "RayCluster", "rayclusters.ray.io", values.network.kuberay.selector)
    if values.broker.kind != "operator":
        return [kuberay]
    rabbitmq = _Operator(
        "RabbitMQ's Cluster Operator",
        "RabbitmqCluster",
        "rabbitmqclusters.rabbitmq.com",
        "app.kubernetes.io/name=rabbitmq-cluster-operator",
        instead=" (or choose broker.kind: statefulset)",
        needs="certificates.cert-manager.io",
    )
    return [kuberay, rabbitmq]


def _see_it_runs(kubectl: Kubectl, operator: _Operator, say: Say) -> None:
    """Raise KubeError if an operator's pods can be seen, and none is ready: its kinds alone do nothing."""
    told = ("--field-selector", "type=Warning,involvedObject.kind=Pod")
    try:
        pods = kubectl.read("get", "pods", "--all-namespaces", "--selector", operator.pods)["items"]
        events = kubectl.read("get", "events", "--all-namespaces", *told)["items"] if pods else []
    except KubeError:  # this user may not look there: what the API server says will have to do
        return
    states = [(made["metadata"], *state_of_pod(made, events)) for made in pods]
    if not states:
        say(f"no pod of {operator.title} is to be seen ({operator.pods}): without one nothing comes of this")
    elif not any(ready for _, ready, _ in states):
        meta, _, says = states[0]
        pod = f"Pod {meta['name']} of namespace {meta.get('namespace')}: {says}"
        raise KubeError(f"{operator.title} doesn't run: {pod}{_without(kubectl, operator)}")


def _see_it_answers(kubectl: Kubectl, operator: _Operator, made: Object) -> None:
    """Have the API server go through the motions with an operator's object: it asks the webhooks that it would ask."""
    try:
        kubectl.change("apply", *APPLY, "--dry-run=server", "--filename", "-", objects=[made])
    except KubeError as error:
        said = f"{made['kind']} {made['metadata']['name']} is refused: {error}{_without(kubectl, operator)}"
        raise KubeError(said) from error


def _without(kubectl: Kubectl, operator: _Operator) -> str:
    """Tell what an operator lacks."""
    if not operator.needs or kubectl.serves(operator.needs):
        return ""
    return f"; it needs {operator.needs.split('.')[1]}, which the cluster lacks: see docs/kuberay.md"


def _brought(values: Values) -> dict[str, str]:
    """List the Secrets that a user brings."""
    named = {
        values.broker.tls_secret: "tls.crt, tls.key and ca.crt of the broker",
        values.ingress.tls_secret if values.ingress.host else "": "certificate of the app's host",
        values.ray.auth_secret: "Ray's token, as auth_token",
        **dict.fromkeys(values.image.secrets, "login of the image's registry"),
    }
    return {name: what for name, what in named.items() if name}
