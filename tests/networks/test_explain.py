"""The plan says what really runs."""

import pytest
import torch

from spikecl.kernels import Kernels, compiler, scan
from spikecl.networks import Mlp, SpikingMlp, Tap, explain
from spikecl.neurons import LIF

T, B = 5, 3


def direct(steps=T):
    return torch.rand(B, 6).expand(steps, B, 6)


@pytest.mark.parametrize(
    ("batch", "readout", "rows"),
    [
        (direct(), "mean_rate", [B, T * B, B]),
        (direct(), "mean_current", [B, T * B, T * B]),
        (torch.rand(T, B, 2, 3), "mean_rate", [T * B, T * B, B]),
    ],
)
def test_rows_and_kernels_of_a_spiking_network(batch, readout, rows):
    network = SpikingMlp(hidden=(8, 7), readout=readout).build((6,), 4)
    plans = explain(network, batch)
    assert [plan.layer for plan in plans] == ["hidden1", "hidden2", "readout"]
    assert [plan.rows for plan in plans] == rows
    fast = "fused" if compiler.compiler() is None else "compiled"
    assert [plan.kernel for plan in plans] == [fast, fast, "linear"]
    assert [plan.synapse for plan in plans] == [
        "one product 6x8", "one product 8x7", "one product 7x4"
    ]  # fmt: skip
    assert all(plan.reason for plan in plans)


def test_the_rows_are_those_of_a_pass():
    network, batch, taps = SpikingMlp(hidden=(8,)).build((6,), 4), direct(), {}
    network(batch, taps=taps)
    assert [p.rows for p in explain(network, batch)] == [
        len(tap.rows) for tap in taps.values() if isinstance(tap, Tap)
    ]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_kernel_is_the_one_that_a_pass_takes(steps):
    for name in ("reference", "fused"):
        network = SpikingMlp(hidden=(8,)).build((6,), 4)
        network.kernels = Kernels(scan=name)
        current = torch.rand(steps, B, 8, requires_grad=True)
        spikes, _ = scan(current, None, LIF(), kernels=network.kernels)
        assert ("_Scan" in spikes.grad_fn.name()) == (name == "fused")
        assert explain(network, direct(steps))[0].kernel == name


def test_the_twin():
    plans = explain(Mlp(hidden=(8,)).build((6,), 4), direct())
    assert [(plan.kernel, plan.rows) for plan in plans] == [("relu", B), ("linear", B)]


def test_nothing_is_left_on_the_network():
    network = SpikingMlp(hidden=(8,), bias=True).build((6,), 4)
    explain(network, direct())
    assert all(p.grad is None for p in network.parameters())
