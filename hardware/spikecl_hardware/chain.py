"""A NIR graph as layers in order of execution, with equations per step.

NIR has equations in continuous time. Here they are stepped as snnTorch and Norse step them, by
Euler's rule with the new current::

    LIF       v = v + dt/tau (v_leak - v + r x)
    CubaLIF   i = i + dt/tau_syn (w_in x - i);  v = v + dt/tau_mem (v_leak - v + r i)
    IF        v = v + r x                  (one step is the unit of time)

and a spike (``v > v_threshold``, strictly) puts ``v`` to ``v_reset`` in its own step. ``LI`` and
``CubaLI`` are the same without spikes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import nir
import numpy as np
import numpy.typing as npt

from spikecl_hardware.graph import (
    KNOWN,
    NEURONS,
    POOLING,
    SYNAPSES,
    GraphError,
    Meta,
    check_node,
    flattened,
)

Array = npt.NDArray[np.float64]
ROUNDING = 1e-6  # how much shorter than dt a time constant may be: some are float32


class Dynamics(NamedTuple):
    """Neurons per step, one value each [n] (see the module's equations).

    ``i = alpha i + current_gain x`` and ``v = v_rest + beta (v - v_rest) + gain i``.
    """

    alpha: Array
    beta: Array
    current_gain: Array
    gain: Array
    v_rest: Array
    v_threshold: Array | None
    v_reset: Array | None

    @property
    def spiking(self) -> bool:
        """Whether they fire."""
        return self.v_threshold is not None


class Layer(NamedTuple):
    """A synapse, what lies before it, and the neurons behind it.

    Args:
        name: Name of the synapse's node up to its last dot.
        before: Pooling and flattening of the input, in order.
        synapse: Weights [n_out, n_in] or [c_out, c_in, k, l]; bias or zeros [n_out] or [c_out].
        neurons: How neurons step; ``None`` where the current is the answer.
        recurrent: Weights of the neurons onto themselves, one step later (no bias: it is above).
        in_shape: Features that come in, before pooling.
        out_shape: Features of the neurons.
    """

    name: str
    before: tuple[nir.NIRNode, ...]
    synapse: nir.NIRNode
    neurons: Dynamics | None
    recurrent: nir.NIRNode | None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @property
    def bias(self) -> Array | None:
        """The synapse's bias, where one is not zero."""
        bias = getattr(self.synapse, "bias", None)
        if bias is None or not np.any(bias):
            return None
        return np.asarray(bias, dtype=np.float64)


def chain(graph: nir.NIRGraph, *, dt: float | None = None) -> tuple[tuple[int, ...], list[Layer]]:
    """Return the input's features and the layers in order of execution.

    Args:
        graph: Nodes in a row from one input to one output; only a dense synapse may lead from
            neurons back to themselves.
        dt: Seconds of a step; by default what the graph's metadata say.

    Raises:
        GraphError: A node is unknown, has numbers that are not finite, or stands where it cannot;
            a cycle has no neurons in it.
    """
    graph = flattened(graph)
    dt = Meta.of(graph).dt if dt is None else dt
    if not 0 < dt < np.inf:
        raise GraphError(f"dt={dt}; the seconds of a step, above 0, are allowed")
    walk = _Walk(graph, dt)
    return walk.input_shape, walk.layers()


class _Walk:
    """The way from the input to the output."""

    def __init__(self, graph: nir.NIRGraph, dt: float):
        self.nodes, self.dt = graph.nodes, dt
        for name, node in graph.nodes.items():
            check_node(name, node)
        self.next: dict[str, list[str]] = {name: [] for name in graph.nodes}
        self.into: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for a, b in sorted(set(graph.edges)):
            if a not in self.next or b not in self.next:
                raise GraphError(f"an edge leads from '{a}' to '{b}', which are not both there")
            self.next[a].append(b)
            self.into[b].append(a)
        self.start = self._only(nir.Input)
        self.end = self._only(nir.Output)
        self.input_shape = _shape(graph.nodes[self.start].input_type["input"])
        self.recurrent = self._take_recurrent()

    def _only(self, kind: type) -> str:
        found = [name for name, node in self.nodes.items() if isinstance(node, kind)]
        if len(found) != 1:
            raise GraphError(
                f"{len(found)} nodes of type {kind.__name__} ({', '.join(found)}); one is allowed"
            )
        return str(found[0])

    def _take_recurrent(self) -> dict[str, str]:
        """Take dense synapses from neurons onto themselves out of the edges; by the neurons."""
        found: dict[str, str] = {}
        for name, node in self.nodes.items():
            around = self.next[name]
            if not isinstance(node, nir.Linear | nir.Affine) or around != self.into[name]:
                continue
            if len(around) != 1 or not isinstance(self.nodes[around[0]], NEURONS):
                continue
            if around[0] in found:
                raise GraphError(f"'{around[0]}' has two recurrent synapses; one is allowed")
            found[around[0]] = name
            self.next[around[0]].remove(name)
            self.into[around[0]].remove(name)
        return found

    def layers(self) -> list[Layer]:
        """Return the layers."""
        found: list[Layer] = []
        name, shape = self._step(self.start), self.input_shape
        seen = {self.start, *self.recurrent.values()}
        while name != self.end:
            in_shape, before = shape, []
            while isinstance(self.nodes[name], (*POOLING, nir.Flatten)):
                before.append(self.nodes[name])
                shape = _behind(name, self.nodes[name], shape)
                seen.add(name)
                name = self._step(name)
            if not isinstance(self.nodes[name], SYNAPSES):
                self._refuse_place(name, "a synapse")
            synapse, shape = self.nodes[name], _behind(name, self.nodes[name], shape)
            layer, neurons, recurrent = name, None, None
            seen.add(name)
            name = self._step(name)
            if isinstance(self.nodes[name], NEURONS):
                neurons = dynamics(name, self.nodes[name], shape, self.dt)
                if name in self.recurrent:
                    recurrent = self.nodes[self.recurrent[name]]
                    _check_recurrent(self.recurrent[name], recurrent, shape)
                    synapse, recurrent = _one_bias(self.recurrent[name], synapse, recurrent)
                seen.add(name)
                name = self._step(name)
            elif name != self.end:
                self._refuse_place(name, f"neurons behind '{layer}'")
            label = layer.rpartition(".")[0] or layer
            found.append(Layer(label, tuple(before), synapse, neurons, recurrent, in_shape, shape))
        if left := sorted(set(self.nodes) - seen - {self.end}):
            raise GraphError(f"'{left[0]}' does not lie on the way from the input to the output")
        if not found:
            raise GraphError("no synapse lies between the input and the output")
        return found

    def _step(self, name: str) -> str:
        following = self.next[name]
        if len(following) != 1:
            what = f"to {', '.join(following)}" if following else "nowhere"
            raise GraphError(
                f"'{name}' leads {what}; one way is allowed: branches would arrive after different "
                "numbers of steps"
            )
        (target,) = following
        if len(self.into[target]) != 1:
            raise GraphError(
                f"'{target}' has {len(self.into[target])} inputs "
                f"({', '.join(self.into[target])}); one is allowed"
            )
        return str(target)

    def _refuse_place(self, name: str, expected: str) -> None:
        kind = type(self.nodes[name]).__name__
        raise GraphError(f"'{name}' ({kind}) stands where {expected} must be; allowed: {KNOWN}")


def dynamics(name: str, node: nir.NIRNode, shape: tuple[int, ...], dt: float) -> Dynamics:
    """Return how neurons step; one value for each of them."""

    def each(value: Any) -> Array:
        array = np.asarray(value, dtype=np.float64)
        if array.size in (1, np.prod(shape)):
            return np.array(np.broadcast_to(array.reshape(-1), (int(np.prod(shape)),)))
        if array.ndim == len(shape) and all(
            n in (1, m) for n, m in zip(array.shape, shape, strict=True)
        ):
            return np.array(np.broadcast_to(array, shape)).reshape(-1)
        raise GraphError(f"'{name}' has parameters of shape {array.shape}; the layer is {shape}")

    def share(tau: Any, what: str) -> Array:
        seconds = each(tau)
        with np.errstate(divide="ignore"):
            made = dt / seconds
        made = np.where((made > 1) & (made < 1 + ROUNDING), 1.0, made)
        if not ((made > 0) & (made <= 1)).all():
            raise GraphError(
                f"'{name}': {what} is {seconds.min():g} to {seconds.max():g} s with dt={dt:g} s; "
                "at least dt is allowed"
            )
        return made

    fires: dict[str, Array | None] = {"v_threshold": None, "v_reset": None}
    if isinstance(node, nir.LIF | nir.IF | nir.CubaLIF):
        fires = {"v_threshold": each(node.v_threshold), "v_reset": each(node.v_reset)}
    one, zero = each(1.0), each(0.0)
    if isinstance(node, nir.IF):
        return Dynamics(zero, one, one, each(node.r), zero, **fires)
    rest = each(node.v_leak)
    if isinstance(node, nir.LIF | nir.LI):
        a = share(node.tau, "tau")
        return Dynamics(zero, 1 - a, one, a * each(node.r), rest, **fires)
    s, m = share(node.tau_syn, "tau_syn"), share(node.tau_mem, "tau_mem")
    return Dynamics(1 - s, 1 - m, s * each(node.w_in), m * each(node.r), rest, **fires)


def _behind(name: str, node: nir.NIRNode, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the features behind a node."""
    if isinstance(node, nir.Flatten):
        return (int(np.prod(shape)),)
    axes = {nir.Conv2d: 4, nir.Linear: 2, nir.Affine: 2}.get(type(node))
    if axes is not None and len(np.shape(node.weight)) != axes:
        raise GraphError(f"'{name}' has weights {np.shape(node.weight)}; {axes} axes are allowed")
    if isinstance(node, nir.Linear | nir.Affine):
        n_out, n_in = np.shape(node.weight)
        if n_in != int(np.prod(shape)):
            raise GraphError(f"'{name}' takes {n_in} inputs, gets {shape}")
        return (n_out,)
    if len(shape) != 3:
        raise GraphError(f"'{name}' takes maps [C, H, W], gets {shape}")
    if isinstance(node, nir.Conv2d):
        channels, c_in, *kernel = np.shape(node.weight)
        if c_in != shape[0]:
            raise GraphError(f"'{name}' takes {c_in} channels, gets {shape}")
    else:
        channels, kernel = shape[0], list(_pair(node.kernel_size))
    sides = zip(shape[1:], kernel, _pair(node.stride), _pair(node.padding), strict=True)
    size = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sides)
    if min(size) < 1:
        raise GraphError(f"'{name}' has a window of {kernel}, larger than its maps {shape}")
    return (channels, *size)


def _check_recurrent(name: str, node: nir.NIRNode, shape: tuple[int, ...]) -> None:
    n = int(np.prod(shape))
    if np.shape(node.weight) != (n, n):
        raise GraphError(f"'{name}' has weights {np.shape(node.weight)}; ({n}, {n}) is allowed")


def _one_bias(
    name: str, synapse: nir.NIRNode, recurrent: nir.NIRNode
) -> tuple[nir.NIRNode, nir.NIRNode]:
    """Return a layer's synapses with both biases in the first: there from the first step on."""
    bias, own = (np.asarray(getattr(s, "bias", 0.0)) for s in (recurrent, synapse))
    if not bias.any():
        return synapse, nir.Linear(recurrent.weight)
    if isinstance(synapse, nir.Conv2d):
        raise GraphError(f"'{name}' has a bias onto the maps of a convolution; put it into that")
    return nir.Affine(synapse.weight, own + bias), nir.Linear(recurrent.weight)


def _pair(value: Any) -> tuple[int, int]:
    a = np.atleast_1d(value)
    return int(a[0]), int(a[-1])


def _shape(value: Any) -> tuple[int, ...]:
    if value is None:
        raise GraphError("the input has no shape; write one")
    return tuple(int(n) for n in np.atleast_1d(value))
