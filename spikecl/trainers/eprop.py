"""Eligibility propagation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.encoding import Loss
from spikecl.networks import Network, Paths
from spikecl.seeds import Seeds
from spikecl.trainers import feedback as back
from spikecl.trainers.credit import credit
from spikecl.trainers.feedback import Feedback, Signal
from spikecl.trainers.needs import (
    layers_of,
    need_fixed_neurons,
    need_no_batch_norm,
    need_present,
    need_separable,
    need_spikes,
    need_steps,
    need_windows,
)
from spikecl.trainers.online import in_parts
from spikecl.trainers.rates import Rates, check_target
from spikecl.trainers.synaptic import (
    SynapticTraces,
    check_synapses,
    diagonals,
    passes_reset,
    signal_decays,
)
from spikecl.trainers.traces import decays, traced
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits


@component
class Eligible(Trainer):
    """What rules of signals and eligibility traces share.

    ``window = 0`` takes all steps at once, in a form that is equal and needs no trace: the signal
    runs back through each neuron's own memory (a reverse filter), and one product of rows gives
    the gradient. ``window = k`` goes forward in time, k steps at a time, and needs a loss of each
    step. It holds one trace per presynaptic neuron where that is all there is to know (LIF and CUBA
    with a soft reset that is cut, a readout without leak), otherwise one per synapse and sample.

    Args:
        window: Steps at a time; 0 takes all.
        update: Change weights once for a batch (``sequence``), or after each window.
    """

    sends_errors: ClassVar[bool] = True

    window: Annotated[int, Field(ge=0)] = 0
    update: Literal["sequence", "window"] = "sequence"

    @property
    def every_part(self) -> bool:
        """Whether weights change after every window."""
        return self.update == "window"

    @property
    def passes_reset(self) -> bool | None:
        """Whether eligibility passes the reset; ``None``: as the neurons say."""
        return None

    @property
    @abstractmethod
    def signals(self) -> Signal:
        """Through which weights, and from what, learning signals come."""

    def autapses(self, network: Network) -> bool:
        """Whether eligibility passes synapses of neurons onto themselves, where there are some."""
        return False

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse networks without spikes, with delays; in windows, what cannot be known in time."""
        need_spikes(self.name, network)
        need_present(self.name, network)
        back.check_feedback(self.name, self.signals, network, loss)
        if rates := self.rates(len(x)):
            check_target(self.name, network, rates.target)
        if not self.window:
            need_windows(self.name, self.update)
            return
        need_steps(self.name, "window", self.window, len(x))
        need_separable(self.name, loss)
        need_no_batch_norm(self.name, network, "sees steps in windows")
        need_fixed_neurons(self.name, network)
        if not self._apart(network):
            check_synapses(self.name, network, self.signals, reset=self.passes_reset)

    def _apart(self, network: Network) -> bool:
        """Whether one trace for each presynaptic neuron is all there is to know."""
        layers = list(layers_of(network).values())
        known = [() if c is None else decays(c.bound()) for c in (x.neuron for x in layers)]
        cut = not any(passes_reset(layer, self.passes_reset) for layer in layers)
        heard = signal_decays(layers[-1], self.signals)
        return cut and not self.autapses(network) and None not in known and heard == ()

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return the feedback weights."""
        return back.draw(self.signals, network, seeds, x)

    def tied(self, network: Network) -> Mapping[str, str]:
        """Return the feedback weights that learn."""
        return back.tied(self.signals, network)

    def rates(self, steps: int) -> Rates | None:
        """Return the cost of firing rates over a number of steps."""
        return None

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield the factors: rows of activity and filtered signals, or of traces and signals."""
        rates = self.rates(len(call.x))
        extra = None if rates is None else rates.signals
        if not self.window:
            paths = Paths(space="instant", recurrent=False, reset=self.passes_reset)
            if self.autapses(call.network):
                paths = replace(paths, recurrent=True, feedback=diagonals(call))
            yield credit(call, paths, feedback=self.signals, extra=extra)
        elif self._apart(call.network):
            yield from traced(call, self.name, self.window, self.signals, extra)
        else:
            synapses = SynapticTraces(
                self.name,
                call,
                self.signals,
                reset=self.passes_reset,
                autapses=self.autapses(call.network),
                extra=extra,
            )
            yield from in_parts(call, self.name, self.window, synapses.part)


@component
class Eprop(Eligible):
    """Learning signals times eligibility traces: ``dE/dW_ji = sum_t L_j[t] e_ji[t]``.

    The eligibility carries what a neuron itself remembers of a synapse's input; errors do not pass
    the synapses of a layer onto itself, nor (``reset="cut"``) the reset. For a LIF neuron, with
    the surrogate ``psi``::

        eps_i[t] = beta eps_i[t-1] + p_i[t],     e_ji[t] = psi_j[t] c eps_i[t]

    an ALIF, a reset that is kept and other models have traces for each synapse
    (:mod:`spikecl.trainers.eligibility`). The learning signal ``L`` comes from the readout's error
    through the weights there (``symmetric``) or others (:mod:`spikecl.trainers.feedback`:
    ``direct`` is the paper's "random", a fixed weight from each output to each neuron; ``random``
    and ``adaptive`` replace the weights between layers; ``global`` sums the outputs). A leak of the
    readout is part of it. In networks of several layers, symmetric signals come down through the
    layers within a step.

    The firing rates' cost is ``rate_cost sum_j (f_j - rate_target)^2``, ``f_j`` the mean over steps
    and samples (windows: over the steps so far).

    Source: Bellec et al., Nature Communications 11:3625 (2020); the form without traces is their
    sum over time with the order of summation exchanged.

    Args:
        window: Steps at a time, forward in time; 0 takes all, which is fastest
            (:class:`Eligible`).
        update: Change weights once for a batch (``sequence``), or after each window.
        feedback: Through which weights learning signals come.
        reset: ``cut`` leaves the reset out of the eligibility, ``kept`` has it in.
        rate_cost: Weight of the firing rates' cost.
        rate_target: Rate they are pulled to, spikes per step.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes with window: traces",
        space="no; feedback 'direct' and 'global': yes",
        memory="window: B N; B S for ALIF, kept resets, leaky readouts; else T B N",
        exact="one hidden layer: BPTT without recurrent synapses and reset",
        network="spiking, any neuron; dense, recurrent, convolutional",
        source="Bellec et al. 2020",
    )

    feedback: Feedback = "symmetric"
    reset: Literal["cut", "kept"] = "cut"
    rate_cost: Annotated[float, Field(ge=0)] = 0.0
    rate_target: Annotated[float, Field(ge=0, le=1)] = 0.01

    @property
    def signals(self) -> Signal:
        """Through which weights learning signals come."""
        return self.feedback

    @property
    def passes_reset(self) -> bool:
        """Whether the reset is kept."""
        return self.reset == "kept"

    @property
    def of_loss(self) -> Eprop:
        """Without the cost of firing rates."""
        return replace(self, rate_cost=0.0)

    def rates(self, steps: int) -> Rates | None:
        """Return the cost of firing rates, where it has a weight."""
        return Rates(self.rate_cost, self.rate_target, steps) if self.rate_cost else None
