"""What ``hzzray kube`` does with a cluster: bring a deployment up, and watch it."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Iterable

from kuberay import deployment, redis
from kuberay.broker import USERS
from kuberay.common import Object, is_made_by_us, part_of, thing
from kuberay.health import KINDS, Part, parts
from kuberay.kubectl import APPLY, Kubectl, KubeError, Say
from kuberay.removal import BUDGETS
from kuberay.requirements import check
from kuberay.values import Values

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


def up(kubectl: Kubectl, values: Values, say: Say) -> None:
    """Apply everything; what is there already is changed to what it should be, and passwords stay what they are."""
    space, *rest = deployment.deployment(values)
    if kubectl.dry:
        say("# what isn't there yet; passwords are never made anew")
        kubectl.change("create", "--filename", "-", objects=[space, *new_secrets(values)])
        say("# what is there already is changed to what it should be")
    else:
        _namespace(kubectl, space, say)
        check(kubectl, values, say)
        for secret in new_secrets(values):
            if kubectl.find("secret", secret["metadata"]["name"]) is None:
                kubectl.change("create", "--filename", "-", objects=[secret])
        _remove_old_budgets(kubectl, values, rest, say)
    said = kubectl.change("apply", *APPLY, "--filename", "-", objects=rest, timeout_s=120)
    for line in said.splitlines():
        say(line)


def _remove_old_budgets(kubectl: Kubectl, values: Values, wanted: Iterable[Object], say: Say) -> None:
    """Remove budgets that are no part of the deployment any more: each could keep a machine from being drained."""
    kept = {deployment.key(made) for made in wanted}
    for made in kubectl.read("get", BUDGETS, "--selector", part_of(values))["items"]:
        if deployment.key(made) not in kept:
            say(kubectl.change("delete", BUDGETS, made["metadata"]["name"], "--ignore-not-found").strip())


def _namespace(kubectl: Kubectl, space: Object, say: Say) -> None:
    """Make the namespace. One that is somebody else's is used as it is, and outlives us."""
    name = space["metadata"]["name"]
    there = kubectl.find("namespace", name)
    if there is None:
        kubectl.change("create", "--filename", "-", objects=[space])
        say(f"namespace {name} created")
    elif not is_made_by_us(there):
        say(f"namespace {name} is not ours: its labels stay as they are")


def look(kubectl: Kubectl, values: Values) -> list[Part]:
    """See how each part of a deployment is."""
    found, events = (kubectl.read(*question)["items"] for question in questions(values))
    return parts(values, deployment.deployment(values), found, events)


def questions(values: Values) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write what kubectl is asked by ``look``: what there is, and what was told of it."""
    kinds = dict(KINDS)
    if values.broker.kind != "operator":
        del kinds["RabbitmqCluster"]
    return ("get", ",".join(kinds.values())), ("get", "events")


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
