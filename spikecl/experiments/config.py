"""Configuration: one TOML file, checked as a whole before anything starts.

Sections that choose a component have ``name``, a few keys common to all components of the kind
(``hidden``, ``steps``, ``lr``, ``experiences``), and a table per component
(``[method.hlop]``). Tables of components that are not chosen are checked and not used.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from spikecl.components import PositiveInt, component, fields_of, from_table, to_table
from spikecl.continual import MethodSpec
from spikecl.continual.compose import check_slots, method_name
from spikecl.data import Frames
from spikecl.encoding import Encoder, Loss
from spikecl.errors import ConfigError, suggest
from spikecl.kernels import Kernels
from spikecl.learner import ExportPlan, TrainPlan
from spikecl.networks import NetworkSpec
from spikecl.optim import OptimiserSpec
from spikecl.registry import (
    ENCODINGS,
    LOSSES,
    METHODS,
    NETWORKS,
    OPTIMISERS,
    STREAMS,
    TRAINERS,
    Registry,
)
from spikecl.streams import StreamSpec
from spikecl.trainers import Trainer


@component
class RunOptions:
    """Where and from which seed a run computes.

    Args:
        seed: Root of all randomness.
        threads: Threads of one run; more may change the last bit of a result.
        device: ``cpu`` or ``cuda``.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    threads: PositiveInt = 1
    device: Literal["cpu", "cuda"] = "cpu"


@component
class DataOptions:
    """The data set.

    Args:
        name: A known name (``spikecl data list``) or the path of an ``.npz`` file.
        frames: How recordings of events become frames; only for data that are events.
        validation: Test on this fraction of the training samples instead of on the test set: what
            hyper-parameters are to be chosen on. 0 uses the test set.
        samples: Training samples to use, every class in its share; 0 uses all.
        folds: Cross-validation: training and test samples together make this many folds, and
            ``fold`` is tested on; 0 keeps the data's own test set.
        fold: Which fold is tested on, from 0.
    """

    name: str = "digits"
    frames: Frames | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    samples: Annotated[int, Field(ge=0)] = 0
    folds: Annotated[int, Field(ge=0)] = 0
    fold: Annotated[int, Field(ge=0)] = 0


@component
class CheckpointPolicy:
    """When state is saved, beside after every event and on Ctrl-C or SIGTERM.

    Args:
        every_steps: Also save every n-th step of an epoch; 0 saves after events only.
        keep: Checkpoints to keep.
    """

    every_steps: Annotated[int, Field(ge=0)] = 0
    keep: PositiveInt = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """A section that chooses a component."""

    registry: Registry
    default: str
    common: tuple[str, ...] = ()


FIXED: dict[str, type[Any]] = {
    "run": RunOptions,
    "data": DataOptions,
    "train": TrainPlan,
    "checkpoint": CheckpointPolicy,
    "kernels": Kernels,
}
OPTIONAL: dict[str, type[Any]] = {"export": ExportPlan}
"""Sections that are there or not; those that are not there are not part of a run's identity."""

