"""NCL: a plain loop with the whole precision matrix; the sums of Kronecker products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Finetune
from spikecl.continual.projection.inhibition import Inhibition
from spikecl.continual.projection.ncl import Ncl, by_divergence, by_traces
from spikecl.encoding import Encoder, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp
from spikecl.networks.build import RecurrentNet
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, TASK_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, Ottt
from spikecl.trainers.zeroth.spsa import Spsa

CPU = torch.device("cpu")
LR, CLASSES, N, STEPS = 0.2, 3, 6, 2
SMALL = Mlp(hidden=(5, 4))


class Double(Encoder):
    """Two steps of the same input, as it is, in float64."""

    steps = STEPS

    def encode(self, x, statistics, generator):
        return x.double().expand(STEPS, *x.shape)


def tasks(*sizes):
    generator = torch.Generator().manual_seed(0)
    common, sets = torch.rand(CLASSES, N, generator=generator) - 0.5, []
    for size in sizes:
        y = torch.arange(size) % CLASSES
        sets.append((2 * (common[y] + torch.rand(size, N, generator=generator) - 0.5), y))
    return sets


def learner_of(sets, method, network=SMALL, *, optimiser=None, batch=4, **options):
    samples = [Samples((Part(x, y, torch.arange(len(x))),)) for x, y in sets]
    classes, reveal = tuple(range(CLASSES)), options.get("reveal", DOMAIN_IL)
    tests = {f"task{i}": EvalSet(s, classes, (i,)) for i, s in enumerate(samples)}
    make = lambda i: Experience(i, samples[i], classes, task=i)  # noqa: E731
    head = options.get("head", "single")
    outputs = CLASSES * (len(sets) if head == "multi" else 1)
    return Learner(
        stream=Stream("made", {}, 0, reveal, CLASSES, (N,), len(sets), make, tests),
        network=network.build((N,), outputs).double(),
        encoder=Double(),
        trainer=options.get("trainer", Bptt()),
        methods=(method,),
        optimiser=optimiser or Sgd(lr=LR),
        plan=TrainPlan(epochs=2, batch=batch),
        seeds=Seeds(5),
        device=CPU,
        head=head,
        loss=options.get("loss"),
    )


def run(learner):
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event:
            yield tick.position.event - 1


def weights_of(learner):
    return {n[:-7]: p.detach().clone() for n, p in learner.network.weights().items()}


def posterior_of(learner):
    return learner.methods.methods["ncl"].protection


def passed(weights, x):
    """Logits of a network of rectifiers, and what each weight met and made."""
    *hidden, last = weights
    rows, currents = {}, {}
    for name in weights:
        rows[name], currents[name] = x, x @ weights[name].T
        currents[name].requires_grad_().retain_grad()
        x = functional.relu(currents[name])
    return currents[last], rows, currents


# ---- the whole method against a plain loop ------------------------------------------------------


def nearest(old, new, how):
    """``D ⊗ A`` nearest to a sum of two, as the authors' code has it."""
    (d, a), (d2, a2) = old, new
    pi = np.sqrt(np.trace(d) * np.trace(a2) / (np.trace(d2) * np.trace(a)))
    left, right = d + pi * d2, a + a2 / pi
    for _ in range(2000 if how == "divergence" else 0):  # gradient steps on the divergence
        inv_l, inv_r = np.linalg.inv(left), np.linalg.inv(right)
        e = (np.trace(a @ inv_r) * d + np.trace(a2 @ inv_r) * d2) / len(a)
        f = (np.trace(d @ inv_l) * a + np.trace(d2 @ inv_l) * a2) / len(d)
        left, right = left + 0.3 * (e - left), right + 0.3 * (f - right)
    return left, right


