"""The same lines on torch tensors: bit for bit what numpy gives."""

import dataclasses

import numpy as np
import pytest
from spikecl_hardware.loihi.semantics import (
    DenseParameters,
    LIFParameters,
    SignMode,
    dense_step,
    integrate,
    lif_step,
    overflowed,
)

torch = pytest.importorskip("torch")


def to_torch(parameters):
    """Turn the arrays of a parameter object into tensors."""
    values = {f.name: getattr(parameters, f.name) for f in dataclasses.fields(parameters)}
    arrays = {k: torch.from_numpy(v) for k, v in values.items() if isinstance(v, np.ndarray)}
    return dataclasses.replace(parameters, **arrays)


def random_layer(rng, mode, bits, *, graded):
    """One random layer, half of the time with a vector in every register, else with ints."""
    low, high = (0, 300) if mode is SignMode.EXCITATORY else (-300, 300)
    dense = DenseParameters(
        rng.integers(low, high, (5, 7)),
        weight_exp=int(rng.integers(-8, 8)),
        num_weight_bits=bits,
        sign_mode=mode,
        num_message_bits=16 * graded,
    )
    registers = {
        "vth": rng.integers(0, 300, 5),
        "du": rng.integers(0, 4096, 5),
        "dv": rng.integers(0, 4096, 5),
        "bias_mant": rng.integers(-4096, 4096, 5),
        "bias_exp": rng.integers(0, 8, 5),
    }
    if rng.random() < 0.5:
        registers = {name: int(values[0]) for name, values in registers.items()}
    return dense, LIFParameters(**registers)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("mode", [None, *SignMode])
def test_torch_equals_numpy_at_every_step(mode, bits):
    rng = np.random.default_rng([bits, 0 if mode is None else 1 + list(SignMode).index(mode)])
    fired = overflow = 0
    for largest in (1, 30, 1_000_000):
        dense, lif = random_layer(rng, mode, bits, graded=largest > 1)
        dense_twin, lif_twin = to_torch(dense), to_torch(lif)
        sums = state = sums_twin = state_twin = None
        for spikes in rng.integers(-largest, largest + 1, (12, 3, 7)):
            a, sums = dense_step(spikes, sums, dense)
            before = integrate(a, state, lif)
            s, state = lif_step(a, state, lif)
            a_twin, sums_twin = dense_step(torch.from_numpy(spikes), sums_twin, dense_twin)
            before_twin = integrate(a_twin, state_twin, lif_twin)
            s_twin, state_twin = lif_step(a_twin, state_twin, lif_twin)
            ours = [overflowed(state.u), a, s, *sums, *before, *state]
            twins = [overflowed(state_twin.u), a_twin, s_twin, *sums_twin, *before_twin]
            twins += [*state_twin]
            for array, tensor in zip(ours, twins, strict=True):
                assert str(tensor.dtype) == f"torch.{array.dtype}"
                assert tensor.tolist() == array.tolist()
            fired, overflow = fired + s.sum(), overflow + overflowed(state.u).sum()
    assert fired > 0
    assert overflow > 0


def test_widths_are_checked_on_tensors():
    with pytest.raises(ValueError, match="du is -1 to 5; 0 to 4095 is allowed"):
        LIFParameters(vth=1, du=torch.tensor([5, -1]))
    with pytest.raises(TypeError, match=r"vth is torch\.float32; int64 is allowed"):
        LIFParameters(vth=torch.tensor([1.0]))
