"""Maps from stored to effective weights: explicit formulas, and what training leaves true."""

from math import exp

import pytest
import torch

from spikecl.errors import ConfigError
from spikecl.networks import (
    Binarise,
    Cells,
    Dale,
    Gain,
    Layer,
    Linear,
    Network,
    NoAutapses,
    SpikingMlp,
    SpikingRecurrentNet,
    SplitSigns,
    Standardise,
    SynapticDelays,
    TimeWindow,
    form_gradients,
    initialise,
)
from spikecl.neurons import LIF, AdEx, ConductanceLIF, Izhikevich
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 7), (4, 2, 3, 3)])
def test_standardise_is_the_formula(shape):
    weight, gain = random(*shape) + 0.7, random(shape[0], seed=1)
    found = Standardise()(weight, {"gain": gain})
    for i in range(shape[0]):
        row = weight[i].flatten().tolist()
        mean = sum(row) / len(row)
        std = (sum((w - mean) ** 2 for w in row) / len(row)) ** 0.5
        expected = [float(gain[i]) * (w - mean) / (len(row) ** 0.5 * std) for w in row]
        assert found[i].flatten().tolist() == pytest.approx(expected, rel=1e-12)
        assert float(found[i].norm()) == pytest.approx(abs(float(gain[i])), rel=1e-12)
        assert float(found[i].sum()) == pytest.approx(0, abs=1e-12)


def test_standardise_does_not_see_scale_or_shift_and_survives_equal_weights():
    weight, gain = random(3, 7), torch.ones(3).double()
    plain = Standardise()(weight, {"gain": gain})
    torch.testing.assert_close(Standardise()(5 * weight + 2, {"gain": gain}), plain)
    flat = torch.full((3, 7), 0.4, dtype=torch.float64, requires_grad=True)
    out = Standardise()(flat, {"gain": gain})
    (gradient,) = torch.autograd.grad(out.square().sum() + out.sum(), flat)
    assert not out.detach().any() and bool(gradient.isfinite().all())
    tiny = 1e-3 * (weight - weight.mean(1, keepdim=True))  # variance times fan-in is below epsilon
    torch.testing.assert_close(Standardise(epsilon=1.0)(tiny, {"gain": gain}), tiny)


@pytest.mark.parametrize(
    ("excitatory", "n", "inhibitors"), [(0.8, 10, 2), (0.5, 5, 3), (1.0, 4, 0), (0.0, 4, 4)]
)
def test_dale_signs(excitatory, n, inhibitors):
    """round(0.5 * 5) is 2 in Python: the last 3 of 5 inhibit."""
    weight = random(6, n)
    found = Dale(excitatory=excitatory)(weight, {})
    torch.testing.assert_close(found.abs(), weight.abs())
    for j in range(n):
        assert bool((found[:, j] <= 0).all() if j >= n - inhibitors else (found[:, j] >= 0).all())
    channels = Dale(excitatory=excitatory)(random(2, n, 3, 3), {})
    torch.testing.assert_close(channels.sign()[0, :, 0, 0], found.sign()[0])


@pytest.mark.parametrize("shape", [(3, 7), (4, 2, 3, 3)])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binarise_is_the_sign_of_one_size(shape, rows, dtype):
    """To the last bit, for any size of the hidden weight; the sign of 0 is +1."""
    weight = random(*shape).to(dtype) * 10 ** random(*shape, seed=2).to(dtype)
    weight.view(-1)[:2] = torch.tensor([0.0, -0.0])
    each = Binarise(scale=1.3, rows=rows)
    own = dict(each.parameters(weight))
    assert sorted(own) == (["gain"] if rows else [])
    if rows:
        own["gain"] = random(shape[0], seed=1).to(dtype)
    found = each(weight, own)
    assert found.dtype == dtype
    fan_in = weight[0].numel()
    for i in range(shape[0]):
        size = torch.tensor(1.3 / fan_in**0.5, dtype=dtype) * (own["gain"][i] if rows else 1.0)
        values = found[i].flatten().tolist()
        signs = [-1.0 if w < 0 else 1.0 for w in weight[i].flatten().tolist()]
        assert values == pytest.approx([float(size) * sign for sign in signs], rel=1e-6)
        assert len({abs(v) for v in values}) == 1


