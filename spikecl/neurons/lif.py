"""Leaky integrate-and-fire, its special cases, and the constants that reproduce other libraries."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from torch import Tensor

from spikecl.components import component
from spikecl.errors import ConfigError
from spikecl.neurons.neuron import AnyReset, Reset, Resetting, State
from spikecl.neurons.surrogate import Arctan, FastSigmoid
from spikecl.neurons.values import Decay, Real, Value

if TYPE_CHECKING:
    from spikecl.neurons.cuba import CUBA
    from spikecl.neurons.loihi import LoihiLIF


class LIFState(NamedTuple):
    """Membrane ``v`` [B, *features]; ``spikes`` where their reset waits for the next step."""

    v: Tensor
    spikes: Tensor | None = None


@component
class LIF(Resetting):
    """Parameters and switches of a current-based leaky integrate-and-fire neuron.

    One step, in order of execution (``c`` is 1, or ``1 - beta`` with ``scale_input``)::

        u[t] = v_rest + beta (v[t-1] - v_rest) + c x[t]     integrate
        s[t] = 1[u[t] > v_th]                               fire (>= when strict is false)
        v[t] = u[t] - v_th s[t]                             soft reset
             = (1 - s[t]) u[t] + s[t] v_reset               to a value (zero: v_reset = 0)
             = u[t]                                         no reset

    With ``reset_time="next"`` the reset caused by ``s[t-1]`` is applied in step t, after the decay
    for a soft reset (``u[t] = beta u[t-1] + c x[t] - v_th s[t-1]``) and before it for the others;
    soft resets at the two times differ by ``(1 - beta) v_th`` per spike.

    Args:
        beta: Decay per step, ``exp(-dt/tau_mem)`` or what :meth:`from_tau` makes of it.
        v_rest: Where the membrane rests.
        scale_input: Multiply the input by ``1 - beta``.

    The other arguments are those of every spiking model that resets (:class:`Resetting`,
    :class:`SpikingNeuron`).

    Source: Gerstner & Kistler, Spiking Neuron Models (2002), section 4.1.

    Example:
        >>> round(LIF.from_tau(tau_mem=10.0, dt=1.0).tau_mem(dt=1.0), 6)
        10.0
    """

    beta: Decay = 0.9
    v_rest: Real = 0.0
    scale_input: bool = False

    def __post_init__(self) -> None:
        """Refuse a neuron without leak that scales its input by nothing."""
        Resetting.__post_init__(self)
        if self.scale_input and not isinstance(self.beta, Tensor) and self.beta == 1:
            raise ConfigError(
                f"{type(self).__name__}: beta=1 with scale_input=true multiplies the input by 0; "
                "use LIF with a smaller beta, or scale_input=false"
            )

    @classmethod
    def from_tau(
        cls,
        *,
        tau_mem: float,
        dt: float = 1.0,
        decay: Literal["exact", "euler"] = "exact",
        **options: Any,
    ) -> Self:
        """Return a neuron of a membrane time constant and step length, both in milliseconds.

        Exact: ``beta = exp(-dt/tau_mem)``. Euler: ``beta = 1 - dt/tau_mem``, equal to the exact
        decay up to ``O(dt^2)``; unstable for ``dt > 2 tau_mem``, and refused where the membrane
        would change sign in each step (``dt > tau_mem``). ``options`` are the model's
        other arguments, such as ``v_th``.
        """
        name = f"{cls.__name__}.from_tau: tau_mem"
        return cls(beta=decay_of(name, tau_mem, dt, decay), **options)

    @classmethod
    def snntorch(cls, beta: Value, *, v_th: Value = 1.0, zero: bool = False) -> LIF:
        """Return ``snntorch.Leaky(beta, threshold=v_th)``, spike for spike (``reset_delay``).

        With a ``Recurrence`` it is ``snntorch.RLeaky``, whose reset to zero
        takes effect after the new input: ``reset_time="after"``.
        """
        reset = Reset.ZERO if zero else Reset.SOFT
        return cls(beta=beta, v_th=v_th, reset=reset, reset_time="next", surrogate=Arctan())

    @classmethod
    def spikingjelly(
        cls, tau: float = 2.0, *, v_th: float = 1.0, decay_input: bool = True, soft: bool = False
    ) -> LIF:
        """Return SpikingJelly's ``LIFNode(tau, decay_input, v_threshold)``; ``tau`` in steps."""
        if not tau >= 1:
            raise ConfigError(f"LIF.spikingjelly: got tau={tau}; it counts steps and is at least 1")
        return cls(
            beta=1 - 1 / tau,
            v_th=v_th,
            scale_input=decay_input,
            reset=Reset.SOFT if soft else Reset.ZERO,
            detach_reset=False,
            strict=False,
        )

    @classmethod
    def norse(
        cls,
        *,
        tau_mem: float = 10.0,
        tau_syn: float = 5.0,
        v_th: float = 1.0,
        v_leak: float = 0.0,
        v_reset: float = 0.0,
        alpha: float = 100.0,
        dt: float = 1.0,
        recurrent: bool = False,
    ) -> CUBA:
        """Return ``norse.torch.LIF``, spike for spike: a neuron with a synaptic current.

        Norse counts in seconds and inverse seconds; here ``dt``, ``tau_mem`` and ``tau_syn`` are
        milliseconds (``tau_mem_inv = 1000 / tau_mem``). Its recurrent version cuts the gradient of
        the reset, the other keeps it; its state holds the current after the decay, ours before.
        ``alpha`` is what Norse calls it, but Norse 1.1.0 ignores its own and differentiates as
        with 1 (norse/norse#403): give ``alpha=1.0`` for the gradients of that release.
        """
        from spikecl.neurons.cuba import CUBA

        return CUBA(
            alpha=decay_of("LIF.norse: tau_syn", tau_syn, dt, "euler"),
            beta=decay_of("LIF.norse: tau_mem", tau_mem, dt, "euler"),
            v_th=v_th,
            v_rest=v_leak,
            v_reset=v_reset,
            reset=Reset.VALUE,
            scale_input=True,
            detach_reset=recurrent,
            surrogate=FastSigmoid(slope=alpha),
        )

    @classmethod
    def loihi(
        cls, *, vth: int, du: int = 4095, dv: int = 0, bias_mant: int = 0, bias_exp: int = 0
    ) -> LoihiLIF:
        """Return Loihi's neuron: integer state, bit for bit; see :class:`LoihiLIF`."""
        from spikecl.neurons.loihi import LoihiLIF

        return LoihiLIF(vth=vth, du=du, dv=dv, bias_mant=bias_mant, bias_exp=bias_exp)

    def tau_mem(self, *, dt: float = 1.0) -> float:
        """Return the time constant in milliseconds that exact decay would need for ``beta``."""
        if isinstance(self.beta, Tensor):
            raise ConfigError("LIF.tau_mem: beta is a tensor; it has a time constant per neuron")
        return math.inf if self.beta == 1 else -dt / math.log(self.beta) if self.beta else 0.0

    @property
    def input_scale(self) -> Value:
        """Factor ``c`` of the input."""
        return 1 - self.beta if self.scale_input else 1.0

    @property
    def drift(self) -> Value:
        """What each step adds to a membrane that rests elsewhere than at zero."""
        return (1 - self.beta) * self.v_rest

    def silence(self, x: Tensor) -> State:
        """Return a membrane at rest."""
        return LIFState(at_rest(x, self.v_rest), self.waiting(x))

    def integrate(self, x: Tensor, state: State) -> State:
        """Decay towards rest and take the input."""
        u = self.beta * self.before(state) + self.input_scale * x
        if isinstance(self.v_rest, Tensor) or self.v_rest:
            u = u + self.drift
        return LIFState(self.behind(u, state), state.spikes)

    def distance(self, state: State) -> Tensor:
        """Return ``v - v_th``."""
        v: Tensor = state.v
        return v - self.v_th


