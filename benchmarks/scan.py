"""What a pass through time costs: spikecl, other frameworks, a plain loop and the bare products.

784-512-512-10 and the convolutional network 1-12-64 (5x5, max-pool 2, 1024-10), LIF neurons in the
readout too, 25 steps, batch 64 or 1, Adam; the equations are in ``scan_problem.py``, the networks
of the others in ``scan_peers.py``. 15 % of the inputs are active; hidden neurons fire at 2 % (5 %
in the convolutions), in the keys with ``dense_hidden`` at 15 %.

``gemm`` is the bound of dense products: the same network without neurons, each layer's product
over all steps at once, and the same loss, backward pass and Adam. Keys that begin with the name of
a framework (``plain`` is a hand-written loop) are its ratio to that bound. Of spikecl
``step_b64_over_gemm`` multiplies densely, ``event_`` leaves out of the products what is silent,
``lean_`` keeps less for the backward pass. Memory is the exact count of bytes that a forward pass
keeps for the backward pass.

Each framework has a process of its own with one thread; one works at a time, in an order that
rotates. Ratios of process CPU time, taken round by round; ``low`` and ``high`` bound the median
with 95 % confidence (order statistics; the extremes below 6 rounds). ``--quick`` does without Norse
and SpikingJelly; what is not installed is left out. ``--spikingjelly`` names the Python that has
SpikingJelly.

    python benchmarks/scan.py [--quick] [--write] [--spikingjelly PYTHON]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results import write
from scan_peers import FRAMEWORKS
from scan_problem import SHAPES, make
from scan_worker import CASES, VARIANTS, serve
from timing import ratios, report

QUICK_S = 20.0  # then no further rounds begin
QUICK = ("gemm", "plain", "snntorch", "spikecl")  # the others take seconds to import


class Plan(NamedTuple):
    """How often a case is measured: rounds, then repeats within one, after untimed ones."""

    rounds: int
    quick_rounds: int
    repeats: int = 1
    warm: int = 1
    spikecl: tuple[str, ...] = ("dense", "events")
    only: tuple[str, ...] = tuple(FRAMEWORKS)


PLANS = {
    "step_b64": Plan(21, 4, spikecl=("dense", "events", "lean")),
    "step_b64_dense_hidden": Plan(21, 3, only=("gemm", "snntorch")),
    "step_b1": Plan(21, 4, repeats=21, warm=5, spikecl=("default", "dense")),
    "forward_b1": Plan(21, 4, repeats=101, warm=20, spikecl=("default", "dense")),
    "forward_b64": Plan(21, 3),
    "conv_step": Plan(15, 2, warm=0, spikecl=("default",)),
    "conv_forward": Plan(15, 0, warm=0, spikecl=("default",)),
}


class Worker:
    """A framework's process, asked one thing at a time."""

    def __init__(self, name: str, problems: Path, python: str):
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # for everybody what runs of spikecl ask glibc for (keep_freed_memory)
        one |= {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
        self.process = subprocess.Popen(
            [python, __file__, "--worker", name, "--problems", str(problems)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **one},
            text=True,
            bufsize=1,
        )
        self.name = name

    def read(self) -> dict[str, Any]:
        """Return the next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with {self.process.wait()}")
        return json.loads(line)  # type: ignore[no-any-return]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        return self.read()

    def stop(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


Contestant = tuple[str, str]  # framework and variant
Seconds = dict[str, dict[Contestant, list[float]]]  # by case
Results = dict[str, dict[str, float]]


def label(each: Contestant) -> str:
    """Return the name of a contestant in files."""
    return "_".join(filter(None, each))


def start(
    names: tuple[str, ...], problems: Path, spikingjelly: str
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start the frameworks that are there; return their processes and versions."""
    pythons = dict.fromkeys(names, sys.executable) | {"spikingjelly": spikingjelly}
    workers = {name: Worker(name, problems, pythons[name]) for name in names}
    versions: dict[str, str] = {}
    for name, worker in list(workers.items()):
        said = worker.read()
        if "missing" in said:
            print(f"{name} is left out: {said['missing']}")
            workers.pop(name).stop()
        elif name in said["versions"]:
            versions[name] = said["versions"][name]
            if said["versions"]["torch"] != torch.__version__:
                versions[name] += f" with torch {said['versions']['torch']}"
    return workers, versions


def contestants(case: str, names: Mapping[str, Any]) -> list[Contestant]:
    """Return what is measured in a case."""
    plan = PLANS[case]
    found = [
        (name, variant)
        for name, variants in FRAMEWORKS.items()
        for variant in variants
        if name in names and name in plan.only
    ]
    if CASES[case].problem == "conv" and "norse" in names:
        found.remove(("norse", "layer"))  # dense networks only
    return [*found, *(("spikecl", variant) for variant in plan.spikecl)]


def measure(workers: dict[str, Worker], *, quick: bool, end: float) -> Seconds:
    """Measure every case round by round, in rotated order; after ``end`` one round each."""
    seconds = Seconds()
    for case, plan in PLANS.items():
        rounds = plan.quick_rounds if quick else plan.rounds
        if not rounds:
            continue
        here = contestants(case, workers)
        seconds[case] = {each: [] for each in here}
        ask = {"what": "seconds", "case": case}
        for name, variant in here:
            workers[name].ask(**ask, variant=variant, warm=1, repeats=0)
        for round_ in range(rounds):
            if round_ and time.monotonic() > end:
                break
            first = round_ % len(here)
            for name, variant in here[first:] + here[:first]:
                more = {"variant": variant, "warm": plan.warm, "repeats": plan.repeats}
                spent = workers[name].ask(**ask, **more)["seconds"]
                seconds[case][name, variant].append(statistics.median(spent))
    return seconds


def memory(workers: dict[str, Worker], *, quick: bool) -> dict[str, dict[str, int]]:
    """Count what is kept for the backward pass, by number of steps and variant."""
    counted = [("spikecl", "default"), ("spikecl", "lean")]
    for name, variants in FRAMEWORKS.items():
        if name in workers and (name == "snntorch" or not quick):
            counted += [(name, variant) for variant in variants]
    ask = {"what": "bytes", "case": "step_b64"}
    return {
        f"T={steps}": {
            label(each): workers[each[0]].ask(**ask, variant=each[1], steps=steps)["bytes"]
            for each in counted
        }
        for steps in (25, 200)
    }


def check_losses(workers: dict[str, Worker], case: str) -> dict[str, float]:
    """Say where the same weights do not give the same loss."""
    same = [("plain", ""), ("snntorch", ""), *(("spikecl", variant) for variant in VARIANTS)]
    losses = {
        label(each): workers[each[0]].ask(what="loss", case=case, variant=each[1])
        for each in same
        if each[0] in workers
    }
    found = {key: answer["loss"] for key, answer in losses.items()}
    if max(found.values()) - min(found.values()) > 1e-4:
        print(f"losses differ in {case}: {found}")
    return found


def compare(above: list[float], below: list[float]) -> dict[str, float]:
    """Return the ratios round by round, with an interval of their median."""
    values = sorted(a / b for a, b in zip(above, below, strict=True))
    n, cut = len(values), 0
    while sum(math.comb(n, k) for k in range(cut + 1)) <= 0.025 * 2**n:
        cut += 1
    low, high = values[max(cut - 1, 0)], values[min(n - cut, n - 1)]
    return {**ratios(above, below), "low": low, "high": high}


def fastest(case: Mapping[Contestant, list[float]], names: tuple[str, ...]) -> Contestant:
    """Return whose median is least."""
    return min((c for c in case if c[0] in names), key=lambda c: statistics.median(case[c]))


def summarise(seconds: Seconds) -> Results:
    """Return the ratios by key."""
    results: Results = {}
    for name, case in seconds.items():
        bound = case["gemm", ""]
        variants = PLANS[name].spikecl
        keys = {"default": "", "events": "event_", "lean": "lean_"}
        keys["dense"] = "dense_" if "default" in variants else ""
        for variant in variants:
            results[f"{keys[variant]}{name}_over_gemm"] = compare(case["spikecl", variant], bound)
        for peer in list(FRAMEWORKS)[1:]:
            if any(c[0] == peer for c in case):
                best = fastest(case, (peer,))
                results[f"{peer}_{name}_over_gemm"] = compare(case[best], bound)
        if name.startswith("step_b64") and ("snntorch", "") in case:
            events, tail = case["spikecl", "events"], name.removeprefix("step")
            results[f"snntorch_over_event{tail}"] = compare(case["snntorch", ""], events)
        if name.startswith("conv"):
            best = fastest(case, tuple(FRAMEWORKS)[1:])
            print(f"fastest peer in {name}: {label(best)}")
            ours = case["spikecl", "default"]
            results[f"{name}_over_fastest_peer"] = compare(ours, case[best])
    return {key.replace("b64_dense", "dense"): value for key, value in results.items()}


def saved(counts: Mapping[str, Mapping[str, int]]) -> Results:
    """Return the ratios of what is kept for the backward pass; a count, so n is 1."""
    results: Results = {}
    for tail, count in (("", counts["T=25"]), ("_t200", counts["T=200"])):
        if "snntorch" in count:
            for key, ours in (("saved", "spikecl_default"), ("saved_lean", "spikecl_lean")):
                results[f"{key}_over_snntorch{tail}"] = compare([count[ours]], [count["snntorch"]])
    return results


def keep(
    versions: dict[str, str],
    densities: dict[str, list[float]],
    seconds: Seconds,
    **content: object,
) -> None:
    """Write the results with what it takes to read them."""
    milliseconds = {
        case: {
            label(each): round(1000 * statistics.median(values), 3) for each, values in by.items()
        }
        for case, by in seconds.items()
    }
    rounded = {name: [round(d, 4) for d in found] for name, found in densities.items()}
    content |= {"peers": versions, "densities": rounded, "milliseconds": milliseconds}
    write("scan", "python benchmarks/scan.py --write", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    parser.add_argument("--spikingjelly", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--problems", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        serve(given.worker, given.problems)
        return
    torch.set_num_threads(1)
    end = time.monotonic() + QUICK_S if given.quick else math.inf
    names = QUICK if given.quick else (*FRAMEWORKS, "spikecl")
    with tempfile.TemporaryDirectory() as folder:
        problems = {name: make(name) for name in SHAPES}
        torch.save({key: p._asdict() for key, p in problems.items()}, f"{folder}/problems.pt")
        workers, versions = start(names, Path(folder) / "problems.pt", given.spikingjelly)
        try:
            cases = ("step_b64",) if given.quick else ("step_b64", "step_b64_dense_hidden")
            losses = {case: check_losses(workers, case) for case in cases}
            seconds = measure(workers, quick=given.quick, end=end)
            counts = memory(workers, quick=given.quick)
        finally:
            for worker in workers.values():
                worker.stop()
    results = {**summarise(seconds), **saved(counts)}
    if given.write:
        densities = {name: problem.densities for name, problem in problems.items()}
        keep(versions, densities, seconds, losses=losses, saved_bytes=counts, results=results)
    report("scan", results, keep=False)


if __name__ == "__main__":
    main()
