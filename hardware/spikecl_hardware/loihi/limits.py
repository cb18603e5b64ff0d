"""What a chip holds, and how many cores each layer of a program takes.

A layer takes cores of its own and is split by neurons: contiguous parts, features in order, that
differ by one neuron at most. The numbers are those of ``Chip.source``; how a program is laid out in
memory is our assumption, here and in ``Chip.assumption``. A compiler may need more or less:

- A neuron that sends to a core has one list of synapses there for each connection, on an input
  axon of its own. A list holds all weights, or the non-zero ones with the number of their neuron,
  whichever is shorter, in whole words.
- Synapses that learn are all stored, those of weight zero too, with 8 bits for a tag and 8 for a
  delay where rules have them, and a list has 7 bits for each trace of its source.
- A convolution stores the non-zero weights of the channels that a core has once per core, each
  with the number of its neuron.
- Host traffic (inputs, probes) takes input axons, but neither output axons nor cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spikecl_hardware.energy import DAVIES_2018
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, ProgramError
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters

STATE_BITS, CONV_BITS, TAG_BITS, TRACE_BITS = 32, 8, 8, 7
Ints = npt.NDArray[np.int64]
Reach = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chip:
    """Limits of one chip; None where the source gives none, and nothing is checked.

    Args:
        name: Of the chip.
        cores: Neuromorphic cores.
        neurons: Of one core.
        memory_bits: Of one core, for synapses (and neurons, see ``shared``).
        word_bits: Lists of synapses take whole words of so many bits.
        axons_in: Lists of synapses that messages can address in one core.
        axons_out: Pairs of a neuron and a core it sends to, of one core.
        shared: Whether neurons take their state from the same memory.
        graded: Whether messages can carry numbers.
        source: Of the numbers.
        assumption: What the source does not say.
    """

    name: str
    cores: int
    neurons: int
    memory_bits: int
    word_bits: int
    axons_in: int | None
    axons_out: int | None
    shared: bool
    graded: bool
    source: str
    assumption: str


LOIHI1 = Chip(
    name="Loihi 1",
    cores=128,
    neurons=1024,
    memory_bits=128 * 1024 * 8,
    word_bits=64,
    axons_in=4096,
    axons_out=4096,
    shared=False,
    graded=False,
    source=DAVIES_2018,
    assumption="lists are aligned to words of 64 bits and need no header",
)
"""128 cores, each of at most 1,024 compartments, 128 KB of synaptic state (in units of 64 bits,
subject to compression and the alignment of lists), 4,096 distribution lists by axon_id and 4,096
core-to-core fan-out edges: the numbered constraints of Davies et al. 2018, p. 89. Its messages are
binary according to table 1 of the brief of `LOIHI2`."""

LOIHI2 = Chip(
    name="Loihi 2",
    cores=128,
    neurons=8192,
    memory_bits=192 * 1024 * 8,
    word_bits=8,
    axons_in=None,
    axons_out=None,
    shared=True,
    graded=True,
    source=(
        "Intel, Taking neuromorphic computing to the next level with Loihi 2, technology brief, "
        "2021, table 1"
    ),
    assumption=(
        "8192 neurons a core (a million a chip is 2^20 on 128 cores); 32 bits of the core's memory "
        "for u, for v and for each register that differs between neurons; lists in whole bytes; "
        "routing tables and microcode take no memory; axons without limit"
    ),
)
"""128 cores, up to 1 million neurons a chip, 192 KB of memory a core with flexible allocation, 0 to
4,096 bytes of it a neuron, graded messages: table 1 of the brief. It gives no limits of axons."""


@dataclass(frozen=True)
class Placement:
    """Cores of one population; what stands after ``cores`` is the most that one core or neuron has.

    Args:
        population: Which one.
        cores: How many it takes.
        neurons: On one core.
        synapses: Non-zero connections into the whole layer, shared weights counted where they act.
        bits: Memory of one core.
        fan_in: Synapses of one neuron.
        axons_in: Input axons of one core.
        axons_out: Output axons of one core.
    """

    population: str
    cores: int
    neurons: int
    synapses: int
    bits: int
    fan_in: int
    axons_in: int
    axons_out: int


class _Use(NamedTuple):
    """The most that one core of a layer needs; names as in `_ADVICE`."""

    neurons: int
    bits: int
    axons_in: int
    axons_out: int


_ADVICE = {
    "neurons": ("neurons", "take another chip"),
    "bits": ("bits of memory", "use fewer weight bits, prune, or give it fewer inputs"),
    "axons_in": ("input axons", "prune its weights, or put a smaller layer or pooling before it"),
    "axons_out": ("output axons", "narrow or prune the layers that it sends to"),
}


def place(program: Program, chip: Chip = LOIHI2) -> list[Placement]:
    """Return where the layers go, in the order of the program: one core fewer would not do.

    The number of chips is not looked at; that is `check`.

    Raises:
        ProgramError: A single neuron needs more than a core has, or graded messages on a chip
            without them.
    """
    _refuse(program, chip)
    cores = dict.fromkeys(program.populations, 1)
    while True:
        edges = _edges(program, chip, cores)
        needed = {name: _fewest(program, chip, name, k, edges[name]) for name, k in cores.items()}
        if needed == cores:
            return [_placement(program, chip, name, k, edges[name]) for name, k in cores.items()]
        cores = needed


def check(program: Program, chip: Chip = LOIHI2, *, chips: int = 1) -> list[Placement]:
    """Return `place`, and raise ProgramError where all layers together need too many cores."""
    placements = place(program, chip)
    needed, allowed = sum(p.cores for p in placements), chip.cores * chips
    if needed > allowed:
        widest = max(placements, key=lambda p: p.cores)
        layers = ", ".join(f"'{p.population}' {p.cores}" for p in placements)
        raise ProgramError(
            f"{layers} cores: {needed} in all; {chips} x {chip.name} has {allowed}: narrow or "
            f"prune '{widest.population}', use fewer weight bits, or take "
            f"{-(-needed // chip.cores)} chips"
        )
    return placements


def _placement(program: Program, chip: Chip, name: str, cores: int, edges: Ints) -> Placement:
    use = _use(program, chip, name, cores, edges)
    fan_in = _fan_in(program, name)
    return Placement(name, cores, synapses=int(fan_in.sum()), fan_in=_most(fan_in), **use._asdict())


def _fewest(program: Program, chip: Chip, name: str, cores: int, edges: Ints) -> int:
    """Return the fewest cores, not below those of before, that hold a layer."""
    size = program.populations[name].size
    least = max(cores, -(-size // chip.neurons))

    def fits(k: int) -> bool:
        return _excess(_use(program, chip, name, k, edges), chip) is None

    found = _smallest(fits, least, size)
    if found is None:
        over = _excess(_use(program, chip, name, size, edges), chip)
        raise ProgramError(f"'{name}': one neuron needs {over}")
    return found


def _smallest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return a number from low to high that fits while one less does not; None where high fails."""
    k = low
    while not fits(k):
        if k >= high:
            return None
        low, k = k + 1, min(2 * k, high)
    while low < k:
        middle = (low + k) // 2
        low, k = (low, middle) if fits(middle) else (middle + 1, k)
    return k


