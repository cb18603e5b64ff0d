"""Schedules equal torch's where it has them, and plain loops; and go through a configuration."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from spikecl.errors import ConfigError
from spikecl.experiments import load_config, parse_config
from spikecl.optim import (
    SCHEDULES,
    Adam,
    Constant,
    Cosine,
    Infinite,
    Linear,
    Place,
    Sgd,
    Step,
)
from spikecl.registry import OPTIMISERS


def shares(schedule, steps):
    return [schedule.share(Place(step, steps)) for step in range(steps)]


def theirs(make, steps):
    """The shares of a scheduler of torch."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler, seen = make(optimiser), []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (Linear(), lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=40)),
        (Cosine(), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40)),
        (
            Step(at=(0.25, 0.5, 0.75), factor=0.3),  # every 10 of 40
            lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.3),
        ),
        (
            Step(at=(0.3, 0.9), factor=0.5),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [12, 36], 0.5),
        ),
        (Constant(), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        (
            Constant(warmup=0.25),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=9),
        ),
        (
            Cosine(warmup=0.25),
            lambda o: torch.optim.lr_scheduler.SequentialLR(
                o,
                [
                    torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=9),
                    torch.optim.lr_scheduler.CosineAnnealingLR(o, 30),
                ],
                [10],
            ),
        ),
    ],
    ids=["linear", "cosine", "every", "step", "constant", "warm", "warm cosine"],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_shares_equal_those_of_torch(schedule, make):
    assert shares(schedule, 40) == pytest.approx(theirs(make, 40), rel=1e-6, abs=1e-7)


def plain_infinite(n, *, w, c, r, shape, a=math.inf, e=math.inf, m=0.0):
    """The printed equation, branch by branch, with numpy's interpolation for what is straight."""
    if n < w:
        return np.interp(n, [0, w], [0, 1])
    p = (n - w) / c if c else 1.0
    if p < 1 and shape == "cosine":
        return r + (1 - r) * math.cos(math.pi * p / 2) ** 2
    if p < 1:
        raw = np.interp(p, [0, 1], [0, 1])
        fall = 1 - 1 / math.sqrt(1 + 10 * raw)
        return 1 - (1 - r) * fall / (1 - 1 / math.sqrt(11))
    if n < a:
        return r
    return math.exp(np.interp(n, [a, e], [math.log(r), math.log(m)]))


@pytest.mark.parametrize("shape", ["cosine", "inverse_sqrt"])
@pytest.mark.parametrize(("w", "c"), [(30, 50), (0, 50), (30, 0), (0, 0)])
@pytest.mark.parametrize("anneal", [None, (120, 150), (80, 81)])
def test_infinite_follows_its_printed_equation(shape, w, c, anneal):
    more, given = {}, {}
    if anneal:
        more = dict(zip(("anneal_from_samples", "anneal_until_samples"), anneal)) | {"final": 0.02}
        given = {"a": anneal[0], "e": anneal[1], "m": 0.02}
    schedule = Infinite(warmup_samples=w, cooldown_samples=c, cooling=shape, constant=0.3, **more)
    for n in range(0, 300, 3):
        expected = plain_infinite(n, w=w, c=c, r=0.3, shape=shape, **given)
        assert schedule.share(Place(5, 7, n)) == pytest.approx(expected, rel=1e-12), n


def test_infinite_joins_its_phases_and_knows_no_experience():
    schedule = Infinite(
        warmup_samples=1000,
        cooldown_samples=2000,
        cooling="inverse_sqrt",
        anneal_from_samples=5000,
        anneal_until_samples=6000,
    )
    seen = [schedule.share(Place(0, 1, n)) for n in range(8000)]
    assert max(abs(a - b) for a, b in zip(seen, seen[1:])) < 5e-3
    assert max(seen) == 1 and min(seen[1:]) == pytest.approx(0.001) and seen[-1] == 0.01
    assert not schedule.needs_ends
    assert {schedule.share(Place(s, 9, 1234)) for s in range(9)} == {seen[1234]}


