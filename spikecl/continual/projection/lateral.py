"""Lateral weights of one synapse: subspaces learned by a Hebbian/anti-Hebbian rule.

Subspace neurons ``y = H x`` listen to the presynaptic neurons of a synapse and inhibit them in
turn, ``x̃ = x - H^T y``. Their weights learn by a Hebbian rule
(:mod:`~spikecl.continual.projection.hebbian`). Rows of old tasks are frozen; rows of the present
task see what the old ones leave (deflation) and so find the directions that are new.

The neurons are linear, or answer with spikes: then ``x̃`` is the projection but for what rounding
leaves, ``x̃ H^T = y - y_spikes``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from spikecl.continual.projection.circuits import spike_counts
from spikecl.continual.projection.hebbian import Neurons, Response, Rule, hebbian
from spikecl.continual.projection.subspace import complement
from spikecl.metrics import orthonormality_defect
from spikecl.networks import AnyFactor, Complement, Factor, GradientFactor
from spikecl.storage import State, nbytes

Kind = Literal["linear", "quantised", "spiking"]
SILENCE = 1e-8  # share of the activity's variance below which a residual is rounding


class LateralWeights:
    """Frozen orthonormal rows of old tasks, and rows that learn, of one synapse.

    The rows that learn are kept in coordinates of the free complement once that is the smaller
    side; before, they are kept as they are. Both are exact: the complement is never left.

    Args:
        size: Number of presynaptic neurons n.
        like: Tensor whose type and device to use.
        rule: By which rows learn.
        response: What neurons make of their drive ``H x``; ``None`` is linear.
    """

    def __init__(
        self, size: int, like: Tensor, *, rule: Rule = "oja", response: Response | None = None
    ):
        self._rule, self._response = rule, response
        self.old = like.new_zeros(0, size)
        self.new = like.new_zeros(0, size)
        self.momentum, self.inner = self.new, like.new_zeros(0, 0)
        self._wrong = self._none_wrong()
        self.outside: Complement | None = None
        self.compact = self.learning = False

    @property
    def free(self) -> int:
        """Number of directions that no old row takes."""
        return self.old.shape[1] - len(self.old)

    def begin(self, rows: int, generator: torch.Generator) -> None:
        """Add rows to learn, orthonormal and in the complement of the old ones.

        At most as many as directions are free: a full synapse learns no further row.
        """
        n, rows = self.old.shape[1], min(rows, self.free)
        self.learning = True
        self._complement()
        size = self.free if self.outside else n
        drawn = torch.randn(size, rows, generator=generator).to(self.old)
        start = torch.linalg.qr(drawn).Q.T if rows else drawn.T
        if self.outside and not self.compact:
            start = start @ self.outside.free.T
        self.new, self.momentum, self.inner = Neurons.begin(start.contiguous(), self._rule)
        self._wrong = self._none_wrong()

    def _none_wrong(self) -> Tensor:
        """Return sums of squares, errors and what they are errors of: projections, responses."""
        side = 0 if self._response is None else 2
        return torch.zeros(side, side, dtype=torch.float64, device=self.old.device)

    def _complement(self) -> None:
        self.outside = complement(self.old)
        self.compact = self.free <= 2 * len(self.old)

    def project(self, factor: AnyFactor, rows: Tensor | None) -> AnyFactor:
        """Project a factor out of the old rows, with the rows :meth:`seen` made if there are.

        Neurons that spike inhibit rows of activity, never a gradient: that is far below the size of
        a spike, and would come out as it went in.
        """
        if self.outside is None:
            return factor
        if self._response is not None:
            assert not isinstance(factor, GradientFactor)  # refused when it was learned from
            return self._inhibited(factor.as_rows(), self._response)
        if rows is None or not factor.sends_x:
            return factor.project(self.outside)
        if self.compact:
            return factor.project(self.outside, z=rows)
        return factor.project(self.outside, residual=rows)

    def _inhibited(self, rows: Factor, response: Response) -> Factor:
        drive = rows.x @ self.old.T
        sent = response(drive)
        left = rows.x - sent @ self.old
        wrong = total(sent - drive)
        self._note(0, wrong, total(left) - wrong)  # orthogonal: what is right, and what is wrong
        return rows._replace(x=left)

    def _note(self, which: int, wrong: Tensor, size: Tensor) -> None:
        self._wrong = self._wrong.clone()
        self._wrong[which] += torch.stack([wrong, size])

    def seen(self, x: Tensor) -> Tensor:
        """Return what old rows leave of activity [R, n], in the coordinates of the new rows."""
        if self.outside is None:
            return x
        return self.outside.coordinates(x) if self.compact else self.outside.residual(x)

    def learn(self, rows: Tensor, activity: Tensor, *, rate: float, iterations: int) -> None:
        """Run the rule on rows [R, n or f] that :meth:`seen` made of activity [R, n].

        What old rows leave of activity that is all theirs is rounding; against the whole
        activity's variance it counts as silence.
        """
        neurons = Neurons(self.new, self.momentum, self.inner)
        if self._response is not None:
            drive = rows @ neurons.settled().T
            self._note(1, total(self._response(drive) - drive), total(drive))
        self.new, self.momentum, self.inner = hebbian(
            neurons,
            rows,
            rule=self._rule,
            rate=rate,
            iterations=iterations,
            silence=SILENCE * activity.square().sum() / len(activity),
            response=self._response,
        )

    def errors(self) -> dict[str, float]:
        """Return how far neurons that spike were from linear ones since :meth:`begin`, relative.

        ``projection_error`` is ``|x̃_spikes - x̃| / |x̃|``, the part of old activity that stayed in;
        0 where there are no old rows. ``response_error`` is that of the learning rows' y.
        """
        if self._response is None:
            return {}
        tiny = torch.finfo(self._wrong.dtype).tiny
        shares = (self._wrong[:, 0] / self._wrong[:, 1].clamp_min(tiny)).sqrt()
        return dict(zip(("projection_error", "response_error"), shares.tolist(), strict=True))

    def end(self) -> float:
        """Freeze the learned rows, made orthonormal; return their defect before."""
        defect, rows = orthonormality_defect(self.new), self.new
        for _ in range(1 if self._rule == "oja" else 2):  # oblique rows: once leaves rounding
            if self.outside and not self.compact:
                rows = self.outside.residual(rows)
            if len(rows):
                rows = torch.linalg.qr(rows.T).Q.T
        if self.outside and self.compact:
            rows = rows @ self.outside.free.T
        self.old = torch.cat([self.old, rows])
        self.new = self.momentum = self.old.new_zeros(0, self.old.shape[1])
        self.inner = self.old.new_zeros(0, 0)
        self.outside, self.learning = None, False
        return defect

    def state_dict(self) -> State:
        """Return old and learning rows; the complement follows from them."""
        state: State = {
            "old": self.old,
            "new": self.new,
            "momentum": self.momentum,
            "learning": self.learning,
        }
        if self._rule == "foldiak":
            state["inner"] = self.inner
        if self._response is not None:
            state["wrong"] = self._wrong
        return state

    def load_state_dict(self, state: State) -> None:
        """Take the rows back."""
        self.old, self.new, self.momentum = state["old"], state["new"], state["momentum"]
        self.inner, self._wrong = state.get("inner", self.inner), state.get("wrong", self._wrong)
        self.learning, self.outside = state["learning"], None
        if self.learning:
            self._complement()

    def nbytes(self) -> int:
        """Return the bytes of all rows and of the complement's basis."""
        free = () if self.outside is None else (self.outside.free,)
        return nbytes(self.old, self.new, self.momentum, self.inner, self._wrong, *free)


