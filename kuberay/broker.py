"""The broker, as a small StatefulSet or by RabbitMQ's Cluster Operator, and how to be a client of it."""

from __future__ import annotations

from kuberay.common import (
    BROKER_USER,
    LAST_WORDS,
    MACHINE,
    ZONE,
    Object,
    broker_selector,
    container,
    container_security,
    empty,
    env,
    headless,
    keys,
    labels,
    mount,
    pod,
    priority,
    resources,
    spread,
    thing,
)
from kuberay.values import Values

AMQP, AMQPS, MANAGEMENT, MANAGEMENT_TLS, METRICS, METRICS_TLS = 5672, 5671, 15672, 15671, 15692, 15691

#: Users of the broker, each with the least it needs; their passwords are the Secret's keys.
USERS = ("admin", "publisher", "bridge")

_LOGIN_PATH, _AUTHORITY_PATH = "/etc/hzzray/broker", "/etc/hzzray/authority"
_DEFINITIONS_PATH, _PASSWORDS_PATH = "/etc/hzzray/definitions", "/etc/hzzray/passwords"
_CERTIFICATE_PATH = "/etc/hzzray/certificate"

#: For what runs unattended: the broker's image may have to be fetched first. It is said meanwhile what is waited for.
PATIENT = {"HZZRAY_BROKER_WAIT": "600"}

_CONFIG = f"""\
load_definitions = {_DEFINITIONS_PATH}/definitions.json
# No task takes two hours; the default of half an hour would take messages from bridges that wait for machines.
consumer_timeout = 7200000
vm_memory_high_watermark.relative = 0.6
disk_free_limit.absolute = 200MB
# An announcement of a run carries its whole plan.
max_message_size = 16777216
collect_statistics_interval = 5000
"""


def client_env(values: Values, user: str) -> dict[str, str]:
    """Make the environment of a container that talks to the broker."""
    scheme, port = ("amqps", AMQPS) if values.broker.tls_secret else ("amqp", AMQP)
    authority = {"HZZRAY_BROKER_CA": f"{_AUTHORITY_PATH}/ca.crt"} if values.broker.tls_secret else {}
    host = f"{values.broker_name}.{values.namespace}.svc"
    # The Cluster Operator gives metrics by TLS where the broker has it; ours give them plain, as clients expect.
    is_tls = values.broker.kind == "operator" and values.broker.tls_secret
    metrics = {"HZZRAY_BROKER_METRICS": f"https://{host}:{METRICS_TLS}"} if is_tls and user == "bridge" else {}
    return {
        "HZZRAY_BROKER": f"{scheme}://{user}@{host}:{port}",
        "HZZRAY_BROKER_PASSWORD_FILE": f"{_LOGIN_PATH}/password",
        **authority,
        **metrics,
    }


def client_mounts(values: Values) -> list[Object]:
    """Make the places of a client's password and of the authority that it trusts."""
    mounts = [mount("broker-login", _LOGIN_PATH, read_only=True)]
    return mounts + ([mount("broker-authority", _AUTHORITY_PATH, read_only=True)] if values.broker.tls_secret else [])


def client_volumes(values: Values, user: str) -> list[Object]:
    """Make the volumes of ``client_mounts``: one user's password alone."""
    volumes = [keys("broker-login", values.broker_name, {user: "password"})]
    if values.broker.tls_secret:
        volumes.append(keys("broker-authority", values.broker.tls_secret, {"ca.crt": "ca.crt"}))
    return volumes


def objects(values: Values) -> list[Object]:
    """Make the broker's objects."""
    if values.broker.kind == "operator":
        several = values.broker.nodes > 1
        return [_by_operator(values), *([_disruption_budget(values)] if several else [])]
    return [_config(values), _service(values), _statefulset(values)]


