"""What a pass through time and back costs on a GPU: spikecl, SpikingJelly and the memory's bound.

One layer of LIF neurons (SpikingJelly's defaults: tau = 2, reset to zero, sigmoid surrogate), the
output and the gradient of the input for a given gradient of the output, T = 4 to 64, float32 and
float16. Every T has as many values in all (T times neurons), so that arrays are far larger than
caches and a pass takes longer than its launch.

``copy`` is the bound: a copy that reads and writes as many bytes as the scan has to move at least:
input, output, tape, their gradients, and the state before and after. Keys are ratios to it, or of
SpikingJelly to spikecl. SpikingJelly chooses its kernel itself from version 2 on; older ones are
measured with each backend they have for CUDA. Times are of CUDA events, the order rotates.

    python benchmarks/gpu_scan.py [--quick] [--write] [--values N]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from results import write
from timing import interleave, ratios, report
from torch import Tensor

from spikecl.kernels import Kernels, scan
from spikecl.kernels.backend import new_tape
from spikecl.kernels.program import program
from spikecl.neurons import LIF

STEPS = (4, 8, 16, 32, 64)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
NEURON = LIF.spikingjelly()
INNER = 3  # passes between two events

Scan = Callable[[Tensor], Tensor]


def gpu_seconds(work: Callable[[], object]) -> float:
    """Return the seconds a GPU takes for one of several calls in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(INNER):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / INNER


def there_and_back(run: Scan, x: Tensor, g_out: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(run(x), x, g_out)


def spikecl(memory: Any) -> Scan:
    kernels = Kernels(scan="triton", memory=memory)
    return lambda x: scan(x, None, NEURON, kernels=kernels)[0]


def spikingjelly() -> dict[str, Scan]:
    """Return SpikingJelly's multi-step LIF in each form it has here."""
    try:
        from spikingjelly.activation_based import functional, neuron
    except ImportError as error:
        print(f"SpikingJelly is left out: {error}")
        return {}

    def scan_of(backend: str | None) -> Scan:
        node = neuron.LIFNode(step_mode="m")
        if backend is not None:
            node.backend = backend
        node.cuda()

        def run(x: Tensor) -> Tensor:
            functional.reset_net(node)
            return node(x)  # type: ignore[no-any-return]

        return run

    named = getattr(neuron.LIFNode(step_mode="m"), "supported_backends", None)
    if named is None:
        return {"spikingjelly": scan_of(None)}
    return {f"spikingjelly_{name}": scan_of(name) for name in named if name != "torch"}


def least_bytes(x: Tensor, memory: Any) -> int:
    """Return the bytes that a pass and the way back have to read and write."""
    found = program(NEURON, NEURON.rest(x[0]), memory=memory)
    assert found is not None
    tape = sum(slot.nbytes for slot in new_tape(found, x[:1])) * len(x)
    states = 4 * len(found.before) * x[0].nbytes
    return 4 * x.nbytes + 2 * tape + states


def copy(nbytes: int) -> Callable[[], object]:
    source = torch.zeros(nbytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def able(name: str, run: Scan, x: Tensor, g_out: Tensor, wanted: Tensor) -> bool:
    """Whether a scan runs here; say so if its spikes are others."""
    try:
        out = run(x)
        torch.autograd.grad(out, x, g_out)
    except Exception as error:  # another library's, of any kind
        print(f"{name} is left out: {type(error).__name__}: {str(error)[:200]}")
        return False
    other = float((out != wanted).float().mean())
    if other:
        print(f"{name}: {other:.2e} of the spikes differ")
    return True


def measure(
    steps: int, dtype: torch.dtype, values: int, repeats: int, peers: dict[str, Scan]
) -> dict[str, list[float]]:
    """Return seconds by variant, round by round."""
    draw = torch.Generator("cuda").manual_seed(0)
    shape, options = (steps, 64, values // steps // 64), {"device": "cuda", "dtype": dtype}
    x = torch.rand(shape, generator=draw, **options).mul_(2).requires_grad_()
    g_out = torch.rand(shape, generator=draw, **options)
    scans = {"spikecl": spikecl("full"), "spikecl_lean": spikecl("lean"), **peers}
    with torch.no_grad():
        wanted = scans["spikecl"](x)
    print(f"T = {steps}, {dtype}: {float(wanted.float().mean()):.3f} spikes a step")
    scans = {name: run for name, run in scans.items() if able(name, run, x, g_out, wanted)}
    del wanted
    works = {name: there_and_back(run, x, g_out) for name, run in scans.items()}
    works |= {"copy": copy(least_bytes(x, "full")), "copy_lean": copy(least_bytes(x, "lean"))}
    variants = {
        name: lambda work=work: {"seconds": gpu_seconds(work)}  # type: ignore[misc]
        for name, work in works.items()
    }
    found = interleave(variants, repeats=repeats)
    return {name: by["seconds"] for name, by in found.items()}


def summarise(seconds: dict[str, list[float]], case: str) -> dict[str, dict[str, float]]:
    """Return the ratios of a case."""
    results = {}
    for name, values in seconds.items():
        if not name.startswith("copy"):
            bound = seconds["copy_lean" if name == "spikecl_lean" else "copy"]
            results[f"{name}_{case}_over_copy"] = ratios(values, bound)
        if name.startswith("spikingjelly"):
            results[f"{name}_{case}_over_spikecl"] = ratios(values, seconds["spikecl"])
    return results


def installed(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    parser.add_argument("--values", type=int, default=1 << 27, help="time steps times neurons")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: not measured")
        report("gpu_scan", {}, keep=False)
        return
    results: dict[str, dict[str, float]] = {}
    microseconds: dict[str, dict[str, float]] = {}
    peers = spikingjelly()
    for key, dtype in DTYPES.items():
        for steps in STEPS:
            case, repeats = f"T{steps}_{key}", 9 if given.quick else 21
            seconds = measure(steps, dtype, given.values, repeats, peers)
            results |= summarise(seconds, case)
            microseconds[case] = {
                name: round(1e6 * statistics.median(values), 1) for name, values in seconds.items()
            }
            print(microseconds[case])
    if given.write:
        content = {
            "gpu": torch.cuda.get_device_name(),
            "values": given.values,
            "peers": installed("triton", "spikingjelly", "cupy"),
            "microseconds": microseconds,
            "results": results,
        }
        write("gpu_scan", "python benchmarks/gpu_scan.py --write", content)
    report("gpu_scan", results, keep=False)


if __name__ == "__main__":
    main()
