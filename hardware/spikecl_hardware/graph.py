"""NIR graphs: reading files, nodes that are allowed, and what a file says besides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import nir
import numpy as np

from spikecl_hardware.files import replacing

KEY = "spikecl"
SEAL = "spikecl_sha256"
DT = 1e-4
"""Seconds of a step that snnTorch's reader assumes, and files without one are given."""

POOLING = (nir.AvgPool2d, nir.SumPool2d)
SYNAPSES = (nir.Linear, nir.Affine, nir.Conv2d)
NEURONS = (nir.LIF, nir.IF, nir.CubaLIF, nir.LI, nir.CubaLI)
KNOWN = ", ".join(kind.__name__ for kind in (*SYNAPSES, *POOLING, nir.Flatten, *NEURONS))


class GraphError(ValueError):
    """A graph, or its file, that cannot be used; the message names the node."""


@dataclass(frozen=True)
class Meta:
    """What a file needs beside the graph so that it alone gives the same answers.

    Args:
        steps: Steps of a sample.
        dt: Seconds of a step.
        decoder: Name of the reduction over steps (``mean``, ``sum``, ``max``, ``last``, ``leaky``,
            ``first_spike``), its constants (``beta`` of ``leaky``, ``xi`` and ``tau_syn`` of
            ``first_spike``), and ``units`` outputs for each class.
        encoder: Encoder of the data, name and options; empty where data are spikes already.
        input: Range of what the encoder gives: ``low``, ``high``, and whether all are zeros and
            ones (``spikes``); empty where nobody said.
        classes: Names of the classes.
        config: The run that made the network, as in its configuration; empty for others.
    """

    steps: int = 1
    dt: float = DT
    decoder: Mapping[str, Any] = field(default_factory=lambda: {"name": "mean", "units": 1})
    encoder: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def _check(self) -> None:
        """Raise ValueError for what cannot be meant."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps}, 1 or more is allowed")
        if not isinstance(self.dt, int | float) or not 0 < self.dt < np.inf:
            raise ValueError(f"dt={self.dt}, seconds above 0 are allowed")
        if not isinstance(self.decoder, Mapping) or not isinstance(self.decoder.get("name"), str):
            raise ValueError(f"decoder={self.decoder}, a name and constants are allowed")

    def attach(self, graph: nir.NIRGraph) -> None:
        """Put this into a graph's metadata."""
        graph.metadata = {**graph.metadata, KEY: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def of(cls, graph: nir.NIRGraph) -> Meta:
        """Return what a graph says, defaults where it says nothing."""
        text = graph.metadata.get(KEY)
        if text is None:
            return cls()
        try:
            found = json.loads(text)
            unknown = set(found) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown entries {sorted(unknown)}")
            made = cls(**{**found, "classes": tuple(found.get("classes", ()))})
            made._check()
            return made
        except (TypeError, ValueError) as error:
            raise GraphError(f"metadata '{KEY}': {error}; written by another version?") from None


def read(path: str | Path) -> nir.NIRGraph:
    """Return the graph of a ``.nir`` file, else GraphError (FileNotFoundError if there is none)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        graph = nir.read(str(path), type_check=False)  # chain() checks, and names the node
    except Exception as error:  # h5py and nir raise what they like at foreign content
        text = " ".join(str(error).split())
        raise GraphError(f"{path}: no NIR file, or cut short ({text}); export again") from None
    seal = getattr(graph, "metadata", {}).get(SEAL)
    if seal is not None and seal != checksum(graph):
        raise GraphError(
            f"{path}: the checksum does not fit its content; export again (whoever changed the "
            f"graph on purpose removes '{SEAL}' from its metadata)"
        )
    return graph


def write(graph: nir.NIRGraph, path: str | Path) -> Path:
    """Write a ``.nir`` file with a checksum, whole or not at all."""
    path = Path(path)
    sealed = nir.NIRGraph(graph.nodes, graph.edges, metadata=graph.metadata, type_check=False)
    sealed.metadata = {**graph.metadata, SEAL: checksum(graph)}
    with replacing(path) as temporary:
        nir.write(str(temporary), sealed)
    return path


def checksum(graph: nir.NIRGraph) -> str:
    """Return the SHA-256 of nodes, edges and metadata, whatever type their numbers are kept as."""
    edges = [f"{a} {b}" for a, b in sorted(graph.edges)]
    told = [f"{k} {v}" for k, v in sorted(graph.metadata.items()) if k != SEAL]
    digest = hashlib.sha256("\n".join([*edges, *told]).encode())
    for name, node in sorted(graph.nodes.items()):
        digest.update(f"{name} {type(node).__name__}".encode())
        if isinstance(node, nir.NIRGraph):
            digest.update(checksum(node).encode())
            continue
        for key, value in sorted(vars(node).items()):
            if key in ("metadata", "input_type", "output_type") or value is None:
                continue
            if isinstance(value, str | bytes):
                digest.update(f"{key} {value!r}".encode())
            else:
                array = np.atleast_1d(np.asarray(value, dtype=np.float64))
                digest.update(f"{key} {array.shape}".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()


def flattened(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return a graph without graphs inside; their nodes get the outer name before a dot."""
    nodes: dict[str, nir.NIRNode] = {}
    edges: list[tuple[str, str]] = []
    doors: dict[str, tuple[str, str]] = {}
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[name] = node
            continue
        inner = flattened(node)
        ends = {}
        for key, part in inner.nodes.items():
            if isinstance(part, nir.Input | nir.Output):
                ends[type(part)] = key
        if set(ends) != {nir.Input, nir.Output}:
            raise GraphError(f"'{name}' is a graph without one input and one output")
        targets = list({b for a, b in inner.edges if a == ends[nir.Input]})
        sources = list({a for a, b in inner.edges if b == ends[nir.Output]})
        if len(targets) != 1 or len(sources) != 1:
            raise GraphError(f"'{name}' is a graph whose input or output branches")
        nodes |= {f"{name}.{k}": n for k, n in inner.nodes.items() if k not in ends.values()}
        edges += [
            (f"{name}.{a}", f"{name}.{b}")
            for a, b in inner.edges
            if a != ends[nir.Input] and b != ends[nir.Output]
        ]
        doors[name] = (f"{name}.{targets[0]}", f"{name}.{sources[0]}")
    edges += [
        (doors[a][1] if a in doors else a, doors[b][0] if b in doors else b) for a, b in graph.edges
    ]
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=graph.metadata, type_check=False)


