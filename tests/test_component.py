"""Components: strict, frozen, with errors that name what was given and what is allowed."""

import dataclasses
import datetime
import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.components import (
    Floats,
    Fraction,
    Ints,
    PositiveFloat,
    PositiveInt,
    component,
    fields_of,
    from_table,
    to_table,
)
from spikecl.continual import Gpm, Hlop, Inhibition, Sgp
from spikecl.errors import ConfigError
from spikecl.experiments import load_config

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@component
class Inner:
    slope: PositiveFloat = 4.0


@component
class Part:
    steps: PositiveInt
    gain: PositiveFloat = 1.0
    share: Fraction = 0.5
    sizes: Ints = (4, 2)
    angles: Floats = (0.0,)
    kind: Literal["a", "b"] = "a"
    on: bool = False
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"steps": 0}, "Part.steps"),
        ({"steps": 1.0}, "Part.steps"),
        ({"steps": True}, "Part.steps"),
        ({"steps": "1"}, "Part.steps"),
        ({"steps": 1, "gain": 0.0}, "Part.gain"),
        ({"steps": 1, "gain": "1"}, "Part.gain"),
        ({"steps": 1, "gain": float("inf")}, "Part.gain"),
        ({"steps": 1, "gain": float("nan")}, "Part.gain"),
        ({"steps": 1, "share": 1.01}, "Part.share"),
        ({"steps": 1, "share": -0.01}, "Part.share"),
        ({"steps": 1, "sizes": (1, 2.5)}, "Part.sizes.1"),
        ({"steps": 1, "sizes": (1, True)}, "Part.sizes.1"),
        ({"steps": 1, "angles": ("0",)}, "Part.angles.0"),
        ({"steps": 1, "kind": "c"}, "Part.kind"),
        ({"steps": 1, "on": 1}, "Part.on"),
    ],
)
def test_wrong_values_are_refused_with_path_and_value(given, path):
    with pytest.raises(ConfigError) as error:
        Part(**given)
    assert str(error.value).startswith(f"{path}: got ")
    value = given[path.split(".")[1]]
    assert repr(value[int(path.split(".")[2])] if path.count(".") == 2 else value) in str(
        error.value
    )


def test_bounds_are_inclusive_where_they_should_be():
    assert Part(steps=1, share=0.0).share == 0.0
    assert Part(steps=1, share=1.0).share == 1.0


def test_every_wrong_value_is_reported():
    with pytest.raises(ConfigError, match=r"Part\.steps: got 0.*; Part\.gain: got -1\.0"):
        Part(steps=0, gain=-1.0)


def test_an_unknown_key_suggests_the_nearest():
    with pytest.raises(ConfigError, match="unknown key Part.gian; did you mean 'gain'"):
        Part(steps=1, gian=2.0)
    with pytest.raises(ConfigError, match="unknown key trainer.part.gian; did you mean 'gain'"):
        from_table(Part, {"steps": 1, "gian": 2.0}, "trainer.part")


def test_a_missing_value_is_named():
    with pytest.raises(ConfigError, match=r"^Part\.steps is missing"):
        Part()
    with pytest.raises(ConfigError, match=r"^x\.steps is missing"):
        from_table(Part, {}, "x")


