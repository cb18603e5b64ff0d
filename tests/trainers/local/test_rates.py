"""Rules about activity: plain loops, closed forms, and the principal components they find."""

import pytest
import torch
from meetings import build, off_diagonal, sides
from sklearn.decomposition import PCA

from spikecl.networks import ConvNet, Mlp, RecurrentNet, form_gradients
from spikecl.trainers import Bcm, Hebb, Oja, Sanger, Subspace

RULES = {"hebb": Hebb, "oja": Oja, "subspace": Subspace, "sanger": Sanger, "bcm": Bcm}
THETA = 0.3


def change(rule, x, y, w):
    """What one row of activity makes of weights [m, n], neuron by neuron."""
    made = torch.zeros_like(w)
    for i in range(len(w)):
        if rule == "hebb":
            made[i] = y[i] * x
        elif rule == "oja":
            made[i] = y[i] * (x - y[i] * w[i])
        elif rule == "subspace":
            made[i] = y[i] * (x - sum(y[k] * w[k] for k in range(len(w))))
        elif rule == "sanger":
            made[i] = y[i] * (x - sum(y[k] * w[k] for k in range(i + 1)))
        else:
            made[i] = y[i] * (y[i] - THETA) * x
    return made


def compare(name, rule, network, x):
    variables = {k: torch.full_like(v, THETA) for k, v in rule.variables(network, None, x).items()}
    factors = rule.factors(network, x, lambda z: z.sum(), variables=variables)
    gradients = form_gradients(network, factors.synapses, factors.direct)
    seen = sides(network, x, "spikes" if rule.post == "output" else "current")
    for path, (pre, post) in seen.items():
        if rule.activity == "rate":
            pre, post = pre.mean(0), post.mean(0)
        pre, post = pre.flatten(0, -2), post.flatten(0, -2)
        synapse = network.synapses[path]
        w = synapse.effective(dict(synapse.named_parameters())).detach().flatten(1)
        expected = sum(change(name, a, b, w) for a, b in zip(pre, post, strict=True)) / len(pre)
        found = -gradients[f"{path}.weight"].flatten(1)
        found, expected = off_diagonal(path, found, expected)
        assert float(expected.abs().max()) > 1e-3, path
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        if name == "bcm" and not path.endswith("recurrent"):
            new = THETA + 0.1 * ((post**2).mean(0) - THETA)
            torch.testing.assert_close(factors.variables[f"theta.{path}"], new)


@pytest.mark.parametrize("post", ["output", "current"])
@pytest.mark.parametrize("activity", ["rate", "step"])
@pytest.mark.parametrize("name", list(RULES))
def test_factors_equal_a_loop_over_rows(name, activity, post, network, x):
    compare(name, RULES[name](activity=activity, post=post), network, x)


TWINS = {
    "gain": (Mlp(hidden=(5,), gain=1.7), (6,)),  # w is the weight in effect, dw of the stored one
    "dense": (Mlp(hidden=(5, 4)), (6,)),
    "recurrent": (RecurrentNet(hidden=(5,)), (6,)),
    "conv": (ConvNet(channels=(3,), kernel=2, pool_size=1, hidden=(5,)), (3, 4)),
}


@pytest.mark.parametrize("twin", list(TWINS))
@pytest.mark.parametrize("name", list(RULES))
def test_rectified_units_with_graded_input_are_no_exception(name, twin):
    network, shape = build(*TWINS[twin]), TWINS[twin][1]
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(4, 3, *shape, generator=generator, dtype=torch.float64)
    compare(name, RULES[name](activity="step"), network, steps)
    static = steps[:1].expand(4, *steps.shape[1:])  # one row stands for all steps
    compare(name, RULES[name](), network, static)
    compare(name, RULES[name](activity="step"), network, static)


def test_rows_are_given_where_the_rule_is_a_sum_of_products(network, x):
    for name in ("hebb", "bcm", "subspace"):
        factors = RULES[name]().factors(network, x, lambda z: z.sum())
        for factor in factors.synapses.values():
            torch.testing.assert_close(factor.delta.T @ factor.x, factor.gradient())


