"""The Ray cluster, with the bridge beside its head, and the RayJobs."""

from __future__ import annotations

import shlex

from hzzray.runs.request import RunRequest
from kuberay import broker, redis
from kuberay.common import (
    MACHINE,
    ZONE,
    Object,
    analysis_env,
    container,
    container_security,
    data_init,
    data_mounts,
    data_volumes,
    empty,
    env,
    mount,
    pod,
    ray_selector,
    resources,
    runs_volume,
    selector,
    spread,
    thing,
    token,
    with_runs,
)
from kuberay.values import RUNS, Values, quantity

GCS, DASHBOARD, CLIENT, METRICS, AUTOSCALER_METRICS, DASHBOARD_METRICS = 6379, 8265, 10001, 8080, 44217, 44227

# Volumes by KubeRay's names: it adds them where they are missing, but not to the bridge.
_LOGS, _LOGS_PATH = "ray-logs", "/tmp/ray"  # noqa: S108 (a volume of the pod's own)
_SHM, _SHM_PATH = "shared-mem", "/dev/shm"  # noqa: S108
_TLS, _TLS_PATH = "ray-tls", "/etc/ray/tls"

# A job that is asked to stop drains in that time; Ray's own default is three seconds.
_STOP_S = 60

# The bridge starts before the head's container does. Where there is no head (KubeRay copies the pod to clean Redis up),
# it waits until the pod ends.
_BRIDGE = """\
until ray health-check --address 127.0.0.1:6379 >/dev/null 2>&1; do sleep 2; done
exec hzzray bridge "$@"
"""


def cluster(values: Values) -> Object:
    """Make the standing cluster: a head, the bridge, workers by demand."""
    spec = _spec(values, bridge=True)
    if values.ray.fault_tolerance:
        password = {"valueFrom": {"secretKeyRef": {"name": redis.name(values), "key": "password"}}}
        address = f"{redis.name(values)}:{redis.PORT}"
        spec["gcsFaultToleranceOptions"] = {"backend": "redis", "redisAddress": address, "redisPassword": password}
    spec["upgradeStrategy"] = {"type": "Recreate"}  # so that a new image or size reaches the pods
    return thing("RayCluster", "ray.io/v1", values.name, values, "ray", spec=spec)


def batch(values: Values) -> Object:
    """Make a RayJob with a cluster of its own, which goes when the run is done. The run's folder stays."""
    job = values.job
    spec = {
        "submissionMode": "K8sJobMode",
        "entrypoint": entrypoint(values, job.run_id),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.keep_s,
        "activeDeadlineSeconds": job.deadline_s,
        "backoffLimit": 2,  # each try has a new cluster, and goes on with the same run
        "submitterConfig": {"backoffLimit": 3},
        "submitterPodTemplate": _submitter(values),
        "rayClusterSpec": _spec(values, bridge=False),
    }
    return thing("RayJob", "ray.io/v1", f"{values.name}-batch", values, "job", spec=spec)


def standing(values: Values) -> Object:
    """Make a RayJob that the standing cluster does."""
    job = values.job
    spec = {
        "submissionMode": "K8sJobMode",
        "entrypoint": entrypoint(values, f"{job.run_id}-standing"),
        "clusterSelector": {"ray.io/cluster": values.name},
        "activeDeadlineSeconds": job.deadline_s,
        "submitterConfig": {"backoffLimit": 3},
        "submitterPodTemplate": _submitter(values),
    }
    return thing("RayJob", "ray.io/v1", f"{values.name}-standing", values, "job", spec=spec)


def entrypoint(values: Values, run_id: str) -> str:
    """Write the command line of a run that is a job of the cluster."""
    return shlex.join(["hzzray", "run", *values.job_request(run_id).words()])


def _spec(values: Values, *, bridge: bool) -> Object:
    ray, workers = values.ray, values.workers
    spec: Object = {
        "rayVersion": ray.version,
        "authOptions": {"mode": "token"} | ({"secretName": ray.auth_secret} if ray.auth_secret else {}),
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": ray.idle_timeout_s,
            "imagePullPolicy": values.image.pull,
            "resources": resources(ray.autoscaler),
            "securityContext": container_security(),
            "env": env({"HOME": "/tmp"}),  # noqa: S108
            "volumeMounts": [mount("tmp", "/tmp")],  # noqa: S108
        },
        "headGroupSpec": {
            # No slots: a driver and its reducer take none, and a worker here would end with the head.
            "rayStartParams": _start(values, 0) | {"dashboard-host": "0.0.0.0"},  # noqa: S104 (token and policies)
            "template": _head(values, bridge=bridge),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": workers.min,
                "minReplicas": workers.min,
                "maxReplicas": workers.max,
                "rayStartParams": _start(values, workers.actors),
                "template": _worker(values),
            }
        ],
    }
    if ray.tls:
        spec["tlsOptions"] = {"enabled": True}
    return spec


def _start(values: Values, slots: int) -> dict[str, str]:
    """Make options of ``ray start``: slots are said here and nowhere else, or KubeRay refuses them."""
    return {"num-cpus": str(slots), "object-store-memory": str(int(quantity(values.ray.object_store)))}


