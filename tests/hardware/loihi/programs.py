"""Random programs that use all that programs may have, and a loop that says what they do.

No current can bring ``u`` out of its 24 bits: sums stay below 2^18, so that 64 times a sum is less
than 2^24 and one wrap brings it back.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, Readout
from spikecl_hardware.loihi.semantics import (
    ConvParameters,
    DenseParameters,
    LIFParameters,
    SignMode,
)

M = 2**23
REACH = 2**18
KINDS = ("chain", "graded", "recurrent", "cycle", "conv", "skip", "wild")
MODES = (None, *SignMode)


def random_program(number: int, *, steps: int = 100):
    """Return program ``number`` and its inputs [steps, samples, ...]; the same at every call."""
    rng = np.random.default_rng(number)
    kind = KINDS[number % len(KINDS)]
    bits = int(rng.integers(2, 9)) if kind in ("graded", "wild") else 0
    shape = (2, int(rng.integers(4, 7)), int(rng.integers(4, 7))) if kind == "conv" else (9,)
    populations, ways = {}, []
    if kind == "conv":
        synapses = _conv(rng, shape, bits)
        populations["a"] = Population(synapses.out_shape(shape), LIFParameters(vth=0))
    else:
        populations["a"] = Population((int(rng.integers(3, 15)),), LIFParameters(vth=0))
    populations["b"] = Population((int(rng.integers(2, 9)),), LIFParameters(vth=0))
    ways = [(INPUT, "a"), ("a", "b")]
    ways += {"recurrent": [("a", "a")], "cycle": [("b", "a")], "skip": [(INPUT, "b")]}.get(kind, [])
    connections = []
    for i, (source, target) in enumerate(ways):
        size = shape if source == INPUT else populations[source].shape
        budget = REACH / sum(t == target for _, t in ways)
        largest = 2 ** (bits - 1) if bits and source == INPUT else 1
        made = (
            synapses
            if kind == "conv" and not i
            else _dense(rng, 3 * number + i, (populations[target].size, int(np.prod(size))))
        )
        made = dataclasses.replace(made, num_message_bits=bits if source == INPUT else i % 2)
        connections.append(Connection(source, target, _bounded(rng, made, budget / largest)))
    for name, population in populations.items():
        neurons = _neurons(rng, population.size, wild=kind == "wild")
        start = rng.integers(1 - M, M, population.size) * (number % 3 == 0)
        populations[name] = dataclasses.replace(population, neurons=neurons, start=start)
    program = Program(shape, populations, tuple(connections), Readout("b"), steps)
    return program, _inputs(rng, (steps, 1 + number % 2, *shape), bits)


def _inputs(rng, shape, bits):
    active = rng.random(shape) < rng.choice([0.1, 0.5, 0.9])
    return active * (rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape) if bits else 1)


def _conv(rng, shape, bits):
    kernel = (int(rng.integers(1, 4)), 2, *rng.integers(1, 5, 2).tolist())
    options = {"stride": int(rng.integers(1, 4)), "padding": int(rng.integers(0, 3))}
    return ConvParameters(rng.integers(-128, 128, kernel), num_message_bits=bits, **options)


def _dense(rng, number, shape):
    mode = MODES[number % 4]
    low, high = ((-300, 300), (-300, 300), (-20, 300), (-300, 20))[number % 4]
    if mode is None:
        low, high = ((0, 256), (-256, 1), (-256, 256))[number % 3]
    return DenseParameters(
        rng.integers(low, high, shape),
        weight_exp=-8 if number % 11 == 0 else number % 15 - 7,
        num_weight_bits=1 + number % 8,
        sign_mode=mode,
    )


def _bounded(rng, synapses, budget):
    """Take weights away until no sum of the others can reach the budget."""
    while True:
        conv = isinstance(synapses, ConvParameters)
        stored = abs(synapses.weights if conv else synapses.effective)
        exponent = 0 if conv else max(synapses.weight_exp, 0)
        if stored.reshape(len(stored), -1).sum(1).max() * 2**exponent < budget:
            return synapses
        left = synapses.weights * (rng.random(synapses.weights.shape) < 0.7)
        synapses = dataclasses.replace(synapses, weights=left)


def _neurons(rng, n, *, wild):
    """Return registers of any size; wild neurons forget nothing, so they wrap and clip."""
    slow = rng.random(n) < 0.7
    return LIFParameters(
        vth=rng.choice([0, 50, 500, 5000, 131071], n),
        du=np.where(slow, 0, 4095) if wild else rng.integers(0, 4096, n),
        dv=np.where(slow, 0, 4095) if wild else rng.integers(0, 4096, n),
        bias_mant=rng.integers(-4096, 4096, n) * (rng.random(n) < 0.5),
        bias_exp=rng.integers(0, 8, n),
    )


def loop(program, inputs):
    """Return spikes, u and v [steps, samples, n] by population, neuron by neuron in Python ints."""
    populations = program.populations.items()
    total, samples = len(inputs) + program.latency, inputs.shape[1]
    found = {n: np.zeros((3, total, samples, p.size), int) for n, p in populations}
    registers = {n: _registers(p) for n, p in populations}
    columns = [(c, _matrix(c.synapses, program.shape(c.source))) for c in program.connections]
    for sample in range(samples):
        state = {n: [(0, v) for v in _starts(p)] for n, p in populations}
        sums = {n: [0] * p.size for n, p in populations}
        for t in range(total):
            silent = np.zeros(inputs.shape[2:], int)
            sent = {INPUT: (inputs[t, sample] if t < len(inputs) else silent).ravel().tolist()}
            for name, _ in populations:
                made = [_neuron(*x) for x in zip(sums[name], state[name], registers[name])]
                found[name][:, t, sample] = np.transpose(made)
                sent[name] = [spike for spike, _, _ in made]
                state[name] = [(u, v) for _, u, v in made]
                sums[name] = [0] * len(made)
            for c, rows in columns:
                e = getattr(c.synapses, "weight_exp", 0)
                x = sent[c.source]
                x = x if c.synapses.num_message_bits else [int(s != 0) for s in x]
                for n, row in enumerate(rows):
                    total_ = sum(w * x[i] for i, w in row)
                    sums[c.target][n] += total_ * 2**e if e >= 0 else total_ // 2**-e
    return found


def _starts(population):
    return (np.zeros(population.size, int) + population.start).tolist()


def _registers(population):
    n = population.neurons
    names = ("du", "dv", "vth", "bias_mant", "bias_exp")
    return list(zip(*(np.broadcast_to(getattr(n, k), population.size).tolist() for k in names)))


def _neuron(a, state, registers):
    du, dv, vth, mant, exp = registers
    u, v = (abs(x) * (4096 - d) // 4096 * (1 if x > 0 else -1) for x, d in zip(state, (du + 1, dv)))
    u += 64 * a
    u += -2 * M if u > M else 2 * M if u <= -M else 0
    v = max(1 - M, min(M - 1, v + u + mant * 2**exp))
    return (1, u, 0) if v > 64 * vth else (0, u, v)


def _matrix(synapses, shape):
    """Return pairs of source and weight for every target; a convolution place by place."""
    if isinstance(synapses, DenseParameters):
        rows = _stored(synapses)
        return [[(i, w) for i, w in enumerate(row) if w] for row in rows]
    weights, stride, padding = synapses.weights.tolist(), synapses.stride, synapses.padding
    _, height, width = shape
    places = np.arange(np.prod(shape)).reshape(shape).tolist()
    _, up, across = synapses.out_shape(shape)
    return [
        [
            (places[c][y * stride + k - padding][x * stride + m - padding], w)
            for c, plane in enumerate(kernel)
            for k, line in enumerate(plane)
            for m, w in enumerate(line)
            if 0 <= y * stride + k - padding < height and 0 <= x * stride + m - padding < width
        ]
        for kernel in weights
        for y in range(up)
        for x in range(across)
    ]


def _stored(synapses):
    """Return the weights that the memory holds, row by row."""
    rows, mode = synapses.weights.tolist(), synapses.sign_mode
    flat = [w for row in rows for w in row]
    if mode is None:
        mode = SignMode.INHIBITORY if max(flat) <= 0 else SignMode.MIXED
        mode = SignMode.EXCITATORY if min(flat) >= 0 else mode
    sign = -1 if mode is SignMode.INHIBITORY else 1
    mixed = mode is SignMode.MIXED
    grid = 2 ** (8 - synapses.num_weight_bits + mixed)
    low = -256 if mixed else 0
    return [[sign * (min(max(sign * w, low), 255) // grid) * grid for w in row] for row in rows]
