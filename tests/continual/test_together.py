"""Projection, metaplasticity, homeostasis and replay in one run."""

from __future__ import annotations

import itertools

import pytest
import torch

from spikecl.continual import (
    L2,
    Ewc,
    ExperienceReplay,
    Finetune,
    FiringRates,
    Hlop,
    Inhibition,
    Laborieux,
    Mas,
    Scaling,
    Si,
    Tacos,
    Threshold,
)
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd

pytestmark = pytest.mark.filterwarnings("ignore:layer .* cannot reach")

NETWORK = SpikingMlp(
    hidden=(8, 7), neuron=LIF(beta=0.5, v_th=0.3), learns=("v_th",), per_neuron=True
)
FOUR = {
    "replay": ExperienceReplay(capacity=10, batch=4),
    "metaplasticity": Tacos(beta=0.01),
    "projection": Hlop(rows=((3, 3, 3),)),
    "homeostasis": Threshold(rate=0.05, target=0.2),
}


def ends(made, *methods, optimiser=None, network=NETWORK):
    sets = made.tasks(16, 16, 16)
    options = {"network": network, "optimiser": optimiser or Sgd(lr=0.2)}
    return made.weights_of(made.finished(made.learner_of(sets, *methods, **options)))


def test_they_run_in_the_order_of_their_phases_however_they_are_named(made):
    found = []
    for order in itertools.permutations(FOUR.values()):
        learner = made.learner_of(made.tasks(16), *order, network=NETWORK)
        found.append([*learner.methods.methods])
    assert all(names == found[0] for names in found)
    gate, projection, homeostasis = (found[0].index(n) for n in ("tacos", "hlop", "threshold"))
    assert gate < projection < homeostasis


def test_each_of_them_changes_what_comes_out(made):
    together = ends(made, *FOUR.values())
    again = ends(made, *reversed(FOUR.values()))
    assert all(torch.equal(w, again[name]) for name, w in together.items())
    assert all(bool(w.isfinite().all()) for w in together.values())
    for missing in FOUR:
        rest = ends(made, *(method for name, method in FOUR.items() if name != missing))
        assert any(not torch.equal(w, rest[name]) for name, w in together.items()), missing


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2, momentum=0.9), Adam(lr=0.02)])
def test_what_is_stored_keeps_its_responses_under_the_other_three(made, optimiser):
    """Gates, replay and thresholds are before or beside the projection: it has the last word."""
    sets = made.tasks(16, 16)
    learner = made.learner_of(sets, *FOUR.values(), network=NETWORK, optimiser=optimiser)
    kept = {}
    for event in made.run(learner):
        if event == 0:
            start = made.weights_of(learner)
            held = learner.methods.methods["hlop"].protection
            kept = {name: lateral.old.clone() for name, lateral in held.lateral.items()}
    moved = {n: w - start[n] for n, w in made.weights_of(learner).items()}
    assert len(kept) == 3
    for path, rows in kept.items():
        change = moved[f"{path}.weight"]
        assert change.abs().max() > 1e-4
        assert (change @ rows.T).abs().max() < 1e-10 * change.abs().max()
    assert any(bool(w.any()) for n, w in moved.items() if n.endswith("v_th"))


def test_all_at_strength_0_is_plain_to_the_bit(made):
    """Whatever they would do together, nothing of it is left."""
    idle = (
        Ewc(strength=0.0),
        Mas(strength=0.0),
        L2(strength=0.0),
        Si(strength=0.0),
        Laborieux(m=0.0, on="all"),
        FiringRates(cost=0.0),
        Threshold(rate=0.0, target=0.2),
        Scaling(rate=0.0),
    )
    for beside in ((), (FOUR["replay"],), (Inhibition(),), (FOUR["projection"], FOUR["replay"])):
        plain = ends(made, *(beside or (Finetune(),)), optimiser=Adam(lr=0.02))
        found = ends(made, *idle, *beside, optimiser=Adam(lr=0.02))
        assert all(torch.equal(w, plain[name]) for name, w in found.items())
