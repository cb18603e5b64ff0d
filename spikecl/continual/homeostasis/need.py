"""A learner with something at stake: its own learning rate (Man, Damasio & Neven 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.errors import ConfigError, PairingError
from spikecl.storage import State, nbytes
from spikecl.streams import Batch, Reveal

EVERY = 10  # updates of weights between two points of the recorded curve
Effects = Annotated[tuple[Annotated[float, Strict()], ...], Strict(False), Field(min_length=1)]


@component
class Need(MethodSpec):
    """The learning rate follows a state that the classes a learner takes in raise or lower.

    Class k has an effect ``g_k``. Of each sample, the learner sees which class c it believes it to
    be, and ingests it if ``g_c`` would bring its state e towards 0, where it starts; what it gets
    is the effect of the true class k. In order of execution, in each step of training::

        ingested = g_c e <= 0                           (at 0: all)
        e  <- e + mean over the batch of g_k ingested
        lr <- lr0 clip(exp(kappa e), least, most)

    So a learner that knows its classes keeps e, and with it its rate, where it should be. One that
    mistakes them, as behind a shift of concepts, takes in what it did not want, and its rate goes
    where that leads. The rate of a step scales the update that the optimiser has made, before any
    projection; ``effect=0`` is the plain run to the last bit.

    Controls: ``constant`` keeps e where it is; ``random`` ingests a sample with probability 1/2,
    whatever it is.

    Source: Man, Damasio & Neven 2022, arXiv 2205.08645. Deviation: the paper's abstract alone could
    be read; the state, the map to the rate and the choice to ingest are ours.

    Args:
        control: ``none``, or one of the controls.
        effect: Size of what a class does to e: even classes raise it, odd ones lower it.
        effects: One effect for each class, in place of ``effect``.
        kappa: How steeply the rate follows.
        least: Lowest rate, as a part of the optimiser's.
        most: Highest.
    """

    needs: ClassVar[Reveal] = Reveal.LABELS
    phase: ClassVar[Phase] = Phase.OPTIMISER

    control: Literal["none", "constant", "random"] = "none"
    effect: Annotated[float, Field(ge=0)] = 0.1
    effects: Effects | None = None
    kappa: float = 1.0
    least: PositiveFloat = 0.1
    most: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        """Refuse a range of rates that the optimiser's is outside of."""
        if not self.least <= 1 <= self.most:
            raise ConfigError(
                f"rates from least={self.least} to most={self.most} times the optimiser's do not "
                "hold the rate itself; use least at most 1 and most at least 1"
            )

    def start(self, context: Context) -> Method:
        """Return the running method; refuse others that bring what it must not scale."""
        for method in context.before:
            if method.own:
                raise PairingError(
                    f"{method.own}, and method 'need' would multiply that; leave one of the two out"
                )
        signs = (1.0 if k % 2 == 0 else -1.0 for k in range(context.classes))
        effects = self.effects or tuple(self.effect * sign for sign in signs)
        if len(effects) != context.classes:
            raise ConfigError(
                f"method.need.effects: got {len(effects)} effects for {context.classes} classes; "
                "give one for each"
            )
        return _Need(self, context, effects)


class _Need(Method):
    def __init__(self, spec: Need, context: Context, effects: tuple[float, ...]):
        self._spec, self._context = spec, context
        self.multiplies = spec.control != "constant" and spec.kappa != 0 and any(effects)
        self._effects = torch.tensor(effects, dtype=torch.float64, device=context.device)
        self._state = torch.zeros_like(self._effects[0])
        self._steps = 0
        self._seen: tuple[Tensor, Tensor] | None = None  # classes believed and true, of this step
        self._curve: list[float] = []  # every few steps since the last report

    def answered(self, logits: Tensor, batch: Batch) -> None:
        if batch.y is not None:
            self._seen = (logits.argmax(1), batch.y)

    @torch.no_grad()
    def update(self, update: Tensors) -> Tensors:
        if self._seen is not None and self._spec.control != "constant":
            part = self._context.host.portion()  # of a step, where its parts change weights
            self._state = self._state + part * self._ingested(*self._seen)
        self._seen = None
        share = self._share()
        if self._steps % EVERY == 0:
            self._curve.append(float(share))
        self._steps += 1
        return {name: change * share.to(change.dtype) for name, change in update.items()}

    def _ingested(self, believed: Tensor, true: Tensor) -> Tensor:
        """Return what is taken in of the samples of a step, as their mean effect."""
        if self._spec.control == "random":
            generator = self._context.seeds.generator("need", event=self._steps)
            taken = (torch.rand(len(true), generator=generator) < 0.5).to(true.device)
        else:
            taken = self._effects[believed] * self._state <= 0
        return (self._effects[true] * taken).mean()

    def _share(self) -> Tensor:
        """Return the rate of this step, as a part of the optimiser's."""
        wanted = (self._spec.kappa * self._state).exp()
        return wanted.clamp(self._spec.least, self._spec.most)

    def report(self) -> dict[str, object]:
        curve, self._curve = self._curve, []
        return {"state": float(self._state), "rate": curve, "every": EVERY} if curve else {}

    def state_dict(self) -> State:
        return {"state": self._state, "steps": self._steps, "curve": list(self._curve)}

    def load_state_dict(self, state: State) -> None:
        self._state = torch.empty_like(self._state).copy_(state["state"])
        self._steps, self._curve = state["steps"], list(state["curve"])

    def nbytes(self) -> int:
        return nbytes(self._effects, self._state)
