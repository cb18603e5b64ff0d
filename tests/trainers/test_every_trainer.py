"""What every registered trainer must do, on every kind of layer it is defined for."""

from __future__ import annotations

import gc
import json
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from spikecl.components import from_table, to_table
from spikecl.continual import Finetune, Hlop
from spikecl.data.arrays import checked
from spikecl.encoding import CrossEntropy, Rate, StepCrossEntropy
from spikecl.errors import ActivityWarning, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    ConvNet,
    Mlp,
    RecurrentNet,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import CUBA, LIF, SynapticIntegrator
from spikecl.neurons.rate import RateIF
from spikecl.optim import Adam, Sgd
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, permuted
from spikecl.trainers import Decolle, Eprop, Ostl, Osttp, Ottt, PerStep, Sltt, Steps
from spikecl.trainers.trainer import Call

T, B, CLASSES = 8, 6, 3
LABELS = torch.arange(B) % CLASSES
CONV = {"channels": (4,), "kernel": 2, "pool": "average"}
BUILDERS = {
    "dense": (SpikingMlp, {"hidden": (12, 9)}, (16,)),
    "conv": (SpikingConvNet, CONV, (5, 5)),
    "recurrent": (SpikingRecurrentNet, {"hidden": (12,)}, (16,)),
    "dense twin": (Mlp, {"hidden": (12, 9)}, (16,)),
    "conv twin": (ConvNet, CONV, (5, 5)),
    "recurrent twin": (RecurrentNet, {"hidden": (12,)}, (16,)),
}
SPIKES = ("eprop", "ottt", "sltt", "ostl", "osttp", "decolle", "eventprop", "dsr", "naca")
SPIKES += ("stdp", "triplet_stdp", "reward_stdp", "vogels")
TWINS = ("dense twin", "conv twin", "recurrent twin")
# a rule is not defined for these kinds; each must say why
REFUSED = {(name, kind) for name in SPIKES for kind in TWINS}
REFUSED |= {("dsr", "recurrent"), ("naca", "recurrent")}
each_trainer = pytest.mark.parametrize("name", TRAINERS.names())
each_kind = pytest.mark.parametrize("kind", list(BUILDERS))
PAIRS = [(n, k) for n in TRAINERS.names() for k in BUILDERS if (n, k) not in REFUSED]
BLIND = ("spsa", "evolution", "forward_gradient")  # they know no error, of the readout neither
each_pair = pytest.mark.parametrize(("name", "kind"), PAIRS)
each_pair_with_errors = pytest.mark.parametrize(
    ("name", "kind"), [pair for pair in PAIRS if pair[0] not in BLIND]
)


def trainer_of(name):
    """A rule as it comes; parts that fit the few steps here."""
    options = {"tbptt": {"steps": 3}, "vogels": {"synapses": ("*",)}}.get(name, {})
    return TRAINERS.get(name)(**options)


def problem(name, kind):
    """A network that suits the rule, its input and its loss."""
    builder, options, shape = BUILDERS[kind]
    options = {**options, "bias": True, "readout": "mean_current"}
    loss = StepCrossEntropy()
    if not kind.endswith("twin"):
        options["neuron"] = LIF(beta=0.6, v_th=0.3)
        if name == "eventprop":
            options |= {"neuron": CUBA(alpha=0.6, beta=0.8, v_th=0.3, reset="zero")}
            options |= {"output": SynapticIntegrator(alpha=0.6, kappa=0.9)}
    if name == "dsr":
        loss, options["readout"] = CrossEntropy(), "mean_rate"
        if not kind.endswith("twin"):
            options["neuron"] = RateIF(v_th=0.5)
    network = builder(**options).build(shape, CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for path, synapse in network.synapses.items():
            synapse.weight.mul_(3 if path != "readout" else 1)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(T, B, *shape, generator=generator) < 0.5).double()
    return network, x, loss


def loss_of(loss, labels=LABELS):
    if not loss.per_step:
        return lambda logits: loss(logits, labels)
    return PerStep(lambda steps: loss(steps, labels), loss.separable)


def solve(name, network, x, loss, **options):
    trainer = trainer_of(name)
    trainer.check(network, x, loss)
    generator = torch.Generator().manual_seed(1)
    return trainer.factors(network, x, loss_of(loss), generator=generator, labels=LABELS, **options)


def gradients(network, made):
    with torch.no_grad():
        return form_gradients(network, made.synapses, made.direct)


