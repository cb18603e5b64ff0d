"""Costs of firing rates: autograd of the cost, e-prop's own cost, and what silent neurons do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from spikecl.continual import Context, Finetune, Hlop
from spikecl.continual.homeostasis.rates import FiringRates
from spikecl.data.arrays import checked
from spikecl.encoding import Direct, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingMlp,
    SpikingRecurrentNet,
    form_gradients,
)
from spikecl.neurons import ALIF, LIF
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, TASK_FREE, Reveal, permuted
from spikecl.trainers import Bptt, Call, Eprop, Oja, Ottt, Spsa, Tbptt
from spikecl.trainers.trainer import joined

CPU = torch.device("cpu")
SPIKING = SpikingMlp(hidden=(10, 7), neuron=LIF(beta=0.5, v_th=0.3))


def data():
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32)
    return checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "c")


def learner_of(*methods, network=SPIKING, trainer=None, reveal=DOMAIN_IL, lr=0.1, loss=None):
    return Learner(
        stream=permuted(data(), experiences=2, seed=1).with_reveal(reveal),
        network=network.build((8,), 3).double(),
        encoder=Doubled(steps=4),
        trainer=trainer or Bptt(),
        methods=methods,
        optimiser=Sgd(lr=lr),
        plan=TrainPlan(batch=6, epochs=2),
        seeds=Seeds(4),
        device=CPU,
        loss=loss,
    )


class Doubled(Direct):
    """In double precision."""

    def encode(self, x, statistics, generator):
        return super().encode(x, statistics, generator).double()


def finished(learner):
    rows = [row for tick in learner.ticks() for row in tick.rows]
    return rows, {n: p.detach().clone() for n, p in learner.network.weights().items()}


def drawn(network, seed=0, scale=0.6):
    """Give a network weights of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.weights().values():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def gradients(network, method, x, trainer=None):
    """Gradients of a batch whose loss is 0, by the trainer with the method's errors."""
    call = Call(network, x, lambda logits: 0 * logits.sum())
    made = joined(list((trainer or Bptt()).parts(replace(call, errors=method.errors))))
    return form_gradients(network, made.synapses, made.direct)


def layers(x, weights, beta=0.5, v_th=0.3):
    """Outputs of layers of leaky integrate-and-fire neurons, with the surrogate's slope."""
    surrogate, found = LIF().surrogate, []
    for w in weights:
        v, out = 0, []
        for current in x @ w.T:
            v = beta * v + current
            soft = surrogate.primitive(v - v_th)
            s = (v > v_th).to(v) + soft - soft.detach()
            v = v - v_th * s.detach()
            out.append(s)
        x = torch.stack(out)
        found.append(x)
    return found


def cost_of(spec, outputs):
    total = 0
    for out in outputs:
        nu = out.mean(0)
        if spec.form == "target":
            total = total + spec.cost * ((nu.mean(0) - spec.target) ** 2).sum()
        else:
            low = spec.cost * (torch.relu(spec.lower - nu) ** 2).sum(1)
            high = spec.cost_upper * torch.relu(nu.mean(1) - spec.upper) ** 2
            total = total + (low + high).mean()
    return total