def test_components_are_frozen_slotted_equal_by_value_and_hashable():
    part = Part(steps=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.steps = 4
    assert not hasattr(part, "__dict__")
    assert part == Part(steps=3) != Part(steps=4)
    assert hash(part) == hash(Part(steps=3))


def test_replace_checks_too():
    assert dataclasses.replace(Part(steps=3), steps=4) == Part(steps=4)
    with pytest.raises(ConfigError, match="Part.steps"):
        dataclasses.replace(Part(steps=3), steps=0)


def test_lists_become_tuples():
    assert Part(steps=1, sizes=[1, 2]).sizes == (1, 2)
    assert from_table(Part, {"steps": 1, "sizes": [1, 2]}, "x").sizes == (1, 2)


def test_a_table_is_as_strict_as_the_constructor():
    assert from_table(Part, {"steps": 2, "gain": 1}, "x") == Part(steps=2)
    for wrong in ({"steps": 2.5}, {"steps": "2"}, {"steps": True}, {"steps": 2, "on": 1}):
        with pytest.raises(ConfigError, match=r"^x\."):
            from_table(Part, wrong, "x")


def test_a_table_names_nested_keys():
    with pytest.raises(ConfigError, match=r"^x\.inner\.slope: got -1"):
        from_table(Part, {"steps": 1, "inner": {"slope": -1.0}}, "x")


def test_a_date_is_refused():
    with pytest.raises(ConfigError, match=r"\[x\].*use numbers"):
        from_table(Part, {"steps": datetime.date(2026, 1, 1)}, "x")


OF_EACH = [
    (Inhibition, "alpha", (0.1, -1.0, 0.3), ".1: got -1.0; input should be greater than 0"),
    (Inhibition, "alpha", -1.0, ": got -1.0; input should be greater than 0"),
    (Inhibition, "alpha", (0.1, "x"), ".1: got 'x'; input should be a valid number"),
    (Sgp, "energy", (0.9, 0.0, 0.9), ".1: got 0.0; input should be greater than 0"),
    (Gpm, "energy", (0.9, 1.5, 0.9), ".1: got 1.5; input should be less than or equal to 1"),
    (Gpm, "rows", (4, -2), ".1: got -2; input should be greater than or equal to 0"),
    (Gpm, "rows", 1.5, ": got 1.5; input should be less than 1"),
    (Hlop, "rows", ((2, -1, 3),), ".0.1: got -1; input should be greater than or equal to 0"),
    (Hlop, "rows", (2, (1.5, 3)), ".1.0: got 1.5; input should be less than 1"),
]


@pytest.mark.parametrize(("cls", "key", "value", "said"), OF_EACH)
def test_a_number_or_one_for_each_is_refused_as_what_was_given(cls, key, value, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        cls(**{key: value})
    assert str(error.value) == f"{cls.__name__}.{key}{said}"
    name, path = cls.__name__.lower(), tmp_path / "c.toml"
    written = json.dumps(value)  # of these values, TOML too
    path.write_text(f'[method]\nname = "{name}"\n[method.{name}]\n{key} = {written}\n')
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert f"method.{name}.{key}{said}" in str(error.value)


def test_no_entry_and_the_wrong_kind_are_told_apart():
    with pytest.raises(ConfigError, match=r"^Gpm\.energy: got \(\); write .* 1 entry or more$"):
        Gpm(energy=())
    with pytest.raises(ConfigError, match=r"^Gpm\.energy: got 'x'; .* a valid number$"):
        Gpm(energy="x")
    with pytest.raises(ConfigError, match=r"^Hlop\.rows: got 2\.5; write a list, as in \[2\.5\]$"):
        Hlop(rows=2.5)
    with pytest.raises(ConfigError, match=r"^Hlop\.rows: got 'x'; write a list$"):
        Hlop(rows="x")


@quick
@given(
    st.builds(
        Part,
        steps=st.integers(1, 9),
        gain=st.floats(1e-300, 1e300),
        share=st.floats(0, 1),
        sizes=st.lists(st.integers(-5, 5)).map(tuple),
        angles=st.lists(st.floats(-1e9, 1e9), min_size=1).map(tuple),
        kind=st.sampled_from("ab"),
        on=st.booleans(),
        inner=st.builds(Inner, slope=st.floats(0.1, 9)),
    )
)
def test_table_round_trip(part):
    table = to_table(part)
    assert list(table) == list(fields_of(Part))
    assert from_table(Part, table, "x") == part


def test_fields_in_order():
    assert fields_of(Part) == (
        "steps", "gain", "share", "sizes", "angles", "kind", "on", "inner"
    )  # fmt: skip
