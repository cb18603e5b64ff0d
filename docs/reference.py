"""Writes the configuration reference and its JSON schema from the dataclasses themselves.

    python docs/reference.py            writes docs/generated/

Names, types, defaults and ranges come from the classes that check a configuration, meanings from
the ``Args`` of their docstrings. A field without a meaning stops the build.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import spikecl
from spikecl.components import fields_of
from spikecl.data import Frames
from spikecl.data.catalogue import CATALOGUE
from spikecl.experiments.config import CHOICES, FIXED, config_schema
from spikecl.registry import METHODS, TRAINERS
from spikecl.streams import CLASS_IL, DOMAIN_IL, TASK_FREE, TASK_IL, Reveal

SECTIONS = ("run", "data", "stream", "encoding", "network", "trainer")
SECTIONS += ("loss", "optimiser", "train", "method", "checkpoint")
TABLES = {"data": {"frames": Frames}}  # keys that are tables of their own


def main(folder: Path) -> None:
    """Write the generated parts of the pages, and ``spikecl.schema.json``, into a folder."""
    assert set(SECTIONS) == {*FIXED, *CHOICES}
    write(folder / "configuration.md", "\n".join(section(name) for name in SECTIONS))
    write(folder / "names.md", names())
    write(folder / "reveal.md", reveal())
    write(folder / "needs.md", needs())
    write(folder / "data.md", data_sets())
    write(folder / "spikecl.schema.json", json.dumps(config_schema(), indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file if its text is new: Sphinx rebuilds what is younger than its page."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def section(name: str) -> str:
    """Return the reference of one section of a configuration file."""
    if name in FIXED:
        parts = [f"## `[{name}]`\n\n{lead(FIXED[name])}\n\n{table(FIXED[name])}\n"]
        for key, cls in TABLES.get(name, {}).items():
            parts.append(f"### `[{name}.{key}]`\n\n{lead(cls)}\n\n{table(cls)}\n")
        return "\n".join(parts)
    choice = CHOICES[name]
    known = choice.registry.names()
    chosen = "`, `".join(known)
    text = f"## `[{name}]`\n\n`name` chooses one of `{chosen}` (default `{choice.default}`)"
    text += ", or a list of several to compose" if name == "method" else ""
    if choice.common:
        keys = "`, `".join(choice.common)
        text += f". `{keys}` may stand in `[{name}]` itself, for the component that is chosen"
    parts = [text + ".\n"]
    for component in known:
        cls = choice.registry.get(component)
        parts.append(f"### `[{name}.{component}]`\n\n{lead(cls)}\n\n{table(cls)}\n")
    return "\n".join(parts)


def table(cls: type[Any]) -> str:
    """Return the parameters of a class as a Markdown table."""
    if not fields_of(cls):
        return "*No parameters.*"
    schema = TypeAdapter(cls).json_schema()
    meanings = arguments(cls)
    rows = ["| key | type and range | default | meaning |", "|---|---|---|---|"]
    for field in fields_of(cls):
        if field not in meanings:
            raise ValueError(f"{cls.__name__}.{field}: its docstring has no Args entry for it")
        entry = schema["properties"][field]
        default = json.dumps(entry["default"]) if "default" in entry else "required"
        default = "not set" if default == "null" else f"`{default}`"
        rows.append(f"| `{field}` | {describe(entry)} | {default} | {cell(meanings[field])} |")
    return "\n".join(rows)


def describe(entry: dict[str, Any]) -> str:
    """Return type and range of a JSON-schema entry in words."""
    if "enum" in entry or "const" in entry:
        values = entry.get("enum", [entry.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if "$ref" in entry:
        return "table, see below"
    if "anyOf" in entry:
        kinds = [describe(kind) for kind in entry["anyOf"] if kind.get("type") != "null"]
        return " or ".join(kinds)
    if entry.get("type") == "array":
        kind = describe(entry["items"])
        return f"list of ({kind})" if " " in kind else f"list of {kind}s"
    words = {"integer": "integer", "number": "number", "boolean": "`true` or `false`"}
    kind = words.get(entry.get("type", ""), entry.get("type", "any"))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {entry[k]:g}" for k, sign in bounds.items() if k in entry)
    return f"{kind} {limits}".strip()


def lead(cls: type[Any]) -> str:
    """Return what a docstring says before its sections, as Markdown."""
    text = re.split(r"\n(?:Args|Raises|Returns|Example|Source|Deviation):", doc(cls))[0]
    return markdown(text.strip())


def arguments(cls: type[Any]) -> dict[str, str]:
    """Return the ``Args`` of a docstring."""
    found = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", doc(cls), re.MULTILINE)
    lines = textwrap.dedent(found.group(1)).splitlines() if found else []
    meanings: dict[str, str] = {}
    name = ""
    for line in lines:
        if match := re.match(r"(\w+): (.*)", line):
            name = match.group(1)
            meanings[name] = match.group(2)
        elif line.strip():
            meanings[name] += " " + line.strip()
    return meanings


def doc(cls: type[Any]) -> str:
    """Return the class's own docstring, without indentation."""
    return inspect.cleandoc(cls.__doc__ or "")


