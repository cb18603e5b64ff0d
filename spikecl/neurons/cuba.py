"""Current-based neuron with a synaptic current: the second-order model of Loihi."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Self

from torch import Tensor

from spikecl.components import component
from spikecl.neurons.lif import LIF, decay_of
from spikecl.neurons.neuron import Reset, State
from spikecl.neurons.surrogate import Arctan
from spikecl.neurons.values import Decay, Value


class CUBAState(NamedTuple):
    """Current ``i`` and membrane ``v`` [B, *features]; ``spikes`` where their reset waits."""

    i: Tensor
    v: Tensor
    spikes: Tensor | None = None


@component
class CUBA(LIF):
    """LIF driven by a synaptic current that decays on its own.

    One step, in order of execution; fire and reset as in :class:`LIF`, the current is not reset::

        i[t] = alpha i[t-1] + x[t]
        u[t] = v_rest + beta (v[t-1] - v_rest) + c i[t]

    The membrane sees the new current at once: an impulse at step 0 leaves
    ``v[n] = c (beta^(n+1) - alpha^(n+1)) / (beta - alpha)`` after step n.

    Source: Davies et al., IEEE Micro 38(1), 2018; snnTorch's ``Synaptic``, Norse's ``LIF`` and
    Lava's ``LIF`` are special cases.

    Args:
        alpha: Decay of the current per step, ``exp(-dt/tau_syn)``.
    """

    alpha: Decay = 0.8

    @classmethod
    def from_tau(  # type: ignore[override]  # a constructor: what it needs is the model's own
        cls,
        *,
        tau_mem: float,
        tau_syn: float,
        dt: float = 1.0,
        decay: Literal["exact", "euler"] = "exact",
        **options: Any,
    ) -> Self:
        """Return a neuron of two time constants and a step length in milliseconds.

        Decays and ``options`` are those of :meth:`LIF.from_tau`.
        """
        return cls(
            alpha=decay_of(f"{cls.__name__}.from_tau: tau_syn", tau_syn, dt, decay),
            beta=decay_of(f"{cls.__name__}.from_tau: tau_mem", tau_mem, dt, decay),
            **options,
        )

    @classmethod
    def synaptic(cls, alpha: Value, beta: Value, *, v_th: Value = 1.0, zero: bool = False) -> CUBA:
        """Return ``snntorch.Synaptic(alpha, beta, threshold=v_th)``, spike for spike.

        Its reset to zero takes effect after the next step's input.
        """
        return cls(
            alpha=alpha,
            beta=beta,
            v_th=v_th,
            reset=Reset.ZERO if zero else Reset.SOFT,
            reset_time="after" if zero else "next",
            surrogate=Arctan(),
        )

    def silence(self, x: Tensor) -> State:
        """Return no current and a membrane at rest."""
        return CUBAState(x.new_zeros(x.shape), x.new_zeros(x.shape) + self.v_rest, self.waiting(x))

    def integrate(self, x: Tensor, state: State) -> State:
        """Advance the current, then the membrane."""
        i = self.alpha * state.i + x
        u = self.beta * self.before(state) + self.input_scale * i
        if isinstance(self.v_rest, Tensor) or self.v_rest:
            u = u + self.drift
        return CUBAState(i, self.behind(u, state), state.spikes)
