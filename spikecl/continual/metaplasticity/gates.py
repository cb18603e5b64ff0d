"""What acts on weights one by one, on the change that was applied, by where they stood before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from spikecl.continual.metaplasticity.histogram import log_histogram
from spikecl.continual.method import Context, Method, Tensors, some
from spikecl.errors import PairingError
from spikecl.networks import Binarise


class Gate(Method):
    """Changes the applied update of some weights.

    The weights are noted before the optimiser moves them: what others have made of the update since
    does not say any more where they stood.

    Args:
        context: The run.
        names: Which weights, by parameter name.

    Raises:
        PairingError: Weights of this run move by whole levels, of which nothing can change a part.
    """

    whole: ClassVar[bool] = False

    def __init__(self, context: Context, names: Sequence[str]):
        if any(isinstance(method, Gate) and method.whole for method in context.before):
            raise PairingError(
                f"method '{type(self).__name__.strip('_').lower()}' changes updates by a part, and "
                "method 'cascade' moves synapses by whole levels; use one of the two"
            )
        self._context, self.names = context, tuple(names)
        self._old: dict[str, Tensor] = {}

    @property
    def stored(self) -> dict[str, Tensor]:
        """The weights as they are stored."""
        weights = self._context.network.weights()
        return {name: weights[name].detach() for name in self.names}

    def gradients(self, gradients: Tensors) -> Tensors:
        self._old = {name: weight.clone() for name, weight in self.stored.items()}
        return gradients

    @torch.no_grad()
    def update(self, update: Tensors) -> Tensors:
        changed = dict(update)
        for name, old in self._old.items():
            changed[name] = self.changed(name, update[name], old)
        self._old = {}
        return changed

    @abstractmethod
    def changed(self, name: str, update: Tensor, old: Tensor) -> Tensor:
        """Return the update to apply to a weight that was ``old``."""

    def report(self) -> dict[str, object]:
        """Return histograms of the weights as they are stored."""
        return {name: {"weight": log_histogram(w)} for name, w in self.stored.items()}

    def described(self, key: str, values: Tensors) -> dict[str, object]:
        """Return the report with histograms of a consolidation variable in it."""
        said: dict[str, Any] = Gate.report(self)
        for name, value in values.items():
            said[name][key] = log_histogram(value)
        return said


def weights_of(context: Context, method: str) -> list[str]:
    """Return the names of the weights of synapses that learn; biases and the like are none.

    Raises:
        PairingError: There are none.
    """
    synapses = context.network.synapses.items()
    return some([f"{path}.weight" for path, each in synapses if each.weight.requires_grad], method)


def binary_weights(context: Context, method: str, otherwise: str) -> list[str]:
    """Return the names of the weights whose sign alone is used.

    Raises:
        PairingError: There are none; the last words of it are ``otherwise``.
    """
    synapses = context.network.synapses
    binary = {
        f"{path}.weight"
        for path, each in synapses.items()
        if any(isinstance(m, Binarise) for m in each.maps)
    }
    names = [name for name in weights_of(context, method) if name in binary]
    if not names:
        raise PairingError(
            f"method '{method}' is about hidden weights behind binary synapses, and the weights of "
            f"{list(synapses)} are used as they are stored: how large one is says nothing there "
            "about how often it was confirmed; use a network with binary='fixed' or 'rows', "
            f"{otherwise}"
        )
    return names
