"""What happens before a synapse, against plain loops: pooling, dropout, delays, plasticity."""

import math

import pytest
import torch
from torch.nn import functional

from spikecl.errors import ConfigError, UsageError
from spikecl.networks import (
    AvgPool2d,
    AxonalDelay,
    Cells,
    Channels,
    Dropout,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    Plasticity,
    ShortTermPlasticity,
    SynapticDelays,
    TimeWindow,
)
from spikecl.networks.presynaptic import Pass, is_static
from spikecl.neurons import LIF
from spikecl.trainers import Bptt

T, B, N = 9, 3, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def spikes(*shape, p=0.4, seed=0):
    return (torch.rand(*shape, generator=generator(seed)) < p).double()


def through(stage, x, state=None, *, weights=None, training=False, draw=None):
    """Run a stage by itself; return the result and its state."""
    run = Pass(weights or {}, {} if state is None else {"s": state}, training, draw)
    return stage(x, "s", run), run.after.get("s")


# ---- state: in two halves, and of the wrong batch -----------------------------------------------

WITH_STATE = {
    "window": (TimeWindow(3), {}),
    "short window": (TimeWindow(1), {}),
    "window longer than the pass": (TimeWindow(20), {}),
    "axon": (
        AxonalDelay(N, 3),
        {"s.delay": torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)},
    ),
    "learned axon": (
        AxonalDelay(N, 3, learned=True),
        {"s.delay": torch.tensor([0.0, 0.4, 1.7, 3.0], dtype=torch.float64)},
    ),
    "depression": (ShortTermPlasticity(release=0.4, tau_d=30.0), {}),
    "facilitation": (ShortTermPlasticity(release=0.1, tau_d=20.0, tau_f=50.0), {}),
}


@pytest.mark.parametrize("kind", WITH_STATE)
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_halves_are_one_whole(kind, cut):
    stage, weights = WITH_STATE[kind]
    assert stage.memory
    x = spikes(T, B, N)
    whole, end = through(stage, x, weights=weights)
    first, state = through(stage, x[:cut], weights=weights)
    second, last = through(stage, x[cut:], state, weights=weights)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(last, end, strict=True))
    fresh, _ = through(stage, x[cut:], weights=weights)
    assert not torch.equal(fresh, second)


@pytest.mark.parametrize("kind", WITH_STATE)
def test_the_state_of_another_batch_is_refused(kind):
    stage, weights = WITH_STATE[kind]
    _, state = through(stage, spikes(T, 1, N), weights=weights)
    with pytest.raises(UsageError, match="state"):
        through(stage, spikes(T, B, N), state, weights=weights)


@pytest.mark.parametrize("kind", WITH_STATE)
def test_a_constant_input_is_its_copies(kind):
    stage, weights = WITH_STATE[kind]
    x = spikes(B, N).expand(T, B, N)
    found, _ = through(stage, x, weights=weights)
    assert torch.equal(found, through(stage, x.clone(), weights=weights)[0])


# ---- delays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 2, 5, 12])
def test_a_window_shows_the_past_beside_the_present(longest):
    x = random(T, B, 2, 2)
    found, state = through(TimeWindow(longest), x)
    assert found.shape == (T, B, (longest + 1) * 4)
    for t in range(T):
        for k in range(longest + 1):
            past = x[t - k].flatten(1) if t >= k else torch.zeros(B, 4).double()
            assert torch.equal(found[t, :, 4 * k : 4 * k + 4], past)
    assert len(state.x) == longest


def delayed(delay, weight=None, *, learned=True, longest=4, width=1.0):
    """A network whose logits are the mean over time of delayed input."""
    n_out, n_in = delay.shape
    synapse = Linear(
        n_in, n_out, maps=(SynapticDelays(longest=longest, learned=learned, width=width),)
    )
    layer = Layer(synapse, None, inputs=("input",), before={"window": TimeWindow(longest)})
    network = Network({"out": layer}, mean_first=False).double()
    with torch.no_grad():
        synapse.delay.copy_(delay)
        synapse.weight.copy_(random(n_out, n_in, seed=7) if weight is None else weight)
    return network


@pytest.mark.parametrize("learned", [True, False])
def test_whole_delays_are_delay_lines(learned):
    """One queue for each connection, filled and emptied step by step."""
    delay = torch.tensor([[0.0, 1, 2, 4], [4, 3, 0, 1], [2, 2, 2, 2]], dtype=torch.float64)
    network, x = delayed(delay, learned=learned), spikes(T, B, N)
    weight = network.weights()["out.weight"]
    queues = [[[[0.0] * int(delay[i, j]) for j in range(N)] for i in range(3)] for _ in range(B)]
    steps = network(x).steps
    for t in range(T):
        for b in range(B):
            for i in range(3):
                total = 0.0
                for j in range(N):
                    queue = queues[b][i][j]
                    queue.append(float(x[t, b, j]))
                    total += weight[i, j].item() * queue.pop(0)
                assert steps[t, b, i].item() == pytest.approx(total, abs=1e-12)


