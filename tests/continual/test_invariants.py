"""What has to hold for every registered method, whatever it does (specs/ann_methods.md, 6.7).

Relabelling: if classes get other numbers, the same hidden weights and a permuted readout come out.
Parity: spiking neurons of one step, without leak and with a ramp in place of the spike, are
rectified units, and whatever a method makes of those it makes of them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch

from spikecl.components import component
from spikecl.continual import Method, MethodSpec
from spikecl.continual.importance import ewc
from spikecl.encoding import Encoder
from spikecl.learner import Learner, TrainPlan
from spikecl.learner import learner as loop
from spikecl.networks import Mlp, SpikingMlp
from spikecl.neurons import IF, LIF, SigmaDelta, Smooth, Surrogate
from spikecl.optim import Adam, Sgd, adam
from spikecl.registry import METHODS
from spikecl.seeds import Seeds
from spikecl.storage import split
from spikecl.streams import CLASS_IL, DOMAIN_IL, TASK_IL, Experience, Reveal, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

pytestmark = pytest.mark.filterwarnings("ignore:layer .* cannot reach")

CLASSES, N, HIDDEN, EACH, STEPS = 4, 8, (7, 6), 14, 2  # 4 is the readout's size alone
ALL = tuple(range(CLASSES))
RENAMED = torch.tensor([2, 0, 3, 1])  # class c is called RENAMED[c]

# methods about hidden weights behind binary synapses, and about thresholds
BINARY = ("bimu", "cascade", "laborieux")
THRESHOLDS = ("threshold",)

# methods about norms, whose gain starts at the way from rest to threshold: a ramp has none
NORMS = ("task_norms",)

# methods that learn what plain training learns, bit for bit
PLAIN = ("finetune", "geometry", *NORMS)

# strong enough to be seen in a run of a few steps
SETTINGS = {
    "benna_fusi": {"g": 0.2},
    "er": {"capacity": 12, "batch": 4},
    "ewc": {"strength": 2.0},
    "gating": {"share": 0.5},
    "l2": {"strength": 0.5},
    "mas": {"strength": 0.1},
    "need": {"effects": (0.3, -0.2, 0.1, -0.4)},
    "scaling": {"rate": 0.05},
    "si": {"strength": 1.0},
    "threshold": {"rate": 0.05},
}

# what else has to do with classes or labels
VARIANTS = {
    "bimu votes": ("bimu", {"tests": 2, "samples": 2}),
    "er balanced": ("er", {"capacity": 9, "policy": "balanced", "draw": "balanced"}),
    "er ring": ("er", {"capacity": 9, "policy": "ring"}),
    "ewc empirical": ("ewc", {"strength": 2.0, "fisher": "empirical", "mode": "online"}),
    "finetune restart": ("finetune", {"restart": True}),
    "hlop faithful": ("hlop", {"faithful": True}),
    "joint wait": ("joint", {"restart": False, "wait": 1}),
    "mesu votes": ("mesu", {"tests": 2, "samples": 2}),
    "ncl divergence": ("ncl", {"nearest": "divergence"}),
    "need random": ("need", {"effects": (0.3, -0.2, 0.1, -0.4), "control": "random"}),
    "ogd all": ("ogd", {"logits": "all", "samples": 3}),
    "ogd average": ("ogd", {"logits": "average"}),
    "tacos probability": ("tacos", {"updates": "probability"}),
    "two_sided currents": ("two_sided", {"output": "currents"}),
}
KINDS = {name: (name, SETTINGS.get(name, {})) for name in METHODS.names()} | VARIANTS

# They draw numbers for the weights of the readout; those for a class go along with it. So no method
# is exempt from relabelling.
DRAWING = ("bimu", "bimu votes", "cascade", "mesu", "mesu votes", "tacos probability")

each_kind = pytest.mark.parametrize("kind", KINDS)
kinds_of_both = pytest.mark.parametrize(
    "kind", [kind for kind, (name, _) in KINDS.items() if name not in THRESHOLDS + NORMS]
)


# ---- material -----------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What a stream shows, the classes of its experiences, and whose outputs compete."""

    reveal: Reveal
    classes: tuple[tuple[int, ...], ...]
    head: str = "single"