def check_node(name: str, node: nir.NIRNode) -> None:
    """Refuse a node that is unknown or has numbers that are not finite."""
    allowed = (*SYNAPSES, *POOLING, *NEURONS, nir.Flatten, nir.Input, nir.Output)
    if not isinstance(node, allowed):
        raise GraphError(f"'{name}' is a {type(node).__name__}; allowed: {KNOWN}")
    for key, value in vars(node).items():
        if key in ("metadata", "input_type", "output_type") or isinstance(value, str):
            continue
        if value is not None and not np.isfinite(np.asarray(value, dtype=np.float64)).all():
            raise GraphError(f"'{name}': {key} has values that are not finite; train again")
    if isinstance(node, nir.Conv2d):
        _check_conv(name, node)


def _check_conv(name: str, node: nir.Conv2d) -> None:
    if isinstance(node.padding, str):
        raise GraphError(f"'{name}': padding '{node.padding}'; numbers are allowed")
    for key in ("stride", "padding"):
        value = np.atleast_1d(getattr(node, key))
        if len(set(value.tolist())) != 1:
            raise GraphError(f"'{name}': {key} {value.tolist()}; equal in both axes is allowed")
    if set(np.atleast_1d(node.dilation).tolist()) != {1} or int(node.groups) != 1:
        raise GraphError(f"'{name}': dilation {node.dilation}, groups {node.groups}; 1 is allowed")
