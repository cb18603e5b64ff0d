"""Runs a program in Lava, in a process of its own (``python -m`` and the name of this module).

It needs numpy, h5py and lava-nc 0.10.0 only: on Python 3.10 as it is, on later ones with one change
to how its classes are made (`importable`), bit-identical on both. Samples run one after the other
on one live network; between them every state is set to zero. `spikecl_hardware.loihi.lava` starts
it, with a time limit.

Deviation: on a board (``Loihi2HwCfg``) nothing of this was ever run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters, SignMode

CONFIGS = ("Loihi1SimCfg", "Loihi2SimCfg", "Loihi2HwCfg")
ARITHMETICS = ("fixed_pt", "floating_pt")
Array = npt.NDArray[Any]


def importable() -> None:
    """Make Lava importable on Python 3.11 and later; to be called before any other import of it.

    There a class of its compiler is refused as the default of a dataclass field, because it has no
    hash; while that module is imported the class gets one.
    """
    original: Any = dataclasses.dataclass

    def hashable(cls: Any = None, /, **options: Any) -> Any:
        if getattr(cls, "__name__", "") == "ByteEncoder":
            options["unsafe_hash"] = True
        return original(cls, **options)

    module: Any = dataclasses
    module.dataclass = hashable
    try:
        import_module("lava.magma.compiler.var_model")
    finally:
        module.dataclass = original


class Network:
    """A program as a live Lava network, for inputs ``[steps, samples, *features]``."""

    def __init__(
        self,
        program: Program,
        inputs: Array,
        *,
        states: Sequence[str],
        config: str,
        arithmetic: str,
        third: Mapping[str, Array] | None = None,
    ):
        """Build it; nothing runs yet. With ``third``, even an empty one, synapses learn."""
        configs = import_module("lava.magma.core.run_configs")
        self._config = getattr(configs, config)(select_tag=arithmetic)
        self._fixed = arithmetic == "fixed_pt"
        self._steps, self._samples = inputs.shape[:2]
        self._own = import_module("spikecl_hardware.loihi.lava_processes")
        self._resets: list[tuple[Any, Array]] = []
        self._shapes = {name: p.shape for name, p in program.populations.items()}
        self._rows: dict[str, dict[str, Array]] = {}
        self._sources: dict[str, Any] = {INPUT: self._player(inputs)}
        self._targets: dict[str, Any] = {}
        self._engines: dict[str, Any] = {}
        self._third = third
        for name, population in program.populations.items():
            self._add(name, population, states)
        for c in program.connections:
            self._connect(c, program.shape(c.source))

    def _player(self, inputs: Array) -> Any:
        rows = self._own.shared(
            (self._samples * self._steps, int(np.prod(inputs.shape[2:]))), np.int32
        )
        rows[:] = inputs.swapaxes(0, 1).reshape(rows.shape)
        return self._own.Player(rows).s_out

    def _add(self, name: str, population: Population, states: Sequence[str]) -> None:
        """Make the neurons of a population, and what writes down their spikes and states."""
        make = import_module("lava.proc.lif.process").LIF
        start = np.zeros(population.size, dtype=np.int64) + population.start
        registers = _registers(population, fixed=self._fixed)
        neurons = make(shape=(population.size,), v=start, **registers)
        shape = self._samples * self._steps, population.size
        number = np.int32 if self._fixed else np.float64
        kept = {state: self._own.shared(shape, number) for state in states}
        self._rows[name] = {"spikes": self._own.shared(shape, np.uint8), **kept}
        self._any = recorder = self._own.Recorder(self._rows[name]["spikes"], kept)
        neurons.s_out.connect(recorder.s_in)
        for state in states:
            getattr(recorder, state).connect_var(getattr(neurons, state))
        self._resets += [(neurons.u, np.zeros(population.size)), (neurons.v, start)]
        self._sources[name], self._targets[name] = neurons.s_out, neurons.a_in

    def _connect(self, connection: Connection, shape: tuple[int, ...]) -> None:
        """Make synapses between flat populations; maps lie channel-first outside of Lava's."""
        source, target = self._sources[connection.source], self._targets[connection.target]
        if isinstance(connection.synapses, DenseParameters):
            learns = connection.learning is not None and self._third is not None
            make = self._learning if learns else _dense
            dense = make(connection, fixed=self._fixed)
            source.connect(dense.s_in)
            dense.a_out.connect(target)
            self._resets.append((dense.a_buff, np.zeros(dense.a_buff.shape)))
            return
        conv = _conv(connection.synapses, shape, fixed=self._fixed)
        source.reshape(shape).transpose((1, 2, 0)).connect(conv.s_in)
        conv.a_out.transpose((2, 0, 1)).flatten().connect(target)
        self._resets.append((conv.a_buf, np.zeros(conv.a_buf.shape)))

    def _learning(self, connection: Connection, *, fixed: bool) -> Any:
        """Make synapses that learn; they hear the target, and third factors that are played."""
        learning, third = connection.learning, self._third
        assert learning is not None and third is not None
        rules = import_module("lava.magma.core.learning.learning_rule")
        texts = {f"d{name}": str(rule) for name, rule in learning.rules.items()}
        traces = {
            f"{name}_{what}": getattr(learning.trace(name), what)
            for name in ("x1", "x2", *(() if learning.modulated else ("y1", "y2", "y3")))
            for what in ("impulse", "tau")
        }
        make = rules.Loihi3FLearningRule if learning.modulated else rules.Loihi2FLearningRule
        rule = make(**texts, **traces, t_epoch=learning.epoch, rng_seed=learning.seed)
        module = import_module("lava.proc.dense.process")
        dense = module.LearningDense(
            learning_rule=rule, **_dense_options(connection.dense, connection.dense.mode)
        )
        # whenever a variable is set, Lava reads rules again, and rounds impulses to whole numbers
        core = import_module("lava.magma.core.model.py.connection")
        core.PyLearningConnection.on_var_update = lambda _: None
        self._sources[connection.target].connect(dense.s_in_bap)
        if learning.modulated:
            own = self._own.Trace(dense.s_in_bap.shape, learning)
            self._sources[connection.target].connect(own.s_in)
            own.s_out.connect(dense.s_in_y1)
            self._resets.append((own.trace, np.zeros(own.trace.shape)))
            for row, port in zip(third[connection.target].transpose(2, 0, 1, 3), "23", strict=True):
                self._player(row).connect(getattr(dense, f"s_in_y{port}"))
        for name in ("x1", "x2", "y1", "y2", "y3", "tx", "ty"):
            self._resets.append((getattr(dense, name), np.zeros(getattr(dense, name).shape)))
        self._engines[connection.name] = dense
        return dense

    def run(self) -> dict[str, dict[str, Array]]:
        """Return spikes and states ``[steps, samples, *features]`` by population.

        Of synapses that learned, weights, tags and delays by connection.
        """
        steps = import_module("lava.magma.core.run_conditions").RunSteps
        try:
            for sample in range(self._samples):
                for state, value in self._resets if sample else ():
                    state.set(value)
                self._any.run(condition=steps(num_steps=self._steps), run_cfg=self._config)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what counts
                self._any.stop()
            raise
        learned = {name: _variables(dense) for name, dense in self._engines.items()}
        self._any.stop()
        return {
            name: {key: self._apart(x, self._shapes[name]) for key, x in rows.items()}
            for name, rows in self._rows.items()
        } | learned

    def _apart(self, rows: Array, shape: tuple[int, ...]) -> Array:
        return rows.reshape(self._samples, self._steps, *shape).swapaxes(0, 1)


