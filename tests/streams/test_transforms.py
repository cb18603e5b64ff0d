"""Permutations are bijections; rotations agree with rot90 and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spikecl.streams import transforms
from spikecl.streams.transforms import Permute, Rotate

quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def image(*shape, dtype=torch.uint8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, shape, generator=generator)
    return x.to(dtype) / 255 if dtype.is_floating_point else x.to(dtype)


def smooth(size):
    """A grey image without fine detail, dark at the rim, the same nowhere."""
    r = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(r, r, indexing="ij")
    bump = torch.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) / 0.05) + 0.5 * torch.exp(
        -((x + 0.3) ** 2 + (y - 0.4) ** 2) / 0.03
    )
    return bump.float()[None]


@quick
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 1000))
def test_a_permutation_is_a_bijection_of_the_features(shape, seed):
    size = int(np.prod(shape))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    x = image(3, *shape, seed=seed)
    before = x.clone()
    y = Permute(order)(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    for row in range(3):
        assert y[row].flatten().tolist() == [x[row].flatten()[i].item() for i in order]
    assert torch.equal(Permute(order.argsort())(y), x)
    assert torch.equal(x, before)


def test_the_description_of_a_permutation_is_its_order():
    a, b, c = (Permute(torch.tensor(o)) for o in ([0, 1, 2], [0, 1, 2], [0, 2, 1]))
    assert a.describe() == b.describe() != c.describe()


@pytest.mark.parametrize("shape", [(4, 6, 6), (4, 7, 7), (2, 6, 6, 3), (1, 5, 5, 1)])
@pytest.mark.parametrize("turns", [-1, 1, 2, 3, 5])
def test_quarter_turns_equal_rot90(shape, turns):
    x = image(*shape)
    expected = torch.rot90(x, turns, dims=(1, 2))
    assert torch.equal(Rotate(90.0 * turns)(x), expected)
    floats = Rotate(90.0 * turns)(x.float() / 255)
    torch.testing.assert_close(floats, expected.float() / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 360.0, -720.0])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_full_turns_change_nothing(degrees, dtype):
    x = image(3, 5, 4, dtype=dtype)
    assert torch.equal(Rotate(degrees)(x), x)


@pytest.mark.parametrize("degrees", [-20.0, 7.0, 45.0, 130.0])
def test_other_angles_agree_with_scipy(degrees):
    x = smooth(41)
    expected = ndimage.rotate(x[0].numpy(), degrees, reshape=False, order=1)
    np.testing.assert_allclose(Rotate(degrees)(x)[0].numpy(), expected, atol=2e-3)
    assert float((Rotate(degrees)(x) - x).abs().max()) > 0.1


@pytest.mark.parametrize("shape", [(24, 36), (36, 24)])
def test_images_that_are_not_square_are_not_sheared(shape):
    x = smooth(60)[:, 18 : 18 + shape[0], 12 : 12 + shape[1]].contiguous()
    expected = ndimage.rotate(x[0].numpy(), 30.0, reshape=False, order=1)
    inner = (slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(Rotate(30.0)(x)[0].numpy()[inner], expected[inner], atol=2e-3)


def test_there_and_back():
    x = smooth(41)
    back = Rotate(-25.0)(Rotate(25.0)(x))
    torch.testing.assert_close(back, x, rtol=0, atol=0.05)


def test_bytes_are_rounded_and_outside_is_dark():
    x = torch.full((1, 9, 9), 200, dtype=torch.uint8)
    y = Rotate(45.0)(x)
    assert y.dtype == torch.uint8
    assert y[0, 0, 0] == 0
    assert y[0, 4, 4] == 200
    exact = Rotate(45.0)(x.float())
    assert torch.equal(y, exact.round().to(torch.uint8))
    assert bool((exact.frac() > 0.5).any())


@pytest.mark.parametrize("shape", [(10, 5, 5), (10, 5, 5, 2)])
def test_chunks_do_not_show(monkeypatch, shape):
    x = image(*shape)
    whole = Rotate(33.0)(x)
    for chunk in (1, 3, 10):
        monkeypatch.setattr(transforms, "CHUNK", chunk)
        assert torch.equal(Rotate(33.0)(x), whole)


def test_colours_turn_together():
    x = image(2, 6, 6, 3)
    colours = [Rotate(40.0)(x[..., c].contiguous()) for c in range(3)]
    assert torch.equal(Rotate(40.0)(x), torch.stack(colours, -1))


def test_the_input_is_left_alone():
    x = image(2, 6, 6)
    before = x.clone()
    Rotate(40.0)(x)
    assert torch.equal(x, before)


def test_the_description_of_a_rotation_is_its_angle():
    assert Rotate(40.0).describe() == Rotate(40.0).describe() != Rotate(40.5).describe()


@quick
@given(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99))
def test_a_permutation_of_the_features_of_a_step_leaves_time(steps, shape, seed):
    size = int(np.prod(shape))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    x = image(3, steps, *shape, seed=seed)
    y = Permute(order)(x)
    assert y.shape == x.shape
    for sample in range(3):
        for step in range(steps):
            before, after = x[sample, step].flatten(), y[sample, step].flatten()
            assert after.tolist() == [before[i].item() for i in order]
    assert torch.equal(Permute(order)(x[:0]), x[:0])


@pytest.mark.parametrize("shape", [(3, 4, 6, 6), (2, 3, 5, 5, 2)])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_of_temporal_images_equal_rot90(shape, turns):
    x = image(*shape)
    expected = torch.rot90(x, turns, dims=(2, 3))
    assert torch.equal(Rotate(90.0 * turns, temporal=True)(x), expected)
    assert Rotate(30.0, temporal=True)(x).shape == x.shape


def test_steps_turn_as_images_on_their_own(monkeypatch):
    x = image(3, 4, 7, 9, 2)
    whole = Rotate(33.0, temporal=True)(x)
    steps = [Rotate(33.0, temporal=True)(x[:, t : t + 1]) for t in range(4)]
    assert torch.equal(whole, torch.cat(steps, 1))
    monkeypatch.setattr(transforms, "CHUNK", 5)
    assert torch.equal(Rotate(33.0, temporal=True)(x), whole)


@pytest.mark.parametrize("degrees", [10.0, 45.0, 100.0])
def test_single_events_are_not_rounded_away(degrees):
    x = torch.zeros(40, 2, 21, 21, 2, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    place = torch.randint(6, 15, (2, 40, 2), generator=generator)  # far from the border
    rows, steps = torch.arange(40)[:, None], torch.arange(2)
    x[rows, steps, place[0], place[1], 1] = 1
    y = Rotate(degrees, temporal=True)(x)
    assert set(y.unique().tolist()) == {0, 1}
    assert 0.8 < int(y.sum()) / 80 < 1.2  # an element may be taken twice or by none
    assert not y[..., 0].any()
    assert int(Rotate(degrees)(x[:, 0]).sum()) != int(y[:, 0].sum())


def test_the_description_tells_images_from_images_in_time():
    assert Rotate(40.0, temporal=True).describe() != Rotate(40.0).describe() == "rotate:40.0"