def test_delays_between_steps_interpolate():
    delay = random(3, N, seed=1).abs().clamp(0.1, 3.9)
    x = random(T, B, N)
    for j in range(N):  # one input at a time: each connection has a mixture of its own
        only = torch.zeros(T, B, N).double()
        only[..., j] = x[..., j]
        f = delay[:, j].frac()
        a, b = (delayed(whole)(only).steps for whole in (delay.floor(), delay.floor() + 1))
        torch.testing.assert_close(delayed(delay)(only).steps, (1 - f) * a + f * b)
        assert not torch.allclose(a, b)


def test_fixed_delays_are_rounded():
    delay = torch.tensor([[0.4, 1.6, 2.2, 3.7]], dtype=torch.float64)
    x = random(T, B, N)
    rounded = delayed(delay.round(), learned=False)(x).steps
    assert torch.equal(delayed(delay, learned=False)(x).steps, rounded)
    assert not torch.allclose(delayed(delay)(x).steps, rounded)


@pytest.mark.parametrize("width", [1.0, 2.5])
def test_gradients_of_synaptic_delays(width):
    x = random(T, B, N)
    delay = (0.15 + 3.7 * torch.rand(3, N, generator=generator(3))).double()
    network = delayed(delay, width=width)
    weights = {n: p.detach() for n, p in network.weights().items()}

    def loss(weight, delay):
        given = {**weights, "out.weight": weight, "out.delay": delay}
        return network(x, weights=given).steps.square().sum()

    leaves = [weights[name].clone().requires_grad_() for name in ("out.weight", "out.delay")]
    assert torch.autograd.gradcheck(loss, leaves)
    factors = Bptt().factors(network, x, lambda z: z.square().sum())
    own = {"weight": weights["out.weight"], "delay": weights["out.delay"]}
    found = network.synapses["out"].pull_back(own, factors.synapses["out"].gradient(), None)
    mean = network(x, weights=dict(zip(("out.weight", "out.delay"), leaves))).logits
    expected = torch.autograd.grad(mean.square().sum(), leaves)
    torch.testing.assert_close(found["weight"], expected[0])
    torch.testing.assert_close(found["delay"], expected[1])


def smooth_signal(steps=60):
    t = torch.arange(steps).double()
    return torch.exp(-0.5 * ((t - 20) / 5) ** 2).view(steps, 1, 1)


@pytest.mark.parametrize("start", [3.3, 3.0, 0.0, 8.0, -0.7, 8.9])
@pytest.mark.parametrize("true", [1.0, 6.5])
@pytest.mark.parametrize("kind", ["synapse", "axon"])
def test_descending_a_loss_finds_the_delay(kind, true, start):
    """A smooth pulse and its delayed copy: the error falls towards the true delay.

    From whole delays too, and from outside the range, where a large step may have led.
    """
    x = smooth_signal()
    shifted = torch.exp(-0.5 * ((torch.arange(60).double() - 20 - true) / 5) ** 2).view(60, 1, 1)
    delay = torch.full(
        (1, 1) if kind == "synapse" else (1,), start, dtype=torch.float64
    ).requires_grad_()
    one = torch.ones(1, 1).double()
    network, axon = delayed(torch.zeros(1, 1), longest=8), AxonalDelay(1, 8, learned=True)
    for _ in range(100):
        if kind == "synapse":
            y = network(x, weights={"out.weight": one, "out.delay": delay}).steps
        else:
            y, _ = through(axon, x, weights={"s.delay": delay})
        (gradient,) = torch.autograd.grad((y - shifted).square().sum(), delay)
        delay = (delay - 0.5 * gradient).detach().requires_grad_()
    assert delay.item() == pytest.approx(true, abs=0.02)


@pytest.mark.parametrize("learned", [True, False])
def test_an_axonal_delay_is_a_loop(learned):
    delay = torch.tensor([0.0, 1.4, 2.6, 5.0], dtype=torch.float64)  # the last is clipped to 3
    x = random(T, B, N)
    found, state = through(AxonalDelay(N, 3, learned=learned), x, weights={"s.delay": delay})
    for j, d in enumerate([0.0, 1.4, 2.6, 3.0]):
        d = d if learned else float(round(d))
        f = d - math.floor(d)
        for t in range(T):
            late, later = (
                x[t - math.floor(d) - k, :, j] if t - math.floor(d) - k >= 0 else 0.0
                for k in (0, 1)
            )
            expected = (1 - f) * late + f * later + torch.zeros(B).double()
            torch.testing.assert_close(found[t, :, j], expected)
    assert len(state.x) == 4


