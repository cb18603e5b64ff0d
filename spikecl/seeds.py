"""Named, counter-based randomness: no component draws from a global generator."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Seeds:
    """Derives independent generators from one root seed.

    The seed of a generator is the first 63 bits of ``SHA-256("root/name/event/epoch/step")`` (of
    which torch's CPU generator uses the low 32): it depends on its name and counters alone. So two
    methods with one root see the same order and the same initial weights, and drawing more from
    one name changes no other.

    Example:
        >>> a = Seeds(7).generator("order", event=1, epoch=0)
        >>> b = Seeds(7).generator("order", event=1, epoch=0)
        >>> bool((torch.randperm(5, generator=a) == torch.randperm(5, generator=b)).all())
        True
    """

    root: int

    def derive(self, name: str, *, event: int = 0, epoch: int = 0, step: int = 0) -> int:
        """Return the 63-bit seed of a name at an event, epoch and step."""
        digest = hashlib.sha256(f"{self.root}/{name}/{event}/{epoch}/{step}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generator(
        self, name: str, *, event: int = 0, epoch: int = 0, step: int = 0
    ) -> torch.Generator:
        """Return a fresh CPU generator for a name at an event, epoch and step."""
        seed = self.derive(name, event=event, epoch=epoch, step=step)
        return torch.Generator().manual_seed(seed)