PLANS = {
    "domain": Plan(DOMAIN_IL, (ALL, ALL, ALL)),
    "task": Plan(TASK_IL, ((0, 1), (2, 3))),
    "class": Plan(CLASS_IL, ((0, 1), (1, 2), (2, 3, 0)), "growing"),
}


@component
class Ramp(Surrogate):
    """``max(v - v_th, 0)``, in place of a spike, and its derivative."""

    def __call__(self, x):
        return (x > 0).to(x.dtype)

    def primitive(self, x):
        return torch.relu(x)


NETWORKS = {
    "spiking": (SpikingMlp, {"neuron": LIF(beta=0.5, v_th=0.1)}),
    "ordinary": (Mlp, {}),
    "ramp": (SpikingMlp, {"neuron": IF(v_th=0.0, surrogate=Smooth(Ramp()))}),
    "ordinary without bias": (Mlp, {"bias": False}),
    "changes": (SpikingMlp, {"neuron": SigmaDelta(v_th=0.0), "bias": False}),
}
TWINS = [("ramp", "ordinary"), ("changes", "ordinary without bias")]


class Double(Encoder):
    """The input in float64, shifted by one feature from step to step."""

    def __init__(self, steps):
        self.steps = steps

    def encode(self, x, statistics, generator):
        return torch.stack([x.double().roll(step, -1) for step in range(self.steps)])


def samples(seed, classes, size=EACH):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(CLASSES, N, generator=generator)
    y = torch.tensor(classes)[torch.arange(size) % len(classes)]
    x = 2 * centres[y] + torch.rand(size, N, generator=generator) - 1
    return Samples((Part(x, y, 100 * seed + torch.arange(size)),))


def stream_of(plan, reveal, renamed=None):
    """Return the stream of a plan, with classes called by other numbers if those are given."""

    def called(classes):
        return classes if renamed is None else tuple(sorted(renamed[list(classes)].tolist()))

    def labelled(found):
        (part,) = found.parts
        y = part.y if renamed is None else renamed[part.y]
        return Samples((Part(part.x, y, part.uid),))

    events, tests = [], {}
    for i, classes in enumerate(plan.classes):
        events.append(Experience(i, labelled(samples(1 + i, classes)), called(classes), task=i))
        tests[f"task{i}"] = EvalSet(labelled(samples(1 + i, classes, 24)), called(classes), (i,))
    made = (CLASSES, (N,), len(events), events.__getitem__, tests)
    return Stream("made", {}, 0, reveal, *made)


registered = cache(METHODS.get)  # which looks through all installed packages


def spec_of(kind, renamed=None):
    """Return the description of a method; what it has for each class goes along with the class."""
    if isinstance(kind, MethodSpec):
        return kind
    name, options = KINDS[kind]
    if renamed is not None and "effects" in options:
        effects = [options["effects"][c] for c in RENAMED.argsort().tolist()]
        options = options | {"effects": tuple(effects)}
    return registered(name)(**options)


def options_for(kind):
    """Return what a method asks of a network."""
    name = KINDS[kind][0] if isinstance(kind, str) else ""
    if name in BINARY:
        return {"binary": "fixed"}
    if name in NORMS:
        return {"norm": "batch"}
    return {"learns": ("v_th",), "per_neuron": True} if name in THRESHOLDS else {}


