"""The state by hand, the rate it gives, controls, and a plain run where nothing has an effect."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Context, Finetune, Hlop
from spikecl.continual.homeostasis.need import Need, _Need
from spikecl.continual.host import Nobody
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.si import Si
from spikecl.continual.metaplasticity.benna_fusi import BennaFusi
from spikecl.continual.metaplasticity.mesu import Mesu
from spikecl.continual.metaplasticity.tacos import Tacos
from spikecl.data.arrays import checked
from spikecl.encoding import Direct, Rate, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan, check_pairings
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, ScheduleFreeSgd, Sgd
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, Batch, Reveal, permuted
from spikecl.trainers import Bptt, Vogels

CPU = torch.device("cpu")
SPIKING = SpikingMlp(hidden=(10,), neuron=LIF(beta=0.5, v_th=0.3))


def method_of(classes=3, **options):
    context = Context(SPIKING.build((8,), 3), Sgd(), Seeds(0), Reveal.LABELS, classes, CPU)
    return Need(**options).start(context)


def step(method, believed, true):
    """One step; returns the rate that was applied, as a part of the optimiser's."""
    logits = functional.one_hot(torch.tensor(believed), 3).double()
    method.answered(logits, Batch(logits, torch.tensor(true), None))
    return float(method.update({"w": torch.ones((), dtype=torch.float64)})["w"])


def test_the_state_follows_what_was_ingested():
    """By hand: effects of 0.3, -0.23 and 0; what is believed decides, what is true counts."""
    method = method_of(effects=(0.3, -0.23, 0.0), kappa=2.0)
    e = 0.0
    for believed, true, gain in (
        ([0, 0], [0, 0], 0.3),  # at the set point all is taken
        ([0, 1], [0, 1], -0.23 / 2),  # above it what lowers
        ([1, 1], [0, 1], (0.3 - 0.23) / 2),  # a mistake raises it
        ([0, 2], [1, 0], 0.3 / 2),  # no effect is believed: taken in as well
        ([1] * 4, [1] * 4, -0.23),
        ([1] * 4, [1] * 4, -0.23),
        ([1] * 4, [1] * 4, 0.0),  # below: no more of it
        ([0, 0, 0, 1], [0, 1, 2, 0], (0.3 - 0.23) / 4),
    ):
        e += gain
        assert step(method, believed, true) == pytest.approx(math.exp(2 * e))


def test_the_rate_is_clipped():
    method = method_of(effects=(5.0, -5.0, 5.0), least=0.5, most=3.0)
    assert step(method, [0], [0]) == 3.0
    assert step(method, [1], [1]) == pytest.approx(1.0)
    assert step(method, [1], [1]) == 0.5


def test_who_knows_its_classes_keeps_the_rate_and_who_mistakes_them_does_not():
    rng, spread = np.random.default_rng(0), []
    for error in (0.0, 0.6):
        method, rates = method_of(effect=0.05, classes=2), []
        for _ in range(400):
            true = rng.integers(0, 2, 8)
            wrong = rng.random(8) < error
            rates.append(step(method, np.where(wrong, 1 - true, true).tolist(), true.tolist()))
        spread.append(max(abs(math.log(r)) for r in rates))
    assert spread[0] <= 0.06 and spread[1] > 0.5


def test_controls_do_not_listen():
    constant, chance = (method_of(control=c, effect=0.2) for c in ("constant", "random"))
    assert {step(constant, [0, 1], [1, 1]) for _ in range(20)} == {1.0}
    rates = [step(chance, [0, 1], [0, 0]) for _ in range(20)]
    again = method_of(control="random", effect=0.2)
    assert rates == [step(again, [1, 1], [0, 0]) for _ in range(20)]  # beliefs do not matter
    gains = np.round(np.diff(np.log(np.minimum(rates, 9.99))), 6)
    assert set(gains[:8]) <= {0.0, 0.1, 0.2} and len(set(gains[:8])) > 1


# ---- within runs --------------------------------------------------------------------------------


def data():
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32)
    return checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "c")


def learner_of(
    *methods,
    optimiser=None,
    reveal=DOMAIN_IL,
    trainer=None,
    network=SPIKING,
    encoder=None,
    loss=None,
):
    return Learner(
        stream=permuted(data(), experiences=2, seed=1).with_reveal(reveal),
        network=network.build((8,), 3),
        encoder=encoder or Direct(steps=3),
        loss=loss,
        trainer=trainer or Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.1),
        plan=TrainPlan(batch=6, epochs=3),
        seeds=Seeds(4),
        device=CPU,
    )


def finished(learner):
    rows = [row for tick in learner.ticks() for row in tick.rows]
    return rows, {n: p.detach().clone() for n, p in learner.network.weights().items()}


@pytest.mark.parametrize(
    "optimiser", [Sgd(lr=0.1, momentum=0.9), Adam(lr=0.01), ScheduleFreeSgd(lr=0.5)]
)
@pytest.mark.parametrize("spec", [Need(effect=0.0), Need(control="constant"), Need(kappa=0.0)])
def test_without_effect_it_is_a_plain_run_to_the_last_bit(optimiser, spec):
    plain = finished(learner_of(Finetune(), optimiser=optimiser))
    nothing = finished(learner_of(spec, optimiser=optimiser))
    assert plain[0] == [row for row in nothing[0] if row["metric"] != "need"]
    assert all(torch.equal(p, nothing[1][n]) for n, p in plain[1].items())


