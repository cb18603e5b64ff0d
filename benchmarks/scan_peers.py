"""The networks of ``scan.py`` as users of each framework write them, a plain loop and the bound.

Each returns a module from input [T, B, ...] to spike sums [B, 10]. All neurons subtract the
threshold when they fire. snnTorch and the plain loop compute the equations of ``scan_problem.py``
to the last digits. SpikingJelly and Norse's cells reset in the step of the spike, at the same cost.
Norse has no arctan (its default is used) and no constant reset; its layer over time exists with
synaptic currents only: a second state, which costs it something.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scan_problem import BETA, CONV_POOL, SLOPE, synapse
from torch import Tensor, nn


def parts(weights: list[Tensor], linear: Any = nn.Linear, conv: Any = nn.Conv2d) -> list[nn.Module]:
    """Return the synapses as modules of a framework, without bias."""
    made = []
    for weight in weights:
        n_out, n_in, *kernel = weight.shape
        one = (
            conv(n_in, n_out, kernel[0], bias=False) if kernel else linear(n_in, n_out, bias=False)
        )
        one.weight.data.copy_(weight)
        made.append(one)
    return made


def images(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Give images [T, B, H, W] their channel."""
    return x[:, :, None] if weights[0].dim() == 4 else x


class Gemm(nn.Module):
    """The bound: the products (or convolutions) of all steps at once, and nothing else.

    Without neurons the sums over time would be so large that most gradients of the loss become
    denormal, which is slow: the logits are means.
    """

    def __init__(self, weights: list[Tensor]):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(w.clone()) for w in weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return time means of the last layer's output."""
        h = x.flatten(0, 1)
        for i, weight in enumerate(self.weights):
            h = synapse(i, weight, h)
        return h.view(*x.shape[:2], -1).mean(0)


class Spike(torch.autograd.Function):
    """A step forward, the arctan surrogate backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return 1 where positive."""
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient times the surrogate."""
        x: Tensor = ctx.saved_tensors[0]
        return grads[0] * (SLOPE / 2) / (1 + (math.pi / 2 * SLOPE * x) ** 2)


class Plain(nn.Module):
    """The loop anybody would write."""

    def __init__(self, weights: list[Tensor]):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(w.clone()) for w in weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return spike sums."""
        u: list[Any] = [0.0] * len(self.weights)
        reset: list[Any] = [0.0] * len(self.weights)
        total: Any = 0.0
        for h in x:
            for i, weight in enumerate(self.weights):
                u[i] = BETA * u[i] + synapse(i, weight, h) - reset[i]
                h = Spike.apply(u[i] - 1.0)  # type: ignore[no-untyped-call]
                reset[i] = h.detach()
            total = total + h
        return total  # type: ignore[no-any-return]


def snntorch(weights: list[Tensor]) -> nn.Module:
    """Step loop with explicit membranes, as in the tutorials."""
    import snntorch as snn
    from snntorch import surrogate

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.synapses = nn.ModuleList(parts(weights))
            gradient = surrogate.atan(alpha=SLOPE)
            self.neurons = nn.ModuleList(snn.Leaky(beta=BETA, spike_grad=gradient) for _ in weights)
            self.pool = nn.MaxPool2d(CONV_POOL)

        def forward(self, x: Tensor) -> Tensor:
            mems = [neuron.reset_mem() for neuron in self.neurons]
            record = []
            for h in images(x, weights):
                for i, (one, neuron) in enumerate(zip(self.synapses, self.neurons)):
                    if h.dim() == 4 and i:
                        h = self.pool(h)
                    if h.dim() == 4 and weights[i].dim() == 2:
                        h = h.flatten(1)
                    h, mems[i] = neuron(one(h), mems[i])
                record.append(h)
            return torch.stack(record).sum(0)

    return Net()


def norse_cell(weights: list[Tensor]) -> nn.Module:
    """Cells without synaptic current in a step loop."""
    import norse.torch as norse
    from norse.torch.functional.lif_box import LIFBoxParameters
    from norse.torch.functional.reset import reset_subtract

    leak = torch.as_tensor((1 - BETA) * 1000)  # per second, of steps of a millisecond
    neuron = LIFBoxParameters(tau_mem_inv=leak, reset_method=reset_subtract)
    scaled = [w / (1 - BETA) for w in weights]  # its cells multiply the input by 1 - beta
    chain: list[nn.Module] = []
    for i, one in enumerate(parts(scaled)):
        if weights[0].dim() == 4 and i:
            chain.append(nn.MaxPool2d(CONV_POOL))
        if weights[0].dim() == 4 and weights[i].dim() == 2:
            chain.append(nn.Flatten())
        chain += [one, norse.LIFBoxCell(neuron)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain: Any = norse.SequentialState(*chain)

        def forward(self, x: Tensor) -> Tensor:
            state, record = None, []
            for one in images(x, weights):
                out, state = self.chain(one, state)
                record.append(out)
            return torch.stack(record).sum(0)

    return Net()


def norse_layer(weights: list[Tensor]) -> nn.Module:
    """Layers over time, products of all steps at once; dense networks only."""
    import norse.torch as norse

    chain: list[nn.Module] = []
    for one in parts([w / (1 - BETA) / 4 for w in weights]):  # a synapse sums ~4 steps
        chain += [one, norse.LIF(norse.LIFParameters())]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain: Any = norse.SequentialState(*chain)

        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.chain(x)
            return out.sum(0)  # type: ignore[no-any-return]

    return Net()


def spikingjelly(weights: list[Tensor]) -> nn.Module:
    """Multi-step mode, torch backend; the state is reset before each batch."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    chain: list[nn.Module] = []
    for i, one in enumerate(parts(weights, layer.Linear, layer.Conv2d)):
        if weights[0].dim() == 4 and i:
            chain.append(layer.MaxPool2d(CONV_POOL))
        if weights[0].dim() == 4 and weights[i].dim() == 2:
            chain.append(layer.Flatten())
        chain.append(one)
        chain.append(
            neuron.LIFNode(
                tau=1 / (1 - BETA),
                decay_input=False,
                v_reset=None,
                surrogate_function=surrogate.ATan(alpha=SLOPE),
                detach_reset=True,
            )
        )

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = nn.Sequential(*chain)
            functional.set_step_mode(self, "m")

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            return self.chain(images(x, weights)).sum(0)  # type: ignore[no-any-return]

    return Net()


FRAMEWORKS: dict[str, dict[str, Callable[[list[Tensor]], nn.Module]]] = {
    "gemm": {"": Gemm},
    "plain": {"": Plain},
    "snntorch": {"": snntorch},
    "norse": {"cell": norse_cell, "layer": norse_layer},
    "spikingjelly": {"": spikingjelly},
}
"""Variants by framework; each framework gets a process of its own."""