@pytest.mark.parametrize("kind", [Sgd, Adam])
@pytest.mark.parametrize("schedule", [Linear(), Cosine(warmup=0.3), Step()], ids=str)
def test_a_share_is_that_of_the_learning_rate(kind, schedule):
    """Steps with shares are the steps of torch with these learning rates."""
    ours, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimiser = kind(lr=0.05).start({"w": ours})
    reference = {Sgd: torch.optim.SGD, Adam: torch.optim.Adam}[kind]([other], lr=0.05)
    for step in range(8):
        gradient = torch.tensor([1.0, -0.5, 0.1 * step])
        share = schedule.share(Place(step, 8))
        optimiser.step({"w": gradient}, share)
        other.grad = gradient
        reference.param_groups[0]["lr"] = 0.05 * share
        reference.step()
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-7)


def test_what_must_know_where_an_experience_ends():
    needs = {name: cls().needs_ends for name, cls in SCHEDULES.items() if name != "infinite"}
    assert needs == {"constant": False, "linear": True, "cosine": True, "step": True}
    assert Constant(warmup=0.1).needs_ends


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Step(at=(0.5, 0.2)), r"at must rise, got \[0.5, 0.2\]; sort it"),
        (lambda: Step(at=(0.5, 0.5)), "at must rise"),
        (lambda: Step(at=()), "1 entry or more"),
        (lambda: Step(at=(1.0,)), "got 1.0; input should be less than 1"),
        (lambda: Step(factor=0.0), "got 0.0; input should be greater than 0"),
        (lambda: Linear(warmup=1.0), "got 1.0; input should be less than 1"),
        (lambda: Infinite(warmup_samples=5), "cooldown_samples is missing"),
        (lambda: Infinite(warmup_samples=-1, cooldown_samples=5), "got -1"),
        (
            lambda: Infinite(warmup_samples=5, cooldown_samples=5, anneal_from_samples=20),
            "anneal_from_samples=20 and anneal_until_samples=None; give both or neither",
        ),
        (
            lambda: Infinite(
                warmup_samples=5,
                cooldown_samples=5,
                anneal_from_samples=9,
                anneal_until_samples=20,
            ),
            "from 9 to 20 samples; it must begin where the cool-down is over, at 10 or later",
        ),
        (
            lambda: Infinite(
                warmup_samples=5,
                cooldown_samples=5,
                anneal_from_samples=20,
                anneal_until_samples=20,
            ),
            "and end behind that",
        ),
        (
            lambda: Infinite(
                warmup_samples=5,
                cooldown_samples=5,
                anneal_from_samples=20,
                anneal_until_samples=30,
                final=0.5,
            ),
            "final=0.5 is above constant=0.1",
        ),
        (lambda: Sgd(schedule="cosin"), "kind: got 'cosin'; did you mean 'cosine'"),
        (lambda: Sgd(schedule={"kind": "step", "ad": 3}), "unknown key step.ad"),
    ],
)
def test_wrong_values_are_refused_with_what_to_do(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("name", OPTIMISERS.names())
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cosine", Cosine()),
        ({"kind": "step", "at": [0.5], "factor": 0.5}, Step(at=(0.5,), factor=0.5)),
        ({"warmup": 0.25}, Constant(warmup=0.25)),
        (
            {"kind": "infinite", "warmup_samples": 10, "cooldown_samples": 20, "constant": 0.5},
            Infinite(warmup_samples=10, cooldown_samples=20, constant=0.5),
        ),
    ],
    ids=["name", "step", "without a kind", "infinite"],
)
def test_configurations_go_round(name, written, meant):
    table = {"optimiser": {"name": name, "lr": 0.5, "schedule": written, "state": "carried"}}
    config = parse_config(table)
    assert config.optimiser == OPTIMISERS.get(name)(lr=0.5, schedule=meant, state="carried")
    assert parse_config(json.loads(json.dumps(config.table()))) == config
    assert parse_config({"optimiser": {"name": name, "lr": 0.5}}).identity() != config.identity()


def test_a_file_and_the_command_line_reach_a_schedule(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[optimiser]\nname = "adamw"\n[optimiser.schedule]\nkind = "step"\nat = [0.5]')
    assert load_config(path).optimiser.schedule == Step(at=(0.5,))
    changed = load_config(path, ["optimiser.schedule.factor=0.5", "optimiser.state=carried"])
    assert changed.optimiser.schedule == Step(at=(0.5,), factor=0.5)
    assert changed.optimiser.state == "carried"
    assert load_config(path, ["optimiser.schedule=linear"]).optimiser.schedule == Linear()
    with pytest.raises(ConfigError, match=r"optimiser.*schedule.*at must rise, got \[0.5, 0.1\]"):
        load_config(path, ["optimiser.schedule.at=[0.5, 0.1]"])