def test_what_averages_steps_is_refused():
    """The average brings earlier updates once more: they would be multiplied again."""
    for spec in (Need(), Need(control="random"), Need(effects=(0.0, 0.1, 0.0))):
        with pytest.raises(PairingError, match="'schedule_free_sgd' averages.*'need' multiplies"):
            learner_of(spec, optimiser=ScheduleFreeSgd(lr=0.5)).prepare()


def test_the_rate_is_that_of_sgd():
    """A rate of three times the optimiser's, by its bounds, is SGD with that rate."""
    spec = Need(effects=(1e3, 1e3, 1e3), control="random", most=3.0)
    plain = finished(learner_of(Finetune(), optimiser=Sgd(lr=0.3)))[1]
    found = finished(learner_of(spec, optimiser=Sgd(lr=0.1)))[1]
    for name, p in plain.items():
        torch.testing.assert_close(found[name], p, rtol=1e-3, atol=1e-4)


def test_hlop_holds_back_what_a_high_rate_moves():
    learner, weights = learner_of(Need(effect=0.5), Hlop(rows=((8, 3),))), []
    for tick in learner.ticks():
        if tick.kind == "event":
            weights.append(learner.network.weights()["hidden1.weight"].detach().clone())
    assert torch.allclose(weights[1], weights[2], atol=1e-5)
    assert not torch.allclose(weights[0], weights[1], atol=1e-2)


def test_without_boundaries_and_what_is_recorded():
    rows, _ = finished(learner_of(Need(effect=0.3), reveal=TASK_FREE))
    said = [row["value"] for row in rows if row["metric"] == "need"]
    json.dumps(said, allow_nan=False)
    assert [len(each["rate"]) for each in said] == [2, 1]  # of 12 steps each, every tenth
    assert len({rate for each in said for rate in each["rate"]}) > 1


@pytest.mark.parametrize("control", ["none", "random"])
def test_a_checkpoint_has_all_there_is(control):
    spec, half, rows = Need(effect=0.3, control=control), None, []
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


def test_impossible_values_are_refused():
    with pytest.raises(ConfigError, match="got 2 effects for 3 classes"):
        method_of(effects=(1.0, -1.0))
    with pytest.raises(ConfigError, match="least"):
        Need(least=2.0)
    with pytest.raises(ConfigError, match="most"):
        Need(most=0.5)
    with pytest.raises(ConfigError, match="effect"):
        Need(effect=-0.1)


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("name", TRAINERS.names())
def test_it_believes_what_the_network_answers_whatever_the_trainer_runs_beside(name, monkeypatch):
    """Local readouts and perturbed passes have outputs too, and losses of them."""
    kind, wanted, believed = TRAINERS.get(name), [], []
    options = {"vogels": {"synapses": ("*",)}, "tbptt": {"steps": 2}}.get(name, {})
    parts, update = kind.parts, _Need.update

    def noted(self, call):
        wanted.append(call.network(call.x).logits.argmax(1))
        yield from parts(self, call)

    def looked(self, made):
        believed.append(self._seen[0])
        return update(self, made)

    monkeypatch.setattr(kind, "parts", noted)
    monkeypatch.setattr(_Need, "update", looked)
    network = replace(SPIKING, readout="mean_current")
    learner = learner_of(
        Need(),
        trainer=kind(**options),
        network=network,
        encoder=Rate(steps=4),
        loss=StepCrossEntropy(),
    )
    try:
        finished(learner)
    except PairingError as error:
        assert name in ("dsr", "eventprop"), error
        pytest.skip(f"{name} takes no loss of steps, or no such neuron")
    assert len(believed) == len(wanted) > 10
    assert torch.equal(torch.stack(believed), torch.stack(wanted))
    assert len(torch.stack(wanted).unique()) > 1


def test_parts_of_a_step_that_change_weights_take_in_their_share(monkeypatch):
    """A sample is ingested once, whether weights change at its end or in each of its steps."""
    method = method_of(effects=(0.3, 0.3, 0.3), control="random", kappa=0.0)
    monkeypatch.setattr(method, "_ingested", lambda believed, true: 0.3)
    monkeypatch.setattr(Nobody, "portion", lambda host: 0.25)
    for _ in range(4):
        step(method, [0], [0])
    assert float(method._state) == pytest.approx(0.3)


def test_it_does_not_multiply_steps_that_others_take_by_themselves():
    for measure in (Ewc, Si, L2):
        with pytest.raises(PairingError, match="step='implicit'.*'need' would multiply that"):
            learner_of(measure(step="implicit"), Need())
        learner_of(measure(), Need())
    for method in (BennaFusi(), Tacos(), Mesu()):
        with pytest.raises(PairingError, match="'.*'need' would multiply that; leave one"):
            learner_of(method, Need())
    for method in (BennaFusi(g=0.0), Tacos(beta=0.0)):
        learner_of(method, Need())


def test_hidden_labels_are_refused():
    """Without them nothing is ingested, and the rate would stay where it is, unsaid."""
    stream = permuted(data(), experiences=2, seed=1).with_reveal(DOMAIN_IL & ~Reveal.LABELS)
    with pytest.raises(PairingError, match="'need' needs labels"):
        check_pairings(stream, Vogels(readout="none"), [Need()])
