"""Second moments ``E[x x^T]`` of what synapses transmit, gathered after training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spikecl.continual.host import Seen, transmitted
from spikecl.continual.method import Context, Factors
from spikecl.errors import UsageError
from spikecl.storage import State
from spikecl.streams import LearnerView

_BLOCK = 200  # columns


class Moments:
    """A running mean of ``x x^T`` over rows, summed in double precision.

    Args:
        size: Number of inputs n.
        device: Where to sum.
    """

    def __init__(self, size: int, device: torch.device):
        self.total = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Add rows [R, n]. Products of spikes are exact in single precision, others are not."""
        spikes = bool(((rows == 0) | (rows == 1)).all())
        self.total += products(rows if spikes else rows.double())
        self.count += len(rows)

    def mean(self) -> Tensor:
        """Return ``E[x x^T]`` [n, n]."""
        return self.total / max(self.count, 1)


def products(rows: Tensor) -> Tensor:
    """Return ``X^T X`` [n, n] of rows [R, n], each block of it once: it is symmetric.

    Example:
        >>> products(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[ 1.,  2.],
                [ 2., 13.]])
    """
    n = rows.shape[1]
    found = rows.new_empty(n, n)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        block = rows[:, start:stop]
        found[start:, start:stop] = rows[:, start:].T @ block
        found[start:stop, stop:] = found[stop:, start:stop].T
    return found


def moments(
    context: Context,
    view: LearnerView,
    sizes: Mapping[str, int],
    count: int,
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return ``E[x x^T]`` of each synapse over at most ``count`` samples of an experience.

    The pass is one of a test: no dropout, running statistics in norms. ``weights`` are effective
    parameters by name to take in place of the network's own.
    """
    found = {name: Moments(n, context.device) for name, n in sizes.items()}
    for seen in context.host.look(view.samples, count):
        for name, rows in transmitted(context.network, seen, weights).items():
            if name in found:
                found[name].add(rows)
    return {name: each.mean() for name, each in found.items()}


def rows_of(context: Context, seen: Seen) -> Mapping[str, Tensor]:
    """Return what each synapse transmits of samples."""
    return transmitted(context.network, seen)


def check_alive(covariances: Mapping[str, Tensor], method: str) -> None:
    """Refuse a synapse that transmitted nothing at all: the layer before it is silent.

    Raises:
        UsageError: There is nothing to protect.
    """
    if silent := [name for name, c in covariances.items() if not float(c.diagonal().sum())]:
        raise UsageError(
            f"method '{method}': nothing reached {', '.join(silent)} in the samples of this "
            "experience (the layer before never fires), so there is nothing to protect; raise its "
            "input (network gain, a lower v_th), or train longer"
        )


class Silent:
    """Synapses that have transmitted nothing in this experience, whatever they did in earlier ones.

    Args:
        method: Its name.
        names: Protected synapses.
    """

    def __init__(self, method: str, names: Iterable[str]):
        self._method, self._all = method, tuple(names)
        self._names: set[str] | None = None  # no step yet

    def begin(self) -> None:
        """An experience begins."""
        self._names = None

    def hear(self, factors: Factors) -> None:
        """Take note of a step; of synapses that were heard nothing is computed."""
        for name in sorted(self._left()):
            if name in factors:
                self.note(name, factors[name].transmitted)

    def note(self, name: str, rows: Tensor) -> None:
        """Take note of what a synapse transmitted."""
        if name in self._left() and rows.any():
            self._left().discard(name)

    def _left(self) -> set[str]:
        """Return who was not heard yet."""
        if self._names is None:
            self._names = set(self._all)
        return self._names

    def end(self) -> None:
        """Refuse silence, as :func:`check_alive` does."""
        check_alive({name: torch.zeros(1, 1) for name in sorted(self._names or ())}, self._method)

    def state_dict(self) -> State:
        """Return who was silent so far."""
        return {} if self._names is None else {"names": sorted(self._names)}

    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._names = set(state["names"]) if "names" in state else None
