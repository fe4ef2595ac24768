"""What the environment says about the app: where runs and data lie, which cluster it watches, who may use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hzzray.errors import UsageError

#: Where the README's commands put files.
SOURCES = ("data", "toy")


@dataclass(frozen=True, slots=True)
class Settings:
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
        Where a browser finds the Ray dashboard (``HZZRAY_DASHBOARD``).
    broker
        Broker whose queues are shown (``HZZRAY_BROKER``).
    password
        What a viewer must know (``HZZRAY_APP_PASSWORD``, or the file that ``HZZRAY_APP_PASSWORD_FILE`` names).
    """

    runs: Path
    sources: tuple[str, ...]
    catalogue: Path | None
    address: str | None
    dashboard: str
    broker: str | None = field(repr=False)
    password: str | None = field(repr=False)


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment; raises UsageError for a password file that can't be read or is empty."""
    sources = environ.get("HZZRAY_SOURCES", "")
    catalogue = environ.get("HZZRAY_CATALOGUE")
    return Settings(
        runs=Path(environ.get("HZZRAY_RUNS") or "runs"),
        sources=tuple(name.strip() for name in sources.split(",") if name.strip()) or SOURCES,
        catalogue=Path(catalogue) if catalogue else None,
        address=environ.get("HZZRAY_ADDRESS") or None,
        dashboard=(environ.get("HZZRAY_DASHBOARD") or "http://127.0.0.1:8265").rstrip("/"),
        broker=environ.get("HZZRAY_BROKER") or None,
        password=_password(environ),
    )


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
