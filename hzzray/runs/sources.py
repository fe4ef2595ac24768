"""Where a run reads: what its user says, else the release's own addresses, else toys, which are written first."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hzzray.data.catalogue import Release, release
from hzzray.errors import UsageError
from hzzray.runs.request import RunRequest
from hzzray.urls import is_remote

#: Events that are simulated into a toy folder where nobody says how many.
TOY_EVENTS = 200_000

#: The toy folder where nobody says which.
TOY_FOLDER = "toy"


class Places(NamedTuple):
    """Where a run reads: its sources, and how many events are to be simulated into the only one before, if any.

    ``note`` says why none are where somebody asked for some.
    """

    sources: tuple[str, ...]
    to_simulate: int | None = None
    note: str = ""


def release_of(name: str, catalogue: Path | None, *, openmagic: bool = False) -> Release:
    """Find a release, with its samples' places from atlasopenmagic where ``openmagic`` is asked for."""
    chosen = release(name, catalogue)
    if not openmagic:
        return chosen
    from hzzray.data.openmagic import openmagic_release  # noqa: PLC0415 (an extra)

    return openmagic_release(chosen)


def release_for(request: RunRequest) -> Release:
    """Find the release that somebody asks for."""
    return release_of(request.release, request.catalogue, openmagic=request.openmagic)


def places_for(chosen: Release, request: RunRequest) -> Places:
    """Tell where a run of a release is to read; raises UsageError where nobody says."""
    given, events = request.sources, request.events
    if events is not None and len(given) > 1:
        raise UsageError("--events goes with one --source")
    if chosen.name == "toy" and len(given) <= 1 and not is_remote((given or ("",))[0]):
        folder = given[0] if given else TOY_FOLDER
        if Path(folder).exists():
            note = "" if events is None else f"{folder} is there: its events are taken, and no {events} are simulated"
            return Places((folder,), note=note)
        return Places((folder,), None if given and events is None else events or TOY_EVENTS)
    if not given and not chosen.sources:
        raise UsageError(f"release {chosen.name} names no address: give --source")
    note = "" if events is None else "--events simulates into a folder of release toy alone: nothing is simulated"
    return Places(given or chosen.sources, note=note)


def write_toys_once(folder: Path, write: Callable[[Path], object]) -> None:
    """Have toys written into a folder that isn't there: a folder that is there is whole, whoever else writes.

    Raises UsageError where it can't be made.
    """
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")  # containers share volumes and process ids
    try:
        write(part)
        part.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another was faster
            raise UsageError(f"can't write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
