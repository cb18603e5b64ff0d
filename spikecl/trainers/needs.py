"""What rules ask of a network, its input and a loss; what they refuse, before a run."""

from __future__ import annotations

from typing import cast

from spikecl.encoding import Loss
from spikecl.errors import PairingError
from spikecl.networks import BatchNorm, Layer, Network
from spikecl.trainers.trainer import Call, PerStep


def layers_of(network: Network) -> dict[str, Layer]:
    """Return the layers by name."""
    return {name: cast(Layer, layer) for name, layer in network.layers.items()}


def need_spikes(rule: str, network: Network) -> None:
    """Refuse networks without spiking neurons."""
    if not network.is_spiking:
        raise PairingError(
            f"trainer '{rule}' is about neurons with a membrane, and the network has none that "
            "spike; use a spiking network, or trainer 'bptt'"
        )


def need_present(rule: str, network: Network) -> None:
    """Refuse stages that remember, where errors are to stay in their step."""
    for name, layer in layers_of(network).items():
        for key, stage in layer.before.items():
            if stage.memory:
                raise PairingError(
                    f"trainer '{rule}' keeps errors in their step, and '{name}.{key}' "
                    f"({type(stage).__name__}) carries activity to later ones; use a network "
                    "without delays and short-term plasticity, or trainer 'bptt'"
                )


def need_no_batch_norm(rule: str, network: Network, why: str) -> None:
    """Refuse normalisation over time where time comes in parts."""
    for name, layer in layers_of(network).items():
        if isinstance(layer.norm, BatchNorm):
            raise PairingError(
                f"trainer '{rule}' {why}, and layer '{name}' is normalised over all of them; use "
                "norm='none' (or standardise=true), or a trainer that sees all steps"
            )


def need_separable(rule: str, loss: Loss) -> None:
    """Refuse losses whose error at a step depends on later ones."""
    if not loss.separable:
        raise PairingError(
            f"trainer '{rule}' needs the error of each step when it comes, and loss "
            f"'{type(loss).__name__}' is known at the end alone; use loss 'step_cross_entropy', "
            "'tet' or 'step_mse' with readout='mean_current'"
        )


def need_separable_call(rule: str, call: Call) -> None:
    """Refuse the same in a single call."""
    if not (isinstance(call.output_loss, PerStep) and call.output_loss.separable):
        raise PairingError(
            f"trainer '{rule}' needs the error of each step when it comes; give "
            "PerStep(loss, separable=True), a loss that is a mean over steps"
        )


def need_steps(rule: str, name: str, size: int, steps: int) -> None:
    """Refuse parts that are longer than the input."""
    if size > steps:
        raise PairingError(
            f"trainer.{rule}.{name}: got {size} steps, the input has {steps}; use at most {steps}"
        )


def need_windows(rule: str, update: str) -> None:
    """Refuse updates after each window where there are none."""
    if update == "window":
        raise PairingError(
            f"trainer.{rule}.update='window' needs windows; set window to 1 or more steps"
        )


def need_fixed_neurons(rule: str, network: Network) -> None:
    """Refuse neurons whose parameters learn, where no trace is kept of those."""
    for name, layer in layers_of(network).items():
        if layer.neuron is not None and layer.neuron.ranges:
            raise PairingError(
                f"trainer '{rule}' in windows keeps traces of synapses, and none of "
                f"{list(layer.neuron.ranges)}, which layer '{name}' trains; use learns=[], or "
                "window=0"
            )
