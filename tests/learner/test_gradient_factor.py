"""Rules that give gradients and no rows, with methods that work on rows."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from spikecl.components import component
from spikecl.continual import Finetune, Hlop
from spikecl.encoding import Direct, StepCrossEntropy
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import GradientFactor, SpikingConvNet, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, Ottt, Trainer

T, CLASSES, SIDE = 4, 3, 6
QUICK = LIF(beta=0.8, v_th=0.1)
NETWORKS = {
    "dense": SpikingMlp(hidden=(8, 6), neuron=QUICK, bias=True),
    "conv": SpikingConvNet(channels=(3,), kernel=3, pool_size=1, neuron=QUICK, bias=True),
}
NETWORKS |= {
    f"{name}, each step": replace(spec, readout="mean_current") for name, spec in NETWORKS.items()
}


@component
class Plain(Trainer):
    """BPTT that keeps its rows for itself."""

    traits: ClassVar = Bptt.traits

    def parts(self, call):
        for made in Bptt().parts(call):
            yield made._replace(
                synapses={
                    path: GradientFactor(
                        factor.gradient(),
                        factor.bias_gradient(),
                        lambda factor=factor: factor.transmitted,
                        "plain",
                    )
                    for path, factor in made.synapses.items()
                }
            )


def learned(trainer, method, network, optimiser, *, experiences=2, loss=None):
    sets = []
    for i in range(experiences):
        x = torch.rand(24, SIDE, SIDE, generator=torch.Generator().manual_seed(i))
        sets.append(Samples((Part(x, torch.arange(24) % CLASSES, torch.arange(24)),)))
    events = [Experience(i, s, (0, 1, 2), task=i) for i, s in enumerate(sets)]
    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    stream = Stream(
        "made", {}, 0, DOMAIN_IL, CLASSES, (SIDE, SIDE), experiences, lambda i: events[i], tests
    )
    learner = Learner(
        stream=stream,
        network=NETWORKS[network].build((SIDE, SIDE), CLASSES),
        encoder=Direct(steps=T),
        trainer=trainer,
        methods=(method,),
        optimiser=optimiser,
        plan=TrainPlan(batch=6, epochs=2),
        seeds=Seeds(4),
        device=torch.device("cpu"),
        loss=loss,
    )
    rows = [row for tick in learner.ticks() for row in tick.rows]
    return rows, {n: p.detach().clone() for n, p in learner.network.weights().items()}


@pytest.mark.parametrize("network", ["dense", "conv"])
@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), Adam(lr=0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("method", [Finetune(), Hlop(rows=(2,)), Hlop(rows=(0.5,))], ids=repr)
def test_it_learns_what_rows_would_have_taught(network, optimiser, method):
    rows, weights = learned(Plain(), method, network, optimiser)
    expected, wanted = learned(Bptt(), method, network, optimiser)
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
    kinds = [(row["phase"], row["metric"]) for row in rows]
    assert kinds == [(row["phase"], row["metric"]) for row in expected]


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("network", ["dense", "conv"])
def test_before_anything_is_protected_a_projection_changes_nothing(faithful, network):
    """Nor what a rule with traces makes of an input that is always 1: the bias."""
    ends = [
        learned(
            Ottt(window=2),
            method,
            f"{network}, each step",
            Sgd(lr=0.1),
            experiences=1,
            loss=StepCrossEntropy(),
        )[1]
        for method in (Finetune(), Hlop(rows=(2,), faithful=faithful))
    ]
    for name, weight in ends[0].items():
        torch.testing.assert_close(
            ends[1][name], weight, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
