"""Small streams in double precision, and learners of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from spikecl.encoding import Encoder
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CLASSES, N, STEPS = 3, 6, 2


class Double(Encoder):
    """Two steps of the same input in float64; ``vary`` shifts the second."""

    def __init__(self, *, vary=False):
        self.steps, self.vary = STEPS, vary

    def encode(self, x, statistics, generator):
        x = x.double()
        return torch.stack([x, x.roll(1, -1)]) if self.vary else x.expand(STEPS, *x.shape)


def tasks(*sizes, classes=CLASSES):
    generator = torch.Generator().manual_seed(0)
    common, sets = torch.rand(classes, N, generator=generator) - 0.5, []
    for size in sizes:
        y = torch.arange(size) % classes
        sets.append((2 * (common[y] + torch.rand(size, N, generator=generator) - 0.5), y))
    return sets


def learner_of(sets, *methods, network=None, optimiser=None, batch=4, epochs=2, **options):
    """Return a learner of experiences (x, y), with classes of each where they are given."""
    samples = [Samples((Part(x, y, torch.arange(len(x))),)) for x, y in sets]
    network = network or Mlp(hidden=(5, 4), bias=True)
    count = options.get("classes", CLASSES)
    own = options.get("own") or [tuple(range(count))] * len(sets)
    tests = {f"task{i}": EvalSet(s, own[i], (i,)) for i, s in enumerate(samples) if len(s)}
    make = lambda i: Experience(i, samples[i], own[i], task=i)  # noqa: E731
    head, reveal = options.get("head", "single"), options.get("reveal", DOMAIN_IL)
    outputs = count * (len(sets) if head == "multi" else 1)
    return Learner(
        stream=Stream("made", {}, 0, reveal, count, (N,), len(sets), make, tests),
        network=network if options.get("built") else network.build((N,), outputs).double(),
        encoder=Double(vary=options.get("vary", False)),
        trainer=options.get("trainer", Bptt()),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.2),
        plan=TrainPlan(epochs=epochs, batch=batch),
        seeds=Seeds(5),
        device=torch.device("cpu"),
        head=head,
        loss=options.get("loss"),
    )


def run(learner):
    """Yield the number of each experience when it is over."""
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event:
            yield tick.position.event - 1


def finished(learner):
    for _ in run(learner):
        pass
    return learner


def weights_of(learner):
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


def passed(weights, x):
    """Logits of a network of rectifiers with weights and biases by name."""
    layers = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in weights))
    for layer in layers:
        current = x @ weights[f"{layer}.weight"].T
        if f"{layer}.bias" in weights:
            current = current + weights[f"{layer}.bias"]
        x = current if layer == layers[-1] else current.relu()
    return x


def order(task, size, name="order", epoch=0):
    """The order that a run draws."""
    generator = Seeds(5).generator(name, event=task, epoch=epoch)
    return torch.randperm(size, generator=generator)


@pytest.fixture
def made():
    return SimpleNamespace(
        tasks=tasks,
        learner_of=learner_of,
        run=run,
        finished=finished,
        weights_of=weights_of,
        passed=passed,
        order=order,
    )
