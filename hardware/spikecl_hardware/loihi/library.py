"""Learning rules of the field as sums of products.

Gains are in units of weights, traces in whole numbers up to 127: ``gain * x1`` is what one event
adds to a weight. They are rounded to ``m * 2^e`` with m from 1 to 7.
"""

from __future__ import annotations

import math

from spikecl_hardware.loihi.learning import Learning, Trace
from spikecl_hardware.loihi.rules import ACCUMULATOR_BITS, MANTISSA_BITS, WIDTHS, RuleError


def term(gain: float, when: str, *factors: str) -> str:
    """Return a product with its sign, such as ``+3*2^-4*x0*y1``; it adds ``gain`` times factors.

    The engine divides products of many bits by ``2^s``; that is made up for here.

    Raises:
        RuleError: No scale of the engine is near the gain.

    Example:
        >>> term(-0.25, "y0", "x1"), term(0.25, "u0", "x1", "y2")
        ('-4*2^-4*y0*x1', '+4*2^-1*u0*x1*y2')
    """
    if gain == 0 or not math.isfinite(gain):
        raise RuleError(f"gain {gain}; a finite number other than 0 is allowed")
    shift = max(0, sum(WIDTHS[f] for f in factors) + MANTISSA_BITS - ACCUMULATOR_BITS)
    size = abs(gain) * 2**shift
    exponent = math.floor(math.log2(size)) - 2
    mantissa = round(size / 2**exponent)
    if mantissa == 8:
        mantissa, exponent = 4, exponent + 1
    while exponent < -7 and mantissa > 1:
        exponent += 1
        mantissa = round(size / 2**exponent)
    if not (-7 <= exponent <= 8 and mantissa):
        product = "*".join([when, *factors])
        least, most = 2.0 ** (-7 - shift), 7 * 2.0 ** (8 - shift)
        raise RuleError(f"gain {gain:g} of {product}; {least:g} to {most:g} is allowed")
    return "*".join([f"{'-' if gain < 0 else '+'}{mantissa}*2^{exponent}", when, *factors])


def stdp(
    *,
    plus: float = 0.25,
    minus: float = 0.25,
    tau_plus: float = 10.0,
    tau_minus: float = 10.0,
    impulse: float = 16.0,
    seed: int = 1,
) -> Learning:
    """Pair STDP: ``dw = plus x1 y0 - minus y1 x0``.

    A pair of spikes ``dt`` steps apart changes a weight by ``gain impulse exp(-dt/tau)``. A spike
    of both in one step counts in both terms.

    Args:
        plus: Gain where the target fires.
        minus: Gain where the source fires.
        tau_plus: Time constant of the source's trace, in steps.
        tau_minus: That of the target's.
        impulse: What a spike adds to a trace.
        seed: Of the rounding of traces.
    """
    traces = {"x1": Trace(impulse, tau_plus), "y1": Trace(impulse, tau_minus)}
    return Learning(term(plus, "y0", "x1") + term(-minus, "x0", "y1"), traces=traces, seed=seed)


def reward_stdp(
    *,
    plus: float = 0.25,
    minus: float = 0.25,
    tau_plus: float = 10.0,
    tau_minus: float = 10.0,
    impulse: int = 16,
    keep: float = 0.125,
    rate: float = 2.0**-6,
    seed: int = 1,
) -> Learning:
    """Reward-modulated STDP: tags are eligible, a third factor makes them weights.

    ::

        dt = plus x1 y0 - minus y1 x0 - keep t
        dw = rate t (y2 - y3)               y2 reward, y3 punishment, from outside

    Source: Fremaux & Gerstner, Front. Neural Circuits 9, 2016.

    Args:
        plus: Gain where the target fires.
        minus: Gain where the source fires.
        tau_plus: Time constant of the source's trace, in steps.
        tau_minus: That of the target's.
        impulse: What a spike adds to a trace.
        keep: Share of a tag that is lost in each step.
        rate: Gain of tag times factor.
        seed: Of the rounding of traces.
    """
    tags = term(plus, "y0", "x1") + term(-minus, "x0", "y1") + term(-keep, "u0", "t")
    return Learning(
        term(rate, "u0", "t", "y2") + term(-rate, "u0", "t", "y3"),
        dt=tags,
        traces={"x1": Trace(impulse, tau_plus), "y1": Trace(impulse, tau_minus)},
        modulated=True,
        seed=seed,
    )


def hebb(
    *, rate: float = 0.0625, decay: float = 0.015625, impulse: float = 16.0, tau: float = 10.0
) -> Learning:
    """Hebb with decay at the target's spikes, ``dw = y0 (rate x1 - decay w)``.

    A weight comes to ``rate / decay`` times the mean trace of its source when the target fires:
    the rows learn what drives them (Oja's rule where targets answer in proportion).

    Args:
        rate: Gain of the source's trace.
        decay: Share of a weight that is lost when the target fires.
        impulse: What a spike adds to the trace.
        tau: Its time constant, in steps.
    """
    text = term(rate, "y0", "x1") + term(-decay, "y0", "w")
    return Learning(text, traces={"x1": Trace(impulse, tau)})


def anti_hebb(
    *,
    rate: float = 0.0625,
    target: float = 0.05,
    impulse: float = 16.0,
    tau: float = 10.0,
    every: int = 3,
) -> Learning:
    """Lateral inhibition that learns: ``dw = -rate (x1 y0 - x1' target)``, anti-Hebbian.

    Synapses from a population onto itself grow more negative where two neurons fire together more
    often than ``target`` spikes a step, and less so where they do not: activities lose their
    correlation. The second term comes in every ``2^every`` th step, as many times as strong.

    Source: Foldiak, Biol. Cybern. 64, 1990, equation 3, with traces in the place of products.

    Args:
        rate: Gain of the trace.
        target: Spikes of the target in a step that leave a weight as it is.
        impulse: What a spike adds to the trace.
        tau: Its time constant, in steps.
        every: Binary logarithm of the steps between two growths.
    """
    text = term(-rate, "y0", "x1") + term(rate * target * 2**every, f"u{every}", "x1")
    return Learning(text, traces={"x1": Trace(impulse, tau)})


def delta(
    *,
    rate: float = 2.0**-8,
    impulse: float = 16.0,
    tau: float = 10.0,
    epoch: int = 1,
    seed: int = 1,
) -> Learning:
    """The delta rule as one of three factors, ``dw = rate x1 (y2 - y3)`` at the end of each epoch.

    ``y2`` is the error of a target that should answer more, ``y3`` of one that should answer less,
    both from outside and not below zero.

    Args:
        rate: Gain of trace times error.
        impulse: What a spike adds to the trace.
        tau: Its time constant, in steps.
        epoch: Steps of an epoch.
        seed: Of the rounding of traces.
    """
    text = term(rate, "u0", "x1", "y2") + term(-rate, "u0", "x1", "y3")
    return Learning(
        text, traces={"x1": Trace(impulse, tau)}, modulated=True, epoch=epoch, seed=seed
    )
