"""What happens inside a network, step by step: for the eye."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikecl.errors import UsageError, suggest
from spikecl.kernels import Kernels, Recurrence, RecurrentState, scan
from spikecl.kernels.recurrence import Ways
from spikecl.neurons import Neuron, Refractory, State


@dataclass(slots=True)
class Trace:
    """Collects traces while a network runs; see :meth:`Network.record`.

    Args:
        layers: Layers to watch.
        variables: Fields of the neuron's state, ``spikes`` or ``current``; ``None``: all but that.
    """

    layers: Sequence[str]
    variables: Sequence[str] | None
    found: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Recording(Mapping[str, Mapping[str, NDArray[Any]]]):
    """Traces by layer and variable, [T, B, *features] each: ``recording["hidden1"]["v"]``.

    Args:
        traces: The arrays.
    """

    traces: Mapping[str, Mapping[str, NDArray[Any]]]

    def __getitem__(self, layer: str) -> Mapping[str, NDArray[Any]]:
        """Return the traces of a layer."""
        return self.traces[layer]

    def __iter__(self) -> Iterator[str]:
        """Iterate over layers."""
        return iter(self.traces)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.traces)

    def save(self, path: str | Path) -> None:
        """Write the arrays to an ``.npz`` file, named ``layer/variable``."""
        arrays: dict[str, Any] = {
            f"{layer}/{name}": a
            for layer, traces in self.traces.items()
            for name, a in traces.items()
        }
        np.savez_compressed(Path(path).with_suffix(".npz"), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what :meth:`save` wrote."""
        traces: dict[str, dict[str, NDArray[Any]]] = {}
        with np.load(Path(path).with_suffix(".npz"), allow_pickle=False) as file:
            for key in file.files:
                layer, _, name = key.rpartition("/")
                traces.setdefault(layer, {})[name] = file[key]
        return cls(traces)


def run_cells(
    name: str,
    x: Tensor,
    state: State,
    neuron: Neuron,
    *,
    recurrence: Recurrence | None,
    generator: torch.Generator | None,
    trace: Trace | None,
    kernels: Kernels,
    ways: Ways,
) -> tuple[Tensor, State]:
    """Scan a layer; where it is watched, one step at a time."""
    if trace is None or name not in trace.layers or not len(x):
        return scan(
            x,
            state,
            neuron,
            recurrence=recurrence,
            generator=generator,
            kernels=kernels,
            ways=ways,
        )
    outputs, states = [], []
    for current in x:
        out, state = scan(
            current[None],
            state,
            neuron,
            recurrence=recurrence,
            generator=generator,
            kernels=kernels,
        )
        outputs.append(out[0])
        states.append(_fields(state))
    spikes = torch.stack(outputs)
    known = {"spikes": spikes}
    known |= {k: torch.stack([s[k] for s in states]) for k in states[0] if k != "spikes"}
    wanted = tuple(known) if trace.variables is None else trace.variables
    known["current"] = x
    for variable in wanted:
        if variable not in known:
            raise UsageError(
                f"layer '{name}' ({type(neuron).__name__}) has no variable '{variable}'"
                f"{suggest(variable, known)}"
            )
    trace.found[name] = {v: known[v].detach() for v in wanted}
    return spikes, state


def _fields(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a state by name, those of nested states too."""
    found: dict[str, Tensor] = {}
    if isinstance(state, (RecurrentState, Refractory)):
        found |= _fields(state.neuron)
    for name, value in zip(getattr(state, "_fields", ()), state if state else ()):
        if isinstance(value, Tensor):
            found.setdefault(name, value)
    return found
