"""Networks of the libraries: run them, make their layers fire, compare them with ours."""

import sys
import warnings

import pytest
import snntorch
import snntorch.surrogate
import torch
from torch import nn

from spikecl.neurons.values import Range, ranges

with warnings.catch_warnings():  # importing Norse warns, whoever does it first
    warnings.filterwarnings(
        "ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning
    )
    import norse.torch as norse

STEPS, BATCH = 200, 2


@pytest.fixture(scope="session")
def lab():
    """Return this module: with importlib a test cannot import it."""
    return sys.modules[__name__]


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed & 0xFFFFFFFF)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def double(function, *arguments):
    """Return a surrogate of snnTorch with spikes of the membrane's type; its own are float32."""

    class Double(function):
        @staticmethod
        def forward(ctx, x, *rest):
            return function.forward(ctx, x, *rest).to(x.dtype)

    return lambda x: Double.apply(x, *arguments)


class Snntorch:
    """Calls modules step by step, and keeps their state outside where they do not."""

    RECURRENT = (snntorch.RLeaky, snntorch.RSynaptic)
    SECOND = (snntorch.Synaptic, snntorch.RSynaptic)

    def fires(self, module):
        return isinstance(module, snntorch.SpikingNeuron)

    def run(self, modules, x):
        """Return the output of every module at every step."""
        states, outputs = {}, [[] for _ in modules]
        for module in modules:
            if self.fires(module):
                module.reset_mem()
        for h in x:
            for i, module in enumerate(modules):
                if self.fires(module) and not module.init_hidden:
                    again = isinstance(module, self.RECURRENT)
                    count = 1 + again + isinstance(module, self.SECOND)
                    out = module(h, *states.get(i, [torch.zeros_like(h)] * count))
                    states[i] = out if again else out[1:]
                    h = out[0]
                else:
                    h = module(h)
                outputs[i].append(h)
        return [torch.stack(steps) for steps in outputs]


class Norse:
    """Calls cells step by step, layers over time at once."""

    def fires(self, module):
        name = type(module).__name__
        return name.startswith(("LIF", "IAF"))

    def run(self, modules, x):
        """Return the output of every module at every step."""
        net = norse.SequentialState(*modules, return_hidden=True)
        if any(type(m).__name__ in ("LIF", "LIFRecurrent", "LI", "IAF", "Lift") for m in modules):
            return net(x)[0]
        state, outputs = None, []
        for step in x:
            out, state = net(step, state)
            outputs.append(out)
        return [torch.stack(steps) for steps in zip(*outputs)]


SNNTORCH, NORSE = Snntorch(), Norse()


@torch.no_grad()
def prepare(library, modules, x, seed=0, *, low=0.02, high=0.7, steps=60):
    """Draw weights, and scale those before each spiking module until it fires, but not always.

    Returns:
        Whether that could be done.
    """
    for module in modules:
        module.double()
    for i, tensor in enumerate(t for m in modules for t in m.parameters() if t.dim() > 1):
        tensor.copy_(draw(seed + i, *tensor.shape) / tensor[0].numel() ** 0.5)
    for i, part in enumerate(m for module in modules for m in module.modules()):
        if isinstance(part, (nn.Linear, nn.Conv2d)) and part.bias is not None:
            part.bias.copy_(0.2 * draw(seed - i - 1, len(part.bias)))
    weight = None
    for i, module in enumerate(modules):
        if not getattr(module, "autapses", True):
            module.recurrent_weights.fill_diagonal_(0)
        inner = getattr(module, "lifted_module", module)
        weight = getattr(module, "input_weights", getattr(inner, "weight", weight))
        if library.fires(module):
            start = weight.clone()
            for power in (0, 1, -1, 2, -2, 3, -3, 4, 5, 6, 7):
                weight.copy_(2.0**power * start)
                if low < float(library.run(modules[: i + 1], x[:steps])[-1].mean()) < high:
                    break
            else:
                return False
    return True


@torch.no_grad()
def prepare_ours(network, x, seed=0, *, low=0.02, high=0.7, steps=60):
    """Do the same with a network of ours."""
    network.double()
    for i, synapse in enumerate(network.synapses.values()):
        for j, tensor in enumerate(synapse.parameters()):
            tensor.copy_(draw(seed + 2 * i + j, *tensor.shape) / tensor[0].numel() ** 0.5)
    for name, layer in network.layers.items():
        if layer.neuron is not None and layer.neuron.is_spiking:
            start = layer.synapse.weight.clone()
            for power in (0, 1, -1, 2, -2, 3, -3, 4, 5, 6, 7):
                layer.synapse.weight.copy_(2.0**power * start)
                if low < network.record(x[:steps], layers=[name])[name]["spikes"].mean() < high:
                    break
            else:
                return False
    return True


def compare(library, modules, network, x):
    """Compare the spikes of all layers, the output and the gradients of all parameters."""
    theirs = library.run(modules, x)
    assert len(x) >= STEPS
    spikes = [out.detach() for m, out in zip(modules, theirs) if library.fires(m)]
    recording = network.record(x)
    ours = [n for n in recording if network.layers[n].neuron.is_spiking]
    assert len(ours) == len(spikes)
    for name, expected in zip(ours, spikes):
        assert 0.001 < float(expected.mean()) < 0.95
        assert torch.equal(torch.as_tensor(recording[name]["spikes"]), expected)
    out = network(x).steps
    torch.testing.assert_close(out, theirs[-1], rtol=1e-9, atol=1e-9)
    weight = (draw(99, *out.shape) * 256).round() / 256
    same_gradients(
        gradients(out, weight, our_parameters(network)),
        gradients(theirs[-1], weight, their_parameters(modules)),
    )


def gradients(out, weight, parameters):
    wanted = [(p, slope) for p, slope in parameters if p.requires_grad]
    found = torch.autograd.grad((out * weight).sum(), [p for p, _ in wanted])
    return [gradient * slope for gradient, (_, slope) in zip(found, wanted)]


def our_parameters(network):
    """Return parameters, and the slope of the stored number by the value it stands for."""
    found = []
    for layer in network.layers.values():
        for part in (layer.synapse, layer.norm):
            found += [] if part is None else [(p, 1.0) for p in part.parameters()]
        if layer.neuron is not None:
            found += learned(layer.neuron)
        if layer.recurrent is not None:
            found += [(p, 1.0) for p in layer.recurrent.parameters()]
    return found


def learned(cells):
    found = []
    for name in ("beta", "alpha", "v_th"):
        if name in cells.ranges:
            raw, allowed = getattr(cells, name), ranges(type(cells.neuron))[name]
            assert isinstance(allowed, Range)
            value = allowed.from_raw(raw.detach())
            found.append((raw, 1 / (value * (1 - value)) if allowed.high == 1 else 1.0))
    return found


def their_parameters(modules):
    """Return parameters in the order of ours."""
    found = []
    for module in modules:
        named = dict(module.named_parameters())
        order = ("input_weights", "beta", "alpha", "threshold")
        first = [named.pop(name) for name in order if name in named]
        found += [(p, 1.0) for p in (*first, *named.values())]
    return found


def same_gradients(ours, theirs):
    """Compare each pair in norm and entry by entry."""
    assert len(ours) == len(theirs)
    assert any(bool(b.any()) for b in theirs)
    for a, b in zip(ours, theirs):
        b = b.reshape(a.shape)
        assert float((a - b).norm()) <= 1e-8 * float(b.norm())
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()))
