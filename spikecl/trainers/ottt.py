"""Rules whose errors stay in their step: online training through time, spatial learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.encoding import Loss
from spikecl.errors import PairingError
from spikecl.networks import AnyFactor, Network, Paths, Tap
from spikecl.neurons import CUBA
from spikecl.seeds import Seeds
from spikecl.trainers import feedback as back
from spikecl.trainers.credit import credit
from spikecl.trainers.feedback import Feedback
from spikecl.trainers.needs import (
    layers_of,
    need_no_batch_norm,
    need_present,
    need_separable,
    need_spikes,
    need_steps,
    need_windows,
)
from spikecl.trainers.online import in_parts
from spikecl.trainers.traces import need_traces, traced
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits

Window = Annotated[int, Field(ge=0)]


@component
class _Present(Trainer):
    """What rules share whose errors go back within a step.

    Args:
        window: Steps at a time; their graph is what is held. 0 takes all, which is fastest; fewer
            need a loss of each step.
        update: Change weights once for a batch (``sequence``), or after each window.
        feedback: Through which weights errors reach lower layers.
    """

    sends_errors: ClassVar[bool] = True

    window: Window = 0
    update: Literal["sequence", "window"] = "sequence"
    feedback: Feedback = "symmetric"

    @property
    def every_part(self) -> bool:
        """Whether weights change after every window."""
        return self.update == "window"

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse networks without spikes, with delays; losses and norms of all steps in windows."""
        need_spikes(self.name, network)
        need_present(self.name, network)
        back.check_feedback(self.name, self.feedback, network, loss)
        if self.window:
            need_steps(self.name, "window", self.window, len(x))
            need_separable(self.name, loss)
            need_no_batch_norm(self.name, network, "sees steps in windows")
        else:
            need_windows(self.name, self.update)

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return the feedback weights."""
        return back.draw(self.feedback, network, seeds, x)

    def tied(self, network: Network) -> Mapping[str, str]:
        """Return the feedback weights that learn."""
        return back.tied(self.feedback, network)


@component
class Ottt(_Present):
    """Online training through time: errors of the present step, traces of past activity.

    With the error ``L`` of a layer's spikes, which came down through the layers in the same step::

        delta[t] = psi[t] c L[t]                    error of the current
        a[t] = beta a[t-1] + x[t]                   trace of the presynaptic spikes
        dW = sum_t delta[t] a[t]^T                  and of the bias, a trace of 1

    ``beta`` is the leak of the neurons behind the synapse; a readout without memory has none, and
    its trace is the activity. The gradient of a readout that leaks equals BPTT's, that of hidden
    layers leaves out how a spike's error reaches back through later steps of the layers above.

    Source: Xiao et al., NeurIPS 2022, equations 6 to 9; ``update="sequence"`` is OTTT_A,
    ``update="window"`` with ``window=1`` OTTT_O.
    Deviation: the authors' code gives biases the plain sum of ``delta``.

    Args:
        window: Steps at a time; their graph is what is held. 0 takes all, which is fastest; fewer
            need a loss of each step.
        update: Change weights once for a batch (``sequence``), or after each window.
        feedback: Through which weights errors reach lower layers.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes: traces",
        space="no; feedback 'direct' and 'global': yes",
        memory="window B N",
        exact="last layer; all where neurons do not leak into the next step",
        network="LIF with soft reset; dense, convolutional, recurrent",
        source="Xiao et al. 2022",
    )

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse also neurons with other than one linear leak."""
        _Present.check(self, network, x, loss)
        need_traces(self.name, network, "use trainer 'eprop'")
        for name, layer in layers_of(network).items():
            if layer.neuron is not None and isinstance(layer.neuron.neuron, CUBA):
                raise PairingError(
                    f"trainer '{self.name}' has one trace for one leak, and the CUBA neurons of "
                    f"layer '{name}' have two; use trainer 'eprop'"
                )

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield factors whose rows are traces."""
        yield from traced(call, self.name, self.window, self.feedback)


@component
class Sltt(_Present):
    """Spatial learning through time: OTTT without traces, at all steps or at some.

    ``dW = sum_t delta[t] x[t]^T`` with ``delta`` as in :class:`Ottt`: every derivative between
    steps is cut, which is BPTT of a network whose state is detached in each step. With
    ``k`` the errors of ``k`` steps alone are used, drawn anew in each batch (SLTT-K); their mean
    over draws is ``k / T`` of all.

    Source: Meng et al., ICCV 2023.

    Args:
        window: Steps at a time; their graph is what is held. 0 takes all, which is fastest; fewer
            need a loss of each step.
        update: Change weights once for a batch (``sequence``), or after each window.
        feedback: Through which weights errors reach lower layers.
        k: Steps whose errors are used; 0 uses all. The readout of a time mean always learns.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes: no memory",
        space="no; feedback 'direct' and 'global': yes",
        memory="window B N",
        exact="surrogate gradient without derivatives between steps",
        network="spiking, any; dense, convolutional, recurrent",
        source="Meng et al. 2023",
    )

    k: Annotated[int, Field(ge=0)] = 0

    @property
    def random(self) -> bool:
        """Whether steps are drawn."""
        return self.k > 0

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse also more steps than there are."""
        _Present.check(self, network, x, loss)
        need_steps(self.name, "k", self.k, len(x))

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield factors whose rows are the spikes of the steps that count."""
        chosen = self._chosen(call)
        at = 0

        def part(call: Call) -> Factors:
            nonlocal at
            here = None if chosen is None else chosen[at : at + len(call.x)]
            at += len(call.x)
            paths = Paths(
                time="instant", space="instant", recurrent=False, stepwise=True, chosen=here
            )
            form = None if here is None else partial(_some, call, here)
            return credit(call, paths, feedback=self.feedback, form=form)

        yield from in_parts(call, self.name, self.window, part)

    def _chosen(self, call: Call) -> Tensor | None:
        if not self.k:
            return None
        order = torch.randperm(len(call.x), generator=call.generator)
        chosen = torch.zeros(len(call.x), dtype=torch.bool)
        chosen[order[: self.k]] = True
        return chosen.to(call.parameters[next(iter(call.parameters))].device)


def _some(call: Call, chosen: Tensor, path: str, tap: Tap, delta: Tensor) -> AnyFactor:
    """Return a factor without the rows of steps that do not count: their errors are zero."""
    synapse, steps, samples = call.network.synapses[path], *call.all_steps.shape[:2]
    if len(delta) != steps * samples:
        return synapse.factor(tap.kept, delta)
    use = chosen.repeat_interleave(samples)
    return synapse.traced(tap.rows[use], tap.kept, delta[use], None)
