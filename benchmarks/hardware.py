"""The emulator against Lava and against the float simulation of the same network.

784-256-10 spiking neurons with a linear readout, binary input of density 0.15, 50 steps.
``emulator_over_float`` runs 64 samples as integers and as floats: CPU times, one thread, in turn.
``emulator_speedup_over_lava`` divides Lava's time for a sample by the emulator's: Lava runs its
samples one after the other in processes that wait for each other, so wall time counts there, from
the difference of a long run and a short one (starting Lava does not count).

    python benchmarks/hardware.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.program import Program
from spikecl_hardware.loihi.quantise import quantise
from timing import cpu_seconds, interleave, ratios, report

from spikecl.interop import to_nir
from spikecl.interop.loihi import TorchArrays
from spikecl.networks import Network, SpikingMlp, initialise
from spikecl.neurons import LIF, Reset
from spikecl.seeds import Seeds

STEPS, BATCH, DENSITY = 50, 64, 0.15


def problem() -> tuple[Network, Program, np.ndarray]:
    """Return a network whose hidden neurons fire as trained ones do, its program, and input."""
    neuron = LIF(beta=0.9, reset=Reset.ZERO)
    network = SpikingMlp(hidden=(256,), neuron=neuron, gain=4.0).build((784,), 10)
    initialise(network, Seeds(0))
    told = {"spikes": True, "low": 0.0, "high": 1.0}
    graph = to_nir(network, (784,), meta=Meta(steps=STEPS, input=told))
    draw = np.random.default_rng(0)
    x = (draw.random((STEPS, BATCH, 784)) < DENSITY).astype(np.uint8)
    return network, quantise(graph, calibration=x), x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    given = parser.parse_args()
    network, program, x = problem()
    floats, arrays = torch.from_numpy(x).float(), TorchArrays()

    def emulated() -> None:
        emulate(program, x, arrays=arrays)

    @torch.no_grad()
    def simulated() -> None:
        network(floats)

    calls = 5

    def timed(work: Callable[[], None]) -> Callable[[], dict[str, float]]:
        def repeat() -> None:
            for _ in range(calls):
                work()

        return lambda: {"s": cpu_seconds(repeat) / calls}

    variants = {"emulator": timed(emulated), "float": timed(simulated)}
    found = interleave(variants, repeats=7 if given.quick else 21)
    emulator, simulation = (found[name]["s"] for name in ("emulator", "float"))
    samples, rounds = (8, 1) if given.quick else (20, 5)
    ours = wall(emulated) / BATCH
    results = {
        "emulator_over_float": ratios(emulator, simulation),
        "emulator_speedup_over_lava": ratios(
            [lava_seconds(program, x, samples) for _ in range(rounds)], [ours] * rounds
        ),
    }
    report("hardware", results, keep=given.write)


def lava_seconds(program: Program, x: np.ndarray, samples: int) -> float:
    """Return Lava's seconds for one sample more."""
    short = wall(lambda: lava.run(program, x[:, :2]))
    long = wall(lambda: lava.run(program, x[:, : 2 + samples]))
    return (long - short) / samples


def wall(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
