"""A network that learns on the chip, against the same update in floats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.semantics import (
    ConvParameters,
    DenseParameters,
    LIFParameters,
    SignMode,
)
from spikecl_hardware.loihi.student import Schedule, Student

N, HIDDEN, CLASSES, STEPS = 16, 24, 3, 10
UNITS = {"hidden": 200.0, "out": 300.0}


def network(seed=0):
    """A network of spikes, as quantise makes them: weights of 1 are 200 and 300 units."""
    rng = np.random.default_rng(seed)
    into = 2 * np.rint(rng.normal(0.12, 0.15, (HIDDEN, N)) * UNITS["hidden"] / 2).astype(int)
    out = 2 * np.rint(rng.normal(0, 0.1, (CLASSES, HIDDEN)) * UNITS["out"] / 2).astype(int)
    return Program(
        (N,),
        {
            "hidden": Population((HIDDEN,), LIFParameters(vth=200, du=4095, dv=800)),
            "out": Population((CLASSES,), LIFParameters(vth=(1 << 17) - 1, du=4095)),
        },
        tuple(
            Connection(a, b, DenseParameters(w, sign_mode=SignMode.MIXED))
            for a, b, w in ((INPUT, "hidden", into), ("hidden", "out", out))
        ),
        Readout("out", "v", "last", scale=1 / (64 * UNITS["out"] * STEPS)),
        STEPS,
        {
            "input": {"scale": 1.0, "graded": False, "bits": 8},
            "scales": {name: {"weight": unit} for name, unit in UNITS.items()},
        },
    )


def task(count, *, seed, means):
    """Spikes around a pattern for each class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    return (rng.random((STEPS, count, N)) < means[y]).astype(int), y


def patterns(seed):
    return np.random.default_rng(seed).choice([0.05, 0.6], (CLASSES, N))


def errors_of(y):
    def errors(z):
        p = np.exp(z - z.max(1, keepdims=True))
        return np.eye(CLASSES)[y] - p / p.sum(1, keepdims=True)

    return errors


def feedback(seed=3):
    return {"hidden": np.random.default_rng(seed).uniform(-0.3, 0.3, (CLASSES, HIDDEN))}


def taught(student, means, batches=60, seed=5):
    student.begin()
    for i in range(batches):
        x, y = task(16, seed=seed + i, means=means)
        student.learn(x, errors_of(y))


def accuracy(student, means):
    x, y = task(300, seed=999, means=means)
    return float((student.answer(x).argmax(1) == y).mean())


def floats(student, name):
    """Weights of a layer in the units of the network."""
    return student.layers[name].weights.w / UNITS[name]


def test_it_learns():
    means = patterns(1)
    student = Student(network(), Schedule(0.4, 16), feedback=feedback())
    before = accuracy(student, means)
    taught(student, means)
    assert accuracy(student, means) > max(0.9, before + 0.2)


def test_updates_are_those_of_floats():
    means, rate = patterns(1), 0.3
    student = Student(network(), Schedule(rate, 16, steps=32), feedback=feedback())
    student.begin()
    start = {name: floats(student, name) for name in UNITS}
    wanted = {name: np.zeros_like(w) for name, w in start.items()}
    for i in range(60):
        x, y = task(16, seed=i, means=means)
        seen = student.learn(x, errors_of(y))
        e = errors_of(y)(seen.logits)
        spikes = seen.record.spikes["hidden"].sum(0)
        able = (spikes > 0) & (spikes < STEPS)
        hidden = (e @ feedback()["hidden"]) * able
        assert np.allclose(seen.left["hidden"], x.sum(0) / STEPS)
        wanted["hidden"] += rate / 16 * hidden.T @ (x.sum(0) / STEPS)
        wanted["out"] += rate / 16 * e.T @ seen.left["out"]
    for name in UNITS:
        moved = floats(student, name) - start[name]
        assert np.corrcoef(moved.ravel(), wanted[name].ravel())[0, 1] > 0.97
        slope = (moved * wanted[name]).sum() / (wanted[name] ** 2).sum()
        assert slope == pytest.approx(1, abs=0.05)


def test_rows_keep_what_they_protect():
    old, new = patterns(1), patterns(2)
    student = Student(network(), Schedule(0.4, 16), feedback=feedback())
    taught(student, old)
    x, _ = task(200, seed=77, means=old)
    seen = student.see(x)
    rows = {}
    for name in UNITS:
        _, _, basis = np.linalg.svd(seen.left[name], full_matrices=False)
        rows[name] = basis[: 8 if name == "hidden" else 12]
    program = student.program

    def after(rows):
        learner = Student(program, Schedule(0.4, 16), feedback=feedback(), rows=rows)
        learned_before = accuracy(learner, old)
        taught(learner, new, seed=500)
        moved = {
            name: np.linalg.norm(
                (learner.layers[name].weights.w - student.layers[name].weights.w)
                @ seen.left[name].T
            )
            for name in UNITS
        }
        return learned_before, accuracy(learner, old), accuracy(learner, new), moved

    before, forgotten, plain_new, plain = after({})
    _, kept, protected_new, moved = after(rows)
    assert plain_new > 0.9 and protected_new > 0.75
    assert kept > before - 0.1 and kept > forgotten + 0.1
    assert all(moved[name] < 0.5 * plain[name] for name in UNITS)