def _define(values: Values) -> Object:
    """Make what writes the broker's definitions, with its users, before it starts."""
    return container(
        values,
        "definitions",
        ["hzzray", "topology", "definitions", "--output", f"{_DEFINITIONS_PATH}/definitions.json"],
        values.bridge,
        env=env(
            {"HOME": "/tmp"}  # noqa: S108
            | {f"HZZRAY_{user.upper()}_PASSWORD_FILE": f"{_PASSWORDS_PATH}/{user}" for user in USERS}
        ),
        mounts=[mount("definitions", _DEFINITIONS_PATH), mount("passwords", _PASSWORDS_PATH, read_only=True)],
    )


def _definition_volumes(values: Values) -> list[Object]:
    passwords = keys("passwords", values.broker_name, {user: user for user in USERS})
    return [empty("definitions", "8Mi", memory=True), passwords]


def _config(values: Values) -> Object:
    config = _CONFIG
    if values.broker.tls_secret:
        config += f"""\
listeners.tcp = none
listeners.ssl.default = {AMQPS}
ssl_options.cacertfile = {_CERTIFICATE_PATH}/ca.crt
ssl_options.certfile = {_CERTIFICATE_PATH}/tls.crt
ssl_options.keyfile = {_CERTIFICATE_PATH}/tls.key
management.ssl.port = {MANAGEMENT_TLS}
management.ssl.cacertfile = {_CERTIFICATE_PATH}/ca.crt
management.ssl.certfile = {_CERTIFICATE_PATH}/tls.crt
management.ssl.keyfile = {_CERTIFICATE_PATH}/tls.key
"""
    data = {"hzzray.conf": config, "enabled_plugins": "[rabbitmq_management,rabbitmq_prometheus].\n"}
    return thing("ConfigMap", "v1", values.broker_name, values, "broker", data=data)


def _ports(values: Values) -> dict[str, int]:
    if values.broker.tls_secret:
        return {"amqps": AMQPS, "management-tls": MANAGEMENT_TLS, "prometheus": METRICS}
    return {"amqp": AMQP, "management": MANAGEMENT, "prometheus": METRICS}


def _service(values: Values) -> Object:
    ports = [{"name": name, "port": port, "targetPort": name} for name, port in _ports(values).items()]
    spec = headless(broker_selector(values)["matchLabels"], ports)
    return thing("Service", "v1", values.broker_name, values, "broker", spec=spec)


