"""From a NIR graph to a Loihi program: every number becomes an integer that its register holds.

A layer's neurons answer one step after its input, since a synapse sends what it summed a step
later. All layers are late by as many steps as synapses lie before them, so the whole network does
what it did, ``latency`` steps later; the answer of T steps takes ``T + latency``. A bias would act
in the steps before the first input; membranes start where it brings them back to rest by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import nir
import numpy as np
import numpy.typing as npt

from spikecl_hardware.chain import Layer, chain
from spikecl_hardware.floating import simulate
from spikecl_hardware.graph import GraphError, Meta
from spikecl_hardware.loihi.clips import best
from spikecl_hardware.loihi.layers import Made
from spikecl_hardware.loihi.messages import quantise_input
from spikecl_hardware.loihi.needs import Place
from spikecl_hardware.loihi.options import SEARCH, Options
from spikecl_hardware.loihi.program import INPUT, Program
from spikecl_hardware.loihi.readouts import readout

Array = npt.NDArray[np.float64]


def quantise(
    graph: nir.NIRGraph,
    *,
    calibration: npt.ArrayLike | None = None,
    options: Options | None = None,
) -> Program:
    """Return the program of a network.

    Args:
        graph: A chain of layers with its metadata (steps, decoder, range of the input).
        calibration: Encoded training input [T, B, *features]. With it, scales are as fine as what
            was seen allows; without it, currents are given their worst case.
        options: How numbers are chosen.

    Raises:
        GraphError: The graph has something that the chip has not; the layer is named.
    """
    options = Options() if options is None else options
    meta = Meta.of(graph)
    shape, layers = chain(graph)
    _check_chain(layers)
    if len(options.clips) > 1 and calibration is None:
        raise ValueError("several clips are compared on calibration data; give some, or one clip")
    x = None if calibration is None else _checked(calibration, shape)
    entry = _entry(meta, x, options)
    seen = [None] * len(layers) if x is None else simulate(layers, x)
    places = [entry, *(Place(a.name, depth) for depth, a in enumerate(layers[:-1], 2))]
    made: list[Made] = [
        best(layer, place, activity, options, meta)
        for layer, place, activity in zip(layers, places, seen, strict=True)
    ]
    return Program(
        input_shape=shape,
        populations={layer.name: m.population for layer, m in zip(layers, made, strict=True)},
        connections=tuple(c for m in made for c in m.connections),
        readout=readout(layers[-1], made[-1].scale, meta),
        steps=meta.steps,
        manifest={
            "meta": asdict(meta),
            "input": {
                "scale": entry.unit,
                "graded": entry.bits > 0,
                "bits": options.message_bits,
            },
            "scales": {
                layer.name: m.scale._asdict() for layer, m in zip(layers, made, strict=True)
            },
            "options": asdict(options),
            "calibrated": x is not None,
        },
    )


def _check_chain(layers: Sequence[Layer]) -> None:
    names = [layer.name for layer in layers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise GraphError(f"two layers are called '{twice[0]}'; rename the nodes of one")
    for layer in layers[:-1]:
        if layer.neurons is None or not layer.neurons.spiking:
            raise GraphError(
                f"'{layer.name}': its neurons do not fire and are not the last, but synapses on "
                "the chip send spikes; train with spiking neurons there"
            )


def _checked(calibration: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    x = np.asarray(calibration, dtype=np.float64)
    if x.shape[2:] != shape or x.size == 0:
        features = ", ".join(map(str, shape))
        raise GraphError(f"calibration data of shape {x.shape}; [T, B, {features}] is allowed")
    if not np.isfinite(x).all():
        raise GraphError("calibration data has values that are not finite")
    return x


def _entry(meta: Meta, x: Array | None, options: Options) -> Place:
    """Return where the first layer stands, with the messages of the input."""
    spikes_seen = x is not None and bool(np.isin(x, (0, 1)).all())
    if meta.input:
        try:
            spikes = bool(meta.input["spikes"])
            largest = 1.0 if spikes else max(abs(float(meta.input[k])) for k in ("low", "high"))
        except (KeyError, TypeError, ValueError) as error:
            raise GraphError(
                f"metadata: 'input' is {dict(meta.input)}; 'spikes', 'low' and 'high' are needed "
                f"({error})"
            ) from None
        if spikes and x is not None and not spikes_seen:
            raise GraphError(
                "the file says that its input is spikes, calibration data have other values than "
                "0 and 1; give the encoded input"
            )
    elif x is not None:
        spikes, largest = spikes_seen, float(abs(x).max())
    else:
        raise GraphError(
            "the file does not say which values its input has; give calibration data, or write "
            "'input' in its metadata"
        )
    if not np.isfinite(largest):
        raise GraphError(f"metadata: the input reaches {largest}; a finite number is allowed")
    if spikes:
        return Place(INPUT, 1)
    largest, bits = largest or 1.0, options.message_bits
    return Place(INPUT, 1, ((1 << (bits - 1)) - 1) / largest, largest, bits)


__all__ = ["SEARCH", "Options", "quantise", "quantise_input"]
