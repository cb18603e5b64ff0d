"""The block: merging, taking out, pulling; the three answers of a penalty to strong importances."""

from __future__ import annotations

import json
import math

import pytest
import torch

from spikecl.continual import Context, Method
from spikecl.continual.homeostasis.dendrites import Dendrites
from spikecl.continual.homeostasis.gating import Gating
from spikecl.continual.homeostasis.sleep import Sleep
from spikecl.continual.importance.importance import Hold, HoldAfter, Importance, summary
from spikecl.errors import PairingError, RunError, UsageError
from spikecl.networks import Mlp, initialise
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL

NAMES = ["hidden1.weight", "hidden1.bias", "readout.weight", "readout.bias"]


def context_of(*, bias=True, frozen=(), lr=0.1, before=()):
    network = Mlp(hidden=(4,), bias=bias).build((3,), 2).double()
    initialise(network, Seeds(3))
    for name in frozen:
        network.weights()[name].requires_grad_(False)
    device = torch.device("cpu")
    return Context(network, Sgd(lr=lr), Seeds(0), DOMAIN_IL, 2, device, before=before)


def block(others="protect", **options):
    context = context_of(**options)
    return context, Importance(context, "x", others)


def some(context, seed, names=NAMES):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: w.shape for name, w in context.network.weights().items()}
    return {n: torch.rand(shapes[n], generator=generator, dtype=torch.float64) for n in names}


@torch.no_grad()
def move(context, seed):
    """Put the weights elsewhere; return them."""
    made = some(context, seed)
    for name, w in context.network.weights().items():
        w.copy_(made[name])
    return made


def pulled(held, context, strength=1.0):
    zero = {name: torch.zeros_like(w) for name, w in context.network.weights().items()}
    return held.pull(zero, strength)


def test_a_mean_anchor_is_one_penalty_for_each_experience():
    context, held = block()
    pairs = []
    for seed in range(4):
        anchors, values = move(context, seed), some(context, 10 + seed)
        values["hidden1.weight"][0] = 0.0  # never important
        values["readout.weight"][1] = 0.0 if seed != 2 else 1.0  # once
        held.merge(values, mean_anchor=True)
        pairs.append((values, anchors))
    now = move(context, 99)
    for name, found in pulled(held, context, 3.0).items():
        wanted = sum(3.0 * values[name] * (now[name] - anchors[name]) for values, anchors in pairs)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


def test_the_minimum_of_quadratic_losses_is_their_precision_weighted_mean():
    """Two old parabolas as penalties, and a new one: steps come to rest where the sum does."""
    context, held = block(lr=0.05)
    wanted, weight = {name: 0.0 for name in NAMES}, {name: 0.0 for name in NAMES}
    for seed in range(2):
        anchors, values = move(context, seed), some(context, 10 + seed)
        held.merge(values, mean_anchor=True)
        for name in NAMES:
            wanted[name] = wanted[name] + values[name] * anchors[name]
            weight[name] = weight[name] + values[name]
    centre, curve = some(context, 50), some(context, 51)
    step = context.optimiser.start(context.network.weights())
    for _ in range(4000):
        slopes = {n: curve[n] * (w - centre[n]) for n, w in context.network.weights().items()}
        with torch.no_grad():
            step.step(held.pull({n: s.detach() for n, s in slopes.items()}, 1.0))
    for name, w in context.network.weights().items():
        rest = (wanted[name] + curve[name] * centre[name]) / (weight[name] + curve[name])
        torch.testing.assert_close(w.detach(), rest, rtol=0, atol=1e-6)


def test_of_great_strength_only_what_has_no_importance_moves():
    """500 steps along the same gradient, with ``lr strength A = 1`` where A is 1."""
    context, held = block(lr=1e-6)
    values = {n: torch.ones_like(v) for n, v in some(context, 0).items()}
    values["hidden1.weight"][1, 2] = 0.0
    start = move(context, 1)
    held.merge(values)
    step = context.optimiser.start(context.network.weights())
    for _ in range(500):
        with torch.no_grad():
            step.step(held.pull({n: torch.ones_like(v) for n, v in values.items()}, 1e6))
    for name, w in context.network.weights().items():
        moved = torch.where(values[name] > 0, 1.0, 500.0) * -1e-6
        torch.testing.assert_close(w.detach() - start[name], moved.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("keep", "take"), [(1.0, 1.0), (0.5, 1.0), (0.9, 0.1), (0.0, 1.0)])
def test_sums_that_forget_and_averages(keep, take):
    context, held = block()
    total = dict.fromkeys(NAMES, 0.0)
    for seed in range(3):
        anchors, values = move(context, seed), some(context, 10 + seed)
        held.merge(values, keep=keep, take=take)
        total = {n: keep * total[n] + take * values[n] for n in NAMES}
    for name in NAMES:
        torch.testing.assert_close(held.values[name], total[name])
        assert torch.equal(held.anchors[name], anchors[name])


def test_importances_are_never_negative():
    context, held = block()
    held.merge({n: -v for n, v in some(context, 0).items()})
    assert all(float(v.max()) == 0 for v in held.values.values())
    held.merge(some(context, 1))
    held.merge({n: -2 * v for n, v in some(context, 1).items()})
    assert all(float(v.max()) == 0 for v in held.values.values())


