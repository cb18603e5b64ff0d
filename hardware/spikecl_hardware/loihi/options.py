"""How the numbers of a program are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """How numbers are chosen.

    Args:
        weight_bits: Bits of a dense weight, 1 to 8 (mixed signs: and a sign).
        message_bits: Bits of a graded input, its sign among them.
        convolutions: ``shared`` weights, ``unrolled`` into dense ones, or ``auto``: shared where
            they keep 6 bits (shared weights have no exponent).
        clips: Shares of the largest weight to try as the largest that is kept; more than one
            needs calibration data. A share above 1 (up to 4) leaves room for weights that learn.
        margin: What is allowed beyond the largest current and membrane that were measured.
        exponents: ``free`` chooses one for each dense synapse; ``fixed`` takes that of signed
            weights of 8 bits, the only one that ``.net`` files know.
    """

    weight_bits: int = 8
    message_bits: int = 8
    convolutions: Literal["auto", "shared", "unrolled"] = "auto"
    clips: tuple[float, ...] = (1.0,)
    margin: float = 1.5
    exponents: Literal["free", "fixed"] = "free"

    def __post_init__(self) -> None:
        """Raise ValueError for options out of range."""
        if not (1 <= self.weight_bits <= 8 and 2 <= self.message_bits <= 24):
            raise ValueError(
                f"weight_bits={self.weight_bits}, message_bits={self.message_bits}; 1 to 8 and "
                "2 to 24 are allowed"
            )
        if self.convolutions not in ("auto", "shared", "unrolled"):
            raise ValueError(f"convolutions={self.convolutions!r}; auto, shared or unrolled")
        if self.exponents not in ("free", "fixed"):
            raise ValueError(f"exponents={self.exponents!r}; free or fixed")
        if not self.clips or not all(0 < c <= 4 for c in self.clips) or not self.margin >= 1:
            raise ValueError(
                f"clips={self.clips}, margin={self.margin}; shares above 0 up to 4, and a factor "
                "of 1 or more, are allowed"
            )


SEARCH = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Clips that are worth a try."""
