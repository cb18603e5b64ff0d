"""What every registered encoder must do."""

import pytest
import torch

from spikecl.components import from_table, to_table
from spikecl.encoding import Delta, Encoder, InputStatistics, Population, Sequence
from spikecl.errors import UsageError
from spikecl.registry import ENCODINGS

STATISTICS = InputStatistics(0.25, 0.5)
VARIANTS = {name: ENCODINGS.get(name)() for name in ENCODINGS.names()} | {
    "delta_channel": Delta(off="channel", first="repeat"),
    "population_rate": Population(code="rate", units=3),
    "population_integrate": Population(code="integrate", units=2),
    "sequence_rebinned": Sequence(steps=4, reduce="mean", pad=True, centre=True),
}
TIME = 7
each = pytest.mark.parametrize("encoder", VARIANTS.values(), ids=VARIANTS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(encoder, batch, features, dtype=torch.float32):
    time = (TIME,) if encoder.temporal else ()
    return torch.rand(batch, *time, *features, generator=generator(), dtype=dtype)


@each
@pytest.mark.parametrize("features", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type(encoder, features, batch, dtype):
    x = samples(encoder, batch, features, dtype)
    out = encoder.encode(x, STATISTICS, generator())
    steps = getattr(encoder, "steps", None) or TIME
    assert out.shape == (steps, batch, *encoder.shape(tuple(x.shape[1:])))
    assert out.dtype == dtype
    assert bool(out.isfinite().all())


@each
def test_features_keep_their_shape_unless_they_multiply(encoder):
    time = (TIME,) if encoder.temporal else ()
    if isinstance(encoder, Population):
        assert encoder.shape((2, 3)) == (2 * encoder.units, 3)
    elif isinstance(encoder, Delta) and encoder.off == "channel":
        assert encoder.shape((*time, 2, 3)) == (2, 2, 3)
    else:
        assert encoder.shape((*time, 2, 3)) == (2, 3)


@each
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_saturated_and_dark_inputs_work(encoder, value):
    x = torch.full_like(samples(encoder, 2, (3,)), value)
    assert bool(encoder.encode(x, STATISTICS, generator()).isfinite().all())


@each
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_refused(encoder, dtype):
    x = samples(encoder, 2, (3,)).to(dtype)
    name = type(encoder).__name__
    with pytest.raises(UsageError, match=rf"{name}: got input of {dtype}; give floating"):
        encoder.encode(x, STATISTICS, generator())


@each
def test_temporal_encoders_ask_for_time(encoder):
    if encoder.temporal:
        for x in (torch.rand(3), torch.rand(3, 0, 2)):
            with pytest.raises(UsageError, match="samples with time"):
                encoder.encode(x, STATISTICS, generator())


@each
def test_is_pure(encoder):
    x, state = samples(encoder, 4, (6,)), torch.get_rng_state()
    before = x.clone()
    first, again = (encoder.encode(x, STATISTICS, generator(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@each
def test_samples_do_not_meet(encoder):
    """A sample is encoded as it would be alone, when nothing is drawn."""
    x = samples(encoder, 4, (6,))
    drawn = encoder.random and getattr(encoder, "code", "rate") == "rate"
    if not drawn:
        whole = encoder.encode(x, STATISTICS, None)
        for b in range(4):
            assert torch.equal(encoder.encode(x[b : b + 1], STATISTICS, None)[:, 0], whole[:, b])
    else:
        a, b = (encoder.encode(x, STATISTICS, generator(seed)) for seed in (1, 2))
        assert not torch.equal(a, b)


@each
def test_the_order_of_features_is_kept(encoder):
    """Permuting the features before and after is the same, when nothing is drawn or added."""
    x = samples(encoder, 2, (4, 5))
    order = torch.randperm(5, generator=generator())
    if not encoder.random or getattr(encoder, "code", "rate") != "rate":
        a = encoder.encode(x[..., order], STATISTICS, None)
        assert torch.equal(a, encoder.encode(x, STATISTICS, None)[..., order])


@each
def test_table_round_trip(encoder):
    assert from_table(type(encoder), to_table(encoder), "encoding") == encoder
    assert isinstance(encoder, Encoder)
