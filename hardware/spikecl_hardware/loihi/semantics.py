"""The integer equations of Loihi's LIF neuron and dense synapses, as Lava computes them.

Every equation uses operators only (``abs``, shifts, comparisons, ``*``, ``+``, ``@``), so the same
lines serve numpy int64 arrays and torch int64 tensors; a comparison times a number stands where
others write ``where``. Functions are pure: state goes in and comes out, and None means zeros.

Units: ``v`` counts weight units times ``2 ** (weight_exp + 6)``, ``vth`` counts ``2 ** 6``, the
bias counts ``2 ** bias_exp``. A dense layer sends at step t what it summed at step t-1.

Source: Davies et al., IEEE Micro 38(1), 2018; the models of ``LIF`` and ``Dense`` in lava-nc
0.10.0, matched bit for bit as long as `overflowed` is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property
from typing import Annotated, Any, NamedTuple, TypeAlias, get_type_hints

Integers: TypeAlias = Any  # an int, a numpy int64 array or a torch int64 tensor; do not mix them

HALF_RANGE = 1 << 23
STATE_LIMIT = HALF_RANGE - 1


class SignMode(Enum):
    """Which signs the weights of one layer may have."""

    MIXED = "mixed"
    EXCITATORY = "excitatory"
    INHIBITORY = "inhibitory"


class LIFState(NamedTuple):
    """Current ``u`` and membrane ``v`` after a step, ``[..., n]`` each, 24 bits signed."""

    u: Integers
    v: Integers


class DenseState(NamedTuple):
    """The sums ``a_buff`` ``[..., n_out]`` that the layer sends in the next step."""

    a_buff: Integers


class _Registers:
    """Parameters whose values must fit the range that stands beside each."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range and TypeError for anything but int64."""
        kind: Any = type(self)
        for name, allowed in _ranges(kind):
            _check_range(name, getattr(self, name), allowed)