def _excess(use: _Use, chip: Chip) -> str | None:
    """Say what a core lacks."""
    allowed = _Use(chip.neurons, chip.memory_bits, *_axons(chip))
    for what, needs, most in zip(_Use._fields, use, allowed, strict=True):
        if needs > most:
            unit, advice = _ADVICE[what]
            return f"{needs} {unit}; a core of {chip.name} has {most}: {advice}"
    return None


def _axons(chip: Chip) -> Iterator[Any]:
    return (float("inf") if x is None else x for x in (chip.axons_in, chip.axons_out))


def _refuse(program: Program, chip: Chip) -> None:
    """Refuse what no split helps against, before trying any."""
    for c in program.connections:
        if c.synapses.num_message_bits and not chip.graded:
            raise ProgramError(
                f"'{c.source}' to '{c.target}': messages of {c.synapses.num_message_bits} bits; "
                f"{chip.name} has binary ones: encode the input as spikes, or take Loihi 2"
            )
    for name in program.populations:
        fan_in = _most(_fan_in(program, name))
        over = _excess(_Use(1, 0, fan_in, 0), chip)
        if over is not None:
            raise ProgramError(f"'{name}': one neuron needs {over}")


def _use(program: Program, chip: Chip, name: str, cores: int, edges: Ints) -> _Use:
    """Return the most that one core needs where a layer is split over so many."""
    population = program.populations[name]
    starts = _starts(population.size, cores)
    per_core = np.diff(starts, append=population.size)
    bits = per_core * _state_bits(population) if chip.shared else np.zeros_like(per_core)
    axons = np.zeros_like(per_core)
    for c in program.connections:
        if c.target == name:
            reach, taken = _stored(c, program.shape(c.source), starts, population.size, chip)
            axons, bits = axons + np.count_nonzero(reach, axis=1), bits + taken
    sent = np.add.reduceat(edges, starts)
    return _Use(_most(per_core), _most(bits), _most(axons), _most(sent))


def _edges(program: Program, chip: Chip, cores: dict[str, int]) -> dict[str, Ints]:
    """Count, for each neuron, the cores it sends to, once for each connection."""
    edges = {name: np.zeros(p.size, dtype=np.int64) for name, p in program.populations.items()}
    for c in program.connections:
        if c.source != INPUT:
            size = program.populations[c.target].size
            starts = _starts(size, cores[c.target])
            reach, _ = _stored(c, program.shape(c.source), starts, size, chip)
            edges[c.source] += np.count_nonzero(reach, axis=0)
    return edges


