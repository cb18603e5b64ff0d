"""Domains: the classes stay, what images look like changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Strict

from spikecl.components import PositiveInt, component
from spikecl.data import Data
from spikecl.errors import ConfigError, suggest
from spikecl.seeds import Seeds
from spikecl.streams.corruptions import Corrupt, Corruption
from spikecl.streams.reveal import DOMAIN_IL, Reveal
from spikecl.streams.scenarios import SCENARIOS, Scenario, StreamSpec
from spikecl.streams.source import Source, at_least_one, every_class, with_old
from spikecl.streams.stream import Stream

KINDS: tuple[Corruption, ...] = get_args(Corruption)
Kinds = Annotated[tuple[Corruption, ...], Strict(False)]
FIVE: tuple[Corruption, ...] = ("clean", "invert", "noise", "blur", "contrast")


def domains(
    data: Data,
    *,
    kinds: Sequence[Corruption] = FIVE,
    experiences: int | None = None,
    severity: int = 3,
    reveal: Reveal = DOMAIN_IL,
    seed: int = 0,
    old_data: bool = False,
) -> Stream:
    """Return a stream whose every experience shows all images corrupted in another way.

    All classes are in every experience (domain-incremental). Test images are corrupted alike, with
    noise of their own.

    Args:
        data: Images.
        kinds: Corruption of each experience, in order.
        experiences: Number of experiences: the first of ``kinds``, which come again behind the
            last; ``None`` takes each once.
        severity: 1 (mild) to 5.
        reveal: What learners may know.
        seed: Seed of the noise.
        old_data: Also reveal earlier training data.

    Raises:
        ConfigError: Data that are no images, or an unknown corruption.

    Source: kinds after Hendrycks & Dietterich, ICLR 2019, and Mu & Gilmer, arXiv:1906.02337; the
    severities are ours.
    """
    at_least_one(len(kinds))
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"domains: no corruption '{kind}'{suggest(kind, KINDS)}")
    if not 1 <= severity <= 5:
        raise ConfigError(f"stream.domains.severity: got {severity}; use 1 to 5")
    if data.temporal or len(data.input_shape) not in (2, 3):
        raise ConfigError(
            f"domains needs images [H, W] or [H, W, C]; {data.name} has samples of shape "
            f"{list(data.input_shape)}{', temporal' * data.temporal}; use permuted or split_classes"
        )
    source, seeds, peak = Source(data), Seeds(seed), float(data.peak)
    count = len(kinds) if experiences is None else experiences
    at_least_one(count)
    chosen = [kinds[i % len(kinds)] for i in range(count)]

    def changes(split: Literal["train", "test"]) -> list[Corrupt]:
        drawn = [seeds.derive(f"domains-{split}", event=i) for i in range(count)]
        return [Corrupt(kind, severity, peak, each) for kind, each in zip(chosen, drawn)]

    parameters: dict[str, Any] = {"kinds": list(chosen), "severity": severity}
    shown = with_old(reveal, old_data)
    return every_class(
        "domains", source, seed, changes("train"), parameters, shown, tests=changes("test")
    )


@component
class Domains(StreamSpec):
    """Every experience shows all images corrupted in another way; see :func:`domains`.

    Args:
        kinds: Corruption of each experience, in order: ``clean``, ``noise``, ``salt_pepper``,
            ``blur``, ``contrast``, ``brightness``, ``invert``, ``occlude`` or ``coarse``.
        experiences: Number of experiences; kinds come again behind the last. Without it each comes
            once.
        severity: 1 (mild) to 5.
        scenario: ``domain`` reveals where an experience begins; ``task`` also which task a sample
            belongs to, in training and in tests; ``free`` neither.
        old_data: Also reveal earlier training data.
    """

    kinds: Kinds = FIVE
    experiences: PositiveInt | None = None
    severity: Annotated[int, Field(ge=1, le=5)] = 3
    scenario: Scenario = "domain"
    old_data: bool = False

    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""
        return domains(
            data,
            kinds=self.kinds,
            experiences=self.experiences,
            severity=self.severity,
            reveal=SCENARIOS[self.scenario],
            seed=seed,
            old_data=self.old_data,
        )
