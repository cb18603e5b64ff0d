"""What lies between two layers of neurons, as one linear map: pooling, flattening and a synapse.

Average and sum pooling are linear, so they disappear into the weights: into a kernel that is larger
by the window where a convolution follows, into the matrix where a dense synapse does.
"""

from __future__ import annotations

from typing import NamedTuple

import nir
import numpy as np
import numpy.typing as npt

from spikecl_hardware.chain import Layer
from spikecl_hardware.floating import Pair, both, windows

Array = npt.NDArray[np.float64]


class LinearMap(NamedTuple):
    """Weights [n_out, n_in], or [c_out, c_in, k, l] with stride and padding of a convolution."""

    weights: Array
    stride: int = 1
    padding: int = 0

    @property
    def is_conv(self) -> bool:
        """Whether weights are shared."""
        return self.weights.ndim == 4

    @property
    def reach(self) -> float:
        """Largest sum of magnitudes that one output can collect."""
        return float(abs(self.weights).reshape(len(self.weights), -1).sum(1).max(initial=0.0))

    def scaled(self, gain: Array, out_shape: tuple[int, ...]) -> LinearMap | None:
        """Return the map times one gain per neuron; ``None`` where shared weights cannot be."""
        if not self.is_conv:
            return self._replace(weights=self.weights * gain.reshape(-1, 1))
        each = gain.reshape(out_shape[0], -1)
        if (each != each[:, :1]).any():
            return None
        return self._replace(weights=self.weights * each[:, :1, None, None])


def linear_map(layer: Layer, *, unroll: bool = False) -> LinearMap:
    """Return the map of a layer; with ``unroll`` always a matrix."""
    weight = np.asarray(layer.synapse.weight, dtype=np.float64)
    pools = [node for node in layer.before if not isinstance(node, nir.Flatten)]
    if isinstance(layer.synapse, nir.Conv2d):
        made = LinearMap(weight, both(layer.synapse.stride)[0], both(layer.synapse.padding)[0])
        if not unroll and not pools:
            return made
        if not unroll and len(pools) == 1 and (folded := _folded(made, pools[0], layer)):
            return folded
    return LinearMap(_matrix(layer))


def _folded(conv: LinearMap, pool: nir.NIRNode, layer: Layer) -> LinearMap | None:
    """Return a convolution of unpooled maps, where windows tile them."""
    size = k, other = both(pool.kernel_size)
    plain = k == other and both(pool.stride) == size and both(pool.padding) == (0, 0)
    if not plain or any(n % k for n in layer.in_shape[1:]):
        return None
    share = 1 / k**2 if isinstance(pool, nir.AvgPool2d) else 1.0
    larger = conv.weights.repeat(k, axis=2).repeat(k, axis=3) * share
    return LinearMap(larger, conv.stride * k, conv.padding * k)


def _matrix(layer: Layer) -> Array:
    """Return [n_out, n_in] of everything between two layers."""
    shape = layer.in_shape
    whole: Array | None = None
    for node in layer.before:
        if isinstance(node, nir.Flatten):
            continue
        size = both(node.kernel_size)
        share = 1 / np.prod(size) if isinstance(node, nir.AvgPool2d) else 1.0
        kernel = np.einsum("oc,kl->ockl", np.eye(shape[0]), np.full(size, share))
        step, shape = unrolled(kernel, both(node.stride), both(node.padding), shape)
        whole = step if whole is None else step @ whole
    weight = np.asarray(layer.synapse.weight, dtype=np.float64)
    if isinstance(layer.synapse, nir.Conv2d):
        stride, padding = both(layer.synapse.stride), both(layer.synapse.padding)
        weight, _ = unrolled(weight, stride, padding, shape)
    return weight if whole is None else weight @ whole


def unrolled(
    weights: Array, stride: Pair, padding: Pair, shape: tuple[int, ...]
) -> tuple[Array, tuple[int, ...]]:
    """Return a convolution of maps [C, H, W] as a matrix [n_out, n_in], and the shape behind it."""
    channels, height, width = shape
    places = np.arange(1, height * width + 1, dtype=np.float64).reshape(1, 1, height, width)
    seen = windows(places, weights.shape[2:], stride, padding)[0, 0].astype(int)
    rows, columns = seen.shape[:2]
    c_out = len(weights)
    matrix = np.zeros((c_out, rows * columns, channels, height * width + 1))
    kernel = weights.reshape(c_out, channels, -1).transpose(2, 0, 1)
    for place, taps in enumerate(seen.reshape(rows * columns, -1)):
        matrix[:, place, :, taps] = kernel  # all padding is tap 0, whose column goes
    flat = matrix[..., 1:].reshape(c_out * rows * columns, channels * height * width)
    return flat, (c_out, rows, columns)
