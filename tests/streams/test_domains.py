"""Domains: each corruption against numpy and scipy, and the stream of them."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from spikecl.data import checked
from spikecl.errors import ConfigError
from spikecl.streams import TASK_FREE, Domains, domains
from spikecl.streams.corruptions import SEVERITIES, Corrupt


def images(n=40, shape=(12, 10), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype("u1"))


def changed(kind, x, severity=3, seed=1):
    return Corrupt(kind, severity, 255.0, seed)(x)


def close(found, expected, atol=0.51):
    np.testing.assert_allclose(found.numpy().astype(float), expected, atol=atol)


def test_those_that_draw_nothing_equal_a_line_of_numpy():
    x = images()
    y = x.numpy().astype(float)
    assert changed("clean", x) is x
    close(changed("invert", x), 255 - y)
    close(changed("brightness", x), np.clip(y + 0.3 * 255, 0, 255))
    mean = y.mean((1, 2), keepdims=True)
    close(changed("contrast", x), mean + 0.35 * (y - mean))
    blurred = np.stack([ndimage.gaussian_filter(a, 1.5, mode="nearest", radius=5) for a in y])
    close(changed("blur", x), blurred)
    small = y.reshape(-1, 6, 2, 5, 2).mean((2, 4))
    close(changed("coarse", x, severity=1), small.repeat(2, 1).repeat(2, 2))
    edge = changed("coarse", x, severity=2)[:, :, 9:]  # squares of 3: the last column is alone
    close(
        edge,
        y[:, :, 9:].reshape(-1, 4, 3, 1).mean(2, keepdims=True).repeat(3, 2).reshape(-1, 12, 1),
    )


def test_noise_has_the_spread_it_says():
    x = torch.full((60, 30, 30), 127, dtype=torch.uint8)
    for severity in (1, 2):
        out = changed("noise", x, severity).double() / 255
        sd = SEVERITIES["noise"][severity - 1]
        assert abs(float(out.std()) / sd - 1) < 0.02
        assert abs(float(out.mean()) - 127 / 255) < 0.005
    out = changed("salt_pepper", x, 4)
    for value in (0, 255):
        assert abs(float((out == value).double().mean()) - 0.1) < 0.006
    assert set(out.unique().tolist()) == {0, 127, 255}


def test_a_black_square_lies_anywhere_inside():
    x = torch.full((400, 10, 20), 9, dtype=torch.uint8)
    out = changed("occlude", x, 3)
    hidden = out == 0
    assert (hidden.sum((1, 2)) == 4 * 8).all()
    rows, columns = hidden.any(2), hidden.any(1)
    assert (rows.sum(1) == 4).all() and (columns.sum(1) == 8).all()
    assert len({tuple(r.tolist()) for r in rows}) == 7
    assert len({tuple(c.tolist()) for c in columns}) == 13


@pytest.mark.parametrize("kind", list(SEVERITIES))
def test_stays_in_range_keeps_type_and_repeats(kind):
    for x in (images(), images(shape=(8, 9, 3)), images().float()):
        out = changed(kind, x)
        assert out.dtype == x.dtype and out.shape == x.shape
        assert float(out.min()) >= 0 and float(out.max()) <= 255
        assert torch.equal(out, changed(kind, x))
        assert torch.equal(x, (images(shape=tuple(x.shape[1:])).to(x.dtype)))
    other = changed(kind, images(), seed=2)
    assert torch.equal(other, changed(kind, images())) == (
        kind not in ("noise", "salt_pepper", "occlude")
    )


@pytest.mark.parametrize("kind", ["noise", "contrast", "blur", "occlude", "coarse", "salt_pepper"])
def test_more_severe_is_farther_from_the_image(kind):
    smooth = ndimage.gaussian_filter(images(100, (16, 16)).numpy().astype(float), (0, 2, 2))
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    x = torch.from_numpy(smooth.round().astype("u1"))
    far = [float((changed(kind, x, s).double() - x).square().mean()) for s in range(1, 6)]
    assert far == sorted(far) and len(set(far)) == 5


def data(shape=(6, 6), **time):
    x = images(30, shape).numpy()
    y = np.arange(30) % 3
    return checked({"x_train": x, "y_train": y, "x_test": x[:9], "y_test": y[:9]}, "made", **time)


def test_the_stream_has_one_corruption_each_and_noise_of_its_own_in_tests():
    d = data()
    stream = domains(d, kinds=("clean", "noise"), experiences=3, severity=1, seed=3)
    assert len(stream) == 3
    train = [e.train.load().x for e in stream]
    test = [e.samples.load().x for e in stream.eval_sets.values()]
    assert torch.equal(train[0], torch.from_numpy(d.x_train)) and torch.equal(train[2], train[0])
    assert not torch.equal(train[1], train[0])
    assert not torch.equal(test[1], train[1][:9])
    assert torch.equal(test[0], train[0][:9])
    assert stream.fingerprint() != domains(d, severity=1, seed=3, kinds=("clean",)).fingerprint()
    assert Domains().make(d, 3).eval_sets["task4"].taught == (4,)


def test_what_it_refuses():
    with pytest.raises(ConfigError, match="did you mean 'noise'"):
        domains(data(), kinds=("nois",))
    with pytest.raises(ConfigError, match="use 1 to 5"):
        domains(data(), severity=6)
    with pytest.raises(ConfigError, match="needs images"):
        domains(data(shape=(36,)))
    with pytest.raises(ConfigError, match="scenario='free'"):
        domains(data(), old_data=True, reveal=TASK_FREE)