@each_pair
def test_who_follows_errors_asks_for_those_of_methods(name, kind):
    network, x, loss = problem(name, kind)
    trainer, asked = trainer_of(name), []
    variables = trainer.variables(network, Seeds(0), x)
    generator = torch.Generator().manual_seed(1)
    call = Call(network, x, loss_of(loss), variables=variables, generator=generator, labels=LABELS)
    call = replace(call, errors=lambda fired, share: asked.append((list(fired), share)) or {})
    list(trainer.parts(call))
    assert bool(asked) is trainer.sends_errors
    if asked:
        assert sum(share for _, share in asked) == pytest.approx(1)
        assert all(names == list(network.layers)[:-1] for names, _ in asked)


@each_trainer
@each_kind
def test_factors_or_the_reason_why_there_are_none(name, kind):
    network, x, loss = problem(name, kind)
    if (name, kind) in REFUSED:
        with pytest.raises(PairingError, match="; "):
            trainer_of(name).check(network, x, loss)
        return
    before = {key: p.detach().clone() for key, p in network.weights().items()}
    held = {key: set(vars(module)) for key, module in network.named_modules()}
    drawn = torch.get_rng_state()
    made = solve(name, network, x, loss)
    assert list(made.synapses) == list(network.synapses)
    found = gradients(network, made)
    for key, gradient in found.items():
        assert gradient.shape == before[key].shape and bool(torch.isfinite(gradient).all()), key
        assert not gradient.requires_grad
    weights = [g for key, g in found.items() if key.endswith("weight") and "readout" not in key]
    assert weights and all(float(g.abs().max()) > 0 for g in weights)
    for path, factor in made.synapses.items():
        rows = factor.transmitted
        assert rows.dim() == 2 and rows.shape[1] == network.synapses[path].fan_in
        with torch.no_grad():
            assert float(rows.abs().max()) > 0
    assert float(found["readout.weight"].abs().max()) > 0
    assert made.logits.shape == (B, CLASSES) and bool(torch.isfinite(made.loss))
    assert all(p.grad is None and torch.equal(p, before[k]) for k, p in network.weights().items())
    assert {key: set(vars(module)) for key, module in network.named_modules()} == held
    assert torch.equal(torch.get_rng_state(), drawn)


@each_pair
def test_the_same_call_gives_the_same_bits(name, kind):
    network, x, loss = problem(name, kind)
    variables = trainer_of(name).variables(network, Seeds(5), x)
    copies = {key: value.clone() for key, value in variables.items()}
    a, b = (
        gradients(network, solve(name, network, x, loss, variables=variables)) for _ in range(2)
    )
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(variables[key], copies[key]) for key in copies)


@each_trainer
def test_it_can_be_written_down(name):
    trainer = trainer_of(name)
    assert from_table(type(trainer), to_table(trainer), name) == trainer
    assert trainer.name == name and all(trainer.traits)


@each_pair_with_errors
def test_readouts_learn_by_their_own_error(name, kind):
    """Every rule that knows its error forms the readout's gradient from it, by autograd's."""
    network, x, loss = problem(name, kind)
    weight = network.weights()["readout.weight"].detach().requires_grad_()
    output = network(x, weights={**network.weights(), "readout.weight": weight})
    given = output.steps if loss.per_step else output.logits
    (expected,) = torch.autograd.grad(loss(given, LABELS), [weight])
    made = solve(name, network, x, loss)
    found = gradients(network, made)["readout.weight"]
    if name == "eventprop":  # its clock has a readout's step in another place, to O(dt)
        cosine = functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
        assert float(cosine) > 0.99
    else:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def learner_of(name, optimiser):
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 16))[y] + 0.1 * rng.standard_normal((42, 16)), 0, 1)
    x = x.astype(np.float32)
    data = checked(
        {"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "toy"
    )
    network, _, loss = problem(name, "dense")
    return Learner(
        stream=permuted(data, experiences=2, seed=1).with_reveal(DOMAIN_IL),
        network=network.float(),
        encoder=Rate(steps=4),
        trainer=trainer_of(name),
        methods=(Finetune(),),
        optimiser=optimiser,
        plan=TrainPlan(batch=5, epochs=2),
        seeds=Seeds(4),
        device=torch.device("cpu"),
        loss=loss,
        initial="given",
    )


def frozen(learner):
    tensors, values = split(learner.state_dict())
    return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))


