"""Learning in the emulator: Lava bit for bit, closed forms, and chances as they are stated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from spikecl_hardware.loihi import lava, library
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.engine import Engine
from spikecl_hardware.loihi.learning import Learning, Trace
from spikecl_hardware.loihi.plastic import learn
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.rules import RuleError
from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters, SignMode

RUNS, PARTS, STEPS = 13, 4, 200  # 52 random programs, four in each run of Lava
RANGES = {
    SignMode.MIXED: (-120, 200),
    SignMode.EXCITATORY: (0, 200),
    SignMode.INHIBITORY: (-200, 1),
}
NAMES = ("x1", "x2", "y1", "y2", "y3", "w", "t", "d")


def one(learning, *, n_in=4, n_out=3, weights=None, mode=SignMode.MIXED, **neurons):
    """Return a program of one population whose synapses learn."""
    weights = np.zeros((n_out, n_in), np.int64) if weights is None else weights
    synapses = DenseParameters(weights, sign_mode=mode)
    registers = LIFParameters(**{"vth": 60, "du": 2000, "dv": 300, **neurons})
    return Program(
        (n_in,),
        {"out": Population((n_out,), registers)},
        (Connection(INPUT, "out", synapses, learning),),
        Readout("out"),
        10,
    )


def weights_of(learned, name="input to out"):
    (found,) = [c.synapses.weights for c in learned.program.connections if c.name == name]
    return found


# ---- Lava ---------------------------------------------------------------------------------------


def random_rule(rng, *, deterministic):
    """Return random rules of all that rules may have."""
    modulated = bool(rng.random() < 0.3)
    names = [n for n in NAMES if n != "d"]
    k = int(rng.integers(0, 4))

    def product():
        when = str(rng.choice(["x0", "y0", f"u{k}"]))
        found = [str(n) for n in rng.choice(names, int(rng.integers(0, 3)), replace=False)]
        found = [f"({n}{rng.integers(-5, 6):+d})" if rng.random() < 0.3 else n for n in found]
        found += ["sgn(w-3)"] * bool(rng.random() < 0.2)
        sign, m, e = rng.choice(["+", "-"]), rng.integers(1, 8), rng.integers(-7, 1)
        return "*".join([f"{sign}{m}*2^{max(int(e), 0) if deterministic else e}", when, *found])

    def rule():
        return "".join(product() for _ in range(int(rng.integers(1, 4))))

    def trace(*, whole=False):
        if deterministic:  # nothing is left to round: traces of one step, whole impulses
            return Trace(float(rng.integers(1, 60)), 0.0)
        impulse = rng.uniform(1, 60)
        return Trace(float(int(impulse) if whole else impulse), float(rng.uniform(1, 30)))

    traces = {name: trace() for name in ("x1", "x2")} | {"y1": trace(whole=modulated)}
    if not modulated:
        traces |= {"y2": trace(), "y3": trace()}
    epoch = int(rng.choice([1, 1, 2, 5]))
    more = {name: rule() for name in ("dt", "dd") if rng.random() < 0.4}
    return Learning(rule(), **more, traces=traces, epoch=epoch, seed=3, modulated=modulated)


def random_program(number):
    """Return PARTS programs in one, fed by the same input: each a chain, recurrent or a cycle."""
    rng = np.random.default_rng(number)
    populations, connections = {}, []
    for part in range(PARTS):
        deterministic = part % 2 == 0
        a, b = f"a{part}", f"b{part}"
        for name, n in ((a, int(rng.integers(3, 8))), (b, int(rng.integers(2, 6)))):
            du, dv = (int(rng.integers(0, 4096)) for _ in range(2))
            populations[name] = Population(
                (n,), LIFParameters(vth=int(rng.integers(20, 90)), du=du, dv=dv)
            )
        kind = ("chain", "recurrent", "cycle")[int(rng.integers(0, 3))]
        ways = [(INPUT, a), (a, b), *{"recurrent": [(a, a)], "cycle": [(b, a)]}.get(kind, [])]
        learns = rng.choice(len(ways), 1 + int(rng.random() < 0.5), replace=False)
        for i, (source, target) in enumerate(ways):
            mode = (*SignMode,)[int(rng.choice(3, p=[0.6, 0.3, 0.1]))]
            low, high = RANGES[mode]
            n_in = 8 if source == INPUT else populations[source].size
            synapses = DenseParameters(
                rng.integers(low, high, (populations[target].size, n_in)),
                weight_exp=int(rng.integers(-2, 1)),
                num_weight_bits=int(rng.integers(5, 9)),
                sign_mode=mode,
            )
            made = random_rule(rng, deterministic=deterministic) if i in learns else None
            connections.append(Connection(source, target, synapses, made))
    steps = STEPS // 2
    program = Program((8,), populations, tuple(connections), Readout(f"b{PARTS - 1}"), steps)
    inputs = (rng.random((steps, 2, 8)) < rng.choice([0.1, 0.4])).astype(np.int64)
    reached = {c.target for c in connections if c.learning is not None and c.learning.modulated}
    third = {
        name: rng.integers(-128, 128, (steps, 2, 2, populations[name].size))
        for name in sorted(reached)
    }
    return program, inputs, third


@pytest.mark.parametrize("number", range(RUNS))
def test_random_programs_learn_the_same_in_lava(number, installed):
    """200 steps in two samples: spikes, membranes, weights, tags and delays are equal."""
    program, inputs, third = random_program(number)
    ours = learn(program, inputs, third=third, states=("u", "v"))
    theirs = lava.learn(program, inputs, third=third, states=("u", "v"), python=installed.python)
    for name, spikes in ours.record.spikes.items():
        assert (theirs.record.spikes[name] == spikes).all(), name
        for key, state in ours.record.states[name].items():
            assert (theirs.record.states[name][key] == state).all(), (name, key)
    assert (ours.record.outputs == theirs.record.outputs).all()
    for c in program.connections:
        assert (weights_of(ours, c.name) == weights_of(theirs, c.name)).all(), c.name
    assert ours.tags.keys() == theirs.tags.keys()
    for name, tags in ours.tags.items():
        for key, values in tags.items():
            assert (theirs.tags[name][key] == values).all(), (name, key)


def test_the_random_programs_use_all_that_rules_may_have():
    learning, moved, tags = [], 0, 0
    for number in range(RUNS):
        program, inputs, third = random_program(number)
        found = learn(program, inputs, third=third)
        for c in program.connections:
            if c.learning is not None:
                learning.append(c.learning)
                moved += bool((weights_of(found, c.name) != c.synapses.effective).any())
                tags += any(bool(values.any()) for values in found.tags[c.name].values())
    assert len(learning) >= 50
    assert moved > 0.8 * len(learning)
    assert tags > 0.2 * len(learning)
    names = set().union(*(rule.names for each in learning for rule in each.rules.values()))
    assert names >= set(NAMES) - {"d"}
    assert {each.modulated for each in learning} == {False, True}
    assert {each.epoch for each in learning} == {1, 2, 5}
    assert {each.every for each in learning} >= {None, 0, 1, 2, 3}


LIBRARY = {
    "stdp": library.stdp(),
    "reward_stdp": library.reward_stdp(),
    "hebb": library.hebb(),
    "anti_hebb": library.anti_hebb(),
    "delta": library.delta(epoch=4),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_rules_of_the_library_learn_the_same_in_lava(name, installed):
    rng = np.random.default_rng(7)
    recurrent = name == "anti_hebb"
    program = one(None if recurrent else LIBRARY[name], weights=rng.integers(20, 120, (3, 4)))
    if recurrent:
        inner = DenseParameters(np.full((3, 3), -10), sign_mode=SignMode.INHIBITORY)
        more = Connection("out", "out", inner, LIBRARY[name])
        program = dataclasses.replace(program, connections=(*program.connections, more))
    inputs = (rng.random((STEPS, 1, 4)) < 0.3).astype(np.int64)
    third = {"out": rng.integers(0, 90, (STEPS, 1, 2, 3))} if LIBRARY[name].modulated else {}
    ours, theirs = (run(program, inputs, third=third) for run in (learn, lava.learn))
    at = program.connections[-1]
    assert (weights_of(ours, at.name) == weights_of(theirs, at.name)).all()
    assert (weights_of(ours, at.name) != at.synapses.effective).any()


# ---- closed forms -------------------------------------------------------------------------------


def engine(learning, shape=(1, 1), weight=0, mode=SignMode.MIXED):
    return Engine(learning, np.full(shape, weight, np.int64), mode)


def feed(made, source, target, third=None):
    """Let an engine see spike trains [T, n]; return the weights after each step."""
    found = []
    for t, (x, y) in enumerate(zip(source, target)):
        made.step(t + 1, np.array(x), np.array(y), None if third is None else third[t])
        found.append(made.values["w"].copy())
    return np.array(found)


@pytest.mark.parametrize("dt", [-9, -4, -1, 1, 3, 8])
def test_the_window_of_stdp(dt):
    """One pair: ``gain impulse exp(-|dt|/tau)``, up to what rounding may take in |dt| steps."""
    rule = library.stdp(plus=0.5, minus=0.25, tau_plus=8.0, tau_minus=5.0, impulse=120.0)
    times, found = (12, 12 + dt), []
    for seed in range(300):
        made = engine(dataclasses.replace(rule, seed=seed))
        source, target = (np.arange(40)[:, None] == t for t in times)
        found.append(feed(made, source, target)[-1, 0, 0])
    gain, tau = (0.5, 8.0) if dt > 0 else (-0.25, 5.0)
    expected = gain * 120 * np.exp(-abs(dt) / tau)
    error = max(np.std(found), 0.3) / len(found) ** 0.5
    # the draw that rounds weights does not depend on the seed, so half a unit may stay
    assert abs(np.mean(found) - expected) < 4 * error + 0.5


def test_traces_decay_on_average_as_they_should():
    """Rounding by chance is unbiased: the mean over seeds is the exponential, at 4 sigma."""
    rule = Learning("u9*x1", traces={"x1": Trace(100.0, 12.0)})
    values = []
    for seed in range(2000):
        made = engine(dataclasses.replace(rule, seed=seed))
        feed(made, [[1]] + [[0]] * 15, [[0]] * 16)
        values.append(made._traces["x"][0, 0])
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - 100 * np.exp(-15 / 12)) < 4 * error


def test_weights_are_rounded_with_the_chance_of_the_rest():
    """A step of 3/8 of a unit: the share of steps up is 3/8 at 4 sigma of n = 4000."""
    made = engine(Learning("x0*3*2^-3"))
    found = feed(made, [[1]] * 4000, [[0]] * 4000)[:, 0, 0]
    alone = np.diff(found[: np.argmax(found == found.max())])
    assert set(alone) <= {0, 1}
    n = len(alone)
    assert abs(alone.mean() - 3 / 8) < 4 * (3 / 8 * 5 / 8 / n) ** 0.5


def test_one_draw_rounds_all_synapses_of_a_step():
    made = engine(Learning("x0*2^-1"), (6, 5))
    found = feed(made, np.ones((50, 5)), np.zeros((50, 6)))
    assert (found == found[:, :1, :1]).all()


def test_a_second_spike_in_an_epoch_counts_at_once():
    made = engine(Learning("u0*x1", traces={"x1": Trace(10.0, 1e9)}, epoch=4))
    feed(made, [[1], [1], [0], [1]], [[0]] * 4)
    assert made._traces["x"][0, 0] in (28, 29, 30)  # three impulses; four steps may round down
    assert made.values["w"][0, 0] == made._traces["x"][0, 0]


def test_u_counts_every_so_many_epochs():
    made = engine(Learning("u2*2^3", epoch=2))
    found = feed(made, [[0]] * 32, [[0]] * 32)[:, 0, 0]
    assert np.flatnonzero(np.diff(found, prepend=0)).tolist() == [7, 15, 23, 31]
    assert found[-1] == 32


@pytest.mark.parametrize(
    ("mode", "rule", "end"),
    [
        (SignMode.MIXED, "x0*2^6", 255),
        (SignMode.MIXED, "-x0*2^6", -256),
        (SignMode.EXCITATORY, "-x0*2^6", 0),
        (SignMode.INHIBITORY, "x0*2^6", 0),
        (SignMode.INHIBITORY, "-x0*2^6", -255),
    ],
)
def test_weights_stay_in_their_range(mode, rule, end):
    made = engine(Learning(rule), mode=mode)
    assert feed(made, [[1]] * 9, [[0]] * 9)[-1, 0, 0] == end


def test_hebb_comes_to_the_ratio_of_rate_and_decay():
    """Source and target always fire together: the trace is constant, and so is the weight."""
    rule = library.hebb(rate=0.25, decay=0.0625, impulse=20.0, tau=0.0)
    found = feed(engine(rule), [[1]] * 600, [[1]] * 600)[300:, 0, 0]
    # the product of rate and decay with what is there is rounded down to 2^-4 units
    assert abs(found.mean() - 0.25 * 20 / 0.0625) < 6


def test_the_delta_rule_learns_what_the_errors_ask_for():
    """The sign of ``y2 - y3``, and nothing where the source is silent."""
    third = np.zeros((20, 2, 3), np.int64)
    third[:, 0, 0], third[:, 1, 1] = 60, 60  # more of the first, less of the second
    made = engine(library.delta(rate=2.0**-6), (3, 2))
    found = feed(made, [[1, 0]] * 20, np.zeros((20, 3)), third)[-1]
    assert found[0, 0] > 10
    assert found[1, 0] < -10
    assert not found[2].any()
    assert not found[:, 1].any()


def test_tags_wait_for_a_reward():
    rule = library.reward_stdp(keep=2.0**-7, rate=2.0**-4, impulse=60)
    source, target = np.zeros((12, 1)), np.zeros((12, 1))
    source[2], target[3] = 1, 1
    weights = {}
    for name, row in (("reward", 0), ("punishment", 1), ("none", None)):
        third = np.zeros((12, 2, 1), np.int64)
        if row is not None:
            third[8, row] = 40
        weights[name] = feed(engine(rule), source, target, third)[:, 0, 0]
    assert not weights["none"].any()
    assert not weights["reward"][:8].any()
    assert weights["reward"][-1] > 10
    assert abs(weights["reward"][-1] + weights["punishment"][-1]) <= 1


# ---- programs -----------------------------------------------------------------------------------


def test_samples_start_from_rest_and_weights_go_on():
    rng = np.random.default_rng(0)
    program = one(library.stdp(), weights=rng.integers(20, 120, (3, 4)))
    inputs = (rng.random((30, 2, 4)) < 0.4).astype(np.int64)
    both = learn(program, inputs)
    first = learn(program, inputs[:, :1])
    assert (both.record.spikes["out"][:, 0] == first.record.spikes["out"][:, 0]).all()
    assert (weights_of(both) != weights_of(first)).any()
    silent = learn(program, inputs * [[[1, 1, 1, 1]], [[0, 0, 0, 0]]][0])
    assert not learn(program, 0 * inputs).record.spikes["out"].any()
    assert (weights_of(silent) == weights_of(both)).all()


def test_without_learning_nothing_changes():
    """`emulate` takes the synapses as they are, and so does learning by a rule of no effect."""
    rng = np.random.default_rng(1)
    program = one(Learning("0*x0"), weights=rng.integers(-120, 120, (3, 4)))
    inputs = (rng.random((50, 3, 4)) < 0.5).astype(np.int64)
    plain = emulate(program, inputs, states=("u", "v"))
    found = learn(program, inputs, states=("u", "v"))
    assert (plain.spikes["out"] == found.record.spikes["out"]).all()
    assert plain.spikes["out"].any()
    assert (plain.states["out"]["v"] == found.record.states["out"]["v"]).all()
    assert (plain.outputs == found.record.outputs).all()
    assert (weights_of(found) == program.connections[0].synapses.effective).all()


def test_a_file_holds_the_rules(tmp_path):
    for rule in LIBRARY.values():
        program = one(rule)
        again = Program.load(program.save(tmp_path / "program.h5"))
        assert again.connections[0].learning == rule
        assert again.checksum == program.checksum
    assert one(None).checksum != program.checksum


def test_what_saturates_is_counted():
    rule = Learning("u0*x1", traces={"x1": Trace(100.0, 50.0)})
    inputs = np.ones((10, 1, 4), np.int64)
    notes = learn(one(rule), inputs).record.notes
    assert notes["traces_saturated"]["input to out"] == 4 * 9
    assert notes["weights_clipped"]["input to out"] > 0


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no rule"),
        ({"dw": "x0*y1"}, "rules read y1, which nothing drives"),
        ({"dw": "x0", "epoch": 0}, "1 to 63 steps"),
        ({"dw": "x0", "epoch": 64}, "1 to 63 steps"),
        ({"dw": "x0", "seed": -1}, "0 or more"),
        ({"dw": "x0", "traces": {"x3": Trace(1)}}, "'x3'"),
        ({"dw": "u0*y2", "traces": {"y2": Trace(1)}, "modulated": True}, "come from outside"),
        ({"dw": "u0*y1", "traces": {"y1": Trace(0.5)}, "modulated": True}, "a whole number"),
        ({"dw": "u0*w", "dt": "u1*t"}, "u0, u1; one is allowed"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(RuleError, match=said):
        Learning(**options)


@pytest.mark.parametrize(
    "options", [{"impulse": 128}, {"impulse": -1}, {"tau": -1}, {"tau": 1e300}]
)
def test_traces_out_of_range_are_refused(options):
    with pytest.raises(RuleError, match="0 to 127"):
        Trace(**options)


def test_programs_that_cannot_learn_are_refused():
    inputs = np.zeros((5, 1, 4), np.int64)
    with pytest.raises(ProgramError, match="no connection learns"):
        learn(one(None), inputs)
    with pytest.raises(ProgramError, match="reach out"):
        learn(one(library.delta()), inputs)
    with pytest.raises(ProgramError, match="factors for out; rules of three factors reach none"):
        learn(one(library.stdp()), inputs, third={"out": np.zeros((5, 1, 2, 3), int)})
    with pytest.raises(ProgramError, match=r"\[5, 1, 2, 3\]"):
        learn(one(library.delta()), inputs, third={"out": np.zeros((5, 1, 3, 3), int)})
    with pytest.raises(ProgramError, match="-128 to 127"):
        learn(one(library.delta()), inputs, third={"out": np.full((5, 1, 2, 3), 128)})
    with pytest.raises(ProgramError, match="states"):
        learn(one(library.stdp()), inputs, states=("w",))
    with pytest.raises(ProgramError, match="learns, with weights"):
        one(library.stdp(), weights=np.full((3, 4), 300))
    graded = DenseParameters(np.ones((3, 4), np.int64), num_message_bits=8)
    program = one(None)
    with pytest.raises(ProgramError, match="binary spikes"):
        dataclasses.replace(
            program, connections=(Connection(INPUT, "out", graded, LIBRARY["stdp"]),)
        )
    with pytest.raises(ProgramError, match="beside another connection"):
        dataclasses.replace(
            program, connections=(*one(LIBRARY["stdp"]).connections, *program.connections)
        )