def finished(
    kind, plan, network, *, steps=STEPS, renamed=None, options=None, needs=None, optimiser=None
):
    """Return the learner at the end of a run; a method asks for options and needs of its own."""
    spec, shown, (build, common) = spec_of(kind, renamed), PLANS[plan], NETWORKS[network]
    options = options_for(kind) if options is None else dict(options)
    options = {"hidden": HIDDEN, "bias": True, **common, **options}
    reveal = shown.reveal | (spec.needs if needs is None else needs)
    learner = Learner(
        stream=stream_of(shown, reveal, renamed),
        network=build(**options).build((N,), CLASSES).double(),
        encoder=Double(steps),
        trainer=Bptt(),
        methods=(spec,),
        optimiser=optimiser or Sgd(lr=0.2),
        plan=TrainPlan(batch=5, epochs=2),
        seeds=Seeds(3),
        device=torch.device("cpu"),
        head=shown.head,
    )
    for _ in learner.ticks():
        pass
    return learner


def weights_of(learner):
    return {name: p.detach() for name, p in learner.network.weights().items()}


def assert_close(found, expected):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-9, msg=lambda said, name=name: f"{name}: {said}"
        )


def assert_same_accuracies(a, b):
    for one, other in zip(a.scores.matrices(), b.scores.matrices(), strict=True):
        np.testing.assert_array_equal(one.values, other.values)


@cache
def plain_weights(plan, network, steps, options, needs):
    """Return what plain training learns from a stream, and on a network, as a method has them."""
    asked = {"steps": steps, "options": options, "needs": needs}
    return weights_of(finished("finetune", plan, network, **asked))


def assert_acts(kind, learner, plan, network, *, steps=STEPS):
    """What does nothing cannot be wrong: but for a few, methods learn something else than plain."""
    options = tuple(options_for(kind).items())
    plain = plain_weights(plan, network, steps, options, spec_of(kind).needs)
    same = all(torch.equal(w, plain[name]) for name, w in weights_of(learner).items())
    assert same == (kind in PLAIN)


# ---- relabelling --------------------------------------------------------------------------------


def moved(values, dim=0):
    """Return what belongs to classes in the order of their other numbers."""
    return values.index_select(dim, RENAMED.argsort())


def along(draw):
    """Return a way to draw numbers of which those for the readout go along with their classes."""

    def drawn(*size, **options):
        values = draw(*size, **options)
        for shape, dim in (((CLASSES, HIDDEN[-1]), -2), ((CLASSES,), -1)):
            if values.shape[dim:] == shape:
                return moved(values, dim)
        return values

    return drawn


def relabelled(kind, plan, optimiser=None):
    """Run with classes called by other numbers, from a readout that is permuted alike.

    The initial weights are permuted as they are drawn, at the start and where a method begins anew,
    and so is what a method draws for the readout. Labels that EWC draws by the probabilities of
    classes, one after the other, it draws by those in the order of the other run.
    """
    initialise, rand, randn, labels = loop.initialise, torch.rand, torch.randn, ewc._Run._drawn

    @torch.no_grad()
    def permuted(network, seeds):
        initialise(network, seeds)
        for name, p in network.weights().items():
            if name.startswith("readout."):
                p.copy_(moved(p))

    def called(self, seen, draws):
        back = seen._replace(logits=lambda outputs: seen.logits(outputs)[:, RENAMED])
        return RENAMED[labels(self, back, draws)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "initialise", permuted)
        patch.setattr(ewc._Run, "_drawn", called)
        if kind in DRAWING:
            patch.setattr(torch, "rand", along(rand))
            patch.setattr(torch, "randn", along(randn))
        return finished(kind, plan, "spiking", renamed=RENAMED, optimiser=optimiser)


def assert_permuted(a, b):
    """The second run has the hidden weights of the first, and its readout by other numbers."""
    found, expected = weights_of(b), weights_of(a)
    for name in expected:
        if name.startswith("readout."):
            expected[name] = moved(expected[name])
    assert_close(found, expected)
    assert_same_accuracies(a, b)


@pytest.mark.parametrize("plan", PLANS)
@each_kind
def test_relabelled_classes_permute_the_readout(kind, plan):
    learner = finished(kind, plan, "spiking")
    assert_permuted(learner, relabelled(kind, plan))
    assert_acts(kind, learner, plan, "spiking")


