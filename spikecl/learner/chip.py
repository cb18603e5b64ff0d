"""The chip's side of a run: a network that was exported, and what it goes on to learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi import lava, limits, replay
from spikecl_hardware.loihi.messages import quantise_input
from spikecl_hardware.loihi.program import Program
from spikecl_hardware.loihi.quantise import Options, quantise
from spikecl_hardware.loihi.replay import Taught
from spikecl_hardware.loihi.semantics import DenseParameters
from spikecl_hardware.loihi.student import Operations, Schedule, Student
from torch import Tensor

from spikecl.continual.compose import method_name
from spikecl.continual.method import Lateral, MethodSpec
from spikecl.encoding import Loss, MeanDecoder, PopulationDecoder
from spikecl.errors import HardwareError, PairingError
from spikecl.interop.boundary import as_input, hardware_errors
from spikecl.interop.loihi import TorchArrays
from spikecl.interop.nir_out import to_nir
from spikecl.learner.plan import ExportPlan, TrainPlan
from spikecl.networks import Gain, Network
from spikecl.optim import OptimiserSpec, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import State
from spikecl.streams import Adapt, Export, Reveal, Stream, Unlearn
from spikecl.trainers.feedback import PREFIX, draw

CLEAR = 50.0  # length of a row in units of weights, from which rounding says little
CHIPS = {"loihi1": limits.LOIHI1, "loihi2": limits.LOIHI2}


class OnChip:
    """A network on the chip.

    Args:
        plan: How it is exported, and learns.
        network: The network.
        calibration: Encoded training samples [T, B, *features].
        lateral: Lateral weights that come along.
        feedback: Fixed weights [K, n] by hidden layer.
        remaining: Experiences that it is to learn.
        rate: Learning rate.
        batch: Samples that meet the same weights.
        seed: Of what is drawn while it learns.
        meta: What a program's file says beside the network.
        device: Where the emulator computes.

    Raises:
        PairingError: Weights are not learned as they are, or outputs are no means over time.
        InteropError: A layer cannot be written; it is named.
        HardwareError: Numbers fit no register, or layers not the chip; there is no Lava.
    """

    def __init__(
        self,
        plan: ExportPlan,
        network: Network,
        calibration: Tensor,
        *,
        lateral: Lateral,
        feedback: Mapping[str, Tensor],
        remaining: int,
        rate: float,
        batch: int,
        seed: int,
        meta: Meta,
        device: torch.device,
    ):
        self.plan, self.lateral, self.learned = plan, lateral, 0
        _check_network(network)
        with hardware_errors():
            if plan.backend == "lava":
                lava.find()
            graph = to_nir(network, tuple(calibration.shape[2:]), meta=meta)
            self.shape = tuple(int(n) for n in graph.nodes["input"].input_type["input"])
            seen = as_input(calibration.detach().cpu(), self.shape).numpy()
            options = Options(clips=(plan.headroom,))
            program = quantise(graph, calibration=seen, options=options)
            self.student = Student(
                program,
                Schedule(rate, batch, plan.steps, plan.lateral_rate, seed),
                rows={name: rows.double().cpu().numpy() for name, rows in lateral.rows.items()},
                feedback={name: b.double().cpu().numpy() for name, b in feedback.items()},
                gains=_gains(network, program),
                arrays=TorchArrays(device),
                logged=plan.backend == "lava",
            )
            more: Counter[str] = Counter()
            for experience in range(remaining):
                more.update(lateral.more(experience))
            for each in (self.student.deployed(), self.student.largest(more)):
                limits.check(each, CHIPS[plan.chip], chips=plan.chips)
        self._compared: dict[str, str] = {}

    @property
    def program(self) -> Program:
        """The network as it is on the chip now, without lateral neurons."""
        return self.student.program

    def named(self, config: Mapping[str, Any] | None) -> Program:
        """Return all that is on the chip as a program whose file knows its run's configuration."""
        program = self.student.deployed()
        told = {**program.manifest["meta"], "config": {} if config is None else dict(config)}
        return replace(program, manifest={**program.manifest, "meta": told})

    def logits(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of encoded samples."""
        found = self.student.answer(self._whole(x))
        return torch.from_numpy(found).to(x.device, torch.get_default_dtype())

    def _whole(self, x: Tensor) -> Any:
        return quantise_input(self.program, as_input(x.detach().cpu(), self.shape).numpy())

    # ---- learning -------------------------------------------------------------------------------

    def begin(self) -> None:
        """An experience begins."""
        with hardware_errors():
            self.student.begin(self.lateral.more(self.learned))
        self._compared = {}

    def learn(self, x: Tensor, errors: Callable[[Tensor], Tensor]) -> Tensor:
        """Learn from a batch; ``errors`` are minus the gradients of each sample's loss [B, K]."""

        def asked(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            made = errors(torch.from_numpy(z).to(x.device, torch.get_default_dtype()))
            return made.double().cpu().numpy()

        with hardware_errors():
            seen = self.student.learn(self._whole(x), asked)
        return torch.from_numpy(seen.logits).to(x.device)

    def end(self) -> None:
        """An experience is over; with Lava, it learns the same now."""
        self.learned += 1
        for name, layer in self.student.layers.items() if self.plan.backend == "lava" else ():
            for what, taught in (("", layer.weights), (".lateral", layer.growing)):
                if taught is not None and taught.done:
                    self._compared[name + what] = self._lava(name + what, taught)

    def _lava(self, name: str, taught: Taught) -> str:
        """Let Lava learn the same, and refuse weights that it does not come to."""
        assert taught.log is not None
        with hardware_errors():
            alone = replay.alone(taught.start, taught.mode, taught.gain)
            spikes, third = replay.played(taught.log, taught.gain)
            found = lava.learn(alone, spikes, third=third, limit_s=self.plan.lava_limit_s)
        weights = found.program.connections[0].dense.weights
        if wrong := int((weights != taught.w).sum()):
            raise HardwareError(
                f"'{name}': Lava came to other weights than the emulator at {wrong} of "
                f"{weights.size} synapses; please report this"
            )
        return "equal"

    # ---- what there is to say -------------------------------------------------------------------

    @property
    def operations(self) -> Operations:
        """Of learning, since the experience began."""
        return self.student.operations

    def report(self) -> dict[str, object]:
        """Return what is to be recorded after an experience."""
        found: dict[str, object] = dict(self.student.report())
        return found | ({"lava": self._compared} if self._compared else {})

    def nbytes(self) -> int:
        """Return the bytes of lateral rows, tags and feedback on the host's copy of the chip."""
        layers = self.student.layers.values()
        rows = sum(each.rows.weights.nbytes for each in layers)
        tags = sum(each.weights.t.nbytes for each in layers)
        return rows + tags + sum(b.nbytes for b in self.student.feedback.values())

    def state_dict(self) -> State:
        """Return everything needed to go on."""
        student = _tensors(self.student.state_dict())
        return {"learned": self.learned, "lava": dict(self._compared), "student": student}

    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.learned, self._compared = state["learned"], dict(state["lava"])
        self.student.load_state_dict(_arrays(state["student"]))


def _check_network(network: Network) -> None:
    """Refuse what the chip would learn otherwise than floats do."""
    for name, synapse in network.synapses.items():
        if name not in network.layers:
            raise PairingError(
                f"'{name}' is recurrent; layers that learn on the chip stand in a row, without "
                "recurrent synapses"
            )
        maps = [type(each).__name__ for each in synapse.maps if not isinstance(each, Gain)]
        if maps:
            raise PairingError(
                f"weights of '{name}' are what {maps[0]} makes of those that learn; on the chip "
                "they learn as they are: use a network without it"
            )
    if not isinstance(network.decoder, MeanDecoder | PopulationDecoder):
        raise PairingError(
            f"errors on the chip are those of means over time, and the network's readout decodes "
            f"by {type(network.decoder).__name__}; use readout='mean_rate' or 'mean_current'"
        )


def _gains(network: Network, program: Program) -> dict[str, np.ndarray[Any, Any]]:
    """Return what weights that are stored are multiplied by before neurons see them, by layer.

    That is a number for each neuron (norms have one each), found from weights in whole numbers. Of
    those that are nearly zero it cannot be; they take what is usual in their layer.
    """
    found = {}
    for connection in program.connections:
        name, whole = connection.target, connection.synapses
        stored = network.synapses[name].weight.detach().double().cpu().numpy()
        if not isinstance(whole, DenseParameters) or whole.effective.shape != stored.shape:
            continue  # refused by name where it is to learn
        power = (stored**2).sum(1)
        gains = (whole.effective * stored).sum(1) / np.maximum(power, 1e-30)
        clear = (whole.effective**2).sum(1) > CLEAR**2
        usual = np.median(gains[clear]) if clear.any() else 1.0
        found[name] = np.where(clear, gains, usual) / program.manifest["scales"][name]["weight"]
        if not clear.any():
            found[name] = np.ones(len(stored))
    return found


def _tensors(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _tensors(value) for key, value in tree.items()}
    return torch.from_numpy(np.ascontiguousarray(tree)) if isinstance(tree, np.ndarray) else tree


def _arrays(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _arrays(value) for key, value in tree.items()}
    return tree.cpu().numpy() if isinstance(tree, Tensor) else tree


def feedback_of(
    plan: ExportPlan,
    network: Network,
    variables: Mapping[str, Tensor],
    seeds: Seeds,
    x: Tensor,
) -> dict[str, Tensor]:
    """Return the fixed weights [K, n] by which errors reach hidden layers.

    Those that the trainer has, where its errors go straight to all layers, else new ones.
    """
    if plan.layers == "readout":
        return {}
    hidden, drawn = list(network.layers)[:-1], draw("direct", network, seeds, x)
    own = {name: variables.get(PREFIX + name) for name in hidden}
    if all(b is not None and b.shape == drawn[PREFIX + n].shape for n, b in own.items()):
        return {name: b for name, b in own.items() if b is not None}
    return {name: drawn[PREFIX + name] for name in hidden}


def check_export(
    stream: Stream,
    plan: ExportPlan | None,
    methods: Sequence[MethodSpec],
    loss: Loss,
    train: TrainPlan,
    optimiser: OptimiserSpec,
) -> None:
    """Refuse, before the run, an export that could not go on."""
    places = [event.index for event in stream if isinstance(event, Export)]
    if not places and plan is None:
        return
    if plan is None or places != [plan.after]:
        raise PairingError(
            f"stream '{stream.name}' has exports at events {places or 'none'}, and the plan of the "
            f"export says {None if plan is None else plan.after}; use stream.exported(after) with "
            "the plan's number"
        )
    if needed := (Reveal.BOUNDARY | Reveal.LABELS) & ~stream.reveal:
        raise PairingError(
            f"an export needs {', '.join(needed.names())}, which stream '{stream.name}' hides"
        )
    if deaf := [method_name(spec) for spec in methods if "export" not in spec.offers]:
        raise PairingError(
            f"method '{deaf[0]}' cannot go on on the chip; after an export, 'hlop' or 'finetune' "
            "learn on"
        )
    plain = isinstance(optimiser, Sgd) and not (optimiser.momentum or optimiser.weight_decay)
    if plan.rate is None and not plain:
        raise PairingError(
            "on the chip weights learn by plain gradient descent, which has no use for the rate of "
            f"{optimiser}; say export.rate, such as 0.3"
        )
    if loss.per_step:
        raise PairingError(
            "on the chip errors are those of a sample's logits; use a loss of logits, such as "
            "'cross_entropy'"
        )
    if train.membrane != "reset":
        raise PairingError("on the chip every sample starts from rest; use membrane='reset'")
    later = [type(e).__name__ for e in stream if e.index > plan.after]
    if odd := sorted({name for name in later if name in (Unlearn.__name__, Adapt.__name__)}):
        raise PairingError(f"the chip learns experiences; {', '.join(odd)} follow its export")