def test_new_rows_find_what_a_task_uses():
    means = patterns(1)
    student = Student(network(), Schedule(0.3, 16, step=1.0), feedback=feedback())
    student.begin({"hidden": 4, "out": 5})
    for i in range(120):
        x, y = task(16, seed=i, means=means)
        student.learn(x, errors_of(y))
    x, _ = task(300, seed=1234, means=means)
    seen = student.see(x)
    for name, k in (("hidden", 4), ("out", 5)):
        rows, data = student.layers[name].rows.values, seen.left[name]
        energy = (np.linalg.norm(data @ np.linalg.qr(rows.T)[0]) / np.linalg.norm(data)) ** 2
        values = np.linalg.svd(data, compute_uv=False) ** 2
        assert rows.shape[0] == k
        assert energy > 0.95 * values[:k].sum() / values.sum()
        assert student.report()[name]["orthonormality_defect"] < 0.2
    student.begin()  # from now on they protect
    left = student.see(x).left
    for name in UNITS:
        assert np.linalg.norm(left[name]) < 0.7 * np.linalg.norm(seen.left[name])


def test_a_layer_without_feedback_stays():
    student = Student(network(), Schedule(0.4, 16))
    start = network().connections[0].dense.weights
    taught(student, patterns(1), batches=10)
    assert list(student.layers) == ["out"]
    assert (student.program.connections[0].dense.weights == start).all()
    assert (
        student.program.connections[1].dense.weights != network().connections[1].dense.weights
    ).any()


def test_it_goes_on_where_it_stopped():
    means = patterns(1)

    def lesson(student, i):
        x, y = task(16, seed=i, means=means)
        student.learn(x, errors_of(y))

    whole = Student(network(), Schedule(0.4, 16), feedback=feedback())
    whole.begin({"hidden": 3, "out": 4})
    for i in range(7):
        lesson(whole, i)
    later = Student(network(), Schedule(0.4, 16), feedback=feedback())
    later.load_state_dict(whole.state_dict())
    for i in range(7, 12):
        lesson(whole, i)
        lesson(later, i)
    for name in UNITS:
        mine, other = whole.layers[name], later.layers[name]
        assert (mine.weights.w == other.weights.w).all() and (
            mine.weights.t == other.weights.t
        ).all()
        assert (mine.rows.weights == other.rows.weights).all()
    assert whole.operations == later.operations
    x, _ = task(50, seed=3, means=means)
    assert (whole.answer(x) == later.answer(x)).all()


def test_operations_by_hand():
    student = Student(network(), Schedule(0.1, 4, steps=8))
    student.begin()
    x, y = task(4, seed=0, means=patterns(1))
    seen = student.learn(x, errors_of(y))
    made = student.operations
    record = seen.record
    assert made.samples == 4
    phases = (
        2 * 4 * student.layers["out"].weights.gain.repeats + 1
    )  # of 8 steps for spikes and one to learn; the last lets tags become weights
    replays = phases * (8 + 1) * (HIDDEN + CLASSES)
    assert made.neuron_updates == 4 * len(record.inputs) * (HIDDEN + CLASSES) + replays
    fan_in = (student.program.connections[0].dense.weights != 0).sum(0)
    fan_out = (network().connections[1].dense.weights != 0).sum(0)
    run = (x.sum((0, 1)) * fan_in).sum() + (record.spikes["hidden"].sum((0, 1)) * fan_out).sum()
    replayed = student.layers["out"].weights.spikes * CLASSES
    assert made.synaptic_events == pytest.approx(run + replayed)
    # each sample is replayed twice, from sources with a sign: every active one sends once
    assert made.synaptic_updates <= 2 * 4 * HIDDEN * CLASSES
    assert made.synaptic_updates % CLASSES == 0 and made.synaptic_updates > 0


@pytest.mark.parametrize("which", ["recurrent", "convolution", "skip", "scales", "rows", "rate"])
def test_what_cannot_learn_is_refused(which):
    program, options = network(), {}
    words = {
        "recurrent": "'hidden' listens to input, hidden",
        "convolution": "convolution",
        "skip": "'out' listens to",
        "scales": "scales",
        "rows": r"\[rows, 16\]",
        "rate": "lower rate",
    }[which]
    schedule = Schedule(900.0 if which == "rate" else 0.4, 16)
    first, second = program.connections
    if which == "recurrent":
        own = Connection("hidden", "hidden", DenseParameters(np.eye(HIDDEN, dtype=int)))
        program = replace(program, connections=(first, own, second))
    elif which == "skip":
        over = Connection(INPUT, "out", DenseParameters(np.ones((CLASSES, N), int)))
        program = replace(program, connections=(first, second, over))
    elif which == "convolution":
        program = Program(
            (1, 4, 4),
            {"out": Population((4,), LIFParameters(vth=5))},
            (Connection(INPUT, "out", ConvParameters(np.ones((1, 1, 3, 3), int))),),
            Readout("out"),
            3,
            program.manifest,
        )
    elif which == "scales":
        program = replace(program, manifest={"input": program.manifest["input"]})
    elif which == "rows":
        options["rows"] = {"hidden": np.eye(5)}
    with pytest.raises((ProgramError, ValueError), match=words):
        Student(program, schedule, feedback=feedback(), **options)
