"""Powers of single samples' gradients: with every trainer, those of one sample after the other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spikecl.continual import Context
from spikecl.continual.host import Nobody, Seen
from spikecl.continual.importance import per_sample
from spikecl.continual.importance.per_sample import mean_powers
from spikecl.encoding import CrossEntropy, StepCrossEntropy
from spikecl.errors import PairingError
from spikecl.networks import (
    Mlp,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import CUBA, LIF, PLIF, SynapticIntegrator
from spikecl.neurons.rate import RateIF
from spikecl.optim import Sgd
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Batch
from spikecl.trainers import Bptt, Ottt, PerStep

T, B, CLASSES = 6, 5, 3
LABELS = torch.arange(B) % CLASSES
KINDS = {
    "dense": (SpikingMlp, {"hidden": (7, 5)}, (8,)),
    "conv": (SpikingConvNet, {"channels": (3,), "kernel": 2, "pool": "average"}, (4, 4)),
    "recurrent": (SpikingRecurrentNet, {"hidden": (7,)}, (8,)),
}


class OneBatch(Nobody):
    """A host that shows what it was given, in batches of a size."""

    def __init__(self, network, x, trainer, loss, size=B):
        self.network, self.x, self.trainer, self.size = network, x, trainer, size
        self.loss, self.calls = loss, []

    def look(self, samples, count, *, batch=None):
        for rows in torch.arange(count).split(batch or self.size):
            loss = lambda outputs, rows=rows: self.loss(outputs, LABELS[rows])  # noqa: E731
            yield Seen(self.x[:, rows], Batch(rows, LABELS[rows], None), loss)

    def credit(self, seen, *, training=True, of_loss=False):
        self.calls.append((seen.x.shape[1], training))
        loss = PerStep(seen.loss, self.loss.separable) if self.loss.per_step else seen.loss
        return self.trainer.factors(
            self.network,
            seen.x,
            loss,
            generator=torch.Generator().manual_seed(1),
            labels=seen.batch.y,
            training=training,
        )


def network_of(kind, name="bptt", **changed):
    builder, options, shape = KINDS[kind]
    options = {
        **options,
        "bias": True,
        "readout": "mean_current",
        "neuron": LIF(beta=0.6, v_th=0.3),
    }
    if name == "eventprop":
        options |= {"neuron": CUBA(alpha=0.6, beta=0.8, v_th=0.3, reset="zero")}
        options |= {"output": SynapticIntegrator(alpha=0.6, kappa=0.9)}
    if name == "dsr":
        options |= {"readout": "mean_rate", "neuron": RateIF(v_th=0.5)}
    network = builder(**{**options, **changed}).build(shape, CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for path, synapse in network.synapses.items():
            synapse.weight.mul_(3 if path != "readout" else 1)
    generator = torch.Generator().manual_seed(0)
    return network, (torch.rand(T, B, *shape, generator=generator) < 0.5).double()


def found_of(network, host, power, *, names=None):
    device = torch.device("cpu")
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, CLASSES, device, host=host)
    names = list(network.weights()) if names is None else names
    return mean_powers(context, None, B, names, power=power, ask=lambda seen, before: seen)


def one_by_one(network, host, power):
    """Each sample in a call of its own."""
    total = {name: torch.zeros_like(w) for name, w in network.weights().items()}
    for seen in host.look(None, B, batch=1):
        with torch.no_grad():
            made = host.credit(seen, training=False)
            gradients = form_gradients(network, made.synapses, made.direct)
        for name, gradient in gradients.items():
            total[name] += gradient.abs() ** power / B
    return total


def assert_same(found, wanted):
    assert sorted(found) == sorted(wanted)
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, rtol=1e-9, atol=1e-15)


UNDEFINED = {
    ("vogels", "dense"): "it changes recurrent synapses",
    ("vogels", "conv"): "it changes recurrent synapses",
    ("dsr", "recurrent"): "its rate map is feed-forward",
    ("naca", "recurrent"): "it is for layers in a row",
}


@pytest.mark.parametrize("name", TRAINERS.names())
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_trainer_gives_what_single_samples_give(name, kind):
    network, x = network_of(kind, name)
    options = {"tbptt": {"steps": 4}, "evolution": {"pairs": 2}}
    options |= {"naca": {"gate": 0.0}}  # its gate is of the whole batch
    trainer = TRAINERS.get(name)(**options.get(name, {}))
    loss = CrossEntropy() if name == "dsr" else StepCrossEntropy()
    try:
        trainer.check(network, x, loss)
    except PairingError as error:
        assert (name, kind) in UNDEFINED, error
        pytest.skip(f"{name} is not defined for this network: {UNDEFINED[name, kind]}")
    host = OneBatch(network, x, trainer, loss)
    for power in (1, 2):
        wanted = one_by_one(network, host, power)
        assert float(wanted["readout.weight"].max()) > 0
        assert_same(found_of(network, host, power), wanted)


@pytest.mark.parametrize("window", [1, 2])
def test_parts_of_a_window_are_put_together(window):
    network, x = network_of("dense")
    host = OneBatch(network, x, Ottt(window=window), StepCrossEntropy())
    assert_same(found_of(network, host, 2), one_by_one(network, host, 2))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", list(KINDS))
def test_batches_do_not_matter(kind, size, power):
    """By autograd on the weights themselves, sample by sample."""
    network, x = network_of(kind)
    found = found_of(network, OneBatch(network, x, Bptt(), CrossEntropy(), size), power)
    wanted = {name: torch.zeros_like(w) for name, w in network.weights().items()}
    for b in range(B):
        leaves = {name: w.detach().requires_grad_() for name, w in network.weights().items()}
        logits = network(x[:, b : b + 1], weights=leaves).logits
        functional.cross_entropy(logits, LABELS[b : b + 1]).backward()
        for name, leaf in leaves.items():
            wanted[name] += leaf.grad.abs() ** power / B
    assert_same(found, wanted)


def test_the_gradient_of_a_sample_is_the_sum_over_its_steps():
    """Squares of the steps' own gradients, or of a mean over samples, are something else."""
    network, x = network_of("dense")
    host = OneBatch(network, x, Bptt(), CrossEntropy())
    found = found_of(network, host, 2)["hidden2.weight"]
    with torch.no_grad():
        factor = host.credit(next(host.look(None, B)), training=False).synapses["hidden2"]
    rows, errors = factor.x.view(T, B, -1), B * factor.delta.view(T, B, -1)
    each = torch.einsum("tbo,tbi->boi", errors, rows)
    torch.testing.assert_close(found, each.square().mean(0))
    steps = torch.einsum("tbo,tbi->oi", errors.square(), rows.square()) / B
    assert float((found - steps).norm()) > 0.1 * float(found.norm())
    batch = each.mean(0).square()
    assert float((found - batch).norm()) > 0.3 * float(found.norm())


