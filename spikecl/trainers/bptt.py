"""Backpropagation through time with surrogate gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.encoding import Loss
from spikecl.networks import Network, Paths
from spikecl.seeds import Seeds
from spikecl.trainers import feedback as back
from spikecl.trainers.credit import credit
from spikecl.trainers.feedback import Feedback
from spikecl.trainers.needs import need_no_batch_norm, need_steps
from spikecl.trainers.segments import segmented
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits


@component
class Bptt(Trainer):
    """Exact surrogate gradients.

    For a synapse with input rows ``x`` and current ``I = W x``, one backward pass gives the error
    rows ``delta = dL/dI`` of every synapse; the gradient is ``delta^T x``, summed over steps and
    batch. The weights are constants of that pass, so no weight gradient is formed before a method
    has had its say about the factors.

    With ``checkpoint = k`` steps run forward once without a graph, the state is kept every k of
    them, and each part is run again when the errors come back to it: the same gradient from the
    graph of k steps and T / k states, for one more forward pass. ``k = sqrt(T)`` takes the least.

    Source: Werbos, Proceedings of the IEEE 78 (1990); Neftci, Mostafa & Zenke, IEEE Signal
    Processing Magazine 36 (2019); checkpoints: Chen et al., arXiv 1604.06174 (2016).

    Args:
        feedback: Through which weights errors reach lower layers (:mod:`spikecl.trainers.feedback`;
            ``random`` is feedback alignment, ``direct`` direct feedback alignment).
        checkpoint: Steps between two states that are kept; 0 keeps the graph of all steps.
    """

    sends_errors: ClassVar[bool] = True
    traits: ClassVar[Traits] = Traits(
        time="no",
        space="no; feedback 'direct' and 'global': yes",
        memory="T B N; checkpoint: (k + T/k) B N",
        exact="surrogate gradient",
        network="any",
        source="Neftci et al. 2019",
    )

    feedback: Feedback = "symmetric"
    checkpoint: Annotated[int, Field(ge=0)] = 0

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse parts longer than the input, and batch statistics of parts."""
        back.check_feedback(self.name, self.feedback, network, loss)
        if self.checkpoint:
            need_steps(self.name, "checkpoint", self.checkpoint, len(x))
            need_no_batch_norm(self.name, network, "runs steps in parts")

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return the feedback weights."""
        return back.draw(self.feedback, network, seeds, x)

    def tied(self, network: Network) -> Mapping[str, str]:
        """Return the feedback weights that learn."""
        return back.tied(self.feedback, network)

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield factors whose rows are the spikes that each synapse transmitted."""
        if self.checkpoint:
            yield from segmented(call, self.checkpoint, feedback=self.feedback, carry_errors=True)
        else:
            yield credit(call, Paths(), feedback=self.feedback)


@component
class Tbptt(Trainer):
    """Truncated backpropagation through time: errors stay within ``steps`` steps.

    The steps are cut into parts of ``steps`` (the last may be shorter); the state goes from part
    to part, its gradient does not. ``steps = T`` is :class:`Bptt`. The errors of the outputs are
    those of the whole sequence, whatever the loss.

    Source: Williams & Peng, Neural Computation 2 (1990).

    Args:
        steps: Steps k of a part.
        feedback: Through which weights errors reach lower layers.
    """

    sends_errors: ClassVar[bool] = True
    traits: ClassVar[Traits] = Traits(
        time="within k steps",
        space="no; feedback 'direct' and 'global': yes",
        memory="k B N",
        exact="biased: surrogate gradient within k steps",
        network="any without batch norm",
        source="Williams & Peng 1990",
    )

    steps: Annotated[int, Field(ge=1)] = 10
    feedback: Feedback = "symmetric"

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse parts longer than the input, and batch statistics of parts."""
        back.check_feedback(self.name, self.feedback, network, loss)
        need_steps(self.name, "steps", self.steps, len(x))
        need_no_batch_norm(self.name, network, "runs steps in parts")

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return the feedback weights."""
        return back.draw(self.feedback, network, seeds, x)

    def tied(self, network: Network) -> Mapping[str, str]:
        """Return the feedback weights that learn."""
        return back.tied(self.feedback, network)

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield the factors of each part."""
        yield from segmented(call, self.steps, feedback=self.feedback, carry_errors=False)
