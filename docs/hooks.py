"""What mkdocs adds to docs/: reference pages made of the code itself, and links that lead out of the folder as names.

So no page has to be written again when an option, a field or a key changes.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import hzzray
from hzzray.data.catalogue import Release
from hzzray.runs.result import Result

ROOT = Path(__file__).parents[1]

# Units by what fields are called, the first that fits; the rest are names or counts.
_UNITS = (
    (r"_s$", "s"),
    (r"^bytes|_bytes$", "bytes"),
    (r"per_s$", "1/s"),
    (r"luminosity|^asked$|^simulation$|^data$", "fb⁻¹"),
    (r"sumw2", "events²"),
    (r"sumw|yield|underflow|overflow|n_signal|n_background|sigma_b", "events"),
    (r"^n$|^n_|^entries$|^planned$|^total$|^events$|invalid", "events (raw)"),
    (r"edges|window|axis", "GeV, or the observable's"),
    (r"notebook|over_sqrt|asimov|observed", "σ"),
)


def on_files(files: Files, config: Any) -> Files:
    """Add the reference pages."""
    pages = {"commands": commands(), "python": python(), "result": result(), "yaml": yaml()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the repository where a link would lead out of the site, and have links to the README lead home."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)", _named, markdown)


def _named(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"


def commands() -> str:
    """Describe all commands and options, as typer lists them."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "hzzray.cli", "utils", "docs", "--name", "hzzray", "--title", "Commands"],
        capture_output=True, text=True, check=True, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "TERMINAL_WIDTH": "200", "HZZRAY_CACHE": ""},
    )  # fmt: skip
    return re.sub(r"\[/?(?:dim|bold|red|yellow|green)\]", "", made.stdout)


def python() -> str:
    """Describe what ``import hzzray`` offers."""
    parts = ["# Python\n", (hzzray.__doc__ or "").replace("``", "`")]
    for name in ("run", "open_run", "explore"):
        parts += _function(f"hzzray.{name}", getattr(hzzray, name), "##")
    for owner, title in ((hzzray.Run, "hzzray.Run"), (_session(), "hzzray.explore(…)")):
        parts += [f"## {title}\n", _text(owner.__doc__)]
        for name, member in vars(owner).items():
            if name.startswith("_") or (not callable(member) and not isinstance(member, property)):
                continue
            if isinstance(member, property):
                parts += [f"### {name}\n", _text(member.fget.__doc__)]
            else:
                parts += _function(name, member, "###")
    return "\n".join(parts)


def _session() -> type:
    from hzzray.runs.explore import Session

    return Session


def _function(name: str, function: Any, level: str) -> list[str]:
    shown = re.sub(
        r"(?<=: )'([^']*)'|(?<=-> )'([^']*)'", lambda one: one[1] or one[2], str(inspect.signature(function))
    )
    shown = shown.replace("hzzray.", "")
    if len(shown) > 80:
        shown = re.sub(r"(?<=\(), |, (?=\*|\w+:)", ",\n    ", f"(\n    {shown[1:]}").replace(") ->", ",\n) ->")
    return [f"{level} {name}\n", f"```python\n{name}{shown}\n```\n", _text(function.__doc__)]


def _text(doc: str | None) -> str:
    """Lay a docstring in numpy's style out: its sections are small headings, its parameters a list."""
    text = inspect.cleandoc(doc or "").replace("``", "`")
    text = re.sub(r"^(\w[\w ]*)\n-{3,}$", r"**\1**\n", text, flags=re.MULTILINE)
    text = re.sub(r"^(\w[\w., _…]*)\n    (.+(?:\n    .*)*)", _item, text, flags=re.MULTILINE)
    text = re.sub(r"^(>>> .*(?:\n(?:>>>|\.\.\.) .*)*)", r"```python\n\1\n```", text, flags=re.MULTILINE)
    return text + "\n"


def _item(entry: re.Match[str]) -> str:
    told = re.sub(r"\n\s*(?!-|\s)", " ", entry[2])
    told = re.sub(r"\n\s*- ", "\n    - ", told)
    return f"- `{entry[1]}`: {told}"


def result() -> str:
    """Describe ``result.json``, model by model."""
    about = (
        "Written anew every second while a run goes on. `hzzray result RUN --json` prints it; its JSON schema is "
        "`hzzray.runs.result.Result.model_json_schema()`. Of each observable there is more in `templates.json`, "
        "which `hist` and `uhi` read.\n"
    )
    return "\n".join(["# result.json\n", about, *_models(Result, units=True)])


def yaml() -> str:
    """Describe the keys of a catalogue of one's own, and all of values.yaml."""
    values = (ROOT / "kuberay" / "values.yaml").read_text(encoding="utf-8")
    return "\n".join(
        [
            "# YAML\n",
            "## A catalogue of your own\n",
            "How it is used is in [Releases and samples of your own](../catalogue.md).\n",
            *_models(Release, units=False),
            "## kuberay/values.yaml\n",
            f"```yaml\n{values}```\n",
        ]
    )


def _models(top: type[BaseModel], *, units: bool) -> Iterator[str]:
    """Describe a model and those that its fields have, each once."""
    seen: list[type[BaseModel]] = [top]
    for model in seen:
        yield f"### {model.__name__}\n"
        yield _text(model.__doc__).replace("\n    ", "\n")
        yield f"| key | type |{' unit |' if units else ''} |\n| --- | --- |{' --- |' if units else ''} --- |"
        for name, field in model.model_fields.items():
            if field.exclude:
                continue
            key = field.alias or name
            kind = _kind(field.annotation)
            inner = list(_inside(field.annotation))
            unit = f" {'' if inner else _unit(name)} |" if units else ""
            yield f"| `{key}` | {kind} |{unit} {(field.description or '').replace('|', '/')} |"
            seen += [one for one in inner if one not in seen]
        yield ""


def _unit(name: str) -> str:
    return next((unit for pattern, unit in _UNITS if re.search(pattern, name)), "")


def _kind(annotation: Any) -> str:
    text = (
        annotation.__name__ if inspect.isclass(annotation) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"typing\.|(?:[\w]+\.)+(?=[A-Z])", "", text).replace("|", "or")
    return f"`{text}`" if len(text) < 90 else f"`{text[:80]}…`"


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and not hasattr(annotation, "__args__"):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in getattr(annotation, "__args__", ()):
        yield from _inside(part)
