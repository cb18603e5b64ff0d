"""What every registered method must do, on a spiking network and on its ordinary twin.

The tests that ask most of a network also run on one with convolutions and on one that is recurrent.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spikecl.components import from_table, to_table
from spikecl.continual import Context, Method
from spikecl.continual.compose import method_name
from spikecl.continual.projection.protection import ProjectUpdates
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.errors import PairingError
from spikecl.learner import Learner, TrainPlan, check_pairings
from spikecl.neurons import LIF
from spikecl.optim import Adam, ScheduleFreeSgd, Sgd
from spikecl.registry import METHODS, NETWORKS
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_IL, Reveal, permuted
from spikecl.trainers import Bptt, Vogels

EVERYTHING = TASK_IL | Reveal.OLD_DATA | Reveal.SAMPLE_IDS
NO_TASKS = EVERYTHING & ~(Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL | Reveal.CLASSES)
OPTIMISERS = {
    "sgd": Sgd(lr=0.1, momentum=0.9),
    "adam": Adam(lr=0.01),
    "schedule_free": ScheduleFreeSgd(lr=0.5),
}

# methods about hidden weights behind binary synapses
BINARY = ("bimu", "cascade", "laborieux")

# methods about thresholds, which have no ordinary twin
THRESHOLDS = ("threshold",)

# methods about norms
NORMS = ("task_norms",)

# what a method leaves as it was drawn, by the names of parameters
FROZEN = {"if2net": lambda name: name.endswith("weight") and not name.startswith("readout.")}

each_method = pytest.mark.parametrize("method", METHODS.names())
each_network = pytest.mark.parametrize("network", ["spiking_mlp", "mlp"])
every_pair = pytest.mark.parametrize(
    ("method", "network"),
    [
        (method, network)
        for method in METHODS.names()
        for network in ("spiking_mlp", "mlp", "spiking_conv", "spiking_recurrent")
    ],
)
each_optimiser = pytest.mark.parametrize("optimiser", OPTIMISERS)


def data(shape=(8,)):
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32).reshape(42, *shape)
    return checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "c")


def shown_to(method) -> Reveal:
    """Everything but tasks and their classes, and what the method cannot do without."""
    return NO_TASKS | (METHODS.get(method)() if isinstance(method, str) else method).needs


def learner_of(method, network, optimiser="sgd", *, reveal=None, stream=None, batch=5):
    shape = (2, 4) if network == "spiking_conv" else (8,)
    reveal = shown_to(method) if reveal is None else reveal
    stream = stream or permuted(data(shape), experiences=3, seed=1).with_reveal(reveal)
    options = {"neuron": LIF(beta=0.5, v_th=0.1)} if network.startswith("spiking") else {}
    if network == "spiking_conv":
        options |= {"channels": (6,), "kernel": 2, "pool_size": 1}
    else:
        options |= {"hidden": (12,) if network == "spiking_recurrent" else (12, 9)}
    name = method if isinstance(method, str) else method_name(method)
    if name in BINARY:
        options |= {"binary": "rows"}
    if name in NORMS:
        options |= {"norm": "batch", "bias": False}  # no bias learns in front of a norm
    if name in THRESHOLDS:
        network = "spiking_mlp" if network == "mlp" else network
        options |= {"neuron": LIF(beta=0.5, v_th=0.1), "learns": ("v_th",), "per_neuron": True}
    return Learner(
        stream=stream,
        network=NETWORKS.get(network)(**{"bias": True, **options}).build(shape, 3),
        encoder=Direct(steps=3),
        trainer=Bptt(),
        methods=(METHODS.get(method)() if isinstance(method, str) else method,),
        optimiser=OPTIMISERS[optimiser],
        plan=TrainPlan(batch=batch, epochs=2),
        seeds=Seeds(4),
        device=torch.device("cpu"),
    )


def frozen(learner):
    tensors, values = split(learner.state_dict())
    return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))


def assert_states_equal(a, b):
    (ta, va), (tb, vb) = split(a), split(b)
    assert va == vb and sorted(ta) == sorted(tb)
    for name in ta:
        assert torch.equal(ta[name], tb[name]), name


def running(learner) -> Method:
    (method,) = learner.methods.methods.values()
    return method


def held(method: Method) -> dict[int, int]:
    """Bytes of every tensor a method can reach, by storage; the network is not its own."""
    found: dict[int, int] = {}
    seen: set[int] = set()

    def walk(value):
        if id(value) in seen or isinstance(value, (Context, nn.Module, nn.Parameter)):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.numel():
                found[value.data_ptr()] = value.numel() * value.element_size()
        elif isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, (list, tuple, set)):
            for part in value:
                walk(part)
        elif type(value).__module__.startswith("spikecl") or isinstance(value, Method):
            for name in (*getattr(value, "__dict__", {}), *getattr(value, "__slots__", ())):
                walk(getattr(value, name, None))

    walk(method)
    return found


def is_refused(learner) -> bool:
    """An average has parts of earlier updates, which would be held back, or multiplied, twice."""
    method, averages = running(learner), learner._optimiser_spec.averages
    soft = isinstance(method, ProjectUpdates) and not method.protection.projector
    refused = averages and (soft or method.multiplies)
    if refused:
        with pytest.raises(PairingError, match="held back twice" if soft else "multiplied again"):
            next(learner.ticks())
    return refused


@every_pair
@each_optimiser
def test_runs_and_learns(method, network, optimiser):
    learner = learner_of(method, network, optimiser)
    if is_refused(learner):
        return
    start = {n: p.detach().clone() for n, p in learner.network.weights().items()}
    for tick in learner.ticks():
        json.dumps(tick.rows, allow_nan=False)
    assert not np.isnan(learner.scores.matrices()[0].final).any()
    for name, p in learner.network.weights().items():
        assert p.isfinite().all()
        stays = method in FROZEN and FROZEN[method](name)
        assert torch.equal(p, start[name]) == stays, name
        assert p.grad is None


@every_pair
@each_optimiser
def test_resumes_mid_task_bit_identically(method, network, optimiser):
    make = lambda: learner_of(method, network, optimiser)  # noqa: E731
    whole, states, rows = make(), [], []
    if is_refused(whole):
        return
    for tick in whole.ticks():
        rows += tick.rows
        place = (tick.position.event, tick.position.epoch, tick.position.step)
        if tick.kind == "step" and place in ((0, 0, 2), (1, 0, 1), (1, 1, 3), (2, 1, 2)):
            states.append((len(rows), frozen(whole)))
    assert len(states) == 4
    for count, state in states:
        again = make()
        again.load_state_dict(state)
        assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]
        assert_states_equal(frozen(again), frozen(whole))


@each_method
@each_network
def test_state_is_tensors_and_json_and_goes_round(method, network):
    learner = learner_of(method, network)
    for tick in learner.ticks():
        if tick.kind != "step":
            continue
        state = learner.methods.state_dict()
        tensors, values = split(state)
        assert all(isinstance(t, Tensor) for t in tensors.values())
        assert json.loads(json.dumps(values, allow_nan=False)) == values
        assert all("/" not in key for key in _keys(state))
        other = learner_of(method, network)
        other.methods.load_state_dict(join({n: t.clone() for n, t in tensors.items()}, values))
        assert_states_equal(other.methods.state_dict(), state)
        assert other.methods.nbytes() == learner.methods.nbytes()


def _keys(state):
    for key, value in state.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


@every_pair
def test_bytes_are_those_of_the_tensors_held(method, network):
    learner, most = learner_of(method, network), 0
    for tick in learner.ticks():
        count = learner.methods.nbytes()
        assert type(count) is int and count >= 0
        assert count == sum(held(running(learner)).values())
        saved = sum(t.nbytes for t in split(learner.methods.state_dict())[0].values())
        assert count >= saved
        if tick.kind in ("epoch", "event"):
            most = max(most, count)
    assert learner.method_bytes == most


@each_method
@each_network
def test_hidden_task_ids_never_arrive(method, network, monkeypatch):
    """Other ids and classes behind the same data: nothing may come out differently."""
    asked, reveal = [], shown_to(method)
    stream = permuted(data(), experiences=3, seed=1).with_reveal(reveal)
    kind = type(running(learner_of(method, network)))
    if kind.predict is not Method.predict:
        plain = kind.predict

        def spy(self, x, task):
            asked.append(task)
            return plain(self, x, task)

        monkeypatch.setattr(kind, "predict", spy)
    ends = []
    for swap in (False, True):
        made = stream
        if swap:

            def lie(i):
                task = i if Reveal.TASK_ID_TRAIN in reveal else 5 - i
                return replace(stream[i], task=task, classes=(i,))

            made = replace(stream, make=lie)
        learner = learner_of(method, network, stream=made)
        rows = [row for tick in learner.ticks() for row in tick.rows]
        ends.append((rows, frozen(learner)))
    assert ends[0][0] == ends[1][0]
    assert_states_equal(ends[0][1], ends[1][1])
    assert set(asked) <= ({None, 0, 1, 2} if Reveal.TASK_ID_EVAL in reveal else {None})


@every_pair
def test_prediction_and_tests_leave_it_as_it_was(method, network):
    learner, before = learner_of(method, network), None
    generator, kept = torch.get_rng_state(), ("network", "statistics", "methods")
    for tick in learner.ticks():
        now = split({k: v for k, v in frozen(learner).items() if k in kept})
        if tick.kind == "test" and before is not None:
            assert sorted(now[0]) == sorted(before[0]) and now[1] == before[1]
            assert all(torch.equal(t, before[0][n]) for n, t in now[0].items())
        before = now if tick.kind == "test" else None
    assert torch.equal(torch.get_rng_state(), generator)


@each_method
def test_the_same_description_serves_many_runs(method):
    ends = []
    spec = METHODS.get(method)()
    for _ in range(2):
        learner = learner_of(spec, "mlp")
        for _ in learner.ticks():
            pass
        ends.append(frozen(learner))
    assert_states_equal(*ends)


@each_method
def test_what_it_needs_is_asked_for_before_the_start(method):
    needs = METHODS.get(method)().needs
    for flag in needs:
        stream = permuted(data(), experiences=2).with_reveal(EVERYTHING & ~flag)
        with pytest.raises(PairingError, match=f"'{method}' needs {flag.name.lower()}.*permuted-c"):
            check_pairings(stream, Vogels(readout="none"), [METHODS.get(method)()])
        with pytest.raises(PairingError, match=f"needs {flag.name.lower()}.*permuted-c"):
            learner_of(method, "mlp", stream=stream)
    learner_of(method, "mlp", reveal=DOMAIN_IL | needs)


@each_method
def test_name_and_table_go_round(method):
    spec = METHODS.get(method)()
    assert method_name(spec) == method
    assert from_table(type(spec), to_table(spec), "method") == spec
