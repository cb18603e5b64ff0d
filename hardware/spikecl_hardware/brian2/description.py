"""What a network is to Brian2: populations of neurons, projections between them, an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spikecl_hardware.graph import GraphError

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Model = Literal[
    "current", "lif", "cuba", "alif", "conductance", "adex", "izhikevich", "li", "cuba_li"
]
INPUT = "input"
LIMIT = 20_000_000
"""Weights of one projection that are unrolled before it is refused: 160 MB of float64."""


class Brian2Error(GraphError):
    """What Brian2 cannot run, or not here; the layer and what to do are named."""


@dataclass(frozen=True)
class Escape:
    """Firing by chance: ``sigmoid`` or ``exponential`` in ``(v - v_th) / v_scale``."""

    form: str
    width: float
    rate: float
    v_scale: float = 1.0


@dataclass(frozen=True)
class Neurons:
    """A model, its numbers (one for all neurons, or one each) and its switches.

    Args:
        model: Which equations; ``current`` has no neurons, ``li`` and ``cuba_li`` do not fire.
        values: Parameters by name, as :mod:`spikecl_hardware.brian2.discrete` writes them.
        reset: ``soft``, ``value`` (to ``v_reset``) or ``none``.
        reset_time: ``same`` step, ``next`` step (a soft one after the decay, others before it), or
            ``after`` the next step's input.
        strict: Fire above the threshold, not at it.
        refractory: Steps after a spike without another.
        integrate_refractory: Whether the membrane goes on meanwhile.
        noise: Standard deviation of what a step adds to the membrane.
        escape: Firing by chance in place of the threshold.
        substeps: Steps of an Izhikevich membrane in one.
    """

    model: Model
    values: Mapping[str, Any] = field(default_factory=dict)
    reset: Literal["soft", "value", "none"] = "value"
    reset_time: Literal["same", "next", "after"] = "same"
    strict: bool = True
    refractory: int = 0
    integrate_refractory: bool = False
    noise: float = 0.0
    escape: Escape | None = None
    substeps: int = 1

    @property
    def fires(self) -> bool:
        """Whether they send spikes; others send their membrane, or the current."""
        return self.model not in ("current", "li", "cuba_li")

    @property
    def channels(self) -> tuple[str, ...]:
        """Where synapses lead: a current, or two conductances."""
        return ("I_exc", "I_inh") if self.model == "conductance" else ("I",)


@dataclass(frozen=True)
class Population:
    """Neurons of one layer.

    Args:
        name: Path of the layer.
        shape: Features.
        neurons: Their model.
        bias: What each step adds to the current [n]; ``None`` where that is nothing.
    """

    name: str
    shape: tuple[int, ...]
    neurons: Neurons
    bias: Array | None = None

    @property
    def size(self) -> int:
        """How many there are."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Stdp:
    """Pair-based plasticity with exponential traces; see the trainer ``stdp`` of spikecl.

    Args:
        a_plus: Gain of a pair without a lag.
        a_minus: Its loss.
        tau_plus: Time constant of the presynaptic trace in milliseconds.
        tau_minus: Of the postsynaptic one.
        w_min: Least weight.
        w_max: Largest.
        mu: How changes depend on the weight: 0 is additive, 1 multiplicative.
        nearest: A trace remembers the last spike alone.
        coincident: Spikes of one step are a pair.
        online: Weights change at each spike; otherwise what they would become is collected.
    """

    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus: float = 20.0
    tau_minus: float = 20.0
    w_min: float = 0.0
    w_max: float = 1.0
    mu: float = 0.0
    nearest: bool = False
    coincident: bool = True
    online: bool = False

    @classmethod
    def of(cls, trainer: Any, *, online: bool = False) -> Stdp:
        """Return the rule of a trainer ``stdp``; other rules are refused."""
        if getattr(trainer, "name", "") != "stdp":
            raise Brian2Error(
                f"plasticity {type(trainer).__name__}: rules of pairs of spikes are written; use "
                "spikecl.trainers.Stdp"
            )
        names = ("a_plus", "a_minus", "tau_plus", "tau_minus", "w_min", "w_max", "mu", "coincident")
        values = {name: getattr(trainer, name) for name in names}
        return cls(**values, nearest=trainer.pairing == "nearest", online=online)

    @staticmethod
    def check_step(own_ms: float, step_ms: float) -> None:
        """Refuse a rule whose steps have another length than those of the network."""
        if abs(own_ms - step_ms) > 1e-9 * step_ms:
            raise Brian2Error(
                f"plasticity has steps of {own_ms} ms, the network of {step_ms} ms; use equal ones"
            )


@dataclass(frozen=True)
class Projection:
    """Synapses from one population (or the input) onto another.

    Args:
        name: Path of the synapse.
        source: Population, or ``input``.
        target: Population.
        pre: Index of the presynaptic neuron of each synapse [S].
        post: Of the postsynaptic one [S].
        weight: Weights [S].
        delay: Steps [S] that a spike is late; ``None`` where there are none.
        channel: Where it leads: ``I``, or ``I_exc`` and ``I_inh`` of conductances.
        recurrent: What was sent one step ago arrives.
        gain: Current that a weight of 1 stands for.
        plasticity: How weights change.
    """

    name: str
    source: str
    target: str
    pre: Whole
    post: Whole
    weight: Array
    delay: Whole | None = None
    channel: str = "I"
    recurrent: bool = False
    gain: float = 1.0
    plasticity: Stdp | None = None

    @classmethod
    def dense(cls, name: str, source: str, target: str, matrix: Array, **more: Any) -> Projection:
        """Return the synapses of a matrix [n_post, n_pre]; weights of zero are none."""
        post, pre = np.nonzero(matrix)
        return cls(name, source, target, pre, post, matrix[post, pre], **more)


@dataclass(frozen=True)
class Description:
    """A network: layers in order of execution, and how long a step is.

    Args:
        populations: In order; the last one answers.
        projections: In any order.
        inputs: Features of the input.
        step_ms: Milliseconds of a step.
    """

    populations: tuple[Population, ...]
    projections: tuple[Projection, ...]
    inputs: tuple[int, ...]
    step_ms: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a length that is none."""
        if not 0 < self.step_ms < np.inf:
            raise Brian2Error(f"step_ms={self.step_ms}; the milliseconds of a step, above 0")

    @property
    def delays(self) -> bool:
        """Whether a spike arrives later than in its step."""
        return any(p.delay is not None and p.delay.any() for p in self.projections)