CHOICES: dict[str, Choice] = {
    "stream": Choice(STREAMS, "permuted", ("experiences", "scenario", "old_data")),
    "network": Choice(NETWORKS, "spiking_mlp", ("hidden", "neuron")),
    "encoding": Choice(ENCODINGS, "direct", ("steps",)),
    "trainer": Choice(TRAINERS, "bptt"),
    "loss": Choice(LOSSES, "cross_entropy"),
    "optimiser": Choice(OPTIMISERS, "sgd", ("lr", "schedule", "state")),
    "method": Choice(METHODS, "finetune"),
}


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration: one object per section."""

    run: RunOptions
    data: DataOptions
    stream: StreamSpec
    network: NetworkSpec
    encoding: Encoder
    trainer: Trainer
    loss: Loss
    optimiser: OptimiserSpec
    train: TrainPlan
    checkpoint: CheckpointPolicy
    kernels: Kernels
    methods: tuple[MethodSpec, ...]
    export: ExportPlan | None = None

    def table(self) -> dict[str, Any]:
        """Return the table that rebuilds this configuration, defaults filled in."""
        table: dict[str, Any] = {name: to_table(getattr(self, name)) for name in FIXED}
        for section, choice in CHOICES.items():
            parts = self.methods if section == "method" else (getattr(self, section),)
            names = [choice.registry.name_of(type(part)) for part in parts]
            table[section] = {"name": names if section == "method" else names[0]}
            table[section] |= {n: to_table(part) for n, part in zip(names, parts, strict=True)}
        given = {name: getattr(self, name) for name in OPTIONAL}
        return table | {name: to_table(each) for name, each in given.items() if each is not None}

    def identity(self) -> dict[str, Any]:
        """Return the part of the table that a run's results depend on (the seed aside)."""
        table = self.table()
        del table["checkpoint"], table["run"]["seed"]
        return table

    @property
    def method(self) -> str:
        """Names of the methods, joined."""
        return "+".join(method_name(spec) for spec in self.methods)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply ``--set`` overrides (``section.key=value``)."""
    try:
        table = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for override in overrides:
        apply_override(table, override)
    return parse_config(table)


def apply_override(table: dict[str, Any], override: str) -> None:
    """Set ``a.b.c=value`` in a table; the value is read as TOML, else taken as a bare string."""
    path, equals, text = override.partition("=")
    *parents, last = path.strip().split(".")
    if not equals or not parents or not last:
        raise ConfigError(f"--set {override}: write section.key=value, as in train.epochs=3")
    node = table
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value, not a section")
    try:
        node[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        node[last] = text.strip()


def parse_config(table: Mapping[str, Any]) -> Config:
    """Check a table of sections and return the configuration."""
    known = {*FIXED, *CHOICES, *OPTIONAL}
    for section, value in table.items():
        if section not in known:
            raise ConfigError(f"unknown section [{section}]{suggest(section, known)}")
        if not isinstance(value, Mapping):
            raise ConfigError(f"{section}: got {value!r}; write it as a section [{section}]")
    made: dict[str, Any] = {
        name: from_table(cls, table.get(name, {}), name) for name, cls in FIXED.items()
    }
    made |= {n: from_table(cls, table[n], n) for n, cls in OPTIONAL.items() if n in table}
    for section in CHOICES:
        made[section] = _choose(section, table.get(section, {}))
    methods = made.pop("method")
    check_slots(methods)
    return Config(**{k: v[0] if k in CHOICES else v for k, v in made.items()}, methods=methods)


def _choose(section: str, table: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the chosen components of a section; check the tables of the others too."""
    choice = CHOICES[section]
    given = table.get("name", choice.default)
    names = [given] if isinstance(given, str) else given
    many = section == "method"
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise ConfigError(f"{section}.name: got {given!r}; write a name{' or a list' * many}")
    if len(names) > 1 and not many:
        raise ConfigError(f"{section}.name: got {len(names)} names; write one")
    registered = choice.registry.names()
    common = {key: table[key] for key in choice.common if key in table}
    for key, value in table.items():
        if key in ("name", *choice.common):
            continue
        if key in registered and not isinstance(value, Mapping):
            raise ConfigError(
                f"{section}.{key}: got {value!r}; write it as a table [{section}.{key}]"
            )
        if key not in registered:
            allowed = ["name", *choice.common, *registered]
            raise ConfigError(f"unknown key {section}.{key}{suggest(key, allowed)}")
        if key not in names:
            from_table(choice.registry.get(key), value, f"{section}.{key}")
    return tuple(_component(section, name, common, table.get(name, {})) for name in names)


def _component(section: str, name: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    cls = CHOICES[section].registry.get(name)
    for key in common:
        if key not in fields_of(cls):
            raise ConfigError(
                f"{section}.{key}: '{name}' has no such parameter{suggest(key, fields_of(cls))}"
            )
        if key in own:
            raise ConfigError(
                f"{section}.{key} is also given in [{section}.{name}]; keep one of the two"
            )
    try:
        return from_table(cls, {**common, **own}, f"{section}.{name}")
    except ConfigError as error:
        text = str(error)
        for key in common:  # name the key where the user wrote it
            text = text.replace(f"{section}.{name}.{key}", f"{section}.{key}")
        raise ConfigError(text) from None


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for editors."""
    from pydantic import TypeAdapter

    def one(cls: type[Any]) -> dict[str, Any]:
        return dict(TypeAdapter(cls).json_schema(ref_template="#/$defs/{model}"))

    sections: dict[str, Any] = {name: one(cls) for name, cls in (FIXED | OPTIONAL).items()}
    for section, choice in CHOICES.items():
        names = choice.registry.names()
        schemas = {name: one(choice.registry.get(name)) for name in names}
        name: dict[str, Any] = {"enum": list(names)}
        if section == "method":
            name = {"anyOf": [name, {"type": "array", "items": name, "minItems": 1}]}
        common = {key: _shared_property(schemas, key) for key in choice.common}
        properties = {"name": name, **common, **schemas}
        sections[section] = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "spikecl configuration",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
    }
    return _hoist_definitions(schema)


def _shared_property(schemas: Mapping[str, Any], key: str) -> Any:
    """Return what a key may be that several components have: what one of them at least takes."""
    given = [s["properties"][key] for s in schemas.values() if key in s["properties"]]
    kinds = [{k: v for k, v in each.items() if k != "default"} for each in given]
    if all(kind == kinds[0] for kind in kinds):
        return given[0]
    return {"anyOf": [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]]}


def _hoist_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            found.update({k: walk(v) for k, v in node.pop("$defs", {}).items()})
            return {k: walk(v) for k, v in node.items()}
        return [walk(v) for v in node] if isinstance(node, list) else node

    walked: dict[str, Any] = walk(json.loads(json.dumps(schema)))
    return {**walked, "$defs": found} if found else walked
