"""Scaling keeps ratios and comes to its target; sums; who excites; within runs."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from spikecl.continual import Context, Finetune, Hlop
from spikecl.continual.homeostasis.layers import distribution
from spikecl.continual.homeostasis.scaling import Scaling
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.errors import ActivityWarning, ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Mlp,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    initialise,
)
from spikecl.neurons import LIF, ConductanceLIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, Reveal, permuted
from spikecl.trainers import Bptt

CPU = torch.device("cpu")
SPIKING = SpikingMlp(hidden=(10, 7), neuron=LIF(beta=0.5, v_th=0.3))


def started(spec, network):
    initialise(network, Seeds(1))
    method = spec.start(Context(network, Sgd(), Seeds(0), Reveal.LABELS, 3, CPU))
    method.begin(None)
    return method


def step(method, rates, share=1.0):
    method.fired(rates, share)
    method.after_step()


def ratios(w):
    return w.detach() / w.detach()[:, :1]


@pytest.mark.parametrize("form", ["rate", "sum"])
def test_ratios_of_a_neuron_s_weights_stay(form):
    network = SPIKING.build((8,), 3)
    method = started(Scaling(form=form, rate=0.1, target=0.3, target_sum=2.0), network)
    before = {n: w.detach().clone() for n, w in network.weights().items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        step(method, {n: torch.rand(k, generator=generator) for n, k in SIZES.items()})
    for name, w in network.weights().items():
        if name == "readout.weight":
            assert torch.equal(w, before[name])
        else:
            assert not torch.allclose(w, before[name], rtol=0.01)
            torch.testing.assert_close(ratios(w), ratios(before[name]), rtol=1e-5, atol=1e-6)


SIZES = {"hidden1": 10, "hidden2": 7}


def test_a_plain_loop_with_rows_of_two_parts():
    network = SPIKING.build((8,), 3).double()
    method = started(Scaling(rate=0.4, target=0.3, tau_rate=5.0, every=2), network)
    w = network.weights()["hidden1.weight"].detach().numpy().copy()
    rng, mean = np.random.default_rng(0), None
    for t in range(1, 22):
        parts = rng.random((2, 10))
        method.fired({"hidden1": torch.tensor(parts[0]), "hidden2": torch.zeros(7).double()}, 0.3)
        method.fired({"hidden1": torch.tensor(parts[1]), "hidden2": torch.zeros(7).double()}, 0.7)
        method.after_step()
        f = 0.3 * parts[0] + 0.7 * parts[1]
        mean = f if mean is None else mean + (f - mean) / 5
        if t % 2 == 0:
            w *= np.maximum(1 + 0.4 * (0.3 - mean), 0)[:, None]
        np.testing.assert_allclose(network.weights()["hidden1.weight"].detach(), w)


def test_neurons_come_to_the_target():
    network = SpikingMlp(hidden=(5,), neuron=LIF(beta=0.5)).build((4,), 2).double()
    method = started(Scaling(rate=0.3, target=0.2, tau_rate=5.0), network)
    rng, rates = np.random.default_rng(0), []
    with torch.no_grad():
        network.weights()["hidden1.weight"].abs_()
    for _ in range(1500):
        x = torch.tensor(rng.exponential(0.5, (8, 20, 4)))
        out = network.record(x, variables=["spikes"])["hidden1"]["spikes"]
        rates.append(out.mean((0, 1)))
        step(method, {"hidden1": torch.tensor(rates[-1])})
    found = np.array(rates[500:]).mean(0)
    assert (abs(found - 0.2) / 0.2).max() < 0.02
    assert (abs(np.array(rates[:5]).mean(0) - 0.2) / 0.2).max() > 0.3


def test_sums_come_to_the_target_at_once_or_by_and_by():
    for rate in (1.0, 0.25):
        network = SPIKING.build((8,), 3).double()
        method = started(Scaling(form="sum", rate=rate, target_sum=3.0), network)
        before = network.weights()["hidden1.weight"].detach().abs().sum(1)
        with torch.no_grad():
            network.weights()["hidden2.weight"][2] = 0
        step(method, {n: torch.zeros(k).double() for n, k in SIZES.items()})
        now = network.weights()["hidden1.weight"].detach().abs().sum(1)
        torch.testing.assert_close(now, before + rate * (3.0 - before))
        assert not network.weights()["hidden2.weight"][2].any()


def test_a_sum_that_is_not_given_is_the_mean_at_the_start():
    network = SPIKING.build((8,), 3).double()
    method = started(Scaling(form="sum", rate=1.0), network)
    mean = network.weights()["hidden1.weight"].detach().abs().sum(1).mean()
    step(method, {n: torch.zeros(k).double() for n, k in SIZES.items()})
    now = network.weights()["hidden1.weight"].detach().abs().sum(1)
    torch.testing.assert_close(now, mean.expand(10))


def test_where_signs_are_told_those_that_excite_are_scaled():
    spec = SpikingMlp(hidden=(10, 6), neuron=LIF(beta=0.5), excitatory=0.8)
    network = spec.build((8,), 3)
    method = started(Scaling(rate=0.5, target=1.0), network)
    before = network.weights()["hidden2.weight"].detach().clone()
    step(method, {"hidden1": torch.zeros(10), "hidden2": torch.zeros(6)})
    now = network.weights()["hidden2.weight"].detach()
    torch.testing.assert_close(now[:, :8], 1.5 * before[:, :8])
    assert torch.equal(now[:, 8:], before[:, 8:])
    # behind conductances a weight excites by its sign
    network = SpikingMlp(hidden=(10,), neuron=ConductanceLIF()).build((8,), 3)
    method = started(Scaling(rate=0.5, target=1.0), network)
    before = network.weights()["hidden1.weight"].detach().clone()
    step(method, {"hidden1": torch.zeros(10)})
    wanted = torch.where(before > 0, 1.5 * before, before)
    torch.testing.assert_close(network.weights()["hidden1.weight"].detach(), wanted)


def test_shortcuts_are_rows_of_the_neurons_they_lead_to():
    network = SpikingResNet(width=2, blocks=(1, 1), norm="none").build((8, 8), 3)
    method = started(Scaling(form="sum", rate=1.0, target_sum=5.0), network)
    step(method, {})
    shortcuts = [n for n, layer in network.layers.items() if layer.neuron is None]
    assert len(shortcuts) == 2
    for name, synapse in network.synapses.items():
        if name != "readout":
            sums = synapse.weight.detach().abs().flatten(1).sum(1)
            torch.testing.assert_close(sums, torch.full_like(sums, 5.0))
    method = started(Scaling(rate=0.5, target=1.0), network)
    before = {n: w.detach().clone() for n, w in network.weights().items()}
    (path,) = (n for n in shortcuts if n != "readout")
    (onto,) = (n for n, layer in network.layers.items() if path in layer.currents)
    rates = torch.rand(4, 4, 4)
    fired = {n: torch.zeros(len(network.synapses[n].weight)) for n in network.synapses}
    step(method, {**fired, onto: rates})
    for name in (path, onto):
        wanted = before[f"{name}.weight"] * (1.5 - 0.5 * rates.mean((1, 2)))[:, None, None, None]
        torch.testing.assert_close(network.weights()[f"{name}.weight"].detach(), wanted)


@pytest.mark.parametrize("form", ["rate", "sum"])
def test_behind_a_norm_a_factor_would_be_nothing(form):
    dense = SpikingMlp(hidden=(5,), norm="batch").build((8,), 3)
    residual = SpikingResNet(width=2, blocks=(1, 1)).build((8, 8), 3)
    for network, first in ((dense, "hidden1"), (residual, "stem")):
        with pytest.raises(PairingError, match=f"the norm behind those of '{first}' takes their"):
            started(Scaling(form=form), network)


def test_recurrent_weights_and_channels_are_rows_too():
    network = SpikingRecurrentNet(hidden=(5,), neuron=LIF(beta=0.5)).build((8,), 3)
    method = started(Scaling(rate=0.5, target=1.0), network)
    before = {n: w.detach().clone() for n, w in network.weights().items()}
    rates = torch.arange(5) / 5
    step(method, {"hidden1": rates})
    for name in ("hidden1.weight", "hidden1.recurrent.weight"):
        wanted = before[name] * (1.5 - 0.5 * rates)[:, None]
        if name == "hidden1.recurrent.weight":  # no neuron listens to itself
            wanted.diagonal().copy_(before[name].diagonal())
        torch.testing.assert_close(network.weights()[name].detach(), wanted)
    network = SpikingConvNet(channels=(3,), kernel=2, pool_size=1).build((2, 4), 3)
    method = started(Scaling(rate=0.5, target=1.0), network)
    (name,) = [n for n in network.layers if n != "readout"]
    before = network.weights()[f"{name}.weight"].detach().clone()
    rates = torch.rand(3, 2, 4)
    step(method, {name: rates})
    wanted = before * (1.5 - 0.5 * rates.mean((1, 2)))[:, None, None, None]
    torch.testing.assert_close(network.weights()[f"{name}.weight"].detach(), wanted)


# ---- within runs --------------------------------------------------------------------------------


def data():
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32)
    return checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "c")


def learner_of(*methods, network=SPIKING, optimiser=None, reveal=DOMAIN_IL):
    return Learner(
        stream=permuted(data(), experiences=2, seed=1).with_reveal(reveal),
        network=network.build((8,), 3),
        encoder=Direct(steps=3),
        trainer=Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.1),
        plan=TrainPlan(batch=6, epochs=2),
        seeds=Seeds(4),
        device=CPU,
    )


def finished(learner):
    rows = [row for tick in learner.ticks() for row in tick.rows]
    return rows, {n: p.detach().clone() for n, p in learner.network.weights().items()}


@pytest.mark.parametrize("form", ["rate", "sum"])
def test_without_strength_it_is_a_plain_run_to_the_last_bit(form):
    plain = finished(learner_of(Finetune()))
    nothing = finished(learner_of(Scaling(form=form, rate=0.0)))
    assert plain[0] == nothing[0]
    assert all(torch.equal(p, nothing[1][n]) for n, p in plain[1].items())


@pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_FREE])
def test_sums_hold_in_a_run(reveal):
    rows, found = finished(learner_of(Scaling(form="sum", rate=1.0, target_sum=2.0), reveal=reveal))
    for name in SIZES:
        sums = found[f"{name}.weight"].abs().sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, 2.0))
    said = [r["value"] for r in rows if r["metric"] == "scaling"]
    json.dumps(said, allow_nan=False)
    assert said[-1]["hidden1"]["weight_sum"]["mean"] == pytest.approx(2.0, rel=1e-5)
    assert said[-1]["hidden1"]["moved"] > 0


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), Adam(lr=0.01)])
def test_beside_hlop_all_that_moves_old_currents_is_what_it_reports(optimiser):
    """With all directions held, a weight of the second task moves by scaling alone."""
    learner = learner_of(
        Scaling(rate=0.02, target=0.5), Hlop(rows=((8, 10, 7),)), optimiser=optimiser
    )
    weights, said = [], {}
    for tick in learner.ticks():
        if tick.kind == "event":
            weights.append(learner.network.weights()["hidden1.weight"].detach().clone())
            said |= {r["event"]: r["value"] for r in tick.rows if r["metric"] == "scaling"}
    torch.testing.assert_close(ratios(weights[2]), ratios(weights[1]), rtol=1e-3, atol=1e-4)
    moved = float((weights[2] - weights[1]).norm() / weights[1].norm())
    assert said[1]["hidden1"]["moved"] == pytest.approx(moved, rel=1e-3)
    assert moved > 0.01


def test_a_checkpoint_has_all_there_is():
    spec, half, rows = Scaling(rate=0.1, every=3), None, []
    whole = learner_of(spec)
    for tick in whole.ticks():
        rows += tick.rows
        if half is None and tick.position.event == 1 and tick.position.step == 2:
            tensors, values = split(whole.state_dict())
            half = ({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
            count = len(rows)
    again = learner_of(spec)
    again.load_state_dict(join(*half))
    assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]


def test_weights_whose_size_is_fixed_are_refused():
    network = SpikingMlp(hidden=(5,), standardise=True).build((4,), 3)
    with pytest.raises(PairingError, match="'scaling'.*Standardise.*'hidden1'"):
        started(Scaling(), network)
    network = Mlp(hidden=(5,)).build((4,), 3)
    network.requires_grad_(False)
    with pytest.raises(PairingError, match="no such weights"):
        started(Scaling(), network)


def test_a_target_that_neurons_cannot_reach_is_warned_of():
    network = SpikingMlp(hidden=(5,), neuron=LIF(beta=0.5, refractory=3)).build((4,), 3)
    context = Context(network, Sgd(), Seeds(0), Reveal.LABELS, 3, CPU)
    with pytest.warns(ActivityWarning, match="'hidden1' cannot reach scaling.target=0.3: 0.25 "):
        Scaling(target=0.3).start(context)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scaling(target=0.25).start(context)
        Scaling(form="sum", target=0.3).start(context)
        analog = Context(Mlp(hidden=(5,)).build((4,), 3), Sgd(), Seeds(0), Reveal.LABELS, 3, CPU)
        Scaling(target=3.0).start(analog)


def test_neurons_that_more_of_their_input_does_not_wake_are_warned_of_and_do_not_grow_for_ever():
    network = SpikingMlp(hidden=(5,), neuron=LIF(beta=0.5)).build((4,), 3).double()
    method = started(Scaling(rate=0.5, target=0.2, tau_rate=1.0, most=4.0), network)
    w = network.weights()["hidden1.weight"]
    start = w.detach().abs().sum(1)
    rates = torch.tensor([0.0, 0.0, 0.2, 0.12, 0.5]).double()  # silent, silent, right, low, busy
    with torch.no_grad():
        w[1] = 0.0
    for _ in range(200):
        step(method, {"hidden1": rates})
        assert float(w.detach().abs().sum(1).max()) <= 4.0 * float(start.mean()) * (1 + 1e-12)
    sums = w.detach().abs().sum(1)
    torch.testing.assert_close(sums[[0, 3]], (4.0 * start.mean()).expand(2))
    assert float(sums[1]) == 0 and float(sums[4]) < 1e-6
    torch.testing.assert_close(sums[2], start[2], rtol=1e-5, atol=0)
    with pytest.warns(
        ActivityWarning, match="'hidden1' cannot reach scaling.target=0.2: 1 of its 5"
    ):
        method.end(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.end(None)  # it has been said
    context = Context(network, Sgd(), Seeds(0), Reveal.LABELS, 3, CPU)
    again = Scaling(rate=0.5, target=0.2, tau_rate=1.0, most=4.0).start(context)
    again.begin(None)
    again.load_state_dict(method.state_dict())
    before = w.detach().clone()
    step(again, {"hidden1": torch.zeros(5).double()})
    torch.testing.assert_close(w.detach()[:1], before[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started(Scaling(form="sum"), network).end(None)


def test_a_sum_is_not_gone_beyond():
    with pytest.raises(ConfigError, match="scaling.rate: got 1.5 for form='sum'.*at most 1"):
        Scaling(form="sum", rate=1.5)
    Scaling(form="rate", rate=1.5)


@pytest.mark.parametrize(
    "wrong", [{"rate": -1.0}, {"target": 0.0}, {"tau_rate": 0.0}, {"target_sum": -1.0}]
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Scaling(**wrong)


@pytest.mark.parametrize("excitatory", [0.0, 0.5])
def test_a_sum_is_that_of_weights_in_effect(excitatory):
    """A neuron does not listen to itself: what is stored there counts for nothing, and stays."""
    network = SpikingRecurrentNet(hidden=(6,), neuron=LIF(beta=0.5), excitatory=excitatory)
    network = network.build((4,), 3).double()
    method = started(Scaling(form="sum", rate=1.0, target_sum=2.0), network)
    synapse = network.synapses["hidden1.recurrent"]
    before = synapse.weight.detach().clone()
    assert before.diagonal().any()
    step(method, {"hidden1": torch.full((6,), 0.1).double()})
    assert torch.equal(synapse.weight.diagonal(), before.diagonal())
    in_effect = synapse.effective({"weight": synapse.weight.detach()})
    excite = in_effect.clamp_min(0) if excitatory else in_effect.abs()
    torch.testing.assert_close(excite.sum(1), torch.full((6,), 2.0).double())
    plain = method.report()["hidden1.recurrent"]["weight_sum"]["mean"]
    assert plain == pytest.approx(2.0)


def test_values_that_are_alike_but_for_rounding_have_a_histogram():
    values = 2 + torch.finfo(torch.float64).eps * torch.arange(5, dtype=torch.float64)
    said = distribution(values)
    assert sum(said["counts"]) == 5 and len(said["edges"]) == 1 + len(said["counts"])
    assert distribution(torch.tensor([2.0, 3.0]))["edges"][0] == 2