@cache
def _ranges(cls: Any) -> tuple[tuple[str, range], ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple((n, r) for n, h in hints.items() for r in getattr(h, "__metadata__", ()))


@dataclass(frozen=True, eq=False)
class LIFParameters(_Registers):
    """A LIF population; each register is one int or a vector ``[n]``.

    Per step ``u`` keeps ``1 - (du + 1) / 4096`` and ``v`` keeps ``1 - dv / 4096``. The threshold
    is ``vth * 64``, the bias ``bias_mant * 2 ** bias_exp``.
    """

    vth: Annotated[Integers, range(1 << 17)]
    du: Annotated[Integers, range(1 << 12)] = 0
    dv: Annotated[Integers, range(1 << 12)] = 0
    bias_mant: Annotated[Integers, range(-(1 << 12), 1 << 12)] = 0
    bias_exp: Annotated[Integers, range(1 << 3)] = 0


@dataclass(frozen=True, eq=False)
class DenseParameters(_Registers):
    """Synapses ``weights`` ``[n_out, n_in]``, given as integers before storage (see `effective`).

    ``sign_mode`` None reads it off the weights; ``num_message_bits`` 0 means binary spikes.
    """

    weights: Annotated[Integers, range(1 - (1 << 31), 1 << 31)]
    weight_exp: Annotated[int, range(-8, 8)] = 0
    num_weight_bits: Annotated[int, range(1, 9)] = 8
    sign_mode: SignMode | None = None
    num_message_bits: Annotated[int, range(1 << 5)] = 0

    @property
    def mode(self) -> SignMode:
        """The signs that are allowed, read off the weights where nobody said."""
        return self.sign_mode or _sign_mode(self.weights)

    @cached_property
    def effective(self) -> Integers:
        """The weights ``[n_out, n_in]`` that the synaptic memory holds.

        Inhibitory weights are negated, treated as excitatory ones, and negated back; mixed ones
        become even, eight bits times two::

            W = clip(W, -256 if mixed else 0, 255)
            W = (W >> k) << k,  k = 8 - num_weight_bits + (1 if mixed else 0)

        >>> import numpy as np
        >>> DenseParameters(np.array([[-300, -3, 7]])).effective.tolist()
        [[-256, -4, 6]]
        """
        if len(getattr(self.weights, "shape", ())) != 2:
            raise ValueError("weights are no matrix; [n_out, n_in] is allowed: reshape them")
        mode = self.mode
        sign = -1 if mode is SignMode.INHIBITORY else 1
        mixed = int(mode is SignMode.MIXED)
        k = 8 - self.num_weight_bits + mixed
        return sign * ((_clip(sign * self.weights, -256 * mixed, 255) >> k) << k)


@dataclass(frozen=True, eq=False)
class ConvParameters(_Registers):
    """Shared weights ``[c_out, c_in, k, l]`` over maps ``[c_in, H, W]``, eight bits signed.

    There is no exponent; the sum wraps to 24 bits signed (`wrapped`) and is sent one step later.
    """

    weights: Annotated[Integers, range(-(1 << 7), 1 << 7)]
    stride: Annotated[int, range(1, 1 << 7)] = 1
    padding: Annotated[int, range(1 << 7)] = 0
    num_message_bits: Annotated[int, range(1 << 5)] = 0

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``[c_out, H', W']`` of maps ``[c_in, H, W]``, else ValueError."""
        if len(getattr(self.weights, "shape", ())) != 4:
            raise ValueError("weights have no four axes; [c_out, c_in, k, l] is allowed")
        c_out, c_in, *kernel = self.weights.shape
        size = [
            (n + 2 * self.padding - k) // self.stride + 1
            for n, k in zip(shape[1:], kernel, strict=False)
        ]
        if len(shape) != 3 or shape[0] != c_in or min(size) < 1:
            kernel_text = " x ".join(map(str, kernel))
            raise ValueError(
                f"maps {shape} for {c_in} channels and a kernel of {kernel_text}; "
                "[c_in, H, W] no smaller than the kernel is allowed"
            )
        return (c_out, *size)


def wrapped(x: Integers) -> Integers:
    """Wrap sums to 24 bits signed, as Lava's convolution does."""
    return (x + HALF_RANGE) % (2 * HALF_RANGE) - HALF_RANGE


def integrate(a: Integers, state: LIFState | None, parameters: LIFParameters) -> LIFState:
    """Return current and membrane ``[..., n]`` before the spike; equations in :func:`lif_step`."""
    v = state.v if state else 0
    u = charged(a, state, parameters)
    u = u - (u > HALF_RANGE) * (2 * HALF_RANGE) + (u <= -HALF_RANGE) * (2 * HALF_RANGE)
    v = _decay(v, parameters.dv) + u + (parameters.bias_mant << parameters.bias_exp)
    return LIFState(u, _clip(v, -STATE_LIMIT, STATE_LIMIT))


def charged(a: Integers, state: LIFState | None, parameters: LIFParameters) -> Integers:
    """Return the current before it wraps: it will where it is above 2^23, or -2^23 and less."""
    u = state.u if state else 0
    return _decay(u, parameters.du + 1) + (a << 6)


def lif_step(
    a: Integers, state: LIFState | None, parameters: LIFParameters
) -> tuple[Integers, LIFState]:
    """Advance by one step: input ``a`` ``[..., n]`` to spikes (0 or 1) and state after the reset.

    State and parameters must have the shape of ``a``, else ValueError.
    With ``M = 2 ** 23`` and ``decay(x, d) = sign(x) * ((|x| * (4096 - d)) >> 12)``::

        u = decay(u, du + 1) + (a << 6)
        u = u - 2M if u > M, u + 2M if u <= -M      (one wrap only)
        v = decay(v, dv) + u + (bias_mant << bias_exp)
        v = clip(v, -(M - 1), M - 1)
        s = v > (vth << 6)
        v = 0 where s                               (u is kept)

    >>> import numpy as np
    >>> spikes, state = lif_step(np.array([3, 4]), None, LIFParameters(vth=3))
    >>> spikes.tolist(), state.u.tolist(), state.v.tolist()
    ([0, 1], [192, 256], [192, 0])
    """
    spikes, after = fire(integrate(a, state, parameters), parameters)
    for part in (spikes, *(state or ())):
        _check_shape("LIF input", a, part)
    return spikes, after


def fire(state: LIFState, parameters: LIFParameters) -> tuple[Integers, LIFState]:
    """Return spikes, and the state after the reset to zero; the end of :func:`lif_step`."""
    u, v = state
    spikes = (v > (parameters.vth << 6)) * 1
    return spikes, LIFState(u, v * (1 - spikes))


def dense_step(
    spikes: Integers, state: DenseState | None, parameters: DenseParameters
) -> tuple[Integers, DenseState]:
    """Send the sums of the last step, ``[..., n_out]``, and form the next from ``[..., n_in]``.

    The state must have the shape of the sums, else ValueError. With ``W`` the effective weights
    and ``e = weight_exp``::

        a_out = a_buff
        acc = s @ W.T          (binary: any non-zero s counts as 1)
        a_buff = acc << e if e > 0 else acc >> -e   (rounds down)

    >>> import numpy as np
    >>> parameters = DenseParameters(np.array([[2, 4]]))
    >>> a, state = dense_step(np.array([1, 1]), None, parameters)
    >>> a.tolist(), dense_step(np.array([0, 0]), state, parameters)[0].tolist()
    ([0], [6])
    """
    e = parameters.weight_exp
    message = spikes if parameters.num_message_bits > 0 else (spikes != 0) * 1
    acc = message @ parameters.effective.T
    a_out = acc * 0 if state is None else state.a_buff
    _check_shape("dense sums", acc, a_out)
    return a_out, DenseState(acc << e if e > 0 else acc >> -e)


def overflowed(u: Integers) -> Integers:
    """Tell where ``u`` leaves its 24 bits despite the wrap: chip, Lava and this module part."""
    return abs(u) > STATE_LIMIT


def _decay(x: Integers, d: Integers) -> Integers:
    kept = (abs(x) * (4096 - d)) >> 12
    return (x > 0) * kept - (x < 0) * kept


def _clip(x: Integers, low: int, high: int) -> Integers:
    return x - (x > high) * (x - high) + (x < low) * (low - x)


def _sign_mode(weights: Integers) -> SignMode:
    if (weights >= 0).all():
        return SignMode.EXCITATORY
    return SignMode.INHIBITORY if (weights <= 0).all() else SignMode.MIXED


def _check_range(name: str, value: Integers, allowed: range) -> None:
    dtype = str(getattr(value, "dtype", type(value).__name__))
    if dtype not in ("int", "int64", "torch.int64"):
        raise TypeError(f"{name} is {dtype}; int64 is allowed: round it, then convert it")
    least, most = (value, value) if isinstance(value, int) else (value.min(), value.max())
    if least < allowed[0] or most > allowed[-1]:
        bounds = f"{allowed[0]} to {allowed[-1]} is allowed"
        raise ValueError(f"{name} is {int(least)} to {int(most)}; {bounds}: rescale the layer")


def _check_shape(what: str, expected: Integers, got: Integers) -> None:
    if got.shape != expected.shape:
        shapes = f"{tuple(expected.shape)}, state or parameters {tuple(got.shape)}"
        raise ValueError(f"{what} {shapes}; equal shapes are allowed: restart with state None")
