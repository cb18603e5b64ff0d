"""Prototypes on the chip against nearest means in floats, and against Lava."""

import numpy as np
import pytest
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.plastic import learn
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.prototypes import NAME, learn_classes, with_prototypes
from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters

STEPS, HIDDEN = 20, 60


def network(n_in=64, hidden=HIDDEN, steps=STEPS, seed=0):
    """An exported network, as far as prototypes care: fixed features."""
    rng = np.random.default_rng(seed)
    return Program(
        (n_in,),
        {
            "hidden": Population((hidden,), LIFParameters(vth=250, du=4095, dv=400)),
            "out": Population((5,), LIFParameters(vth=200, du=4095, dv=400)),
        },
        (
            Connection(INPUT, "hidden", DenseParameters(rng.integers(-60, 80, (hidden, n_in)))),
            Connection("hidden", "out", DenseParameters(rng.integers(-99, 99, (5, hidden)))),
        ),
        Readout("out"),
        steps,
    )


def shots_of(labels, shots, *, seed=0):
    """Spikes of noisy patterns, a few of each class, and 0, 1, ... for their labels."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(42).random((10, 64)) ** 2
    y = rng.permutation(np.repeat(np.arange(len(labels)), shots))
    intensity = np.clip(patterns[np.asarray(labels)[y]] + 0.3 * rng.normal(size=(len(y), 64)), 0, 1)
    return (rng.random((STEPS, len(y), 64)) < 0.6 * intensity).astype(np.int64), y


def counts(program, x):
    """Spikes of the hidden population [B, n]."""
    return emulate(program, x).spikes["hidden"].astype(float).sum(0)


@pytest.mark.parametrize("shots", [5, 20])
def test_they_are_the_nearest_means(shots):
    """Weights are means up to the rounding of each update; answers are those of floats.

    A rounding by chance has a variance of 1/6 on average over fractions, and that of the k th of n
    updates is left with k/n: the standard deviation of a weight is about sqrt(n/18).
    """
    program, classes = network(), np.arange(5, 10)
    head = with_prototypes(program, "hidden", len(classes))
    x, y = shots_of(classes, shots)
    learned = learn_classes(head, x, y)
    seen = counts(head, x)
    means = np.stack([seen[y == c].mean(0) for c in range(len(classes))])
    (weights,) = [c.synapses.weights for c in learned.connections if c.target == NAME]
    assert (weights - means).std() < 1.5 * (shots / 18) ** 0.5
    tests, expected = shots_of(classes, 60, seed=1)
    record = emulate(learned, tests)
    answers = record.outputs[-1].argmax(1)
    r = counts(head, tests)
    floats = (r @ means.T - (means**2).sum(1) / 2).argmax(1)
    assert not any(record.notes["saturated"].values())
    assert (answers == floats).mean() > 0.9
    chance = 1 / len(classes)
    assert (answers == expected).mean() > max(0.6, 3 * chance)
    assert abs((answers == expected).mean() - (floats == expected).mean()) < 0.05


def test_one_sample_is_copied():
    """127 / 128 of it, rounded by chance."""
    head = with_prototypes(network(), "hidden", 3)
    x, _ = shots_of([0], 1)
    made = learn_classes(head, x, [1])
    (weights,) = [c.synapses.weights for c in made.connections if c.target == NAME]
    assert abs(weights[1] - counts(head, x)[0]).max() <= 1
    assert not weights[[0, 2]].any()
    assert emulate(made, x).outputs[-1].argmax(1) == 1  # what was not learned does not win


def test_lava_learns_the_same(installed):
    head = with_prototypes(network(hidden=9), "hidden", 2)
    x, y = shots_of([3, 8], 2)
    ours, theirs = (learn_classes(head, x, y, run=run) for run in (learn, lava.learn))
    assert ours.checksum == theirs.checksum


def test_the_old_answer_is_still_there():
    program = network()
    head = with_prototypes(program, "hidden", 4)
    x, y = shots_of([1, 2, 3, 4], 3)
    made = learn_classes(head, x, y)
    old, new = emulate(program, x), emulate(made, x)
    assert (old.spikes["out"] == new.spikes["out"][: len(old.spikes["out"])]).all()


def test_what_cannot_be_is_refused():
    program = network()
    head = with_prototypes(program, "hidden", 2)
    x, _ = shots_of([0], 1)
    for call, said in [
        (lambda: with_prototypes(program, "nobody", 2), "no population 'nobody'"),
        (lambda: with_prototypes(head, "hidden", 2), "there is a population"),
        (lambda: with_prototypes(program, "hidden", 0), "1 or more"),
        (lambda: with_prototypes(network(steps=127), "hidden", 2), "fewer steps"),
        (lambda: learn_classes(program, x, [0]), "no prototypes"),
        (lambda: learn_classes(head, x, [0, 1]), "2 labels for 1 samples"),
        (lambda: learn_classes(head, x, [-1]), "one each"),
        (lambda: learn_classes(head, x, [2]), "0 to 1 is allowed"),
    ]:
        with pytest.raises(ProgramError, match=said):
            call()
