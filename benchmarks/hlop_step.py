"""What HLOP costs: a training step at task 10 against a plain BPTT step of the same network.

784-800-800-10 spiking neurons, 6 steps, batch 64, SGD, the published numbers of rows: before task
10 the three synapses protect 460, 580 and 480 directions. ``hlop_task10_over_plain`` runs the
Hebbian rule in every step, ``..._every10`` in every tenth, ``faithful_...`` is the arithmetic of
the authors' code. Ratios of process CPU time, one thread.

    python benchmarks/hlop_step.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import cpu_seconds, interleave, ratios, report
from torch.nn.functional import cross_entropy

from spikecl.continual import Context, Finetune, Hlop, Method, MethodSpec
from spikecl.learner import form_gradients
from spikecl.networks import Network, SpikingMlp, initialise
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Batch, LearnerView
from spikecl.trainers import Bptt

ROWS = ((80, 200, 100), 70, 70, 50, 50, 50, 30, 30, 30, 10)
STEPS = 10


def at_task_10(spec: MethodSpec) -> tuple[Network, Method]:
    """Return a network and a method that stands at the beginning of the tenth task."""
    network = SpikingMlp(hidden=(800, 800)).build((784,), 10)
    initialise(network, Seeds(0))
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 10, torch.device("cpu"))
    method = spec.start(context)
    view = LearnerView(DOMAIN_IL, {})
    for _ in range(9):
        method.begin(view)
        method.end(view)
    method.begin(view)
    return network, method


def steps_of(spec: MethodSpec) -> Callable[[], dict[str, float]]:
    """Return a function that runs ten training steps and returns the seconds of one."""
    network, method = at_task_10(spec)
    optimiser, draw = Sgd().start(network.weights()), torch.Generator().manual_seed(0)
    images = (torch.rand(64, 784, generator=draw) - 0.13) / 0.31
    labels = torch.randint(0, 10, (64,), generator=draw)
    x, batch = images.expand(6, 64, 784), Batch(images, labels, None)

    def steps() -> None:
        for _ in range(STEPS):
            made = Bptt().factors(network, x, lambda logits: cross_entropy(logits, labels))
            with torch.no_grad():
                synapses = method.factors(made.synapses, batch)
                optimiser.step(method.gradients(form_gradients(network, synapses, made.direct)))

    return lambda: {"step": cpu_seconds(steps) / STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    given = parser.parse_args()
    variants = {
        "plain": steps_of(Finetune()),
        "hlop_task10_over_plain": steps_of(Hlop(rows=ROWS)),
        "hlop_task10_every10": steps_of(Hlop(rows=ROWS, every=10)),
        "faithful_task10_over_plain": steps_of(Hlop(rows=ROWS, faithful=True)),
    }
    seconds = interleave(variants, repeats=7 if given.quick else 21)
    plain = seconds.pop("plain")["step"]
    results = {name: ratios(measured["step"], plain) for name, measured in seconds.items()}
    report("hlop_step", results, keep=given.write)


if __name__ == "__main__":
    main()
