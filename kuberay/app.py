"""The app, which shows runs while they go on, and the loader, which publishes one."""

from __future__ import annotations

import hashlib
import json

from kuberay import broker, ray
from kuberay.common import (
    Object,
    analysis_env,
    container,
    data_init,
    data_mounts,
    data_volumes,
    empty,
    env,
    keys,
    mount,
    pod,
    runs_volume,
    selector,
    thing,
    token,
    with_runs,
)
from kuberay.values import RUNS, Values

PORT = 8501

_LOGIN_PATH = "/etc/hzzray/app"

# Scripts of the page come over a WebSocket that stays open: nginx would close it after a minute.
_NGINX = {
    "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
    "nginx.ingress.kubernetes.io/proxy-send-timeout": "3600",
}


def objects(values: Values) -> list[Object]:
    """Make the app's objects."""
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    spec = {"selector": selector(values, "app")["matchLabels"], "ports": ports}
    service = thing("Service", "v1", f"{values.name}-app", values, "app", spec=spec)
    return [_deployment(values), service, *([_ingress(values)] if values.ingress.host else [])]


def _deployment(values: Values) -> Object:
    health = {"httpGet": {"path": "/_stcore/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}
    volumes = [
        empty("tmp", "1Gi"),
        runs_volume(values),
        keys("login", f"{values.name}-app", {"password": "password"}),
        *broker.client_volumes(values, "publisher"),
    ]
    tls = values.ray.tls
    if tls:
        volumes.append({"name": "ray-tls", "secret": {"secretName": f"ray-worker-secret-{values.name}"}})
    app = container(
        values,
        "app",
        [
            "python",
            "-m",
            "app",
            "--server.address=0.0.0.0",
            f"--server.port={PORT}",
            "--server.headless=true",
            "--browser.gatherUsageStats=false",
        ],
        values.app,
        env=env(
            analysis_env("app")
            | {"HZZRAY_ADDRESS": f"ray://{_head_host(values)}:{ray.CLIENT}", "RAY_AUTH_MODE": "token"}
            | {"HZZRAY_APP_PASSWORD_FILE": f"{_LOGIN_PATH}/password"}
            | ({"HZZRAY_CATALOGUE": values.data.catalogue} if values.data.catalogue else {})
            | ({"HZZRAY_APP_HOSTS": values.ingress.host} if values.ingress.host else {})
            | broker.client_env(values, "publisher")
            | (ray.tls_env() if tls else {}),
            token(values),
        ),
        mounts=[
            mount("runs", RUNS),
            mount("login", _LOGIN_PATH, read_only=True),
            *broker.client_mounts(values),
            *([mount("ray-tls", "/etc/ray/tls", read_only=True)] if tls else []),
        ],
        ports=[{"name": "http", "containerPort": PORT}],
        startupProbe=health | {"failureThreshold": 30},
        livenessProbe=health | {"failureThreshold": 6},
        readinessProbe=health | {"failureThreshold": 3},
    )
    template = pod(values, "app", terminationGracePeriodSeconds=30, containers=[app], volumes=volumes)
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # a page's state is one process's
        "selector": selector(values, "app"),
        "template": with_runs(values, template),
    }
    return thing("Deployment", "apps/v1", f"{values.name}-app", values, "app", spec=spec)


def _head_host(values: Values) -> str:
    """Name the head: in full with TLS, as that is what is in its certificate."""
    return f"{values.head_service}.{values.namespace}.svc" + (".cluster.local" if values.ray.tls else "")


def _ingress(values: Values) -> Object:
    ingress = values.ingress
    backend = {"service": {"name": f"{values.name}-app", "port": {"name": "http"}}}
    spec: Object = {
        **({"ingressClassName": ingress.class_name} if ingress.class_name else {}),
        "rules": [{"host": ingress.host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
    }
    if ingress.tls_secret:
        spec["tls"] = [{"hosts": [ingress.host], "secretName": ingress.tls_secret}]
    made = thing("Ingress", "networking.k8s.io/v1", f"{values.name}-app", values, "app", spec=spec)
    made["metadata"]["annotations"] = (_NGINX if ingress.class_name == "nginx" else {}) | ingress.annotations
    return made


def loader(values: Values) -> Object:
    """Make the Job that publishes a run. A Job can't be changed: another spec is another Job."""
    command = ["hzzray", "publish", *values.published().words(published=True)]
    publish = container(
        values,
        "loader",
        command,
        values.bridge,
        env=env(analysis_env("loader") | broker.client_env(values, "publisher") | broker.PATIENT),
        mounts=[*data_mounts(values), *broker.client_mounts(values)],
    )
    template = pod(
        values,
        "loader",
        restartPolicy="Never",
        initContainers=data_init(values, values.bridge),
        containers=[publish],
        volumes=[empty("tmp", "1Gi"), *data_volumes(values), *broker.client_volumes(values, "publisher")],
    )
    spec = {"backoffLimit": 10, "activeDeadlineSeconds": 3600, "ttlSecondsAfterFinished": 86400, "template": template}
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return thing("Job", "batch/v1", f"{values.name}-loader-{digest}", values, "loader", spec=spec)