@pytest.mark.parametrize("most", [1, 100, 2**20])
def test_how_many_are_held_at_a_time_does_not_matter(most, monkeypatch):
    network, x = network_of("dense")
    host = OneBatch(network, x, Bptt(), CrossEntropy())
    wanted = found_of(network, host, 2)
    monkeypatch.setattr(per_sample, "MOST", most)
    assert_same(found_of(network, host, 2), wanted)


def test_samples_come_in_batches_where_there_are_rows_and_else_one_by_one():
    network, x = network_of("dense")
    host = OneBatch(network, x, Bptt(), CrossEntropy(), 2)
    found_of(network, host, 2)
    assert host.calls == [(2, False), (2, False), (1, False)]
    host = OneBatch(network, x, TRAINERS.get("spsa")(), CrossEntropy(), 2)
    found_of(network, host, 2)
    assert host.calls == [(2, False)] + 5 * [(1, False)]


def test_time_constants_and_norms_are_gathered_one_by_one_where_they_are_asked_for():
    network, x = network_of("dense", neuron=PLIF(beta=0.5, v_th=0.3), norm="batch", hidden=(7,))
    weights = [name for name in network.weights() if name.endswith("weight")]
    others = [name for name in network.weights() if "neuron" in name or "norm" in name]
    assert len(others) == 3
    host = OneBatch(network, x, Bptt(), CrossEntropy())
    wanted = one_by_one(network, host, 2)
    host.calls.clear()
    assert_same(found_of(network, host, 2), wanted)
    assert all(float(wanted[name].max()) > 0 for name in others)
    assert host.calls[1:] == 5 * [(1, False)]
    host.calls.clear()
    names = [name for name in weights if "norm" not in name]
    assert_same(found_of(network, host, 2, names=names), {n: wanted[n] for n in names})
    assert host.calls == [(5, False)]


@pytest.mark.parametrize("options", [{"standardise": True}, {"gain": 3.0}])
def test_behind_weight_maps_it_is_what_is_stored(options):
    network, x = network_of("dense", **options)
    assert any(synapse.maps for synapse in network.synapses.values())
    host = OneBatch(network, x, Bptt(), CrossEntropy(), 3)
    assert_same(found_of(network, host, 2), one_by_one(network, host, 2))


def test_an_input_that_does_not_change_counts_once():
    network, x = network_of("dense", readout="mean_rate")
    host = OneBatch(network, x[:1].expand(T, *x.shape[1:]), Bptt(), CrossEntropy())
    assert_same(found_of(network, host, 2), one_by_one(network, host, 2))


def test_an_ordinary_network_has_one_row_for_each_sample():
    network = Mlp(hidden=(7, 5), bias=True).build((8,), CLASSES).double()
    initialise(network, Seeds(3))
    x = torch.rand(1, B, 8, generator=torch.Generator().manual_seed(0)).double()
    host = OneBatch(network, x, Bptt(), CrossEntropy())
    for power in (1, 2):
        assert_same(found_of(network, host, power), one_by_one(network, host, power))
