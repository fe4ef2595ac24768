"""The catalogue as ATLAS' own client library knows it: URLs and normalisation from ``atlasopenmagic``."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import commonpath
from types import ModuleType
from typing import Any

from hzzray.data.catalogue import Release, Sample
from hzzray.errors import DataError, TransientError, UsageError

_PERIOD = re.compile(r"data\d\d_period[A-Z]+\d*")
#: What the library writes into each root:// URL though it is the default.
_PORT = ":1094"


def openmagic_release(
    base: Release,
    release_name: str = "2025e-13tev-beta",
    skim: str = "exactly4lep",
    *,
    metadata: Path | None = None,
) -> Release:
    """Return a release whose samples lie where ``atlasopenmagic`` says, of as many files as it says.

    Simulation is matched by its dsid, data by its period. The folder common to all files, over https and over
    root, becomes the first of the ``sources``, and paths are relative to it. Samples that the library doesn't
    know stay as they are, and for them the base's own sources stay, last. Where the files carry no
    normalisation (``Schema.divisor``), cross section times k-factor times filter efficiency (pb) and the sum
    of weights are the library's too.

    Parameters
    ----------
    base
        The release of hzzray's catalogue: schema, groups, samples.
    release_name, skim
        What the library calls them; ``"noskim"`` is the whole dataset.
    metadata
        A file that the library's ``save_metadata`` wrote (JSON), for machines without the internet.

    Raises
    ------
    UsageError
        If the library isn't installed, doesn't know the release, or has none of the samples in this skim.
    DataError
        If the files have no folder in common.
    TransientError
        If its server can't be reached.
    """
    library = _library()
    known = _metadata(library, release_name, metadata)
    urls = _urls(library, known, base, skim)
    if not urls:
        raise UsageError(f"atlasopenmagic's {release_name} has none of release {base.name}'s samples as {skim}")
    folders = [_folder([place[i] for places in urls.values() for place in places]) for i in range(2)]
    samples = []
    for sample in base.samples:
        facts: dict[str, Any] = {}
        if sample.name in urls:
            facts["path"] = [web.removeprefix(folders[0]) for web, _ in urls[sample.name]]
            if base.role(sample) != "data" and base.schema_.divisor is None:
                facts |= _normalisation(known[str(sample.dsid)])
        samples.append({**sample.model_dump(), **facts})
    sources = tuple(dict.fromkeys((*folders, *base.sources)))
    return Release.model_validate({**base.model_dump(by_alias=True), "sources": sources, "samples": samples})


def _library() -> ModuleType:
    try:
        import atlasopenmagic  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise UsageError("atlasopenmagic is an extra: pip install 'hzzray[openmagic]'") from error
    atlasopenmagic.set_verbosity("error")
    library: ModuleType = atlasopenmagic
    return library


def _metadata(library: ModuleType, release_name: str, file: Path | None) -> dict[str, dict[str, Any]]:
    """Load all datasets of a release, by number ("data" for collisions)."""
    from requests import RequestException  # noqa: PLC0415 (comes with the extra)

    try:
        if file is None:
            library.set_release(release_name)
        else:
            library.read_metadata(str(file), release_name)
    except RequestException as error:
        raise TransientError(f"atlasopenmagic's metadata server failed: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UsageError(f"metadata {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"atlasopenmagic: {' '.join(str(error).split())}") from error
    known: dict[str, dict[str, Any]] = library.get_all_metadata()
    return known


def _urls(
    library: ModuleType, known: dict[str, dict[str, Any]], base: Release, skim: str
) -> dict[str, list[tuple[str, str]]]:
    """Find each sample's URLs over https and over root, by name; samples that the library lacks are absent."""

    def listed(key: str) -> list[tuple[str, str]]:
        if key not in known or skim not in _skims(known[key]):
            return []
        web, root = (library.get_urls(key, skim=skim, protocol=name, cache=False) for name in ("https", "root"))
        return [(one, other.replace(_PORT, "")) for one, other in zip(web, root, strict=True)]

    periods: dict[str, list[tuple[str, str]]] = {}
    for places in listed("data"):
        if match := _PERIOD.search(_file(places[0])):
            periods.setdefault(match[0], []).append(places)
    found = {}
    for sample in base.samples:
        is_data = base.role(sample) == "data"
        theirs = periods.get(_period(sample), []) if is_data else listed(str(sample.dsid))
        if theirs:
            found[sample.name] = theirs
    return found


def _skims(dataset: dict[str, Any]) -> set[str]:
    whole = {"noskim"} if dataset.get("file_list") else set()
    return whole | {skim["skim_type"] for skim in dataset.get("skims") or []}


def _period(sample: Sample) -> str:
    match = _PERIOD.search(_file(sample.paths[0]))
    return match[0] if match else ""


def _file(place: str) -> str:
    return place.rsplit("/", 1)[-1]


def _folder(urls: list[str]) -> str:
    """Find the folder that all URLs share, with its closing slash."""
    hosts = {re.match(r"\w+://[^/]*/+", url) for url in urls}
    starts = {host[0] for host in hosts if host}
    if len(starts) != 1:
        raise DataError(f"atlasopenmagic's files lie on {len(starts)} servers; a release has one folder")
    start = starts.pop()
    inner = commonpath([url.removeprefix(start).rpartition("/")[0] for url in urls])
    return f"{start}{inner}/" if inner else start


def _normalisation(dataset: dict[str, Any]) -> dict[str, float]:
    """Take xsec (pb, times k-factor and filter efficiency) and sumw from the library, where it has both."""
    xsec, sumw = dataset.get("cross_section_pb"), dataset.get("sumOfWeights")
    if xsec is None or sumw is None:
        return {}
    factor = 1.0
    for name in ("kFactor", "genFiltEff"):
        value = dataset.get(name)
        factor *= 1.0 if value is None else float(value)
    return {"xsec": float(xsec) * factor, "sumw": float(sumw), "red_eff": 1.0}
