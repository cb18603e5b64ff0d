"""The integer neurons of Loihi over all steps, in compiled code on a CPU."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from spikecl_hardware.loihi.emulator import Scan
from spikecl_hardware.loihi.semantics import HALF_RANGE, STATE_LIMIT, LIFParameters, LIFState
from torch import Tensor

from spikecl.kernels import compiler

EXACT = 1 << 41  # times 4096 is 2^53


def source(current: str) -> str:
    """Return the code for currents of a type."""
    return f"""
#include <math.h>
#include <stdint.h>

#define BLOCK 256

/* Whole numbers held in doubles, exact below 2^53: while |u| < 2^41. Else counts[3] is set. */
static inline double decayed(double x, double kept) {{ return trunc(x * kept * 0x1p-12); }}

/* a, u_out, v_out: [steps][cells]; registers: [n], repeated over cells = samples * n */
void scan(int64_t steps, int64_t cells, int64_t n, const {current} *a, const double *vth,
          const double *du, const double *dv, const double *bias, double *u, double *v,
          uint8_t *spikes, int64_t *u_out, int64_t *v_out, int64_t *counts) {{
    const double half = {HALF_RANGE}, limit = {STATE_LIMIT};
    int64_t turned = 0, wild = 0, full = 0, far = 0;
    for (int64_t first = 0; first < cells; first += n)
    for (int64_t part = 0; part < n; part += BLOCK) {{
        const int64_t size = n - part < BLOCK ? n - part : BLOCK;
        const double *th = vth + part, *ku = du + part, *kv = dv + part, *b = bias + part;
        double *uu = u + first + part, *vv = v + first + part;
        for (int64_t k = 0; k < size; k++) far |= fabs(uu[k]) >= {EXACT};
        for (int64_t t = 0; t < steps; t++) {{
            const int64_t at = t * cells + first + part;
            int32_t odd = 0;
            for (int64_t k = 0; k < size; k++) {{
                double x = decayed(uu[k], ku[k]) + 64.0 * (double)a[at + k];
                turned += (x > half) | (x <= -half);
                x = x > half ? x - 2 * half : x <= -half ? x + 2 * half : x;
                double m = decayed(vv[k], kv[k]) + x + b[k];
                m = m > limit ? limit : m < -limit ? -limit : m;
                odd |= (fabs(x) > limit) | (fabs(m) == limit);
                uu[k] = x;
                vv[k] = m;
            }}
            if (odd)
                for (int64_t k = 0; k < size; k++) {{
                    wild += fabs(uu[k]) > limit;
                    full += fabs(vv[k]) == limit;
                    far |= fabs(uu[k]) >= {EXACT};
                }}
            for (int64_t k = 0; k < size; k++) {{
                const int fires = vv[k] > th[k];
                spikes[at + k] = (uint8_t)fires;
                vv[k] = fires ? 0.0 : vv[k];
            }}
            if (u_out) for (int64_t k = 0; k < size; k++) u_out[at + k] = (int64_t)uu[k];
            if (v_out) for (int64_t k = 0; k < size; k++) v_out[at + k] = (int64_t)vv[k];
        }}
    }}
    counts[0] = turned;
    counts[1] = wild;
    counts[2] = full;
    counts[3] = far;
}}

"""


@functools.cache
def available() -> bool:
    """Whether code can be compiled here."""
    return compiler.against() is None


def scan(
    a: Tensor, neurons: LIFParameters, state: LIFState | None, *, states: tuple[str, ...]
) -> Scan | None:
    """Return what the emulator's own scan returns for currents [S, B, n].

    ``None`` where a current state leaves what doubles hold exactly.
    """
    steps, samples, n = a.shape
    a = a.contiguous()
    registers = [
        _each(value, n)
        for value in (
            neurons.vth << 6,
            4095 - neurons.du,
            4096 - neurons.dv,
            neurons.bias_mant << neurons.bias_exp,
        )
    ]
    u, v = (torch.zeros(samples, n, dtype=torch.float64) for _ in range(2))
    if state is not None:
        u, v = (part.to(torch.float64, copy=True).contiguous() for part in state)
    spikes = torch.empty(a.shape, dtype=torch.uint8)
    kept = {name: torch.empty(a.shape, dtype=torch.int64) for name in states}
    counts = torch.zeros(4, dtype=torch.int64)
    pointers = [a, *registers, u, v, spikes, kept.get("u"), kept.get("v"), counts]
    compiler.load(source("int32_t" if a.dtype == torch.int32 else "int64_t")).scan(
        *(ctypes.c_int64(size) for size in (steps, samples * n, n)),
        *(None if p is None else ctypes.c_void_p(p.data_ptr()) for p in pointers),
    )
    *found, far = counts.tolist()
    if far:
        return None
    return Scan(spikes, kept, LIFState(u.to(torch.int64), v.to(torch.int64)), *found)


def _each(value: Any, n: int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).expand(n).contiguous()