def _statefulset(values: Values) -> Object:
    broker = values.broker
    rabbitmq: Object = {
        "name": "rabbitmq",
        "image": broker.image,
        "imagePullPolicy": "IfNotPresent",
        "env": env({"RABBITMQ_ENABLED_PLUGINS_FILE": "/etc/hzzray/rabbitmq/enabled_plugins"}),
        "ports": [{"name": name, "containerPort": port} for name, port in _ports(values).items()],
        "resources": resources(broker),
        "securityContext": container_security(),
        **LAST_WORDS,
        "startupProbe": _probe("check_running", every=5, failures=60),
        "livenessProbe": _probe("ping", every=30, failures=4),
        "readinessProbe": _probe("check_port_connectivity", every=15, failures=3),
        "volumeMounts": [
            mount("tmp", "/tmp"),  # noqa: S108
            # Its cookie, which is to be its own alone, is not on the volume whose files are the group's.
            mount("home", "/var/lib/rabbitmq"),
            mount("data", "/var/lib/rabbitmq/mnesia"),
            mount("config", "/etc/hzzray/rabbitmq", read_only=True),
            mount("config", "/etc/rabbitmq/conf.d/90-hzzray.conf", read_only=True) | {"subPath": "hzzray.conf"},
            mount("definitions", _DEFINITIONS_PATH, read_only=True),
        ],
    }
    volumes = [
        empty("tmp", "256Mi"),
        empty("home", "64Mi"),
        {"name": "config", "configMap": {"name": values.broker_name}},
        *_definition_volumes(values),
    ]
    if broker.tls_secret:
        rabbitmq["volumeMounts"].append(mount("certificate", _CERTIFICATE_PATH, read_only=True))
        names = {name: name for name in ("tls.crt", "tls.key", "ca.crt")}
        volumes.append(keys("certificate", broker.tls_secret, names))
    template = pod(
        values,
        "broker",
        user=BROKER_USER,
        annotations={"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS)},
        terminationGracePeriodSeconds=90,
        initContainers=[_define(values)],
        containers=[rabbitmq],
        volumes=volumes,
    )
    template["metadata"]["labels"] |= broker_selector(values)["matchLabels"]
    claim_spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": broker.storage}}}
    if values.storage.class_name:
        claim_spec["storageClassName"] = values.storage.class_name
    claim = {"metadata": {"name": "data", "labels": labels(values, "broker")}, "spec": claim_spec}
    spec = {
        "serviceName": values.broker_name,
        "replicas": 1,
        "selector": broker_selector(values),
        "template": template,
        "volumeClaimTemplates": [claim],
    }
    return thing("StatefulSet", "apps/v1", values.broker_name, values, "broker", spec=spec)


def _probe(check: str, *, every: int, failures: int) -> Object:
    command = ["rabbitmq-diagnostics", "--quiet", check]
    return {"exec": {"command": command}, "periodSeconds": every, "timeoutSeconds": 15, "failureThreshold": failures}


def _by_operator(values: Values) -> Object:
    """Make the Cluster Operator's object: quorum queues on three nodes, each on a machine of its own."""
    broker = values.broker
    persistence = {"storage": broker.storage}
    if values.storage.class_name:
        persistence["storageClassName"] = values.storage.class_name
    rabbitmq = {
        "name": "rabbitmq",
        **LAST_WORDS,
        "volumeMounts": [mount("definitions", _DEFINITIONS_PATH, read_only=True)],
    }
    template = {
        "spec": {
            "priorityClassName": priority(values, "core"),
            "initContainers": [_define(values)],
            "containers": [rabbitmq],
            "volumes": [empty("tmp", "256Mi"), *_definition_volumes(values)],
            "topologySpreadConstraints": [
                *spread(broker_selector(values), MACHINE, strict=True),
                *spread(broker_selector(values), ZONE),
            ],
        }
    }
    spec: Object = {
        "image": broker.image,
        "replicas": broker.nodes,
        "resources": resources(broker),
        "persistence": persistence,
        "terminationGracePeriodSeconds": 3600,
        "service": {"type": "ClusterIP"},
        "rabbitmq": {"additionalConfig": _CONFIG},
        "override": {"statefulSet": {"spec": {"template": template}}},
    }
    if values.image.secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in values.image.secrets]
    if broker.tls_secret:
        spec["tls"] = {"secretName": broker.tls_secret, "disableNonTLSListeners": True}
    return thing("RabbitmqCluster", "rabbitmq.com/v1beta1", values.broker_name, values, "broker", spec=spec)


def monitor(values: Values) -> Object:
    """Make the Prometheus Operator's PodMonitor: queue depths are there. The Cluster Operator gives them by TLS."""
    endpoint: Object = {"port": "prometheus"}
    if values.broker.kind == "operator" and values.broker.tls_secret:
        authority = {"secret": {"name": values.broker.tls_secret, "key": "ca.crt"}}
        endpoint = {
            "port": "prometheus-tls",
            "scheme": "https",
            "tlsConfig": {"ca": authority, "serverName": values.broker_name},
        }
    spec = {"selector": broker_selector(values), "podMetricsEndpoints": [endpoint]}
    return thing("PodMonitor", "monitoring.coreos.com/v1", values.broker_name, values, "broker", spec=spec)


def _disruption_budget(values: Values) -> Object:
    """Keep a majority of the broker's nodes.

    What there is one of has no budget: it would keep a machine from ever being drained, and nothing is lost with it.
    """
    spec = {
        "minAvailable": values.broker.nodes // 2 + 1,
        "selector": broker_selector(values),
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return thing("PodDisruptionBudget", "policy/v1", values.broker_name, values, "broker", spec=spec)
