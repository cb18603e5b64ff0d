"""What every trainer costs beside BPTT: time and peak memory of a gradient, and three bounds.

A recurrent or dense network (100 inputs, two layers of 128, 10 classes), 50 steps, 16 samples, a
loss of each step; ``NAME_time_over_bptt`` is the CPU time from the batch to the gradients of all
weights over that of BPTT in the same round, ``NAME_peak_over_bptt`` the same of the peak of
allocated memory (one number: it does not vary). Then

``eprop_gemm_speedup``
    e-prop's gradient of one layer (16 samples, 50 steps, 100 to 100 neurons, readout that leaks)
    from the filtered signal and one product, over the form that was published as vectorised: a
    trace of each synapse, sample and step, filtered by a convolution with T taps;
    ``..._over_recursion`` the same traces filtered step by step, ``..._over_stepwise`` one trace
    of each synapse and sample, updated step by step. All give the same to 1e-6, which is checked.
``ottt_forward_over_bptt_forward``
    OTTT's pass over BPTT's (its traces are errors filtered backwards, which come later: they are
    in ``ottt_time_over_bptt``).
``online_memory_t500_over_t50``
    Peak memory of OTTT in windows of one step, the input made step by step: T = 500 over T = 50.

    python benchmarks/trainers.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from memory import peak_bytes
from timing import cpu_seconds, interleave, ratios, report
from torch import Tensor
from torch.nn.functional import conv1d, cross_entropy

from spikecl.kernels import scan
from spikecl.kernels.recurrence import Ways
from spikecl.networks import Paths, SpikingMlp, form_gradients, initialise
from spikecl.neurons import CUBA, LIF, LeakyIntegrator, Sigmoid, SynapticIntegrator
from spikecl.seeds import Seeds
from spikecl.trainers import (
    Bptt,
    Call,
    Decolle,
    Eprop,
    EventProp,
    Evolution,
    ForwardGradient,
    Ostl,
    Osttp,
    Ottt,
    PerStep,
    Sltt,
    Spsa,
    Steps,
    Tbptt,
    Trainer,
)
from spikecl.trainers.credit import forward

STEPS, SAMPLES, INPUTS, HIDDEN, CLASSES = 50, 16, 100, (128, 128), 10
TRAINERS: dict[str, Trainer] = {
    "bptt": Bptt(),
    "bptt_checkpoint7": Bptt(checkpoint=7),
    "bptt_random": Bptt(feedback="random"),
    "bptt_direct": Bptt(feedback="direct"),
    "tbptt10": Tbptt(steps=10),
    "eprop": Eprop(),
    "eprop_window10": Eprop(window=10),
    "eprop_window1": Eprop(window=1),
    "eprop_kept_window1": Eprop(window=1, reset="kept"),
    "ostl": Ostl(),
    "osttp": Osttp(),
    "ottt": Ottt(),
    "ottt_window1": Ottt(window=1),
    "sltt": Sltt(),
    "sltt_k5": Sltt(k=5),
    "decolle": Decolle(),
    "eventprop": EventProp(),
    "spsa": Spsa(),
    "evolution": Evolution(),
    "forward_gradient": ForwardGradient(),
}


class Problem:
    """A network, a batch of spikes, and the loss of each step."""

    def __init__(self, trainer: Trainer):
        neuron, output = LIF(beta=0.9), None
        if isinstance(trainer, EventProp):
            neuron, output = CUBA(alpha=0.8, beta=0.9, reset="zero"), SynapticIntegrator(0.8, 0.9)
        spec = SpikingMlp(hidden=HIDDEN, neuron=neuron, output=output, readout="mean_current")
        self.network = spec.build((INPUTS,), CLASSES)
        initialise(self.network, Seeds(0))
        draw = torch.Generator().manual_seed(0)
        self.x = (torch.rand(STEPS, SAMPLES, INPUTS, generator=draw) < 0.2).float()
        self.labels = torch.randint(0, CLASSES, (SAMPLES,), generator=draw)
        self.trainer = trainer
        self.variables = trainer.variables(self.network, Seeds(0), self.x)

    def loss(self) -> PerStep:
        """Return the mean cross entropy of the steps."""
        return PerStep(
            lambda z: cross_entropy(z.flatten(0, 1), self.labels.repeat(len(z))), separable=True
        )

    def call(self, x: Any = None) -> Call:
        """Return a call of the trainer."""
        return Call(
            self.network,
            self.x if x is None else x,
            self.loss(),
            variables=self.variables,
            generator=torch.Generator().manual_seed(1),
            labels=self.labels,
        )

    def gradients(self, x: Any = None) -> dict[str, Tensor]:
        """Return the gradients of all weights, parts added up as a learner does."""
        total: dict[str, Tensor] = {}
        with torch.no_grad():
            for part in self.trainer.parts(self.call(x)):
                made = form_gradients(self.network, part.synapses, part.direct)
                for name, gradient in made.items():
                    total[name] = total[name] + gradient if name in total else gradient
        return total

    def forward(self) -> None:
        """Run the pass of a training step."""
        present = Paths("instant", "instant", recurrent=False, reset=False, stepwise=True)
        forward(self.call(), present if isinstance(self.trainer, Ottt) else Paths())


def timed(work: Callable[[], object], repeats: int = 1) -> Callable[[], dict[str, float]]:
    """Return a variant of :func:`interleave`."""

    def measure() -> dict[str, float]:
        return {"step": cpu_seconds(lambda: [work() for _ in range(repeats)])}

    return measure


class Layer:
    """One layer of e-prop: what the three forms of its gradient start from."""

    BATCH, STEPS, N, M, BETA, KAPPA = 16, 50, 100, 100, 0.9, 0.8

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(0)
        shape = (self.STEPS, self.BATCH, self.N)
        self.x = (torch.rand(shape, generator=draw) < 0.2).to(dtype)
        weight = torch.randn(self.N, self.M, generator=draw).to(dtype) / 5
        current = (self.x.flatten(0, 1) @ weight).view(self.STEPS, self.BATCH, self.M)
        self.current = current.requires_grad_()
        neuron = LIF(beta=self.BETA, surrogate=Sigmoid())
        self.out, _ = scan(self.current, None, neuron)
        self.signal = torch.randn(current.shape, generator=draw).to(dtype)
        own = current.detach().requires_grad_()
        instant, _ = scan(own, None, neuron, ways=Ways(instant=True))
        (self.psi,) = torch.autograd.grad(instant.sum(), [own])  # of each step

    def gemm(self) -> Tensor:
        """Filter the signal backwards by the readout's leak and the membrane, one product."""
        reverse, _ = scan(self.signal.flip(0), None, LeakyIntegrator(kappa=self.KAPPA))
        (delta,) = torch.autograd.grad(self.out, [self.current], reverse.flip(0), retain_graph=True)
        return delta.flatten(0, 1).T @ self.x.flatten(0, 1)

    def stepwise(self) -> Tensor:
        """Update a trace of each synapse and sample, step by step."""
        eps = self.x.new_zeros(self.BATCH, self.N)
        bar = self.x.new_zeros(self.BATCH, self.M, self.N)
        total = self.x.new_zeros(self.M, self.N)
        for t in range(self.STEPS):
            eps = self.BETA * eps + self.x[t]
            bar = self.KAPPA * bar + self.psi[t][:, :, None] * eps[:, None]
            total += (self.signal[t][:, :, None] * bar).sum(0)
        return total

    def published(self) -> Tensor:
        """Hold the trace of each synapse, sample and step; filters are convolutions of T taps."""
        taps = torch.arange(self.STEPS - 1, -1, -1).to(self.x)

        def filtered(rows: Tensor, decay: float) -> Tensor:
            """Filter rows [B, channels, T], each channel on its own."""
            channels = rows.shape[1]
            kernel = (decay**taps).expand(channels, 1, -1)
            made = conv1d(rows, kernel, padding=self.STEPS - 1, groups=channels)
            return made[:, :, : self.STEPS]

        eps = filtered(self.x.permute(1, 2, 0), self.BETA)
        traces = torch.einsum("tbm,bnt->bmnt", self.psi, eps)
        flat = traces.reshape(self.BATCH, self.M * self.N, self.STEPS)
        bar = filtered(flat, self.KAPPA).reshape(traces.shape)
        return torch.einsum("tbm,bmnt->mn", self.signal, bar)

    def recursion(self) -> Tensor:
        """Hold the same traces, filtered step by step."""
        eps, _ = scan(self.x, None, LeakyIntegrator(kappa=self.BETA))
        traces = self.psi[..., None] * eps[:, :, None]  # [T, B, M, N]
        held = [traces[0]]
        for t in range(1, self.STEPS):
            held.append(self.KAPPA * held[-1] + traces[t])
        bar = torch.stack(held)
        return (self.signal[..., None] * bar).sum((0, 1))


