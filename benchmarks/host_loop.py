"""What the host loop costs: training and testing against a hand-written loop, same tensors.

Three sets of random data (784 features, 10 classes), one epoch each, plain SGD. The keys
``train_b64``, ``train_b10``, ``eval_b64`` compare the spiking network 784-400-400-10 (6 steps) in
both loops. The keys with ``ann`` compare the ordinary network 784-100-10 with ``nn.Sequential``
and autograd: a step of 0.3 ms, the hardest case there is for a host loop, and with it for the
network's and the trainer's own overhead. Ratios of process CPU time, one thread.

    python benchmarks/host_loop.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from timing import interleave, ratios, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spikecl.continual import Finetune
from spikecl.encoding import Direct
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, Network, NetworkSpec, SpikingMlp, initialise
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

EVAL_BATCH = 256


@dataclass(frozen=True)
class Case:
    """One network and batch size."""

    network: NetworkSpec
    steps: int
    batch: int
    stream: Stream


def random_stream(samples: int) -> Stream:
    """Three experiences of ready float tensors, each with a test set of the same size."""
    draw = torch.Generator().manual_seed(0)

    def tensors(first: int) -> Samples:
        x, y = torch.rand(samples, 784, generator=draw), torch.arange(samples) % 10
        return Samples((Part(x, y, torch.arange(first, first + samples)),))

    train, test = [tensors(2 * i * samples) for i in range(3)], [tensors(0) for _ in range(3)]
    classes = tuple(range(10))
    return Stream(
        name="random",
        identity={},
        seed=0,
        reveal=DOMAIN_IL,
        classes=10,
        input_shape=(784,),
        length=3,
        make=lambda i: Experience(i, train[i], classes, task=i),
        eval_sets={f"task{i}": EvalSet(test[i], classes, (i,)) for i in range(3)},
    )


def ours(case: Case) -> dict[str, float]:
    learner = Learner(
        stream=case.stream,
        network=case.network.build((784,), 10),
        encoder=Direct(steps=case.steps, centre=False),
        trainer=Bptt(),
        methods=[Finetune()],
        optimiser=Sgd(lr=0.1),
        plan=TrainPlan(batch=case.batch, eval_batch=EVAL_BATCH, evaluate="all"),
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )
    spent = {"train": 0.0, "eval": 0.0}
    start = time.process_time()
    for tick in learner.ticks():
        now = time.process_time()
        spent["eval" if tick.kind == "test" else "train"] += now - start
        start = now
    return spent


def plain(case: Case) -> dict[str, float]:
    """The loop anybody would write, batches as gathers of ready float tensors."""
    network = by_hand(case)
    tests = [s.samples.load() for s in case.stream.eval_sets.values()]
    spent = {"train": 0.0, "eval": sum(timed_test(network, t.x, t.y, case) for t in tests)}
    for event in case.stream:
        assert isinstance(event, Experience)
        train = event.train.load()
        start = time.process_time()
        train_loop(network, train.x, train.y, case)
        spent["train"] += time.process_time() - start
        spent["eval"] += sum(timed_test(network, t.x, t.y, case) for t in tests)
    return spent


def by_hand(case: Case) -> nn.Module:
    """From features [B, 784] to logits, with as little around as possible."""
    network = case.network.build((784,), 10)
    initialise(network, Seeds(0))
    if type(case.network) is not Mlp:
        return Repeated(network, case.steps)
    twin = nn.Sequential(nn.Linear(784, 100, bias=False), nn.ReLU(), nn.Linear(100, 10, bias=False))
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        theirs.data.copy_(mine.data)
    return twin


class Repeated(nn.Module):
    """A spiking network on a constant input."""

    def __init__(self, network: Network, steps: int):
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, x: Tensor) -> Tensor:
        """From features to logits."""
        return self.network(x.expand(self.steps, *x.shape)).logits  # type: ignore[no-any-return]


def train_loop(network: nn.Module, x: Tensor, y: Tensor | None, case: Case) -> float:
    assert y is not None
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    order, loss_sum, correct = torch.randperm(len(x)), torch.zeros(()), torch.zeros(())
    for i in range(0, len(x), case.batch):
        rows = order[i : i + case.batch]
        xb, yb = x[rows], y[rows]
        logits = network(xb)
        loss = cross_entropy(logits, yb)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss_sum += loss.detach()
        correct += (logits.detach().argmax(1) == yb).sum()
    return float(loss_sum + correct)


@torch.no_grad()
def timed_test(network: nn.Module, x: Tensor, y: Tensor | None, case: Case) -> float:
    start = time.process_time()
    correct = torch.zeros((), dtype=torch.int64)
    for i in range(0, len(x), EVAL_BATCH):
        xb = x[i : i + EVAL_BATCH]
        logits = network(xb)
        correct += (logits.argmax(1) == y[i : i + EVAL_BATCH]).sum()  # type: ignore[index]
    int(correct)
    return time.process_time() - start


def measure(case: Case, repeats: int) -> dict[str, dict[str, float]]:
    seconds = interleave(
        {"ours": lambda: ours(case), "plain": lambda: plain(case)}, repeats=repeats
    )
    return {key: ratios(seconds["ours"][key], seconds["plain"][key]) for key in ("train", "eval")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    given = parser.parse_args()
    results = {}
    sizes = {"b64": (64, 4480), "b10": (10, 1500)}
    for name, network, steps in (("", SpikingMlp(), 6), ("ann_", Mlp(hidden=(100,)), 1)):
        for key, (batch, samples) in sizes.items():
            samples = samples if name else samples // 4
            stream = random_stream(samples)
            repeats = (9 if name else 5) if given.quick else 21
            found = measure(Case(network, steps, batch, stream), repeats)
            results[f"{name}train_{key}"] = found["train"]
            if key == "b64":
                results[f"{name}eval_{key}"] = found["eval"]
    report("host_loop", results, keep=given.write)


if __name__ == "__main__":
    main()
