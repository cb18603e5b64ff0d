"""Layers that say nothing, or always the same, are named once, and nothing breaks."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from spikecl.encoding import Direct, StepMse
from spikecl.errors import ActivityWarning
from spikecl.learner import Learner, TrainPlan
from spikecl.learner.activity import Activity
from spikecl.networks import Cells, Layer, Linear, Mlp, Network, SpikingMlp
from spikecl.neurons import LIF, Rectified
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, Tbptt

N, T, CLASSES = 5, 4, 3
NEVER, ALWAYS = LIF(v_th=1e6), LIF(v_th=-1e6)


def stream_of(*sizes):
    sets = []
    for i, size in enumerate(sizes):
        x = torch.rand(size, N, generator=torch.Generator().manual_seed(i))
        sets.append(Samples((Part(x, torch.arange(size) % CLASSES, torch.arange(size)),)))
    events = [Experience(i, s, (0, 1, 2), task=i) for i, s in enumerate(sets)]
    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, DOMAIN_IL, CLASSES, (N,), len(events), lambda i: events[i], tests)


def network_of(*neurons, output=None):
    layers, source, size = {}, "input", N
    for k, neuron in enumerate(neurons):
        name = f"layer{k}"
        layers[name] = Layer(Linear(size, 6), Cells(neuron), inputs=(source,))
        source, size = name, 6
    cells = None if output is None else Cells(output)
    layers["out"] = Layer(Linear(size, CLASSES, bias=True), cells, inputs=(source,))
    return Network(layers, mean_first=output is None)


def learner_of(network, *, trainer=None, loss=None, epochs=3):
    return Learner(
        stream=stream_of(24, 24),
        network=network,
        encoder=Direct(steps=T),
        trainer=trainer or Bptt(),
        methods=(),
        optimiser=Sgd(lr=0.1),
        plan=TrainPlan(batch=4, epochs=epochs),
        seeds=Seeds(4),
        device=torch.device("cpu"),
        loss=loss,
    )


def said(learner, *, ticks=None):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        rows = [row for tick in (ticks or learner.ticks()) for row in tick.rows]
    assert all(issubclass(w.category, ActivityWarning) for w in found)
    json.dumps(rows, allow_nan=False)
    for name, weight in learner.network.weights().items():
        assert bool(weight.isfinite().all()), name
    return [str(w.message) for w in found]


TRAINERS = [
    Bptt(),
    Bptt(checkpoint=3),
    Tbptt(steps=3),
    Bptt(feedback="direct"),
    Bptt(feedback="sign"),
]


@pytest.mark.parametrize("trainer", TRAINERS, ids=repr)
def test_a_silent_layer_is_named_once_with_those_behind_it(trainer):
    network = network_of(LIF(beta=0.8, v_th=0.2), NEVER, LIF(v_th=0.2))
    found = said(learner_of(network, trainer=trainer))
    assert [m.split("'")[1] for m in found] == ["layer1", "layer2"]
    assert all("silent" in m and "threshold" in m for m in found)


@pytest.mark.parametrize("trainer", TRAINERS, ids=repr)
def test_a_layer_that_always_fires_is_named_once(trainer):
    found = said(learner_of(network_of(ALWAYS, LIF(v_th=0.2)), trainer=trainer))
    assert [m.split("'")[1] for m in found] == ["layer0"]
    assert "fired in every step" in found[0]


def test_readouts_that_spike_are_looked_at_too():
    network = network_of(LIF(beta=0.8, v_th=0.2), output=NEVER)
    found = said(learner_of(network, loss=StepMse()))
    assert [m.split("'")[1] for m in found] == ["out"]


def test_layers_that_are_well_say_nothing():
    assert said(learner_of(network_of(LIF(beta=0.8, v_th=0.2), LIF(v_th=0.1)))) == []
    assert said(learner_of(Mlp(hidden=(8,)).build((N,), CLASSES))) == []


def test_a_unit_that_does_not_spike_may_be_one_but_not_silent():
    activity = Activity(network_of(Rectified(), Rectified()))
    activity.add({"layer0": torch.ones(()), "layer1": torch.zeros(())})
    with pytest.warns(ActivityWarning, match="'layer1' has been silent") as found:
        activity.look()
    assert len(found) == 1


@pytest.mark.parametrize("kinds", [(0.0, 1e-6), (1.0, 1 - 1e-2)])
def test_one_spike_or_one_pause_in_many_parts_is_enough(kinds):
    activity = Activity(network_of(LIF()))
    for k in range(40):
        activity.add({"layer0": torch.tensor(kinds[k == 17])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        activity.look()
    for _ in range(40):  # since then, it is as bad as can be
        activity.add({"layer0": torch.tensor(kinds[0])})
    with pytest.warns(ActivityWarning, match="'layer0'"):
        activity.look()
    activity.add({"layer0": torch.tensor(kinds[0])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        activity.look()
        activity.look()  # nothing came since


def resumed(make, place, ticks):
    """Stop at a place, go on in a new learner; return what each said."""
    first = make()
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        for tick in first.ticks():
            if tick.kind in ticks and (tick.position.event, tick.position.epoch) == place:
                break
        tensors, values = split(first.state_dict())
    state = join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
    second = make()
    second.load_state_dict(state)
    return [str(w.message) for w in before], said(second)


@pytest.mark.parametrize("neuron", [NEVER, ALWAYS])
@pytest.mark.parametrize(
    ("place", "kind", "expected"),
    [((0, 0), "step", (0, 1)), ((0, 1), "step", (1, 0)), ((1, 2), "window", (1, 0))],
)
def test_after_a_resume_no_one_is_named_again(neuron, place, kind, expected):
    make = lambda: learner_of(network_of(neuron))  # noqa: E731
    before, after = resumed(make, place, (kind,))
    assert (len(before), len(after)) == expected


@pytest.mark.parametrize(
    ("before", "behind", "bad"),
    [(0.5, 0.0, False), (0.0, 0.0, True), (1.0, 1.0, True), (0.5, 0.5, False), (1.0, 0.0, False)],
)
def test_sums_go_on_after_a_resume(before, behind, bad):
    """A look sees the mean of what came before the stop and behind it."""
    network = network_of(LIF())
    first = Activity(network)
    first.add({"layer0": torch.tensor(before)})
    tensors, values = split(first.state_dict())
    second = Activity(network)
    second.load_state_dict(join(tensors, json.loads(json.dumps(values))))
    second.add({"layer0": torch.tensor(behind)})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        second.look()
    assert len(found) == bad


def test_a_network_that_says_nothing_at_all_does_not_become_nan():
    spec = SpikingMlp(hidden=(6, 6), neuron=NEVER)
    learner = learner_of(spec.build((N,), CLASSES))
    found = said(learner)
    assert len(found) == 2
    assert not torch.isnan(torch.tensor(learner.scores.matrices()[0].final)).any()
