"""Mean and standard deviation of the first samples, by which all inputs are scaled."""

from __future__ import annotations

from spikecl.encoding import InputStatistics
from spikecl.streams import Experience, Loaded, Stream


def first_statistics(stream: Stream) -> InputStatistics:
    """Return the statistics of a stream's first experience, which hold for all."""
    for event in stream:
        if isinstance(event, Experience):
            return _statistics(event.train.load())
    return InputStatistics()


def _statistics(loaded: Loaded, chunk: int = 500) -> InputStatistics:
    """Return mean and standard deviation of up to 10,000 samples; of large ones in chunks."""
    if loaded.x[:10_000].numel() <= 2**26:
        x = loaded.take(slice(None, 10_000)).x.double()
        return InputStatistics(float(x.mean()), float(x.std()) or 1.0)
    count, total, square = 0, 0.0, 0.0
    for start in range(0, min(len(loaded), 10_000), chunk):
        x = loaded.take(slice(start, min(start + chunk, 10_000))).x.double()
        count += x.numel()
        total += float(x.sum())
        square += float(x.square().sum())
    mean = total / max(count, 1)
    variance = max(square - count * mean * mean, 0.0) / max(count - 1, 1)
    return InputStatistics(mean, variance**0.5 or 1.0)