SPECS = [
    FiringRates(cost=0.7, target=0.2),
    FiringRates(form="bounds", cost=2.0, lower=0.3, cost_upper=3.0, upper=0.35),
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_is_that_of_the_cost_through_the_surrogate(spec):
    network = drawn(SPIKING.build((8,), 3).double())
    x = torch.randn(5, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = [network.weights()[f"hidden{i}.weight"].detach().requires_grad_() for i in (1, 2)]
    wanted = torch.autograd.grad(cost_of(spec, layers(x, weights)), weights)
    method = spec.start(context_of(network))
    found = gradients(network, method, x)
    for i, gradient in enumerate(wanted):
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(found[f"hidden{i + 1}.weight"], gradient)
    assert not found["readout.weight"].any()


@pytest.mark.parametrize("spec", SPECS)
def test_parts_of_steps_count_as_those_so_far(spec):
    """All of a cost that is linear in the spikes is there, whatever the parts."""
    network = drawn(SpikingMlp(hidden=(10,), neuron=LIF(beta=0.5, v_th=0.3)).build((8,), 3))
    method = spec.start(context_of(network))
    out = (torch.rand(6, 4, 10, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    sums, wanted = torch.zeros(4, 10), []
    for t in (2, 6):
        start = 0 if t == 2 else 2
        sums = sums + out[start:t].sum(0)
        nu = (sums / t).requires_grad_()
        (slope,) = torch.autograd.grad(cost_of(spec, [nu[None]]), nu)
        wanted.append(slope / 6)  # of a spike, which is a sixth of a rate
    for (start, stop), slope in zip(((0, 2), (2, 6)), wanted):
        found = method.errors({"hidden1": out[start:stop]}, (stop - start) / 6)["hidden1"]
        torch.testing.assert_close(found, slope.expand(stop - start, 4, 10))
    method.after_step()
    again = method.errors({"hidden1": out[:2]}, 1 / 3)["hidden1"]
    torch.testing.assert_close(again, wanted[0].expand(2, 4, 10))


def context_of(network):
    return Context(network, Sgd(), Seeds(0), Reveal.LABELS, 3, CPU)


@pytest.mark.parametrize("spec", SPECS)
def test_silent_neurons_are_pushed_up_and_busy_ones_down(spec):
    network = SpikingMlp(hidden=(2,), neuron=LIF(beta=0.5, v_th=1.0)).build((3,), 2)
    with torch.no_grad():
        network.weights()["hidden1.weight"].copy_(torch.tensor([[0.1] * 3, [0.4] * 3]))
    method = spec.start(context_of(network))
    x = torch.ones(5, 4, 3)
    found = gradients(network, method, x)["hidden1.weight"]
    assert (found[0] < 0).all()  # descent raises the weights
    assert (found[1] > 0).all()


@pytest.mark.parametrize("window", [0, 1, 2, 4])
@pytest.mark.parametrize("neuron", [LIF(beta=0.5, v_th=0.3), ALIF(beta=0.5, v_th=0.3)])
def test_under_eprop_it_is_the_rule_s_own_cost(window, neuron):
    network = SpikingRecurrentNet(hidden=(9,), neuron=neuron, readout="mean_current")
    options = {"network": network, "loss": None}
    if window:
        options["loss"] = StepCrossEntropy()
    own = Eprop(window=window, rate_cost=3.0, rate_target=0.05)
    there = finished(learner_of(Finetune(), trainer=own, **options))[1]
    here = finished(
        learner_of(FiringRates(cost=3.0, target=0.05), trainer=Eprop(window=window), **options)
    )[1]
    without = finished(learner_of(Finetune(), trainer=Eprop(window=window), **options))[1]
    for name, w in there.items():
        torch.testing.assert_close(here[name], w)
    assert not torch.allclose(without["hidden1.weight"], here["hidden1.weight"], atol=1e-5)


@pytest.mark.parametrize(
    "trainer", [Bptt(), Bptt(feedback="direct"), Bptt(checkpoint=2), Tbptt(steps=2), Ottt()]
)
def test_rates_come_nearer_under_trainers_that_follow_errors(trainer):
    off = []
    for spec in (Finetune(), FiringRates(cost=20.0, target=0.25)):
        learner = learner_of(spec, trainer=trainer)
        finished(learner)
        loaded = learner.stream[1].train.load()
        x = learner.encoder.encode(loaded.x, learner.statistics, None)
        seen = learner.network.record(x, variables=["spikes"])
        off.append(np.mean([abs(seen[n]["spikes"].mean((0, 1)) - 0.25).mean() for n in seen]))
    assert off[1] < 0.9 * off[0]


@pytest.mark.parametrize("trainer", [Oja(), Spsa()])
def test_trainers_that_follow_no_errors_are_refused_before_anything_starts(trainer):
    with pytest.raises(PairingError, match="'rates' sends errors.*bptt, decolle, eprop"):
        learner_of(FiringRates(), trainer=trainer, network=SpikingMlp(hidden=(5,)))
    learner_of(FiringRates(cost=0.0), trainer=trainer, network=SpikingMlp(hidden=(5,)))


def test_without_strength_it_is_a_plain_run_to_the_last_bit():
    plain = finished(learner_of(Finetune()))
    for spec in (FiringRates(cost=0.0), FiringRates(form="bounds", cost=0.0, cost_upper=0.0)):
        nothing = finished(learner_of(spec))
        assert plain[0] == nothing[0]
        assert all(torch.equal(p, nothing[1][n]) for n, p in plain[1].items())


def test_hlop_holds_back_its_gradient_too():
    learner = learner_of(FiringRates(cost=5.0, target=0.3), Hlop(rows=((8, 2, 2),)))
    weights = []
    for tick in learner.ticks():
        if tick.kind == "event":
            weights.append(learner.network.weights()["hidden1.weight"].detach().clone())
    assert (weights[0] - weights[1]).abs().max() > 1e-2
    assert torch.allclose(weights[1], weights[2], atol=1e-9)


def test_without_boundaries_it_reports_what_it_sees():
    rows, _ = finished(learner_of(FiringRates(), reveal=TASK_FREE))
    said = [r["value"] for r in rows if r["metric"] == "rates"]
    assert len(said) == 2 and sorted(said[-1]) == ["hidden1", "hidden2"]
    json.dumps(said, allow_nan=False)
    assert sum(said[-1]["hidden1"]["rate"]["counts"]) == 10


@pytest.mark.parametrize(
    "wrong", [{"cost": -1.0}, {"target": 1.5}, {"lower": -0.1}, {"lower": 0.4, "upper": 0.3}]
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FiringRates(**wrong)


def test_a_network_without_hidden_neurons_is_refused():
    network = Network({"readout": Layer(Linear(4, 3), None, inputs=("input",))})
    with pytest.raises(PairingError, match="hidden layer"):
        FiringRates().start(context_of(network))
    FiringRates().start(context_of(Mlp(hidden=(4,)).build((4,), 3)))