@pytest.mark.parametrize(
    ("how", "momentum", "precision", "pull"),
    [("traces", 0.0, 0.5, 1.0), ("traces", 0.9, 2.0, 3.0), ("divergence", 0.5, 2.0, 1.0)],
)
def test_three_tasks_equal_a_plain_loop(how, momentum, precision, pull):
    """With ``Λ = D ⊗ A`` written out over the rows of W, one after the other."""
    sets = tasks(11, 13, 9)
    method = Ncl(precision=precision, pull=pull, nearest=how, samples=99)
    learner = learner_of(sets, method, optimiser=Sgd(lr=LR, momentum=momentum))
    weights = weights_of(learner)
    mean = {name: torch.zeros_like(w) for name, w in weights.items()}
    root = precision**0.5
    factors = {n: (root * np.eye(len(w)), root * np.eye(w.shape[1])) for n, w in weights.items()}
    for task in run(learner):
        x, y = sets[task][0].double(), sets[task][1]
        speed = dict.fromkeys(weights, 0.0)
        whole = {name: torch.from_numpy(np.kron(*of)) for name, of in factors.items()}
        for epoch in range(2):
            generator = Seeds(5).generator("order", event=task, epoch=epoch)
            for picked in torch.randperm(len(x), generator=generator).split(4):
                w = {name: each.clone().requires_grad_() for name, each in weights.items()}
                loss = functional.cross_entropy(passed(w, x[picked])[0], y[picked])
                for name, each in w.items():
                    off = (each - mean[name]).flatten()
                    loss = loss + pull / len(x) * (off @ whole[name] @ off) / 2
                loss.backward()
                for name, each in w.items():
                    speed[name] = momentum * speed[name] + each.grad
                    step = torch.linalg.solve(whole[name], speed[name].flatten())
                    weights[name] = each.detach() - LR * precision * step.view_as(each)
        logits, rows, currents = passed(weights, x)
        functional.cross_entropy(logits, y, reduction="sum").backward()
        for name, w in weights.items():
            torch.testing.assert_close(weights_of(learner)[name], w, rtol=0, atol=1e-7)
            d, a = currents[name].grad.numpy(), rows[name].detach().numpy()
            new = (d.T @ d / len(x), a.T @ a)  # N times a mean
            factors[name], mean[name] = nearest(factors[name], new, how), w.clone()
            found = posterior_of(learner)
            made = np.kron(found.outer[name].numpy(), found.inner[name].numpy())
            np.testing.assert_allclose(made, np.kron(*factors[name]), rtol=1e-6, atol=1e-9)
            kept = precision * np.trace(np.linalg.inv(np.kron(*factors[name]))) / w.numel()
            assert found.report()[name]["plasticity"] == pytest.approx(kept, rel=1e-6)


def test_the_first_task_is_plain_with_a_weight_decay():
    """Of pull times precision over N; the prior's mean is 0."""
    ends, plain = [], Sgd(lr=LR, momentum=0.5)
    decay = Sgd(lr=LR, momentum=0.5, weight_decay=2.0 * 0.6 / 11)
    for method, optimiser in ((Ncl(precision=0.6, pull=2.0), plain), (Finetune(), decay)):
        learner = learner_of(tasks(11), method, optimiser=optimiser)
        for _ in run(learner):
            pass
        ends.append(weights_of(learner))
    for name, w in ends[0].items():
        torch.testing.assert_close(w, ends[1][name], rtol=0, atol=1e-12)


def test_without_a_pull_the_first_task_is_plain_to_the_bit():
    ends = []
    for method in (Ncl(pull=0.0), Finetune()):
        learner = learner_of(tasks(11), method, optimiser=Adam(lr=0.01))
        for _ in run(learner):
            pass
        ends.append(weights_of(learner))
    assert all(torch.equal(w, ends[1][name]) for name, w in ends[0].items())


@pytest.mark.parametrize("optimiser", [Sgd(lr=LR, momentum=0.5), Adam(lr=0.01)])
def test_the_input_side_without_a_pull_is_inhibition(optimiser):
    network = SpikingMlp(hidden=(8, 7), neuron=LIF(beta=0.5, v_th=0.25))
    sets, precision = (12, 12, 12), 0.5
    one = learner_of(tasks(*sets[:1]), Inhibition(), network, optimiser=optimiser)
    for _ in run(one):
        pass
    first = one.methods.methods["inhibition"].protection.covariance
    alpha = tuple(precision / 12 / float(c.diagonal().mean()) for c in first.values())
    ends = []
    for method in (Ncl(output=False, pull=0.0, precision=precision), Inhibition(alpha=alpha)):
        learner = learner_of(tasks(*sets), method, network, optimiser=optimiser)
        for _ in run(learner):
            pass
        ends.append(weights_of(learner))
    for name, w in ends[0].items():
        torch.testing.assert_close(w, ends[1][name], rtol=0, atol=1e-9)


def test_a_pull_keeps_weights_near():
    """Of what the second experience moves without a pull, most is gone with a strong one."""
    far = []
    for pull in (0.0, 30.0):
        learner, before = learner_of(tasks(11, 13), Ncl(pull=pull, precision=2.0)), {}
        for task in run(learner):
            before = weights_of(learner) if task == 0 else before
        far.append(sum(float((w - before[n]).norm()) for n, w in weights_of(learner).items()))
    assert 0 < far[1] < 0.5 * far[0]


# ---- curvature ----------------------------------------------------------------------------------


def test_of_one_sample_the_product_is_the_square_of_its_gradient():
    """``D ⊗ A`` of a single sample and row is exact, whatever the batch it came in."""
    x, y = tasks(1)[0]
    learner = learner_of([(x, y)], Ncl())
    for _ in run(learner):
        pass
    found = posterior_of(learner).curvature(learner.stream.view(learner.stream[0]), 9)
    w = {name: each.requires_grad_() for name, each in weights_of(learner).items()}
    functional.cross_entropy(passed(w, x.double())[0], y).backward()
    for name, (a, d) in found.items():
        g = w[name].grad.flatten()
        torch.testing.assert_close(torch.kron(d, a), torch.outer(g, g), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [2, 5, 11])
