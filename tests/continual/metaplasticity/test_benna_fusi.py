"""The chain: its power law, its mass, runs against a plain loop, and chains that are unstable."""

from __future__ import annotations

import math

import pytest
import torch

from spikecl.continual import Context, Finetune
from spikecl.continual.host import Nobody
from spikecl.continual.metaplasticity.benna_fusi import BennaFusi, exchange
from spikecl.continual.metaplasticity.laborieux import Laborieux
from spikecl.errors import ConfigError
from spikecl.metrics import power_law
from spikecl.networks import Mlp, initialise
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, TASK_FREE


def impulse(spec, steps):
    """Levels [steps + 1, m] behind a unit of input into the first beaker."""
    levels = torch.zeros(spec.beakers, dtype=torch.float64)
    levels[0] = 1
    found = [levels]
    for _ in range(steps):
        found.append(found[-1] + exchange(found[-1], spec.couplings, spec.dt))
    return torch.stack(found)


@pytest.mark.parametrize("m", [6, 8, 12])
def test_a_trace_falls_with_the_root_of_time(m):
    first = impulse(BennaFusi(beakers=m, g=0.5), 1000)[:, 0]
    slope = power_law(torch.arange(1001).double(), first, 10, 1000)
    assert slope == pytest.approx(-0.48, abs=0.03)


def test_a_short_chain_falls_exponentially_once_it_leaks():
    first = impulse(BennaFusi(beakers=3, g=0.5, leak=True), 1000)[:, 0]
    assert power_law(torch.arange(1001).double(), first, 10, 1000) < -1.5
    ratio = first[400:500] / first[399:499]
    torch.testing.assert_close(ratio, ratio[:1].expand(100), rtol=1e-6, atol=0)


def test_one_step_is_the_equation_and_nothing_is_lost():
    spec = BennaFusi(beakers=5, g=0.7, dt=0.9)
    levels = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = levels + exchange(levels, spec.couplings, spec.dt)
    for i in range(3):
        for j in range(2):
            u = levels[:, i, j].tolist()
            for k in range(5):
                above = 0.7 * 2**-k * (u[k - 1] - u[k]) if k else 0.0
                below = 0.7 * 2 ** -(k + 1) * (u[k + 1] - u[k]) if k < 4 else 0.0
                expected = u[k] + 0.9 / 2**k * (above + below)
                assert float(found[k, i, j]) == pytest.approx(expected, abs=1e-14)
    for m, leak in ((12, False), (3, True)):
        mass = (
            impulse(BennaFusi(beakers=m, g=0.5, leak=leak), 3000) @ 2.0 ** torch.arange(m).double()
        )
        if leak:
            assert bool((mass[1:] <= mass[:-1]).all()) and float(mass[-1]) < 0.01
        else:
            torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [BennaFusi(beakers=1), BennaFusi(g=0.0)])
@pytest.mark.parametrize("optimiser", [Sgd(lr=0.3, momentum=0.5), Adam(lr=0.02)])
def test_one_beaker_or_no_coupling_is_the_optimiser_alone(lab, rule, optimiser):
    options = {"optimiser": optimiser, "bias": True, "dtype": torch.float32}
    plain = lab.run(lab.learner(Finetune(), **options))
    lab.equal(lab.weights(lab.run(lab.learner(rule, **options))), lab.weights(plain))


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
        (Adam(lr=0.05, state="carried"), lambda p: torch.optim.Adam(p, lr=0.05)),
    ],
)
def test_a_run_is_a_plain_loop(lab, ours, theirs, leak):
    spec = BennaFusi(beakers=3, g=0.6, leak=leak)
    learner = lab.learner(spec, optimiser=ours, bias=True)
    chain = {n: [w.clone() for _ in range(3)] for n, w in lab.weights(learner).items()}
    lab.run(learner)
    g, state = [0.3, 0.15, 0.075 if leak else 0.0], None
    for _, x, y in lab.batches(learner):
        parameters = {n: torch.nn.Parameter(u[0].clone()) for n, u in chain.items()}
        running = theirs(list(parameters.values()))
        if state:
            running.load_state_dict(state)
        for n, gradient in lab.gradients({n: u[0] for n, u in chain.items()}, x, y).items():
            parameters[n].grad = gradient
        running.step()
        state = running.state_dict()
        for n, p in parameters.items():
            a, b, c = chain[n]
            if n.endswith("bias"):
                chain[n][0] = p.detach()
                continue
            chain[n] = [
                p.detach() + g[0] * (b - a),
                b + (g[0] * (a - b) + g[1] * (c - b)) / 2,
                c + (g[1] * (b - c) - g[2] * c) / 4,
            ]
    lab.close(lab.weights(learner), {n: u[0] for n, u in chain.items()})
    deep = lab.method(learner, "benna_fusi").deep
    assert sorted(deep) == ["hidden1.weight", "readout.weight"]
    for n, levels in deep.items():
        torch.testing.assert_close(levels, torch.stack(chain[n][1:]), rtol=0, atol=1e-10)
        assert float((levels[0] - levels[1]).abs().max()) > 1e-3