def markdown(text: str) -> str:
    """Turn the little reStructuredText of our docstrings into Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def cell(text: str) -> str:
    """Return text that can stand in a table cell."""
    return markdown(text).replace("|", r"\|")


def names() -> str:
    """Return a table of the names that ``import spikecl`` offers, with their first lines."""
    rows = ["| name | what it is | lives in |", "|---|---|---|"]
    for public in sorted(spikecl._HOMES):
        home, _, attribute = spikecl._HOMES[public].partition(":")
        value = getattr(importlib.import_module(f"spikecl.{home}"), attribute or public)
        first = inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `spikecl.{public}` | {cell(first)} | `spikecl.{home}` |")
    return "\n".join(rows) + "\n"


def reveal() -> str:
    """Return a table of what each kind of stream reveals."""
    kinds = {"task-incremental": TASK_IL, "class-incremental": CLASS_IL}
    kinds |= {"domain-incremental": DOMAIN_IL, "task-free": TASK_FREE}
    rows = [f"| | {' | '.join(kinds)} |", "|---|" + ":-:|" * len(kinds)]
    for flag in Reveal:
        marks = ["yes" if flag in shown else "" for shown in kinds.values()]
        rows.append(f"| `{flag.name.lower()}` | {' | '.join(marks)} |")
    return "\n".join(rows) + "\n"


def needs() -> str:
    """Return a table of what each trainer and method needs to be revealed."""
    rows = ["| component | needs |", "|---|---|"]
    for kind, registry in (("trainer", TRAINERS), ("method", METHODS)):
        for name in registry.names():
            flags = ", ".join(f"`{flag}`" for flag in registry.get(name).needs.names())
            rows.append(f"| {kind} `{name}` | {flags or 'nothing'} |")
    return "\n".join(rows) + "\n"


def data_sets() -> str:
    """Return a table of the data sets known by name, and where they come from."""
    rows = ["| name | file | training | test | sample | licence |", "|---|---|---|---|---|---|"]
    origins = []
    for entry in CATALOGUE.values():
        shape = "×".join(str(n) for n in entry.shape)
        if entry.step_ms:
            shape += f", steps of {entry.step_ms:g} ms"
        if entry.events:
            shape = f"events on {shape}"
        files = " or ".join(f"`{v.file}`" for v in entry.variants if v.file) or "built in"
        counts = f"{entry.train:,} | {entry.test:,}"
        rows.append(f"| `{entry.name}` | {files} | {counts} | {shape} | {cell(entry.licence)} |")
        place = f" From <{entry.base_url}>." if entry.base_url else ""
        notes = "".join(f" `{v.file}` is a {v.note}." for v in entry.variants if v.note)
        if entry.conversion:
            notes += f" It is not downloaded: {entry.conversion}."
        origins.append(f"`{entry.name}`\n: {entry.citation}.{place}{notes}\n")
    return "\n".join([*rows, "", *origins])


if __name__ == "__main__":
    target = Path(__file__).resolve().parent / "generated"
    target.mkdir(exist_ok=True)
    main(target)
