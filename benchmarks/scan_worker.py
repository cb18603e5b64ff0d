"""One framework of ``scan.py`` in a process of its own: JSON lines in, JSON lines out."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scan_peers import FRAMEWORKS
from scan_problem import BATCH, BETA, LEARNING_RATE, SLOPE, STEPS, Problem
from timing import cpu_seconds
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Case(NamedTuple):
    """What is measured: a network, its batch, and whether it learns."""

    problem: str
    batch: int
    learn: bool


CASES = {
    "forward_b64": Case("mlp", BATCH, learn=False),
    "step_b64": Case("mlp", BATCH, learn=True),
    "step_b64_dense_hidden": Case("mlp_dense_hidden", BATCH, learn=True),
    "forward_b1": Case("mlp", 1, learn=False),
    "step_b1": Case("mlp", 1, learn=True),
    "conv_forward": Case("conv", BATCH, learn=False),
    "conv_step": Case("conv", BATCH, learn=True),
}


class Runner(ABC):
    """A network of a framework with Adam."""

    @abstractmethod
    def prepare(self, *, learn: bool) -> None:
        """Choose between training and inference, outside of what is timed."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return logits, without gradients."""

    @abstractmethod
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from a batch; return the loss."""

    @abstractmethod
    def record(self, x: Tensor, y: Tensor) -> object:
        """Run the forward pass of a training step; return what it keeps besides autograd."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Return what is alive without any pass."""


class Peer(Runner):
    """Any module, trained by autograd and ``torch.optim.Adam``."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.optimiser = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)

    def prepare(self, *, learn: bool) -> None:
        """Call ``train`` or ``eval``."""
        self.module.train(learn)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return logits, without gradients."""
        return self.module(x)  # type: ignore[no-any-return]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from a batch; return the loss."""
        loss = cross_entropy(self.module(x), y)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def record(self, x: Tensor, y: Tensor) -> object:
        """Return the loss, which holds the graph."""
        return cross_entropy(self.module(x), y)

    def parameters(self) -> list[Tensor]:
        """Return parameters and buffers."""
        return [*self.module.parameters(), *self.module.buffers()]


class Spikecl(Runner):
    """Our network, with the trainer and the optimiser that the learner calls."""

    def __init__(self, problem: Problem, variant: str):
        from spikecl.networks import SpikingConvNet, SpikingMlp
        from spikecl.neurons import LIF, Arctan
        from spikecl.optim import Adam

        neuron = LIF(beta=BETA, reset_time="next", surrogate=Arctan(slope=SLOPE))  # as snnTorch
        shape, convolves = problem.x.shape[2:], problem.weights[0].dim() == 4
        options: dict[str, Any] = {"neuron": neuron, "output": neuron, "readout": "sum"}
        spec = SpikingConvNet(**options) if convolves else SpikingMlp(hidden=(512, 512), **options)
        self.network = spec.build(tuple(shape), 10)
        names = self.network.weights()
        self.network.set_parameters(dict(zip(names, problem.weights, strict=True)))
        self.optimiser = Adam(lr=LEARNING_RATE).start(self.network.weights())
        choose_kernels(self.network, variant)

    def prepare(self, *, learn: bool) -> None:
        """Do nothing: no mode is kept on the network."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return logits, without gradients."""
        return self.network(x).logits  # type: ignore[no-any-return]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from a batch; return the loss."""
        from spikecl.networks import form_gradients
        from spikecl.trainers import Bptt

        made = Bptt().factors(self.network, x, lambda logits: cross_entropy(logits, y))
        with torch.no_grad():
            self.optimiser.step(form_gradients(self.network, made.synapses, made.direct))
        return made.loss

    def record(self, x: Tensor, y: Tensor) -> object:
        """Return the taps and the loss, which holds the graph."""
        from spikecl.networks import Taps

        taps = Taps()
        return taps, cross_entropy(self.network(x, taps=taps, training=True).logits, y)

    def parameters(self) -> list[Tensor]:
        """Return parameters and buffers."""
        return [*self.network.parameters(), *self.network.buffers()]


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "dense": {"synapse": "dense"},
    "events": {"synapse": "auto"},
    "lean": {"memory": "lean"},
}


