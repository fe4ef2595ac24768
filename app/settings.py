"""What the environment says about the app: where runs and data lie, which cluster it watches, who may use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hzzray.engine.local_cluster import NO_DASHBOARD
from hzzray.errors import UsageError

#: Where the README's commands put files.
SOURCES = ("data", "toy")


@dataclass(frozen=True, slots=True)
class AppSettings:
    """The app's surroundings.

    Attributes
    ----------
    runs
        Folder of runs (``HZZRAY_RUNS``).
    sources
        Folders and addresses that runs started here may read from, besides the catalogue's (``HZZRAY_SOURCES``).
    catalogue
        YAML file with more releases (``HZZRAY_CATALOGUE``).
    address
        Ray cluster whose runs are shown (``HZZRAY_ADDRESS``); none for runs of this folder alone.
    dashboard
        Where a browser finds the Ray dashboard (``HZZRAY_DASHBOARD``); None where each run tells its own cluster's,
        if it has one (not where that says ``none``).
    engine
        Who answers on the explore page (``HZZRAY_EXPLORE``): ``ray``, actors of the cluster that runs started here use;
        or ``serial``, a process on this machine.
    broker
        Broker whose queues are shown (``HZZRAY_BROKER``).
    hosts
        Names that the server answers to besides this machine's own (``HZZRAY_APP_HOSTS``).
    password
        What a viewer must know (``HZZRAY_APP_PASSWORD``, or the file that ``HZZRAY_APP_PASSWORD_FILE`` names).
    """

    runs: Path
    sources: tuple[str, ...]
    catalogue: Path | None
    address: str | None
    dashboard: str | None
    hosts: tuple[str, ...]
    engine: Literal["ray", "serial"]
    broker: str | None = field(repr=False)
    password: str | None = field(repr=False)


def read_settings(environ: Mapping[str, str] = os.environ) -> AppSettings:
    """Read the environment; raises UsageError for what makes no sense: a password file without one, say."""
    catalogue = environ.get("HZZRAY_CATALOGUE")
    return AppSettings(
        runs=Path(environ.get("HZZRAY_RUNS") or "runs"),
        sources=_listed(environ, "HZZRAY_SOURCES") or SOURCES,
        catalogue=Path(catalogue) if catalogue else None,
        address=environ.get("HZZRAY_ADDRESS") or None,
        dashboard=_dashboard(environ),
        hosts=_listed(environ, "HZZRAY_APP_HOSTS"),
        engine=_engine(environ),
        broker=environ.get("HZZRAY_BROKER") or None,
        password=_password(environ),
    )


def _engine(environ: Mapping[str, str]) -> Literal["ray", "serial"]:
    name = environ.get("HZZRAY_EXPLORE") or "ray"
    if name == "serial":
        return "serial"
    if name != "ray":
        raise UsageError(f"HZZRAY_EXPLORE={name}: it is ray or serial")
    return "ray"


def _dashboard(environ: Mapping[str, str]) -> str | None:
    place = environ.get("HZZRAY_DASHBOARD", "").rstrip("/")
    return place if place not in ("", NO_DASHBOARD) else None


def _listed(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in environ.get(name, "").split(",") if part.strip())


def _password(environ: Mapping[str, str]) -> str | None:
    name = environ.get("HZZRAY_APP_PASSWORD_FILE")
    if not name:
        return environ.get("HZZRAY_APP_PASSWORD") or None
    try:
        password = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"HZZRAY_APP_PASSWORD_FILE={name}: {error}") from error
    if not password:
        raise UsageError(f"HZZRAY_APP_PASSWORD_FILE={name}: the file is empty")
    return password
