"""Concept shift: the inputs stay, what they mean changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.data import Data
from spikecl.errors import ConfigError
from spikecl.seeds import Seeds
from spikecl.streams.events import Experience, Samples
from spikecl.streams.reveal import TASK_FREE, Reveal
from spikecl.streams.scenarios import SCENARIOS, StreamSpec
from spikecl.streams.source import Source, assembled, at_least_one
from spikecl.streams.stream import EvalSet, Stream

SHORTEST = 0.1  # of the mean length: no shift comes sooner


def concept_shift(
    data: Data,
    *,
    experiences: int = 10,
    samples: int = 1000,
    rate: Literal["constant", "varying"] = "constant",
    swaps: int = 1,
    reveal: Reveal = TASK_FREE,
    seed: int = 0,
) -> Stream:
    """Return a stream in which pairs of classes exchange their labels, again and again.

    In experience i the label of a sample of class c is ``m_i[c]``. ``m_0`` is the identity; at each
    shift ``swaps`` pairs of labels, none twice, are drawn and exchanged::

        m_i = s_i o m_{i-1},    s_i the exchange of the pairs

    Samples come in an order drawn anew for each pass through the data. The test set of experience
    i is the whole test set with the labels of that experience: old ones contradict new ones, so
    that accuracy on them has to fall, and the accuracy of training batches before their step
    (prequential) is what tells how well a learner follows.

    Args:
        data: Data set.
        experiences: Number of experiences; there is a shift between each two.
        samples: Samples of an experience; their mean where the rate varies.
        rate: Shifts after equally many samples, or after exponentially distributed numbers of them
            (at least a tenth of the mean).
        swaps: Pairs of labels exchanged at each shift.
        reveal: What learners may know.
        seed: Seed of the pairs, lengths and orders.

    Raises:
        ConfigError: More pairs than there are classes for, or no samples.

    Source: label shifts as in Man, Damasio & Neven, arXiv:2205.08645. Deviation: which labels are
    exchanged, and the distribution of lengths, are ours.
    """
    at_least_one(experiences)
    if samples < 1:
        raise ConfigError(f"stream.concept_shift.samples: got {samples}; use at least 1")
    if not 0 < 2 * swaps <= data.classes:
        raise ConfigError(
            f"stream.concept_shift.swaps: got {swaps} pairs of the {data.classes} classes of "
            f"{data.name}; use 1 to {data.classes // 2}"
        )
    source, seeds = Source(data), Seeds(seed)
    sizes = [samples] * experiences
    if rate == "varying":
        drawn = torch.rand(experiences, generator=seeds.generator("shift-lengths")).double()
        least = SHORTEST * samples
        drawn = (least - (samples - least) * (1 - drawn).log()).round()
        sizes = drawn.int().clamp_min(1).tolist()
    starts = [sum(sizes[:i]) for i in range(experiences)]
    meanings = _meanings(experiences, data.classes, swaps, seeds)

    def make(i: int) -> Experience:
        rows = _rows(starts[i], sizes[i], len(source.train[0]), seeds)
        shown = _meant(source.samples("train", rows, None), meanings[i])
        return Experience(i, shown, source.all_classes, task=i)

    tests = source.samples("test", None, None)
    eval_sets = {
        f"concept{i}": EvalSet(_meant(tests, meanings[i]), source.all_classes, (i,))
        for i in range(experiences)
    }
    parameters = {"samples": samples, "rate": rate, "swaps": swaps}
    return assembled(
        "concept_shift", source, seed, reveal, parameters, experiences, make, eval_sets
    )


def _meanings(experiences: int, classes: int, swaps: int, seeds: Seeds) -> list[Tensor]:
    """Return the label of each class in each experience."""
    found = [torch.arange(classes)]
    for i in range(1, experiences):
        drawn = torch.randperm(classes, generator=seeds.generator("shift", event=i))[: 2 * swaps]
        exchange = torch.arange(classes)
        exchange[drawn] = drawn.view(2, swaps).flip(0).flatten()
        found.append(exchange[found[-1]])
    return found


def _rows(start: int, size: int, total: int, seeds: Seeds) -> Tensor:
    """Return the rows at ``start`` to ``start + size`` of endless passes through the data."""
    passes = range(start // total, math.ceil((start + size) / total))
    order = [torch.randperm(total, generator=seeds.generator("pass", epoch=p)) for p in passes]
    first = start - passes[0] * total
    return torch.cat(order)[first : first + size]


def _meant(samples: Samples, meaning: Tensor) -> Samples:
    """Return samples with the labels that their classes have."""
    (part,) = samples.parts
    assert part.y is not None
    return replace(samples, parts=(replace(part, y=meaning.to(part.y.dtype)[part.y]),))


@component
class ConceptShift(StreamSpec):
    """Pairs of classes exchange their labels, again and again; see :func:`concept_shift`.

    Args:
        experiences: Number of experiences, with a shift between each two.
        samples: Samples of an experience; their mean where the rate varies.
        rate: Shifts come after equally many samples (``constant``), or after exponentially
            distributed numbers of them (``varying``).
        swaps: Pairs of labels exchanged at each shift.
        scenario: ``free`` reveals no shift, ``domain`` reveals where one is.
    """

    experiences: PositiveInt = 10
    samples: PositiveInt = 1000
    rate: Literal["constant", "varying"] = "constant"
    swaps: Annotated[int, Field(ge=1)] = 1
    scenario: Literal["domain", "free"] = "free"

    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""
        return concept_shift(
            data,
            experiences=self.experiences,
            samples=self.samples,
            rate=self.rate,
            swaps=self.swaps,
            reveal=SCENARIOS[self.scenario],
            seed=seed,
        )