def test_what_was_merged_can_be_taken_out():
    """As if it had never been there: values, anchors, and the pull of what stays."""
    context, held = block()
    _, without = context, Importance(context, "x", "protect")
    for seed in range(3):
        anchors, values = move(context, seed), some(context, 10 + seed)
        held.merge(values, mean_anchor=True)
        if seed == 1:
            gone = (values, anchors)
        else:
            without.merge(values, mean_anchor=True)
    held.subtract(*gone)
    for name in NAMES:
        torch.testing.assert_close(held.values[name], without.values[name])
        torch.testing.assert_close(held.anchors[name], without.anchors[name])
    held.subtract({n: torch.full_like(v, 1e9) for n, v in held.values.items()})
    assert all(float(v.max()) == 0 for v in held.values.values())


def test_the_pull_at_the_anchor_is_nothing_to_the_bit():
    context, held = block()
    assert pulled(held, context) and held.pull({}, 1.0) == {}
    move(context, 0)
    for mean_anchor in (False, True):
        held.merge(some(context, 1), mean_anchor=mean_anchor)
        assert all(float(g.abs().max()) == 0 for g in pulled(held, context, 1e9).values())


def test_only_parameters_with_a_gradient_are_pulled():
    context, held = block(frozen=("hidden1.bias",))
    assert held.names == [n for n in NAMES if n != "hidden1.bias"]
    held.merge({n: v for n, v in some(context, 1).items() if n in held.names})
    move(context, 2)
    one = {"readout.bias": torch.zeros(2, dtype=torch.float64)}
    assert list(held.pull(one, 1.0)) == ["readout.bias"]
    assert "hidden1.bias" not in held.values


def test_parameters_that_are_no_weights_can_be_left_free():
    assert block("learn")[1].names == ["hidden1.weight", "readout.weight"]
    with pytest.raises(PairingError, match="'x' with others='learn'.*none of the network"):
        block("learn", frozen=("hidden1.weight", "readout.weight"))


def test_a_step_of_its_own_is_the_penalty_followed_in_small_steps():
    """``w - strength A (w - c)`` at the new w; for a weak pull the gradient's step."""
    context, held = block()
    move(context, 0)
    values = some(context, 1)
    held.merge(values)
    before = move(context, 2)
    update = some(context, 3)
    with torch.no_grad():
        for name, w in context.network.weights().items():
            w.add_(update[name])  # the optimiser's
    for strength in (1e-7, 0.7, 1e12):
        made = held.pulled(update, strength)
        for name, c in held.anchors.items():
            w = before[name] + made[name]
            free = before[name] + update[name]
            back = strength * values[name] * (w - c)
            torch.testing.assert_close(w, free - back, rtol=1e-3 if strength > 1 else 1e-9, atol=0)
            if strength < 1e-3:
                slope = strength * values[name] * (free - c)
                torch.testing.assert_close(w, free - slope, rtol=1e-12, atol=1e-12)
            if strength > 1e3:
                assert float((w - c).abs().max()) < 1e-9


def test_two_steps_behind_the_optimiser_are_refused():
    first = HoldAfter(context_of(), "a", "protect", 1.0)
    with pytest.raises(PairingError, match="'a' and 'b'.*step='gradient'"):
        HoldAfter(context_of(before=(first,)), "b", "protect", 1.0)
    Hold(context_of(before=(first, Method())), "b", "protect", 1.0)


def test_state_goes_round_in_any_order_and_fits_its_network_alone():
    context, held = block()
    move(context, 0)
    held.merge(some(context, 1))
    state = held.state_dict()
    turned = {kind: dict(reversed(each.items())) for kind, each in state.items()}
    again = Importance(context, "x", "protect")
    again.load_state_dict(turned)
    assert list(again.values) == NAMES
    assert all(torch.equal(again.values[n], held.values[n]) for n in NAMES)
    assert all(torch.equal(again.anchors[n], held.anchors[n]) for n in NAMES)
    assert again.nbytes() == held.nbytes() == 2 * 8 * (12 + 4 + 8 + 2)
    again.load_state_dict({})
    assert again.nbytes() == 0
    with pytest.raises(RunError, match="'x'.*another network.*hidden1.bias: .4. there, None here"):
        block(bias=False)[1].load_state_dict(state)


# ---- what is reported ---------------------------------------------------------------------------


def test_summaries_count_every_parameter_once():
    generator = torch.Generator().manual_seed(0)
    values = torch.exp(2 * torch.randn(500, 3, generator=generator)).relu()
    values[:50] = 0.0
    said = summary(values)
    json.dumps(said, allow_nan=False)
    flat = values.flatten().double().sort(descending=True).values
    assert said["mean"] == pytest.approx(float(flat.mean()))
    assert said["max"] == float(flat[0])
    assert said["top"] == pytest.approx(float(flat[:15].sum() / flat.sum()))
    assert said["zero"] == pytest.approx(0.1)
    low, width, counts = (said["histogram"][key] for key in ("low", "width", "counts"))
    assert counts[0] and counts[-1] and sum(counts) == 1350
    for i, count in enumerate(counts):
        left, right = 10 ** (low + i * width), 10 ** (low + (i + 1) * width)
        assert count == int(((flat >= left) & (flat < right)).sum())


def test_summaries_of_nothing_and_of_the_extreme():
    said = summary(torch.zeros(3))
    assert said["mean"] == said["max"] == said["top"] == 0 and said["zero"] == 1
    assert said["histogram"]["counts"] == []
    said = summary(torch.tensor([1e-30, 1e30]))
    assert said["histogram"]["low"] == -16 and sum(said["histogram"]["counts"]) == 2
    assert math.isfinite(said["mean"])


@pytest.mark.parametrize("spec", [Gating(share=0.5), Dendrites(), Sleep()])
def test_what_looks_at_the_input_refuses_an_experience_without_any_too(made, spec):
    with pytest.raises(UsageError, match="experience 1 .* has none; leave it out of the stream"):
        made.learner_of(made.tasks(12, 0), spec)
