"""Registries: lazy names, inverse look-up, entry points of other packages."""

import math
from importlib.metadata import EntryPoint

import pytest

from spikecl import registry
from spikecl.errors import UsageError
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

BUILT_IN = [STREAMS, ENCODINGS, LOSSES, NETWORKS, TRAINERS, OPTIMISERS, METHODS]


@pytest.fixture
def offered(monkeypatch):
    """Entry points that other packages offer, to be filled by a test."""
    points = []
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    return points


@pytest.mark.parametrize("table", BUILT_IN, ids=lambda table: table.kind)
def test_every_built_in_name_imports_and_is_found_again(table):
    for name in table.table:
        cls = table.get(name)
        assert isinstance(cls, type)
        assert table.name_of(cls) == name


def test_the_kinds_name_the_entry_point_groups():
    kinds = ["stream", "encoding", "loss", "network", "trainer", "optimiser", "method"]
    assert [table.kind for table in BUILT_IN] == kinds


def test_nothing_is_imported_before_it_is_asked_for(offered):
    table = Registry("thing", {"b": "math:sqrt", "a": "no_such_module:x"})
    assert table.names() == ("a", "b")
    assert table.get("b") is math.sqrt
    with pytest.raises(ModuleNotFoundError):
        table.get("a")


def test_an_unknown_name_suggests_the_nearest(offered):
    table = Registry("thing", {"square": "math:sqrt", "power": "math:pow"})
    with pytest.raises(UsageError, match="unknown thing 'sqare'; did you mean 'square'") as error:
        table.get("sqare")
    assert "allowed: power, square" in str(error.value)


def test_a_class_that_is_not_registered_has_no_name(offered):
    assert Registry("thing", {"a": "builtins:int"}).name_of(float) is None
    assert Registry("thing", {"a": "builtins:int"}).name_of(int) == "a"


def test_other_packages_add_names_of_their_kind_only(offered):
    offered.append(EntryPoint("cube", "math:cbrt", "spikecl.things"))
    offered.append(EntryPoint("sphere", "math:pi", "spikecl.methods"))
    table = Registry("thing", {"square": "math:sqrt"})
    assert table.names() == ("cube", "square")
    assert table.get("cube") is math.cbrt
    assert "cube" not in table.table


def test_two_packages_with_one_name_are_refused(offered):
    offered.append(EntryPoint("square", "math:sqrt", "spikecl.things"))  # the same twice is fine
    table = Registry("thing", {"square": "math:sqrt"})
    assert table.get("square") is math.sqrt
    offered.append(EntryPoint("square", "numpy:sqrt", "spikecl.things"))
    for ask in (table.names, lambda: table.get("square"), lambda: table.name_of(int)):
        with pytest.raises(UsageError, match="two packages offer the thing 'square'"):
            ask()