@each_kind
def test_so_they_do_where_an_optimiser_rescales_each_gradient(kind, monkeypatch):
    """Adam brings out what a projection of plain steps would take away again.

    Its epsilon is larger than its default, behind which rounding may count as a gradient.
    """
    monkeypatch.setattr(adam, "EPSILON", 1e-4)
    learner = finished(kind, "domain", "spiking", optimiser=Adam(lr=0.02))
    assert_permuted(learner, relabelled(kind, "domain", Adam(lr=0.02)))


@component
class Made(MethodSpec):
    """Starts a method of a class."""

    method: type[Method]

    def start(self, context):
        made = self.method()
        made.network = context.network
        return made


class Highest(Method):
    """Classes are taken to come in order: samples of the highest so far count more."""

    highest = 0

    def output_loss(self, loss, logits, batch):
        self.highest = max(self.highest, int(batch.y.max()))
        own = logits.gather(1, batch.y[:, None])[:, 0]
        return loss + 1e-5 * ((batch.y == self.highest) * own.square()).mean()


class First(Method):
    """The output of class 0 learns a little more."""

    def gradients(self, gradients):
        share = torch.ones(CLASSES, 1).double()
        share[0] = 1 + 1e-5
        return {**gradients, "readout.weight": share * gradients["readout.weight"]}


class Odd(Method):
    """Samples of odd classes count a little more."""

    def output_loss(self, loss, logits, batch):
        own = logits.gather(1, batch.y[:, None])[:, 0]
        return loss + 1e-5 * (batch.y % 2 * own.square()).mean()


@pytest.mark.parametrize("method", [Highest, First, Odd])
@pytest.mark.parametrize("plan", PLANS)
def test_what_depends_on_the_number_of_a_class_is_seen(plan, method):
    a, b = finished(Made(method), plan, "spiking"), relabelled(Made(method), plan)
    with pytest.raises(AssertionError, match="(readout|hidden)"):
        assert_permuted(a, b)
    harmless = Made(Method)
    assert_permuted(finished(harmless, plan, "spiking"), relabelled(harmless, plan))


# ---- parity -------------------------------------------------------------------------------------


def assert_alike(a, b):
    """Two runs learned the same, hold the same, and answer alike."""
    assert a.network.is_spiking and not b.network.is_spiking
    assert_close(weights_of(a), weights_of(b))
    assert_close(*(split(learner.methods.state_dict())[0] for learner in (a, b)))
    assert_same_accuracies(a, b)


@pytest.mark.parametrize(("spiking", "twin"), TWINS)
@kinds_of_both
def test_one_step_of_ramps_is_the_ordinary_network(kind, spiking, twin):
    learner = finished(kind, "domain", spiking, steps=1)
    assert_alike(learner, finished(kind, "domain", twin, steps=1))
    assert_acts(kind, learner, "domain", spiking, steps=1)


class Spikes(Method):
    """What spikes learns a little less."""

    def gradients(self, gradients):
        share = 1 - 1e-5 * self.network.is_spiking
        return {name: share * gradient for name, gradient in gradients.items()}


@pytest.mark.parametrize(("spiking", "twin"), TWINS)
def test_what_depends_on_spikes_is_seen(spiking, twin):
    a, b = (finished(Made(Spikes), "domain", each, steps=1) for each in (spiking, twin))
    with pytest.raises(AssertionError, match="(readout|hidden)"):
        assert_alike(a, b)


@pytest.mark.parametrize(("network", "steps"), [("spiking", 1), ("ramp", 2)])
def test_what_fires_or_remembers_is_not_the_ordinary_network(network, steps):
    a, b = (finished("finetune", "domain", each, steps=steps) for each in (network, "ordinary"))
    with pytest.raises(AssertionError, match="(readout|hidden)"):
        assert_alike(a, b)
