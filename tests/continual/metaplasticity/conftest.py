"""A small rectified network in double precision, its runs, and a plain loop beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.data.arrays import checked
from spikecl.encoding import Encoder
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, permuted
from spikecl.trainers import Bptt

CPU, EPOCHS, BATCH, ROOT = torch.device("cpu"), 2, 6, 3


class Once(Encoder):
    """The input in one step, in float64 or as it is."""

    steps = 1

    def __init__(self, dtype=torch.float64):
        self.dtype = dtype

    def encode(self, x, statistics, generator):
        return x.to(self.dtype)[None]


def data():
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.2 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32)
    return checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "m")


class Lab:
    """Makes learners, runs them, and the plain loop."""

    def stream(self, reveal=DOMAIN_IL, experiences=3):
        return permuted(data(), experiences=experiences, seed=1).with_reveal(reveal)

    def learner(self, *methods, optimiser=None, stream=None, dtype=torch.float64, **options):
        stream = stream or self.stream()
        network = options.pop("network", None) or Mlp(**{"hidden": (7,), **options})
        return Learner(
            stream=stream,
            network=network.build((8,), 3).to(dtype),
            encoder=Once(dtype),
            trainer=Bptt(),
            methods=methods,
            optimiser=optimiser or Sgd(lr=0.3),
            plan=TrainPlan(batch=BATCH, epochs=EPOCHS),
            seeds=Seeds(ROOT),
            device=CPU,
        )

    def run(self, learner, until=None):
        """Run to the end, or up to the end of an event."""
        for tick in learner.ticks():
            if until is not None and tick.kind == "event" and tick.position.event == until + 1:
                break
        return learner

    def weights(self, learner):
        return {n: p.detach().clone() for n, p in learner.network.weights().items()}

    def method(self, learner, name):
        return learner.methods.methods[name]

    def batches(self, learner):
        """Yield event, x and y of every step, in the order that the seeds say."""
        for event in learner.stream:
            loaded = event.train.load()
            for epoch in range(EPOCHS):
                draw = Seeds(ROOT).generator("order", event=event.index, epoch=epoch)
                order = torch.randperm(len(loaded), generator=draw)
                for rows in torch.split(order, BATCH):
                    yield event.index, loaded.x[rows].double(), loaded.y[rows]

    def forward(self, weights, x, *, binary=False):
        """A rectified perceptron with one hidden layer; its signs, straight through."""
        h = x
        for i, path in enumerate(("hidden1", "readout")):
            w = weights[f"{path}.weight"]
            if binary:
                size = 1 / math.sqrt(w.shape[1])
                w = size * (w + (torch.where(w < 0, -1.0, 1.0) - w).detach())
            h = h @ w.T
            if f"{path}.bias" in weights:
                h = h + weights[f"{path}.bias"]
            h = h if i else h.relu()
        return h

    def gradients(self, weights, x, y, *, binary=False):
        """Autograd of the mean cross-entropy."""
        leaves = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
        loss = functional.cross_entropy(self.forward(leaves, x, binary=binary), y)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def close(self, found, expected, atol=1e-10):
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(
                found[name], expected[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )

    def equal(self, found, expected):
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.equal(found[name], expected[name]), name


@pytest.fixture
def lab():
    return Lab()