def test_gradients_of_an_axonal_delay():
    x = random(T, B, N)
    stage = AxonalDelay(N, 3, learned=True)

    def loss(delay, x):
        return through(stage, x, weights={"s.delay": delay})[0].square().sum()

    delay = torch.tensor([0.3, 1.5, 2.2, 2.9], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(loss, (delay, x.requires_grad_()))


def test_a_learned_axonal_delay_reaches_the_trainer_and_a_fixed_one_does_not():
    for learned in (True, False):
        before = {"axon": AxonalDelay(N, 3, learned=learned)}
        layer = Layer(Linear(N, 2), None, inputs=("input",), before=before)
        network = Network({"out": layer}, mean_first=False).double()
        with torch.no_grad():
            layer.synapse.weight.copy_(random(2, N))
            before["axon"].delay.fill_(1.3)
        x = random(T, B, N, seed=3)
        factors = Bptt().factors(network, x, lambda z: z.square().sum())
        assert list(factors.direct) == (["out.axon.delay"] if learned else [])
        if learned:
            loss = network(x).logits.square().sum()
            (expected,) = torch.autograd.grad(loss, before["axon"].delay)
            torch.testing.assert_close(factors.direct["out.axon.delay"], expected)
            assert bool(expected.any())


def test_a_delay_of_no_steps_is_refused():
    with pytest.raises(ConfigError, match="longest=0"):
        AxonalDelay(3, 0)


# ---- short-term plasticity ----------------------------------------------------------------------


def train_of(gap, count=200):
    """One neuron that fires every ``gap`` steps, the first time at step 0."""
    x = torch.zeros(gap * count, 1, 1).double()
    x[::gap] = 1
    return x


@pytest.mark.parametrize("gap", [1, 7, 40])
@pytest.mark.parametrize(("release", "tau_d", "tau_f"), [(0.5, 80.0, 0.0), (0.03, 13.0, 53.0)])
def test_plasticity_is_the_recursion_from_spike_to_spike(gap, release, tau_d, tau_f):
    """Tsodyks, Pawelzik & Markram 1998: from each spike to the next, over the whole interval.

    ``u' = u e^(-dt/tau_f) + U (1 - u e^(-dt/tau_f))`` and
    ``R' = R (1 - u) e^(-dt/tau_d) + 1 - e^(-dt/tau_d)``.
    """
    dt = 0.5
    x = train_of(gap, count=30)
    stage = ShortTermPlasticity(release=release, tau_d=tau_d, tau_f=tau_f, dt=dt)
    y, _ = through(stage, x)
    interval = gap * dt
    u, r = release, 1.0
    for k in range(30):
        assert float(y[k * gap]) == pytest.approx(u * r / release, rel=1e-12)
        kept = u * math.exp(-interval / tau_f) if tau_f else 0.0
        recover = math.exp(-interval / tau_d)
        r = r * (1 - u) * recover + 1 - recover
        u = kept + release * (1 - kept)
    silent = torch.ones(len(x), dtype=bool)
    silent[::gap] = False
    assert not y[silent].any()


@pytest.mark.parametrize("gap", [2, 10])
@pytest.mark.parametrize(("release", "tau_d", "tau_f"), [(0.5, 80.0, 0.0), (0.03, 13.0, 530.0)])
def test_plasticity_settles_where_the_closed_form_says(gap, release, tau_d, tau_f):
    """The fixed point of the two recursions, solved by hand."""
    y, _ = through(
        ShortTermPlasticity(release=release, tau_d=tau_d, tau_f=tau_f), train_of(gap, 500)
    )
    kept = math.exp(-gap / tau_f) if tau_f else 0.0
    recover = math.exp(-gap / tau_d)
    u = release / (1 - (1 - release) * kept)
    r = (1 - recover) / (1 - (1 - u) * recover)
    assert float(y[-gap]) == pytest.approx(u * r / release, rel=1e-6)


def test_depression_falls_and_facilitation_rises_first():
    down, _ = through(ShortTermPlasticity(release=0.5, tau_d=200.0), train_of(10, 20))
    up, _ = through(ShortTermPlasticity(release=0.05, tau_d=20.0, tau_f=500.0), train_of(10, 20))
    down, up = down[::10].flatten(), up[::10].flatten()
    assert float(down[0]) == float(up[0]) == 1.0
    assert bool((down.diff() < 0).all())
    assert bool((up[:6].diff() > 0).all()) and float(up.max()) > 2


def test_after_a_long_pause_the_first_spike_is_whole_again():
    x = torch.zeros(2000, 1, 1).double()
    x[:20] = 1
    x[-1] = 1
    y, _ = through(ShortTermPlasticity(release=0.3, tau_d=100.0, tau_f=100.0), x)
    assert float(y[-1]) == pytest.approx(1, abs=1e-6) and float(y[19]) < 0.5


def test_gradients_of_plasticity():
    x = torch.rand(6, 2, 2, generator=generator(1)).double().requires_grad_()
    for stage in (ShortTermPlasticity(tau_d=5.0), ShortTermPlasticity(tau_d=5.0, tau_f=9.0)):
        assert torch.autograd.gradcheck(lambda x, s=stage: through(s, x)[0], x)


@pytest.mark.parametrize(
    "options", [{"release": 0.0}, {"release": 1.2}, {"tau_d": 0.0}, {"tau_f": -1.0}, {"dt": 0.0}]
)
def test_impossible_plasticity_is_refused(options):
    (name,) = options
    for made in (ShortTermPlasticity, Plasticity):
        with pytest.raises(ConfigError, match=f"Plasticity.{name}: got"):
            made(**options)


# ---- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_a_unit_for_all_steps_of_a_sample(p, static):
    x = torch.ones(200, 300).expand(T, 200, 300)
    y, _ = through(Dropout(p), x if static else x.clone(), training=True, draw=generator())
    assert is_static(y) == static
    assert bool((y == y[0]).all())
    assert set(y.unique().tolist()) == {0.0, y.max().item()}
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-6)
    dropped = (y[0] == 0).float()
    assert float(dropped.mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 60_000))
    assert len({tuple(row) for row in dropped.tolist()}) == 200  # a mask of its own per sample
    torch.testing.assert_close(y.mean(), torch.tensor(1.0), rtol=0.02, atol=0)


