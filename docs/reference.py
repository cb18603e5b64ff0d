"""Writes the configuration reference and its JSON schema from the dataclasses themselves.

    python docs/reference.py            writes docs/generated/

Names, types, defaults and ranges come from the classes that check a configuration, meanings from
the ``Args`` of their docstrings. A field without a meaning stops the build.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from math import inf
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

import spikecl
from spikecl.components import fields_of, to_table
from spikecl.data import Frames
from spikecl.data.catalogue import CATALOGUE
from spikecl.experiments.config import CHOICES, FIXED, OPTIONAL, config_schema
from spikecl.networks import Plasticity
from spikecl.neurons import LIF, MODELS, SURROGATES, Escape, SpikingNeuron
from spikecl.neurons.neuron import Resetting
from spikecl.neurons.values import Range, ranges
from spikecl.optim import SCHEDULES
from spikecl.registry import METHODS, TRAINERS
from spikecl.streams import CLASS_IL, DOMAIN_IL, TASK_FREE, TASK_IL, Reveal

SECTIONS = ("run", "data", "stream", "encoding", "network", "trainer")
SECTIONS += ("loss", "optimiser", "train", "method", "checkpoint", "kernels", "export")
TABLES = {"data": {"frames": Frames}}  # keys that are tables of their own
NAMED = {
    "model": ("neuron-models", MODELS),
    "shape": ("surrogates", SURROGATES),
    "kind": ("schedules", SCHEDULES),
}
NEURONS = """
## Neuron models

What `neuron` and `output` of a network may be: a name, or a table such as
`{model = "alif", beta = 0.95}`. A number of a neuron may also be a list with one entry for each
neuron. Equations, and which model to take, are in [Neurons](neurons.md).
"""
SCHEDULES_LEAD = """
## Schedules

What `schedule` of an optimiser may be: a name, or a table such as
`{kind = "cosine", warmup = 0.1}`.
"""
SHAPES = """## Surrogates

What `surrogate` of a neuron may be: a name, or a table such as
`{shape = "arctan", slope = 2.0}`.
"""


def main(folder: Path) -> None:
    """Write the generated parts of the pages, and ``spikecl.schema.json``, into a folder."""
    assert set(SECTIONS) == {*FIXED, *CHOICES, *OPTIONAL}
    behind = {"network": neurons, "optimiser": schedules}
    parts = [section(name) + (behind[name]() if name in behind else "") for name in SECTIONS]
    write(folder / "configuration.md", "\n".join(parts))
    write(folder / "models.md", models())
    write(folder / "names.md", names())
    write(folder / "reveal.md", reveal())
    write(folder / "needs.md", needs())
    write(folder / "trainers.md", trainers())
    write(folder / "data.md", data_sets())
    write(folder / "spikecl.schema.json", json.dumps(config_schema(), indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file if its text is new: Sphinx rebuilds what is younger than its page."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def section(name: str) -> str:
    """Return the reference of one section of a configuration file."""
    if name in FIXED or name in OPTIONAL:
        cls = {**FIXED, **OPTIONAL}[name]
        parts = [f"## `[{name}]`\n\n{lead(cls)}\n\n{table(cls)}\n"]
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


def neurons() -> str:
    """Return the reference of the neurons and surrogates that a network's keys may name."""
    parts = [NEURONS]
    beside: dict[type[Any], str] = {
        SpikingNeuron: "of all that spike",
        Resetting: "of all with a reset, and of all that spike",
    }
    for title, shared in (("Of all that spike", SpikingNeuron), ("Of all with a reset", Resetting)):
        parts.append(f"### {title}\n\n{table(shared, own(shared))}\n")
    for name, cls in MODELS.items():
        bases = [beside[base] for base in cls.__mro__[1:] if base in beside]
        more = f" Beside these, the keys {bases[0]}." if bases else ""
        parts.append(f"### `{name}`\n\n{first(cls)}{more}\n\n{table(cls, own(cls))}\n")
        beside[cls] = f"of `{name}`"
    parts.append(f"### `escape`\n\n{first(Escape)}\n\n{table(Escape)}\n")
    parts.append(f"## Plasticity\n\nWhat `stp` of a network may be. {first(Plasticity)}\n")
    parts.append(f"{table(Plasticity)}\n")
    parts.append(SHAPES)
    for name, cls in SURROGATES.items():
        parts.append(f"### `{name}`\n\n{first(cls)}\n\n{table(cls)}\n")
    return "\n".join(parts)


def schedules() -> str:
    """Return the reference of the schedules that an optimiser's key may name."""
    parts = [SCHEDULES_LEAD]
    for name, cls in SCHEDULES.items():
        parts.append(f"### `{name}`\n\n{lead(cls)}\n\n{table(cls)}\n")
    return "\n".join(parts)


def own(cls: type[Any]) -> tuple[str, ...]:
    """Return the fields that a class adds to those of its bases, or gives another default."""
    return tuple(name for name in fields_of(cls) if name in cls.__annotations__)


