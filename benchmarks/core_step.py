"""What the continual core costs: a training step at task 10 against a plain step.

784-800-800-10 spiking neurons, 6 steps, batch 64, BPTT and SGD; the plain step has dense kernels,
and so have the others. ``hlop`` stands before task 10 of permuted MNIST with the published numbers
of rows, 460, 580 and 480 directions, and runs the Hebbian rule in every step, as in the table of
``pmnist`` (``hlop_every_10`` in every tenth, ``hlop_faithful`` in the arithmetic of the authors'
code).
``inhibition`` has gathered nine tasks; gathering the tenth after training, 5,000 images, is shared
out over the 938 steps of the task and counted (``inhibition_step`` is without it); so is the Fisher
information of 1,000 images in ``ewc`` (``ewc_step``). In ``ewc_implicit`` and ``si_implicit`` the
penalty takes a step of its own behind the optimiser's: the old weights are copied, the update is
formed, changed and written back, as in a run. Ratios of process CPU time, one thread.

    python benchmarks/core_step.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from timing import cpu_seconds, interleave, ratios, report
from torch import Tensor
from torch.nn.functional import cross_entropy

from spikecl.continual import Context, Ewc, Finetune, Hlop, Inhibition, Method, MethodSpec, Si
from spikecl.continual.host import Nobody, Seen
from spikecl.continual.method import overrides
from spikecl.kernels import Kernels
from spikecl.networks import Network, SpikingMlp, form_gradients, initialise
from spikecl.neurons import LIF
from spikecl.optim import Optimiser, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Batch, LearnerView, Samples
from spikecl.streams.events import Part
from spikecl.trainers import Bptt, Factors

ROWS = ((80, 200, 100), 70, 70, 50, 50, 50, 30, 30, 30, 10)
STEPS, PER_TASK, LOOKED = 10, 938, 5000
VARIANTS: dict[str, MethodSpec] = {
    "plain": Finetune(),
    "hlop": Hlop(rows=ROWS),
    "inhibition": Inhibition(),
    "ewc": Ewc(),
    "ewc_implicit": Ewc(step="implicit"),
    "si": Si(),
    "si_implicit": Si(step="implicit"),
    "hlop_every_10": Hlop(rows=ROWS, every=10),
    "hlop_faithful": Hlop(rows=ROWS, faithful=True),
}
GATHERS = {"inhibition": "inhibition", "ewc": "ewc", "ewc_implicit": "ewc"}  # whose gathering
NOTES = (
    "Public code of HLOP (Xiao et al., ICLR 2024), the same network before task 10, measured on "
    "another machine when this project began, with one thread: 8 times its own plain step under "
    "BPTT (0.55 to 4.37 s for 1,000 images), 16 times under OTTT (0.71 to 11.21 s)."
)


@dataclass
class Images(Nobody):
    """A host that shows images of pixels that are drawn for each task."""

    network: Network
    task: int = 0

    def look(self, samples: Samples, count: int, *, batch: int | None = None) -> Iterator[Seen]:
        """Yield images in batches of 64."""
        draw, size = torch.Generator().manual_seed(self.task), batch or 64
        count = min(count, len(samples))
        for start in range(0, count, size):
            images = pictures(min(size, count - start), draw)
            yield Seen(images.expand(6, *images.shape), Batch(images, None, None), torch.mean)

    def relabel(self, seen: Seen, labels: Tensor) -> Seen:
        """Return images with labels."""
        return seen._replace(loss=lambda logits: cross_entropy(logits, labels))

    def credit(self, seen: Seen, *, training: bool = True, of_loss: bool = False) -> Factors:
        """Return the factors of images."""
        with torch.no_grad():
            return Bptt().factors(self.network, seen.x, seen.loss, training=training)


def pictures(count: int, draw: torch.Generator) -> Tensor:
    """Return images with as many directions as MNIST's have, in other pixels for each generator."""
    mix = torch.randn(60, 784, generator=draw) / 60**0.5
    return torch.randn(count, 60, generator=draw) @ mix


