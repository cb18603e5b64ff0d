"""Say which kernels can run here, and compile those of the usual neurons ahead of their first use.

python -m spikecl.kernels
"""

from __future__ import annotations

import torch

from spikecl.kernels import choose, compiler, events, scan
from spikecl.neurons import MODELS


def main() -> None:
    """Print a line per model; compile what its kernel needs."""
    reason = compiler.against()
    print(f"C compiler: {compiler.compiler() if reason is None else reason}")
    print(f"compiled code: {compiler.folder()}")
    events.events_of(torch.ones(2, 2))
    for name, model in MODELS.items():
        neuron = model()
        x = torch.zeros(2, 1, 2, 1) if name == "conductance" else torch.zeros(2, 1, 1)
        kernel = choose(neuron, x)
        if kernel.name != "reference":
            scan(x, None, neuron)
        print(f"{name:20s} {kernel.name:10s} {kernel.reason}")


if __name__ == "__main__":
    main()