def _registers(population: Population, *, fixed: bool) -> dict[str, Any]:
    """Return the registers of a population in Lava's names."""
    n = population.neurons
    if fixed:
        return {f.name: getattr(n, f.name) for f in dataclasses.fields(n)}
    return {
        "du": (n.du + 1) / 4096,
        "dv": n.dv / 4096,
        "vth": n.vth * 64.0,
        "bias_mant": n.bias_mant * 2.0**n.bias_exp,
    }


def _dense(connection: Connection, *, fixed: bool) -> Any:
    """Return Lava's dense synapses; without rounding, weights are in the units of the current."""
    make, synapses = import_module("lava.proc.dense.process").Dense, connection.dense
    if fixed:
        return make(**_dense_options(synapses, synapses.sign_mode))
    weights = synapses.effective * 2.0 ** (synapses.weight_exp + 6)
    return make(weights=weights, num_message_bits=synapses.num_message_bits)


def _dense_options(synapses: DenseParameters, mode: SignMode | None) -> dict[str, Any]:
    modes = import_module("lava.utils.weightutils").SignMode
    return {
        "weights": synapses.weights,
        "weight_exp": synapses.weight_exp,
        "num_weight_bits": synapses.num_weight_bits,
        "sign_mode": mode and modes[mode.name],
        "num_message_bits": synapses.num_message_bits,
    }


