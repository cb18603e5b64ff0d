"""How soon a run starts: a whole run of one epoch, from the command to its summary.

The demo's network and method on one permutation of the digits, by the command line in a process of
its own, against a process that imports torch and ends. Ratio of CPU times, and the CPU seconds of
both (``_s``), which differ between machines.

    python benchmarks/start.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import interleave, ratios, report

CONFIG = Path(__file__).parents[1] / "examples" / "permuted_digits.toml"
RUN = "import sys; from spikecl.cli import main; sys.argv[0] = 'spikecl'; main()"
FIRST = ("run", str(CONFIG), "--set", "train.epochs=1", "--set", "stream.experiences=1")


def process(*arguments: str) -> Callable[[], dict[str, float]]:
    """Return a function that runs Python once and returns its CPU seconds."""

    def measure() -> dict[str, float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *arguments]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    given = parser.parse_args()
    variants = {
        "first_run": process("-c", RUN, *FIRST),
        "import_torch": process("-c", "import torch"),
    }
    found = interleave(variants, repeats=5 if given.quick else 15)
    seconds = {name: measured["s"] for name, measured in found.items()}
    results = {"first_run_over_import_torch": ratios(seconds["first_run"], seconds["import_torch"])}
    for name, values in seconds.items():
        results[f"{name}_s"] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "n": len(values),
        }
    report("start", results, keep=given.write)


if __name__ == "__main__":
    main()
