"""All choices of a deployment: ``values.yaml``, an overlay, a user's own file, one on top of the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from hzzray.data.catalogue import releases
from hzzray.errors import UsageError
from hzzray.messages import RUN_ID
from hzzray.runs.request import RunRequest, options

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_VERSION = re.compile(r":v?(\d+(?:\.\d+)*)(?![\w./])", re.ASCII)
_NEEDED = "4.2.4"  # of RabbitMQ, by the start-up probe of its operator from 2.22 on
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|Ki|Mi|Gi|Ti|)", re.ASCII)


def quantity(text: str) -> float:
    """Read what Kubernetes calls a quantity: CPUs (``500m``) or bytes (``2Gi``). Raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"not a quantity like 500m or 2Gi: {text!r}")
    number, unit = found.groups()
    return float(number) / 1000 if unit == "m" else float(number) * _UNITS[unit]


def _is_old(version: str) -> bool:
    """Tell whether a version is before what is needed; one that says less, such as 4, is the newest of its kind."""
    given = tuple(map(int, version.split(".")))
    return given < tuple(map(int, _NEEDED.split(".")))[: len(given)]


def _text(value: object) -> object:
    """Take numbers for text, as YAML reads ``cpu: 2`` and ``release: 2020``."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _quantity(text: str) -> str:
    quantity(text)
    return text


def _release(name: str, info: ValidationInfo) -> str:
    known = releases()
    if name not in known and not info.data.get("catalogue"):  # which is where the loader is
        raise ValueError(f"one of {', '.join(known)}")
    return name


Quantity = Annotated[str, BeforeValidator(_text), AfterValidator(_quantity)]
#: A name that may be part of a host name, short enough for what operators append to it.
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")]
#: A name of an object, or nothing.
Object = Annotated[str, Field(pattern=r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?)?$")]
Host = Object
Image = Annotated[str, Field(pattern=r"^[a-z0-9][^\s:@]*(:\d+/[^\s:@]+)?(:[\w.-]+)?(@sha256:[0-9a-f]{64})?$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
_LABEL = r"[A-Za-z0-9][-./\w]*=[-.\w]+"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Amount(_Frozen):
    """CPUs and memory."""

    cpu: Quantity
    memory: Quantity


class Sized(_Frozen):
    """A container that is promised ``requests`` and never gets more than ``limits``."""

    requests: Amount
    limits: Amount

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what in ("cpu", "memory"):
            low, high = getattr(self.requests, what), getattr(self.limits, what)
            if quantity(low) > quantity(high):
                raise ValueError(f"requests.{what} {low} is more than limits.{what} {high}")
        return self


class ImageChoice(_Frozen):
    """The image of all roles but broker and Redis."""

    name: Image
    tag: Annotated[str, Field(pattern=r"^[\w][\w.-]{0,127}$")]
    pull: Literal["Always", "IfNotPresent", "Never"]
    secrets: tuple[Object, ...]

    @property
    def reference(self) -> str:
        """What a container names."""
        return f"{self.name}:{self.tag}"


class Ray(_Frozen):
    """The Ray cluster and its head."""

    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    idle_timeout_s: Positive
    object_store: Quantity
    auth_secret: Object
    tls: bool
    fault_tolerance: bool
    head: Sized
    autoscaler: Sized


class Redis(Sized):
    """Where a cluster's state is that outlives its head."""

    image: Image
    storage: Quantity


class Workers(Sized):
    """The worker group. A Ray slot is a CPU, and an actor takes one."""

    min: Count
    max: Positive
    actors: Positive

    @property
    def most_actors(self) -> int:
        """How many actors there are when all pods are."""
        return self.max * self.actors

    @property
    def asked(self) -> dict[str, object]:
        """What they say of a run."""
        return {"min_actors": 1, "max_actors": self.most_actors}

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        if quantity(self.requests.cpu) < self.actors:
            raise ValueError(f"requests.cpu {self.requests.cpu} is less than a CPU for each of {self.actors} actors")
        return self


class Broker(Sized):
    """RabbitMQ."""

    kind: Literal["statefulset", "operator"]
    image: Image
    nodes: Positive
    storage: Quantity
    tls_secret: Object

    @model_validator(mode="after")
    def _check_nodes(self) -> Self:
        if self.kind == "statefulset" and self.nodes != 1:
            raise ValueError(f"nodes: {self.nodes}, but kind statefulset is of one node: take kind operator")
        if self.nodes % 2 == 0:
            raise ValueError(f"nodes: {self.nodes} nodes have no majority when they part: take an odd number")
        version = _VERSION.search(self.image)
        if self.kind == "operator" and version and _is_old(version[1]):
            raise ValueError(
                f"image {self.image}: RabbitMQ's operator asks its nodes for a check that is new in {_NEEDED} and 4.3.0"
            )
        return self


class Ingress(_Frozen):
    """The app's way to the outside, if ``host`` isn't empty."""

    host: Host
    class_name: Object
    controller_namespace: Object
    tls_secret: Object
    annotations: dict[str, str]


class Storage(_Frozen):
    """The volume of the runs."""

    size: Quantity
    class_name: Object


