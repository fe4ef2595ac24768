"""Who may talk to whom: nobody to anybody, but for what is listed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from kuberay import app, broker, ray, redis
from kuberay.common import Object, broker_selector, selector, thing
from kuberay.values import Values

_DNS = {
    "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
    "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
}

# Between RabbitMQ's nodes: epmd, streams, Erlang's distribution, its command line tools.
_CLUSTERING: list[Object] = [
    {"protocol": "TCP", "port": 4369},
    {"protocol": "TCP", "port": 6000, "endPort": 6500},
    {"protocol": "TCP", "port": 25672},
    {"protocol": "TCP", "port": 35672, "endPort": 35682},
]


def policies(values: Values) -> list[Object]:
    """Make the policies of the deployment's pods. Ports that are forwarded are no matter of theirs."""
    head, worker = selector(values, "head"), selector(values, "worker")
    nodes = {"matchLabels": {"app.kubernetes.io/part-of": values.name}} | _components("head", "worker")
    rabbit = broker_selector(values)
    clients = _ports([broker.AMQPS if values.broker.tls_secret else broker.AMQP])
    api, data = _to_outside(values.network.api_ports), _to_outside(values.network.data_ports)
    prometheus = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": values.metrics.namespace}}}]
    to_head = [_peer(head)]
    made = [
        _policy(
            values,
            "head",
            head,
            ingress=[
                _allow("from", [nodes], []),
                _allow("from", [selector(values, "app")], [ray.CLIENT]),
                _allow("from", [selector(values, "submitter")], [ray.DASHBOARD]),
                {"from": [_kuberay(values)], "ports": _ports([ray.DASHBOARD])},  # it asks how a RayJob is
                {
                    "from": prometheus,
                    "ports": _ports([ray.METRICS, ray.AUTOSCALER_METRICS, ray.DASHBOARD_METRICS]),
                },
            ],
            egress=[
                _DNS,
                _allow("to", [nodes], []),
                {"to": [_peer(rabbit)], "ports": clients + _ports([broker.METRICS, broker.METRICS_TLS])},
                *([_allow("to", [selector(values, "redis")], [redis.PORT])] if values.ray.fault_tolerance else []),
                api,
                data,
            ],
        ),
        _policy(
            values,
            "worker",
            worker,
            ingress=[_allow("from", [nodes], []), {"from": prometheus, "ports": _ports([ray.METRICS])}],
            egress=[_DNS, _allow("to", [nodes], []), data],
        ),
        _policy(
            values,
            "submitter",
            selector(values, "submitter"),
            egress=[_DNS, {"to": to_head, "ports": _ports([ray.DASHBOARD])}],
        ),
        _policy(
            values,
            "broker",
            rabbit,
            ingress=[
                {"from": [_peer(selector(values, name)) for name in ("head", "loader", "app")], "ports": clients},
                # The bridge, beside the head, reads there what the broker uses.
                {"from": [_peer(head), *prometheus], "ports": _ports([broker.METRICS, broker.METRICS_TLS])},
                {"from": [_peer(rabbit)], "ports": _CLUSTERING},
            ],
            egress=[
                _DNS,
                {"to": [_peer(rabbit)], "ports": _CLUSTERING},
                *([api] if values.broker.kind == "operator" else []),  # it finds its nodes there
            ],
        ),
        _policy(
            values,
            "app",
            selector(values, "app"),
            ingress=_from_ingress(values),
            egress=[_DNS, {"to": to_head, "ports": _ports([ray.CLIENT])}, {"to": [_peer(rabbit)], "ports": clients}],
        ),
        _policy(
            values,
            "loader",
            selector(values, "loader"),
            egress=[_DNS, {"to": [_peer(rabbit)], "ports": clients}, data],
        ),
    ]
    if values.ray.fault_tolerance:
        chosen = selector(values, "redis")
        made.append(_policy(values, "redis", chosen, ingress=[_allow("from", [head], [redis.PORT])]))
    return made


def _kuberay(values: Values) -> Object:
    """Select the pods of KubeRay's operator, in its namespace or in any."""
    operator = values.network.kuberay
    space = {"matchLabels": {"kubernetes.io/metadata.name": operator.namespace}} if operator.namespace else {}
    return {"namespaceSelector": space, "podSelector": {"matchLabels": dict(operator.labels)}}


def _components(*names: str) -> Object:
    return {"matchExpressions": [{"key": "app.kubernetes.io/component", "operator": "In", "values": list(names)}]}


def _policy(
    values: Values, component: str, pods: Object, *, ingress: Sequence[Object] = (), egress: Sequence[Object] = ()
) -> Object:
    spec = {
        "podSelector": pods,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": list(ingress),
        "egress": list(egress),
    }
    return thing("NetworkPolicy", "networking.k8s.io/v1", f"{values.name}-{component}", values, component, spec=spec)


def _allow(which: Literal["from", "to"], pods: Iterable[Object], ports: Sequence[int]) -> Object:
    """Allow some pods; no port means all."""
    return {which: [_peer(each) for each in pods]} | ({"ports": _ports(ports)} if ports else {})


def _peer(pods: Object) -> Object:
    return {"podSelector": pods}


def _ports(ports: Iterable[int]) -> list[Object]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _to_outside(ports: Iterable[int]) -> Object:
    """Allow some ports anywhere: neither the API server nor the web has an address that is known here."""
    return {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}], "ports": _ports(ports)}


def _from_ingress(values: Values) -> list[Object]:
    if not values.ingress.host:
        return []
    name = {"kubernetes.io/metadata.name": values.ingress.controller_namespace}
    return [{"from": [{"namespaceSelector": {"matchLabels": name}}], "ports": _ports([app.PORT])}]