def test_binarise_takes_the_sign_for_the_identity():
    weight, slope, gain = random(3, 7), random(3, 7, seed=1), random(3, seed=2)
    leaves = [weight.requires_grad_(), gain.requires_grad_()]
    made = Binarise(rows=True)(weight, {"gain": gain})
    found = torch.autograd.grad((made * slope).sum(), leaves)
    size = 7**-0.5
    torch.testing.assert_close(found[0], size * gain[:, None].detach() * slope)
    torch.testing.assert_close(found[1], size * (weight.detach().sign() * slope).sum(1))


def test_binarise_needs_free_signs():
    for other in (Standardise(), Dale()):
        with pytest.raises(ConfigError, match=f"Binarise and {type(other).__name__}: .*use one"):
            Linear(3, 2, maps=(Binarise(), other))
    with pytest.raises(ConfigError, match="name it first"):
        Linear(3, 3, maps=(NoAutapses(), Binarise()))


def test_no_autapses():
    weight = random(4, 4)
    found = NoAutapses()(weight, {})
    for i in range(4):
        for j in range(4):
            assert float(found[i, j]) == (0.0 if i == j else float(weight[i, j]))


def trained(network, optimiser, *, steps=25):
    """Yield after each of some large training steps."""
    x = torch.rand(6, 8, 5, generator=torch.Generator().manual_seed(2)).round()
    y = torch.arange(8) % 3
    running = optimiser.start(network.weights())
    for _ in range(steps):
        factors = Bptt().factors(network, x, lambda z: torch.nn.functional.cross_entropy(3 * z, y))
        with torch.no_grad():
            running.step(form_gradients(network, factors.synapses, factors.direct))
        yield network


@pytest.mark.parametrize("optimiser", [Sgd(lr=2.0, momentum=0.9, weight_decay=0.01), Adam(lr=0.2)])
def test_signs_and_the_diagonal_hold_however_long_training_lasts(optimiser):
    spec = SpikingRecurrentNet(hidden=(10, 5), excitatory=0.7, neuron=LIF(beta=0.7, v_th=0.3))
    network = spec.build((5,), 3)
    initialise(network, Seeds(0))
    start = {n: s.weight.detach().clone() for n, s in network.synapses.items()}
    for _ in trained(network, optimiser):
        pass
    flipped = 0
    for name, synapse in network.synapses.items():
        with torch.no_grad():
            weight = synapse.effective(dict(synapse.named_parameters()))
        assert bool(weight.isfinite().all())
        if name.endswith("recurrent"):
            assert not weight.diagonal().any() and bool(weight.any())
        if name != "hidden1":
            n = weight.shape[1]
            first = round(0.7 * n)
            assert bool((weight[:, :first] >= 0).all()) and bool((weight[:, first:] <= 0).all())
            flipped += int((synapse.weight * start[name] < 0).sum())
        else:
            assert bool((weight > 0).any()) and bool((weight < 0).any())
    assert flipped  # stored weights did cross zero: the map, not luck, keeps the signs


def test_split_signs_with_conductances_is_a_hand_loop():
    neuron = ConductanceLIF()
    network = Network(
        {
            "a": Layer(Linear(4, 6, maps=(SplitSigns(),)), Cells(neuron), inputs=("input",)),
            "out": Layer(Linear(6, 3), None, inputs=("a",)),
        }
    ).double()
    initialise(network, Seeds(0))
    with torch.no_grad():
        network.layers["a"].synapse.weight.mul_(3)
    w, out = (network.weights()[f"{n}.weight"].detach().numpy() for n in ("a", "out"))
    x = (random(30, 2, 4) > 0.3).double()
    fired = 0
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for b in range(2):
        g_exc, g_inh, v = [0.0] * 6, [0.0] * 6, [-60.0] * 6
        for t in range(30):
            spikes = [0.0] * 6
            for i in range(6):
                exc = inh = 0.0
                for j in range(4):
                    s = float(x[t, b, j])
                    if w[i, j] > 0:
                        exc += w[i, j] * s
                    else:
                        inh -= w[i, j] * s
                g_exc[i] = g_exc[i] * exp(-1 / 5) + exc
                g_inh[i] = g_inh[i] * exp(-1 / 10) + inh
                total = 1 + g_exc[i] + g_inh[i]
                target = (-60.0 + g_exc[i] * 0.0 + g_inh[i] * -80.0) / total
                v[i] = target + (v[i] - target) * exp(-total / 20)
                if v[i] > -50:
                    spikes[i], v[i] = 1.0, -60.0
            fired += sum(spikes)
            for c in range(3):
                expected[b, c] += sum(out[c, i] * spikes[i] for i in range(6)) / 30
    assert 10 < fired < 300
    torch.testing.assert_close(network(x).logits.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [0.3, 0.99, 0.0])
