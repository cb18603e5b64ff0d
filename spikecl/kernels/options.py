"""Which kernels to use: a description that goes with a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spikecl.components import component

ScanName = Literal["auto", "reference", "fused", "compiled", "inductor", "triton"]


@component
class Kernels:
    """How layers are computed; ``auto`` takes what is fastest here and exact.

    Args:
        scan: The time scan of neurons: ``reference`` (autograd of the plain loop), ``fused`` (one
            autograd node, torch operations), ``compiled`` (C, on a CPU), ``inductor`` (the fused
            form through ``torch.compile``: seconds to minutes of compiling, so only where asked
            for) or ``triton`` (on a GPU).
        synapse: ``events`` adds up the weights of the inputs that fired, ``dense`` multiplies;
            ``auto`` decides in each call by the measured density.
        precision: ``bfloat16`` multiplies dense products in bfloat16: faster, weights rounded to 8
            bits. Spikes are exact in it.
        memory: ``full`` loses nothing (many spikes are kept as bits, which is exact); ``lean``
            keeps surrogates in bfloat16, each rounded to 8 bits.
        chunk: Maps (steps times samples) that a convolution computes at a time; 0 is all at once.
        steps: Steps that a pass which only answers computes at a time, its state carried over: its
            memory is then that of so many steps, however long the recording; 0 is all at once.
            Training needs all steps, for what each synapse saw and the error of each step.
    """

    scan: ScanName = "auto"
    synapse: Literal["auto", "dense", "events"] = "auto"
    precision: Literal["full", "bfloat16"] = "full"
    memory: Literal["full", "lean"] = "full"
    chunk: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0


AUTO = Kernels()
