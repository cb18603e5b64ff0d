"""How a learner trains and tests, where it stands, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from spikecl.components import PositiveInt, component

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


@dataclass(slots=True)
class Position:
    """Where a learner stands; event -1 is the test of the untrained network."""

    event: int = -1
    epoch: int = 0
    step: int = 0
    stage: Literal["train", "test"] = "test"
    samples: int = 0


class Tick(NamedTuple):
    """Something happened: rows for the record, and how far the learner is."""

    kind: Literal["step", "window", "epoch", "test", "event"]
    position: Position
    rows: list[dict[str, Any]]