@each_trainer
@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
def test_a_run_goes_on_where_it_stopped(name):
    optimiser = Adam(lr=0.01) if name != "bcm" else Sgd(lr=0.01)
    learner, states = learner_of(name, optimiser), []
    for _ in learner.ticks():
        states.append(frozen(learner))
    for at in (2, len(states) // 2):
        again = learner_of(name, optimiser)
        again.load_state_dict(states[at])
        for _ in again.ticks():
            pass
        (a, va), (b, vb) = split(frozen(again)), split(states[-1])
        assert va == vb and all(torch.equal(a[key], b[key]) for key in b), name


# ---- memory -------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """Notes the most bytes that tensors made under it held at any one time."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(part, torch.Tensor):
                storage = part.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known.add(key)
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, key, size)
        return made

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak(trainer, steps):
    """Most bytes at a time while the input is made step by step, gradients added up."""
    network, _, loss = problem("ottt", "dense")

    def make():
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            yield (torch.rand(B, 16, generator=generator) < 0.5).double()

    variables = trainer.variables(network, Seeds(0), torch.zeros(1, B, 16).double())
    call = Call(network, Steps(steps, make), loss_of(loss), variables=variables, labels=LABELS)
    total: dict[str, torch.Tensor] = {}
    gc.collect()
    with Live() as live, torch.no_grad():
        for part in trainer.parts(call):
            for key, gradient in form_gradients(network, part.synapses, part.direct).items():
                total[key] = total[key] + gradient if key in total else gradient
    return live.most


@pytest.mark.parametrize(
    "trainer",
    [Ottt(), Sltt(), Eprop(), Eprop(reset="kept"), Ostl(), Osttp(), Decolle()],
    ids=lambda trainer: f"{trainer.name}{'-kept' * (getattr(trainer, 'reset', '') == 'kept')}",
)
def test_memory_of_windows_does_not_grow_with_the_steps(trainer):
    few, many = (peak(replace(trainer, window=1), steps) for steps in (50, 500))
    assert many <= 1.02 * few
    assert peak(trainer, 500) > 4 * peak(trainer, 50)


GENTLE = {"vogels": {"target": 200.0}}  # its inhibition would silence the layers


class Doubled(Rate):
    """In double precision."""

    def encode(self, x, statistics, generator):
        return super().encode(x, statistics, generator).double()


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize(("name", "kind"), [p for p in PAIRS if p[1] in ("dense", "recurrent")])
def test_updates_stay_out_of_what_hlop_protects(name, kind):
    """``dW H^T = 0`` for all that moves in a second task, under Adam, whatever the rule."""
    network, _, loss = problem(name, kind)
    draw = np.random.default_rng(7)
    data = {f"x_{part}": draw.random((24, 16), np.float32) for part in ("train", "test")}
    data |= {f"y_{part}": np.arange(24) % CLASSES for part in ("train", "test")}
    learner = Learner(
        stream=permuted(checked(data, "c"), experiences=2, seed=1),
        network=network,
        encoder=Doubled(steps=T),
        trainer=replace(trainer_of(name), **GENTLE.get(name, {})),
        methods=[Hlop(rows=(5,))],
        optimiser=Adam(lr=0.01),
        plan=TrainPlan(batch=6, epochs=1),
        seeds=Seeds(3),
        device=torch.device("cpu"),
        loss=loss,
        initial="given",
    )
    rows, old = {}, {}
    for tick in learner.ticks():
        if tick.kind == "event" and learner.at.event == 1:
            learner.network.double()
            old = {n: w.detach().clone() for n, w in network.weights().items()}
        if tick.kind in ("step", "window") and learner.at.event == 1 and not rows:
            hlop = learner.methods.methods["hlop"].protection
            rows = {path: hlop.outside(path).basis.clone() for path in network.synapses}
    now, moving = network.weights(), 0
    for path, basis in rows.items():
        step = (now[f"{path}.weight"] - old[f"{path}.weight"]).detach()
        moving += bool(step.any())
        assert len(basis) == 5
        assert float((step @ basis.T).norm()) <= 1e-10 * max(float(step.norm()), 1e-12), path
    assert moving >= 1 and len(rows) == len(network.synapses)


def test_a_rate_that_neurons_cannot_have_is_warned_of():
    network, x, loss = problem("eprop", "dense")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Eprop(rate_cost=1.0, rate_target=0.9).check(network, x, loss)
        network = SpikingMlp(hidden=(5,), neuron=LIF(refractory=3), readout="mean_current")
        network = network.build((16,), CLASSES)
        Eprop(rate_target=0.9).check(network, x, loss)
        Eprop(rate_cost=1.0, rate_target=0.25).check(network, x, loss)
    with pytest.warns(
        ActivityWarning, match="'hidden1' cannot reach trainer.eprop.rate_target=0.9"
    ):
        Eprop(rate_cost=1.0, rate_target=0.9).check(network, x, loss)