def test_curvature_does_not_depend_on_batches(batch):
    found = []
    for size in (1, batch):
        network = SpikingMlp(hidden=(8,), neuron=LIF(v_th=0.25))
        learner = learner_of(tasks(11), Ncl(), network, batch=size)
        view = learner.stream.view(learner.stream[0])
        learner.heads.begin(learner.stream[0])
        learner.at.event = 0
        found.append(posterior_of(learner).curvature(view, 99))
    for name, (a, d) in found[0].items():
        assert float(d.trace()) > 1e-4
        torch.testing.assert_close(a, found[1][name][0], rtol=1e-10, atol=0)
        torch.testing.assert_close(d, found[1][name][1], rtol=1e-10, atol=1e-16)


def test_a_gain_is_part_of_the_gradient():
    """The posterior is of what is stored: a gain of 9 is as weights that are 9 times as large."""
    x, y = tasks(1)[0]
    spec = SpikingMlp(hidden=(8,), neuron=LIF(v_th=0.25), gain=9.0)
    learner = learner_of([(x, y)], Ncl(), spec)
    view = learner.stream.view(learner.stream[0])
    (part,) = learner.host.factors(view.samples, 1)
    delta = 9.0 * part.synapses["hidden1"].delta
    found = posterior_of(learner).curvature(view, 1)["hidden1"][1]
    assert bool(delta.any())
    torch.testing.assert_close(found, delta.T @ delta / len(delta))


def test_curvature_is_that_of_a_test():
    """No unit is dropped."""
    spec = SpikingMlp(hidden=(20,), neuron=LIF(v_th=0.25), dropout=0.5)
    learner = learner_of(tasks(11), Ncl(), spec)
    view = learner.stream.view(learner.stream[0])
    found = posterior_of(learner).curvature(view, 99)
    x = learner.encoder.encode(tasks(11)[0][0], None, None)
    spikes = learner.network.record(x, layers=["hidden1"], variables=["spikes"])
    rates = torch.from_numpy(spikes["hidden1"]["spikes"]).mean(0)
    assert bool(rates.any())
    torch.testing.assert_close(found["readout"][0], rates.T @ rates / 11)


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("update", ["sequence", "window"])
def test_the_pull_is_that_of_a_batch_however_many_parts_it_has(update, output):
    """With the loss's gradients taken out, a step moves by ``eta pull / N precision W``."""
    sets = tasks(8)
    trainer, loss = Ottt(window=1, update=update), StepCrossEntropy()
    network = SpikingMlp(hidden=(8,), neuron=LIF(v_th=1e6), readout="mean_current")
    method = Ncl(pull=1e-3, output=output)
    learner = learner_of(sets, method, network, batch=8, trainer=trainer, loss=loss)
    name = "hidden1.weight"  # nothing fires: no other gradient arrives here
    start = learner.network.weights()[name].detach().clone()
    for tick in learner.ticks():
        if tick.kind == "window":
            break
    moved = learner.network.weights()[name].detach() - start
    torch.testing.assert_close(moved, -LR * 1e-3 / 8 * start, rtol=1e-3, atol=0)


def test_the_rows_of_a_sample_add_up():
    """A spiking layer transmits at each step: the gradient of a sample has all of them."""
    network = SpikingMlp(hidden=(8, 7), neuron=LIF(v_th=0.25))
    learner = learner_of(tasks(11), Ncl(), network)
    for _ in run(learner):
        pass
    x = learner.encoder.encode(tasks(11)[0][0], None, None)
    spikes = learner.network.record(x, layers=["hidden1"], variables=["spikes"])
    rows = torch.from_numpy(spikes["hidden1"]["spikes"]).flatten(0, 1)
    assert rows.shape == (STEPS * 11, 8) and bool(rows.any())
    found = posterior_of(learner).curvature(learner.stream.view(learner.stream[0]), 99)
    torch.testing.assert_close(found["hidden2"][0], rows.T @ rows / 11)


def pair(n, m, seed, rank=None):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in (n, m):
        rows = torch.randn(rank or size + 2, size, generator=generator).double()
        made.append(rows.T @ rows)
    return tuple(made)


def test_products_by_traces_lie_above_the_sum_and_weigh_the_excess_least():
    old, new = pair(4, 3, 0), pair(4, 3, 1, rank=2)
    a, d = by_traces(old, new)
    exact = torch.kron(old[1], old[0]) + torch.kron(new[1], new[0])
    assert float(torch.linalg.eigvalsh(torch.kron(d, a) - exact)[0]) > -1e-10
    excess = float((torch.kron(d, a) - exact).trace())
    for weight in np.linspace(0.05, 5, 60):
        other = torch.kron(old[1] + weight * new[1], old[0] + new[0] / weight)
        assert float((other - exact).trace()) >= excess - 1e-9


