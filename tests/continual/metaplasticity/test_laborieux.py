"""Hidden weights that resist: the rule by hand, whole runs against a plain loop, who is refused."""

from __future__ import annotations

import math

import pytest
import torch

from spikecl.continual import Context, Finetune
from spikecl.continual.metaplasticity.laborieux import Laborieux, gate
from spikecl.continual.metaplasticity.tacos import Tacos
from spikecl.continual.projection.gpm import Gpm
from spikecl.errors import ConfigError, PairingError
from spikecl.networks import SpikingConvNet, SpikingMlp
from spikecl.optim import Adam, AdamW, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, TASK_FREE

OPTIMISERS = {
    "sgd": (
        Sgd(lr=0.3, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
    ),
    "adam": (
        Adam(lr=0.05, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.01),
    ),
}


def test_the_gate_is_even_and_only_holds_back_what_shrinks():
    weight = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for m in (0.5, 1.35, 4.0):
        for sign in (1.0, -1.0):
            found = gate(weight, torch.full_like(weight, sign), m)
            for w, f in zip(weight.tolist(), found.tolist(), strict=True):
                shrinks = w * sign < 0
                expected = 1 - math.tanh(m * abs(w)) ** 2 if shrinks else 1.0
                assert f == pytest.approx(expected, rel=1e-12)
        toward = gate(weight, -weight, m)
        assert torch.equal(toward, toward.flip(0))
    table = gate(torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.full((4,), -1.0), 1.35)
    assert [round(float(f), 4) for f in table] == [0.654, 0.236, 0.0179, 0.0012]


def test_a_single_weight_goes_away_like_adam_and_comes_back_slower(lab):
    """A gradient of one sign: outwards the trajectory of Adam, inwards its steps times f."""
    for start, slope, held in ((0.4, -0.7, False), (0.4, 0.7, True), (-0.4, -0.7, True)):
        w, plain = (torch.nn.Parameter(torch.tensor([start]).double()) for _ in range(2))
        running, free = (Adam(lr=0.01).start({"w": p}) for p in (w, plain))
        for _ in range(20):
            before, free_before = w.detach().clone(), plain.detach().clone()
            for each in (running, free):
                each.step({"w": torch.tensor([slope]).double()})
            step = w.detach() - before
            made = step * gate(before, step, 1.35)
            with torch.no_grad():
                w.copy_(before + made)
            ratio = float(made / (plain.detach() - free_before))
            expected = 1 - math.tanh(1.35 * abs(float(before))) ** 2 if held else 1.0
            assert ratio == pytest.approx(expected, rel=1e-9)
        assert held or torch.equal(w, plain)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_run_is_a_plain_loop(lab, name):
    ours, theirs = OPTIMISERS[name]
    learner = lab.learner(Laborieux(m=2.0), optimiser=ours, binary="fixed", bias=True)
    weights = lab.weights(learner)
    lab.run(learner)
    event, shrunk = None, 0
    for now, x, y in lab.batches(learner):
        parameters = {n: torch.nn.Parameter(w) for n, w in weights.items()}
        if now != event:  # afresh in each experience
            running, state = theirs(list(parameters.values())), None
            event = now
        else:
            running = theirs(list(parameters.values()))
            running.load_state_dict(state)
        for name_, g in lab.gradients(weights, x, y, binary=True).items():
            parameters[name_].grad = g
        old = {n: w.clone() for n, w in weights.items()}
        running.step()
        state = running.state_dict()
        for n, p in parameters.items():
            step = p.detach() - old[n]
            if n.endswith("weight"):
                back = step * old[n] < 0
                shrunk += int(back.sum())
                step = torch.where(back, step * (1 - torch.tanh(2.0 * old[n].abs()) ** 2), step)
            weights[n] = old[n] + step
    assert shrunk > 500
    lab.close(lab.weights(learner), weights)


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.3), Adam(lr=0.02), AdamW(lr=0.02)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_strength_is_the_optimiser_alone(lab, optimiser, dtype):
    options = {"optimiser": optimiser, "binary": "rows", "bias": True, "dtype": dtype}
    plain = lab.run(lab.learner(Finetune(), **options))
    none = lab.run(lab.learner(Laborieux(m=0.0), **options))
    some = lab.run(lab.learner(Laborieux(m=1.0), **options))
    lab.equal(lab.weights(none), lab.weights(plain))
    assert not torch.equal(
        lab.weights(some)["hidden1.weight"], lab.weights(plain)["hidden1.weight"]
    )