def _starts(size: int, cores: int) -> Ints:
    """Return the first neuron of each core."""
    return np.arange(cores, dtype=np.int64) * size // cores


def _stored(
    connection: Connection, shape: tuple[int, ...], starts: Ints, size: int, chip: Chip
) -> tuple[Reach, Ints]:
    """Return which source reaches which core [cores, n_source], and bits by core [cores]."""
    per_core = np.diff(starts, append=size)
    index = (_most(per_core) - 1).bit_length()
    if isinstance(connection.synapses, DenseParameters):
        reach, lists = _dense(connection, starts, per_core, index)
    else:
        reach, lists = _conv(connection.synapses, shape, starts, per_core, index)
    words = -(-lists // chip.word_bits)
    return reach, words.sum(axis=1) * chip.word_bits


def _dense(connection: Connection, starts: Ints, per_core: Ints, index: int) -> tuple[Reach, Ints]:
    """Return who reaches which core, and the bits of its list there, [cores, n_in] both."""
    lengths = np.add.reduceat(_held(connection), starts, axis=0, dtype=np.int64)
    weight, head = connection.dense.num_weight_bits, 0
    if connection.learning is not None:
        rules = connection.learning.rules
        weight += TAG_BITS * len({"t", "d"} & set(rules))
        names = set().union(*(rule.names for rule in rules.values()))
        head = TRACE_BITS * len({"x1", "x2"} & names)
    whole = (per_core * weight)[:, None]
    return lengths > 0, np.minimum(lengths * (weight + index), whole) + head * (lengths > 0)


def _held(connection: Connection) -> Reach:
    """Return which synapses [n_out, n_in] are stored: a weight of zero may grow by learning."""
    held: Reach = np.asarray(connection.dense.effective) != 0
    return held if connection.learning is None else np.ones_like(held)


def _conv(
    synapses: ConvParameters, shape: tuple[int, ...], starts: Ints, per_core: Ints, index: int
) -> tuple[Reach, Ints]:
    """Return who reaches which core [cores, n_in], and the bits of the one list [cores, 1]."""
    held = np.asarray(synapses.weights) != 0
    channels, *rest = synapses.out_shape(shape)
    area = int(np.prod(rest))
    reach = np.zeros((len(starts), *shape), dtype=bool)
    lists = np.zeros((len(starts), 1), dtype=np.int64)
    for core, (start, neurons) in enumerate(zip(starts, per_core, strict=True)):
        low, high = start // area, -(-(start + neurons) // area)
        here = np.zeros((high - low) * area, dtype=np.float32)
        here[start - low * area : start - low * area + neurons] = 1
        kernel = held[low:high]
        reach[core] = _read(kernel, here.reshape(high - low, *rest), synapses, shape)
        lists[core] = np.count_nonzero(kernel) * (CONV_BITS + index)
    return reach.reshape(len(starts), -1), lists


def _read(
    held: Reach, here: npt.NDArray[np.float32], synapses: ConvParameters, shape: tuple[int, ...]
) -> Reach:
    """Return which of the maps [c_in, H, W] some of the outputs [c_out, H', W'] read."""
    p, s = synapses.padding, synapses.stride
    maps = np.zeros((shape[0], shape[1] + 2 * p, shape[2] + 2 * p), dtype=bool)
    rows, columns = (s * (n - 1) + 1 for n in here.shape[1:])
    for k, m in np.ndindex(*held.shape[2:]):
        tap = held[:, :, k, m].astype(np.float32)
        maps[:, k : k + rows : s, m : m + columns : s] |= np.tensordot(tap, here, (0, 0)) > 0
    return maps[:, p : p + shape[1], p : p + shape[2]]


def _fan_in(program: Program, name: str) -> Ints:
    """Count the synapses of each neuron [n]."""
    found = np.zeros(program.populations[name].size, dtype=np.int64)
    for c in program.connections:
        if c.target == name and isinstance(c.synapses, DenseParameters):
            found += np.count_nonzero(_held(c), axis=1)
        elif c.target == name and isinstance(c.synapses, ConvParameters):
            found += _conv_fan_in(c.synapses, program.shape(c.source))
    return found


def _conv_fan_in(synapses: ConvParameters, shape: tuple[int, ...]) -> Ints:
    weights = np.asarray(synapses.weights)
    ones = np.pad(np.ones(shape[1:], dtype=np.int64), synapses.padding)
    windows = np.lib.stride_tricks.sliding_window_view(ones, weights.shape[2:])
    read = windows[:: synapses.stride, :: synapses.stride]
    taps = np.count_nonzero(weights, axis=1)
    return np.asarray(np.einsum("okl,yxkl->oyx", taps, read).ravel())


def _state_bits(population: Population) -> int:
    registers = [getattr(population.neurons, f.name) for f in fields(population.neurons)]
    return STATE_BITS * (2 + sum(np.ndim(r) > 0 for r in registers))


def _most(values: Ints) -> int:
    return int(values.max(initial=0))
