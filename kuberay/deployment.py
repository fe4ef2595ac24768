"""All objects of a deployment."""

from __future__ import annotations

from kuberay import app, broker, network, ray, redis
from kuberay.common import MANAGED, Object, priority, runs_volume, thing
from kuberay.values import Values

#: Where an object is in a deployment: kind and name.
Key = tuple[str, str]


def key(made: Object) -> Key:
    """Name an object within a deployment."""
    return made["kind"], made["metadata"]["name"]


def deployment(values: Values) -> list[Object]:
    """Make all that stands, in the order in which it is to be applied."""
    return [
        namespace(values),
        *priorities(values),
        _runs(values),
        *(network.policies(values) if values.network.policies else []),
        *broker.objects(values),
        *(redis.objects(values) if values.ray.fault_tolerance else []),
        ray.cluster(values),
        *app.objects(values),
        *([app.loader(values)] if values.loader.run_id else []),
        *([*ray.monitors(values), broker.monitor(values)] if values.metrics.pod_monitor else []),
    ]


def jobs(values: Values) -> dict[str, Object]:
    """Make the RayJobs: one with a cluster of its own, one of the standing cluster."""
    return {"batch": ray.batch(values), "standing": ray.standing(values)}


def namespace(values: Values) -> Object:
    """Make the namespace, which lets in only pods that keep to the strictest of the Pod Security Standards."""
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    meta = {"name": values.namespace, "labels": MANAGED | levels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


def priorities(values: Values) -> list[Object]:
    """Make the priority classes: what there is one of goes before workers."""
    return [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": priority(values, "core"), "labels": MANAGED},
            "value": values.priority.core,
            "description": "hzzray: what there is one of.",
        },
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": priority(values, "workers"), "labels": MANAGED},
            "value": values.priority.workers,
            "preemptionPolicy": "Never",
            "description": "hzzray: workers, which wait for a place.",
        },
    ]


def _runs(values: Values) -> Object:
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": values.storage.size}},
    }
    if values.storage.class_name:
        spec["storageClassName"] = values.storage.class_name
    name = runs_volume(values)["persistentVolumeClaim"]["claimName"]
    return thing("PersistentVolumeClaim", "v1", name, values, "runs", spec=spec)
