"""How errors go back to lower layers: through the weights, or through others.

With the weight ``W`` [m, n] of a synapse, the error ``delta`` [m] of its current and the error
``L`` [n] of the activity it meets, along a synapse::

    symmetric    L = W^T delta                          backpropagation
    random       L = B^T delta, B fixed                 feedback alignment
    sign         L = (c sign W)^T delta                 uniform sign-concordant feedback
    sign_random  L = (|B| sign W)^T delta               sign-concordant with random sizes
    adaptive     L = B^T delta, B learns as W does      Kolen-Pollack

``B`` is drawn as weights are and goes through the synapse's weight maps; ``c`` is the mean of
``|B|``. Or from the error ``e`` of the readout's current to every layer, whatever lies between::

    direct       L = B_l^T e, B_l fixed                 direct feedback alignment, e-prop "random"
    global       L = sum_k e_k / sqrt(n)                one signal for all
    target       L = -B_l^T y / (B T), y one-hot        target projection: no error is awaited

Source: Lillicrap et al., Nature Communications 7 (2016); Liao, Leibo & Poggio, AAAI 2016; Akrout et
al., NeurIPS 2019; Nøkland, NeurIPS 2016; Bellec et al., Nature Communications 11:3625 (2020);
targets: Frenkel, Lefebvre & Bol, Frontiers in Neuroscience 15 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor

from spikecl.encoding import Loss
from spikecl.errors import PairingError, UsageError
from spikecl.networks import Layer, Network
from spikecl.networks.network import own_parameters
from spikecl.seeds import Seeds

Feedback = Literal["symmetric", "random", "sign", "sign_random", "adaptive", "direct", "global"]
Signal = Feedback | Literal["target", "none"]
BROADCAST = ("direct", "global", "target")
PREFIX = "feedback."


def draw(feedback: Signal, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
    """Return feedback weights by name: those of a synapse, or of a layer that is broadcast to."""
    found: dict[str, Tensor] = {}
    if feedback in ("symmetric", "global", "none"):
        return found
    if feedback in ("direct", "target"):
        sizes, outputs = fired_sizes(network, x)
        for position, (name, size) in enumerate(sizes.items()):
            generator = seeds.generator("feedback", event=position)
            like = network.synapses[name].weight
            found[PREFIX + name] = uniform((outputs, size), 1 / math.sqrt(size), generator, like)
        return found
    for position, (path, synapse) in enumerate(network.synapses.items()):
        generator = seeds.generator("feedback", event=position)
        bound = 1 / math.sqrt(synapse.weight[0].numel())
        shape = tuple(synapse.weight.shape)
        found[PREFIX + path] = uniform(shape, bound, generator, synapse.weight)
    first = next(iter(network.layers))
    return {name: b for name, b in found.items() if name != PREFIX + first}


def uniform(
    shape: tuple[int, ...], bound: float, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Draw numbers evenly from ``-bound`` to ``bound``."""
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(like.detach())


@torch.no_grad()
def fired_sizes(network: Network, x: Tensor) -> tuple[dict[str, int], int]:
    """Return the neurons of each layer below the readout, and the size of the readout's current."""
    sizes, last = {}, next(reversed(list(network.layers)))
    recording = network.record(x[:1, :1], generator=torch.Generator())
    for name, traces in recording.items():
        if name != last:
            sizes[name] = int(math.prod(traces["spikes"].shape[2:]))
    return sizes, network.synapses[last].weight.shape[0]


def along(
    feedback: Signal,
    network: Network,
    weights: Mapping[str, Tensor],
    variables: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return, by synapse, the effective weight that errors meet in place of its own."""
    if feedback in ("symmetric", "none") or feedback in BROADCAST:
        return {}
    found = {}
    with torch.no_grad():
        for path, synapse in network.synapses.items():
            if PREFIX + path not in variables:
                continue
            own = own_parameters(path, synapse, weights)
            back = variables[PREFIX + path]
            if back.shape != own["weight"].shape:
                raise UsageError(
                    f"feedback of synapse '{path}' has shape {tuple(back.shape)}, its weight "
                    f"{tuple(own['weight'].shape)}; give one of the same shape"
                )
            back = synapse.effective({**own, "weight": back})
            if feedback.startswith("sign"):
                sign = synapse.effective(own).sign()
                back = sign * (back.abs().mean() if feedback == "sign" else back.abs())
            found[path] = back
    return found


def broadcast(
    feedback: Signal,
    error: Tensor,
    fired: Mapping[str, Tensor],
    variables: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return, by layer, the error of its output [T, B, *features].

    Args:
        feedback: ``direct`` or ``global``; ``target`` gets targets in place of errors.
        error: Error of the readout's current [T or 1, B, K]; of one step, it is that of the mean.
        fired: Outputs of the layers.
        variables: Weights [K, n] by layer, for ``direct``.
    """
    found = {}
    for name, out in fired.items():
        size = math.prod(out.shape[2:])
        if feedback == "global":
            signal = error.sum(2, keepdim=True).expand(*error.shape[:2], size) / math.sqrt(size)
        else:
            back = variables[PREFIX + name]
            if tuple(back.shape) != (error.shape[2], size):
                raise UsageError(
                    f"feedback to layer '{name}' has shape {tuple(back.shape)}; it must go from "
                    f"{error.shape[2]} outputs to {size} neurons: ({error.shape[2]}, {size})"
                )
            signal = error @ back
        if len(signal) != len(out):
            signal = (signal / len(out)).expand(len(out), *signal.shape[1:])
        found[name] = signal.reshape(out.shape)
    return found


def tied(feedback: Signal, network: Network) -> dict[str, str]:
    """Return the feedback weights that learn as a parameter does."""
    if feedback != "adaptive":
        return {}
    first = next(iter(network.layers))
    paths = [path for path in network.synapses if path != first]
    return {f"{PREFIX}{path}": f"{path}.weight" for path in paths}


def check_feedback(rule: str, feedback: Signal, network: Network, loss: Loss) -> None:
    """Refuse feedback that a network has no room for, or a loss nothing to say."""
    layers = [cast(Layer, layer) for layer in network.layers.values()]
    if feedback in BROADCAST and not any(layer.neuron is not None for layer in layers[:-1]):
        raise PairingError(
            f"trainer '{rule}' with feedback='{feedback}' sends errors to hidden layers, and the "
            "network has none; use feedback='symmetric'"
        )
    if feedback == "global" and _sums_to_nothing(loss):
        raise PairingError(
            f"trainer '{rule}' with feedback='global' sends the sum of the outputs' errors, and "
            f"those of loss '{type(loss).__name__}' sum to zero; use loss 'step_mse' or "
            "'count_mse', or another feedback"
        )


def _sums_to_nothing(loss: Loss) -> bool:
    """Whether a loss's errors sum to zero over the outputs, as those of a softmax do."""
    with torch.enable_grad():
        outputs = torch.linspace(-1, 1, 18, dtype=torch.float64).sin().view(3, 2, 3)
        given = (outputs if loss.per_step else outputs.mean(0)).requires_grad_()
        (error,) = torch.autograd.grad(loss(given, torch.tensor([0, 2])), [given])
    return bool(error.sum(-1).abs().max() < 1e-9 * error.abs().max())
