"""Segments against autograd of a plain loop; gates of contexts; who is heard."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Hlop
from spikecl.continual.homeostasis.dendrites import Dendrites
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.si import Si
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingConvNet, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, permuted
from spikecl.trainers import Bptt

CPU = torch.device("cpu")
TWIN = Mlp(hidden=(12, 10))
SPEC = Dendrites(segments=3, active=0.5, rate=0.7, samples=1000)


def data(shape=(8,)):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((60, 8)), 0, 1)
    x = x.astype(np.float32).reshape(60, *shape)
    return checked({"x_train": x[:36], "y_train": y[:36], "x_test": x[36:], "y_test": y[36:]}, "c")


def learner_of(*methods, network=TWIN, shape=(8,), reveal=DOMAIN_IL):
    return Learner(
        stream=permuted(data(shape), experiences=2, seed=1).with_reveal(reveal),
        network=network.build(shape, 3).double(),
        encoder=Whole(steps=2),
        trainer=Bptt(),
        methods=methods,
        optimiser=Sgd(lr=0.2),
        plan=TrainPlan(batch=6, epochs=2),
        seeds=Seeds(4),
        device=CPU,
    )


class Whole(Direct):
    """Intensities as they are, in double precision."""

    def encode(self, x, statistics, generator):
        return x.double().expand(self.steps, *x.shape)


def test_a_plain_loop_with_autograd_for_weights_and_segments():
    learner = learner_of(SPEC)
    w = {n: p.detach().clone() for n, p in learner.network.weights().items()}
    u, start = {}, {}
    for place, (name, n) in enumerate((("hidden1", 12), ("hidden2", 10))):
        generator = Seeds(4).generator("dendrites", epoch=place)
        start[name] = u[name] = torch.randn(n, 3, 8, generator=generator).double()
    for event in range(2):
        loaded = learner.stream[event].train.load()
        x = loaded.x.double().flatten(1)
        c = x.mean(0) / x.mean(0).norm()
        for epoch in range(2):
            generator = Seeds(4).generator("order", event=event, epoch=epoch)
            for rows in torch.randperm(36, generator=generator).split(6):
                leaves = [p.clone().requires_grad_() for p in (*w.values(), *u.values())]
                ws, us = dict(zip(w, leaves)), dict(zip(u, leaves[len(w) :]))
                h = x[rows]
                for name in u:
                    h = torch.relu(h @ ws[f"{name}.weight"].T)
                    a = (us[name] @ c).max(1).values
                    open_ = (a >= a.sort().values[len(a) // 2]).double()
                    h = h * torch.sigmoid(a) * open_
                loss = functional.cross_entropy(h @ ws["readout.weight"].T, loaded.y[rows])
                found = torch.autograd.grad(loss, leaves)
                w = {n: p - 0.2 * g for (n, p), g in zip(w.items(), found)}
                u = {n: p - 0.7 * g for (n, p), g in zip(u.items(), found[len(w) :])}
    for _ in learner.ticks():
        pass
    method = learner.methods.methods["dendrites"]
    for name, p in learner.network.weights().items():
        torch.testing.assert_close(p.detach(), w[name])
    for name, segments in method._segments.items():
        torch.testing.assert_close(segments, u[name])
        assert not torch.allclose(segments, start[name], atol=1e-3)
    gates = [method._gates(k)["hidden1"] for k in range(2)]
    assert all(int((g > 0).sum()) == 6 for g in gates)
    assert not torch.equal(gates[0] > 0, gates[1] > 0)


def test_a_test_is_answered_in_the_nearest_context():
    learner = learner_of(SPEC)
    for _ in learner.ticks():
        pass
    method, net = learner.methods.methods["dendrites"], learner.network
    x = torch.rand(2, 9, 8, dtype=torch.float64)
    which = torch.stack([(x.mean(0) - m).norm(dim=1) for m in method._contexts.means]).argmin(0)
    assert len(which.unique()) == 2
    found = method.predict(x, None)
    for b in range(9):
        w, wanted = net.weights(), 0
        for t in range(2):
            h = x[t, b]
            for name, gate in method._gates(int(which[b])).items():
                h = torch.relu(w[f"{name}.weight"] @ h) * gate
            wanted = wanted + w["readout.weight"] @ h / 2
        torch.testing.assert_close(found[b], wanted.detach())


def test_spikes_and_channels_are_gated_too():
    neuron = LIF(beta=0.5, v_th=0.2)
    for network, shape in (
        (SpikingMlp(hidden=(12,), neuron=neuron, bias=True), (8,)),
        (SpikingConvNet(channels=(8,), kernel=2, pool_size=1, neuron=neuron), (2, 4)),
    ):
        learner = learner_of(SPEC, network=network, shape=shape)
        rows = [row for tick in learner.ticks() for row in tick.rows]
        said = [row["value"] for row in rows if row["metric"] == "dendrites"]
        json.dumps(said, allow_nan=False)
        first = next(iter(learner.network.layers))
        assert sum(said[-1][first]["gate"]["counts"]) == len(
            learner.network.layers[first].synapse.weight
        )
        assert said[0][first]["gate"]["quantiles"][0] == 0 < said[0][first]["gate"]["mean"]


def test_a_checkpoint_has_all_there_is():
    half, rows = None, []
    whole = learner_of(SPEC)
    for tick in whole.ticks():
        rows += tick.rows
        if half is None and tick.position.event == 1 and tick.position.step == 2:
            tensors, values = split(whole.state_dict())
            half = ({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
            count = len(rows)
    again = learner_of(SPEC)
    again.load_state_dict(join(*half))
    assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]


def test_what_cannot_be_is_refused():
    with pytest.raises(PairingError, match="slot 'projection'"):
        learner_of(Dendrites(), Hlop())
    with pytest.raises(ConfigError, match="active"):
        Dendrites(active=1.5)
    with pytest.raises(ConfigError, match="segments"):
        Dendrites(segments=0)


def test_penalties_and_paths_of_others_are_of_what_is_stored():
    """A pull on weights is no slope of a gate; the path integral has the gradient of weights."""
    learner = learner_of(L2(anchor="initial", strength=0.5), Si(strength=0.0), SPEC)
    methods, net = learner.methods.methods, learner.network
    assert list(methods) == ["dendrites", "si", "l2"]
    event = learner.stream[0]
    view = learner.stream.view(event)
    for method in methods.values():
        method.begin(view)
    with torch.no_grad():
        for p in net.weights().values():
            p.add_(0.1)  # away from the anchors
    before = {n: s.clone() for n, s in methods["dendrites"]._segments.items()}
    given = {n: torch.zeros_like(p) for n, p in net.weights().items()}
    for change in learner.methods.hooks("gradients"):
        given = change(given)
    for name, segments in methods["dendrites"]._segments.items():
        assert torch.equal(segments, before[name])
    for gradient in given.values():
        torch.testing.assert_close(gradient, torch.full_like(gradient, 0.05))
    ones = {n: torch.ones_like(p) for n, p in net.weights().items()}
    gate = methods["dendrites"]._gates(0)["hidden2"]
    for change in learner.methods.hooks("gradients"):
        ones = change(ones)
    torch.testing.assert_close(methods["si"]._moving["readout.weight"][0], gate.expand(3, -1))
