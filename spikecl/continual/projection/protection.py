"""How projections act: one projector for each synapse, on what is applied, and on nothing twice.

A method of this family knows, for each synapse, a map P that takes out of a row what old tasks
use. Where the optimiser keeps the row space of gradients (plain SGD, momentum that begins afresh)
and nobody else has a hand in the update, factors are projected: that is the cheapest side and
exact. Otherwise the update that was applied is. Both are ``ΔW = -η G P`` for SGD.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Literal, TypeVar

import torch
from torch import Tensor

from spikecl.continual.method import (
    Context,
    Factors,
    Lateral,
    Method,
    MethodSpec,
    Tensors,
    overrides,
)
from spikecl.errors import ConfigError, PairingError, RunError, UsageError
from spikecl.networks import AnyFactor, BatchNorm, Layer, NoAutapses, Outside
from spikecl.storage import State
from spikecl.streams import Batch, LearnerView, Unlearn

T = TypeVar("T")
Others = Literal["freeze", "learn"]
"""What becomes of parameters that are no weights (biases, thresholds, delays, norms and their
statistics) after the first experience: ``freeze`` or ``learn``. They act on every input."""

_GRADIENT_HOOKS = ("factors", "gradients", "update", "still")


class Protection(ABC):
    """What updates have to leave alone, synapse by synapse, and how that is learned.

    Attributes:
        steady: Whether the maps stay as they are within an experience. Where they do not, momentum
            of gradients that were projected earlier is not projected now.
        projector: Whether ``P P = P``. Where it is not, updates must not be projected that have
            parts of earlier ones, as those of an average do.
        gathers: What it makes of the samples of each experience, in words; see
            :class:`~spikecl.continual.method.Method`.
    """

    steady = True
    projector = False
    gathers = "the activity that it protects"

    @abstractmethod
    def outside(self, name: str) -> Outside | None:
        """Return where updates of a synapse may go; ``None`` is everywhere."""

    def begin(self, view: LearnerView) -> None:  # noqa: B027
        """A new experience begins."""

    def learn(self, factors: Factors, batch: Batch) -> Mapping[str, Tensor]:
        """Learn from what protected synapses transmitted in a step.

        Returns:
            Rows that :meth:`project` can use again, by synapse.
        """
        return {}

    def project(self, name: str, factor: AnyFactor, seen: Tensor | None) -> AnyFactor:
        """Return a factor whose gradient is projected; ``seen`` is what :meth:`learn` returned."""
        outside = self.outside(name)
        return factor if outside is None else factor.project(outside)

    def after_step(self) -> None:  # noqa: B027
        """The weights have changed."""

    @abstractmethod
    def end(self, view: LearnerView) -> None:
        """The experience ends."""

    def travels(self) -> Lateral:
        """Return what goes along when the network is exported, where the method offers that."""
        raise PairingError(
            "this projection has no lateral weights that a chip could go on with; use method "
            "'hlop' (not faithful) or 'finetune'"
        )

    def forget(self, request: Unlearn) -> None:
        """Forget samples, where the method offers that."""
        raise UsageError(
            "this projection keeps directions that samples share and cannot take single ones out; "
            "use method 'inhibition' with keep=true"
        )

    def release(self, experience: int) -> None:
        """Free the directions of an experience, where the method stores each by itself."""
        raise UsageError(
            "this projection keeps the directions of all experiences as one; use method "
            "'inhibition' with keep=true"
        )

    @abstractmethod
    def report(self) -> dict[str, object]:
        """Return what is to be recorded of each synapse."""

    @abstractmethod
    def state_dict(self) -> State:
        """Return everything needed to go on."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave."""

    @abstractmethod
    def nbytes(self) -> int:
        """Return the bytes kept between steps."""


def project(protection: Protection, context: Context, others: Others = "freeze") -> Method:
    """Return the method that projects with a protection, on the side that is exact."""
    alone = not any(overrides(m, hook) for m in context.before for hook in _GRADIENT_HOOKS)
    synapses = context.network.synapses.values()
    mapped = any(isinstance(each, NoAutapses) for s in synapses for each in s.maps)
    plain = getattr(context.optimiser, "momentum", 1.0) == 0
    kept = context.optimiser.keeps_row_space and (protection.steady or plain)
    if alone and kept and not context.settles and not mapped:
        return ProjectFactors(protection, context, others)
    return ProjectUpdates(protection, context, others)


