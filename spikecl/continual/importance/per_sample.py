"""Exact means over samples of powers of each sample's own gradient.

A trainer's factors have the rows of all samples of a batch, each step's behind the other: sample b
of B has the rows ``b, b + B, b + 2 B, ...``. Its gradient is the sum over its own rows, and what is
gathered is a sum of powers of that, never a power of a sum over samples: the batch does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from spikecl.continual.host import Seen
from spikecl.continual.method import Context
from spikecl.networks import (
    AnyFactor,
    ConvFactor,
    Factor,
    GradientFactor,
    Synapse,
    form_gradients,
)
from spikecl.networks.network import own_parameters
from spikecl.streams import Samples
from spikecl.trainers import Factors

MOST = 2**20  # numbers of single samples' gradients that are held at a time

Ask = Callable[[Seen, int], Seen]
"""From samples, and how many came before them, to the same with the loss that is differentiated."""


@torch.no_grad()
def mean_powers(
    context: Context, samples: Samples, count: int, names: list[str], *, power: int, ask: Ask
) -> dict[str, Tensor]:
    """Return ``mean_n |dL_n/dw|^power`` of at most ``count`` samples, power 1 or 2, by parameter.

    The pass is one of a test: no dropout, running statistics in norms. Batches are the run's where
    factors have rows. Samples come one by one where a rule gives gradients without rows, or where
    a parameter that no synapse holds (thresholds, time constants, norms) is among the names.
    Where the trainer gives no gradient of the loss, BPTT does.
    """
    weights = context.network.weights()
    totals = {name: torch.zeros_like(weights[name]) for name in names}
    seen, single = 0, None
    for looked in context.host.look(samples, count):
        made = context.host.credit(ask(looked, seen), training=False, of_loss=True)
        single = _needs_single(context, made, totals)
        if single:
            break
        seen += (size := len(made.logits))
        _add_rows(context, made.synapses, size, totals, power)
    if single:
        seen = 0
        for looked in context.host.look(samples, count, batch=1):
            made = context.host.credit(ask(looked, seen), training=False, of_loss=True)
            seen += 1
            found = form_gradients(context.network, made.synapses, made.direct)
            for name, gradient in found.items():
                if name in totals:
                    totals[name] += gradient.abs() ** power
    return {name: total / seen for name, total in totals.items()}


def _needs_single(context: Context, made: Factors, totals: Mapping[str, Tensor]) -> bool:
    if any(name in totals for name in made.direct):
        return True
    for path, factor in made.synapses.items():
        patches = isinstance(factor, Factor) and context.network.synapses[path].weight.dim() > 2
        if patches or isinstance(factor, GradientFactor):  # places are not in the order of samples
            return True
    return False


def _add_rows(
    context: Context,
    factors: Mapping[str, AnyFactor],
    size: int,
    totals: Mapping[str, Tensor],
    power: int,
) -> None:
    """Add the powers of a batch's gradients, from rows."""
    weights = context.network.weights()
    for path, synapse in context.network.synapses.items():
        factor = factors[path]
        wanted = [n for n in own_parameters(path, synapse, weights) if f"{path}.{n}" in totals]
        if synapse.maps:
            own = own_parameters(path, synapse, weights)
            for weight, bias in _each(factor, synapse, size):
                for name, gradient in synapse.pull_back(own, weight, bias).items():
                    if name in wanted:
                        totals[f"{path}.{name}"].add_((size * gradient).abs() ** power)
            continue
        if "bias" in wanted:
            biases = _biases(factor, size)
            totals[f"{path}.bias"].add_(((size * biases).abs() ** power).sum(0))
        if "weight" in wanted:
            _add_weights(totals[f"{path}.weight"].flatten(1), factor, size, power)


def _add_weights(total: Tensor, factor: AnyFactor, size: int, power: int) -> None:
    """Add the powers of each sample's gradient of the weight, as rows [n_out, n_in]."""
    if isinstance(factor, ConvFactor):
        for b in range(size):
            _add_power(total, size * _one_map(factor, b, size).gradient(), power)
        return
    x, delta = factor.x, size * factor.delta  # the loss is a mean over the batch
    if len(x) == size:  # one row each: a power of a product is a product of powers
        total.addmm_((delta.abs() ** power).T, x.abs() ** power)
        return
    x, delta = (rows.view(-1, size, rows.shape[1]) for rows in (x, delta))
    at_once = MOST // total.numel()
    if at_once < 2:
        for b in range(size):
            _add_power(total, delta[:, b].T @ x[:, b], power)
        return
    for start in range(0, size, at_once):
        some = slice(start, start + at_once)
        found = torch.bmm(delta[:, some].permute(1, 2, 0), x[:, some].transpose(0, 1))
        total.add_((found.square_() if power == 2 else found.abs_()).sum(0))


def _add_power(total: Tensor, gradient: Tensor, power: int) -> None:
    """Add ``|gradient|^power``."""
    if power == 2:
        total.addcmul_(gradient, gradient)
    else:
        total.add_(gradient.abs_())


def _each(factor: AnyFactor, synapse: Synapse, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the gradients of effective weight and bias of each sample, of the batch's mean."""
    biases = None if synapse.bias is None else _biases(factor, size)
    for b in range(size):
        bias = None if biases is None else biases[b]
        if isinstance(factor, ConvFactor):
            yield _one_map(factor, b, size).gradient(), bias
        else:
            yield factor.delta[b::size].T @ factor.x[b::size], bias


def _biases(factor: AnyFactor, size: int) -> Tensor:
    """Return the bias's gradient of each sample [B, n_out], of the batch's mean."""
    delta = factor.errors.sum((2, 3)) if isinstance(factor, ConvFactor) else factor.delta
    ones: Tensor | None = getattr(factor, "ones", None)
    rows = delta if ones is None else ones[:, None] * delta
    return rows.view(-1, size, rows.shape[1]).sum(0)


def _one_map(factor: ConvFactor, b: int, size: int) -> ConvFactor:
    """Return the factor of one sample."""
    return ConvFactor(factor.maps[b::size], factor.errors[b::size], factor.geometry)
