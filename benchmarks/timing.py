"""Fair timing: variants in rotated order, process CPU time, one thread, medians of ratios."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from results import write


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def interleave(
    variants: Mapping[str, Callable[[], dict[str, float]]], *, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Measure every variant ``repeats`` times after a warm-up, starting with another each round.

    A variant returns seconds by key; the result has the list of seconds by variant and key.
    """
    torch.set_num_threads(1)
    names = list(variants)
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for round_ in range(repeats + 1):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            for key, value in variants[name]().items():
                if round_:
                    seconds[name].setdefault(key, []).append(value)
    return seconds


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    """Return median, min and max of the ratios of two variants, round by round."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def report(
    name: str, results: Mapping[str, Mapping[str, float]], *, keep: bool, notes: str = ""
) -> None:
    """Print a line per key, then everything as one JSON object on the last line.

    With ``keep`` the results go to ``benchmarks/results`` as well.
    """
    if keep:
        write(
            name,
            f"python benchmarks/{name}.py --write",
            {"results": results, **({"notes": notes} if notes else {})},
        )
    for key, r in results.items():
        print(f"{key:28s} {r['median']:.3f}  ({r['min']:.3f} to {r['max']:.3f}, n = {r['n']})")
    print(json.dumps(results))