def _head(values: Values, *, bridge: bool) -> Object:
    ray = container(
        values,
        "ray-head",
        (),
        values.ray.head,
        env=env(analysis_env("head") | {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S)}),
        mounts=[mount(_LOGS, _LOGS_PATH), mount(_SHM, _SHM_PATH), mount("runs", RUNS), *data_mounts(values)],
        ports=[
            {"name": name, "containerPort": port}
            for name, port in {
                "gcs-server": GCS,
                "dashboard": DASHBOARD,
                "client": CLIENT,
                "metrics": METRICS,
                "as-metrics": AUTOSCALER_METRICS,
                "dash-metrics": DASHBOARD_METRICS,
            }.items()
        ],
    )
    spec: Object = {
        "automountServiceAccountToken": True,  # the autoscaler's
        "terminationGracePeriodSeconds": _STOP_S + 30,
        "initContainers": data_init(values, values.ray.head),
        "containers": [ray],
        "volumes": [*_volumes(values), empty(_LOGS, "5Gi"), runs_volume(values)],
    }
    if bridge:
        spec["initContainers"] = [*spec["initContainers"], _bridge(values)]
        spec["shareProcessNamespace"] = True  # a driver finds its node by looking for its processes
        spec["volumes"] += broker.client_volumes(values, "bridge")
        if values.ray.tls:
            spec["volumes"].append({"name": _TLS, "secret": {"secretName": f"ray-head-secret-{values.name}"}})
    return with_runs(values, pod(values, "head", annotations=scraped(METRICS), **spec))


def _bridge(values: Values) -> Object:
    """Make the bridge: a driver, so it must be on a node, beside the reducer that it starts and the runs' ledgers.

    A container that starts before the others and ends after them, and is restarted by itself: the pod as a whole, with
    the autoscaler's second version, is not.
    """
    may_read = {name: values.data.asked[name] for name in ("sources", "catalogue")}
    options = RunRequest.of(**may_read, **values.workers.asked).words()
    return container(
        values,
        "bridge",
        ["sh", "-c", _BRIDGE, "bridge", "--runs", RUNS, *options],
        values.bridge,
        env=env(
            analysis_env("bridge")
            | {"RAY_ADDRESS": f"127.0.0.1:{GCS}", "RAY_AUTH_MODE": "token"}
            | (tls_env() if values.ray.tls else {})
            | broker.client_env(values, "bridge")
            | broker.PATIENT,
            token(values),
        ),
        mounts=[
            mount(_LOGS, _LOGS_PATH),
            mount(_SHM, _SHM_PATH),
            mount("runs", RUNS),
            *data_mounts(values),
            *broker.client_mounts(values),
            *([mount(_TLS, _TLS_PATH, read_only=True)] if values.ray.tls else []),
        ],
        restartPolicy="Always",
    )


def _worker(values: Values) -> Object:
    ray = container(
        values,
        "ray-worker",
        (),
        values.workers,
        env=env(analysis_env("worker")),
        mounts=[mount(_SHM, _SHM_PATH), *data_mounts(values)],
        ports=[{"name": "metrics", "containerPort": METRICS}],
    )
    return pod(
        values,
        "worker",
        annotations=scraped(METRICS),
        terminationGracePeriodSeconds=60,
        initContainers=data_init(values, values.workers),
        containers=[ray],
        volumes=_volumes(values),
        topologySpreadConstraints=spread(ray_selector(values, "worker"), MACHINE, ZONE),
    )


def _submitter(values: Values) -> Object:
    """Make the pod that submits a RayJob and follows its log. KubeRay knows its container by name."""
    submit = container(values, "ray-job-submitter", (), values.bridge, env=env(analysis_env()))
    return pod(values, "submitter", restartPolicy="Never", containers=[submit], volumes=[empty("tmp", "1Gi")])


def _volumes(values: Values) -> list[Object]:
    room = str(2 * int(quantity(values.ray.object_store)))  # where it just fits, Ray puts its store on the disk
    return [empty("tmp", "2Gi"), empty(_SHM, room, memory=True), *data_volumes(values)]


def tls_env() -> dict[str, str]:
    """Make what a container that KubeRay doesn't manage needs for TLS between Ray's nodes."""
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": f"{_TLS_PATH}/tls.crt",
        "RAY_TLS_SERVER_KEY": f"{_TLS_PATH}/tls.key",
        "RAY_TLS_CA_CERT": f"{_TLS_PATH}/ca.crt",
    }


def scraped(port: int) -> dict[str, str]:
    """Annotate a pod for a Prometheus that goes by annotations."""
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def monitors(values: Values) -> list[Object]:
    """Make the Prometheus Operator's PodMonitors of head and workers."""
    ports = {"head": ("metrics", "as-metrics", "dash-metrics"), "worker": ("metrics",)}
    return [
        thing(
            "PodMonitor",
            "monitoring.coreos.com/v1",
            f"{values.name}-{component}",
            values,
            component,
            spec={
                "selector": selector(values, component),
                "podMetricsEndpoints": [
                    {
                        "port": port,
                        "relabelings": [
                            {
                                "action": "replace",
                                "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
                                "targetLabel": "ray_io_cluster",
                            }
                        ],
                    }
                    for port in names
                ],
            },
        )
        for component, names in ports.items()
    ]
