"""Events and bits against dense arrays, with compiled code and without."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from spikecl.kernels import Kernels, events, product
from spikecl.kernels.events import (
    Bits,
    bits_of,
    count,
    events_of,
    gather,
    is_worth,
    outer,
    turned,
)
from spikecl.networks import SpikingMlp, form_gradients, initialise
from spikecl.neurons import LIF
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt

REALS = [torch.float32, torch.float64]
COMPILES = events._library(torch.float32) is not None
WIDTHS = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 130, 513]
NAN, INF = math.nan, math.inf
OTHERS = ["empty", "some", "none", "all", "graded"]

types = pytest.mark.parametrize("dtype", REALS, ids=["float32", "float64"])
fillings = pytest.mark.parametrize("filling", OTHERS)


@pytest.fixture(params=["compiled", "stock"])
def way(request, monkeypatch):
    """How it is computed: by the C library, or by what torch has."""
    if request.param == "stock":
        monkeypatch.setattr(events, "_library", lambda *types: None)
    elif not COMPILES:
        pytest.skip("no C compiler here")
    return request.param


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def rows_of(rows, n, filling, dtype, seed=1):
    """Return rows of zeros and ones, or of values; of ``empty``, each second row is."""
    x = draw(rows, n, dtype=dtype, seed=seed)
    if filling == "graded":
        return x * (x > 0.5)
    if filling == "all":
        return torch.ones_like(x)
    spikes = (x > {"none": 9.0, "some": 0.9, "empty": 0.2}[filling]).to(dtype)
    if filling == "empty":
        spikes[::2] = 0
    return spikes


def close(a, b, *, terms=1):
    tight = (1e-12 if a.dtype is torch.float64 else 1e-5) * max(1, terms) ** 0.5
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=tight, atol=tight)


def check_index(found, x):
    """Check the parts of events against the entries of a dense array."""
    at = x.nonzero()
    assert found.shape == tuple(x.shape)
    assert found.dtype == x.dtype
    assert found.starts.tolist() == [0, *(x != 0).sum(1).cumsum(0).tolist()]
    assert found.columns.tolist() == at[:, 1].tolist()
    assert found.rows().tolist() == at[:, 0].tolist()
    if found.values is None:
        assert bool((x[x != 0] == 1).all())
    else:
        assert found.values.dtype == x.dtype
        assert torch.equal(found.values, x[at[:, 0], at[:, 1]])
    assert found.density == pytest.approx(len(at) / max(1, x.numel()))


def check_all(x, m, seed=2):
    """Check everything that events can do with weights of ``m`` outputs."""
    dtype, (rows, n) = x.dtype, x.shape
    found = events_of(x)
    check_index(found, x)
    assert torch.equal(found.dense(), x)
    other = found.transposed()
    check_index(other, x.T)
    assert torch.equal(other.dense(), x.T)
    weight, delta = draw(m, n, dtype=dtype, seed=seed), draw(rows, m, dtype=dtype, seed=seed + 1)
    table = draw(n, m, dtype=dtype, seed=seed + 2)
    close(gather(found, table), x @ table, terms=n)
    close(events.product(found, weight), x @ weight.T, terms=n)
    close(outer(found, delta), delta.T @ x, terms=rows)
    assert torch.equal(turned(weight), weight.T)
    assert turned(weight).is_contiguous()
    assert count(x) == int((x != 0).sum())


# Against dense torch


@types
@fillings
@pytest.mark.parametrize("n", WIDTHS)
def test_every_width_of_rows(way, dtype, filling, n):
    check_all(rows_of(7, n, filling, dtype), 5)


@types
@pytest.mark.parametrize("filling", ["some", "graded"])
@pytest.mark.parametrize("m", WIDTHS)
def test_every_number_of_outputs(way, dtype, filling, m):
    check_all(rows_of(9, 21, filling, dtype), m)


@types
@pytest.mark.parametrize("filling", ["some", "graded"])
@pytest.mark.parametrize("rows", [1, 15, 17, 59, 60, 61, 64, 130, 513])
def test_every_number_of_rows(way, dtype, filling, rows):
    """Below ``TURN`` rows the gradient is a dense product."""
    check_all(rows_of(rows, 19, filling, dtype), 18)


@types
@pytest.mark.parametrize(
    ("rows", "n", "m"), [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0), (70, 0, 3)]
)
def test_nothing_at_all(way, dtype, rows, n, m):
    check_all(torch.zeros(rows, n, dtype=dtype), m)
    check_all(torch.ones(rows, n, dtype=dtype), m)


@types
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    shape=st.tuples(*[st.integers(1, 90)] * 3),
    filling=st.sampled_from(OTHERS),
    seed=st.integers(0, 99),
)
def test_random_shapes(dtype, shape, filling, seed):
    rows, n, m = shape
    check_all(rows_of(rows, n, filling, dtype, seed), m, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "_library", lambda *types: None)
        check_all(rows_of(rows, n, filling, dtype, seed), m, seed + 1)


@types
@pytest.mark.parametrize("n", [32766, 32767, 32768, 65537])
def test_more_columns_than_a_small_index_counts(way, dtype, n):
    x = torch.zeros(3, n, dtype=dtype)
    x[0, [0, 63, 64, n - 1]] = 1
    x[2, [1, n // 2, n - 2]] = 1
    check_all(x, 2)
    if way == "compiled":
        small = torch.int16 if n <= 32767 else torch.int32
        assert events_of(x).columns.dtype == small


@types
def test_more_rows_than_a_small_index_counts(way, dtype):
    """The transposed index counts rows."""
    x = torch.zeros(32769, 3, dtype=dtype)
    x[[0, 5, 32767, 32768], [0, 1, 1, 2]] = 1
    check_all(x, 2)


def few_and_many(dtype):
    """Return events of which the product turns the weights, and of which it does not."""
    found = events_of(rows_of(4, 64, "some", dtype)), events_of(rows_of(1024, 64, "all", dtype))
    border = events.TURN * 64 / (events.ADD_UNTURNED - events.ADD)
    assert len(found[0].columns) <= border < len(found[1].columns)
    return found


@types
@pytest.mark.parametrize("outputs", [1, 11, 127, 128, 129, 300])
def test_weights_are_turned_a_part_at_a_time(dtype, outputs):
    weight = draw(outputs, 64, dtype=dtype)
    for found in few_and_many(dtype):
        close(events.product(found, weight), found.dense() @ weight.T, terms=64)
        graded = found._replace(values=draw(len(found.columns), dtype=dtype))
        close(events.product(graded, weight), graded.dense() @ weight.T, terms=64)


@types
def test_graded_values_on_both_ways_of_a_product(way, dtype):
    weight = draw(13, 64, dtype=dtype)
    for rows in (20, 1024):
        x = rows_of(rows, 64, "graded", dtype)
        close(events.product(events_of(x), weight), x @ weight.T, terms=64)
        x = x.clamp(max=1.0).ceil() * -3
        close(events.product(events_of(x), weight), x @ weight.T, terms=64)


@types
def test_inputs_that_are_not_contiguous(way, dtype):
    for x in (
        rows_of(40, 9, "some", dtype).T,
        rows_of(9, 80, "graded", dtype)[:, ::2],
        rows_of(18, 40, "some", dtype)[::2],
        rows_of(1, 40, "some", dtype).expand(9, 40),
    ):
        found = events_of(x)
        check_index(found, x)
        assert torch.equal(found.dense(), x)
        assert count(x) == int((x != 0).sum())
        if (bits := bits_of(x)) is not None:
            assert torch.equal(bits.dense(), x)
        n = x.shape[1]
        for weight in (draw(n, 7, dtype=dtype).T, draw(14, n, dtype=dtype)[::2]):
            close(events.product(found, weight), x @ weight.T, terms=n)
            assert torch.equal(turned(weight), weight.T)
        for table in (draw(7, n, dtype=dtype).T, draw(n, 14, dtype=dtype)[:, ::2]):
            close(gather(found, table), x @ table, terms=n)
        for delta in (draw(7, len(x), dtype=dtype).T, draw(1, 7, dtype=dtype).expand(len(x), 7)):
            close(outer(found, delta), delta.T @ x, terms=len(x))
    x = rows_of(9, 70, "some", dtype)  # many rows: the other way of the gradient
    close(
        outer(events_of(x.T), draw(5, 70, dtype=dtype).T), draw(5, 70, dtype=dtype) @ x.T, terms=9
    )


@types
@pytest.mark.parametrize("special", [NAN, INF, -INF, 1e-40, -1.0, 2.0, 0.5])
def test_whatever_is_not_zero_is_an_event(way, dtype, special):
    x = torch.zeros(2, 70, dtype=dtype)
    x[0, 3], x[0, 69], x[1, 64] = 1, special, 1
    found = events_of(x)
    assert found.columns.tolist() == [3, 69, 64]
    assert count(x) == 3
    expected = torch.tensor([1, special, 1], dtype=dtype)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found.dense(), x, rtol=0, atol=0, equal_nan=True)
    assert bits_of(x) is None
    out = events.product(found, torch.ones(3, 70, dtype=dtype))
    expected = x.sum(1, keepdim=True).expand(2, 3)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0, equal_nan=True)


@types
def test_what_is_not_an_event_touches_no_weight(way, dtype):
    """A weight that is no number spoils what fired, and nothing else."""
    x = torch.zeros(2, 5, dtype=dtype)
    x[0, 1] = x[1, 2] = 1
    weight = torch.ones(4, 5, dtype=dtype)
    weight[:, 2] = NAN
    out = events.product(events_of(x), weight)
    assert out[0].tolist() == [1.0] * 4
    assert bool(out[1].isnan().all())


@types
def test_negative_zero_is_no_event(way, dtype):
    x = torch.tensor([[-0.0, 1.0, 0.0]], dtype=dtype)
    found = events_of(x)
    assert found.columns.tolist() == [1]
    assert found.values is None
    assert count(x) == 1
    assert bits_of(x).dense().tolist() == [[0.0, 1.0, 0.0]]


@types
@pytest.mark.skipif(not COMPILES, reason="no C compiler here")
def test_both_ways_find_the_same(dtype, monkeypatch):
    """Compiled code and torch agree to rounding, and on the order of events exactly."""
    cases = [rows_of(70, 130, filling, dtype) for filling in OTHERS]
    weight, delta = draw(17, 130, dtype=dtype), draw(70, 17, dtype=dtype)
    made = []
    for stock in (False, True):
        with monkeypatch.context() as patch:
            if stock:
                patch.setattr(events, "_library", lambda *types: None)
            made.append(
                [
                    (e := events_of(x), e.transposed(), events.product(e, weight), outer(e, delta))
                    for x in cases
                ]
            )
    for a, b in zip(*made, strict=True):
        for p, q in zip(a[:2], b[:2]):
            assert p.columns.tolist() == q.columns.tolist()
            assert p.starts.tolist() == q.starts.tolist()
            assert (p.values is None) == (q.values is None)
        close(a[2], b[2], terms=130)
        close(a[3], b[3], terms=70)


# Bits


@types
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, *WIDTHS[1:], 4095, 4096, 4097])
def test_bits_are_what_they_were(way, dtype, size):
    x = (draw(size, dtype=dtype) > 0).to(dtype)
    bits = bits_of(x)
    assert isinstance(bits, Bits)
    assert bits.packed.dtype is torch.uint8
    assert len(bits.packed) == -(-size // 8)
    assert bits.dtype is dtype
    assert torch.equal(bits.dense(), x)
    assert bits.dense().dtype is dtype


@types
@pytest.mark.parametrize("at", [0, 7, 8, 63, 64, 100, 129])
def test_what_is_graded_anywhere_has_no_bits(way, dtype, at):
    x = torch.ones(130, dtype=dtype)
    x[at] = 0.5
    assert bits_of(x) is None
    x[at] = 0
    assert torch.equal(bits_of(x).dense(), x)


@types
@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, NAN])
def test_a_single_graded_value_has_no_bits(way, dtype, value):
    assert bits_of(torch.full((1,), value, dtype=dtype)) is None


@types
def test_bits_keep_a_shape(way, dtype):
    x = (draw(3, 2, 5, 7, dtype=dtype) > 0).to(dtype)
    assert bits_of(x).dense().shape == x.shape
    assert torch.equal(bits_of(x.transpose(1, 3)).dense(), x.transpose(1, 3))


def test_bits_and_events_are_cut_off_from_the_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    assert not bits_of(x).dense().requires_grad
    assert not events_of(x).dense().requires_grad
    assert not events_of(2 * x).values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bits_of_half_precision(dtype):
    x = (draw(5, 13) > 0).to(dtype)
    assert torch.equal(bits_of(x).dense(), x)
    assert bits_of(x / 3) is None


# The choice


def spikes_of(density, rows=256, n=256, dtype=torch.float32):
    """Return rows with exactly a fraction of events, spread at random."""
    x = torch.zeros(rows * n, dtype=dtype)
    order = torch.randperm(rows * n, generator=torch.Generator().manual_seed(0))
    x[order[: round(density * rows * n)]] = 1
    return x.view(rows, n)


@types
@pytest.mark.parametrize("outputs", [64, 100, 256, 1000])
@pytest.mark.parametrize("rows", [128, 256, 2048])
def test_what_is_worth_it_is_worth_it_at_any_lower_density(way, dtype, rows, outputs):
    densities = [0, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1]
    said = [is_worth(spikes_of(d, rows=rows, dtype=dtype), outputs) for d in densities]
    assert said == sorted(said, reverse=True)
    assert not said[-1]
    if rows == 2048 and outputs >= 100:
        assert said[0]


@types
def test_small_work_is_not_looked_at(way, dtype, monkeypatch):
    def refuse(rows):
        raise AssertionError("looked")

    silence = torch.zeros(64, 256, dtype=dtype)
    monkeypatch.setattr(events, "count", refuse)
    assert not is_worth(silence, events.SMALLEST // silence.numel() - 1)
    assert not is_worth(silence[:0], 100)
    assert not is_worth(silence[:, :0], 100)
    assert not is_worth(silence, 0)
    with pytest.raises(AssertionError, match="looked"):
        is_worth(silence, 4 * events.SMALLEST // silence.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_never_worth_it(dtype):
    assert is_worth(torch.zeros(2048, 256), 256)
    assert not is_worth(torch.zeros(2048, 256, dtype=dtype), 256)


def test_another_device_is_never_worth_it():
    class Elsewhere:
        """Silence on a GPU that nobody has."""

        shape, dtype, device = (2048, 256), torch.float32, torch.device("cuda")
        numel = staticmethod(lambda: 2048 * 256)

    assert not is_worth(Elsewhere(), 256)
    Elsewhere.device, Elsewhere.is_contiguous = torch.device("cpu"), lambda self: False
    with pytest.raises(TypeError):  # the one thing that was in the way
        is_worth(Elsewhere(), 256)
    assert not is_worth(torch.zeros(2048, 256, device="meta"), 256)


def test_the_choice_does_not_depend_on_where_the_events_are():
    x = spikes_of(0.03)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    for outputs in (64, 100, 256, 1000):
        assert is_worth(x, outputs) == is_worth(x[order], outputs) == is_worth(2 * x, outputs)


def loss_of(logits):
    return functional.cross_entropy(logits, torch.arange(len(logits)) % 3)


def initialise_double(network):
    network = network.double()
    initialise(network, Seeds(4))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(3)
    return network


def test_a_choice_that_jumps_between_batches_changes_nothing_beyond_rounding(monkeypatch):
    """Batches of all densities through one network, its choices switching to and fro."""
    monkeypatch.setattr(events, "SMALLEST", 1)
    monkeypatch.setattr(events, "SEARCH", 0.5)
    monkeypatch.setattr(events, "TURN", 2.0)
    network = SpikingMlp(hidden=(33, 17), neuron=LIF(beta=0.6, v_th=0.3), bias=True)
    network = initialise_double(network.build((20,), 3))
    chosen, found = [], []

    def look(rows, outputs):
        chosen.append(is_worth(rows, outputs))
        return chosen[-1]

    monkeypatch.setattr(product, "is_worth", look)
    densities = [0.5, 0.02, 0.0, 1.0, 0.01, 0.7, 0.05]
    for synapse in ("dense", "auto", "events"):
        network.kernels, state, results = Kernels(synapse=synapse), None, []
        for k, density in enumerate(densities):
            drawn = torch.rand(8, 6, 20, generator=torch.Generator().manual_seed(k))
            x = (drawn < density).double()
            factors = Bptt().factors(network, x, loss_of, state=state)
            state = factors.state
            gradients = form_gradients(network, factors.synapses, factors.direct)
            results.append([factors.logits, *gradients.values()])
        found.append(results)
    assert {True, False} == set(chosen)
    assert sum(a != b for a, b in zip(chosen[::3], chosen[3::3])) > 3  # the first layer's jumps
    for results in found[1:]:
        for ours, dense in zip(results, found[0], strict=True):
            for a, b in zip(ours, dense, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