# ---- where they lead ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    """Samples [300, 6] with a clear order of directions, none of them an axis; their mean is 0."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.6, 1.2, 0.9, 0.5, 0.3, 0.2], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64) * scales @ turn.T
    return x - x.mean(0)


def layer(neurons, seed=1):
    return build(Mlp(hidden=(neurons,)), (6,), seed=seed, scale=1.0)


def learn(rule, network, x, *, lr, times):
    """Weights after steps of plain gradient descent on all samples."""
    weights = {n: p.detach().clone() for n, p in network.weights().items()}
    variables = rule.variables(network, None, x[None])
    for _ in range(times):
        made = rule.factors(
            network, x[None], lambda z: z.sum(), weights, variables=variables, training=True
        )
        variables = {**variables, **made.variables}
        weights["hidden1.weight"] -= lr * made.synapses["hidden1"].gradient()
    return weights["hidden1.weight"], variables


def components(x):
    return torch.as_tensor(PCA().fit(x.numpy()).components_)


def test_hebb_grows_without_bound_as_a_power_of_the_correlations(data):
    network = layer(3)
    start = network.weights()["hidden1.weight"].detach().clone()
    found, _ = learn(Hebb(post="current", readout="none"), network, data, lr=0.05, times=400)
    grow = torch.eye(6, dtype=torch.float64) + 0.05 * data.T @ data / len(data)
    torch.testing.assert_close(
        found, start @ torch.linalg.matrix_power(grow, 400), rtol=1e-8, atol=0
    )
    assert float(found.norm()) > 1e15


@pytest.mark.parametrize("post", ["output", "current"])
def test_oja_finds_the_first_component(data, post):
    x = torch.cat([data, -data])  # what a rectified unit needs: symmetric input
    found, _ = learn(Oja(post=post, readout="none"), layer(4), x, lr=0.1, times=1500)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4).double(), rtol=1e-6, atol=0)
    overlap = (found @ components(x)[0]).abs()
    assert float(overlap.min()) > 0.99999


def test_sanger_finds_the_components_in_order(data):
    found, _ = learn(Sanger(readout="none"), layer(4), data, lr=0.1, times=4000)
    overlap = (found @ components(data)[:4].T).abs()
    torch.testing.assert_close(overlap, torch.eye(4).double(), rtol=0, atol=1e-5)


def test_the_subspace_rule_finds_their_span_and_no_order(data):
    found, _ = learn(Subspace(readout="none"), layer(3), data, lr=0.1, times=2000)
    torch.testing.assert_close(found @ found.T, torch.eye(3).double(), rtol=0, atol=1e-6)
    inside = torch.linalg.svdvals(found @ components(data)[:3].T)
    torch.testing.assert_close(inside, torch.ones(3).double(), rtol=0, atol=1e-6)
    overlap = (found @ components(data)[:3].T).abs()
    assert not bool((overlap.amax(1) > 0.99).all())


@pytest.mark.parametrize("patterns", [2, 3])
def test_bcm_chooses_one_pattern_and_answers_it_at_its_threshold(patterns):
    x = torch.eye(6, dtype=torch.float64)[:patterns]
    network = layer(8, seed=2)
    with torch.no_grad():
        network.weights()["hidden1.weight"].abs_()
    found, variables = learn(Bcm(readout="none"), network, x, lr=0.05, times=6000)
    y = torch.relu(x @ found.T)
    best = y.amax(0)
    torch.testing.assert_close(best, torch.full_like(best, float(patterns)), rtol=1e-4, atol=0)
    torch.testing.assert_close(variables["theta.hidden1"], best, rtol=1e-4, atol=0)
    others = y.sum(0) - best
    assert float(others.max()) < 1e-3
    assert len(set(y.argmax(0).tolist())) > 1  # neurons do not all choose the same
