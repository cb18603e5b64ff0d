"""Train a network on digits, write it as integers for Loihi, and run both on the test images.

python examples/export_to_loihi.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import spikecl

with tempfile.TemporaryDirectory() as folder:
    stream = spikecl.split_classes(spikecl.load_data("digits"), experiences=1)
    result = spikecl.run(
        stream,
        spikecl.SpikingMlp(hidden=(64,), neuron=spikecl.LIF(beta=0.8, reset=spikecl.Reset.ZERO)),
        encoder=spikecl.Rate(steps=20),
        optimiser=spikecl.Adam(lr=0.005),
        plan=spikecl.TrainPlan(epochs=2, batch=32),
        runs_dir=folder,
    )
    made = spikecl.export(result, Path(folder) / "digits.h5", to="loihi", stream=stream)
    for placement in made.cores:
        print(placement.population, placement.synapses, "synapses on", placement.cores, "core")

    seen = spikecl.simulate(made.path, ("torch", "emulator"), stream=stream)
    for row in seen.rows():
        print(row["backend"], f"{100 * row['accuracy']:.1f} %")
    (report,) = seen.comparisons.values()
    for row in report.rows():
        print(row["population"], row["backend"], "differs in", row["percent"], "% of its spikes")