def models() -> str:
    """Return a table of the neuron models: state, and parameters with their defaults."""
    rows = ["| name | class | state | constants |", "|---|---|---|---|"]
    for name, cls in MODELS.items():
        rest = cls().rest(torch.zeros(1, 2, 1))
        state = [f"`{key}`" for key, part in zip(rest._fields, rest) if part is not None]
        values = to_table(cls())
        shown = ranges(cls) if issubclass(cls, LIF) else own(cls)
        constants = [f"`{key} = {toml(values[key])}`" for key in shown]
        cells = (f"`{name}`", f"`{cls.__name__}`", ", ".join(state), ", ".join(constants))
        rows.append("| " + " | ".join(text or "none" for text in cells) + " |")
    return "\n".join(rows) + "\n"


def toml(value: Any) -> str:
    """Return a value as TOML; of a named component only what differs from its defaults."""
    if not isinstance(value, dict):
        return json.dumps(value)
    key = next(key for key in NAMED if key in value)
    defaults = to_table(NAMED[key][1][value[key]]())
    changed = {k: v for k, v in value.items() if k != key and v != defaults[k]}
    pairs = {key: value[key], **changed}
    inside = ", ".join(f"{k} = {toml(v)}" for k, v in pairs.items())
    return f"{{{inside}}}" if changed else json.dumps(value[key])


def table(cls: type[Any], fields: tuple[str, ...] | None = None) -> str:
    """Return the parameters of a class, or some of them, as a Markdown table."""
    fields = fields_of(cls) if fields is None else fields
    if not fields:
        return "*No parameters.*" if not fields_of(cls) else "*No parameters of its own.*"
    schema = TypeAdapter(cls).json_schema()
    meanings, numbers = arguments(cls), ranges(cls)
    rows = ["| key | type and range | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        if field not in meanings:
            raise ValueError(f"{cls.__name__}.{field}: its docstring has no Args entry for it")
        entry = resolved(schema["properties"][field], schema)
        kind = number(numbers[field]) if field in numbers else describe(entry)
        default = toml(default_of(cls, field, entry)) if "default" in entry else "required"
        default = "not set" if default == "null" else f"`{default}`"
        rows.append(f"| `{field}` | {kind} | {default} | {cell(meanings[field])} |")
    return "\n".join(rows)


def resolved(entry: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with the words it refers to in place of the reference."""
    definition = schema.get("$defs", {}).get(entry.get("$ref", "").split("/")[-1], {})
    return {**entry, **definition} if "enum" in definition else entry


def default_of(cls: type[Any], field: str, entry: dict[str, Any]) -> Any:
    """Return the default of a field as it stands in a table; a schema leaves out the names."""
    value = next(f.default for f in dataclasses.fields(cls) if f.name == field)
    for key, (_, known) in NAMED.items():
        for name, kind in known.items():
            if type(value) is kind:
                return {key: name, **to_table(value)}
    return entry["default"]


def number(allowed: Range) -> str:
    """Return the range of a number of a neuron."""
    low = [f"{'>' if allowed.open_low else '≥'} {allowed.low:g}"] if allowed.low > -inf else []
    high = [f"≤ {allowed.high:g}"] if allowed.high < inf else []
    return f"number {' and '.join(low + high)}".strip()


def describe(entry: dict[str, Any]) -> str:
    """Return type and range of a JSON-schema entry in words."""
    if "enum" in entry or "const" in entry:
        values = entry.get("enum", [entry.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if "$ref" in entry:
        return "table, see below"
    if "anyOf" in entry:
        kinds = [kind for kind in entry["anyOf"] if kind.get("type") != "null"]
        for key, (anchor, _) in NAMED.items():
            if any(key in kind.get("properties", ()) for kind in kinds):
                return f"[name or table](#{anchor})"
        return " or ".join(describe(kind) for kind in kinds)
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
    parts = re.split(r"::\n\n((?:[ ]+\S.*\n|\n)+)", text.strip() + "\n")
    parts[::2] = [markdown(part) for part in parts[::2]]
    parts[1::2] = [f":\n\n```text\n{textwrap.dedent(b).strip()}\n```\n\n" for b in parts[1::2]]
    return "".join(parts).strip()


def first(cls: type[Any]) -> str:
    """Return the first paragraph of a docstring, as Markdown."""
    return lead(cls).split("\n\n")[0].replace("\n", " ")


def arguments(cls: type[Any]) -> dict[str, str]:
    """Return the ``Args`` of a docstring and of those of its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= arguments_of(base)
    return meanings


def arguments_of(cls: type[Any]) -> dict[str, str]:
    """Return the ``Args`` of a class's own docstring."""
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
            flags = ", ".join(f"`{flag}`" for flag in registry.get(name)().needs.names())
            rows.append(f"| {kind} `{name}` | {flags or 'nothing'} |")
    return "\n".join(rows) + "\n"


def trainers() -> str:
    """Return a table of the rules of credit assignment: what each is local in, holds and is."""
    titles = ("name", "local in time", "local in space", "memory", "exact", "networks", "source")
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in TRAINERS.table:
        traits = TRAINERS.get(name).traits
        own = f"[`{name}`](configuration.md#trainer{name})"
        rows.append(f"| {own} | " + " | ".join(cell(text) for text in traits) + " |")
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
