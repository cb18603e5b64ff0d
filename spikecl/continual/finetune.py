"""Fine-tuning: learn each experience and do nothing about the old ones (the lower bound)."""

from __future__ import annotations

from spikecl.components import component
from spikecl.continual.method import Context, Method, MethodSpec


@component
class Finetune(MethodSpec):
    """Learn each experience and do nothing about the old ones (the lower bound).

    No hook at all. Optimiser state starts afresh at a revealed boundary, or is carried over.
    """

    def start(self, context: Context) -> Method:
        """Return a method without hooks."""
        return Method()
