"""How far the emulator and Lava agree: random programs, every current, membrane and spike.

The programs are those of ``tests/hardware/loihi/programs.py``: all signs, exponents, bits, graded
messages, convolutions, cycles, wraps and clips. Counts of numbers compared, and of those that were
the same, with the Lava of this interpreter and, where ``SPIKECL_LAVA_PYTHON`` names another one,
with that too. ``programs`` counts programs in which all numbers were the same.

    python benchmarks/lava_agreement.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from results import write
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import emulate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hardware" / "loihi"))

from programs import random_program  # noqa: E402

CONFIGS = ("Loihi1SimCfg", "Loihi2SimCfg")
STATES = ("u", "v")
STEPS = 100
NOTE = f"""Numbers that are the same in the emulator and in Lava: random programs of {STEPS} steps,
every spike, current (u) and membrane (v). A program counts when all of its numbers are the same."""


def compare(number: int, config: str, python: str) -> dict[str, tuple[int, int]]:
    """Return how many numbers of each kind are the same, and how many there are."""
    program, inputs = random_program(number, steps=STEPS)
    expected = emulate(program, inputs, states=STATES)
    record = lava.run(program, inputs, states=STATES, config=config, python=python)
    found = {"spikes": (0, 0), "u": (0, 0), "v": (0, 0)}
    for name, spikes in expected.spikes.items():
        pairs = {"spikes": (record.spikes[name], spikes)}
        pairs |= {k: (record.states[name][k], expected.states[name][k]) for k in STATES}
        for key, (got, right) in pairs.items():
            same, total = found[key]
            found[key] = same + int((got == right).sum()), total + right.size
    return found


def agreement(programs: int, config: str, place: lava.Installation) -> dict[str, dict[str, int]]:
    """Return how many programs, spikes, currents and membranes are the same, of how many."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda n: compare(n, config, place.python), range(programs)))
    same = sum(all(a == b for a, b in counts.values()) for counts in found)
    sums = {k: np.sum([counts[k] for counts in found], axis=0).tolist() for k in found[0]}
    return {
        "programs": {"same": same, "n": programs},
        **{k: {"same": a, "n": b} for k, (a, b) in sums.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    given = parser.parse_args()
    pythons = dict.fromkeys([sys.executable, os.environ.get("SPIKECL_LAVA_PYTHON")])
    results, rows = {}, []
    for place in [lava.find(python) for python in pythons if python]:
        for config in CONFIGS:
            found = agreement(8 if given.quick else 210, config, place)
            label = f"Python {place.python_version}, {config}"
            texts = {k: f"{v['same']} of {v['n']}" for k, v in found.items()}
            print(label, texts)
            rows.append({"label": label, "lava": place.version, **texts})
            results[label] = found
    if given.write:
        command = "python benchmarks/lava_agreement.py --write"
        write("lava_agreement", command, {"notes": NOTE, "rows": rows})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
