"""Thresholds come to their set points, alone and within runs; plain loops and closed forms."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Context, Finetune, Hlop, Method
from spikecl.continual.homeostasis.threshold import Threshold
from spikecl.continual.importance.l2 import L2
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.errors import ActivityWarning, ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingConvNet, SpikingMlp
from spikecl.neurons import LIF, RateLIF
from spikecl.optim import Adam, ScheduleFreeSgd, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, Reveal, permuted
from spikecl.trainers import Bptt, Eprop

# some of few random neurons have no input to fire by; a test of its own is about that
pytestmark = pytest.mark.filterwarnings("ignore:layer .* cannot reach")

CPU = torch.device("cpu")
OWN = {"learns": ("v_th",), "per_neuron": True}


def context_of(network):
    return Context(network, Sgd(), Seeds(0), Reveal.LABELS, 3, CPU)


def network_of(n=6, v_th=1.0, **options):
    spec = SpikingMlp(hidden=(n,), neuron=LIF(beta=0.5, v_th=v_th), **OWN, **options)
    return spec.build((4,), 3).double()


def fire(x, v_th, beta=0.5):
    """Mean spikes of leaky integrate-and-fire neurons: input [T, B, n]."""
    v, count = np.zeros(x.shape[1:]), np.zeros(x.shape[1:])
    for current in x:
        v = beta * v + current
        spikes = v > v_th
        v = v - v_th * spikes
        count += spikes
    return count.mean(0) / len(x)


def drive(network, method, draw, steps):
    """Run neurons on drawn input; return their rates at each step."""
    method.begin(None)
    stored, rates = network.layers["hidden1"].neuron.v_th, []
    for _ in range(steps):
        rates.append(fire(draw(), stored.detach().numpy()))
        method.fired({"hidden1": torch.tensor(rates[-1])}, 1.0)
        method.after_step()
    return np.array(rates)


def noise(scale, seed=0, batch=20):
    rng, size = np.random.default_rng(seed), np.asarray(scale)
    return lambda: rng.exponential(size, (10, batch, len(size)))


SCALES = [0.05, 0.3, 1.0, 2.0, 5.0, 20.0]


def test_any_positive_input_comes_to_the_set_point():
    network = network_of()
    method = Threshold(target=0.2, rate=0.5, tau_rate=10, floor=0.001).start(context_of(network))
    rates = drive(network, method, noise(SCALES), 1500)
    found = rates[700:].mean(0)
    assert (abs(rates[:20].mean(0) - 0.2) / 0.2).max() > 0.9  # they did not start there
    assert (abs(found - 0.2) / 0.2).max() < 0.02


def test_a_step_of_the_input_is_forgotten():
    network = network_of()
    method = Threshold(target=0.2, rate=0.1, tau_rate=10, floor=0.001).start(context_of(network))
    drive(network, method, noise([1.0] * 6), 800)
    after = drive(network, method, noise([2.0] * 6, seed=1), 1500)
    assert (after[:3].mean(0) > 0.3).all()
    assert (abs(after[700:].mean(0) - 0.2) / 0.2).max() < 0.02


def test_event_form_rests_where_gain_and_decay_meet():
    network = network_of(v_th=0.5)
    spec = Threshold(form="event", theta_plus=0.2, tau=40.0)
    method = spec.start(context_of(network))
    rates = drive(network, method, noise(SCALES, batch=100), 600)
    theta = network.layers["hidden1"].neuron.v_th.detach().numpy() - 0.5
    mean = rates[-200:].mean(0)
    np.testing.assert_allclose(mean, theta / (0.2 * 40), rtol=0.03, atol=2e-4)
    assert (mean[2:] > 0.05).all()
    # and without spikes it decays by a part in tau
    method.fired({"hidden1": torch.zeros(6, dtype=torch.float64)}, 1.0)
    method.after_step()
    now = network.layers["hidden1"].neuron.v_th.detach().numpy() - 0.5
    np.testing.assert_allclose(now, theta * (1 - 1 / 40), rtol=1e-12)


def test_a_network_that_was_given_starts_from_its_own_thresholds():
    network = network_of(v_th=1.0)
    given = torch.linspace(0.4, 3.0, 6, dtype=torch.float64)
    stored = network.layers["hidden1"].neuron.v_th
    stored.detach().copy_(given)
    method = Threshold(form="event", tau=10.0).start(context_of(network))
    method.begin(None)
    method.fired({"hidden1": torch.zeros(6, dtype=torch.float64)}, 1.0)
    method.after_step()
    torch.testing.assert_close(stored.detach(), given)  # no spike, nothing to decay
    tensors, values = split(method.state_dict())
    stored.detach().fill_(7.0)
    again = Threshold(form="event", tau=10.0).start(context_of(network))
    again.load_state_dict(join(tensors, values))
    assert torch.equal(again._cells["hidden1"].start, given)
    torch.testing.assert_close(again._cells["hidden1"].floor, 0.05 * given)


@pytest.mark.parametrize("form", ["event", "set_point"])
def test_a_plain_loop(form):
    network, rng = network_of(n=3), np.random.default_rng(0)
    options = {"target": 0.3, "rate": 0.07, "tau_rate": 4.0, "theta_plus": 0.4, "tau": 9.0}
    method = Threshold(form=form, floor=0.2, **options).start(context_of(network))
    method.begin(None)
    v_th, mean = np.ones(3), None
    for _ in range(60):
        parts = rng.random((2, 3)) * [0.1, 0.5, 1]
        for part, share in zip(parts, (0.25, 0.75)):
            method.fired({"hidden1": torch.tensor(part), "readout": torch.ones(3)}, share)
        method.after_step()
        f = 0.25 * parts[0] + 0.75 * parts[1]
        mean = f if mean is None else mean + (f - mean) / 4
        change = 0.4 * f - (v_th - 1) / 9 if form == "event" else 0.07 * (mean - 0.3)
        v_th = np.maximum(v_th + change, 0.2)
        np.testing.assert_allclose(network.layers["hidden1"].neuron.v_th.detach(), v_th)


# ---- within runs --------------------------------------------------------------------------------


def data():
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32)
    return checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "c")


def learner_of(*methods, network=None, optimiser=None, trainer=None, reveal=DOMAIN_IL, batch=6):
    spec = network or SpikingMlp(hidden=(10, 7), neuron=LIF(beta=0.5, v_th=0.3), **OWN)
    return Learner(
        stream=permuted(data(), experiences=2, seed=1).with_reveal(reveal),
        network=spec.build((8,), 3),
        encoder=Direct(steps=3),
        trainer=trainer or Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.1, momentum=0.9),
        plan=TrainPlan(batch=batch, epochs=2),
        seeds=Seeds(4),
        device=CPU,
    )


def finished(learner):
    rows = [row for tick in learner.ticks() for row in tick.rows]
    return rows, {n: p.detach().clone() for n, p in learner.network.weights().items()}


def test_a_run_is_a_plain_loop_in_torch():
    """Forward, autograd, SGD and thresholds in twenty lines."""
    learner = learner_of(
        Threshold(rate=0.2, target=0.15, tau_rate=3.0), optimiser=Sgd(lr=0.1), batch=24
    )
    stream, surrogate = learner.stream, LIF().surrogate
    weights = [w.detach().clone() for n, w in learner.network.weights().items() if "weight" in n]
    v_th = [torch.full((n,), 0.3) for n in (10, 7)]
    mean = [None, None]
    statistics = learner.statistics
    for event in (0, 1):
        loaded = stream[event].train.load()
        x = (loaded.x.flatten(1) - statistics.mean) / statistics.std
        for _ in range(2):
            learned = [w.requires_grad_() for w in weights]
            h, fired = x.expand(3, *x.shape), []
            for w, th in zip(learned, v_th):
                v, out = 0, []
                for current in h @ w.T:
                    v = 0.5 * v + current
                    d = v - th
                    soft = surrogate.primitive(d)
                    s = (d > 0).float() + soft - soft.detach()
                    v = v - th * s.detach()
                    out.append(s)
                h = torch.stack(out)
                fired.append(h.detach().mean((0, 1)))
            loss = functional.cross_entropy(h.mean(0) @ learned[2].T, loaded.y)
            gradients = torch.autograd.grad(loss, learned)
            weights = [(w - 0.1 * g).detach() for w, g in zip(learned, gradients)]
            for i, f in enumerate(fired):
                mean[i] = f if mean[i] is None else mean[i] + (f - mean[i]) / 3
                v_th[i] = torch.clamp_min(v_th[i] + 0.2 * (mean[i] - 0.15), 0.05 * 0.3)
    _, found = finished(learner)
    for i, name in enumerate(("hidden1", "hidden2")):
        torch.testing.assert_close(found[f"{name}.neuron.v_th"], v_th[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[f"{name}.weight"], weights[i], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["event", "set_point"])
def test_without_strength_it_is_a_plain_run_to_the_last_bit(form):
    plain = finished(learner_of(Finetune()))
    nothing = finished(learner_of(Threshold(form=form, rate=0.0, theta_plus=0.0)))
    assert plain[0] == nothing[0]
    assert all(torch.equal(p, nothing[1][n]) for n, p in plain[1].items())


def test_tests_do_not_move_thresholds():
    learner, before = learner_of(Threshold(rate=0.3)), None
    for tick in learner.ticks():
        now = learner.network.weights()["hidden1.neuron.v_th"].detach().clone()
        if tick.kind == "test" and before is not None:
            assert torch.equal(now, before)
        before = now


def test_the_size_of_a_batch_is_not_the_speed():
    """The same samples three times over in a batch: a mean, not a sum."""
    x = np.random.default_rng(0).exponential(1.0, (10, 5, 6))
    ends = []
    for repeats in (1, 3):
        network = network_of()
        method = Threshold(form="event", theta_plus=1.0).start(context_of(network))
        drive(network, method, lambda n=repeats: np.concatenate([x] * n, 1), 5)
        ends.append(network.layers["hidden1"].neuron.v_th.detach())
    assert (ends[0] > 1.1).all()
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), Adam(lr=0.01), ScheduleFreeSgd(lr=0.5)])
def test_gradients_and_optimisers_leave_thresholds_to_it(optimiser):
    """Where thresholds may hardly move, no optimiser moves them, and tests see them as they are."""
    learner = learner_of(Threshold(rate=1e-12), optimiser=optimiser)
    _, found = finished(learner)
    for name in ("hidden1", "hidden2"):
        assert (found[f"{name}.neuron.v_th"] - 0.3).abs().max() < 1e-6
    learner = learner_of(Threshold(rate=0.5, tau_rate=1.0), optimiser=optimiser)
    for tick in learner.ticks():
        if tick.kind == "step":
            trained = learner.network.weights()["hidden1.neuron.v_th"].detach().clone()
            with learner.optimiser.evaluating():
                tested = learner.network.weights()["hidden1.neuron.v_th"].detach().clone()
            assert torch.equal(trained, tested)
    assert (trained - 0.3).abs().max() > 0.05


@pytest.mark.parametrize("step", ["gradient", "implicit"])
def test_penalties_leave_thresholds_to_it(step):
    """As strong as they are, and whether they pull before or behind the optimiser."""
    learner = learner_of(Threshold(rate=1e-12), L2(strength=3.0, step=step))
    ticks = learner.ticks()
    next(tick for tick in ticks if tick.kind == "event" and tick.position.event == 1)
    stored = learner.network.weights()["hidden1.neuron.v_th"].detach()
    stored.fill_(0.7)  # away from where the penalty has its anchor
    for _ in ticks:
        pass
    assert (stored - 0.7).abs().max() < 1e-6


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), Adam(lr=0.01)])
def test_hlop_holds_weights_while_thresholds_move(optimiser):
    both = learner_of(Threshold(rate=0.3), Hlop(), optimiser=optimiser)
    rows, found = finished(both)
    said = {r["metric"]: r["value"] for r in rows if r["phase"] == "report" and r["event"] == 1}
    assert said["hlop"]["hidden1"]["rows"] == 4
    assert said["threshold"]["hidden1"]["moved"] > 0.05
    alone = finished(learner_of(Hlop(), optimiser=optimiser))[1]
    assert not torch.equal(found["hidden1.neuron.v_th"], alone["hidden1.neuron.v_th"])


def test_hlop_leaves_old_currents_alone_beside_it():
    """The first synapse's input is no one's to change: old rows of it are protected as ever."""
    learner = learner_of(Threshold(rate=0.3), Hlop(rows=((8, 2, 2),)))
    weights = []
    for tick in learner.ticks():
        if tick.kind == "event":
            weights.append(learner.network.weights()["hidden1.weight"].detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[1], weights[2], atol=1e-5)  # 8 rows are all there is


def test_in_the_first_experience_alone():
    learner, seen = learner_of(Threshold(rate=0.3, adapts="first")), []
    for tick in learner.ticks():
        if tick.kind == "event":
            seen.append(learner.network.weights()["hidden1.neuron.v_th"].detach().clone())
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])


def test_without_boundaries_and_online():
    online = Eprop(window=1, update="window")
    network = SpikingMlp(
        hidden=(10, 7), neuron=LIF(beta=0.5, v_th=0.3), readout="mean_current", **OWN
    )
    with pytest.raises(PairingError):  # eprop with traces is not about neurons that learn
        finished(learner_of(Threshold(), network=network, trainer=online, reveal=TASK_FREE))
    rows, found = finished(learner_of(Threshold(rate=0.3), reveal=TASK_FREE))
    assert (found["hidden1.neuron.v_th"] != 0.3).all()
    assert any(r["metric"] == "threshold" for r in rows)


def test_what_it_reports_is_json_and_adds_up():
    rows, found = finished(learner_of(Threshold(rate=0.3)))
    last = [r["value"] for r in rows if r["metric"] == "threshold"][-1]
    json.dumps(last, allow_nan=False)
    assert sorted(last) == ["hidden1", "hidden2"]
    own, v_th = last["hidden1"]["threshold"], found["hidden1.neuron.v_th"].double()
    assert own["mean"] == pytest.approx(float(v_th.mean()))
    assert own["quantiles"][3] == pytest.approx(float(v_th.quantile(0.5)))
    assert sum(own["counts"]) == 10 and len(own["edges"]) == 1 + len(own["counts"])
    assert 0 <= last["hidden1"]["rate"]["mean"] <= 1


def test_channels_have_a_threshold_for_each_place():
    spec = SpikingConvNet(channels=(3,), kernel=2, pool_size=1, neuron=LIF(beta=0.5), **OWN)
    network = spec.build((2, 4), 3)
    method = Threshold(rate=1.0, target=0.5, tau_rate=1.0).start(context_of(network))
    method.begin(None)
    name = next(iter(network.layers))
    shape = network.layers[name].neuron.v_th.shape
    rates = torch.rand(shape)
    method.fired({name: rates}, 1.0)
    method.after_step()
    torch.testing.assert_close(network.layers[name].neuron.v_th.detach(), 0.5 + rates)


def test_a_bounded_threshold_stays_in_its_range():
    spec = SpikingMlp(hidden=(5,), neuron=RateLIF(), **OWN)
    network = spec.build((4,), 3)
    method = Threshold(rate=10.0, target=0.9, tau_rate=1.0, floor=0.1).start(context_of(network))
    method.begin(None)
    method.fired({"hidden1": torch.zeros(5)}, 1.0)
    method.after_step()
    (value,) = network.layers["hidden1"].neuron.bound().v_th.unique()
    assert float(value.detach()) == pytest.approx(0.1 * RateLIF().v_th, rel=1e-5)


# ---- what is refused, and said -------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        Mlp(hidden=(5,)),
        SpikingMlp(hidden=(5,)),
        SpikingMlp(hidden=(5,), learns=("v_th",)),
        SpikingMlp(hidden=(5,), learns=("beta",), per_neuron=True),
    ],
)
def test_networks_without_such_thresholds_are_refused(network):
    with pytest.raises(PairingError, match=r"learns = \['v_th'\] and per_neuron = true"):
        Threshold().start(context_of(network.build((4,), 3)))


def test_frozen_thresholds_stay():
    network = network_of()
    network.layers["hidden1"].neuron.v_th.requires_grad_(False)
    with pytest.raises(PairingError, match="that learn"):
        Threshold().start(context_of(network))


def test_a_target_beyond_the_refractory_period_is_warned_of():
    spec = SpikingMlp(hidden=(5,), neuron=LIF(beta=0.5, refractory=3), **OWN)
    network = spec.build((4,), 3)
    with pytest.warns(ActivityWarning, match="layer 'hidden1' cannot reach target=0.3.*0.25"):
        Threshold(target=0.3).start(context_of(network))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Threshold(target=0.25).start(context_of(network))


def test_neurons_that_cannot_reach_it_are_counted_once():
    network = network_of(n=4)
    method = Threshold(target=0.2, rate=0.5, tau_rate=2.0).start(context_of(network))
    drive(network, method, noise([0.0, 1.0, 0.0, 1.0]), 60)
    with pytest.warns(ActivityWarning, match="'hidden1' cannot reach.*2 of its 4 neurons"):
        method.end(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.end(None)


def test_bounded_thresholds_at_the_lowest_are_counted_too():
    """What is stored stands for a value that may lie above the floor by rounding."""
    network = SpikingMlp(hidden=(50,), neuron=RateLIF(), **OWN).build((4,), 3)
    spec = Threshold(rate=10.0, target=0.9, tau_rate=1.0, floor=0.01)  # one that does
    method = spec.start(context_of(network))
    method.begin(None)
    for _ in range(3):
        method.fired({"hidden1": torch.zeros(50)}, 1.0)
        method.after_step()
    with pytest.warns(ActivityWarning, match="'hidden1' cannot reach.*50 of its 50 neurons"):
        method.end(None)


@pytest.mark.parametrize(
    "wrong",
    [{"tau": 0.0}, {"tau": -1.0}, {"tau_rate": 0.5}, {"target": 0.0}, {"target": 1.0}]
    + [{"rate": -0.1}, {"theta_plus": -1.0}, {"floor": 1.5}, {"form": "both"}],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Threshold(**wrong)


def test_a_checkpoint_has_all_there_is():
    spec = Threshold(rate=0.3)
    whole, half = learner_of(spec), None
    rows = []
    for tick in whole.ticks():
        rows += tick.rows
        if half is None and tick.position.event == 1 and tick.position.step == 2:
            tensors, values = split(whole.state_dict())
            half = ({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
            count = len(rows)
    again = learner_of(spec)
    again.load_state_dict(join(*half))
    assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]


def test_who_adapts_in_the_first_experience_has_to_know_it():
    assert Threshold(adapts="first").needs == Reveal.BOUNDARY
    assert Threshold().needs == Reveal.NONE


class Listening(Method):
    """Notes what it is to let go of."""

    def __init__(self):
        self.told = []

    def leave(self, names):
        self.told.append(set(names))


def test_it_asks_methods_before_it_to_let_go_of_its_thresholds():
    network = SpikingMlp(hidden=(4,), learns=("v_th",), per_neuron=True).build((5,), 3)
    for spec, told in ((Threshold(), [{"hidden1.neuron.v_th"}]), (Threshold(rate=0.0), [])):
        listening = Listening()
        spec.start(Context(network, Sgd(), Seeds(0), DOMAIN_IL, 3, CPU, before=(listening,)))
        assert listening.told == told