def at_task_10(spec: MethodSpec) -> tuple[Network, Method, Images, LearnerView]:
    """Return a network and a method that stands at the beginning of the tenth task.

    What ``ewc`` and ``si`` hold is of one size and cost from the second task on: that is theirs.
    """
    network = SpikingMlp(hidden=(800, 800), neuron=LIF(beta=0.5)).build((784,), 10)
    network.kernels = Kernels(synapse="dense")
    initialise(network, Seeds(0))
    host = Images(network)
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 10, torch.device("cpu"), host=host)
    method = spec.start(context)
    samples = Samples((Part(torch.zeros(LOOKED, 1), None, None),))
    view = LearnerView(DOMAIN_IL, {"samples": samples})
    for task in range(1 if isinstance(spec, Ewc | Si) else 9):
        host.task = task
        method.begin(view)
        method.end(view)
    method.begin(view)
    return network, method, host, view


def steps_of(spec: MethodSpec) -> Callable[[], dict[str, float]]:
    """Return a function that runs ten training steps and returns the seconds of one."""
    network, method, _, _ = at_task_10(spec)
    optimiser, draw = Sgd().start(network.weights()), torch.Generator().manual_seed(100)
    images, labels = pictures(64, draw), torch.randint(0, 10, (64,), generator=draw)
    x, batch = images.expand(6, 64, 784), Batch(images, labels, None)

    def steps() -> None:
        for _ in range(STEPS):
            made = Bptt().factors(network, x, lambda logits: cross_entropy(logits, labels))
            with torch.no_grad():
                synapses = method.factors(made.synapses, batch)
                gradients = method.gradients(form_gradients(network, synapses, made.direct))
                apply(network, method, optimiser, gradients)
                method.after_step()

    return lambda: {"step": cpu_seconds(steps) / STEPS}


def apply(
    network: Network, method: Method, optimiser: Optimiser, gradients: Mapping[str, Tensor]
) -> None:
    """Take the optimiser's step; a method that changes updates changes this one, as in a run."""
    if not overrides(method, "update"):
        optimiser.step(gradients)
        return
    weights = network.weights()
    old = {name: w.detach().clone() for name, w in weights.items()}
    optimiser.step(gradients)
    update = method.update({name: w - old[name] for name, w in weights.items()})
    for name, w in weights.items():
        same = update[name] == w - old[name]
        moved = old[name].add_(update[name])
        w.copy_(torch.where(same, w, moved, out=moved))


def gathering_of(spec: MethodSpec) -> Callable[[], dict[str, float]]:
    """Return a function that gathers a task and returns the seconds for each of its steps."""
    _, method, host, view = at_task_10(spec)
    state = method.state_dict()

    def gather() -> None:
        host.task += 1
        method.end(view)

    def once() -> dict[str, float]:
        method.load_state_dict(state)
        return {"step": cpu_seconds(gather) / PER_TASK}

    return once


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    given = parser.parse_args()
    variants = {name: steps_of(spec) for name, spec in VARIANTS.items()}
    seconds = interleave(variants, repeats=3 if given.quick else 21)
    gathering = {name: gathering_of(VARIANTS[name]) for name in dict.fromkeys(GATHERS.values())}
    gathered = interleave(gathering, repeats=1 if given.quick else 5)
    plain = seconds.pop("plain")["step"]
    results = {name: ratios(measured["step"], plain) for name, measured in seconds.items()}
    for name, gathers in GATHERS.items():
        results[f"{name}_step"] = results[name]
        each = sorted(gathered[gathers]["step"])[len(gathered[gathers]["step"]) // 2]
        results[name] = ratios([step + each for step in seconds[name]["step"]], plain)
    report("core_step", results, keep=given.write, notes=NOTES)


if __name__ == "__main__":
    main()
