"""Contexts: what is told or guessed of a task, and units that are heard in some and not in others.

A unit with gate g in a context is heard as g times what it says: the weights that listen to it are
multiplied by g. Its neuron runs as it did.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spikecl.continual.homeostasis.layers import layers_with_neurons
from spikecl.continual.method import Context, Tensors
from spikecl.errors import PairingError
from spikecl.networks import Dale, NoAutapses
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal
from spikecl.trainers.needs import layers_of

Gates = Mapping[str, Tensor]
"""Gate of each unit [n] by layer."""


def gated_layers(context: Context, name: str) -> dict[str, int]:
    """Return the number of units (channels, of a map) of each hidden layer.

    Raises:
        PairingError: Units are heard in a way that no weight stands for; ``name`` is the method's.
    """
    network = context.network
    last = list(network.layers)[-1]
    for path, layer in layers_of(network).items():
        if layer.currents or len(layer.inputs) > 1:
            raise PairingError(
                f"method '{name}' gates units by the weights that listen to them, and layer "
                f"'{path}' hears several layers or a shortcut; use a network without"
            )
    for path, synapse in network.synapses.items():
        if bad := [m for m in synapse.maps if not (m.scales or isinstance(m, NoAutapses | Dale))]:
            raise PairingError(
                f"method '{name}' gates units by the weights that listen to them, and those of "
                f"'{path}' pass through {type(bad[0]).__name__}; use a network without"
            )
    found = {
        path: len(layer.synapse.weight)
        for path, layer in layers_with_neurons(network).items()
        if path != last
    }
    if not found:
        raise PairingError(
            f"method '{name}' gates hidden units, and the network has none; give it a hidden layer"
        )
    return found


def sources(context: Context) -> dict[str, str]:
    """Return the layer that each synapse listens to, by path."""
    found = {}
    for name, layer in layers_of(context.network).items():
        found[name] = layer.inputs[0]
        if layer.recurrent is not None:
            found[f"{name}.recurrent"] = name
    return found


def along_columns(gate: Tensor, weight: Tensor) -> Tensor:
    """Return gates of units as columns of the weights [m, n, ...] that listen to them."""
    columns = gate.repeat_interleave(weight.shape[1] // len(gate))  # places of a map, flattened
    return columns.view(1, -1, *[1] * (weight.dim() - 2)).to(weight)


def heard(weights: Tensors, gates: Gates, listens: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights with which gated units are heard, the others as they are."""
    made = dict(weights)
    for path, source in listens.items():
        if source in gates:
            name = f"{path}.weight"
            made[name] = weights[name] * along_columns(gates[source], weights[name])
    return made


class Contexts:
    """The contexts so far, each with the mean of its input.

    Args:
        context: The run.
        samples: Samples of an experience that the mean is taken of.
    """

    def __init__(self, context: Context, samples: int):
        self._context, self._samples = context, samples
        self.names: list[str] = []
        self.now = 0
        self.means = torch.empty(0, 0, device=context.device)

    def begin(self, view: LearnerView) -> bool:
        """Take up the context of an experience; return whether it is new."""
        known = Reveal.TASK_ID_TRAIN in view.reveal
        name = str(view.task) if known else str(len(self.names))
        if name in self.names:
            self.now = self.names.index(name)
            return False
        self.now = len(self.names)
        self.names.append(name)
        parts = [seen.x.mean(0) for seen in self._context.host.look(view.samples, self._samples)]
        mean = torch.cat(parts).flatten(1).mean(0, keepdim=True)
        self.means = torch.cat([self.means.to(mean).view(-1, mean.shape[1]), mean])
        return True

    def of(self, x: Tensor, task: int | None) -> Tensor:
        """Return the context [B] of samples [T, B, ...]: the task's, or the nearest mean's."""
        if task is not None and str(task) in self.names:
            return torch.full((x.shape[1],), self.names.index(str(task)), device=x.device)
        return torch.cdist(x.mean(0).flatten(1), self.means).argmin(1)

    def state_dict(self) -> State:
        """Return the means."""
        return {"names": list(self.names), "now": self.now, "means": self.means}

    def load_state_dict(self, state: State) -> None:
        """Take them back."""
        self.names, self.now, self.means = list(state["names"]), state["now"], state["means"]

    def nbytes(self) -> int:
        """Return the bytes kept."""
        return nbytes(self.means)


def logits_by_context(
    context: Context, x: Tensor, which: Tensor, gates: list[Gates], name: str
) -> Tensor:
    """Return the logits of samples [T, B, ...], each heard as in its context [B]."""
    network, listens = context.network, sources(context)
    made: Tensor | None = None
    for number in torch.unique(which).tolist():
        generator = None
        if network.is_random:
            generator = context.seeds.generator(f"{name}-test", event=number)
        rows = (which == number).nonzero()[:, 0]
        weights = heard(network.weights(), gates[number], listens)
        logits = network(x[:, rows], weights=weights, generator=generator).logits
        made = logits.new_zeros(x.shape[1], logits.shape[1]) if made is None else made
        made[rows] = logits
    assert made is not None
    return made
