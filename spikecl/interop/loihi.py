"""Loihi in torch: the emulator on tensors, networks of whole numbers, and their programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import Arrays, Scan, emulate
from spikecl_hardware.loihi.program import Program
from spikecl_hardware.loihi.quantise import quantise_input
from spikecl_hardware.loihi.semantics import LIFParameters, LIFState
from spikecl_hardware.record import Record
from torch import Tensor, nn
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.interop import loihi_scan
from spikecl.kernels import AUTO
from spikecl.kernels.product import keep, linear
from spikecl.networks.presynaptic import is_static


class TorchArrays(Arrays):
    """The emulator's arrays as tensors on a device; equal to numpy's bit for bit.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UsageError("device 'cuda': this machine has no GPU that torch sees; use 'cpu'")
        self.name = f"torch, {self.device.type}"

    def take(self, x: NDArray[Any]) -> Tensor:
        """Return whole numbers of any type; a repeated step stays one."""
        static = len(x) > 1 and x.strides[0] == 0
        one = np.require(x[:1] if static else x, requirements=("C", "W"))
        if one.dtype not in (np.uint8, np.int8, np.int16, np.int32, np.int64):
            one = one.astype(np.int64)
        made = torch.from_numpy(one).to(self.device)
        return made.expand(*x.shape) if static else made

    def wide(self, x: Any) -> Tensor:
        """Return int64 values."""
        return torch.as_tensor(np.asarray(x, dtype=np.int64), device=self.device)

    def give(self, x: Tensor) -> NDArray[Any]:
        """Return a numpy array."""
        made: NDArray[Any] = x.cpu().numpy()
        return made

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Return int64 zeros."""
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def small_zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Return zeros of a byte each."""
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def repeats(self, x: Tensor) -> bool:
        """Whether [S, ...] is one step repeated."""
        return len(x) > 1 and is_static(x)

    def largest(self, x: Tensor) -> int:
        """Return the largest magnitude."""
        if not x.numel():
            return 0
        low, high = x.aminmax()
        return max(int(high), -int(low))

    def real(self, x: Tensor, *, double: bool) -> Tensor:
        """Return floating-point numbers."""
        return x.to(torch.float64 if double else torch.float32)

    def whole(self, x: Tensor) -> Tensor:
        """Return int64, or int32 where float32 held it."""
        return x.to(torch.int64 if x.dtype == torch.float64 else torch.int32)

    def product(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return rows times weights; those of few spikes are added up."""
        if rows.is_cuda:
            return functional.linear(rows, weights)
        return linear(rows, keep(rows, len(weights), AUTO, passing=True), weights, None, AUTO)

    def convolution(self, maps: Tensor, weights: Tensor, stride: int, padding: int) -> Tensor:
        """Return the convolution by sums of products; cuDNN may take other ways, which round."""
        if maps.is_cuda:
            with torch.backends.cudnn.flags(enabled=False):
                return functional.conv2d(maps, weights, stride=stride, padding=padding)
        return functional.conv2d(maps, weights, stride=stride, padding=padding)

    def later(self, sums: Tensor, steps: int, total: int, others: Tensor | None) -> Tensor:
        """Return sums from the second step on; one source keeps its type."""
        if others is not None:
            others = others.to(torch.int64)
            others[1 : steps + 1] += sums
            return others
        made = sums.new_empty((total, *sums.shape[1:]))
        made[0], made[1 : steps + 1], made[steps + 1 :] = 0, sums, 0
        return made

    def neurons(self, parameters: LIFParameters) -> LIFParameters:
        """Return registers on the device."""

        def there(value: Any) -> Any:
            return value if isinstance(value, int) else self.wide(value)

        p = parameters
        return LIFParameters(
            there(p.vth), there(p.du), there(p.dv), there(p.bias_mant), there(p.bias_exp)
        )

    def scan(
        self,
        a: Tensor,
        neurons: LIFParameters,
        state: LIFState | None = None,
        *,
        states: Iterable[str] = (),
    ) -> Scan:
        """Run neurons over currents; in compiled code on a CPU with a compiler."""
        states, done = tuple(states), None
        if not a.is_cuda and loihi_scan.available():
            done = loihi_scan.scan(a, neurons, state, states=states)
        return done or super().scan(a.to(torch.int64), neurons, state, states=states)


class LoihiEmulator(nn.Module):
    """A program as a module: encoded input [T, B, *features] to logits [B, classes].

    Nothing passes back through it; train networks of :class:`~spikecl.neurons.LoihiLIF`.

    Args:
        program: What to run.
        device: Where.

    Example:
        >>> from spikecl_hardware.loihi.program import Connection, Population, Program, Readout
        >>> from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters
        >>> synapses = DenseParameters(np.array([[40, -12], [8, 100]]))
        >>> cells = Population((2,), LIFParameters(vth=30, du=4095, dv=410))
        >>> program = Program(
        ...     (2,), {"out": cells}, (Connection("input", "out", synapses),), Readout("out"), 3
        ... )
        >>> LoihiEmulator(program)(torch.ones(3, 1, 2))
        tensor([[0.3333, 1.0000]])
    """

    def __init__(self, program: Program, device: str | torch.device = "cpu"):
        super().__init__()
        self.program, self.arrays = program, TorchArrays(device)

    def run(self, x: ArrayLike | Tensor, *, states: Iterable[str] = ()) -> Record:
        """Return what every population did."""
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if "input" in self.program.manifest:
            array = quantise_input(self.program, array)
        return emulate(self.program, array, states=states, arrays=self.arrays)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        found = logits(self.run(x).outputs, self.program.readout)
        return torch.from_numpy(np.asarray(found)).to(self.arrays.device, torch.float32)
