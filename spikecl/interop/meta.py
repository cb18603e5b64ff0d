"""What an exported file says beside the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from spikecl_hardware.graph import Meta
from torch import Tensor

from spikecl.components import to_table
from spikecl.encoding import Encoder, InputStatistics
from spikecl.registry import ENCODINGS
from spikecl.streams import Stream


def meta_of(
    calibration: Tensor,
    stream: Stream,
    encoder: Encoder,
    statistics: InputStatistics,
    *,
    encode: Callable[[Tensor], Tensor],
    outputs: int,
    config: Mapping[str, Any] | None = None,
) -> Meta:
    """Return steps, encoder, range of the input and names of classes.

    Args:
        calibration: Encoded samples [T, B, *features].
        stream: Where they come from.
        encoder: Of the samples.
        statistics: What it centres by.
        encode: From raw samples to input over time.
        outputs: Outputs of the network, which are named by number where classes have no names.
        config: The run's configuration.
    """
    found = [calibration[:1] if calibration.stride(0) == 0 else calibration]
    if not encoder.random and not encoder.temporal:  # black and white, whatever was seen
        shape = (2, *stream.input_shape)
        ends = torch.tensor([0.0, 1.0]).view(2, *[1] * (len(shape) - 1)).expand(shape)
        found.append(encode(ends))
    return Meta(
        steps=len(calibration),
        encoder={
            "name": ENCODINGS.name_of(type(encoder)),
            "options": to_table(encoder),
            "statistics": statistics._asdict(),
        },
        input={
            "spikes": all(bool(((x == 0) | (x == 1)).all()) for x in found),
            "low": min(float(x.min()) for x in found),
            "high": max(float(x.max()) for x in found),
        },
        classes=tuple(stream.class_names) or tuple(map(str, range(outputs))),
        config={} if config is None else dict(config),
    )


def together(parts: list[Tensor]) -> Tensor:
    """Return encoded batches [T, B, *features] as one; a repeated step stays one."""
    whole = torch.cat([part[:1] if part.stride(0) == 0 else part for part in parts], dim=1)
    return whole.expand(len(parts[0]), *whole.shape[1:])
