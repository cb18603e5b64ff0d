"""Sums of products: what is read, what is refused, and that Lava reads the same."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spikecl_hardware.loihi import library
from spikecl_hardware.loihi.lava import _environment, _own_folder
from spikecl_hardware.loihi.rules import Factor, Product, Rule, RuleError, parse

NAMES = ("x0", "y0", "x1", "x2", "y1", "y2", "y3", "w", "t", "d")
factors = st.builds(
    lambda name, constant, sign: Factor(name, constant, sign and name in "wtd"),
    st.sampled_from(NAMES),
    st.integers(-9, 9),
    st.booleans(),
)
products = st.builds(
    lambda when, m, e, found: Product(when[0], m, e, tuple(found), when[1]),
    st.sampled_from([("x0", 0), ("y0", 0), ("u", 3)]),
    st.integers(-7, 7),
    st.integers(-7, 8),
    st.lists(factors, max_size=2),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x0", Product("x0")),
        ("-2 * y0", Product("y0", -2)),
        ("2^-3*x1*y0", Product("y0", 1, -3, (Factor("x1"),))),
        ("3*2^-4 * x0 * y1", Product("x0", 3, -4, (Factor("y1"),))),
        ("u5*t*y2", Product("u", 1, 0, (Factor("t"), Factor("y2")), 5)),
        ("x0*y0", Product("x0", 1, 0, (Factor("y0"),))),
        ("(-2)*2^-3*x0*(w+2)", Product("x0", -2, -3, (Factor("w", 2),))),
        ("x0*(-x1+3)", Product("x0", -1, 0, (Factor("x1", -3),))),
        ("y0*sgn(w-3)", Product("y0", 1, 0, (Factor("w", -3, True),))),
        ("96*x0", Product("x0", 6, 4)),
        ("2*3*2^2*x0*2^-7", Product("x0", 6, -5)),
    ],
)
def test_one_product(text, expected):
    assert parse(text) == Rule((expected,))


@given(st.lists(products, min_size=1, max_size=4))
def test_what_is_written_is_read_again(found):
    rule = Rule(tuple(found))
    again = parse(str(rule))
    assert str(again) == str(parse(str(again)))
    for a, b in zip(again.products, found, strict=True):
        assert a.mantissa * 2.0**a.exponent == b.mantissa * 2.0**b.exponent
        assert (a.dependency, a.factors, a.every) == (b.dependency, b.factors, b.every)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("x1*y1", "each product needs x0, y0 or u0 to u9"),
        ("u0*u1", "each product needs x0, y0 or u0 to u9"),
        ("x0*y1/2", "cannot be read from '/2' on; sums of products"),
        ("x0 +", "cannot be read from ''"),
        ("x0*x1 y1", "cannot be read from 'y1'"),
        ("x0*(x1+(3))", r"cannot be read from '\(x1"),
        ("x0*exp(x1)", "cannot be read from 'exp"),
        ("x3*x0", "cannot be read from 'x3"),
        ("17*x0", "17 \\* 2\\^0; m \\* 2\\^e with m from -8 to 7"),
        ("2^9*x0", "e from -7 to 8"),
        ("x0*sgn(x1)", "sgn takes w, t or d"),
        ("x0*sgn(-w)", "sgn takes w, t or d"),
        ("x0*x1*y1*w*t", "32 bits; 27 are allowed"),
        ("u0*x1 + u2*y1", "several u"),
    ],
)
def test_what_is_no_sum_of_products_is_refused(text, said):
    with pytest.raises(RuleError, match=said):
        parse(text)


def test_lava_reads_the_same(installed):
    """The text that a rule gives has, in Lava, its dependencies, scales and factors."""
    texts = [
        "2^-2*x1*y0 - 4*y1*x0*(w+2)",
        "u3*t*y2*3*2^-5 + u3*(d-7)",
        "-x0*y0*(-x1+3) + 7*2^-7*y0*sgn(w-3)*y3",
        "96*x0 - 6*2^8*y0*x2",
        library.reward_stdp().dt,
        library.anti_hebb().dw,
    ]
    program = """
import sys
from spikecl_hardware.loihi.lava_runner import importable
importable()
from lava.magma.core.learning.symbolic_equation import SymbolicEquation
from lava.magma.core.learning.product_series import ProductSeries
for text in sys.argv[1:]:
    for p in ProductSeries(SymbolicEquation("dw", text)).products:
        when = p.dependency if p.decimate_exponent is None else f"u{p.decimate_exponent}"
        found = [(f.state_var, int(f.const or 0), f.is_sgn) for f in p.factors]
        print(when, p.s_mantissa, p.s_exp - 7, found)
"""
    rules = [parse(text) for text in texts]
    with _own_folder() as own:
        answer = subprocess.run(
            [installed.python, "-c", program, *map(str, rules)],
            env=_environment(own, installed.folder),
            cwd=own,
            capture_output=True,
            text=True,
            check=True,
        )
    expected = []
    for product in (p for rule in rules for p in rule.products):
        when = f"u{product.every}" if product.dependency == "u" else product.dependency
        found = [tuple(factor) for factor in product.factors]
        expected.append(f"{when} {product.mantissa} {product.exponent} {found}")
    assert answer.stdout.splitlines() == expected


@given(st.floats(2.0**-7, 7 * 2.0**8), st.booleans())
def test_gains_are_rounded_to_the_scale_of_the_engine(gain, negative):
    found = parse(library.term(-gain if negative else gain, "y0", "x1")).products[0]
    assert (found.mantissa < 0) == negative
    relative = 1 / 7 if gain >= 4 * 2.0**-7 else 1.0
    assert abs(found.mantissa) * 2.0**found.exponent == pytest.approx(gain, rel=relative)


def test_gains_make_up_for_what_wide_products_lose():
    """14 bits of traces and 4 of the mantissa are 3 more than the accumulator has."""
    plain = parse(library.term(0.25, "u0", "x1")).products[0]
    wide = parse(library.term(0.25, "u0", "x1", "y2")).products[0]
    assert wide.mantissa == plain.mantissa
    assert wide.exponent == plain.exponent + 3


@pytest.mark.parametrize("gain", [0.0, float("nan"), 1e-9, 1e9])
def test_gains_beyond_the_engine_are_refused(gain):
    with pytest.raises(RuleError, match="is allowed"):
        library.term(gain, "y0", "x1")
