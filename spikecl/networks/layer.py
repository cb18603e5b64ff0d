"""Layers: a synapse and the neurons it drives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikecl.errors import ConfigError, suggest
from spikecl.kernels import scan
from spikecl.networks.norm import Postsynaptic
from spikecl.networks.presynaptic import Presynaptic
from spikecl.networks.synapses import Linear, Synapse
from spikecl.neurons import LoihiLIF, Neuron, RateNeuron, SigmaDelta, SpikingNeuron, State
from spikecl.neurons.rectified import Rectified
from spikecl.neurons.values import ranges


class Cells(nn.Module):
    """Neurons of a layer as a module: parameters and a call, no state.

    Parameters that learn are stored without bounds and mapped into their range at each call
    (:mod:`spikecl.neurons.values`), one number for the layer or one for each neuron.

    Args:
        neuron: The model.
        learns: Names of parameters to train; ``None`` trains those the model names.
        size: Shape of the features for one value per neuron; empty for one per layer.

    Example:
        >>> from spikecl.neurons import LIF
        >>> spikes, state = Cells(LIF(beta=0.5))(torch.ones(3, 1, 2))
        >>> spikes[:, 0, 0].tolist()
        [0.0, 1.0, 1.0]
    """

    def __init__(
        self, neuron: Neuron, *, learns: Sequence[str] | None = None, size: tuple[int, ...] = ()
    ):
        super().__init__()
        self.neuron = neuron
        names = neuron.learns if learns is None else tuple(learns)
        known = ranges(type(neuron))
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{type(neuron).__name__} has no parameter '{name}' that could learn"
                    f"{suggest(name, known)}"
                )
            if name in neuron.idle:
                raise ConfigError(
                    f"{type(neuron).__name__}.{name} cannot learn: {neuron.idle[name]}, or leave "
                    "it out of learns"
                )
        self.ranges = {name: known[name] for name in names}
        for name in self.ranges:
            start = self._start(name, getattr(getattr(neuron, name), "dtype", None))
            value = start.expand(size) if size else start
            self.register_parameter(name, nn.Parameter(value.clone()))
        fixed = {n: getattr(neuron, n) for n in known if n not in names}
        for name, value in fixed.items():
            if isinstance(value, Tensor):  # moves with the module
                self.register_buffer(name, value.detach().clone())
        self._fixed = any(isinstance(value, Tensor) for value in fixed.values())

    def _start(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """Return what the model's own value of a parameter is stored as, by default as floats."""
        value = getattr(self.neuron, name)
        value = torch.as_tensor(value, dtype=dtype or torch.get_default_dtype())
        return self.ranges[name].to_raw(value)

    @torch.no_grad()
    def restart(self) -> None:
        """Put back the initial values of what learns."""
        for name in self.ranges:
            own = getattr(self, name)
            own.copy_(self._start(name, own.dtype))

    @property
    def is_spiking(self) -> bool:
        """Whether the neurons talk in spikes."""
        return isinstance(self.neuron, (SpikingNeuron, SigmaDelta, LoihiLIF, RateNeuron))

    @property
    def has_memory(self) -> bool:
        """Whether a step depends on earlier ones."""
        return not isinstance(self.neuron, Rectified)

    def bound(self, raw: Mapping[str, Tensor] | None = None) -> Neuron:
        """Return the neuron with what has been learned (or with other stored values)."""
        if not (self.ranges or self._fixed):
            return self.neuron
        stored = dict(self.named_parameters()) if raw is None else raw
        learned = {name: r.from_raw(stored[name]) for name, r in self.ranges.items()}
        return self.neuron.bind({**dict(self.named_buffers()), **learned})

    def forward(
        self, x: Tensor, state: State = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Run over input [T, B, *features]; return the output and the state after the last step."""
        return scan(x, state, self.bound(), generator=generator)


class Layer(nn.Module):
    """A synapse, the neurons behind it, and the names of the layers it listens to.

    Args:
        synapse: Turns activity into current.
        neuron: Turns current into activity; ``None`` passes the current on (a readout).
        inputs: Names of the layers whose activity is summed; ``"input"`` is the network's input.
        before: Changes of the activity before the synapse, by name, in order.
        norm: Normalises (or otherwise changes) the current.
        currents: Names of layers whose output is added to the current behind the norm (shortcuts).
        recurrent: Synapse of the neurons onto themselves, one step later.
    """

    def __init__(
        self,
        synapse: Synapse,
        neuron: Cells | None,
        *,
        inputs: tuple[str, ...],
        before: Mapping[str, Presynaptic] | None = None,
        norm: Postsynaptic | None = None,
        currents: tuple[str, ...] = (),
        recurrent: Linear | None = None,
    ):
        super().__init__()
        if recurrent is not None and neuron is None:
            raise ConfigError("a layer without neurons cannot listen to itself; give it neurons")
        if taken := {"norm", "neuron", "recurrent"} & set(before or {}):
            raise ConfigError(f"a stage cannot be called {sorted(taken)}; the layer has one itself")
        self.synapse = synapse
        self.neuron = neuron
        self.inputs = inputs
        self.before = nn.ModuleDict(before or {})
        self.norm = norm
        self.currents = currents
        self.recurrent = recurrent

    @property
    def has_memory(self) -> bool:
        """Whether a step depends on earlier ones."""
        cells = self.neuron is not None and self.neuron.has_memory
        return cells or self.recurrent is not None or any(b.memory for b in self.stages())

    def stages(self) -> list[Any]:
        """Return the changes of the activity before the synapse, in order."""
        return list(self.before.values())

    def restart(self) -> None:
        """Put back the initial values of what no synapse holds."""
        for part in (*self.stages(), self.norm, self.neuron):
            if part is not None:
                part.restart()

    def named_direct(self) -> dict[str, nn.Parameter]:
        """Return the parameters that no synapse holds, by name within the layer."""
        parts: dict[str, nn.Module | None] = {"norm": self.norm, "neuron": self.neuron}
        parts |= dict(self.before.items())
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            if module is not None
            for name, parameter in module.named_parameters()
        }