def _variables(dense: Any) -> dict[str, Array]:
    """Return weights, tags and delays of synapses that learned."""
    names = {"w": "weights", "t": "tag_1", "d": "tag_2"}
    return {key: getattr(dense, name).get().astype(np.int64) for key, name in names.items()}


def _conv(synapses: ConvParameters, shape: tuple[int, ...], *, fixed: bool) -> Any:
    """Return Lava's convolution: channels last, and kernels turned, because it turns them."""
    make = import_module("lava.proc.conv.process").Conv
    channels, height, width = shape
    weights = synapses.weights[:, :, ::-1, ::-1].transpose(0, 2, 3, 1)
    return make(
        weight=weights if fixed else weights * 64.0,
        input_shape=(height, width, channels),
        stride=synapses.stride,
        padding=synapses.padding,
        num_message_bits=synapses.num_message_bits,
    )


def run(
    program: Program,
    inputs: Array,
    *,
    states: Sequence[str],
    config: str,
    arithmetic: str,
    third: Mapping[str, Array] | None = None,
) -> dict[str, dict[str, Array]]:
    """Run inputs ``[T, B, *features]``, then silence until the last answer is out."""
    silence = np.zeros((program.latency, *inputs.shape[1:]), inputs.dtype)
    x, options = np.concatenate([inputs, silence]), {"config": config, "arithmetic": arithmetic}
    return Network(program, x, states=states, third=third, **options).run()


def end_with_parent() -> None:
    """End this process group as soon as standard input does: whoever held its other end died."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lava_runner", description="Run a program in Lava.")
    parser.add_argument("program", type=Path, help="what `Program.save` wrote")
    parser.add_argument("inputs", type=Path, help="npz with whole numbers 'inputs' [T, B, ...]")
    parser.add_argument("output", type=Path, help="npz to write: 0/spikes, 0/u, ... by population")
    parser.add_argument("--config", choices=CONFIGS, default="Loihi2SimCfg")
    parser.add_argument("--arithmetic", choices=ARITHMETICS, default="fixed_pt")
    parser.add_argument("--states", default="", help="u, v or both, with a comma")
    parser.add_argument("--learn", action="store_true", help="synapses learn; third/NAME in inputs")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Run what the command line says and write the results, whole or not at all."""
    arguments = _arguments(given)
    if arguments.with_parent:
        end_with_parent()
    program = Program.load(arguments.program)
    with np.load(arguments.inputs) as file:
        inputs = file["inputs"]
        third = {key.partition("/")[2]: file[key] for key in file.files if key != "inputs"}
    importable()
    found = run(
        program,
        inputs,
        states=[state for state in arguments.states.split(",") if state],
        config=arguments.config,
        arithmetic=arguments.arithmetic,
        third=third if arguments.learn else None,
    )
    arrays: dict[str, Any] = {
        f"{i}/{k}": x for i, name in enumerate(found) for k, x in found[name].items()
    }
    temporary = arguments.output.with_name(f"{arguments.output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, arguments.output)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
