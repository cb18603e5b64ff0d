"""What a component is: a frozen, checked description that carries its own configuration.

Data sets, streams, encoders, networks, trainers, optimisers and methods are all described this
way. A description holds no state; what runs is made from it (``build``, ``start``), so the same
description can be used in many runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    TypeVar,
    cast,
    dataclass_transform,
    get_args,
    get_type_hints,
)

import pydantic
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from spikecl.errors import ConfigError, suggest

T = TypeVar("T")

# A tuple in Python, a list in TOML: containers are taken leniently, their entries strictly.
Ints = Annotated[tuple[Annotated[int, Strict()], ...], Strict(False)]
Floats = Annotated[tuple[Annotated[float, Strict()], ...], Field(min_length=1), Strict(False)]
Sizes = Annotated[
    tuple[Annotated[int, Strict(), Field(ge=1)], ...], Field(min_length=1), Strict(False)
]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

_RULES = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def component(cls: type[T]) -> type[T]:
    """Make a class a frozen, strict dataclass whose wrong values raise ``ConfigError``.

    Example:
        >>> @component
        ... class Noise:
        ...     scale: PositiveFloat = 0.1
        >>> Noise(scale=0.5).scale
        0.5
        >>> Noise(scale=-1.0)
        Traceback (most recent call last):
        ...
        spikecl.errors.ConfigError: Noise.scale: got -1.0; input should be greater than 0
    """
    made = pydantic.dataclasses.dataclass(frozen=True, slots=True, config=_RULES)(cls)
    plain = made.__init__

    @functools.wraps(plain)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            plain(self, *args, **kwargs)
        except ValidationError as error:
            raise ConfigError(explain(error, cls.__name__, made)) from None

    made.__init__ = checked  # type: ignore[method-assign]
    return cast(type[T], made)


def from_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a component from a TOML table; errors name the key as the user wrote it."""
    try:
        return TypeAdapter(cls).validate_json(json.dumps(table))
    except ValidationError as error:
        raise ConfigError(explain(error, where, cls)) from None
    except TypeError as error:
        raise ConfigError(f"[{where}]: {error}; use numbers, strings, booleans, arrays") from None


def to_table(value: Any) -> dict[str, Any]:
    """Return the JSON form of a component: the part of a run's identity it stands for."""
    return cast(dict[str, Any], json.loads(TypeAdapter(type(value)).dump_json(value)))


def fields_of(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of a component's parameters."""
    return tuple(f.name for f in dataclasses.fields(cls))


def named(table: Mapping[str, type[Any]], key: str, default: str) -> tuple[Any, ...]:
    """Return what makes a field take one of several components, by name where text is written.

    In Python the field takes a component; in TOML ``"alif"`` or ``{model = "alif", beta = 0.9}``,
    ``model`` being the key; without it the default is meant.

    Example:
        >>> @component
        ... class Square:
        ...     side: PositiveFloat = 1.0
        >>> shape = TypeAdapter(Annotated[Square, *named({"square": Square}, "shape", "square")])
        >>> shape.validate_python({"shape": "square", "side": 2.0})
        Square(side=2.0)
        >>> shape.dump_python(Square())
        {'shape': 'square', 'side': 1.0}
    """

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = {key: value}
        if not isinstance(value, Mapping):
            return value
        rest = dict(value)
        name = rest.pop(key, default)
        if not isinstance(name, str) or name not in table:
            raise ConfigError(f"{key}: got {name!r}{suggest(str(name), table)}")
        return from_table(table[name], rest, str(name))

    def write(value: Any) -> dict[str, Any]:
        names = [name for name, cls in table.items() if cls is type(value)]
        if not names:
            raise UnnamedError(f"{type(value).__qualname__} is not a registered {key}")
        return {key: names[0], **to_table(value)}

    schema = {
        "anyOf": [
            {"enum": list(table)},
            {"type": "object", "properties": {key: {"enum": list(table)}}},
        ]
    }
    return BeforeValidator(read), PlainSerializer(write), WithJsonSchema(schema)


class UnnamedError(TypeError):
    """A component holds one that has no name, so it cannot be written down."""


def explain(error: ValidationError, where: str, cls: type[Any]) -> str:
    """Turn pydantic's report into lines of what was given, what is allowed, what to do."""
    items: list[dict[str, Any]] = [dict(item) for item in error.errors()]
    fields: dict[object, str] = {}  # of each, what is said first
    for item in items:
        field = item["loc"][0] if item["loc"] else ""
        if field not in fields and not any(_is_closer(other, item) for other in items):
            fields[field] = _explain_one(item, where, cls)
    return "; ".join(fields.values())


def _is_closer(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether an error is of a branch of a union that fits the value better than the other's.

    The other calls the kind of the value wrong; this one takes it, or goes on to its entries.
    """
    place, within = _keys(other["loc"]), _keys(one["loc"])
    if not _is_of_wrong_kind(other) or within[: len(place)] != place:
        return False
    return len(within) > len(place) or not _is_of_wrong_kind(one)


def _is_of_wrong_kind(item: dict[str, Any]) -> bool:
    """Whether an error says that a value is of a wrong kind."""
    return str(item["type"]).endswith("_type")


def _explain_one(item: dict[str, Any], where: str, cls: type[Any]) -> str:
    path = ".".join([where, *map(str, _keys(item["loc"]))])
    said = item.get("ctx", {}).get("error")
    if isinstance(said, ConfigError):  # a component's own check of how its values fit together
        return f"{path}: {said}" if item["loc"] else str(said)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = fields_of(_owner(cls, item["loc"][:-1]))
        return f"unknown key {path}{suggest(str(item['loc'][-1]), known)}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{path} is missing; give it a value"
    message = _in_words(item)
    names = re.findall("'([^']+)'", str(item.get("ctx", {}).get("expected", "")))
    close = difflib.get_close_matches(str(item["input"]), names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{path}: got {item['input']!r}; {message}{hint}"


def _in_words(item: dict[str, Any]) -> str:
    """Return what is allowed in place of a value, in the words of a configuration file."""
    match item["type"]:
        case "tuple_type":
            given = item["input"]
            number = isinstance(given, int | float) and not isinstance(given, bool)
            return "write a list" + f", as in [{given}]" * number
        case "too_short":
            least = item["ctx"]["min_length"]
            return f"write a list with {least} {'entry' if least == 1 else 'entries'} or more"
    return str(item["msg"][0].lower() + item["msg"][1:])


def _owner(cls: type[Any], path: tuple[object, ...]) -> type[Any]:
    """Return the component that a path of keys leads to, as far as it can be told."""
    for key in path:
        hint = get_type_hints(cls).get(str(key)) if dataclasses.is_dataclass(cls) else None
        parts = [part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)]
        cls = cast(type[Any], parts[0]) if len(parts) == 1 else cls
    return cls


def _keys(location: tuple[object, ...]) -> list[object]:
    """Return the parts of a location that are the user's, not names of a checker's branches."""
    return [part for part in location if isinstance(part, int) or str(part).isidentifier()]
