"""The launch page: choose, see at once whether it can be, start."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from typing import NamedTuple

import streamlit as st

from app import formatting, launcher, widgets
from app.launcher import Choices
from app.services import services
from hzzray.data.catalogue import Release, mistakes, releases
from hzzray.engine.cluster import usable_cpus
from hzzray.errors import HzzrayError, UsageError
from hzzray.messages import RunSpec
from hzzray.physics.analysis import Analysis, Bound
from hzzray.physics.selection import PRESETS, Selection, preset
from hzzray.runs.plan import CHUNK
from hzzray.runs.run import new_run_id
from hzzray.statistics.scaling import names
from hzzray.urls import redact

_TOYS = {200_000: "200 k events, 30 MB", 1_000_000: "1 M events, 150 MB", 5_000_000: "5 M events, 775 MB"}
_ADDRESS = ""  # the choice of the release's own addresses
_MOST_ACTORS = 64
_OPENMAGIC = "2025"  # the release that atlasopenmagic knows, where it is installed
_HERE, _BRIDGES = "actors of this machine", "bridges of the broker"

# How parameters are called on the page, with their units: those that aren't here by their names.
_PARAMETERS = {
    "electron_pt_min": "electrons above [GeV]",
    "muon_pt_min": "muons above [GeV]",
    "identified": "identified leptons alone",
    "isolated": "isolated leptons alone",
    "m34_low": "least m₃₄ [GeV], rising from",
    "m34_high": "least m₃₄ [GeV], rising to",
    "m4l_low": "while m₄ℓ goes from [GeV]",
    "m4l_high": "while m₄ℓ goes to [GeV]",
}


def main() -> None:
    """Show the choices, and what they amount to."""
    if services().is_outside and services().settings.broker is None:
        widgets.heading(1, "Launch a run")
        widgets.banner()
        st.info(
            "This app looks at a cluster from outside. Runs start on its nodes: `ray job submit -- hzzray run …`",
            icon=":material/info:",
        )
        return
    widgets.heading(1, "Launch a run")
    left, right = st.columns([1.5, 1], gap="large")
    with left:
        chosen = _choose()
    with right:
        _confirm(chosen)


class _Chosen(NamedTuple):
    """What a viewer has chosen, sense or nonsense: options of a request, None where they are left at the usual."""

    release: Release
    published: bool
    options: dict[str, object]


def _choose() -> _Chosen:
    """Let the viewer choose all that there is to choose."""
    known = releases(services().settings.catalogue)
    for mistake in mistakes(services().settings.catalogue):
        st.warning("A release of your catalogue can't be used.", icon=":material/warning:")
        st.code(mistake, language=None)
    with st.container(border=True):
        widgets.heading(2, ":material/database: Data")
        first, second = st.columns(2)
        with first:
            names = ["toy", *(name for name in known if name != "toy")]
            name = st.selectbox(
                "Release", names, format_func=lambda name: known[name].title, key="release", persist_state="session"
            )
            release = known[name]
        with second:
            source, events = _source(release)
        openmagic = (
            name == _OPENMAGIC and find_spec("atlasopenmagic") is not None
            and st.toggle("Ask atlasopenmagic where the files are", key="openmagic", help="When the run begins.")
        )  # fmt: skip
        samples = _samples(release)
        first, second = st.columns(2)
        with first:
            fraction = st.slider(
                "Part of each file to read [%]", 1, 100, 100, key="fraction", help="The leading entries of each file."
            )
        with second:
            luminosity = st.number_input(
                "Luminosity [fb⁻¹]", min_value=0.0, value=release.luminosity, step=1.0, key=f"luminosity-{name}",
                help="What simulation is scaled to.",
            )  # fmt: skip
    with st.container(border=True):
        widgets.heading(2, ":material/filter_alt: Selection")
        chosen = st.selectbox(
            "Preset", list(PRESETS), index=list(PRESETS).index(release.selection), key=f"selection-{name}",
            help="notebook-… are those of the published notebooks; h4l is that of the discovery paper.",
        )  # fmt: skip
        analysis, selection = preset(chosen, release.schema_)
        cuts, parameters = _changes(analysis, selection)
        observables = _observables(analysis)
        axis, window = _binning(release)
        variations = _variations(release)
        background = st.text_input(
            "Uncertainty of the background, relative", "", key=f"background-{name}", live=True, max_chars=20,
            placeholder="what the release states of normalisations",
            help="Such as 0.3: in the counting significances, beside the simulation's statistics.",
        )  # fmt: skip
    with st.container(border=True):
        widgets.heading(2, ":material/memory: Work")
        published, work = _work(toy=release.name == "toy")
    data = {
        "sources": (source,) if source else (),
        "events": events,
        "openmagic": openmagic,
        "samples": samples,
        "luminosity": None if luminosity == release.luminosity else luminosity,
        "fraction": fraction / 100,
    }
    what = {
        "selection": None if chosen == release.selection else chosen,
        "cuts": cuts,
        "parameters": parameters,
        "observables": observables,
        "axis": axis,
        "window": window,
        "variations": variations,
        "background_uncertainty": background.strip(),
    }
    return _Chosen(release, published, data | what | work)


def _source(release: Release) -> tuple[str | None, int | None]:
    """Let the viewer choose where to read; returns the place, None for the release's own, and toy events to write."""
    settings = services().settings
    found = launcher.places(release, settings.sources)
    if release.name == "toy":
        home = next((source for source in settings.sources if "://" not in source), "data")
        new = {launcher.toy_folder(home, events): events for events in _TOYS}
        options = [*found, *(folder for folder in new if folder not in found)]
        place = st.selectbox(
            "Source", options, key="source-toy", persist_state="session",
            format_func=lambda folder: folder if folder in found else f"simulate {_TOYS[new[folder]]}",
            help="Toy files have the format of the 2020 release. They are written once, and kept.",
        )  # fmt: skip
        return place, None if place in found else new[place]
    place = st.selectbox(
        "Source", [*found, _ADDRESS] if release.sources else found, key=f"source-{release.name}",
        format_func=lambda place: redact(place) or f"CERN: {release.sources[0].split('/')[2]}",
        placeholder="No files found", help="Folders of this server's sources, and the release's own address.",
    )  # fmt: skip
    return place or None, None


