"""NIR graphs as descriptions."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np

from spikecl_hardware.brian2.description import (
    INPUT,
    LIMIT,
    Array,
    Brian2Error,
    Description,
    Neurons,
    Population,
    Projection,
)
from spikecl_hardware.chain import Dynamics, Layer, chain
from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi.linear_map import linear_map


def described(graph: nir.NIRGraph, *, dt: float | None = None) -> Description:
    """Return the description of a graph.

    Args:
        graph: Layers in a row; see :func:`spikecl_hardware.chain.chain`.
        dt: Seconds of a step; by default what the graph's metadata say.

    Raises:
        GraphError: The graph cannot be used.
        Brian2Error: A layer has too many weights for one synapse each.
    """
    dt = Meta.of(graph).dt if dt is None else dt
    inputs, layers = chain(graph, dt=dt)
    populations, projections, source = [], [], INPUT
    for layer in layers:
        matrix = _matrix(layer)
        populations.append(Population(layer.name, layer.out_shape, neurons(layer), _bias(layer)))
        projections.append(Projection.dense(layer.name, source, layer.name, matrix))
        if layer.recurrent is not None:
            back = np.asarray(layer.recurrent.weight, dtype=np.float64)
            name = f"{layer.name}.recurrent"
            projections.append(Projection.dense(name, layer.name, layer.name, back, recurrent=True))
        source = layer.name
    return Description(tuple(populations), tuple(projections), inputs, step_ms=1000 * dt)


def neurons(layer: Layer) -> Neurons:
    """Return the neurons of a layer."""
    d = layer.neurons
    if d is None:
        return Neurons("current")
    filtered = bool(d.alpha.any())
    values = {"beta": d.beta, "v_rest": d.v_rest, "gain": d.gain}
    if filtered:
        values |= {"alpha": d.alpha, "current_gain": d.current_gain}
    else:
        values["gain"] = d.gain * d.current_gain
    values = {name: one(value) for name, value in values.items()}
    if not d.spiking:
        return Neurons("cuba_li" if filtered else "li", values)
    return Neurons("cuba" if filtered else "lif", values | _fires(d))


def _fires(d: Dynamics) -> dict[str, Any]:
    return {"v_th": one(d.v_threshold), "v_reset": one(d.v_reset)}


def one(values: Any) -> Any:
    """Return one number where all are the same."""
    found = np.asarray(values, dtype=np.float64)
    return float(found.flat[0]) if found.size and (found == found.flat[0]).all() else found.ravel()


def _matrix(layer: Layer) -> Array:
    size = int(np.prod(layer.in_shape)) * int(np.prod(layer.out_shape))
    if size > LIMIT:
        raise Brian2Error(
            f"'{layer.name}': {size} weights, one for each pair of neurons, {LIMIT} are allowed; "
            "use a smaller layer, or the backend torch"
        )
    return linear_map(layer, unroll=True).weights


def _bias(layer: Layer) -> Array | None:
    if layer.bias is None:
        return None
    each = np.prod(layer.out_shape) // len(layer.bias)
    return np.repeat(layer.bias, int(each))