def test_what_is_no_weight_is_left_alone(lab):
    """The first step of gains, biases and norms is that of the optimiser."""
    spec = SpikingMlp(hidden=(7,), binary="rows", bias=True, norm="batch")
    plain, held = (lab.learner(m, network=spec) for m in (Finetune(), Laborieux(m=50.0)))
    start = lab.weights(plain)
    for learner in (plain, held):
        next(tick for tick in learner.ticks() if tick.kind == "step")
    after, found = lab.weights(plain), lab.weights(held)
    differ = {n for n in found if not torch.equal(found[n], after[n])}
    assert differ == {"hidden1.weight", "readout.weight"}
    assert all(not torch.equal(after[n], start[n]) for n in after if "bias" not in n)


def test_a_network_without_binary_synapses_is_refused(lab):
    with pytest.raises(PairingError, match=r"'laborieux'.*binary='fixed'.*laborieux\.on='all'"):
        lab.learner(Laborieux())
    lab.run(lab.learner(Laborieux(on="all")))
    with pytest.raises(ConfigError, match=r"Laborieux\.m: got -1.0"):
        Laborieux(m=-1.0)


def test_a_stream_without_boundaries_and_the_report(lab):
    learner = lab.run(lab.learner(Laborieux(), stream=lab.stream(TASK_FREE), binary="fixed"))
    said = learner.methods.report()["laborieux"]
    assert sorted(said) == ["hidden1.weight", "readout.weight"]
    for name, w in lab.weights(learner).items():
        counts = said[name]["weight"]
        assert sum(counts["positive"]) == int((w >= 1e-6).sum())
        assert sum(counts["negative"]) == int((w <= -1e-6).sum())
        assert counts["below"] == int((w.abs() < 1e-6).sum())


def test_kernels_of_binary_convolutions_are_gated():
    """Weights of more than two axes, by hand."""
    network = SpikingConvNet(channels=(3,), kernel=2, binary="fixed").build((4, 4), 2)
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, torch.device("cpu"))
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(0.8)
    method = Laborieux(m=1.0).start(context)
    method.gradients({})
    found = method.update({n: torch.full_like(p, -0.1) for n, p in network.weights().items()})
    kernels = [n for n, p in network.weights().items() if p.dim() == 4]
    assert kernels and all(n.endswith(".weight") for n in found)
    for value in found.values():
        torch.testing.assert_close(value, torch.full_like(value, -0.1 / math.cosh(0.8) ** 2))


def test_a_projection_behind_it_stays_exact(lab):
    """Two gates and a projection: the update is gated, what is left of it stays off old rows."""
    gates = (Laborieux(on="all", m=3.0), Tacos(growth=0.2, threshold=0.5))
    learner, ends, rows = lab.learner(*gates, Gpm(energy=0.9), optimiser=Adam(lr=0.02)), [], []
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event:
            ends.append(lab.weights(learner)["hidden1.weight"])
            rows.append(lab.method(learner, "gpm").protection.memory["hidden1"].rows.clone())
    for held, first, second in zip(rows, ends, ends[1:], strict=False):
        step = second - first
        assert len(held) and float(step.norm()) > 1e-2
        assert float((step @ held.T).abs().max()) < 1e-12


def test_each_gate_sees_where_the_weight_stood(lab):
    """Behind another gate: f of the weight before the step, not of what is left of the update."""
    first = Tacos(growth=0.0, beta=0.5, tau_ref=1.0)
    learner = lab.learner(first, Laborieux(on="all", m=3.0))
    ticks, before, seen = learner.ticks(), {}, []
    laborieux = lab.method(learner, "laborieux")
    plain = laborieux.changed
    laborieux.changed = lambda n, u, old: seen.append((n, old.clone())) or plain(n, u, old)
    for tick in ticks:
        if tick.kind in ("step", "window"):
            for name, old in seen[-2:]:
                if name in before:
                    assert torch.equal(old, before[name])
            before = lab.weights(learner)
    assert len(seen) > 20
