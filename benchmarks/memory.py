"""Peak memory of a piece of work, as torch's allocator sees it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how many bytes were allocated at most, over those at the start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            work()
    results = seen.profiler.kineto_results  # type: ignore[union-attr]
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    total = peak = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        total += change
        peak = max(peak, total)
    return peak
