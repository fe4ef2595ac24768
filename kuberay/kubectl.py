"""kubectl as a tool: what it is told, what it answers, and one clear line when it can't."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from hzzray.errors import HzzrayError
from kuberay.common import Object

Say = Callable[[str], None]
"""Is told what a user should know, a line at a time."""

#: How we apply. The autoscaler writes to the RayCluster too: its count of workers, which it will write again.
APPLY = ("--server-side", "--force-conflicts", "--field-manager=hzzray")

_TIMEOUT_S = 60.0


class KubeError(HzzrayError):
    """The Kubernetes cluster can't be reached, or refuses something."""


class Forward:
    """A port of 127.0.0.1 that leads to a service, as long as its kubectl lives."""

    def __init__(self, service: str, local: int, process: subprocess.Popen[bytes], said: IO[str]) -> None:
        self.service = service
        self.local = local
        self._process = process
        self._said = said

    def wait(self, wait_s: float) -> None:
        """Wait until somebody listens. Raises KubeError with kubectl's reason."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until and self.is_alive():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.local), timeout=1):
                return
            time.sleep(0.1)
        raise KubeError(f"can't forward a port of service {self.service}: {self.why()}")

    def is_alive(self) -> bool:
        """Tell whether kubectl still runs: it ends with the pod that it was connected to."""
        return self._process.poll() is None

    def why(self) -> str:
        """Tell what kubectl said last."""
        self._said.seek(0)
        return _last_line(self._said.read()) or "no answer"

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Kubectl:
    """Calls kubectl, for one context and one namespace.

    With ``dry`` nothing is changed: ``say`` gets each command that would change something. Calls raise KubeError.
    """

    def __init__(self, namespace: str, context: str | None, *, dry: bool, say: Say) -> None:
        self._base = ["--namespace", namespace, *(["--context", context] if context else [])]
        self.dry = dry
        self._say = say

    def read(self, *arguments: str) -> Any:  # noqa: ANN401 (JSON)
        """Ask for JSON."""
        answer = self._run([*arguments, "--output", "json"], None, _TIMEOUT_S)
        try:
            return json.loads(answer)
        except json.JSONDecodeError as error:
            raise KubeError(f"kubectl {arguments[0]} answered with something else than JSON") from error

    def find(self, kind: str, name: str) -> Object | None:
        """Ask for an object that may not be there."""
        answer = self._run(["get", kind, name, "--ignore-not-found", "--output", "json"], None, _TIMEOUT_S)
        found: Object | None = json.loads(answer) if answer.strip() else None
        return found

    def serves(self, resource: str) -> bool:
        """Tell whether the cluster knows a kind, such as ``rayclusters.ray.io``; to ask that takes no rights."""
        group = resource.partition(".")[2]
        known = self._run(["api-resources", f"--api-group={group}", "--output", "name"], None, _TIMEOUT_S)
        return resource in known.split()

    def behind(self) -> Mapping[str, frozenset[str]] | None:
        """Ask which pods, by uid, are behind each service; None of a cluster that doesn't tell this user."""
        try:
            slices = self.read("get", "endpointslices.discovery.k8s.io")["items"]
        except KubeError:
            return None
        found: defaultdict[str, set[str]] = defaultdict(set)
        for each in slices:
            service = each["metadata"].get("labels", {}).get("kubernetes.io/service-name", "")
            for endpoint in each.get("endpoints") or []:
                uid = (endpoint.get("targetRef") or {}).get("uid")
                if uid and not (endpoint.get("conditions") or {}).get("terminating"):
                    found[service].add(uid)
        return {service: frozenset(uids) for service, uids in found.items()}

    def change(self, *arguments: str, objects: Sequence[Object] = (), timeout_s: float = _TIMEOUT_S) -> str:
        """Change something; ``objects`` go in by standard input, where no other process sees them."""
        if self.dry:
            self.show(*arguments)
            for made in objects:
                self._say(f"    {made['kind']} {made['metadata']['name']}")
            return ""
        given = "\n".join(map(json.dumps, objects)) if objects else None
        return self._run(list(arguments), given, timeout_s)

    @contextmanager
    def forward(self, service: str, port: int, local: int, *, wait_s: float = 30.0) -> Iterator[Forward]:
        """Have a service's port on a port of 127.0.0.1 for a while. Raises KubeError when nobody answers there."""
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(  # noqa: S603 (no shell, our own arguments)
                [_kubectl(), *self._base, *port_forward(service, port, local)], stdout=subprocess.DEVNULL, stderr=said
            )
            forward = Forward(service, local, process, said)
            try:
                forward.wait(wait_s)
                yield forward
            finally:
                forward.end()

    def _run(self, arguments: Sequence[str], given: str | None, timeout_s: float) -> str:
        command = [_kubectl(), *self._base, f"--request-timeout={timeout_s:g}s", *arguments]
        try:
            done = subprocess.run(  # noqa: S603 (no shell, our own arguments)
                command, input=given, capture_output=True, text=True, timeout=timeout_s + 5, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise KubeError(f"no answer to kubectl {arguments[0]} within {timeout_s:g} s") from error
        if done.returncode != 0:
            raise KubeError(f"kubectl {arguments[0]}: {_last_line(done.stderr) or f'exit code {done.returncode}'}")
        return done.stdout

    def show(self, *arguments: str) -> None:
        """Say a command, and don't call it."""
        self._say(" ".join(["kubectl", *self._base, *arguments]))


def port_forward(service: str, port: int, local: int) -> list[str]:
    """Write the arguments that lead a port of 127.0.0.1 to a service's."""
    return ["port-forward", "--address", "127.0.0.1", f"service/{service}", f"{local}:{port}"]


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise KubeError("kubectl is not on the PATH: see https://kubernetes.io/docs/tasks/tools/")
    return found


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
