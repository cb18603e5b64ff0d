"""An exported network that goes on learning: errors gate, lateral neurons protect.

For each batch, in order of execution, with means over the steps of a sample::

    the chip runs x                            spikes x_l, logits; lateral neurons y_l = H_l x_l
    x~_l = x_l - H_l^T y_l                     what rows of earlier tasks leave of it
    f_l  = B_l^T e  where a neuron fired, but not in every step;  f = e at the readout
    sources replay x~+ and x~-, f gates        dW_l = rate <f_l x~_l^T>
    and once more for rows of this task        dH = step <y (x~ - H^T y)^T> / v,  y = H x~

``e`` is the error of the outputs, ``B`` fixed; a whole batch meets the same weights. The chip runs,
answers with its lateral neurons, and learns (:mod:`~spikecl_hardware.loihi.replay`); the host
beside it forms the error and what sources replay. ``v`` is ``<|x~|^2>`` of a task's first batch, or
of the present one if that has more. Rows protect when their task is over; as the next
one begins, the host writes them again, orthonormal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import NUMPY, Arrays, emulate
from spikecl_hardware.loihi.lateral import SUFFIX, Rows, fitting, responses, sent, with_lateral
from spikecl_hardware.loihi.learning import Array
from spikecl_hardware.loihi.operations import count
from spikecl_hardware.loihi.plastic import with_weights
from spikecl_hardware.loihi.program import INPUT, Connection, Program, ProgramError
from spikecl_hardware.loihi.replay import LARGEST, Gain, Taught, learning, most_change
from spikecl_hardware.loihi.rules import RuleError
from spikecl_hardware.loihi.semantics import DenseParameters, SignMode
from spikecl_hardware.record import Record

ROOM = 1.5  # what a projection leaves can be larger than what came
Errors = Callable[[Array], Array]
"""From logits [B, K] to what each sample should have more of [B, K]: minus the loss's gradient."""


@dataclass(frozen=True)
class Schedule:
    """How an exported network learns.

    Args:
        rate: Learning rate, in the units of the network that was exported.
        batch: Samples that meet the same weights. A sample changes them by its share of such a
            batch, in a shorter one too.
        steps: Steps of a replay, and so its largest number of spikes, 1 to 62.
        step: Of lateral weights, relative to the variance of what is left to learn; less where one
            replay could not change them so much.
        seed: Of the rounding of spikes and factors, and of where new rows start.
    """

    rate: float
    batch: int
    steps: int = 14
    step: float = 1.0
    seed: int = 0


class Seen(NamedTuple):
    """A batch as the chip ran it.

    Args:
        record: What all populations did.
        logits: Answers [B, K].
        left: By layer, what old rows leave of what its source sent [B, n], means over steps.
    """

    record: Record
    logits: Array
    left: Mapping[str, Array]


@dataclass(eq=False)
class Layer:
    """A layer that learns, and the lateral rows of its source.

    Args:
        source: What it listens to.
        weights: Its synapses.
        message: What a source's number is divided by, to be in the units of the network.
        largest: What a source replays at most, in those units.
        slope: What a step of its weights moves their product with all gains by [n].
        kept: Lateral rows of earlier tasks, how many.
        rows: All lateral rows.
        growing: Those that learn; none while nothing was seen of a task.
        reach: Largest response, largest activity and variance that ``growing`` was made for.
        cut: Numbers that were too large for a replay.
    """

    source: str
    weights: Taught
    message: float
    largest: float
    slope: Array
    kept: int
    rows: Rows
    growing: Taught | None = None
    reach: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cut: int = 0


