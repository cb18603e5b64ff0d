"""What happens to activity on its way to a synapse: pooling, dropout, delays, plasticity."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from spikecl.components import PositiveFloat, component
from spikecl.errors import ConfigError, UsageError
from spikecl.kernels import AUTO, Kernels
from spikecl.neurons.neuron import check_like


@dataclass(slots=True)
class Pass:
    """One pass through a network: what goes along with the activity.

    Args:
        weights: Parameters by full name.
        state: State by path before the pass.
        training: Drop units and use statistics of the batch.
        generator: Where dropout and random neurons draw from.
        kernels: How layers are computed.
        held: What dropout drew for these samples, by path; filled in.
        after: State by path after the pass, filled in.
        statistics: New running statistics by full name, filled in.
    """

    weights: Mapping[str, Tensor]
    state: Mapping[str, Any]
    training: bool = False
    generator: torch.Generator | None = None
    kernels: Kernels = AUTO
    held: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


def is_static(x: Tensor) -> bool:
    """Whether an input [T, ...] is one step repeated (stride 0 in time), or one step."""
    return x.shape[0] == 1 or (x.shape[0] > 1 and x.stride(0) == 0)


def stepwise(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a change of rows [R, ...] to every step of [T, B, ...]; to one, if they are equal."""
    if is_static(x):
        y = change(x[0])
        return y.expand(x.shape[0], *y.shape)
    y = change(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


class Presynaptic(nn.Module):
    """A change of activity [T, B, *features] before the synapse.

    ``memory`` says whether a step depends on earlier ones.
    """

    memory = False

    def restart(self) -> None:  # noqa: B027
        """Put back the initial values of what learns; by default nothing does."""

    @abstractmethod
    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return the changed activity; state under ``path`` goes through the pass."""


class Channels(Presynaptic):
    """Images [H, W] or [H, W, C] to maps [C, H, W]: where data enter a convolution."""

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return [T, B, C, H, W]."""
        if x.dim() not in (4, 5):
            raise UsageError(
                f"a convolution takes images [T, B, H, W] or [T, B, H, W, C]; got {tuple(x.shape)}"
            )
        return x[:, :, None] if x.dim() == 4 else x.movedim(-1, 2)


class AvgPool2d(Presynaptic):
    """Mean over windows of ``size`` by ``size``; ``None`` is the whole map."""

    def __init__(self, size: int | None = 2):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return the pooled maps."""
        if self.size is None:
            return stepwise(x, lambda rows: rows.mean((2, 3), keepdim=True))
        size = self.size
        return stepwise(x, lambda rows: functional.avg_pool2d(rows, size))


class MaxPool2d(Presynaptic):
    """Maximum over windows of ``size`` by ``size``: of spikes, whether any fired."""

    def __init__(self, size: int = 2):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return the pooled maps."""
        return stepwise(x, lambda rows: functional.max_pool2d(rows, self.size))


class Dropout(Presynaptic):
    """Drop units in training, the same ones at every step of a sample; scale the others up.

    Args:
        p: Probability to be dropped.
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(f"Dropout: got p={p}; a probability from 0 to below 1")
        self.p = p

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return the activity of the units that are kept."""
        if not run.training or not self.p:
            return x
        if path not in run.held:
            if run.generator is None:
                raise UsageError("dropout draws random numbers; pass a torch.Generator")
            drawn = torch.rand(x.shape[1:], generator=run.generator, dtype=x.dtype)
            run.held[path] = (drawn >= self.p).to(x) / (1 - self.p)
        mask = run.held[path]
        return (x[:1] * mask).expand(x.shape) if is_static(x) else x * mask


class TimeWindow(Presynaptic):
    """Now and the last ``longest`` steps side by side: [T, B, n] to [T, B, (longest + 1) n].

    What :class:`SynapticDelays` works on. Features are flattened; before the first step there was
    silence.
    """

    memory = True

    def __init__(self, longest: int):
        super().__init__()
        self.longest = longest

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return the windows, the present first."""
        x = x.flatten(2)
        before = _history(x, self.longest, path, run)
        steps, last = len(x), self.longest
        run.after[path] = History(before[len(before) - last :])
        return torch.cat([before[last - k : last - k + steps] for k in range(last + 1)], 2)


class AxonalDelay(Presynaptic):
    """Each presynaptic neuron's output arrives ``d`` steps later: ``y[t] = x[t - d]``.

    A delay between two whole steps interpolates linearly, so delays can be learned::

        y[t] = (1 - f) x[t - floor(d)] + f x[t - floor(d) - 1],   f = d - floor(d)

    Args:
        size: Number of presynaptic neurons.
        longest: Longest delay in steps.
        learned: Train the delays; otherwise they are rounded.
        delay: Delay at the start, one number or one per neuron.
    """

    memory = True

    def __init__(
        self,
        size: int,
        longest: int,
        *,
        learned: bool = False,
        delay: float | Tensor | Sequence[float] = 0.0,
    ):
        super().__init__()
        if longest < 1:
            raise ConfigError(f"AxonalDelay: got longest={longest}; use at least 1 step")
        self.longest, self.learned = longest, learned
        self.start = torch.as_tensor(delay, dtype=torch.get_default_dtype()).expand(size).clone()
        if not bool(((self.start >= 0) & (self.start <= longest)).all()):
            raise ConfigError(f"AxonalDelay: delays must lie between 0 and longest={longest} steps")
        self.delay = nn.Parameter(self.start.clone())

    @torch.no_grad()
    def restart(self) -> None:
        """Put back the initial delays."""
        self.delay.copy_(self.start)

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return the delayed activity, features flattened."""
        x = x.flatten(2)
        before = _history(x, self.longest + 1, path, run)
        run.after[path] = History(before[len(before) - self.longest - 1 :])
        stored = run.weights[f"{path}.delay"]
        inside = stored.clamp(0, self.longest)
        # a delay that left its range still feels the gradient, so it can come back
        delay = stored + (inside - stored).detach() if self.learned else inside.detach().round()
        whole = delay.detach().floor()
        part = delay - whole
        steps = torch.arange(len(x), device=x.device)[:, None] + self.longest + 1
        source = (steps - whole.long())[:, None, :].expand(x.shape)
        late, later = before.gather(0, source), before.gather(0, source - 1)
        return (1 - part) * late + part * later


class History(NamedTuple):
    """The last steps of activity [steps, B, n], oldest first."""

    x: Tensor


def _history(x: Tensor, steps: int, path: str, run: Pass) -> Tensor:
    """Return the last ``steps`` steps before the pass and the pass itself, [steps + T, B, n]."""
    state = run.state.get(path)
    past = x.new_zeros(steps, *x.shape[1:]) if state is None else state.x
    if past.shape[1:] != x.shape[1:]:
        raise UsageError(
            f"state of {path} has shape {tuple(past.shape)}, the input {tuple(x.shape)}; pass the "
            "state of the same batch, or None to start from rest"
        )
    return torch.cat([past, x])


@component
class Plasticity:
    """Constants of short-term plasticity, the same for all neurons (:class:`ShortTermPlasticity`).

    Args:
        release: ``U``, release probability at rest.
        tau_d: Recovery of the resources in milliseconds.
        tau_f: Decay of the facilitation in milliseconds; 0 has none.
        dt: Length of a step in milliseconds.
    """

    release: Annotated[float, Field(gt=0, le=1)] = 0.5
    tau_d: PositiveFloat = 200.0
    tau_f: Annotated[float, Field(ge=0)] = 0.0
    dt: PositiveFloat = 1.0


class PlasticityState(NamedTuple):
    """Release probability ``u`` and resources ``r`` [B, *features]."""

    u: Tensor
    r: Tensor


class ShortTermPlasticity(Presynaptic):
    """Facilitation and depression of each presynaptic neuron (Tsodyks & Markram).

    With a spike ``s[t]``, in order of execution::

        u[t] = u[t-1] exp(-dt/tau_f),  then  u[t] += U (1 - u[t]) s[t]    facilitation
        r[t] = 1 + (r[t-1] - 1) exp(-dt/tau_d)                            recovery
        y[t] = u[t] r[t] s[t] / U                                         transmitted
        r[t] <- r[t] - u[t] r[t] s[t]                                     depression

    so the first spike after a long pause transmits 1; ``tau_f = 0`` is depression alone, ``u = U``.

    Source: Tsodyks, Pawelzik & Markram, Neural Computation 10(4), 1998, equations 2.1 to 2.3.

    Args:
        release: ``U``, release probability at rest.
        tau_d: Recovery of the resources in milliseconds.
        tau_f: Decay of the facilitation in milliseconds; 0 has none.
        dt: Length of a step in milliseconds.
    """

    memory = True

    def __init__(
        self, *, release: float = 0.5, tau_d: float = 200.0, tau_f: float = 0.0, dt: float = 1.0
    ):
        super().__init__()
        Plasticity(release=release, tau_d=tau_d, tau_f=tau_f, dt=dt)  # checks them
        self.release = release
        self.recovery = math.exp(-dt / tau_d)
        self.facilitation = math.exp(-dt / tau_f) if tau_f else 0.0

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return what is transmitted."""
        release, state = self.release, run.state.get(path)
        rest = PlasticityState(torch.zeros_like(x[0]), torch.ones_like(x[0]))
        if state is not None:
            check_like(state, rest, "PlasticityState")
        u, r = rest if state is None else state
        sent = []
        for s in x:
            r = 1 + (r - 1) * self.recovery
            if self.facilitation:
                u = u * self.facilitation
                u = u + release * (1 - u) * s
            else:
                u = torch.full_like(s, release)
            sent.append(u * r * s / release)
            r = r - u * r * s
        run.after[path] = PlasticityState(u, r)
        return torch.stack(sent)