def test_dropout_is_off_in_tests_and_drawn_from_the_generator_alone():
    x = random(T, B, N)
    assert through(Dropout(0.5), x)[0] is x
    assert through(Dropout(0.0), x, training=True)[0] is x
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (
        through(Dropout(0.5), x, training=True, draw=generator(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UsageError, match=r"pass a torch\.Generator"):
        through(Dropout(0.5), x, training=True)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_impossible_dropout_is_refused(p):
    with pytest.raises(ConfigError, match="Dropout"):
        Dropout(p)


# ---- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("size", [2, 3, None])
def test_pooling_is_torch_s_at_every_step(size, static):
    x = random(B, 5, 7, 6).expand(T, B, 5, 7, 6) if static else random(T, B, 5, 7, 6)
    kinds = [(AvgPool2d, functional.avg_pool2d)]
    kinds += [(MaxPool2d, functional.max_pool2d)] if size else []
    for kind, plain in kinds:
        y, _ = through(kind(size), x)
        assert is_static(y) == static
        for t in range(T):
            torch.testing.assert_close(y[t], plain(x[t], size or (7, 6)))


def test_images_become_maps():
    grey, colour = random(T, B, 5, 6), random(T, B, 5, 6, 3)
    assert torch.equal(through(Channels(), grey)[0], grey.view(T, B, 1, 5, 6))
    maps, _ = through(Channels(), colour)
    assert maps.shape == (T, B, 3, 5, 6)
    assert torch.equal(maps[2, 1, 2, 3, 4], colour[2, 1, 3, 4, 2])
    assert is_static(through(Channels(), colour[0].expand(T, B, 5, 6, 3))[0])
    for wrong in (random(T, B, 5), random(T, B, 2, 5, 6, 3)):
        with pytest.raises(UsageError, match="takes images"):
            through(Channels(), wrong)


def test_a_network_carries_the_state_of_its_stages():
    """Delays and plasticity in one network: two halves, and names of their own."""
    before = {"stp": ShortTermPlasticity(tau_d=20.0), "window": TimeWindow(2)}
    layer = Layer(
        Linear(N, 5, maps=(SynapticDelays(longest=2),)),
        Cells(LIF(v_th=0.3)),
        inputs=("input",),
        before=before,
    )
    network = Network({"a": layer, "out": Layer(Linear(5, 2), None, inputs=("a",))}).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * random(*parameter.shape, seed=parameter.numel()))
        layer.synapse.delay.copy_(torch.arange(20.0).view(5, N) % 3)
    x = spikes(T, B, N)
    whole, first = network(x), network(x[:4])
    assert list(first.state) == ["a.stp", "a.window", "a"]
    second = network(x[4:], first.state)
    torch.testing.assert_close((4 * first.logits + 5 * second.logits) / 9, whole.logits)
    for name in first.state:
        partial = {k: v for k, v in first.state.items() if k != name}
        assert not torch.allclose(network(x[4:], partial).logits, second.logits)
