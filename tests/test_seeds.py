"""Named generators: the documented digest, independent of everything but name and counters."""

import dataclasses
import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.seeds import Seeds

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
counters = st.tuples(*[st.integers(0, 10_000)] * 3)


def derive(root, name, event, epoch, step):
    return Seeds(root).derive(name, event=event, epoch=epoch, step=step)


def test_the_seed_is_the_documented_digest():
    digest = hashlib.sha256(b"7/order/1/2/3").digest()
    first_63_bits = int("".join(f"{byte:08b}" for byte in digest)[:63], 2)
    assert derive(7, "order", 1, 2, 3) == first_63_bits


@quick
@given(st.integers(0, 2**63), st.sampled_from(["order", "init", "encode"]), counters, counters)
def test_seeds_differ_exactly_when_a_counter_differs(root, name, a, b):
    assert (derive(root, name, *a) == derive(root, name, *b)) == (a == b)


@pytest.mark.parametrize("other", [(8, "order"), (7, "orders"), (-7, "order")])
def test_seeds_differ_by_root_and_name(other):
    assert derive(7, "order", 0, 0, 0) != derive(*other, 0, 0, 0)


def test_counters_are_zero_when_left_out():
    assert Seeds(3).derive("a") == derive(3, "a", 0, 0, 0)


def test_the_generator_has_the_derived_seed():
    generator = Seeds(7).generator("order", event=1, epoch=2, step=3)
    assert generator.initial_seed() == derive(7, "order", 1, 2, 3)
    assert generator.device.type == "cpu"


def test_generators_are_fresh_and_do_not_disturb_each_other():
    seeds = Seeds(0)
    first = seeds.generator("a")
    torch.rand(100, generator=first)
    again, other = seeds.generator("a"), seeds.generator("b")
    torch.rand(50, generator=other)
    expected = torch.rand(4, generator=torch.Generator().manual_seed(seeds.derive("a")))
    assert torch.equal(torch.rand(4, generator=again), expected)


def test_streams_of_neighbours_are_uncorrelated():
    draws = torch.stack(
        [torch.rand(4000, generator=Seeds(0).generator("x", step=i)) for i in range(6)]
    )
    correlation = torch.corrcoef(draws) - torch.eye(6)
    assert float(correlation.abs().max()) < 5 / 4000**0.5


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=Seeds(5).generator("a"))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Seeds(1).root = 2