class Data(_Frozen):
    """What is analysed, and where it is read from."""

    catalogue: Annotated[str, Field(pattern=r"^$|^/\S+$")]
    release: Annotated[str, BeforeValidator(_text), AfterValidator(_release)]
    source: Annotated[str, Field(pattern=r"^$|^(https?|root)://[^\s,]+$")]
    claim: Object
    toy_events: Positive
    openmagic: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source and self.claim:
            raise ValueError("source and claim are two places: choose one")
        return self

    @property
    def is_simulated(self) -> bool:
        """Whether each pod writes its own toy files."""
        return self.release == "toy" and not self.source and not self.claim

    @property
    def place(self) -> str:
        """What ``--source`` is to say; empty for the release's own addresses."""
        return self.source or (DATA if self.claim or self.is_simulated else "")

    @property
    def asked(self) -> dict[str, object]:
        """What it says of a run; toys are there before."""
        sources = (self.place,) if self.place else ()
        return {
            "release": self.release, "sources": sources, "catalogue": self.catalogue, "openmagic": self.openmagic
        }  # fmt: skip


#: Of a run, what ``data`` say, and what ``workers`` do where the cluster's actors are its own.
OF_DATA = frozenset({"release", "sources", "events", "catalogue", "openmagic"})
OF_WORKERS = frozenset({"engine", "actors", "min_actors", "max_actors"})


class _Asked(RunRequest):
    """A run that is asked for, of the deployment's data."""

    elsewhere: ClassVar[frozenset[str]]

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if wrong := sorted(self.model_fields_set & self.elsewhere):
            raise ValueError(f"{wrong[0]}: no such value here: it is for data, workers or the bridge to say")
        return self


class Loader(_Asked):
    """The run that is published when the deployment comes up, if it has a ``run_id``."""

    elsewhere: ClassVar = OF_DATA | {asked.name for asked in options() if asked.option.is_work}


class Job(_Asked):
    """The RayJobs."""

    elsewhere: ClassVar = OF_DATA | OF_WORKERS

    run_id: Annotated[str, Field(pattern=RUN_ID)]
    deadline_s: Positive
    keep_s: Count


class Monitoring(_Frozen):
    """How Prometheus finds the pods."""

    pod_monitor: bool
    namespace: Object


class Operator(_Frozen):
    """Where an operator's pods are: in a namespace, or any if that is empty, with labels as kubectl takes them."""

    namespace: Object
    selector: Annotated[str, Field(pattern=rf"^{_LABEL}(,{_LABEL})*$")]

    @property
    def labels(self) -> dict[str, str]:
        """The labels by name."""
        return dict(each.split("=", 1) for each in self.selector.split(","))


class Network(_Frozen):
    """Who may talk to whom."""

    policies: bool
    kuberay: Operator
    api_ports: tuple[Port, ...]
    data_ports: tuple[Port, ...]


class Priority(_Frozen):
    """Values of the priority classes."""

    core: Count
    workers: Count


class Values(_Frozen):
    """A whole deployment."""

    name: Name
    namespace: Name
    image: ImageChoice
    ray: Ray
    redis: Redis
    workers: Workers
    bridge: Sized
    broker: Broker
    app: Sized
    ingress: Ingress
    storage: Storage
    data: Data
    loader: Loader
    job: Job
    metrics: Monitoring
    network: Network
    priority: Priority

    def published(self) -> RunRequest:
        """Make the request of the run that is published."""
        return self._request(self.loader)

    def job_request(self, run_id: str) -> RunRequest:
        """Make the request of a run that is a job of the cluster."""
        return self._request(self.job, run_id=run_id, **self.workers.asked)

    def _request(self, asked: _Asked, **more: object) -> RunRequest:
        own = {name: getattr(asked, name) for name in RunRequest.model_fields.keys() - asked.elsewhere}
        return RunRequest.of(**own | self.data.asked | more)

    @property
    def broker_name(self) -> str:
        """Name of the broker's pods, service and secret."""
        return f"{self.name}-broker"

    @property
    def head_service(self) -> str:
        """Name of the service that KubeRay makes for the head."""
        return f"{self.name}-head-svc"

    @property
    def token_secret(self) -> str:
        """Name of the Secret with Ray's token, KubeRay's unless another is given."""
        return self.ray.auth_secret or self.name


#: Where containers find the runs, and data that is a volume.
RUNS = "/runs"
DATA = "/data"


def overlays() -> tuple[str, ...]:
    """List the overlays that there are."""
    return tuple(_packaged()["overlays"])


def load(overlay: str | None = None, own: Path | None = None) -> Values:
    """Read the values, an overlay's and a file of the user's on top. Raises UsageError naming what is wrong."""
    body = dict(_packaged())
    known = body.pop("overlays")
    if overlay is not None:
        if overlay not in known:
            raise UsageError(f"no overlay {overlay!r}; there are {', '.join(known)}")
        body = _merged(body, known[overlay])
    if own is not None:
        body = _merged(body, _read(own))
    try:
        return Values.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        given = f", not {first['input']!r}" if isinstance(first["input"], str | int | float) else ""
        wrong = "no such value" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{own or 'values.yaml'}: {where}: {wrong}{given}") from error


def _packaged() -> dict[str, Any]:
    text = resources.files("kuberay").joinpath("values.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"{path}: not a mapping of values")
    return loaded


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree of values over another; lists are replaced as a whole."""
    return dict(below) | {
        key: _merged(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }
