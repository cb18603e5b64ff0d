"""A network whose answer is known, on every backend that is there.

The numbers of the answer were computed by a loop over neurons in Python's own integers. The network
has what programs have: maps and a convolution, dense synapses of each sign, exponents of each sign,
a cycle, biases, and decays that differ from neuron to neuron. The sample is run twice: the second
time shows that nothing is left of the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import STATES, emulate
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, Readout
from spikecl_hardware.loihi.semantics import (
    ConvParameters,
    DenseParameters,
    LIFParameters,
    SignMode,
)
from spikecl_hardware.record import Record

LIMIT_S = 120.0
SAMPLE = (  # [steps, features] of maps [1, 2, 3]
    (1, 0, 1, 0, 1, 0),
    (1, 1, 0, 1, 0, 1),
    (0, 0, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 1),
    (0, 1, 0, 1, 0, 0),
    (1, 0, 0, 0, 1, 1),
    (1, 1, 0, 0, 1, 0),
    (0, 0, 0, 0, 0, 1),
)
SPIKES = {  # [steps, neurons], as everything below
    "maps": (
        (0, 0, 0, 0),
        (1, 0, 0, 1),
        (0, 1, 0, 0),
        (0, 1, 0, 1),
        (1, 1, 1, 1),
        (0, 1, 1, 0),
        (0, 0, 1, 0),
        (1, 0, 1, 0),
        (0, 0, 0, 0),
    ),
    "out": (
        (0, 0),
        (0, 0),
        (1, 0),
        (0, 0),
        (0, 1),
        (1, 1),
        (0, 1),
        (1, 1),
        (1, 1),
    ),
}
CURRENTS = {
    "maps": (
        (0, 0, 0, 0),
        (9984, -896, -3648, 11136),
        (4864, 9351, 5592, 688),
        (832, 7633, 4643, 8395),
        (9088, 14482, 11449, 10757),
        (-1664, 8059, 20905, -3876),
        (4096, 1407, 10605, -5477),
        (6592, 546, 11864, -5524),
        (-5888, -5631, 6539, -10791),
    ),
    "out": (
        (0, 0),
        (3328, 832),
        (15103, -463),
        (5691, 10689),
        (7836, 20571),
        (13644, 28122),
        (7458, 37773),
        (8527, 38732),
        (12453, 33895),
    ),
}
MEMBRANES = {
    "maps": (
        (296, -960, 0, 512),
        (0, -1856, -3648, 0),
        (5160, 0, 2058, 1200),
        (5910, 0, 6636, 0),
        (0, 0, 0, 0),
        (-1368, 0, 0, -3364),
        (3125, 447, 0, -7589),
        (0, -414, 0, -10933),
        (-5592, -6591, 6539, -18809),
    ),
    "out": (
        (-800, 320),
        (1828, 1464),
        (0, 1285),
        (4891, 12262),
        (11315, 0),
        (0, 0),
        (6658, 0),
        (0, 0),
        (0, 0),
    ),
}
ANSWER = {"spikes": SPIKES, "u": CURRENTS, "v": MEMBRANES}


@dataclass(frozen=True)
class Finding:
    """What one backend did with the network; ``text`` says where, and what is wrong."""

    backend: str
    ok: bool
    text: str


def program() -> Program:
    """Return the network."""
    kernels = np.array([[[[90, -41], [27, 66]]], [[[-38, 101], [73, -19]]]])
    forward = np.array([[102, -58, 36, 84], [-70, 120, 94, -12]])
    back = np.array([[-20, -3], [-9, -31], [-14, 0], [-7, -22]])
    direct = np.array([[200, 16, 91, 55, 130, 7], [33, 180, 64, 250, 12, 99]])
    maps = LIFParameters(
        vth=np.array([140, 60, 110, 45]),
        du=np.array([4095, 1200, 600, 2500]),
        dv=np.array([300, 4095, 128, 900]),
        bias_mant=np.array([37, -120, 0, 64]),
        bias_exp=3,
    )
    out = LIFParameters(
        vth=np.array([180, 420]),
        du=np.array([2048, 700]),
        dv=np.array([512, 100]),
        bias_mant=np.array([-25, 10]),
        bias_exp=5,
    )
    return Program(
        input_shape=(1, 2, 3),
        populations={"maps": Population((2, 1, 2), maps), "out": Population((2,), out)},
        connections=(
            Connection(INPUT, "maps", ConvParameters(kernels)),
            Connection("maps", "out", DenseParameters(forward, num_weight_bits=6)),
            Connection(
                "out",
                "maps",
                DenseParameters(back, weight_exp=2, sign_mode=SignMode.INHIBITORY),
            ),
            Connection(INPUT, "out", DenseParameters(direct, weight_exp=-3)),
        ),
        readout=Readout("out"),
        steps=len(SAMPLE),
    )


def inputs() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the sample twice, [T, 2, 1, 2, 3]."""
    return np.array([SAMPLE, SAMPLE]).swapaxes(0, 1).reshape(len(SAMPLE), 2, 1, 2, 3)


def check(python: str | None = None) -> list[Finding]:
    """Run the network on every backend; ``python`` names the interpreter with Lava."""
    network, x = program(), inputs()
    found = [_finding("emulator (numpy)", lambda: emulate(network, x, states=STATES), "")]
    try:
        place = lava.find(python)
    except lava.LavaError as error:
        return [*found, Finding(f"lava {lava.VERSION}", False, one_line(error))]
    for config in ("Loihi1SimCfg", "Loihi2SimCfg"):

        def ran(config: str = config) -> Record:
            return lava.run(
                network, x, states=STATES, config=config, python=place.python, limit_s=LIMIT_S
            )

        name = f"lava {place.version} ({config}, fixed_pt)"
        found.append(_finding(name, ran, f" in {place.path}, Python {place.python_version}"))
    return found


def _finding(backend: str, run: Callable[[], Record], where: str) -> Finding:
    start = time.perf_counter()
    try:
        wrong = difference(run())
    except lava.LavaError as error:
        return Finding(backend, False, one_line(error))
    took = f"ok ({time.perf_counter() - start:.2f} s{where})"
    return Finding(backend, wrong is None, wrong or took)


def difference(record: Record) -> str | None:
    """Return the first number that is not the known one, or None."""
    for key, expected in ANSWER.items():
        for name, rows in expected.items():
            got = record.spikes[name] if key == "spikes" else record.states[name][key]
            flat = np.asarray(got).reshape(len(got), got.shape[1], -1)
            known = np.array(rows)[:, None]
            if flat.shape[::2] != known.shape[::2]:
                return f"{key} of '{name}' has shape {got.shape}"
            if len(places := np.argwhere(flat != known)):
                t, sample, n = places[0]
                return (
                    f"{key} of '{name}', neuron {n}: {flat[t, sample, n]} at step {t} of sample "
                    f"{sample}, {known[t, 0, n]} is right"
                )
    return None


def one_line(error: Exception) -> str:
    """Return the first and the last line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else type(error).__name__


def main(python: str | None = None) -> int:
    """Print a line for each backend, then ``ok`` or what is wrong; return the exit status."""
    findings = check(python)
    for finding in findings:
        print(f"{finding.backend}: {finding.text}")
    wrong = [finding.backend for finding in findings if not finding.ok]
    print(f"wrong: {', '.join(wrong)}" if wrong else "ok")
    return int(bool(wrong))
