"""Write a network as a NIR graph, and read it with nir and with spikecl.

python examples/export_to_nir.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nir
import torch

import spikecl
from spikecl.interop import from_nir

network = spikecl.SpikingMlp(
    hidden=(20,), neuron=spikecl.LIF(beta=0.9, reset=spikecl.Reset.ZERO)
).build((16,), 3)
spikecl.initialise(network, spikecl.Seeds(0))
x = (torch.rand(30, 4, 16, generator=torch.Generator().manual_seed(1)) < 0.3).float()

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "network.nir"
    spikecl.export(network, path, input_shape=(16,))
    for name, node in nir.read(path).nodes.items():
        print(name, type(node).__name__)
    again = from_nir(path)

with torch.no_grad():
    same = bool(
        (network.record(x)["hidden1"]["spikes"] == again.record(x)["hidden1"]["spikes"]).all()
    )
print("same spikes:", same)