class Student:
    """A program whose layers learn.

    Args:
        program: An exported network: dense layers in a row.
        schedule: How it learns.
        rows: Lateral weights H [k, n] by layer, orthonormal, in the units of the network.
        feedback: Fixed weights B [K, n] by hidden layer; a layer without any does not learn.
        gains: What weights that are stored are multiplied by, before neurons see them, by layer
            [n]; none is 1. The rate is that of what is stored.
        arrays: Library that the emulator computes with.
        logged: Whether what synapses are taught is kept, so that Lava can learn the same.

    Raises:
        ProgramError: A layer cannot learn; it is named.
        RuleError: The rate is beyond what the chip's tags hold.

    Attributes:
        done: Batches so far.
        operations: Sums since :meth:`begin`, see :class:`Operations`.
    """

    def __init__(
        self,
        program: Program,
        schedule: Schedule,
        *,
        rows: Mapping[str, npt.ArrayLike] | None = None,
        feedback: Mapping[str, npt.ArrayLike] | None = None,
        gains: Mapping[str, npt.ArrayLike] | None = None,
        arrays: Arrays = NUMPY,
        logged: bool = False,
    ):
        """Lay the network and its lateral neurons on the chip."""
        self.program, self.schedule, self.arrays = program, schedule, arrays
        self._logged = logged
        self.feedback = {name: np.asarray(b) for name, b in (feedback or {}).items()}
        self.done, self.operations = 0, Operations()
        found = in_a_row(program)
        last = program.readout.population
        self.layers = {
            name: self._layer(c, (rows or {}).get(name), (gains or {}).get(name, 1.0))
            for name, c in found.items()
            if name == last or name in self.feedback
        }
        self._listening = self._with_lateral()

    def _layer(
        self, connection: Connection, rows: npt.ArrayLike | None, gain_of: npt.ArrayLike
    ) -> Layer:
        manifest, schedule, name = self.program.manifest, self.schedule, connection.target
        n = int(np.prod(self.program.shape(connection.source)))
        message = largest = 1.0
        if connection.source == INPUT and manifest["input"]["graded"]:
            message = float(manifest["input"]["scale"])
            largest = ((1 << (int(manifest["input"]["bits"]) - 1)) - 1) / message
        h = np.zeros((0, n)) if rows is None else np.asarray(rows, dtype=np.float64)
        if h.shape[1:] != (n,):
            raise ProgramError(
                f"lateral rows of '{name}' have shape {h.shape}; [rows, {n}] is allowed"
            )
        synapses, largest = connection.dense, ROOM * largest
        slope = np.broadcast_to(np.square(gain_of, dtype=np.float64), len(synapses.effective))
        factor = 1.0 if name not in self.feedback else 2 * float(abs(self.feedback[name]).max())
        change = schedule.rate / schedule.batch * manifest["scales"][name]["weight"] * largest
        mixed = synapses.mode is SignMode.MIXED
        try:
            gain = Gain.of(
                change, steps=schedule.steps, largest=factor * float(slope.max()), mixed=mixed
            )
        except RuleError as error:
            raise RuleError(f"'{name}', learning rate {schedule.rate:g}: {error}") from None
        taught = Taught(synapses.effective, synapses.mode, gain, logged=self._logged)
        return Layer(connection.source, taught, message, largest, slope, len(h), Rows.of(h))

    def _with_lateral(self) -> Program:
        return with_lateral(self.program, {each.source: each.rows for each in self.layers.values()})

    def deployed(self) -> Program:
        """Return all that lies on the chip: lateral neurons, and rules where spikes come in.

        Where the input is graded, its synapses learn from the spikes of replays; files say rules of
        synapses between spiking neurons alone.
        """
        program = self._with_lateral()
        rules = {
            f"{layer.source} to {name}": learning(layer.weights.gain, layer.weights.mode)
            for name, layer in self.layers.items()
        }
        connections = tuple(
            replace(c, learning=rules[c.name])
            if c.name in rules and not c.synapses.num_message_bits
            else c
            for c in program.connections
        )
        return replace(program, connections=connections)

    def largest(self, more: Mapping[str, int]) -> Program:
        """Return what has to fit the chip when so many more rows are there, and all may learn."""
        rows = {}
        for name, layer in self.layers.items():
            n = layer.rows.weights.shape[1]
            count_ = min(len(layer.rows.weights) + more.get(name, 0), n)
            likely = np.random.default_rng(0).standard_normal((count_, n))
            rows[layer.source] = Rows.of(likely, largest=2 * float(abs(likely).max(initial=0.0)))
        program = with_lateral(self.program, rows)
        learned = {*self.layers, *(f"{layer.source}{SUFFIX}" for layer in self.layers.values())}

        def plastic(c: Connection) -> Connection:
            synapses = replace(c.dense, num_message_bits=0)  # replays are spikes
            rule = learning(Gain(1, 1.0, 1.0), synapses.mode)
            return replace(c, synapses=synapses, learning=rule)

        made = tuple(plastic(c) if c.target in learned else c for c in program.connections)
        return replace(program, connections=made)

    # ---- running --------------------------------------------------------------------------------

    def answer(self, inputs: npt.ArrayLike) -> Array:
        """Return logits [B, K] of whole-number inputs [T, B, *features], from rest."""
        outputs = emulate(self.program, inputs, arrays=self.arrays).outputs
        return logits(outputs, self.program.readout)

    def see(self, inputs: npt.ArrayLike) -> Seen:
        """Run a batch while lateral neurons listen."""
        listening = self._listening
        record = emulate(listening, inputs, states=("v",), arrays=self.arrays)
        left = {}
        for name, layer in self.layers.items():
            scale = layer.message * self.program.steps
            y = responses(listening, record, layer.source, layer.rows)[:, : layer.kept]
            own = fitting(listening, layer.source, layer.rows)[0].values[: layer.kept]
            left[name] = (sent(record, layer.source) - y @ own) / scale
        self.operations += ran(listening, record)
        return Seen(record, logits(record.outputs, self.program.readout), left)

    # ---- learning -------------------------------------------------------------------------------

    def begin(self, new: Mapping[str, int] | None = None) -> None:
        """A task begins, with clear tags and so many new lateral rows by layer."""
        self.operations = Operations()
        for position, (name, layer) in enumerate(self.layers.items()):
            taught = layer.weights
            start = taught.w.astype(np.int64)
            layer.weights = Taught(start, taught.mode, taught.gain, logged=self._logged)
            rows, n = layer.rows.values, layer.rows.weights.shape[1]
            rows = rows[: layer.kept] if layer.growing is None else _orthonormal(rows)
            count_, layer.kept = min((new or {}).get(name, 0), n - len(rows)), len(rows)
            generator = np.random.default_rng([self.schedule.seed, 1, position, layer.kept])
            rows, layer.growing, layer.cut = _more(rows, count_, generator), None, 0
            room = 2.0 if count_ > 0 else 1.0  # for rows that learn
            layer.rows = Rows.of(rows, largest=room * float(abs(rows).max(initial=0.0)))
        self._listening = self._with_lateral()

    def learn(self, inputs: npt.ArrayLike, errors: Errors) -> Seen:
        """Learn from a batch; return what was seen of it."""
        seen = self.see(inputs)
        error = np.asarray(errors(seen.logits), dtype=np.float64)
        generator = np.random.default_rng([self.schedule.seed, 0, self.done])
        for name, layer in self.layers.items():
            factors = self._factors(name, error, seen.record) * layer.slope
            self._teach(layer, layer.weights, seen.left[name] / layer.largest, factors, generator)
            if layer.kept < len(layer.rows.weights):
                self._grow(layer, seen.left[name], generator)
        self.program = self._taught()
        self._listening = self._with_lateral()
        self.done += 1
        return seen

    def _teach(
        self, layer: Layer, taught: Taught, x: Array, f: Array, generator: np.random.Generator
    ) -> None:
        """Replay numbers x [B, n_in], -1 to 1, with factors f [B, n_out]."""
        gain, before = taught.gain, np.array([taught.updates, taught.spikes, taught.done])
        layer.cut += int((abs(x) > 1).sum() + (abs(f) * gain.factor > LARGEST).sum())
        pairs = zip(gain.counts(x, generator), gain.factors(f, generator), strict=True)
        for counts, factors in pairs:
            taught.learn(counts, factors)
        taught.settle()
        now = np.array([taught.updates, taught.spikes, taught.done])
        updates, spikes, phases = (now - before).tolist()
        neurons = len(taught.w) + (0 if layer.source == INPUT else x.shape[1])
        self.operations += Operations(
            synaptic_events=spikes * len(taught.w),
            neuron_updates=phases * (gain.steps + 1) * neurons,
            synaptic_updates=updates,
        )

    def _factors(self, name: str, error: Array, record: Record) -> Array:
        units = self.program.readout.units
        wide: Array = np.repeat(error, units, axis=1) / units
        if name not in self.feedback:
            return wide
        first = self.program.depths[name]  # bias can make a layer fire before its sample is there
        window = record.spikes[name][first : first + self.program.steps]
        fired = window.reshape(len(window), len(error), -1).sum(0)
        made: Array = (wide @ self.feedback[name]) * ((fired > 0) & (fired < self.program.steps))
        return made

    def _grow(self, layer: Layer, x: Array, generator: np.random.Generator) -> None:
        """Let new rows learn from what old ones leave [B, n]."""
        h = layer.rows.values[layer.kept :]
        y = x @ h.T
        if layer.growing is None:
            variance = float((x**2).sum(1).mean())
            if variance < 1e-9:  # nothing is left to learn from
                return
            most_y, most_x = float(np.sqrt((x**2).sum(1).max())), ROOM * float(abs(x).max())
            change = self.schedule.step / (self.schedule.batch * variance) * most_y * most_x
            steps = self.schedule.steps
            units = min(change * layer.rows.scale, most_change(steps))
            layer.reach, gain = (most_y, most_x, variance), Gain.of(units, steps=steps, largest=1.0)
            layer.growing = Taught(
                layer.rows.weights[layer.kept :], SignMode.MIXED, gain, logged=self._logged
            )
        most_y, most_x, variance = layer.reach
        calmer = min(1.0, variance / max(float((x**2).sum(1).mean()), 1e-9))  # or rows run away
        self._teach(layer, layer.growing, (x - y @ h) / most_x, calmer * y / most_y, generator)
        old = layer.rows.weights[: layer.kept]
        layer.rows = layer.rows._replace(weights=np.vstack([old, layer.growing.w.astype(np.int64)]))

    def _taught(self) -> Program:
        made = {
            f"{layer.source} to {name}": layer.weights.w.astype(np.int64)
            for name, layer in self.layers.items()
        }
        return with_weights(self.program, made)

    # ---- what there is to say -------------------------------------------------------------------

    def report(self) -> dict[str, dict[str, Any]]:
        """Return, by layer, rows and their defect, and how often numbers met their ends.

        The defect is the largest eigenvalue of ``H H^T - 1`` in magnitude, of rows as learned.
        ``weights_clipped``: of weights; ``tags_clipped``: of tags; ``replays_clipped``: of spikes
        and factors of replays; since the task began, those of its new rows among them.
        """
        found = {}
        for name, layer in self.layers.items():
            both = [each for each in (layer.weights, layer.growing) if each is not None]
            found[name] = {
                "rows": len(layer.rows.weights),
                "orthonormality_defect": _defect(layer.rows.values),
                "weights_clipped": sum(each.clipped for each in both),
                "tags_clipped": sum(each.lost for each in both),
                "replays_clipped": layer.cut,
            }
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {
            "done": self.done,
            "operations": self.operations._asdict(),
            "layers": {name: _state(layer) for name, layer in self.layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.done, self.operations = state["done"], Operations(**state["operations"])
        for name, layer in self.layers.items():
            _restore(layer, state["layers"][name])
        self.program = self._taught()
        self._listening = self._with_lateral()


class Operations(NamedTuple):
    """Operations of a chip, summed over samples.

    ``synaptic_updates`` are those of synapses whose source sent in a replay.
    """

    samples: int = 0
    synaptic_events: float = 0.0
    graded_events: float = 0.0
    neuron_updates: int = 0
    synaptic_updates: int = 0

    def __add__(self, other: tuple[Any, ...]) -> Operations:
        """Add field by field."""
        return Operations(*map(sum, zip(self, other, strict=True)))


def ran(program: Program, record: Record) -> Operations:
    """Return what a run took."""
    counts, samples = count(program, record), record.inputs.shape[1]
    return Operations(
        samples,
        counts.synaptic_events * samples,
        counts.graded_events * samples,
        counts.neuron_updates * samples,
    )


def in_a_row(program: Program) -> dict[str, Connection]:
    """Return connections by layer; ProgramError where layers are not dense, one behind another."""
    found: dict[str, Connection] = {}
    last = INPUT
    for name in program.populations:
        into = [c for c in program.connections if c.target == name]
        if len(into) != 1 or into[0].source != last:
            raise ProgramError(
                f"'{name}' listens to {', '.join(c.source for c in into) or 'nothing'}; layers "
                "that learn on the chip stand in a row, without recurrent synapses"
            )
        if not isinstance(into[0].synapses, DenseParameters):
            raise ProgramError(f"'{name}' is a convolution; dense layers learn on the chip")
        found[name], last = into[0], name
    if "scales" not in program.manifest:
        raise ProgramError("the program does not say its scales; export the network again")
    return found


def _more(rows: Array, count_: int, generator: np.random.Generator) -> Array:
    """Return rows [k + count, n], the new ones at random, outside of the others."""
    if count_ < 1:
        return rows
    drawn = generator.standard_normal((count_, rows.shape[1]))
    basis = np.linalg.qr(np.vstack([rows, drawn]).T)[0].T
    return np.vstack([rows, basis[len(rows) :]])


def _orthonormal(rows: Array) -> Array:
    """Return an orthonormal basis of rows, in their order."""
    basis, r = np.linalg.qr(rows.T)
    made: Array = (basis * np.where(np.diag(r) < 0, -1.0, 1.0)).T
    return made


def _defect(rows: Array) -> float:
    """Return the largest eigenvalue of ``H H^T - 1`` in magnitude."""
    return float(np.linalg.norm(rows @ rows.T - np.eye(len(rows)), 2)) if len(rows) else 0.0


def _state(layer: Layer) -> dict[str, Any]:
    growing = layer.growing
    return {
        "weights": layer.weights.state_dict(),
        "kept": layer.kept,
        "rows": layer.rows.weights,
        "scale": layer.rows.scale,
        "reach": list(layer.reach),
        "cut": layer.cut,
        "growing": {} if growing is None else {**growing.state_dict(), **vars(growing.gain)},
    }


def _restore(layer: Layer, state: Mapping[str, Any]) -> None:
    layer.weights.load_state_dict(state["weights"])
    layer.kept, layer.reach, layer.cut = state["kept"], tuple(state["reach"]), state["cut"]
    layer.rows = Rows(np.asarray(state["rows"]), state["scale"])
    layer.growing = None
    if told := dict(state["growing"]):
        gain = Gain(**{each.name: told.pop(each.name) for each in fields(Gain)})
        rows, logged = layer.rows.weights[layer.kept :], layer.weights.log is not None
        layer.growing = Taught(rows, SignMode.MIXED, gain, logged=logged)
        layer.growing.load_state_dict(told)
