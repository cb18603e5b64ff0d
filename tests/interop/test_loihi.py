"""The emulator on tensors against the one on numpy, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import NUMPY, emulate
from spikecl_hardware.loihi.program import Connection, Population, Program, ProgramError, Readout
from spikecl_hardware.loihi.semantics import (
    ConvParameters,
    DenseParameters,
    LIFParameters,
    LIFState,
)

from spikecl.errors import UsageError
from spikecl.interop import loihi_scan
from spikecl.interop.loihi import LoihiEmulator, TorchArrays

SIZES = (1, 3, 255, 256, 257, 513)  # around blocks of 256


@pytest.fixture(params=["compiled", "without a compiler"])
def arrays(request, monkeypatch):
    if request.param != "compiled":
        monkeypatch.setattr(loihi_scan, "available", lambda: False)
    elif not loihi_scan.available():
        pytest.fail("there is no C compiler here; set CC")
    return TorchArrays()


def register(rng, n, low, high):
    return int(rng.integers(low, high)) if rng.random() < 0.5 else rng.integers(low, high, n)


def neurons(rng, n):
    """Return neurons, some of which forget nothing, so that they wrap and clip."""
    return LIFParameters(
        vth=register(rng, n, 0, 1 << 17 if rng.random() < 0.3 else 300),
        du=register(rng, n, 0, 4096) if rng.random() < 0.7 else 0,
        dv=register(rng, n, 0, 4096) if rng.random() < 0.7 else 0,
        bias_mant=register(rng, n, -4096, 4096) if rng.random() < 0.4 else 0,
        bias_exp=register(rng, n, 0, 8),
    )


def dense(rng, n_out, n_in, bits=0, low=-7):
    exponent = int(rng.integers(low, 8))
    weights = rng.integers(-300, 300, (n_out, n_in))
    return DenseParameters(weights, exponent, int(rng.integers(1, 9)), None, bits)


def allowed(program, bits):
    """Return a program with as many bits of a message, up to ``bits``, as sums below 2^31 allow."""
    for c in program.connections:
        if c.source == "input":
            weights = getattr(c.synapses, "effective", c.synapses.weights)
            reach = abs(weights).reshape(len(weights), -1).sum(1).max(initial=1)
            shift = max(getattr(c.synapses, "weight_exp", 0), 0)
            bits = min(bits, ((1 << 31) - 1 >> shift).bit_length() - int(reach).bit_length())
    ways = tuple(
        replace(c, synapses=replace(c.synapses, num_message_bits=bits))
        if c.source == "input"
        else c
        for c in program.connections
    )
    return replace(program, connections=ways), bits


def random_program(number):
    """Return program ``number`` and its input; the same at every call."""
    rng = np.random.default_rng(number)
    bits = int(rng.integers(2, 25)) if number % 2 else 0
    if number % 5 == 0:
        shape = (2, *rng.integers(4, 8, 2).tolist())
        kernel = (int(rng.integers(1, 4)), 2, *rng.integers(1, 4, 2).tolist())
        stride, padding = int(rng.integers(1, 3)), int(rng.integers(0, 3))
        first = ConvParameters(rng.integers(-128, 128, kernel), stride, padding, bits)
        size = first.out_shape(shape)
    else:
        shape, size = (int(rng.choice([1, 5, 300])),), (SIZES[number % len(SIZES)],)
        first = dense(rng, size[0], shape[0], bits)
    n, n_in, m = int(np.prod(size)), int(np.prod(shape)), int(rng.integers(1, 6))
    start = register(rng, n, -(1 << 22), 1 << 22) if rng.random() < 0.3 else 0
    populations = {
        "a": Population(size, neurons(rng, n), start),
        "b": Population((m,), neurons(rng, m)),
    }
    ways = [Connection("input", "a", first), Connection("a", "b", dense(rng, m, n))]
    if number % 4 == 1:
        ways.append(Connection("a", "a", dense(rng, n, n, low=-3)))
    if number % 4 == 2:
        ways.append(Connection("b", "a", dense(rng, n, m, low=-3)))
    if number % 3 == 0:
        ways.append(Connection("input", "b", dense(rng, m, n_in, bits)))
    steps, samples = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    quantity = ("spikes", "u", "v")[number % 3]
    program = Program(shape, populations, tuple(ways), Readout("b", quantity), steps)
    if bits:
        program, bits = allowed(program, bits)
        half = 1 << (bits - 1)
        x = rng.integers(-half, half, (steps, samples, *shape))
    else:
        x = (rng.random((steps, samples, *shape)) < rng.random()).astype(np.uint8)
    return program, np.broadcast_to(x[:1], x.shape) if number % 7 == 0 else x


def assert_equal(ours, theirs):
    for name, spikes in theirs.spikes.items():
        assert np.array_equal(ours.spikes[name], spikes), name
        for key, values in theirs.states.get(name, {}).items():
            assert np.array_equal(ours.states[name][key], values), (name, key)
    assert np.array_equal(ours.outputs, theirs.outputs)
    assert np.array_equal(ours.inputs, theirs.inputs)
    assert ours.notes == theirs.notes


def test_random_programs(arrays):
    wild = full = 0
    for number in range(70):
        program, x = random_program(number)
        expected = emulate(program, x, states=("u", "v"))
        assert_equal(emulate(program, x, states=("u", "v"), arrays=arrays), expected)
        wild += any(expected.notes["overflowed"].values())
        full += any(expected.notes["saturated"].values())
    assert wild > 10 and full > 20


@pytest.mark.parametrize("bits", [1, 20, 30, 40, 45])
@pytest.mark.parametrize("started", [False, True])
def test_neurons_alone_however_large_their_currents(arrays, bits, started):
    rng = np.random.default_rng(bits)
    for n in SIZES:
        a = rng.integers(-(1 << bits), 1 << bits, (6, 2, n))
        cells = LIFParameters(
            vth=rng.integers(0, 1 << 17, n), du=0, dv=5, bias_mant=rng.integers(-9, 9, n)
        )
        state = None
        if started:
            v = rng.integers(-(1 << 23) + 1, 1 << 23, (2, n))
            state = LIFState(rng.integers(-(1 << bits + 3), 1 << bits + 3, (2, n)), v)
        expected = NUMPY.scan(a, cells, state, states=("u", "v"))
        theirs = None if state is None else LIFState(*map(torch.from_numpy, state))
        for kind in (torch.int32, torch.int64)[bits > 30 :]:
            given = torch.from_numpy(a).to(kind)
            found = arrays.scan(given, arrays.neurons(cells), theirs, states=("u", "v"))
            assert np.array_equal(found.spikes, expected.spikes)
            assert all(np.array_equal(found.states[k], expected.states[k]) for k in "uv")
            assert all(np.array_equal(*pair) for pair in zip(found.last, expected.last))
            assert found[3:] == expected[3:]


def test_compiled_code_leaves_what_doubles_cannot_hold_to_others():
    cells = LIFParameters(vth=9, du=0)
    far = torch.full((2, 1, 3), loihi_scan.EXACT // 64)
    assert loihi_scan.scan(far, cells, None, states=()) is None
    assert loihi_scan.scan(far // 4, cells, None, states=()) is not None
    zero = torch.zeros(1, 1, 3, dtype=torch.int64)
    state = LIFState(zero[0] + loihi_scan.EXACT, zero[0])
    assert loihi_scan.scan(zero, cells, state, states=()) is None


WITHOUT = """
from test_loihi import TorchArrays, assert_equal, emulate, loihi_scan, random_program
assert not loihi_scan.available()
program, x = random_program(1)
expected = emulate(program, x, states="uv")
assert_equal(emulate(program, x, states="uv", arrays=TorchArrays()), expected)
"""


def test_an_environment_without_a_compiler():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, "CC": "", "PYTHONPATH": os.path.dirname(__file__)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_answers_as_the_emulator():
    program, x = random_program(2)
    module = LoihiEmulator(program)
    expected = emulate(program, x)
    assert_equal(module.run(torch.from_numpy(x)), expected)
    assert_equal(module.run(x, states=("u",)), emulate(program, x, states=("u",)))
    answers = module(torch.from_numpy(x).float())
    assert np.array_equal(answers, logits(expected.outputs, program.readout).astype(np.float32))
    assert not answers.requires_grad


def test_the_module_rounds_input_as_the_program_says():
    cells = Population((1,), LIFParameters(vth=1, du=4095, dv=4095))
    synapses = DenseParameters(np.array([[2]]), num_message_bits=8)
    told = {"input": {"scale": 100.0, "graded": True, "bits": 8}}
    readout = Readout("a", "u", "last", scale=1 / 12800)
    way = (Connection("input", "a", synapses),)
    module = LoihiEmulator(Program((1,), {"a": cells}, way, readout, 1, told))
    x = torch.tensor([0.124, 5.0, -0.2])[None, :, None]
    assert module(x).flatten().tolist() == pytest.approx([0.12, 1.27, -0.2])


@pytest.mark.parametrize("shape", [(0, 2, 5), (3, 0, 5), (3, 2, 4), (3, 5)])
def test_empty_and_other_input_is_refused(shape):
    cells = Population((2,), LIFParameters(vth=1))
    way = (Connection("input", "a", DenseParameters(np.ones((2, 5), dtype=np.int64))),)
    with pytest.raises(ProgramError, match="inputs have shape"):
        LoihiEmulator(Program((5,), {"a": cells}, way, Readout("a"), 3)).run(torch.zeros(shape))


def test_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU that torch sees; use 'cpu'"):
        TorchArrays("cuda")
