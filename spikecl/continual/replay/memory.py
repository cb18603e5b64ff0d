"""A replay memory: the samples of a stream that come first in an order, in a fixed room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from spikecl.errors import ConfigError
from spikecl.seeds import Seeds
from spikecl.storage import State, nbytes

Policy = Literal["reservoir", "balanced", "fifo", "ring"]
"""What a memory keeps: a ``reservoir`` a uniform sample of all that came, ``balanced`` one with as
many of each class, ``fifo`` the newest, ``ring`` the newest of each class."""

CAPACITY = 500  # samples, where nothing is said
BLOCK = 1024  # numbers that are drawn at a time
KEY_BYTES = 8


class Memory:
    """A fixed number of samples of a stream; each policy is an order, and the first are kept.

    A sample gets its key when it comes, from its place in the stream alone. In order of
    execution::

        key = u in [0, 1)            uniform (reservoir, balanced)
        key = -place                 (fifo, ring)
        rank = |{j of its class: key_j < key}|   (balanced, ring), 0 for the others
        keep the ``capacity`` smallest (rank, key)

    What was shed once would never come back, so what is kept is what the whole stream so far would
    give at once: it does not depend on how the stream was cut into batches. Of N samples a
    reservoir keeps every set of M with the same probability, each sample with M/N. The classes of
    ``balanced`` and ``ring`` that had to shed differ by one sample at most, and within its class a
    sample is kept with equal probability (``balanced``).

    Where samples are deleted, the next ones fill the room, and the largest keys go first again:
    when those that filled it are gone, the memory is as if the deleted had never come (by class,
    where every class goes on coming: what others filled is room that one which comes no more lost).

    Source: reservoir sampling, Vitter 1985, by random keys (Efraimidis & Spirakis 2006, all weights
    equal); ``ring``: Chaudhry et al. 2019.
    Deviation: Chaudhry's ring gives each class the same room from the start; here a class may use
    what others have not claimed yet.

    Args:
        like: By name, tensors [N, *shape] (N may be 0) of what is kept of a sample: its shape and
            type count. ``y`` are labels, which the policies by class need; ``uid`` are ids, which
            deletion needs.
        capacity: Samples there is room for.
        policy: Which of them are kept.
        classes: Number of classes.
        seeds: Root of the keys.
        name: Of the keys: another memory of one root has another name.
        device: Where it lies.

    Attributes:
        size: Samples in it.
        seen: Samples that came.
    """

    def __init__(
        self,
        like: Mapping[str, Tensor],
        *,
        capacity: int,
        policy: Policy,
        classes: int,
        seeds: Seeds,
        name: str = "memory",
        device: torch.device | None = None,
    ):
        self.capacity, self.policy, self.classes = capacity, policy, classes
        self._seeds, self._name = seeds, name
        self._columns = {
            key: torch.full((capacity, *t.shape[1:]), _blank(key), dtype=t.dtype, device=device)
            for key, t in like.items()
        }
        self._key = torch.zeros(capacity, dtype=torch.float64, device=device)
        self._ready = self._key.is_cpu
        self.size = self.seen = 0

    # ---- what comes -----------------------------------------------------------------------------

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Take the next samples of the stream, by name [B, *shape]; nothing waits for a device."""
        rows = {name: rows[name] for name in self._columns}
        count = len(next(iter(rows.values())))
        rows["key"] = self._keys(count).to(self._key.device)
        self.seen += count
        over = self.size + count - self.capacity
        columns = {**self._columns, "key": self._key}
        if over <= 0:
            for name, column in columns.items():
                column[self.size : self.size + count] = rows[name]
            self.size += count
            return
        stays = torch.ones(self.size + count, dtype=torch.bool, device=self._key.device)
        stays[self._last(rows, over)] = False
        taken = torch.zeros(self.capacity, dtype=torch.bool, device=stays.device)
        taken[: self.size] = stays[: self.size]
        enters = stays[self.size :]
        # a CPU says how many change places; others would be waited for, so all are written that may
        most = int(enters.sum()) if self._ready else min(count, self.capacity)
        slots = taken.byte().argsort(stable=True)[:most]
        chosen = (~enters).byte().argsort(stable=True)[:most]
        valid = torch.arange(most, device=stays.device) < enters.sum()
        for name, column in columns.items():
            which = valid.view(-1, *[1] * (column.dim() - 1))
            column[slots] = torch.where(which, rows[name][chosen], column[slots])
        self.size = self.capacity

    def _keys(self, count: int) -> Tensor:
        """Return the keys of the next samples."""
        if self.policy in ("fifo", "ring"):
            return -torch.arange(self.seen, self.seen + count, dtype=torch.float64)
        return chances(self._seeds, self._name, self.seen, count)

    def _last(self, rows: Mapping[str, Tensor], over: int) -> Tensor:
        """Return which of the samples stored and coming are last in the order."""
        key = torch.cat([self._key[: self.size], rows["key"]])
        if self.policy in ("reservoir", "fifo"):
            return key.topk(over).indices
        y = torch.cat([self._columns["y"][: self.size], rows["y"]])
        order = key.argsort()
        grouped = order[y[order].argsort(stable=True)]  # by class, then by key
        counts = self._counts(y)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(y), device=y.device)
        rank = torch.empty_like(order)
        rank[grouped] = place - first[y[grouped]]
        return order[(rank[order] * len(y) + place).topk(over).indices]

    def _counts(self, y: Tensor) -> Tensor:
        counts = torch.zeros(self.classes, dtype=torch.int64, device=y.device)
        return counts.index_add_(0, y, torch.ones_like(y))

    # ---- what is asked --------------------------------------------------------------------------

    def draw(self, count: int, generator: torch.Generator, *, balanced: bool = False) -> Tensor:
        """Return the rows of ``count`` different samples, or of all where there are fewer.

        One after the other, each with a probability in proportion to its weight: 1, or 1 over the
        samples of its class where ``balanced``. They win a race of waiting times whose rates are
        the weights (Efraimidis & Spirakis 2006). The numbers are drawn on the CPU.
        """
        race = torch.rand(self.size, generator=generator, dtype=torch.float64).to(self._key.device)
        if balanced:
            y = self._columns["y"][: self.size]
            race = -torch.log1p(-race) * self._counts(y)[y]
        return race.topk(min(count, self.size), largest=False).indices

    def take(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return copies of the samples of some rows, or of all, by name [R, *shape]."""
        rows = torch.arange(self.size, device=self._key.device) if rows is None else rows
        return {name: column[rows] for name, column in self._columns.items()}

    def classes_kept(self) -> list[int]:
        """Return how many samples of each class are in it; nothing where there are no labels."""
        if "y" not in self._columns:
            return []
        return [int(n) for n in self._counts(self._columns["y"][: self.size])]

    # ---- what goes ------------------------------------------------------------------------------

    def delete(self, ids: Tensor) -> int:
        """Wipe out every sample with one of some ids, close the gaps, and return how many went."""
        gone = torch.isin(self._columns["uid"][: self.size], ids.to(self._key.device))
        kept, old = (~gone).nonzero()[:, 0], self.size
        self.size = len(kept)
        for name, column in {**self._columns, "key": self._key}.items():
            column[: self.size] = column[kept]
            column[self.size : old] = _blank(name)
        return old - self.size

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Return what is in it."""
        columns = {name: column[: self.size] for name, column in self._columns.items()}
        key = self._key[: self.size]
        return {"seen": self.seen, "capacity": self.capacity, "key": key, "columns": columns}

    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.seen, self.size = state["seen"], len(state["key"])
        for name, column in {**self._columns, "key": self._key}.items():
            column[: self.size] = state["key"] if name == "key" else state["columns"][name]
            column[self.size :] = _blank(name)

    def nbytes(self) -> int:
        """Return the bytes it takes, filled or not."""
        return nbytes(*self._columns.values(), self._key)


def _blank(name: str) -> int:
    return -1 if name == "uid" else 0


def chances(seeds: Seeds, name: str, first: int, count: int) -> Tensor:
    """Return numbers [count] in [0, 1), each a function of root, name and its place from ``first``.

    Example:
        >>> whole = chances(Seeds(1), "m", 0, 3000)
        >>> bool((chances(Seeds(1), "m", 1000, 50) == whole[1000:1050]).all())
        True
    """
    start = first // BLOCK
    blocks = range(start, (first + count) // BLOCK + 1)
    drawn = [
        torch.rand(BLOCK, generator=seeds.generator(name, step=block), dtype=torch.float64)
        for block in blocks
    ]
    return torch.cat(drawn)[first - start * BLOCK :][:count]


def capacity_of(like: Mapping[str, Tensor], samples: int | None, max_bytes: int | None) -> int:
    """Return how many samples a memory holds whose number or bytes are given.

    Raises:
        ConfigError: They do not fit, or not even one does.
    """
    each = KEY_BYTES + sum(t[:0].element_size() * t.shape[1:].numel() for t in like.values())
    if max_bytes is None:
        return CAPACITY if samples is None else samples
    most = max_bytes // each
    wanted = 1 if samples is None else samples
    if wanted > most:
        raise ConfigError(
            f"max_bytes={max_bytes} has room for {most} samples of {each} bytes (raw data, label, "
            f"id and key), not for {wanted}; use max_bytes={wanted * each} or more"
            + (f", or capacity={most} or less" if most else "")
        )
    return most if samples is None else samples
