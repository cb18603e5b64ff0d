"""The cascade: one step by chance, its traces as a Markov chain, whole runs by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikecl.continual.importance.l2 import L2
from spikecl.continual.metaplasticity.cascade import Cascade, chances, moved
from spikecl.errors import ConfigError, PairingError
from spikecl.metrics import power_law, recall_curve
from spikecl.seeds import Seeds
from spikecl.streams import TASK_FREE


def matrices(n, x):
    """Transitions [from, to] of states -n .. -1, 1 .. n, by what is asked for: -1 and 1."""
    states = [*range(-n, 0), *range(1, n + 1)]
    place = {state: k for k, state in enumerate(states)}
    found = {}
    for asked in (-1, 1):
        matrix = np.zeros((2 * n, 2 * n))
        for state in states:
            sign, level = np.sign(state), abs(state)
            if sign != asked:
                p, to = (x ** (level - 1), asked)
                if level == n:
                    p = min(1.0, x ** (n - 1) / (1 - x))
            else:
                p, to = (x**level / (1 - x), state + sign) if level < n else (0.0, state)
            matrix[place[state], place[to]] += p
            matrix[place[state], place[state]] += 1 - p
        found[asked] = matrix
    return np.array(states), found


def counted(n, count=1024):
    """The transitions that the rule makes, counted over numbers drawn evenly: exact for x = 1/2."""
    states, drawn = [*range(-n, 0), *range(1, n + 1)], (torch.arange(count) + 0.5).double() / count
    found = {asked: np.zeros((2 * n, 2 * n)) for asked in (-1, 1)}
    for asked, matrix in found.items():
        for row, state in zip(matrix, states):
            start = torch.full((count,), float(state), dtype=torch.float64)
            after = moved(start, torch.full((count,), float(asked)), drawn, n, 0.5)
            for k, other in enumerate(states):
                row[k] = float((after == other).double().mean())
    return np.array(states), found


@pytest.mark.parametrize(("n", "x"), [(1, 0.5), (2, 0.5), (4, 0.5), (5, 0.3)])
@pytest.mark.parametrize("asked", [-1, 1])
def test_one_step_has_the_probabilities(n, x, asked):
    states, found = matrices(n, x)
    count, draw = 20_000, torch.Generator().manual_seed(n)
    for k, state in enumerate(states.tolist()):
        start = torch.full((count,), float(state), dtype=torch.float64)
        drawn = torch.rand(count, generator=draw, dtype=torch.float64)
        after = moved(start, torch.full((count,), float(asked)), drawn, n, x)
        for j, other in enumerate(states.tolist()):
            p = found[asked][k, j]
            share = float((after == other).double().mean())
            assert share == pytest.approx(p, abs=4.5 * (p * (1 - p) / count) ** 0.5 + 1e-12)
        assert torch.equal(moved(start, torch.zeros(count), drawn, n, x), start)
    for flip, deepen in zip(*chances(n, x), strict=True):
        assert 0 < flip <= 1 and 0 <= deepen <= 1


def test_one_level_is_a_plain_binary_synapse_and_forgets_exponentially():
    """Asked with probability f, a trace is ``f (1 - f)^(age - 1)``."""
    f, draw = 0.2, torch.Generator().manual_seed(1)
    rand = lambda like: torch.rand(like.shape, generator=draw, dtype=torch.float64)  # noqa: E731

    def store(state, pattern):
        return moved(state, pattern * (rand(state) < f), rand(state), 1, 0.5)

    start = torch.ones(40, 5000, dtype=torch.float64)
    ages = torch.tensor([1, 2, 4, 8])
    trace = recall_curve(store, torch.sign, start, ages, generator=draw, before=30)
    expected = f * (1 - f) ** (ages.double() - 1)
    error = (trace.signal - expected).abs()
    assert bool((error < 5 / (40 * 5000) ** 0.5).all()), trace


def test_a_trace_falls_by_a_power_of_time_until_the_last_level():
    """Exact means of ten levels, from where random memories leave them: all states alike."""
    states, found = counted(10)
    random = (found[-1] + found[1]) / 2
    rest = np.linalg.matrix_power(random, 2**22)[0]
    np.testing.assert_allclose(rest, np.full(20, 0.05), atol=1e-9)
    after, signal = rest @ found[1], []
    for _ in range(3000):
        signal.append(float(after @ np.sign(states)))
        after = after @ random
    ages, trace = torch.arange(1, 3001).double(), torch.tensor(signal, dtype=torch.float64)
    for first, slope in ((3, -0.61), (10, -0.68), (30, -0.77), (100, -1.07)):
        assert power_law(ages, trace, first, 10 * first) == pytest.approx(slope, abs=0.02)
    assert power_law(ages, trace, 1000, 3000) < -3  # past x^-n it is exponential


def test_the_rule_has_that_trace():
    """By chance, in a population, at a few ages."""
    states, found = matrices(6, 0.5)
    random = (found[-1] + found[1]) / 2
    after, expected = np.full(12, 1 / 12) @ found[1], []
    for age in range(1, 17):
        if age in (1, 4, 16):
            expected.append(float(after @ np.sign(states)))
        after = after @ random
    draw = torch.Generator().manual_seed(2)
    start = torch.tensor(states)[torch.randint(12, (30, 10_000), generator=draw)].double()

    def store(state, pattern):
        drawn = torch.rand(state.shape, generator=draw, dtype=torch.float64)
        return moved(state, pattern, drawn, 6, 0.5)

    trace = recall_curve(store, torch.sign, start, torch.tensor([1, 4, 16]), generator=draw)
    torch.testing.assert_close(
        trace.signal, torch.tensor(expected).double(), rtol=0, atol=5 / 300_000**0.5
    )


@pytest.mark.parametrize("n", [1, 3, 8])
def test_depression_alone_leaves_all_synapses_weak(n):
    draw, state = torch.Generator().manual_seed(0), torch.ones(1000)
    weak = False
    for _ in range(60):
        state = moved(state, -torch.ones(1000), torch.rand(1000, generator=draw), n, 0.5)
        if weak:
            assert bool((state < 0).all())
        weak = bool((state < 0).all())
    assert weak and float(state.min()) == -n


def test_a_run_is_a_plain_loop(lab):
    spec = Cascade(levels=3, x=0.4, size=0.05)
    learner = lab.learner(spec, binary="fixed", bias=True)
    w = lab.weights(learner)
    names = ["hidden1.weight", "readout.weight"]
    for name in names:
        w[name] = torch.where(w[name] < 0, -1.0, 1.0).double()
    lab.run(learner)
    flipped = 0
    for step, (_, x, y) in enumerate(lab.batches(learner)):
        gradients = lab.gradients(w, x, y, binary=True)
        new = {n: w[n] - 0.3 * gradients[n] for n in w}
        for place, name in enumerate(names):
            draw = Seeds(3).generator("cascade", event=place, step=step)
            asks, happens = torch.rand(2, *w[name].shape, generator=draw, dtype=torch.float64)
            for at in np.ndindex(*w[name].shape):
                state, u = int(w[name][at]), float(happens[at])
                change = -0.3 * float(gradients[name][at])
                new[name][at] = state
                if float(asks[at]) >= abs(change) / 0.05:
                    continue
                level = abs(state)
                if change * state < 0:
                    q = 0.4 ** (level - 1) if level < 3 else 0.4**2 / 0.6
                    if u < q:
                        new[name][at], flipped = -np.sign(state), flipped + 1
                elif level < 3 and u < 0.4**level / 0.6:
                    new[name][at] = state + np.sign(state)
        w = new
    assert flipped > 20
    lab.close(lab.weights(learner), w)
    assert w["hidden1.weight"].abs().unique().tolist() == [1, 2, 3]
    said = learner.methods.report()["cascade"]["hidden1.weight"]
    assert said["states"] == [-3, -2, -1, 1, 2, 3] and sum(said["count"]) == 56
    assert said["count"][0] == int((w["hidden1.weight"] == -3).sum())


def test_no_boundary_is_needed_and_a_real_network_is_refused(lab):
    lab.run(lab.learner(Cascade(), stream=lab.stream(TASK_FREE), binary="rows"))
    with pytest.raises(PairingError, match=r"'cascade' is about hidden weights.*binary='fixed'"):
        lab.learner(Cascade())


@pytest.mark.parametrize("options", [{"x": 0.6}, {"x": 0.0}, {"levels": 0}, {"size": -1.0}])
def test_numbers_that_make_no_cascade_are_refused(options):
    with pytest.raises(ConfigError, match=f"Cascade.{next(iter(options))}: got"):
        Cascade(**options)


def test_others_begin_from_its_levels(lab):
    """The anchor of L2 is of weights that the run has."""
    learner = lab.learner(L2(anchor="initial"), Cascade(), binary="fixed")
    next(tick for tick in learner.ticks() if tick.position.step)
    anchors = lab.method(learner, "l2").importance.anchors
    for name in lab.method(learner, "cascade").stored:
        assert set(anchors[name].unique().tolist()) == {-1.0, 1.0}