def test_a_window_too_narrow_to_meet_a_step_is_refused(width):
    with pytest.raises(ConfigError, match="width"):
        SynapticDelays(width=width)


@pytest.mark.parametrize("width", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("delay", [-3.0, 0.0, 0.5, 2.0, 2.75, 4.0, 9.0])
def test_a_delay_moves_weight_and_keeps_it(width, delay):
    """The weight is spread over steps around the delay, all of it, and clipped to the range."""
    weight = torch.tensor([[1.7, -0.6]], dtype=torch.float64)
    given = {"delay": torch.full((1, 2), delay, dtype=torch.float64)}
    found = SynapticDelays(longest=4, width=width)(weight, given).view(1, 5, 2)
    torch.testing.assert_close(found.sum(1), weight)
    d = min(max(delay, 0.0), 4.0)
    bumps = [max(0.0, 1 - abs(k - d) / width) for k in range(5)]
    for k in range(5):
        expected = 1.7 * bumps[k] / sum(bumps)
        assert float(found[0, k, 0]) == pytest.approx(expected, abs=1e-12)


def test_fixed_delays_are_rounded_and_get_no_gradient():
    synapse = Linear(2, 1, maps=(SynapticDelays(longest=3, learned=False),))
    with torch.no_grad():
        synapse.weight.copy_(torch.tensor([[1.0, 2.0]]))
        synapse.delay.copy_(torch.tensor([[1.4, 2.6]]))
    weight = synapse.effective(dict(synapse.named_parameters()))
    assert weight.tolist() == [[0, 0, 1, 0, 0, 0, 0, 2]]  # k = 1 of input 0, k = 3 of input 1
    found = synapse.pull_back(dict(synapse.named_parameters()), torch.ones(1, 8), None)
    assert list(found) == ["weight"]


def test_weight_decay_does_not_wear_fixed_delays_away():
    synapse = Linear(5, 3, maps=(SynapticDelays(longest=4, learned=False),))
    window = {"window": TimeWindow(4)}
    network = Network({"a": Layer(synapse, None, inputs=("input",), before=window)})
    initialise(network, Seeds(0))
    before = network.weights()["a.delay"].detach().clone()
    assert bool(before.any())
    for _ in trained(network, Sgd(lr=0.5, weight_decay=0.5), steps=5):
        pass
    assert torch.equal(network.weights()["a.delay"].detach(), before)


def test_a_gain_scales_currents_and_gradients():
    linear = Linear(3, 2, maps=(Gain(factor=50.0),))
    weight = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(linear.effective({"weight": weight}), 50 * weight)
    back = linear.pull_back({"weight": weight}, torch.ones(2, 3), None)
    assert torch.equal(back["weight"], torch.full((2, 3), 50.0))


@pytest.mark.parametrize(("model", "gain"), [(Izhikevich(), 60.0), (AdEx(), 4000.0)])
def test_models_in_other_units_fire_with_a_gain(model, gain):
    rates = []
    for factor in (1.0, gain):
        network = SpikingMlp(hidden=(20,), neuron=model, gain=factor).build((8,), 2)
        initialise(network, Seeds(0))
        rates.append(network.record(torch.ones(200, 1, 8))["hidden1"]["spikes"].mean())
    assert rates[0] == 0 < rates[1]
