"""Sleep against a plain loop over neurons and weights; what it touches, and when."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from spikecl.continual import Context, Finetune, Hlop
from spikecl.continual.homeostasis.sleep import Sleep
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.si import Si
from spikecl.data.arrays import checked
from spikecl.encoding import Direct, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingConvNet, SpikingMlp, SpikingRecurrentNet
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, permuted
from spikecl.trainers import Bptt, Ottt

CPU = torch.device("cpu")
NEURON = LIF(beta=0.5, v_th=0.3)
DENSE = Mlp(hidden=(7, 6))
SPIKING = SpikingMlp(hidden=(7, 6), neuron=LIF(beta=0.5, v_th=0.1), readout="mean_current")
LIVELY = {"gain": 3.0, "max_rate": 0.6, "threshold": 1.5}


def data(shape=(8,)):
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32).reshape(42, *shape)
    return checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "c")


class Whole(Direct):
    """Intensities as they are, in double precision."""

    def encode(self, x, statistics, generator):
        return x.double().expand(self.steps, *x.shape)


def learner_of(
    *methods,
    network=DENSE,
    shape=(8,),
    reveal=DOMAIN_IL,
    optimiser=None,
    epochs=2,
    trainer=None,
):
    return Learner(
        stream=permuted(data(shape), experiences=3, seed=1).with_reveal(reveal),
        network=network.build(shape, 3).double(),
        encoder=Whole(steps=2),
        trainer=trainer or Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.2),
        plan=TrainPlan(batch=6, epochs=epochs),
        seeds=Seeds(4),
        device=CPU,
        loss=StepCrossEntropy() if isinstance(trainer, Ottt) else None,
    )


def asleep(weights, chance, tops, drawn, spec):
    """A plain loop: steps, layers, neurons and weights one by one."""
    weights = [w.copy() for w in weights]
    v, count = [np.zeros(len(w)) for w in weights], [np.zeros(len(w)) for w in weights]
    for row in drawn:
        s = [1.0 if u < p else 0.0 for u, p in zip(row, chance)]
        for k, w in enumerate(weights):
            new = []
            for i in range(len(w)):
                current = sum(w[i, j] * s[j] for j in range(len(s)))
                v[k][i] = spec.decay * v[k][i] + spec.gain / tops[k] * current
                new.append(1.0 if v[k][i] >= spec.threshold else 0.0)
                if new[-1]:
                    v[k][i] = 0
                    count[k][i] += 1
                    for j in range(len(s)):
                        x = min(w[i, j] / 0.001, 700)
                        g = 2 * (1 - 1 / (1 + math.exp(-x))) if x > -700 else 2.0
                        w[i, j] += spec.increase * g if s[j] else -spec.decrease * g
            s = new
    return weights, count


def test_a_night_is_a_plain_loop():
    spec = Sleep(steps=40, **LIVELY)
    learner, nights = learner_of(spec), []
    method = learner.methods.methods["sleep"]
    plain = method._sleep

    def kept(tops):
        start = [w.detach().numpy().copy() for w in method._chain.values()]
        made = plain(tops)
        end = [w.detach().numpy().copy() for w in method._chain.values()]
        nights.append((start, dict(tops), method._mean.clone(), end, made))
        return made

    method._sleep = kept
    for _ in learner.ticks():
        pass
    assert len(nights) == 3
    means = []
    for event, (start, tops, mean, end, rates) in enumerate(nights):
        x = learner.stream[event].train.load().x.double().flatten(1)
        own = x.mean(0) / x.mean(0).max()
        means.append(own)
        torch.testing.assert_close(mean, torch.stack(means).mean(0))
        h, top = x, []
        for w in start:
            current = h @ torch.tensor(w).T
            top.append(float(current.max()))
            h = torch.relu(current)
        np.testing.assert_allclose(list(tops.values()), top)
        generator = Seeds(4).generator("sleep", event=event)
        steps = round(40 * (1 + event / 3))
        drawn = [torch.rand(8, generator=generator).tolist() for _ in range(steps)]
        chance = 0.6 * mean / mean.max()  # the most active input fires at the highest rate
        wanted, count = asleep(start, chance.tolist(), top, drawn, spec)
        for a, b, c, d in zip(wanted, end, count, rates.values()):
            np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-8)  # 1 - 1 / (1 + e) cancels
            np.testing.assert_allclose(d, c / steps)
        assert all(c.any() for c in count[:2])


def test_without_steps_it_is_a_plain_run_to_the_last_bit():
    ends = []
    for spec in (Finetune(), Sleep(steps=0)):
        learner = learner_of(spec)
        rows = [row for tick in learner.ticks() for row in tick.rows]
        ends.append((rows, {n: p.detach().clone() for n, p in learner.network.weights().items()}))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(p, ends[1][1][n]) for n, p in ends[0][1].items())


@pytest.mark.parametrize(
    ("network", "shape", "touched"),
    [
        (SpikingRecurrentNet(hidden=(9,), neuron=NEURON), (8,), ["hidden1", "readout"]),
        (
            SpikingConvNet(channels=(4,), kernel=2, pool_size=1, hidden=(9,), neuron=NEURON),
            (2, 4),
            ["hidden1", "readout"],
        ),
        (
            SpikingMlp(hidden=(9, 8), neuron=NEURON, gain=2.0),
            (8,),
            ["hidden1", "hidden2", "readout"],
        ),
    ],
)
def test_dense_layers_at_the_end_are_those_that_change(network, shape, touched):
    learner = learner_of(Sleep(steps=60, **LIVELY), network=network, shape=shape)
    method = learner.methods.methods["sleep"]
    assert list(method._chain) == touched
    changed = set()
    plain = method.end

    def watched(view):
        before = {n: p.detach().clone() for n, p in learner.network.weights().items()}
        plain(view)
        now = learner.network.weights()
        changed.update(n for n in before if not torch.equal(before[n], now[n].detach()))

    method.end = watched
    said = [row for tick in learner.ticks() for row in tick.rows if row["metric"] == "sleep"]
    assert changed <= {f"{name}.weight" for name in touched} and f"{touched[0]}.weight" in changed
    json.dumps(said, allow_nan=False)
    assert said[-1]["value"][touched[0]]["moved"] > 0


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2, momentum=0.5), Adam(lr=0.01)])
def test_a_projection_protects_what_has_slept(optimiser):
    """Its subspace is of activity behind sleep; the last night alone is not held back."""
    learner = learner_of(Sleep(steps=30, **LIVELY), Hlop(), optimiser=optimiser)
    assert list(learner.methods.methods) == ["sleep", "hlop"]
    rows = [row for tick in learner.ticks() for row in tick.rows]
    assert {row["metric"] for row in rows if row["phase"] == "report"} >= {"sleep", "hlop"}


def test_without_boundaries_it_sleeps_once():
    learner = learner_of(Sleep(steps=20, **LIVELY), reveal=TASK_FREE)
    for _ in learner.ticks():
        pass
    assert learner.methods.methods["sleep"]._experience == 1


@pytest.mark.parametrize(
    "trainer", [Bptt(), Ottt(update="window", window=1)], ids=["whole", "parts"]
)
def test_without_boundaries_it_dreams_of_all_samples(trainer):
    """Not of those of the last experience, which would tell where it began."""
    learner = learner_of(
        Sleep(steps=20, **LIVELY), reveal=TASK_FREE, network=SPIKING, trainer=trainer
    )
    for _ in learner.ticks():
        pass
    sets = [event.train.load().x.double().flatten(1) for event in learner.stream]
    mean, last = (x.mean(0) / x.mean(0).max() for x in (torch.cat(sets), sets[-1]))
    found = learner.methods.methods["sleep"]._mean
    torch.testing.assert_close(found, mean)
    assert not torch.allclose(found, last, atol=0.05)


def test_without_boundaries_currents_are_measured_as_they_come():
    learner = learner_of(Sleep(steps=5, **LIVELY), reveal=TASK_FREE, optimiser=Sgd(lr=1e-12))
    weights = [w.detach().clone() for w in learner.methods.methods["sleep"]._chain.values()]
    for _ in learner.ticks():
        pass
    h = torch.cat([event.train.load().x.double().flatten(1) for event in learner.stream])
    for w, top in zip(weights, learner.methods.methods["sleep"]._tops.values(), strict=True):
        torch.testing.assert_close(top, (h @ w.T).max())
        h = torch.relu(h @ w.T)


def test_where_no_weight_learns_nothing_is_done_silently():
    network = DENSE.build((8,), 3)
    network.requires_grad_(False)
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 3, CPU)
    with pytest.raises(PairingError, match="method 'sleep' is about weights that learn"):
        Sleep().start(context)
    Sleep(steps=0).start(context)


@pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_FREE], ids=["told", "not told"])
def test_a_checkpoint_has_all_there_is(reveal):
    spec, half, rows = Sleep(steps=20, **LIVELY), None, []
    whole = learner_of(spec, reveal=reveal)
    for tick in whole.ticks():
        rows += tick.rows
        if half is None and tick.position.event == 1 and tick.position.step == 2:
            tensors, values = split(whole.state_dict())
            half = ({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
            count = len(rows)
    again = learner_of(spec, reveal=reveal)
    again.load_state_dict(join(*half))
    assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]


def test_what_cannot_sleep_is_refused():
    with pytest.raises(PairingError, match="'hidden1' pass through Standardise"):
        learner_of(Sleep(), network=SpikingMlp(hidden=(5,), standardise=True))
    with pytest.raises(ConfigError, match=r"got 2 values for 3 dense layers \(hidden1"):
        learner_of(Sleep(threshold=(1.0, 2.0)))
    learner_of(Sleep(threshold=(1.0, 2.0, 3.0)))
    for wrong in ({"decay": 1.5}, {"gain": -1.0}, {"steps": -1}, {"threshold": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Sleep(**wrong)


def asleep_once(spec, weights, frozen=()):
    """Return the weights behind one night of a network that is given some."""
    learner = learner_of(spec, reveal=TASK_FREE, epochs=1, optimiser=Sgd(lr=1e-9))
    for name, value in weights.items():
        learner.network.weights()[name].detach().fill_(value)
    for name in frozen:
        learner.network.weights()[name].requires_grad_(False)
    for _ in learner.ticks():
        pass
    return learner


def test_currents_that_are_all_negative_fire_nobody():
    """They have no largest one to be measured by: a negative would turn their signs."""
    weights = {"hidden1.weight": 0.1, "hidden2.weight": 0.1, "readout.weight": -0.1}
    learner = asleep_once(Sleep(steps=40, **LIVELY), weights)
    said = learner.methods.methods["sleep"].report()
    assert said["hidden2"]["rate"]["mean"] > 0.1 and said["readout"]["rate"]["mean"] == 0


def test_frozen_weights_sleep_without_a_change():
    weights = {"hidden1.weight": 0.001, "hidden2.weight": 0.1, "readout.weight": 0.1}
    spec = Sleep(steps=40, **LIVELY)
    for frozen in ((), ("hidden1.weight",)):
        learner = asleep_once(spec, weights, frozen)
        said = learner.methods.methods["sleep"].report()
        assert said["hidden1"]["rate"]["mean"] > 0.1
        assert (said["hidden1"]["moved"] > 0) == (not frozen)


@pytest.mark.parametrize("measure", [Ewc(), Si(), L2()])
def test_importances_hold_weights_as_they_are_behind_sleep(measure):
    learner = learner_of(measure, Sleep(steps=30, **LIVELY))
    held = next(m for n, m in learner.methods.methods.items() if n != "sleep").importance
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event:
            for name, anchor in held.anchors.items():
                torch.testing.assert_close(anchor, learner.network.weights()[name].detach())
            if not isinstance(measure, L2):
                break  # a mean of anchors from here on
