"""How a learner trains and tests, where it stands, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from spikecl.components import PositiveFloat, PositiveInt, component

Initial = Literal["drawn", "given"]


@component
class TrainPlan:
    """How each experience is trained and what is tested.

    Args:
        epochs: Passes over each experience.
        batch: Samples per step.
        eval_batch: Samples per forward pass in tests.
        evaluate: After each event, test on the sets taught so far and the next one (all that the
            metrics need), on all, or on those that it taught and the next one alone (``present``:
            what long streams can afford; forgetting is then that since learning). All sets are
            tested before the first event and after the last.
        membrane: What a training batch starts from: rest (``reset``), or the state in which the
            batch before it ended (``detach``: its values, without its graph). Tests start from
            rest.
    """

    epochs: PositiveInt = 1
    batch: PositiveInt = 64
    eval_batch: PositiveInt = 256
    evaluate: Literal["seen_and_next", "all", "present"] = "seen_and_next"
    membrane: Literal["reset", "detach"] = "reset"


@component
class ExportPlan:
    """An export within a stream: what comes after it is learned on the chip.

    The network is quantised as ``spikecl export`` does it, with the lateral weights of its method,
    and goes on learning in the emulator: errors gate, sources replay what no earlier task uses.
    Weights learn; biases, thresholds and norms stay as they were. A sample has its share of a whole
    batch, in the short last one of an epoch too.

    Args:
        after: Events before it, usually experiences.
        backend: Where the rest is learned: in the ``emulator``; with ``lava``, Lava then learns the
            same from the same spikes and factors, and has to come to the same weights.
        layers: Which layers learn: ``all``, or the ``readout`` alone.
        rate: Learning rate on the chip, without schedule; by default that of the optimiser, if it
            is plain gradient descent.
        steps: Steps of a replay, and so its largest number of spikes. One replay can change weights
            most with 7, 14, 28 or 56 of them.
        lateral_rate: Step of new lateral weights, relative to the variance that is left to learn.
        calibrate: Training samples that scales are measured on.
        headroom: Largest weight that integers can hold, over the largest one at the export.
        chip: Whose limits hold.
        chips: How many of them there are.
        lava_limit_s: Seconds after which Lava is ended, for each layer of an experience.
    """

    after: PositiveInt
    backend: Literal["emulator", "lava"] = "emulator"
    layers: Literal["all", "readout"] = "all"
    rate: PositiveFloat | None = None
    steps: Annotated[int, Field(ge=1, le=62)] = 14
    lateral_rate: PositiveFloat = 1.0
    calibrate: PositiveInt = 256
    headroom: Annotated[float, Field(ge=1, le=4)] = 1.25
    chip: Literal["loihi1", "loihi2"] = "loihi2"
    chips: PositiveInt = 1
    lava_limit_s: PositiveFloat = 600.0


@dataclass(slots=True)
class Position:
    """Where a learner stands; event -1 is the test of the untrained network."""

    event: int = -1
    epoch: int = 0
    step: int = 0
    stage: Literal["train", "test"] = "test"
    samples: int = 0

    def move_to(self, saved: Mapping[str, Any]) -> None:
        """Stand where it was saved."""
        for name, value in asdict(Position(**saved)).items():
            setattr(self, name, value)


class Tick(NamedTuple):
    """Something happened: rows for the record, and how far the learner is."""

    kind: Literal["step", "window", "epoch", "test", "event"]
    position: Position
    rows: list[dict[str, Any]]