class ProjectFactors(Method):
    """Projects the factors of gradients.

    Args:
        protection: What to protect.
        context: The run.
        others: What becomes of parameters that are no weights.
    """

    def __init__(self, protection: Protection, context: Context, others: Others = "freeze"):
        self.protection, self._others, self._context = protection, others, context
        self._weights = {f"{name}.weight": name for name in context.network.synapses}
        self._readout = list(context.network.synapses)[-1]
        self._experience = 0
        self._apart = context.host.apart

    @property
    def gathers(self) -> str:  # type: ignore[override]
        """What the protection makes of the samples of each experience."""
        return self.protection.gathers

    @property
    def freezes(self) -> bool:
        """Whether what is no weight learns in the first experience alone."""
        return self._others == "freeze"

    def begin(self, view: LearnerView) -> None:
        self._stand()
        self.protection.begin(view)

    def _stand(self) -> None:
        """Take up what holds within an experience."""
        for layer in self._context.network.layers.values():
            assert isinstance(layer, Layer)
            if isinstance(layer.norm, BatchNorm):
                layer.norm.held = self._experience > 0 and self.freezes

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        kept = self._protected(factors)
        seen = self.protection.learn(kept, batch)
        made = {n: self.protection.project(n, f, seen.get(n)) for n, f in kept.items()}
        return {**factors, **made}

    def _protected(self, factors: Mapping[str, T]) -> dict[str, T]:
        """Return what is of protected synapses: heads of single tasks need no protection."""
        return {n: f for n, f in factors.items() if not (self._apart and n == self._readout)}

    def gradients(self, gradients: Tensors) -> Tensors:
        if self._experience == 0 or self._others == "learn":
            return gradients
        return {name: g for name, g in gradients.items() if name in self._moves}

    @property
    def _moves(self) -> Mapping[str, str]:
        """Parameters that learn after the first experience."""
        if self._apart:
            return {**self._weights, f"{self._readout}.bias": self._readout}
        return self._weights

    def after_step(self) -> None:
        self.protection.after_step()

    def end(self, view: LearnerView) -> None:
        self.protection.end(view)
        self._experience += 1

    def unlearn(self, request: Unlearn) -> None:
        self.protection.forget(request)

    def release(self, experience: int) -> None:
        """Free the directions of an experience: :meth:`Protection.release`."""
        self.protection.release(experience)

    def travels(self) -> Lateral:
        found = self.protection.travels()
        return found._replace(rows=self._protected(found.rows)) if self._apart else found

    def report(self) -> dict[str, object]:
        return self.protection.report()

    def state_dict(self) -> State:
        return {"experience": self._experience, "protection": self.protection.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._experience = state["experience"]
        self.protection.load_state_dict(state["protection"])
        self._stand()

    def nbytes(self) -> int:
        return self.protection.nbytes()


class ProjectUpdates(ProjectFactors):
    """Projects what was applied, whoever had a hand in it."""

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        self.protection.learn(self._protected(factors), batch)
        return factors

    @torch.no_grad()
    def update(self, update: Tensors) -> Tensors:
        changed = dict(update)
        for weight, name in self._weights.items():
            outside = (
                None if name == self._readout and self._apart else self.protection.outside(name)
            )
            if outside is not None and weight in update:
                changed[weight] = self._projected(name, update[weight], outside)
        if self._experience and self._others == "freeze":
            for name in changed.keys() - self._moves.keys():
                changed[name] = torch.zeros_like(update[name])
        self._keep_heads(changed)
        return changed

    def _held(self, parameter: str) -> Tensor | None:
        """Return the entries of a parameter that methods before hold still."""
        found = [method.still().get(parameter) for method in self._context.before]
        held = [each for each in found if each is not None]
        return torch.stack(held).any(0) if held else None

    def _keep_heads(self, changed: dict[str, Tensor]) -> None:
        """Weight decay and momentum would move the heads of others."""
        own = self._context.host.outputs()
        for name in (f"{self._readout}.weight", f"{self._readout}.bias"):
            if own is not None and name in changed:
                changed[name] = changed[name] * _rows_of(own, changed[name])

    def _projected(self, name: str, update: Tensor, outside: Outside) -> Tensor:
        rows, held = outside.residual(update.flatten(1)), self._held(f"{name}.weight")
        maps = self._context.network.synapses[name].maps
        autapses = not any(isinstance(each, NoAutapses) for each in maps)
        if held is None:
            return (rows if autapses else without_diagonal(rows, outside)).view_as(update)
        held = held.flatten(1)
        if not autapses:
            held = held | torch.eye(len(held), dtype=torch.bool, device=held.device)
        return without_entries(rows, outside, held).view_as(update)


def _rows_of(outputs: Tensor, parameter: Tensor) -> Tensor:
    """Return which rows of a readout's parameter belong to some outputs, one or several to each."""
    rows = outputs.repeat_interleave(len(parameter) // len(outputs))
    return rows.view(-1, *[1] * (parameter.dim() - 1))


def without_diagonal(rows: Tensor, outside: Outside) -> Tensor:
    """Return the projected rows [n, n] of recurrent weights whose diagonal stays as it is.

    Of all updates of row i with ``u_i = 0`` the nearest in the metric of P is
    ``u - (u_i / P_ii) P_i``: for a projector the orthogonal projection on both constraints.
    """
    own = rows.diagonal() / outside.diagonal().clamp_min(torch.finfo(rows.dtype).tiny)
    # nothing of such a direction is left in the rows either
    most = outside.diagonal().max()
    taken = outside.diagonal() <= 8 * torch.finfo(rows.dtype).eps * most
    own = torch.where(taken, torch.zeros_like(own), own)
    made = rows - own[:, None] * outside.rows()
    return made - torch.diag(made.diagonal())


def without_entries(rows: Tensor, outside: Outside, still: Tensor) -> Tensor:
    """Return projected rows [m, n] whose entries ``still`` [m, n] stay as they are.

    Of all updates of a row with ``u_S = 0`` the nearest in the metric of P is
    ``u - P_:S P_SS^+ u_S``. Rows that hold the same entries still are solved together, and those
    that hold all are zero.
    """
    p, made = outside.rows().double(), rows.clone()
    patterns, which = torch.unique(still, dim=0, return_inverse=True)
    for number, held in enumerate(patterns):
        own = which == number
        if held.all():
            made[own] = 0
        elif held.any():
            solved = torch.linalg.pinv(p[held][:, held], rtol=1e-9, hermitian=True)
            back = rows[own][:, held].double() @ solved @ p[held]
            made[own] = (rows[own] - back).masked_fill(held, 0).to(rows)
    return made


def sizes_of(
    context: Context, name: str, *, autapses: bool = True, only: str | None = None
) -> dict[str, int]:
    """Return the length of the rows of each protected synapse; refuse weights not stored as such.

    A projected gradient of an effective weight is not projected any more when it has gone through
    a map to the stored one, unless that multiplies by one number or forbids autapses. Weights that
    are rounded behind it (``LoihiWeights``) are protected up to their rounding.

    Args:
        context: The run.
        name: Of the method.
        autapses: Whether the method can keep a diagonal of zeros (:func:`without_diagonal`).
        only: The one synapse that is protected, where not all are.
    """
    synapses = {p: s for p, s in context.network.synapses.items() if only in (None, p)}
    mapped = [
        path
        for path, synapse in synapses.items()
        if not all(m.scales or (autapses and isinstance(m, NoAutapses)) for m in synapse.maps)
    ]
    if mapped:
        raise PairingError(
            f"method '{name}' protects weights as they are stored, but {mapped} pass through maps "
            f"({', '.join(type(m).__name__ for m in synapses[mapped[0]].maps)}); use a network "
            "without standardised, signed or delayed weights"
        )
    sizes = {path: synapse.fan_in for path, synapse in synapses.items()}
    if context.host.apart:
        sizes.pop(list(context.network.synapses)[-1])
    return sizes


def per_synapse(given: T | tuple[T, ...], sizes: Mapping[str, int], key: str) -> dict[str, T]:
    """Return an option's value of each protected synapse: one for all, or a tuple of one for each.

    Raises:
        ConfigError: The tuple has another length; ``key`` is the option's name in a configuration.
    """
    values = given if isinstance(given, tuple) else (given,) * len(sizes)
    if len(values) != len(sizes):
        raise ConfigError(
            f"{key}: got {len(values)} values {list(values)} for {len(sizes)} synapses "
            f"({', '.join(sizes)}); give one per synapse or one number"
        )
    return dict(zip(sizes, values, strict=True))


def refuse_unused(spec: MethodSpec, names: Collection[str], beside: str) -> None:
    """Refuse options that were given and would have no effect.

    Raises:
        ConfigError: One of ``names`` has another value than its default; ``beside`` says why that
            is not used.
    """
    for each in fields(spec):  # type: ignore[arg-type]
        given = getattr(spec, each.name)
        if each.name in names and given != each.default:
            shown = str(given).lower() if isinstance(given, bool) else given
            raise ConfigError(f"{each.name}={shown} has no effect {beside}; leave one of them out")


def in_order(found: Mapping[str, T], sizes: Mapping[str, int]) -> dict[str, T]:
    """Return what a checkpoint holds by synapse in the network's order; that of a file is another.

    Args:
        found: By synapse; of some or all of them.
        sizes: What :func:`sizes_of` returned.
    """
    return {path: found[path] for path in sizes if path in found}


def check_fits(found: Mapping[str, Tensor], sizes: Mapping[str, int], name: str) -> None:
    """Refuse what a checkpoint holds for protected synapses if those are not the network's.

    Args:
        found: By synapse, tensors whose rows are as long as the synapse's; empty is none yet.
        sizes: What :func:`sizes_of` returned.
        name: Of the method.

    Raises:
        RunError: Synapses or sizes differ.
    """
    held = {path: int(each.shape[-1]) for path, each in found.items()}
    if held and held != dict(sizes):
        raise RunError(
            f"method '{name}': the checkpoint is of another network: it protects {held} (rows by "
            f"synapse), and this network has {dict(sizes)}; resume with the configuration that it "
            "was made with"
        )
