"""A stand-in for a Kubernetes API server: enough for a real kubectl to apply, get and delete. It records each call.

It stores what it is given, and what controllers would make of it a test says (``put``, ``tell``, ``fail_and_succeed``).
As the real one it keeps what has a finalizer, lets pods of a deleted owner end in their time, asks webhooks, and tries
things without doing them. It validates nothing.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

CORE = {
    "namespaces": ("Namespace", False),
    "pods": ("Pod", True),
    "services": ("Service", True),
    "configmaps": ("ConfigMap", True),
    "secrets": ("Secret", True),
    "events": ("Event", True),
    "persistentvolumeclaims": ("PersistentVolumeClaim", True),
}
GROUPS: dict[str, tuple[str, dict[str, tuple[str, bool]]]] = {
    "apps": ("v1", {"deployments": ("Deployment", True), "statefulsets": ("StatefulSet", True)}),
    "batch": ("v1", {"jobs": ("Job", True)}),
    "policy": ("v1", {"poddisruptionbudgets": ("PodDisruptionBudget", True)}),
    "networking.k8s.io": ("v1", {"networkpolicies": ("NetworkPolicy", True), "ingresses": ("Ingress", True)}),
    "discovery.k8s.io": ("v1", {"endpointslices": ("EndpointSlice", True)}),
    "scheduling.k8s.io": ("v1", {"priorityclasses": ("PriorityClass", False)}),
}
OPERATORS: dict[str, tuple[str, dict[str, tuple[str, bool]]]] = {
    "ray.io": ("v1", {"rayclusters": ("RayCluster", True), "rayjobs": ("RayJob", True)}),
    "rabbitmq.com": ("v1beta1", {"rabbitmqclusters": ("RabbitmqCluster", True)}),
    "monitoring.coreos.com": ("v1", {"podmonitors": ("PodMonitor", True)}),
    "cert-manager.io": ("v1", {"certificates": ("Certificate", True)}),
}

Answer = tuple[int, dict[str, Any]]
Key = tuple[str, str, str]  # resource, namespace, name


@dataclass
class Api:
    """The server's state, and what was asked of it.

    ``broken`` are kinds whose webhooks don't answer, with what the server says of them; ``forbidden`` kinds can't be
    read in all namespaces. Pods of what is deleted take ``grace_s`` seconds to end.
    """

    url: str
    kubeconfig: Path
    objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str, dict[str, Any] | None]] = field(default_factory=list)
    groups: dict[str, tuple[str, dict[str, tuple[str, bool]]]] = field(default_factory=lambda: dict(GROUPS))
    broken: dict[str, str] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    grace_s: float = 0.0

    def install(self, *groups: str) -> None:
        """Have the kinds of some operators."""
        self.groups |= {group: OPERATORS[group] for group in groups}

    def put(self, resource: str, made: dict[str, Any], namespace: str = "") -> None:
        """Have an object, as a controller might have made or changed it."""
        made = copy.deepcopy(made)
        meta = made["metadata"]
        if namespace:
            meta["namespace"] = namespace
        meta.setdefault("uid", f"uid-{len(self.objects)}")
        self.objects[resource, namespace, meta["name"]] = made

    def names(self, resource: str) -> set[str]:
        """Name what there is of a kind."""
        return {name for kind, _, name in self.objects if kind == resource}

    def changes(self) -> list[str]:
        """List the calls that changed something: verb and path."""
        return [f"{verb} {path}" for verb, path, _ in self.calls if verb != "GET" and "dryRun=All" not in path]

    def tell(self, kind: str, name: str, reason: str, message: str, *, warning: bool = True) -> None:
        """Have an event about something."""
        number = len(self.names("events"))
        event = {
            "metadata": {"name": f"{name}.{number}"},
            "involvedObject": {"kind": kind, "name": name},
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message,
            "lastTimestamp": f"2026-01-01T00:00:{number:02d}Z",
        }
        self.put("events", event, "hzzray")

    def fail_and_succeed(self, job: dict[str, Any], failed: int, *, then: str = "succeeded") -> None:
        """Have a Job as its controller leaves it after some failed tries, and their pods: they stay as long as it.

        ``then`` it has ``succeeded``, is ``active``, ``waits`` for its next try, or has ``failed`` for good.
        """
        name, labels = job["metadata"]["name"], job["spec"]["template"]["metadata"]["labels"]
        ways: dict[str, dict[str, Any]] = {
            "succeeded": {"succeeded": 1, "conditions": [_true("SuccessCriteriaMet"), _true("Complete")]},
            "active": {"active": 1, "ready": 1},
            "waits": {},
            "failed": {
                "conditions": [
                    _true("FailureTarget"),
                    _true("Failed") | {"reason": "BackoffLimitExceeded", "message": "too many"},
                ]
            },
        }
        self.put("jobs", job | {"status": {"failed": failed} | ways[then]}, "hzzray")
        last = {"succeeded": ["Succeeded"], "active": ["Running"]}.get(then, [])
        for number, phase in enumerate(["Failed"] * failed + last):
            ended = {"exitCode": 1, "reason": "Error", "message": f"a line\nhzzray: try {number} found no broker\n"}
            state = {"terminated": ended} if phase == "Failed" else {"running": {}}
            meta = {
                "name": f"{name}-{number}",
                "labels": labels | {"job-name": name},
                "creationTimestamp": f"2026-01-01T00:00:{number:02d}Z",
                "ownerReferences": [{"kind": "Job", "name": name, "controller": True}],
            }
            status = {"phase": phase, "containerStatuses": [{"name": "loader", "state": state}]}
            ready = [{"type": "Ready", "status": "True"}] if phase == "Running" else []
            self.put("pods", {"metadata": meta, "status": status | {"conditions": ready}}, "hzzray")

    def serve(self, service: str, **pods: str) -> None:
        """Have a Service with pods behind it, by uid ``ready``, ``starting`` or ``terminating``; or with none."""
        endpoints = [
            {
                "targetRef": {"kind": "Pod", "uid": uid},
                "conditions": {"ready": how == "ready", "terminating": how == "terminating"},
            }
            for uid, how in pods.items()
        ]
        meta = {"name": f"{service}-x1", "labels": {"kubernetes.io/service-name": service}}
        self.put("endpointslices", {"metadata": meta, "endpoints": endpoints or None}, "hzzray")

    def remove(self, key: Key) -> None:
        """Delete something: at once, or when its last finalizer has gone; pods of its end after their time."""
        made = self.objects[key]
        if made["metadata"].get("finalizers"):
            made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            return
        del self.objects[key]
        for (resource, _, _), each in self.objects.items():
            owners = each["metadata"].get("ownerReferences") or []
            if resource == "pods" and any((o["kind"], o["name"]) == (made["kind"], key[2]) for o in owners):
                each["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                each["gone"] = time.monotonic() + self.grace_s

    def let_go(self) -> None:
        """Forget pods that have ended by now."""
        now = time.monotonic()
        self.objects = {key: made for key, made in self.objects.items() if made.get("gone", now + 1) > now}

    def resources(self) -> Iterator[tuple[str, str, str, str, bool]]:
        """List what is served: group, version, resource, kind, whether it is namespaced."""
        for resource, (kind, inside) in CORE.items():
            yield "", "v1", resource, kind, inside
        for group, (version, kinds) in self.groups.items():
            for resource, (kind, inside) in kinds.items():
                yield group, version, resource, kind, inside


def _true(condition: str) -> dict[str, str]:
    return {"type": condition, "status": "True"}


@contextmanager
def kube_api(folder: Path) -> Iterator[Api]:
    """Serve for a while, on 127.0.0.1, with a kubeconfig that leads there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_address[1]}"
    kubeconfig = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "stand-in",
        "clusters": [{"name": "stand-in", "cluster": {"server": url}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "nobody"}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    api = Api(url, kubeconfig)
    server.api = api  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PATCH(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        api: Api = self.server.api  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length).decode()
        body = yaml.safe_load(text) if text else None
        if not parts.path.startswith(("/api?", "/apis?", "/openapi")):
            api.calls.append((self.command, self.path, body))
        api.let_go()
        merge = "merge-patch" in self.headers.get("Content-Type", "")
        code, answer = _answer(api, self.command, parts.path, parse_qs(parts.query), body, merge=merge)
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _status(code: int, reason: str, message: str) -> Answer:
    failed = "Success" if code < 300 else "Failure"
    return code, {
        "kind": "Status", "apiVersion": "v1", "status": failed, "reason": reason, "message": message, "code": code,
    }  # fmt: skip


def _answer(api: Api, verb: str, path: str, query: dict[str, list[str]], body: Any, *, merge: bool) -> Answer:
    if (about := _about_itself(api, path)) is not None:
        return 200, about
    steps = [step for step in path.split("/") if step]
    group, version, rest = ("", steps[1], steps[2:]) if steps[0] == "api" else (steps[1], steps[2], steps[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name = rest[0], rest[1] if len(rest) > 1 else None
    kind = next((row[3] for row in api.resources() if row[0] == group and row[2] == resource), None)
    if kind is None:
        return _status(404, "NotFound", "the server could not find the requested resource")
    head = {"apiVersion": f"{group}/{version}".lstrip("/"), "kind": kind}
    if name is None and verb == "GET":
        if not namespace and resource in api.forbidden:
            return _status(403, "Forbidden", f"{resource} is forbidden: cannot list resource at the cluster scope")
        return 200, _list(api, head, resource, namespace, query)
    if verb == "POST":
        name = body["metadata"]["name"]
    if verb in ("POST", "PATCH") and resource in api.broken:
        return _status(500, "InternalError", f"Internal error occurred: failed calling webhook: {api.broken[resource]}")
    if "dryRun" in query:
        return 200, {**head, **body}
    return _one(api, verb, head, (resource, namespace, str(name)), body, merge=merge)


def _about_itself(api: Api, path: str) -> dict[str, Any] | None:
    """What kubectl asks before it asks for things."""
    steps = [step for step in path.split("/") if step]
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0-stand-in"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(api, name) for name in api.groups]}
    if path == "/api/v1":
        return _resources(api, "", "v1")
    if steps[0] == "apis" and len(steps) == 3:
        return _resources(api, steps[1], steps[2])
    if steps[:2] == ["openapi", "v3"]:
        return _openapi(api, "/".join(steps[2:]))
    return None


def _list(api: Api, head: dict[str, str], resource: str, namespace: str, query: dict[str, list[str]]) -> dict[str, Any]:
    found = [made for key, made in api.objects.items() if key[0] == resource and namespace in ("", key[1])]
    items = [{**head, **made} for made in found if _selected(made, query)]
    return {**head, "kind": f"{head['kind']}List", "metadata": {"resourceVersion": "1"}, "items": items}


def _one(api: Api, verb: str, head: dict[str, str], key: Key, body: Any, *, merge: bool) -> Answer:
    resource, namespace, name = key
    there = api.objects.get(key)
    if verb == "POST" and there is not None:
        return _status(409, "AlreadyExists", f'{resource} "{name}" already exists')
    if verb == "PATCH" and merge:
        if there is None:
            return _status(404, "NotFound", f'{resource} "{name}" not found')
        api.objects[key] = _merged(there, body)
        if there["metadata"].get("deletionTimestamp"):
            api.remove(key)
        return 200, {**head, **there, **body}
    if verb in ("POST", "PATCH"):
        api.put(resource, {**head, **(there or {}), **body}, namespace)
        return (200 if there else 201), api.objects[key]
    if there is None:
        return _status(404, "NotFound", f'{resource} "{name}" not found')
    if verb == "DELETE":
        api.remove(key)
        if resource == "namespaces":
            api.objects = {each: made for each, made in api.objects.items() if each[1] != name}
        return _status(200, "", "")
    return 200, {**head, **there}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay a merge patch (RFC 7386) over an object."""
    return below | {
        name: _merged(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }


def _selected(made: dict[str, Any], query: dict[str, list[str]]) -> bool:
    """Judge label selectors of the form a=b,c=d, and the field selector that events are asked with."""
    labels = made["metadata"].get("labels") or {}
    wanted = [each.split("=", 1) for each in query.get("labelSelector", [""])[0].split(",") if each]
    fields = [each.split("=", 1) for each in query.get("fieldSelector", [""])[0].split(",") if each]
    own = {
        "metadata.name": made["metadata"]["name"],
        "type": made.get("type"),
        "involvedObject.kind": made.get("involvedObject", {}).get("kind"),
    }
    return all(labels.get(name) == value for name, value in wanted) and all(
        own[name] == value for name, value in fields
    )


def _openapi(api: Api, path: str) -> dict[str, Any]:
    """Tell kubectl that this server validates fields, so that it leaves that to it."""
    places = {
        f"apis/{group}/{version}" if group else "api/v1": (group, version) for group, version, *_ in api.resources()
    }
    if not path:
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}
    paths = {
        f"/{path}/{row[2]}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": row[0], "version": row[1], "kind": row[3]},
            }
        }
        for row in api.resources()
        if row[:2] == places[path]
    }
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}


def _group(api: Api, name: str) -> dict[str, Any]:
    version = {"groupVersion": f"{name}/{api.groups[name][0]}", "version": api.groups[name][0]}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _resources(api: Api, group: str, version: str) -> dict[str, Any]:
    rows = [
        {
            "name": resource,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": inside,
            "verbs": ["get", "list", "watch", "create", "patch", "delete"],
        }
        for its_group, _, resource, kind, inside in api.resources()
        if its_group == group
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}".lstrip("/"),
        "resources": rows,
    }