def _no_leak(value: object) -> float:
    if isinstance(value, bool | Tensor) or value != 1:
        raise PydanticCustomError("leak", "an IF has no leak, so beta is 1; for another use LIF")
    return 1.0


NoLeak = Annotated[float, PlainValidator(_no_leak), WithJsonSchema({"const": 1.0})]


@component
class IF(LIF):
    """Integrate-and-fire: a :class:`LIF` without leak, ``u[t] = v[t-1] + x[t]``.

    Args:
        beta: 1, and nothing else.
    """

    beta: NoLeak = 1.0


@component
class PLIF(LIF):
    """LIF whose decay learns: ``1/tau = sigmoid(w)``, ``beta = 1 - 1/tau``.

    ``u[t] = v[t-1] + (x[t] - v[t-1]) / tau`` with the defaults. A layer trains ``beta``, stored as
    its logit ``-w`` (a raw ``tau`` could leave its range); start from ``tau0`` with
    ``beta = 1 - 1/tau0``.

    Source: Fang et al., ICCV 2021, equations 7 to 10.

    Args:
        beta: Decay at the start, ``1 - 1/tau0``.
        scale_input: Multiply the input by ``1/tau``.
        reset: What a spike does to the membrane (:class:`LIF`).
        detach_reset: Cut the gradient through the spike that resets.
        strict: Fire at ``v > v_th`` instead of ``v >= v_th``.
    """

    learns: ClassVar[tuple[str, ...]] = ("beta",)

    beta: Decay = 0.5
    scale_input: bool = True
    reset: AnyReset = Reset.ZERO
    detach_reset: bool = False
    strict: bool = False


def at_rest(x: Tensor, value: Value) -> Tensor:
    """Return a membrane at its resting value for one step of input."""
    if isinstance(value, Tensor):
        return x.new_zeros(x.shape) + value
    return x.new_full(x.shape, value)


def decay_of(what: str, tau: float, dt: float, decay: Literal["exact", "euler"] = "exact") -> float:
    """Return the decay per step of a time constant, both in milliseconds."""
    if not (0 < tau < math.inf and 0 < dt < math.inf and (decay == "exact" or dt <= tau)):
        raise ConfigError(
            f"{what}={tau} with dt={dt}, decay={decay!r}; both must be positive milliseconds, "
            "and dt at most tau with Euler decay (beyond 2 tau it is unstable)"
        )
    return math.exp(-dt / tau) if decay == "exact" else 1 - dt / tau
