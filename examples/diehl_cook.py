"""Digits learned without labels: STDP, lateral inhibition and three kinds of homeostasis.

A network after Diehl & Cook (2015). Every neuron inhibits all others, so few answer a digit; STDP
draws the weights of those that do towards it. Thresholds rise with every spike, so that it is not
always the same neurons, and the weights of each neuron are scaled to one sum. Labels come last: a
neuron stands for the digit that it answered most in training.

python examples/diehl_cook.py                          # 8 x 8 digits, seconds
python examples/diehl_cook.py --data mnist --samples 10000 --neurons 400
python examples/diehl_cook.py --without threshold      # or scaling, inhibition, plasticity
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import spikecl
from spikecl.continual import MethodSpec, Scaling, Threshold
from spikecl.encoding import InputStatistics, Rate
from spikecl.networks import Network, SpikingRecurrentNet
from spikecl.neurons import LIF
from spikecl.storage import load_state
from spikecl.trainers import TripletStdp

PARTS = ("threshold", "scaling", "inhibition", "plasticity")
NEURON = LIF(beta=0.98, v_th=10.0, reset="zero", refractory=3)


def network_of(
    pixels: tuple[int, ...], neurons: int, *, total: float, inhibition: float, seed: int = 0
) -> Network:
    """Return neurons that inhibit one another, with random weights of one sum onto each."""
    spec = SpikingRecurrentNet(hidden=(neurons,), neuron=NEURON, learns=("v_th",), per_neuron=True)
    network = spec.build(pixels, 10)
    weights = network.weights()
    with torch.no_grad():
        drawn = torch.rand(
            weights["hidden1.weight"].shape, generator=torch.Generator().manual_seed(seed)
        )
        weights["hidden1.weight"].copy_(total * drawn / drawn.sum(1, keepdim=True))
        weights["hidden1.recurrent.weight"].fill_(-inhibition)
    weights["hidden1.recurrent.weight"].requires_grad_(False)  # inhibition is fixed
    return network


def counts(network: Network, encoder: Rate, x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return how often each neuron answered each sample [samples, neurons]."""
    generator, found = torch.Generator().manual_seed(seed), []
    for part in x.split(100):
        spikes = encoder.encode(part, InputStatistics(), generator)
        recorded = network.record(spikes, variables=["spikes"])["hidden1"]["spikes"]
        found.append(torch.as_tensor(recorded).sum(0))
    return torch.cat(found)


def accuracy(
    train: torch.Tensor, y: torch.Tensor, test: torch.Tensor, truth: torch.Tensor
) -> float:
    """Give each neuron the digit that it answered most; let the neurons of each digit vote.

    A neuron that never answered stands for none.
    """
    means = torch.stack([train[y == digit].mean(0) for digit in range(10)])
    stands_for = means.argmax(0).where(means.any(0), -1)
    votes = [
        test[:, stands_for == digit].mean(1)
        if (stands_for == digit).any()
        else test.new_zeros(len(test))
        for digit in range(10)
    ]
    return float((torch.stack(votes).argmax(0) == truth).float().mean())


class Found(NamedTuple):
    """What a run came to.

    Args:
        accuracy: Of the vote of labelled neurons, on test samples.
        spikes: Spikes that a training sample is answered with.
        answering: Neurons that answered at all.
        busiest: Share of all spikes that the busiest neuron gave.
    """

    accuracy: float
    spikes: float
    answering: int
    busiest: float


def learn(
    data: spikecl.Data,
    *,
    neurons: int = 50,
    steps: int = 50,
    batch: int = 10,
    without: Sequence[str] = (),
    seed: int = 0,
) -> Found:
    """Train with all parts but those left out, and look at what was learned."""
    use = {part: part not in without for part in PARTS}
    stream = spikecl.permuted(data, experiences=1, seed=seed).with_reveal(
        spikecl.streams.Reveal.NONE
    )
    pixels = data.x_train[0].size
    total = 0.1 * pixels
    inhibition = 20.0 * use["inhibition"]
    network = network_of(stream.input_shape, neurons, total=total, inhibition=inhibition, seed=seed)
    encoder = Rate(steps=steps, gain=0.2 if pixels > 500 else 0.6)
    methods: list[MethodSpec] = []
    if use["threshold"]:
        # 0.04 for a spike of one sample: what counts here is the mean over a batch
        gain = 0.04 * steps * batch
        methods.append(Threshold(form="event", theta_plus=gain, tau=10_000.0))
    if use["scaling"]:
        methods.append(Scaling(form="sum", rate=1.0, target_sum=total))
    rate = 5.0 if use["plasticity"] else 1e-9
    with tempfile.TemporaryDirectory() as runs:
        result = spikecl.run(
            stream,
            network,
            TripletStdp(readout="none", mean_weight=0.0),
            methods,
            encoder=encoder,
            optimiser=spikecl.Sgd(lr=rate),
            plan=spikecl.TrainPlan(batch=batch, evaluate="present"),
            seed=seed,
            initial="given",
            runs_dir=runs,
        )
        network.set_parameters(load_state(result.record.path / "weights"))

    experience, own = stream[0], next(iter(stream.eval_sets.values()))
    seen, test = experience.train.load().take(slice(5000)), own.samples.load().take(slice(None))
    answers = counts(network, encoder, seen.x, 1)
    found = accuracy(answers, seen.y, counts(network, encoder, test.x, 2), test.y)
    return Found(
        found,
        float(answers.sum(1).mean()),
        int((answers.sum(0) > 0).sum()),
        float(answers.sum(0).max() / answers.sum().clamp_min(1)),
    )


def some(data: spikecl.Data, samples: int) -> spikecl.Data:
    """Return the first training samples, and a thousand to test on."""
    train = {"x_train": data.x_train[:samples], "y_train": data.y_train[:samples]}
    return replace(data, **train, x_test=data.x_test[:1000], y_test=data.y_test[:1000])


def main() -> None:
    """Train with all parts but those left out, then say what was learned."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--neurons", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--without", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = spikecl.load_data(given.data, **({"data_dir": given.data_dir} if given.data_dir else {}))
    sizes = {"neurons": given.neurons, "steps": given.steps, "batch": given.batch}
    found = learn(some(data, given.samples), **sizes, without=given.without, seed=given.seed)
    print(f"with {', '.join(part for part in PARTS if part not in given.without)}:")
    print(f"  accuracy {100 * found.accuracy:.1f} %, {found.spikes:.1f} spikes per sample,")
    print(f"  {found.answering} of {given.neurons} neurons answered, ", end="")
    print(f"the busiest gave {100 * found.busiest:.1f} % of the spikes")


if __name__ == "__main__":
    main()
