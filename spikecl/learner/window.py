"""What a learner has noticed since it last looked: a look waits for the device, a note does not."""

from __future__ import annotations

import torch
from torch import Tensor

from spikecl.errors import NonFiniteLossError
from spikecl.learner.activity import Activity
from spikecl.learner.plan import Position
from spikecl.networks import Network
from spikecl.storage import State

WINDOW = 50  # steps between two looks at the loss


class Window:
    """Losses, hits and activity since the last look.

    Args:
        network: The network.
        at: Where the learner stands.
        device: Where to compute.
    """

    def __init__(self, network: Network, at: Position, device: torch.device):
        self._network, self._at = network, at
        self.activity = Activity(network)
        self.losses = torch.zeros(WINDOW, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._seen = 0

    def add_loss(self, loss: Tensor, step: int) -> None:
        """Take the loss of a step, or of a part of it."""
        self.losses[step % WINDOW] += loss

    def add_hits(self, logits: Tensor, labels: Tensor) -> None:
        """Take the logits [B, classes] of samples whose labels were shown."""
        self._correct += hits(logits, labels)
        self._seen += len(labels)

    def look(self, step: int) -> dict[str, float]:
        """Return mean loss and accuracy since the last look; the one wait for the device."""
        losses = self.losses[: step % WINDOW + 1].clone()
        self.check_finite()
        self.activity.look()
        found = {"loss": float(losses.mean())}
        if self._seen:  # labels were shown
            found["accuracy"] = int(self._correct) / self._seen
        self.losses.zero_()
        self._correct.zero_()
        self._seen = 0
        return found

    def check_finite(self) -> None:
        """Raise if a loss since the last look, or a weight, is not finite; the step is named."""
        finite, at = torch.isfinite(self.losses), self._at
        if at.step and not bool(finite.all()):
            last = at.step - 1
            first = last - last % WINDOW
            bad = int((~finite).nonzero()[0])
            raise NonFiniteLossError(
                f"the loss is {float(self.losses[bad])} at event {at.event}, epoch {at.epoch}, "
                f"step {first + bad}; lower optimiser.lr, or look at the data"
            )
        weights = self._network.weights()
        if broken := [name for name, w in weights.items() if not bool(torch.isfinite(w).all())]:
            raise NonFiniteLossError(
                f"{', '.join(broken)} became infinite or NaN by event {at.event}, epoch "
                f"{at.epoch}, step {at.step}; lower optimiser.lr, or look at the data"
            )

    def state_dict(self) -> State:
        """Return what was noted since the last look."""
        return {
            "activity": self.activity.state_dict(),
            "losses": self.losses,
            "correct": self._correct,
            "seen": self._seen,
        }

    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave; other keys are not read."""
        self.activity.load_state_dict(state.get("activity", {}))
        self.losses.copy_(state["losses"])
        self._correct.copy_(state["correct"])
        self._seen = state["seen"]


def hits(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return how many samples are answered right."""
    assert labels is not None
    answered = ~logits.amax(1).isneginf()  # where no class may be named, the first is no answer
    return (logits.argmax(1).eq(labels) & answered).sum()
