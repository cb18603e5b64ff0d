"""Leaky integrate-and-fire: parameters, state and one pure step."""

from __future__ import annotations

import enum
import math
from typing import Literal, NamedTuple

from torch import Tensor

from spikecl.components import Fraction, component
from spikecl.errors import ConfigError, UsageError
from spikecl.neurons.surrogate import Arctan, FastSigmoid, Sigmoid, spike


class Reset(enum.StrEnum):
    """What a spike does to the membrane."""

    SOFT = "soft"  # v <- u - v_th
    ZERO = "zero"  # v <- 0
    VALUE = "value"  # v <- v_reset
    NONE = "none"  # v <- u


class LIFState(NamedTuple):
    """State carried between steps: membrane ``v`` [B, *features].

    With ``reset_time="next"`` it is the membrane before the reset, which the next step applies.
    """

    v: Tensor


@component
class LIF:
    """Parameters and switches of a current-based leaky integrate-and-fire neuron.

    One step, in order of execution (``c`` is 1, or ``1 - beta`` with ``scale_input``)::

        u[t] = beta v[t-1] + c x[t]          integrate
        s[t] = 1[u[t] > v_th]                fire (>= when strict is false)
        v[t] = u[t] - v_th s[t]              soft reset
             = (1 - s[t]) u[t] + s[t] v_reset   reset to a value (zero: v_reset = 0)
             = u[t]                          no reset

    With ``reset_time="next"`` the reset caused by ``s[t-1]`` is applied in step t, after the decay
    for a soft reset (``u[t] = beta u[t-1] + c x[t] - v_th s[t-1]``) and before it for the others;
    soft resets at the two times differ by ``(1 - beta) v_th`` per spike.

    Args:
        beta: Decay per step, ``exp(-dt/tau_mem)`` or what :meth:`from_tau` makes of it.
        v_th: Threshold.
        v_reset: Membrane after a spike with ``reset="value"``.
        scale_input: Multiply the input by ``1 - beta``.
        reset: See :class:`Reset`.
        reset_time: Apply the reset in the same step or in the next.
        detach_reset: Cut the gradient through the spike that resets (the membrane path stays).
        strict: Compare with ``>`` instead of ``>=``.
        surrogate: Derivative of the spike.

    Example:
        >>> round(LIF.from_tau(tau_mem=10.0, dt=1.0).tau_mem(dt=1.0), 6)
        10.0
    """

    beta: Fraction = 0.9
    v_th: float = 1.0
    v_reset: float = 0.0
    scale_input: bool = False
    reset: Reset = Reset.SOFT
    reset_time: Literal["same", "next"] = "same"
    detach_reset: bool = True
    strict: bool = True
    surrogate: Sigmoid | Arctan | FastSigmoid = Sigmoid()

    @classmethod
    def from_tau(
        cls, *, tau_mem: float, dt: float = 1.0, decay: Literal["exact", "euler"] = "exact"
    ) -> LIF:
        """Return a LIF of a membrane time constant and step length, both in milliseconds.

        Exact: ``beta = exp(-dt/tau_mem)``. Euler: ``beta = 1 - dt/tau_mem``, stable for
        ``dt < 2 tau_mem`` and equal to the exact decay up to ``O(dt^2)``.
        """
        if not (tau_mem > 0 and dt > 0 and (decay == "exact" or dt <= tau_mem)):
            raise ConfigError(
                f"LIF.from_tau: got tau_mem={tau_mem}, dt={dt}, decay={decay!r}; both must be "
                "positive, and dt at most tau_mem with Euler decay"
            )
        return cls(beta=math.exp(-dt / tau_mem) if decay == "exact" else 1 - dt / tau_mem)

    @classmethod
    def snntorch(cls, beta: float, *, v_th: float = 1.0, zero: bool = False) -> LIF:
        """Return ``snntorch.Leaky(beta, threshold=v_th)``, spike for spike (``reset_delay``)."""
        reset = Reset.ZERO if zero else Reset.SOFT
        return cls(beta=beta, v_th=v_th, reset=reset, reset_time="next", surrogate=Arctan())

    @classmethod
    def spikingjelly(
        cls, tau: float = 2.0, *, v_th: float = 1.0, decay_input: bool = True, soft: bool = False
    ) -> LIF:
        """Return SpikingJelly's ``LIFNode(tau, decay_input, v_threshold)``; ``tau`` in steps."""
        return cls(
            beta=1 - 1 / tau,
            v_th=v_th,
            scale_input=decay_input,
            reset=Reset.SOFT if soft else Reset.ZERO,
            detach_reset=False,
            strict=False,
        )

    def tau_mem(self, *, dt: float = 1.0) -> float:
        """Return the time constant in milliseconds that exact decay would need for ``beta``."""
        return math.inf if self.beta == 1 else -dt / math.log(self.beta) if self.beta else 0.0

    @property
    def input_scale(self) -> float:
        """Factor ``c`` of the input."""
        return 1 - self.beta if self.scale_input else 1.0

    @property
    def reset_value(self) -> float:
        """Membrane after a spike, for the two resets to a value."""
        return self.v_reset if self.reset is Reset.VALUE else 0.0


def lif_step(x: Tensor, state: LIFState | None, neuron: LIF) -> tuple[Tensor, LIFState]:
    """Advance a layer of LIF neurons by one step.

    The equations stand in :class:`LIF`.

    Args:
        x: Input current [B, *features].
        state: Membrane before the step; ``None`` means zeros.
        neuron: Parameters.

    Returns:
        Spikes [B, *features] and the new state.

    Raises:
        UsageError: If the state's shape is not that of the input.
    """
    v = x.new_zeros(x.shape) if state is None else state.v
    check_state(v, x.shape)
    late = neuron.reset_time == "next"
    if late:
        v, kick = _reset(v, neuron, _fire(v, neuron), after_decay=True)
        u = neuron.beta * v + neuron.input_scale * x + kick
    else:
        u = neuron.beta * v + neuron.input_scale * x
    spikes = _fire(u, neuron)
    if not late:
        u, kick = _reset(u, neuron, spikes, after_decay=False)
        u = u + kick
    return spikes, LIFState(u)


def check_state(v: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a state whose shape is not that of one time step of the input."""
    if v.shape != shape:
        raise UsageError(
            f"state has shape {tuple(v.shape)}, one step of the input has {tuple(shape)}; pass the "
            "state of the same batch, or None to start from rest"
        )


def _fire(u: Tensor, neuron: LIF) -> Tensor:
    return spike(u - neuron.v_th, neuron.surrogate, strict=neuron.strict)


def _reset(
    u: Tensor, neuron: LIF, spikes: Tensor, *, after_decay: bool
) -> tuple[Tensor, Tensor | float]:
    """Return the membrane after its multiplicative reset, and what is to be added to it."""
    s = spikes.detach() if neuron.detach_reset else spikes
    if neuron.reset is Reset.NONE:
        return u, 0.0
    if neuron.reset is Reset.SOFT:
        return u, -neuron.v_th * s
    return u + s * (neuron.reset_value - u), 0.0
