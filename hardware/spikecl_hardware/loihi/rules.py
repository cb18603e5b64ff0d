"""Learning rules as sums of products, the form that Loihi's learning engine takes.

A rule for weights ``dw``, tags ``dt`` or delays ``dd`` is a sum of products such as
``2^-2 * x1 * y0 - 3 * 2^-4 * y1 * x0 * (w + 2)``. A product has

* a dependency that says when it counts: ``x0`` (the source fired), ``y0`` (the target fired),
  ``u0`` to ``u9`` (every ``2^k`` th epoch); the first one in a product,
* a scale, ``m * 2^e`` with m from -8 to 7 and e from -7 to 8; several are multiplied,
* factors: traces ``x1 x2 y1 y2 y3``, variables ``w t d``, the second of ``x0 y0``, each alone or
  with a constant in brackets, and ``sgn(w)``, ``sgn(t + 3)``.

Source: Davies et al., IEEE Micro 38(1), 2018, section on learning; the grammar and the widths of
lava-nc 0.10.0, which reads the same strings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

WIDTHS = {"x0": 1, "y0": 1, "x1": 7, "x2": 7, "y1": 7, "y2": 7, "y3": 7, "w": 9, "t": 9, "d": 9}
TRACES = ("x1", "x2", "y1", "y2", "y3")
VARIABLES = ("w", "d", "t")
MANTISSA_BITS, ACCUMULATOR_BITS, WORD_BITS = 4, 15, 31
FORM = "sums of products such as '2^-2 * x1 * y0 - 2^-4 * y1 * x0' are allowed"

_SCALE = r"\d+\*2\^[+-]?\d+|2\^[+-]?\d+|\d+"
_NAME = r"x[012]|y[0123]|w|d|t"
_TOKEN = re.compile(
    rf"(?P<scale>{_SCALE})|(?P<sign>sgn)?\((?P<inner>[^()]*)\)|(?P<every>u\d)|(?P<name>{_NAME})"
)
_INNER = re.compile(
    rf"(?P<minus>-)?(?P<name>{_NAME})(?P<plus>[+-]\d+)?|(?P<number>[+-]?(?:{_SCALE}))"
)


class RuleError(ValueError):
    """A rule that is no sum of products, or that does not fit the learning engine."""


class Factor(NamedTuple):
    """A trace or variable and a constant, of which the sign alone may count."""

    name: str
    constant: int = 0
    sign: bool = False

    def __str__(self) -> str:
        """Return it as a rule has it."""
        inner = f"{self.name}{self.constant:+d}" if self.constant else self.name
        if self.sign:
            return f"sgn({inner})"
        return f"({inner})" if self.constant else inner


@dataclass(frozen=True)
class Product:
    """``mantissa * 2^exponent * dependency * factors``; ``every`` is k of the dependency ``u``."""

    dependency: str
    mantissa: int = 1
    exponent: int = 0
    factors: tuple[Factor, ...] = ()
    every: int = 0

    @property
    def width(self) -> int:
        """Bits of the factors."""
        return sum(WIDTHS[factor.name] for factor in self.factors)

    def __str__(self) -> str:
        """Return it as a rule has it, without its sign."""
        when = f"u{self.every}" if self.dependency == "u" else self.dependency
        scale = f"{abs(self.mantissa)}*2^{self.exponent}"
        return "*".join([scale, when, *map(str, self.factors)])


@dataclass(frozen=True)
class Rule:
    """A sum of products."""

    products: tuple[Product, ...]

    def __str__(self) -> str:
        """Return a text that gives this rule again, here and in Lava."""
        parts = [f"{'-' if p.mantissa < 0 else '+'}{p}" for p in self.products]
        return "".join(parts).removeprefix("+")

    @property
    def names(self) -> set[str]:
        """Traces and variables that it reads."""
        return {factor.name for product in self.products for factor in product.factors}

    @property
    def every(self) -> int | None:
        """The k of its products that depend on ``u``."""
        return next((p.every for p in self.products if p.dependency == "u"), None)


def parse(text: str) -> Rule:
    """Read a rule.

    Raises:
        RuleError: It is outside of Loihi's form; the message names the place.

    Example:
        >>> rule = parse("2^-2 * x1 * y0 - 4 * y1 * x0 * (w + 2)")
        >>> str(rule)
        '1*2^-2*y0*x1-4*2^0*x0*y1*(w+2)'
    """
    rest = re.sub(r"\s", "", text)
    products: list[Product] = []
    while rest or not products:
        sign = -1 if rest[:1] == "-" else 1
        product, rest = _product(rest[1:] if rest[:1] in ("+", "-") else rest, sign, text)
        products.append(product)
    if len({p.every for p in products if p.dependency == "u"}) > 1:
        raise RuleError(f"rule '{text}' has several u; one of u0 to u9 is allowed in it")
    return Rule(tuple(products))


def _product(rest: str, mantissa: int, text: str) -> tuple[Product, str]:
    """Read one product and return what follows it."""
    when: list[tuple[str, int]] = []
    factors: list[Factor] = []
    exponent = 0
    while True:
        token = _TOKEN.match(rest)
        inner = token and token["inner"] is not None and _INNER.fullmatch(token["inner"])
        if token is None or inner is None:
            raise RuleError(f"rule '{text}' cannot be read from '{rest}' on; {FORM}")
        scale = token["scale"] or (inner and inner["number"])
        if scale:
            m, e = _number(scale)
            mantissa, exponent = mantissa * m, exponent + e
        elif token["every"]:
            when.append(("u", int(token["every"][1:])))
        elif token["name"] in ("x0", "y0") and not when:
            when.append((token["name"], 0))
        else:
            flip, factor = _factor(token, inner or None, text)
            mantissa *= flip
            factors.append(factor)
        rest = rest[token.end() :]
        if not rest.startswith("*"):
            break
        rest = rest[1:]
    if rest and rest[0] not in "+-":
        raise RuleError(f"rule '{text}' cannot be read from '{rest}' on; {FORM}")
    if len(when) != 1:
        raise RuleError(f"rule '{text}': each product needs x0, y0 or u0 to u9, and one u at most")
    return _checked(Product(when[0][0], mantissa, exponent, tuple(factors), when[0][1]), text), rest


def _number(text: str) -> tuple[int, int]:
    """Return mantissa and exponent of ``3``, ``2^-4`` or ``3*2^-4``, with or without a sign."""
    head, power, exponent = text.partition("2^")
    if not power:
        return int(text), 0
    sign, digits = (-1 if head[:1] == "-" else 1), head.strip("+-*")
    return sign * int(digits or 1), int(exponent)


def _factor(token: re.Match[str], inner: re.Match[str] | None, text: str) -> tuple[int, Factor]:
    """Return -1 where a bracket begins with a minus, which is taken out of it, and the factor."""
    if inner is None:
        return 1, Factor(token["name"])
    constant, flip = int(inner["plus"] or 0), -1 if inner["minus"] else 1
    if token["sign"] and (inner["name"] not in VARIABLES or flip < 0):
        raise RuleError(f"rule '{text}': sgn takes w, t or d with a plus, not '{token['inner']}'")
    return flip, Factor(inner["name"], flip * constant, bool(token["sign"]))


def _checked(product: Product, text: str) -> Product:
    """Return a product whose scale fits its bits."""
    mantissa, exponent = product.mantissa, product.exponent
    while abs(mantissa) > 7 and mantissa % 2 == 0 and exponent < 8:
        mantissa, exponent = mantissa // 2, exponent + 1
    if not (-8 <= mantissa <= 7 and -7 <= exponent <= 8):
        raise RuleError(
            f"rule '{text}' has a scale of {product.mantissa} * 2^{product.exponent}; m * 2^e with "
            "m from -8 to 7 and e from -7 to 8 is allowed: round it"
        )
    if product.width + MANTISSA_BITS > WORD_BITS:
        raise RuleError(
            f"rule '{text}' has a product of {product.width} bits; "
            f"{WORD_BITS - MANTISSA_BITS} are allowed: fewer factors"
        )
    return replace(product, mantissa=mantissa, exponent=exponent)
