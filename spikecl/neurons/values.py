"""Values of neuron parameters: one number for a layer, or a tensor with one for each neuron.

A parameter that learns is stored without bounds and mapped into its range, so that no optimiser
can leave it::

    decay     value = sigmoid(raw)      0 < value < 1   (for a decay 1 - 1/tau this is PLIF)
    positive  value = exp(raw)          value > 0
    0 or more value = softplus(raw)     value > 0 (of another bound: bound + softplus(raw))
    real      value = raw

Source of the decay's form: Fang et al., ICCV 2021, equation 10.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import torch
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from torch import Tensor
from torch.nn import functional

Value = float | Tensor


@dataclass(frozen=True, slots=True)
class Range:
    """Which values a parameter may have, and how one that learns stays among them."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def read(self, value: Any) -> Value:
        """Check a value: a number, a list of numbers or a floating tensor."""
        if isinstance(value, (list, tuple)) and value:
            value = torch.tensor(self._numbers(value))
        if isinstance(value, Tensor) and not (value.dtype.is_floating_point and value.numel()):
            raise PydanticCustomError("dtype", "a tensor must be of a floating type and not empty")
        number: Value = value if isinstance(value, Tensor) else self._number(value)
        ends = number.detach().aminmax() if isinstance(number, Tensor) else (number, number)
        low, high = (float(end) for end in ends)
        inside = low > self.low if self.open_low else low >= self.low
        if not (inside and high <= self.high and math.isfinite(low) and math.isfinite(high)):
            raise PydanticCustomError("range", self.text)
        return number

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._numbers(v) for v in value]
        return self._number(value)

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise PydanticCustomError("number", "input should be a number or a tensor of them")
        return float(value)

    def to_raw(self, value: Tensor) -> Tensor:
        """Return what a value in range is stored as when it learns."""
        if self.high == 1:
            tiny = torch.finfo(value.dtype).eps
            return torch.logit(value.clamp(tiny, 1 - tiny))
        if self.open_low:
            return value.log()
        if math.isfinite(self.low):
            tiny = torch.finfo(value.dtype).eps
            value = (value - self.low).clamp_min(tiny)
            return value + (-torch.expm1(-value)).log()  # log(expm1(value)), which overflows
        return value.clone()

    def from_raw(self, raw: Tensor) -> Tensor:
        """Return the value that a stored number stands for."""
        if self.high == 1:
            return torch.sigmoid(raw)
        if self.open_low:
            return raw.exp()
        return self.low + functional.softplus(raw) if math.isfinite(self.low) else raw


def _annotation(allowed: Range) -> tuple[Any, ...]:
    numbers = {"type": "number"}
    return (
        allowed,
        PlainValidator(allowed.read),
        PlainSerializer(lambda v: v.tolist() if isinstance(v, Tensor) else v),
        WithJsonSchema({"anyOf": [numbers, {"type": "array", "items": numbers}]}),
    )


_DECAY = Range("input should be between 0 and 1", 0.0, 1.0)
_POSITIVE = Range("input should be finite and greater than 0", 0.0, open_low=True)
_NON_NEGATIVE = Range("input should be finite and at least 0", 0.0)
_REAL = Range("input should be finite")
_LEAST_RATE = Range("input should be finite and at least 0.01", 0.01)

Decay = Annotated[Value, *_annotation(_DECAY)]
Positive = Annotated[Value, *_annotation(_POSITIVE)]
NonNegative = Annotated[Value, *_annotation(_NON_NEGATIVE)]
Real = Annotated[Value, *_annotation(_REAL)]
LeastRate = Annotated[Value, *_annotation(_LEAST_RATE)]


def ranges(cls: type[Any]) -> Mapping[str, Range]:
    """Return the parameters of a neuron that may be tensors and may learn, with their ranges."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for name, hint in hints.items():
        for part in getattr(hint, "__metadata__", ()):
            if isinstance(part, Range):
                found[name] = part
    return found


def exp(value: Value) -> Value:
    """Exponential of a number or a tensor."""
    return value.exp() if isinstance(value, Tensor) else math.exp(value)