def test_weights_that_nothing_moves_stay_where_they_were_drawn(lab):
    learner = lab.learner(BennaFusi(g=0.9))
    start = lab.weights(learner)
    method = lab.method(learner, "benna_fusi")
    for _ in range(5):
        method.gradients({})
        found = method.update({n: torch.zeros_like(w) for n, w in start.items()})
        assert all(not bool(each.any()) for each in found.values())


def test_a_portion_of_a_batch_is_a_portion_of_its_time():
    class Half(Nobody):
        def portion(self):
            return 0.5

    network = Mlp(hidden=(4,)).build((3,), 2).double()
    initialise(network, Seeds(0))
    spec = BennaFusi(beakers=4, g=0.8)
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, torch.device("cpu"), host=Half())
    method = spec.start(context)
    name = "hidden1.weight"
    levels = torch.cat([network.weights()[name].detach()[None], method.deep[name]])
    levels[0] += 1.0
    with torch.no_grad():
        network.weights()[name].add_(1.0)
    method.gradients({})
    found = method.update({n: torch.zeros_like(p) for n, p in network.weights().items()})
    expected = exchange(levels, spec.couplings, 0.5)
    torch.testing.assert_close(found[name], expected[0])
    torch.testing.assert_close(method.deep[name], levels[1:] + expected[1:])


@pytest.mark.parametrize(
    ("options", "stable"),
    [
        ({"g": 1.99}, True),
        ({"g": 2.0}, False),  # the first beaker: g / 2
        ({"g": 0.5, "dt": 4.0}, False),
        ({"g": 1.9, "beakers": 1, "leak": True}, True),
        ({"g": 2.0, "beakers": 1, "leak": True}, False),
        ({"g": 100.0, "beakers": 1}, True),
    ],
)
def test_unstable_chains_are_refused(options, stable):
    if not stable:
        with pytest.raises(ConfigError, match="unstable: beaker 1 would exchange .* below 1"):
            BennaFusi(**options)
        return
    levels = impulse(BennaFusi(**options), 500)
    assert bool(levels.isfinite().all()) and float(levels.abs().max()) <= 1


def test_what_it_says_to_do_works():
    with pytest.raises(ConfigError, match=r"dt g up to ([\d.]+)\)") as refused:
        BennaFusi(g=4.0, dt=2.0)
    most = float(str(refused.value).rpartition("up to ")[2].rstrip(")"))
    assert BennaFusi(g=most / 2, dt=2.0) and math.isclose(most, 1.98)


@pytest.mark.parametrize("options", [{"g": -0.1}, {"dt": -1.0}, {"dt": 0.0}, {"beakers": 0}])
def test_numbers_that_make_no_chain_are_refused(options):
    with pytest.raises(ConfigError, match=f"BennaFusi.{next(iter(options))}: got"):
        BennaFusi(**options)


def test_no_boundary_is_needed_and_the_report_has_every_beaker(lab):
    rules = (BennaFusi(beakers=4), Laborieux(on="all"))
    learner = lab.run(lab.learner(*rules, stream=lab.stream(TASK_FREE)))
    said = learner.methods.report()["benna_fusi"]
    weights = lab.weights(learner)
    for name, values in said.items():
        assert list(values) == ["weight", "beaker2", "beaker3", "beaker4"]
        for counts in values.values():
            total = counts["below"] + sum(counts["positive"]) + sum(counts["negative"])
            assert total == weights[name].numel()
    assert learner.methods.nbytes() == 3 * 8 * sum(w.numel() for w in weights.values())
