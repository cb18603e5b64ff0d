"""What a run has held of a network is not held in the next."""

from __future__ import annotations

import torch

import spikecl
from spikecl.continual import Finetune, Gpm
from spikecl.networks import initialise
from spikecl.seeds import Seeds


def test_a_network_that_is_used_again_learns_as_a_copy_of_it_does(tmp_path):
    """Norms whose statistics a projection has held, with the weights ``given``."""
    stream = spikecl.permuted(spikecl.load_data("digits"), experiences=2, seed=0)
    spec = spikecl.SpikingMlp(hidden=(10,), norm="batch")

    def go(network, method, name):
        folder, optimiser = tmp_path / name, spikecl.Sgd(lr=0.2)
        options = {"initial": "given", "optimiser": optimiser}
        spikecl.run(stream, network, methods=[method], runs_dir=folder, **options)

    used, copy = (spec.build(stream.input_shape, 10) for _ in range(2))
    initialise(used, Seeds(0))
    go(used, Gpm(energy=0.5), "first")
    assert used.layers["hidden1"].norm.held
    copy.load_state_dict(used.state_dict())
    start = {name: t.clone() for name, t in copy.state_dict().items()}
    go(used, Finetune(), "used")
    go(copy, Finetune(), "copy")
    moved = copy.state_dict()
    assert not used.layers["hidden1"].norm.held
    assert not torch.equal(moved["layers.hidden1.norm.mean"], start["layers.hidden1.norm.mean"])
    for name, tensor in used.state_dict().items():
        assert torch.equal(tensor, moved[name]), name