def choose_kernels(network: Any, variant: str) -> None:
    """Set what a variant is about."""
    from spikecl.kernels import Kernels

    network.kernels = Kernels(**VARIANTS[variant])


class Saved:
    """A tensor in the hands of autograd."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def saved_bytes(runner: Runner, x: Tensor, y: Tensor) -> int:
    """Return the bytes that a forward pass leaves alive for the backward pass.

    Each storage counts once, whole: those that autograd saved, and those among what the pass hands
    on besides (our taps). What autograd saved on the way and let go again does not count.
    Parameters, the input and the labels would be there anyway.
    """
    saved: list[weakref.ref[Saved]] = []

    def pack(tensor: Tensor) -> Saved:
        one = Saved(tensor)
        saved.append(weakref.ref(one))
        return one

    runner.prepare(learn=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        kept = runner.record(x, y)
    alive = [one.tensor for one in (ref() for ref in saved) if one is not None]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*alive, *tensors_in(kept))
    }
    for tensor in (*runner.parameters(), x, y):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def tensors_in(thing: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Walk what a pass hands on, whatever its fields are called."""
    seen = set() if seen is None else seen
    if isinstance(thing, Tensor):
        yield thing
    if isinstance(thing, Tensor | nn.Module) or id(thing) in seen:
        return
    seen.add(id(thing))
    inside: list[object] = []
    if isinstance(thing, dict):
        inside = list(thing.values())
    elif isinstance(thing, tuple | list):
        inside = list(thing)
    if type(thing).__module__.startswith("spikecl"):
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        inside += [getattr(thing, name, None) for name in slots]
        inside += getattr(thing, "__dict__", {}).values()
    for each in inside:
        yield from tensors_in(each, seen)


class Worker:
    """Answers requests about one framework."""

    def __init__(self, name: str, problems: Path):
        self.name = name
        loaded = torch.load(problems, weights_only=True)
        self.problems = {key: Problem(**tensors) for key, tensors in loaded.items()}
        self.runner = cache(self._runner)
        self.batch = cache(lambda problem, *size: self.problems[problem].batch(*size))

    def _runner(self, problem: str, variant: str) -> Runner:
        if self.name == "spikecl":
            return Spikecl(self.problems[problem], variant)
        torch.manual_seed(0)
        return Peer(FRAMEWORKS[self.name][variant](self.problems[problem].weights))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return CPU seconds of each repeat, bytes, or the loss."""
        case = CASES[request["case"]]
        runner = self.runner(case.problem, request["variant"])
        x, y = self.batch(case.problem, case.batch, request.get("steps", STEPS))
        if request["what"] == "bytes":
            return {"bytes": saved_bytes(runner, x, y)}
        runner.prepare(learn=case.learn)
        if request["what"] == "loss":
            loss = float(runner.step(x, y))
            assert math.isfinite(loss)
            return {"loss": loss}

        def work() -> None:
            runner.step(x, y) if case.learn else runner.forward(x)

        for _ in range(request["warm"]):
            work()
        return {"seconds": [cpu_seconds(work) for _ in range(request["repeats"])]}


def serve(name: str, problems: Path) -> None:
    """Answer lines until there are none; what frameworks print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    versions = {"torch": str(torch.__version__)}
    if name not in ("gemm", "plain"):
        try:
            importlib.import_module(name)
            versions[name] = version(name)
        except ImportError as error:
            print(json.dumps({"missing": str(error)}), file=out)
            return
    worker = Worker(name, problems)
    first = nn.Parameter(torch.zeros(1))
    first.grad = torch.zeros(1)
    torch.optim.Adam([first]).step()  # imports for seconds, here while the others start as well
    print(json.dumps({"versions": versions}), file=out)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=out)
