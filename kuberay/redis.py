"""Redis, where the state of a Ray cluster is that outlives its head."""

from __future__ import annotations

from kuberay.common import (
    BROKER_USER,
    LAST_WORDS,
    Object,
    container_security,
    empty,
    headless,
    keys,
    labels,
    mount,
    pod,
    resources,
    selector,
    thing,
)
from kuberay.values import Values

PORT = 6379

# The password is in a file of the Secret: on the command line each process of the machine could read it.
_CONFIG = """\
include /etc/hzzray/login/auth.conf
dir /data
port 6379
protected-mode yes
appendonly yes
appendfsync everysec
save ""
"""


def name(values: Values) -> str:
    """Name its pods, service and Secret."""
    return f"{values.name}-redis"


def objects(values: Values) -> list[Object]:
    """Make a Redis of one node on a volume."""
    called = name(values)
    config = thing("ConfigMap", "v1", called, values, "redis", data={"redis.conf": _CONFIG})
    chosen = selector(values, "redis")
    ports = [{"name": "redis", "port": PORT, "targetPort": "redis"}]
    service = thing("Service", "v1", called, values, "redis", spec=headless(chosen["matchLabels"], ports))
    claim: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": values.redis.storage}},
    }
    if values.storage.class_name:
        claim["storageClassName"] = values.storage.class_name
    check = {"tcpSocket": {"port": "redis"}, "periodSeconds": 10, "failureThreshold": 6}
    redis = {
        "name": "redis",
        "image": values.redis.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["redis-server", "/etc/hzzray/redis/redis.conf"],
        "ports": [{"name": "redis", "containerPort": PORT}],
        "resources": resources(values.redis),
        "securityContext": container_security(),
        **LAST_WORDS,
        "livenessProbe": check,
        "readinessProbe": check,
        "volumeMounts": [
            mount("tmp", "/tmp"),  # noqa: S108
            mount("data", "/data"),
            mount("config", "/etc/hzzray/redis", read_only=True),
            mount("login", "/etc/hzzray/login", read_only=True),
        ],
    }
    template = pod(
        values,
        "redis",
        user=BROKER_USER,
        terminationGracePeriodSeconds=30,
        containers=[redis],
        volumes=[
            empty("tmp", "64Mi"),
            {"name": "config", "configMap": {"name": called}},
            keys("login", called, {"auth.conf": "auth.conf"}),
        ],
    )
    spec = {
        "serviceName": called,
        "replicas": 1,
        "selector": chosen,
        "template": template,
        "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": labels(values, "redis")}, "spec": claim}],
    }
    return [config, service, thing("StatefulSet", "apps/v1", called, values, "redis", spec=spec)]
