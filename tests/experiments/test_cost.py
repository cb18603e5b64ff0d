"""Operations of a pass against counts by hand: one connection, one step, one sample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spikecl.experiments.cost import count_operations
from spikecl.interop import Currents
from spikecl.networks import (
    Cells,
    Channels,
    Conv2d,
    Layer,
    Linear,
    MaxPool2d,
    Mlp,
    Network,
    RecurrentNet,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    initialise,
)
from spikecl.neurons import LIF, ConductanceLIF, LeakyIntegrator, SigmaDelta
from spikecl.seeds import Seeds

T, B = 5, 3
LIVELY = LIF(beta=0.6, v_th=0.2)


def made(spec, shape, classes=3, *, gain=2.0):
    network = spec.build(shape, classes)
    initialise(network, Seeds(0))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(gain)
    return network


def spikes(*shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def weight_of(network, path):
    synapse = network.synapses[path]
    with torch.no_grad():
        return synapse.effective(dict(synapse.named_parameters())).numpy()


def events_through(weight, sent):
    """Count non-zero weights behind non-zero entries of [T, B, n]."""
    count = 0
    for step in sent:
        for sample in step:
            for j in np.flatnonzero(sample):
                count += np.count_nonzero(weight[:, j])
    return count


def conv_events(weight, sent, *, stride=1, padding=0):
    """Count weights [C_out, C_in, k, k] that meet a non-zero pixel of [T, B, C, H, W]; and all."""
    height, width, k = *sent.shape[3:], weight.shape[-1]
    outputs = [(side + 2 * padding - k) // stride + 1 for side in (height, width)]
    met = taps = 0
    for i in range(outputs[0]):
        for j in range(outputs[1]):
            for a in range(k):
                for b in range(k):
                    y, x = i * stride - padding + a, j * stride - padding + b
                    if 0 <= y < height and 0 <= x < width:
                        taps += weight.shape[0] * weight.shape[1]
                        live = np.count_nonzero(weight[:, :, a, b], axis=0)
                        met += int(
                            (np.count_nonzero(sent[:, :, :, y, x], axis=(0, 1)) * live).sum()
                        )
    return met, taps


def test_a_spiking_mlp():
    network = made(SpikingMlp(hidden=(7, 6), neuron=LIVELY), (5,))
    with torch.no_grad():
        network.weights()["hidden2.weight"][:, :3] = 0  # what is zero costs nothing
    x = spikes(T, B, 5)
    found, rates = count_operations(network, x)
    record = network.record(x)
    sent = [x.numpy(), *(record[n]["spikes"] for n in ("hidden1", "hidden2"))]
    events = sum(
        events_through(weight_of(network, name), s)
        for name, s in zip(("hidden1", "hidden2", "readout"), sent)
    )
    assert found.effective_acs == pytest.approx(events / B) and events
    assert found.effective_macs == 0
    assert found.dense == T * (35 + 42 + 18)
    assert found.membrane_updates == T * 13
    assert rates == pytest.approx(
        {n: float(s.mean()) for n, s in zip(("hidden1", "hidden2", "readout"), sent)}
    )


@pytest.mark.parametrize("readout", ["mean_rate", "mean_current"])
def test_a_constant_current_is_multiplied_once_and_the_readout_takes_spikes(readout):
    network = made(SpikingMlp(hidden=(7,), neuron=LIVELY, readout=readout), (5,))
    x = torch.randn(B, 5, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0
    found, rates = count_operations(network, x.expand(T, B, 5))
    assert found.effective_macs == 4 * 7
    out = network.record(x.expand(T, B, 5))["hidden1"]["spikes"]
    assert found.effective_acs == pytest.approx(out.sum() * 3 / B)
    assert found.dense == 35 + T * 21
    assert found.membrane_updates == T * 7
    assert rates == pytest.approx({"readout": float(out.mean())})
    changing, _ = count_operations(network, x.expand(T, B, 5).clone())
    assert changing.effective_macs == T * 4 * 7


def test_constant_spikes_arrive_at_every_step():
    network = made(SpikingMlp(hidden=(7,), neuron=LIVELY), (5,))
    one = spikes(B, 5)
    static, dense = (
        count_operations(network, x) for x in (one.expand(T, B, 5), one.repeat(T, 1, 1))
    )
    assert vars(static[0]) == pytest.approx(vars(dense[0])) and static[1] == dense[1]


@pytest.mark.parametrize("pool", ["max", "average"])
def test_a_convolution(pool):
    spec = SpikingConvNet(
        channels=(3, 4), kernel=3, padding="same", pool=pool, hidden=(6,), neuron=LIVELY
    )
    network = made(spec, (8, 8), gain=4)
    x = spikes(T, B, 8, 8)
    found, rates = count_operations(network, x)
    record = network.record(x)

    def pooled(name):
        maps = torch.tensor(record[name]["spikes"]).flatten(0, 1)
        kind = torch.nn.functional.max_pool2d if pool == "max" else torch.nn.functional.avg_pool2d
        return kind(maps, 2).unflatten(0, (T, B)).numpy()

    first = conv_events(weight_of(network, "conv1"), x.numpy()[:, :, None], padding=1)
    second = conv_events(weight_of(network, "conv2"), pooled("conv1"), padding=1)
    flat = pooled("conv2").reshape(T, B, -1)
    third = events_through(weight_of(network, "hidden1"), flat)
    fourth = events_through(weight_of(network, "readout"), record["hidden1"]["spikes"])
    graded = second[0] + third if pool == "average" else 0  # means of spikes are no spikes
    assert found.effective_macs == pytest.approx(graded / B)
    assert found.effective_acs == pytest.approx(
        (first[0] + second[0] + third + fourth - graded) / B
    )
    assert min(first[0], second[0], third, fourth) > 0
    assert found.dense == T * (first[1] + second[1] + 16 * 6 + 6 * 3)
    assert found.membrane_updates == T * (3 * 64 + 4 * 16 + 6)
    assert rates["hidden1"] == pytest.approx(float((flat != 0).mean()))


def test_a_residual_network():
    """Strides, shortcuts without neurons, and the mean over a map."""
    network = made(
        SpikingResNet(width=2, blocks=(1, 1), neuron=LIVELY, norm="none"), (5, 6), gain=4
    )
    x = spikes(T, B, 5, 6)
    found, _ = count_operations(network, x)
    record = {n: t["spikes"] for n, t in network.record(x).items()}
    parts = {
        "stem": (x.numpy()[:, :, None], 1, 1),
        "stage1block1a": (record["stem"], 1, 1),
        "stage1block1b": (record["stage1block1a"], 1, 1),
        "stage2block1a": (record["stage1block1b"], 2, 1),
        "stage2block1shortcut": (record["stage1block1b"], 2, 0),
        "stage2block1b": (record["stage2block1a"], 1, 1),
    }
    events = taps = 0
    for name, (sent, stride, padding) in parts.items():
        met, all_taps = conv_events(weight_of(network, name), sent, stride=stride, padding=padding)
        assert met, name
        events, taps = events + met, taps + all_taps
    means = record["stage2block1b"].mean((3, 4))
    assert found.effective_acs == pytest.approx(events / B)
    assert found.effective_macs == pytest.approx(np.count_nonzero(means) * 3 / B)
    assert found.dense == T * (taps + 4 * 3)
    assert found.membrane_updates == T * (3 * 2 * 30 + 2 * 4 * 9)


def test_a_recurrent_layer_takes_its_own_spikes():
    network = made(SpikingRecurrentNet(hidden=(7,), neuron=LIVELY), (5,))
    x = spikes(T, B, 5)
    found, rates = count_operations(network, x)
    sent = network.record(x)["hidden1"]["spikes"]
    late = np.concatenate([np.zeros_like(sent[:1]), sent[:-1]])
    events = events_through(weight_of(network, "hidden1"), x.numpy())
    events += late.sum() * 6 + sent.sum() * 3  # no autapses
    assert found.effective_acs == pytest.approx(events / B)
    assert found.dense == T * (35 + 49 + 21)
    assert found.membrane_updates == T * 7  # driven by two synapses, updated once
    assert rates["hidden1.recurrent"] == pytest.approx(float(late.mean()))


def test_a_delayed_connection_is_one_connection():
    network = made(SpikingMlp(hidden=(7,), neuron=LIVELY, delay=3), (5,))
    with torch.no_grad():
        for name, p in network.weights().items():
            if name.endswith("delay"):
                p.round_()
    x = spikes(T, B, 5)
    found, _ = count_operations(network, x)
    sent, count = (x.numpy(), network.record(x)["hidden1"]["spikes"]), 0
    for row in network.weights()["hidden1.delay"].detach().int().tolist():
        for j, d in enumerate(row):  # a spike that would arrive behind the end does not
            count += sent[0][: max(T - d, 0), :, j].sum()
    count += sent[1].sum() * 3
    assert found.effective_acs == pytest.approx(count / B)
    assert found.dense == T * (35 + 21)
    assert found.membrane_updates == T * 7


def test_conductances_have_one_membrane_and_each_weight_one_sign():
    network = made(SpikingMlp(hidden=(7,), neuron=ConductanceLIF()), (5,), gain=30)
    x = spikes(T, B, 5)
    found, _ = count_operations(network, x)
    sent = network.record(x)["hidden1"]["spikes"]
    assert found.effective_acs == pytest.approx((x.sum() * 7 + sent.sum() * 3) / B)
    assert found.dense == T * (35 + 21)
    assert found.membrane_updates == T * 7


@pytest.mark.parametrize("refractory", [0, 2])
def test_membranes_behind_pooled_currents_are_those_of_the_pooled_map(refractory):
    layer = Layer(
        Conv2d(1, 4, kernel=3),  # 8x8 to 6x6 to 3x3
        Cells(LIF(beta=0.6, v_th=0.2, refractory=refractory)),
        inputs=("input",),
        before={"channels": Channels()},
        norm=Currents([MaxPool2d(2)]),
    )
    readout = Layer(Linear(36, 3), None, inputs=("conv",))
    network = Network({"conv": layer, "readout": readout})
    initialise(network, Seeds(0))
    found, _ = count_operations(network, spikes(T, B, 8, 8))
    assert found.membrane_updates == T * 4 * 9
    assert found.dense == T * (4 * 36 * 9 + 36 * 3)  # the synapse is as it was


def test_neurons_of_the_readout_are_updated_too():
    network = made(SpikingMlp(hidden=(7,), neuron=LIVELY, output=LIF()), (5,))
    assert count_operations(network, spikes(T, B, 5))[0].membrane_updates == T * 10


def test_graded_messages_are_multiplied():
    """A sigma-delta network sends few and signed messages: each costs a multiplication."""
    network = made(SpikingMlp(hidden=(7,), neuron=SigmaDelta(v_th=0.3)), (5,))
    x = torch.randn(T, B, 5, generator=torch.Generator().manual_seed(0))
    found, rates = count_operations(network, x)
    sent = network.record(x)["hidden1"]["spikes"]
    assert (sent < 0).any() and 0 < (sent != 0).mean() < 1
    assert found.effective_macs == pytest.approx((x.numel() * 7 + (sent != 0).sum() * 3) / B)
    assert found.effective_acs == 0
    assert rates == pytest.approx({"readout": float((sent != 0).mean())})


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_an_ordinary_network_has_no_membranes(binary, static):
    """Where all steps are alike, it runs one."""
    network = made(Mlp(hidden=(7,)), (5,))
    one = spikes(B, 5) if binary else torch.randn(B, 5, generator=torch.Generator().manual_seed(0))
    x = one.expand(T, B, 5) if static else one.repeat(T, 1, 1)
    found, rates = count_operations(network, x)
    steps = 1 if static else T
    hidden = (one @ network.weights()["hidden1.weight"].T).relu()
    first, second = (steps * int((h != 0).sum()) * n / B for h, n in ((one, 7), (hidden, 3)))
    assert found.effective_acs == pytest.approx(first if binary else 0)
    if static:
        assert found.dense == 35 + 21
        assert found.effective_macs == pytest.approx(second + (0 if binary else first))
    assert found.membrane_updates == 0 and rates == {}


def test_a_recurrent_ordinary_network_runs_every_step():
    network = made(RecurrentNet(hidden=(7,)), (5,))
    x = torch.randn(B, 5, generator=torch.Generator().manual_seed(0)).expand(T, B, 5)
    found, _ = count_operations(network, x)
    assert found.dense == 35 + T * 49 + 21  # input and readout see a constant and a mean
    assert found.membrane_updates == 0


def test_a_leaky_integrator_is_a_membrane():
    network = made(SpikingMlp(hidden=(7,), neuron=LeakyIntegrator()), (5,))
    found, _ = count_operations(network, spikes(T, B, 5))
    assert found.membrane_updates == T * 7


def test_counting_changes_nothing():
    network = made(SpikingMlp(hidden=(7,), neuron=LIF(noise=0.1), dropout=0.2, norm="batch"), (5,))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    random, held = torch.get_rng_state(), dict(vars(network))
    found, _ = count_operations(network, spikes(T, B, 5))
    assert math.isfinite(found.dense) and network.mean_first
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and vars(network).keys() == held.keys()
    assert all(p.grad is None for p in network.parameters())