def total(x: Tensor) -> Tensor:
    """Return the sum of squares in double precision."""
    return x.square().sum(dtype=torch.float64)


def response_of(kind: Kind, *, scale: float, steps: int) -> Response | None:
    """Return what lateral neurons of a kind make of their drive; ``None`` is linear.

    Args:
        kind: ``linear``, ``quantised`` (:func:`quantised`) or ``spiking`` (:func:`spiking`).
        scale: Largest response s.
        steps: Time steps of a row, or levels of each sign, N.
    """
    if kind == "linear":
        return None
    made = quantised if kind == "quantised" else spiking
    return lambda drive: made(drive, scale=scale, steps=steps)


def quantised(drive: Tensor, *, scale: float, steps: int) -> Tensor:
    """Return the rate code ``round(clip(y, -s, s) / s * N) / N * s`` of drive y [R, k].

    Source: the code of Xiao et al. (ICLR 2024).
    """
    return (drive.clamp(-scale, scale) / scale * steps).round() / steps * scale


def spiking(drive: Tensor, *, scale: float, steps: int) -> Tensor:
    """Return the sum of signed spikes of lateral neurons over N steps, drive y [R, k] held.

    From ``v = 0``, at each step::

        v <- v + y / N
        spike of size q = s / N and the sign of v where |v| > q / 2
        v <- v - spike

    So ``|v| <= q / 2`` afterwards where ``|y| <= s``: N steps come to what :func:`quantised`
    rounds, but for ties.
    """
    return spike_counts(drive, steps, scale / steps)[0]
