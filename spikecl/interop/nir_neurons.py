"""Neurons as nodes of NIR, and nodes as neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikecl.interop.site import Site, ends
from spikecl.neurons import (
    CUBA,
    IF,
    LIF,
    PLIF,
    LeakyIntegrator,
    LoihiLIF,
    Neuron,
    Rectified,
    Reset,
    Smooth,
    SynapticIntegrator,
)

if TYPE_CHECKING:
    from spikecl_hardware.chain import Dynamics


def array(value: Tensor, dtype: torch.dtype = torch.float64) -> Any:
    """Return a copy as a numpy array."""
    return value.detach().to("cpu", dtype).contiguous().numpy().copy()


class Node(NamedTuple):
    """A node of neurons as it is to be.

    Args:
        kind: Its type.
        values: One for each neuron.
        gain: What its input is to be multiplied by, where weights may do that.
    """

    kind: str
    values: dict[str, Tensor]
    gain: Tensor | None

    def rows(self, outputs: int) -> Tensor:
        """Return the gain of each row of weights; where shared ones have several, ``r`` is it."""
        each = torch.ones(outputs, 1) if self.gain is None else self.gain.reshape(outputs, -1)
        if bool((each == each[:, :1]).all()):
            return each[:, 0].double()
        assert self.gain is not None
        self.values["r"] = self.gain
        return torch.ones(outputs).double()

    def made(self) -> Any:
        """Return the node."""
        import nir

        return getattr(nir, self.kind)(**{name: array(v) for name, v in self.values.items()})


def check(site: Site, n: Any) -> None:
    """Refuse neurons that NIR has not, and options."""
    if isinstance(n, LoihiLIF):
        site.refuse("computes in integers, which no .nir file has", "export it with --to loihi")
    if isinstance(n, Rectified):
        site.refuse("is no spiking neuron, and NIR has no node for it", "use a spiking network")
    if type(n) in (LeakyIntegrator, SynapticIntegrator):
        return
    if type(n) not in (LIF, IF, PLIF, CUBA):
        known = "LIF, IF, PLIF, CUBA, LeakyIntegrator or SynapticIntegrator"
        site.refuse("NIR has no such model", f"use {known}")
    if not n.plain:
        site.refuse("noise, escape firing and refractory periods do not exist there", "do without")
    if isinstance(n.surrogate, Smooth):
        site.refuse("Smooth is no spike", "use the surrogate itself")
    if not n.strict:
        site.refuse("strict=False: neurons fire above their threshold there", "use strict=True")
    if n.reset not in (Reset.ZERO, Reset.VALUE) or n.reset_time == "after":
        site.refuse(
            f"Reset.{n.reset.name} with reset_time='{n.reset_time}': there a spike sets the "
            "membrane to a value in its own step",
            "train with reset='zero'",
        )


def write(site: Site, n: Any, shape: tuple[int, ...], dt: float) -> Node:
    """Return the node of a model; two models with the same steps have the same."""

    def each(value: Any) -> Tensor:
        own = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
        return own.reshape(own.shape[-len(shape) :]).expand(shape)

    def tau(decay: Any, name: str) -> Tensor:
        if ends(decay)[1] == 1:
            site.refuse(f"{name}=1 decays never, and its time constant has no end", f"lower {name}")
        made: Tensor = dt / (1 - each(decay))
        return made

    fires, second = isinstance(n, LIF), isinstance(n, (CUBA, SynapticIntegrator))
    scaled = isinstance(n, SynapticIntegrator) or n.scale_input
    name = "beta" if fires else "kappa"
    decay, rest, one = getattr(n, name), each(getattr(n, "v_rest", 0.0)), each(1.0)
    values = {"v_threshold": each(n.v_th), "v_reset": each(n.reset_value)} if fires else {}
    if fires and not second and not scaled and ends(decay)[0] == 1:
        if bool(rest.any()):
            site.refuse("v_rest: without leak membranes start at 0 there", "use v_rest=0")
        return Node("IF", {**values, "r": one}, None)
    values |= {"v_leak": rest, "r": one, "tau": tau(decay, name)}
    if not second:
        gain = None if scaled else 1 / (1 - each(decay))
        return Node("LIF" if fires else "LI", values, gain)
    values["tau_mem"], values["tau_syn"] = values.pop("tau"), tau(n.alpha, "alpha")
    values["w_in"] = 1 / (1 - each(n.alpha))
    values["r"] = one if scaled else 1 / (1 - each(decay))
    return Node("CubaLIF" if fires else "CubaLI", values, None)


def read(
    site: Site, d: Dynamics, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Neuron, Tensor]:
    """Return neurons with these steps, and the gain of each row of the weights before them.

    Where a membrane takes ``g x``, either the weights are multiplied by ``g``, or by
    ``g / (1 - beta)`` and the neuron scales its input by ``1 - beta``; what needs no change of the
    weights goes first.
    """

    def value(each: Any) -> float | Tensor:
        if (each == each[0]).all():
            return float(each[0])
        return torch.as_tensor(each, dtype=dtype).reshape(shape)

    total, leak = d.current_gain * d.gain, 1 - d.beta
    filtered, resting = bool(d.alpha.any()), not d.v_rest.any()
    ways = [(False, total)] if d.spiking or (resting and not filtered) else []
    if (leak > 0).all():
        ways.append((True, total / leak))
    scaled, rows = _choose(site, ways, shape, dtype)
    second: dict[str, Any] = {"alpha": value(d.alpha)} if filtered else {}
    if not d.spiking:
        if not filtered and resting:
            return LeakyIntegrator(kappa=value(d.beta), scale_input=scaled), rows
        alpha, rest = value(d.alpha), value(d.v_rest)
        return SynapticIntegrator(alpha=alpha, kappa=value(d.beta), v_rest=rest), rows
    assert d.v_reset is not None
    zero = not d.v_reset.any()
    fires: dict[str, Any] = {
        "v_th": value(d.v_threshold),
        "v_reset": 0.0 if zero else value(d.v_reset),
        "reset": Reset.ZERO if zero else Reset.VALUE,
        "v_rest": value(d.v_rest),
    }
    if not filtered and not leak.any():
        return IF(**fires), rows
    kind = CUBA if filtered else LIF
    return kind(beta=value(d.beta), scale_input=scaled, **second, **fires), rows


def _choose(
    site: Site, ways: list[tuple[bool, Any]], shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[bool, Tensor]:
    """Return whether to scale the input, and gains of rows; 1 where they are up to rounding."""
    found = []
    for scaled, gain in ways:
        rows = np.where(abs(gain - 1) < 8 * torch.finfo(dtype).eps, 1.0, gain)
        rows = rows.reshape(shape[0], -1)
        if (rows == rows[:, :1]).all():
            found.append((scaled, torch.from_numpy(rows[:, 0].copy())))
    if not found:
        site.refuse(
            "r differs between the places of a channel, whose weights are shared",
            "use one r for each channel",
        )
    return next((way for way in found if bool((way[1] == 1).all())), found[0])