def divergence(a, d, exact):
    """``KL(N(0, exact), N(0, D ⊗ A))`` but for a constant, by the whole matrices."""
    product = torch.kron(d, a)
    return torch.logdet(product) + (exact * torch.linalg.inv(product)).sum()


@pytest.mark.parametrize("rank", [None, 1])
def test_products_by_divergence_are_the_nearest(rank):
    old, new = pair(4, 3, 0), pair(4, 3, 1, rank=rank)
    exact = torch.kron(old[1], old[0]) + torch.kron(new[1], new[0])
    a, d = (each.requires_grad_() for each in by_divergence(old, new))
    best = divergence(a, d, exact)
    found = torch.autograd.grad(best, [a, d])
    assert max(float(g.abs().max()) for g in found) < 1e-6
    assert float(best.detach()) < float(divergence(*by_traces(old, new), exact)) - 1e-3


def test_a_sum_that_is_a_product_is_found():
    a, d = pair(4, 3, 0)
    for how in (by_traces, by_divergence):
        inner, outer = how((a, d), (2 * a, 3 * d))
        exact = 7 * torch.kron(d, a)
        if how is by_divergence:
            torch.testing.assert_close(torch.kron(outer, inner), exact)
        else:  # (1 + 2/w) (1 + 3 w) with the best w
            torch.testing.assert_close(torch.kron(outer, inner), (1 + 6**0.5) ** 2 / 7 * exact)


# ---- what is protected, state, errors -----------------------------------------------------------


def test_recurrent_weights_keep_their_diagonal():
    learner, start = learner_of(tasks(11, 13), Ncl(), RecurrentNet(hidden=(5,))), {}
    for task in run(learner):
        start = weights_of(learner) if task == 0 else start
    change = weights_of(learner)["hidden1.recurrent"] - start["hidden1.recurrent"]
    assert float(change.diagonal().abs().max()) == 0 and float(change.abs().max()) > 1e-5


def test_heads_of_single_tasks_are_free():
    learner = learner_of(tasks(11, 13), Ncl(), reveal=TASK_IL, head="multi")
    for _ in run(learner):
        pass
    assert set(posterior_of(learner).report()) == set(posterior_of(learner).mean)
    assert "readout" not in posterior_of(learner).mean


def test_the_state_goes_round():
    learner = learner_of(tasks(11, 13), Ncl())
    for _ in run(learner):
        pass
    other = learner_of(tasks(11, 13), Ncl())
    a, b = posterior_of(learner), posterior_of(other)
    kept = {k: v for k, v in a.state_dict().items() if k != "size"}
    turned = {kind: dict(reversed(each.items())) for kind, each in kept.items()}
    b.load_state_dict({**a.state_dict(), **turned})  # the order of a file is any
    update = torch.randn(5, N, generator=torch.Generator().manual_seed(1)).double()
    assert torch.equal(a.project_update("hidden1", update), b.project_update("hidden1", update))
    assert a.nbytes() == b.nbytes()
    assert list(a.report().items()) == list(b.report().items())
    gradients = {"hidden1.weight": update}
    with torch.no_grad():
        learner.network.weights()["hidden1.weight"].add_(1.0)
        other.network.weights()["hidden1.weight"].copy_(learner.network.weights()["hidden1.weight"])
    pulled = a.pulled(gradients)["hidden1.weight"]
    assert torch.equal(pulled, b.pulled(gradients)["hidden1.weight"])
    assert not torch.equal(pulled, update)


def test_it_needs_error_rows_or_does_without():
    steps = []
    learner = learner_of(tasks(11), Ncl(), trainer=Spsa())
    with pytest.raises(PairingError, match=r"'ncl'.*output=false"):
        for tick in learner.ticks():
            steps.append(tick.kind)
    assert "step" not in steps
    for _ in run(learner_of(tasks(11, 13), Ncl(output=False), trainer=Spsa())):
        pass


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
def test_silence_is_refused():
    silent = SpikingMlp(hidden=(5,), neuron=LIF(v_th=1e6))
    with pytest.raises(UsageError, match="'ncl'.*readout.*never fires"):
        for _ in run(learner_of(tasks(11), Ncl(), silent)):
            pass


def test_what_it_refuses():
    for options in ({"precision": 0.0}, {"pull": -1.0}, {"nearest": "sum"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Ncl(**options)


def test_the_nearest_product_is_of_both_sides():
    with pytest.raises(ConfigError, match="nearest=divergence has no effect with output=false"):
        Ncl(output=False, nearest="divergence")
    Ncl(output=False)
    Ncl(nearest="divergence")
