"""One layer of a program: its map, its scale, integer weights, and the neurons behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import nir
import numpy as np

from spikecl_hardware.chain import Dynamics, Layer
from spikecl_hardware.floating import Activity
from spikecl_hardware.graph import GraphError, Meta
from spikecl_hardware.loihi.linear_map import LinearMap, linear_map
from spikecl_hardware.loihi.needs import Place, measured, top, worst_case
from spikecl_hardware.loihi.options import Options
from spikecl_hardware.loihi.program import Connection, Population, Synapses
from spikecl_hardware.loihi.readouts import dynamics
from spikecl_hardware.loihi.registers import check, gains, population
from spikecl_hardware.loihi.scales import (
    CONV_LIMIT,
    EXPONENTS,
    UNIT,
    RangeError,
    Scale,
    grid,
    sign_mode,
    solve,
)
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters, SignMode

SHARED = 1 << 5  # least largest shared weight


class Made(NamedTuple):
    """A layer's part of a program, and its scale."""

    population: Population
    connections: tuple[Connection, ...]
    scale: Scale


def make(
    layer: Layer, place: Place, seen: Activity | None, clip: float, options: Options, meta: Meta
) -> Made:
    """Return a layer whose largest weight that is kept is ``clip`` times the largest.

    Raises:
        GraphError: The chip cannot do it, or its numbers fit no register.
    """
    check(layer)
    return _Maker(layer, place, seen, clip, options, meta).made()


class _Maker:
    """Makes one layer."""

    def __init__(
        self,
        layer: Layer,
        place: Place,
        seen: Activity | None,
        clip: float,
        options: Options,
        meta: Meta,
    ):
        self.layer, self.place, self.seen, self.clip = layer, place, seen, clip
        self.options, self.meta = options, meta
        self.neurons: Dynamics = dynamics(layer, meta)
        self.onto: LinearMap | None = None
        if layer.recurrent is not None:
            weight = np.asarray(layer.recurrent.weight, dtype=np.float64)
            self.onto = LinearMap(weight * gains(self.neurons)[:, None])

    def made(self) -> Made:
        """Return the layer."""
        name, (weights, scale) = self.layer.name, self._scaled()
        first = self._synapses(weights, scale.weight, scale.exponent, self.place.bits)
        connections = [Connection(self.place.source, name, first)]
        if self.onto is not None:
            connections.append(Connection(name, name, self._recurrent(self.onto, scale)))
        neurons = population(self.layer, self.neurons, scale, self.place.depth)
        return Made(neurons, tuple(connections), scale)

    def _scaled(self) -> tuple[LinearMap, Scale]:
        """Return the layer's map in units of the membrane, and its scale."""
        wanted, gain = self.options.convolutions, gains(self.neurons)
        if isinstance(self.layer.synapse, nir.Conv2d) and wanted != "unrolled":
            shared = linear_map(self.layer).scaled(gain, self.layer.out_shape)
            if shared is not None and shared.is_conv:
                try:
                    scale = self._solved(shared)
                except GraphError:
                    if wanted == "shared":
                        raise
                else:
                    if wanted == "shared" or scale.weight * top(shared) >= SHARED:
                        return shared, scale
            elif wanted == "shared":
                differ = "parameters differ within a map"
                what = differ if shared is None else "pooling does not divide it"
                raise GraphError(
                    f"'{self.layer.name}': {what}, shared weights cannot; use "
                    "convolutions='unrolled'"
                )
        weights = linear_map(self.layer, unroll=True).scaled(gain, self.layer.out_shape)
        assert weights is not None
        return weights, self._solved(weights)

    def _solved(self, weights: LinearMap) -> Scale:
        d, place, onto = self.neurons, self.place, 0.0
        if self.onto is not None:
            onto = top(self.onto) / self._largest(self.onto)
        steps, margin = self.meta.steps, self.options.margin
        if self.seen is None:
            needs = worst_case(self.layer, d, weights, onto, place=place, steps=steps)
        else:
            needs = measured(
                *(self.layer, d, weights, onto),
                place=place,
                seen=self.seen,
                margin=margin,
                steps=steps,
            )
        try:
            return solve(
                needs,
                high=self._largest(weights),
                unit_in=place.unit,
                clip=self.clip,
                exponents=self._exponents(weights),
                step=self._step(weights),
            )
        except RangeError as error:
            raise GraphError(
                f"'{self.layer.name}': {error}; give calibration data, smaller messages, or train "
                "with larger weights"
            ) from None

    def _largest(self, weights: LinearMap) -> int:
        """Return the largest integer of either sign that the weights may be."""
        if weights.is_conv:
            return CONV_LIMIT
        points = grid(sign_mode(weights.weights), self.options.weight_bits)
        return max(points.high, -points.low)

    def _exponents(self, weights: LinearMap) -> Sequence[int]:
        if weights.is_conv:
            return (0,)
        if self.options.exponents == "free":
            return EXPONENTS
        return (-1,) if sign_mode(weights.weights) is SignMode.MIXED else (0,)

    def _step(self, weights: LinearMap) -> int:
        if weights.is_conv:
            return 1
        return grid(sign_mode(weights.weights), self.options.weight_bits).step

    def _synapses(self, weights: LinearMap, s: float, exponent: int, message_bits: int) -> Synapses:
        """Return integer weights of a map."""
        if weights.is_conv:
            whole = np.clip(np.rint(weights.weights * s), -CONV_LIMIT, CONV_LIMIT)
            return ConvParameters(
                whole.astype(np.int64), weights.stride, weights.padding, message_bits
            )
        mode = sign_mode(weights.weights)
        return DenseParameters(
            grid(mode, self.options.weight_bits).round(weights.weights * s),
            weight_exp=exponent,
            num_weight_bits=self.options.weight_bits,
            sign_mode=mode,
            num_message_bits=message_bits,
        )

    def _recurrent(self, onto: LinearMap, scale: Scale) -> Synapses:
        """Return recurrent weights in the units of the layer, with an exponent of their own."""
        target = scale.unit / UNIT
        largest = top(onto) * target / self._largest(onto)
        exponent = int(np.ceil(np.log2(largest))) if largest else 0
        allowed = self._exponents(onto)
        if len(allowed) == 1 and exponent > allowed[0]:
            raise GraphError(
                f"'{self.layer.name}': recurrent weights are too large beside those of its input "
                "without an exponent of their own; use exponents='free'"
            )
        exponent = min(max(exponent, allowed[0]), allowed[-1])
        return self._synapses(onto, target / 2.0**exponent, exponent, 0)
