"""Which share of a layer's largest weight to keep: the one that spoils least of what it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spikecl_hardware.chain import Layer
from spikecl_hardware.floating import Activity
from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.layers import Made, make
from spikecl_hardware.loihi.messages import messages
from spikecl_hardware.loihi.needs import Place
from spikecl_hardware.loihi.options import Options
from spikecl_hardware.loihi.program import INPUT, Program, Readout
from spikecl_hardware.loihi.readouts import sums

Array = npt.NDArray[np.float64]


def best(layer: Layer, place: Place, seen: Activity | None, options: Options, meta: Meta) -> Made:
    """Return a layer with the clip of ``options`` that spoils least; the first of equals."""
    clips = options.clips
    if len(clips) == 1 or seen is None:
        return make(layer, place, seen, clips[0], options, meta)
    first = replace(place, source=INPUT, depth=1)
    alone = [make(layer, first, seen, clip, options, meta) for clip in clips]
    spoilt = [_error(layer, made, place, seen, meta) for made in alone]
    return make(layer, place, seen, clips[int(np.argmin(spoilt))], options, meta)


def _error(layer: Layer, made: Made, place: Place, seen: Activity, meta: Meta) -> float:
    """Return how far integers are from the layer's own output on what it was sent."""
    program = Program(
        input_shape=layer.in_shape,
        populations={layer.name: made.population},
        connections=made.connections,
        readout=Readout(layer.name, "spikes"),
        steps=len(seen.sent),
    )
    x = messages(seen.sent, place.unit, place.bits)
    record = emulate(program, x, states=("u", "v"))
    if layer.neurons is not None and layer.neurons.spiking:
        return float((record.outputs.reshape(seen.out.shape) != seen.out).mean())
    adds = sums(layer, meta)
    quantity = "v" if adds or layer.neurons is not None else "u"
    ours: Array = record.states[layer.name][quantity][1:] / made.scale.unit
    return float(((ours - (seen.out.cumsum(0) if adds else seen.out)) ** 2).mean())
