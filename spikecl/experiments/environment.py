"""Where a run computes: what is recorded, and what must be the same to resume it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spikecl.errors import RunError, UsageError
from spikecl.kernels import compiler
from spikecl.networks import Network, explain
from spikecl.records import FORMAT_VERSION

MUST_MATCH = ("torch", "numpy", "cpu_capability", "threads", "device", "kernels", "products")


def describe(network: Network, batch: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Return versions, machine and kernel plan."""
    from importlib.metadata import version

    plans, auto = explain(network, batch), network.kernels.scan == "auto"
    return {
        "spikecl": version("spikecl"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": _device_name(device),
        "kernels": {plan.layer: plan.kernel for plan in plans},
        "products": "torch" if compiler.against() else "compiled",
        "fallbacks": [f"{p.layer}: {p.reason}" for p in plans if auto and p.kernel == "fused"],
    }


def check_same(recorded: Mapping[str, Any], now: Mapping[str, Any], run: str) -> None:
    """Refuse to resume where the last bits would differ."""
    changed = [
        f"{key} was {recorded.get(key)!r}, is {now[key]!r}"
        for key in MUST_MATCH
        if recorded.get(key) != now[key]
    ]
    if changed:
        raise RunError(
            f"run {run} cannot be resumed identically here: {'; '.join(changed)}; resume where it "
            "began, or remove its directory to start again"
        )


def check_format(recorded: Mapping[str, Any], run: str) -> None:
    """Refuse a run directory of another format version."""
    if recorded.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"run {run} has format version {recorded.get('format_version')}, this program writes "
            f"{FORMAT_VERSION}; resume it with spikecl "
            f"{recorded.get('environment', {}).get('spikecl', 'of its time')}, or remove it"
        )


def choose_device(name: str) -> torch.device:
    """Return a device that exists."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device: got 'cuda', but torch sees no GPU; use 'cpu'")
    return torch.device(name)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