def _samples(release: Release) -> tuple[str, ...] | None:
    """Let the viewer choose samples; None for all of the release."""
    names = [sample.name for sample in release.samples]
    default = [sample.name for sample in release.samples if sample.default]
    every = st.toggle("All samples of the release", value=True, key=f"every-{release.name}")
    if every:
        return None
    return tuple(
        st.multiselect("Samples", names, default=default, key=f"samples-{release.name}", placeholder="Choose samples")
    )


def _changes(analysis: Analysis, preset: Selection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Show a preset's cuts and parameters, to be changed; returns the changes as the command line has them."""
    st.caption(f"In this order: {' → '.join(map(formatting.plain, preset.rows))}")
    if not st.toggle("Change its cuts", key=f"change-{preset.name}"):
        return (), ()
    # h4l asks for what the release has: another release's answer is no change of this one's.
    asked = "-".join(str(value) for value in preset.parameters.values() if isinstance(value, bool))
    key = f"{preset.name}-{asked}"
    cuts = []
    columns = st.columns(2)
    bounds = [(cut, bound) for cut in preset.cuts for bound in cut.bounds]
    for i, (cut, bound) in enumerate(bounds):
        variable = analysis.variable(bound.variable)
        usual = _ends(bound)
        title = f"{cut.name}: {formatting.axis(variable.name, variable.label, variable.unit)}"
        with columns[i % 2]:
            text = st.text_input(
                formatting.plain(title), usual, key=f"cut-{key}-{bound.variable}", live=True, max_chars=40,
                placeholder="no bound", help="Above and below: LOW:HIGH, either may be empty.",
            )  # fmt: skip
        text = text.replace(" ", "")
        if text != usual:
            cuts.append(f"{bound.variable}={text or ':'}")
    with columns[len(bounds) % 2]:
        more = st.text_input(
            "More cuts", "", key=f"more-{key}", live=True, max_chars=200, placeholder="pt4l=20: dr_min=0.4:",
            help=f"VARIABLE=LOW:HIGH, spaces between. There are {', '.join(v.name for v in analysis.variables)}.",
        )  # fmt: skip
    return (*cuts, *more.split()), _parameters(preset, key)


def _ends(bound: Bound) -> str:
    return ":".join("" if end is None else f"{end:g}" for end in (bound.low, bound.high))


def _parameters(preset: Selection, key: str) -> tuple[str, ...]:
    """Show what changes the measuring; returns the changes."""
    changes = []
    columns = st.columns(2)
    for i, (name, value) in enumerate(preset.parameters.items()):
        title = _PARAMETERS.get(name, name)
        with columns[i % 2]:
            if isinstance(value, bool):
                chosen: bool | float = st.toggle(title, value=value, key=f"parameter-{key}-{name}")
            else:
                chosen = st.number_input(title, value=float(value), key=f"parameter-{key}-{name}")
        if chosen != value:
            changes.append(f"{name}={str(chosen).lower() if isinstance(chosen, bool) else f'{chosen:g}'}")
    return tuple(changes)


def _observables(analysis: Analysis) -> tuple[str, ...]:
    """Let the viewer choose what is filled beside the first observable; nothing for the analysis' own set."""
    first, *rest = [template.observable for template in analysis.templates]
    chosen = st.multiselect(
        f"Observables, beside {first}", rest, default=rest, key=f"observables-{analysis.name}", placeholder="none"
    )
    return () if chosen == rest else (first, *chosen)


def _binning(release: Release) -> tuple[str, str]:
    """Let the viewer choose bins and window; returns what differs from the release's as the command line has it."""
    axis, (low, high) = release.axis, release.window
    usual = f"{axis.start:g}:{axis.stop:g}:{axis.bins}", f"{low:g}:{high:g}"
    first, second = st.columns(2)
    with first:
        bins = st.text_input(
            "Mass axis: from, to [GeV], bins", usual[0], key=f"axis-{release.name}", live=True, max_chars=40
        )
    with second:
        window = st.text_input(
            "Window of the significance [GeV]", usual[1], key=f"window-{release.name}", live=True, max_chars=40,
            help="From a bin's edge to another's.",
        )  # fmt: skip
    bins, window = bins.replace(" ", ""), window.replace(" ", "")
    return "" if bins == usual[0] else bins, "" if window == usual[1] else window


def _variations(release: Release) -> tuple[str, ...]:
    """Let the viewer ask for the release's systematics; nothing where there are none, or they aren't wanted."""
    known = [one.name for one in release.variations if one.default]
    if not known:
        return ()
    wanted = st.toggle(
        "Systematic variations of simulation", key=f"variations-{release.name}",
        help=f"Filled in the same pass, up and down: {', '.join(known)}.",
    )  # fmt: skip
    return ("all",) if wanted else ()


def _work(*, toy: bool) -> tuple[bool, dict[str, object]]:
    """Let the viewer choose name, actors, size of tasks, and pace; returns whether bridges work, and the options."""
    if "suggested" not in st.session_state:
        st.session_state["suggested"] = new_run_id()
    run_id = st.text_input("Name of the run", st.session_state["suggested"], key="run name", live=True, max_chars=64)
    published = False
    if services().settings.broker is not None:
        who = [_BRIDGES] if services().is_outside else [_HERE, _BRIDGES]
        help_text = "The broker's bridges take the tasks of all runs, with actors of their own."
        published = st.segmented_control("Who works", who, default=_BRIDGES, required=True, help=help_text) == _BRIDGES
    actors: dict[str, object] = {}
    pace = 0.0
    cpus = usable_cpus()
    first, second = st.columns(2)
    if not published:
        with first:
            if st.toggle("Elastic pool", key="elastic", help="The backlog decides how many actors there are."):
                low, high = st.slider("Actors", 1, max(_MOST_ACTORS, cpus), (1, cpus), key="actors between")
                actors = {"min_actors": low, "max_actors": high}
            else:
                actors = {"actors": int(st.number_input("Actors", 1, _MOST_ACTORS, cpus, key="actors"))}
        with second:
            pace = st.select_slider(
                "Take at least", [0, 15, 30, 60, 120, 300], value=30 if toy else 0, key=f"pace-{toy}",
                format_func=lambda s: f"{s} s" if s else "no time",
                help="Spread the work over this time, so that an audience can watch. 0: as fast as can be.",
            )  # fmt: skip
    with second:
        chunk = st.select_slider(
            "Events a task", [1_000, 5_000, 20_000, 100_000, CHUNK, 4 * CHUNK], value=5_000 if pace else CHUNK,
            format_func=formatting.count, key=f"chunk-{bool(pace)}",
            help="Smaller tasks show progress in smaller steps.",
        )  # fmt: skip
    return published, {"run_id": run_id, "chunk": None if chunk == CHUNK else chunk, "pace": float(pace), **actors}


def _confirm(chosen: _Chosen) -> None:
    """Say whether the choices can be, what they amount to, and start."""
    settings = services().settings
    with st.container(border=True, key="confirm"):
        widgets.heading(2, ":material/rocket_launch: Ready?")
        choices: Choices | None = None
        spec: RunSpec | None = None
        try:
            choices = Choices.of(chosen.release, published=chosen.published, **chosen.options)
            spec = choices.check(settings.runs, settings.sources)
        except UsageError as error:
            st.error(formatting.plain(str(error)), icon=":material/error:")
        else:
            _summary(choices, spec)
        is_wished = st.button(
            "Start", type="primary", width="stretch", disabled=spec is None, icon=":material/play_arrow:"
        )
        if choices is not None:
            st.caption("The same, in a terminal:")
            st.code(f"hzzray {shlex.join(choices.command())}", language="bash", wrap_lines=True)
            if is_wished:
                _start(choices)


def _summary(choices: Choices, spec: RunSpec) -> None:
    lines = [
        _what(choices, spec),
        f"**{formatting.plain(spec.selection.name)}** at {spec.luminosity:g} fb⁻¹",
        _who(choices),
    ]
    if choices.request.events:
        lines.append(f"{formatting.count(choices.request.events)} toy events are simulated first")
    st.success("\n".join(f"- {line}" for line in lines))


def _what(choices: Choices, spec: RunSpec) -> str:
    """Say what will be read: of a folder what is there, of an address what the release states."""
    release, title = spec.release, formatting.plain(spec.release.title)
    wanted = f"**{len(release.samples)}** samples of {title}"
    if choices.request.events:
        return f"{wanted}, about {formatting.count(choices.request.events * spec.fraction)} events"
    lacking = launcher.lacking(spec, choices.source)
    there = [sample for sample in release.samples if sample.name not in (lacking or ())]
    stated = 0 if release.entries_vary else sum(sample.entries or 0 for sample in there)
    about = f", about {formatting.count(stated * spec.fraction)} events" if stated else ""
    if lacking is None:
        return f"{wanted}{about} as the release states; what is there is seen when the run begins"
    if not lacking:
        return f"{wanted}{about}"
    found = f"**{len(there)} of {len(release.samples)}** samples of {title}{about}"
    return f"{found}; not there: {formatting.plain(names(lacking))}"


def _who(choices: Choices) -> str:
    if choices.published:
        return "tasks go to the broker, for its bridges to take"
    address = services().settings.address
    where = f"the cluster at {formatting.plain(address)}" if address else "this machine"
    most = choices.request.max_actors or choices.request.actors or usable_cpus()
    return f"**{most}** actor{'s' if most > 1 else ''} on {where}"


def _start(choices: Choices) -> None:
    try:
        services().launcher.run(choices)
    except HzzrayError as error:
        st.error(formatting.plain(str(error)))
        return
    del st.session_state["suggested"]
    widgets.show_run(choices.run_id)
    st.switch_page("views/live.py", query_params={"run": choices.run_id})


main()
