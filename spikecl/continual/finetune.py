"""Fine-tuning: learn each experience and do nothing about the old ones (the lower bound)."""

from __future__ import annotations

from typing import ClassVar

from spikecl.components import component
from spikecl.continual.method import Context, Lateral, Method, MethodSpec
from spikecl.errors import PairingError
from spikecl.streams import LearnerView, Reveal


@component
class Finetune(MethodSpec):
    """Learn each experience and do nothing about the old ones (the lower bound).

    No hook at all. Optimiser state starts afresh at a revealed boundary, or is carried over.

    Args:
        restart: Begin each experience from the initial weights: the accuracies on the experience
            just learned are then those of one network for each (the upper bound without transfer).
            The optimiser begins anew, too (``state="fresh"``).
    """

    needs: ClassVar[Reveal] = Reveal.NONE
    offers: ClassVar[frozenset[str]] = frozenset({"export"})
    restart: bool = False

    def start(self, context: Context) -> Method:
        """Return a method without hooks, or with the one that begins anew."""
        if not self.restart:
            return Method()
        if Reveal.BOUNDARY not in context.reveal:
            raise PairingError(
                "method 'finetune' with restart=true begins anew at each boundary, and the stream "
                "hides them; use restart=false"
            )
        return _Restart(context)


class _Restart(Method):
    opens = True

    def __init__(self, context: Context):
        self._context = context

    def begin(self, view: LearnerView) -> None:
        self._context.host.restart()

    def travels(self) -> Lateral:
        raise PairingError(
            "method 'finetune' with restart=true begins anew at each boundary, which a network "
            "that was exported cannot; use restart=false"
        )