def steps_of(problem: Problem, count: int) -> Steps:
    """Return an input that is drawn step by step."""

    def draw() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            yield (torch.rand(SAMPLES, INPUTS, generator=generator) < 0.2).float()

    return Steps(count, draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most 40 s")
    parser.add_argument("--write", action="store_true", help="keep the results as a file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 3 if given.quick else 15
    problems = {name: Problem(trainer) for name, trainer in TRAINERS.items()}
    seconds = interleave(
        {name: timed(problem.gradients) for name, problem in problems.items()}, repeats=repeats
    )
    plain = seconds["bptt"]["step"]
    results = {
        f"{name}_time_over_bptt": ratios(found["step"], plain)
        for name, found in seconds.items()
        if name != "bptt"
    }
    peaks = {name: peak_bytes(problem.gradients) for name, problem in problems.items()}
    for name, peak in peaks.items():
        if name != "bptt":
            results[f"{name}_peak_over_bptt"] = ratios([peak], [peaks["bptt"]])
    layer, exact = Layer(), Layer(torch.float64)
    for other in (exact.stepwise(), exact.recursion(), exact.published()):
        scale = float(other.abs().max())
        torch.testing.assert_close(exact.gemm(), other, rtol=1e-6, atol=1e-6 * scale)
    forms = interleave(
        {
            "gemm": timed(layer.gemm, 10),
            "stepwise": timed(layer.stepwise),
            "recursion": timed(layer.recursion),
            "published": timed(layer.published),
        },
        repeats=min(repeats, 7),
    )
    gemm = [value / 10 for value in forms["gemm"]["step"]]
    results["eprop_gemm_speedup"] = ratios(forms["published"]["step"], gemm)
    for name in ("recursion", "stepwise"):
        results[f"eprop_gemm_speedup_over_{name}"] = ratios(forms[name]["step"], gemm)
    passes = interleave(
        {name: timed(problems[name].forward, 3) for name in ("bptt", "ottt")}, repeats=2 * repeats
    )
    results["ottt_forward_over_bptt_forward"] = ratios(
        passes["ottt"]["step"], passes["bptt"]["step"]
    )
    online = problems["ottt_window1"]
    lengths = [peak_bytes(lambda n=n: online.gradients(steps_of(online, n))) for n in (500, 50)]  # type: ignore[misc]
    results["online_memory_t500_over_t50"] = ratios([lengths[0]], [lengths[1]])
    report("trainers", results, keep=given.write)


if __name__ == "__main__":
    main()
