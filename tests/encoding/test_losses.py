"""Losses against their formulas in plain Python, torch, snnTorch and finite differences."""

import math

import pytest
import torch
from snntorch import functional as snn
from torch.nn import functional

from spikecl.components import from_table, to_table
from spikecl.encoding import (
    CountMse,
    CrossEntropy,
    FirstSpike,
    FirstSpikeDecoder,
    Loss,
    MaxMembrane,
    MeanDecoder,
    StepCrossEntropy,
    SumDecoder,
    Tet,
    cross_entropy,
)
from spikecl.errors import ConfigError, UsageError
from spikecl.registry import LOSSES

LOGITS = [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]
LABELS = [2, 0]


def by_hand(rows, labels):
    losses = [
        math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in zip(rows, labels)
    ]
    return sum(losses) / len(losses)


def test_value_is_the_mean_negative_log_probability():
    loss = cross_entropy(torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(LABELS))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(by_hand(LOGITS, LABELS), rel=1e-12)


def test_gradient_is_probability_minus_target_over_the_batch():
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    cross_entropy(logits, torch.tensor(LABELS)).backward()
    expected = torch.softmax(logits.detach(), 1)
    expected[[0, 1], LABELS] -= 1
    torch.testing.assert_close(logits.grad, expected / 2)


def test_classes_at_minus_infinity_have_no_part():
    masked = torch.tensor([[1.0, -math.inf, 0.5]], requires_grad=True)
    loss = cross_entropy(masked, torch.tensor([2]))
    assert loss.item() == pytest.approx(by_hand([[1.0, 0.5]], [1]), rel=1e-6)
    loss.backward()
    assert masked.grad[0, 1] == 0
    assert bool(masked.grad.isfinite().all())


# ---- label smoothing ----------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_torchs(smoothing):
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,))
    theirs = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, label_smoothing=smoothing), theirs)


def test_label_smoothing_leaves_masked_classes_out():
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.randint(2, (6,))
    masked = logits.clone()
    masked[:, 2] = masked[:, 4] = -torch.inf
    masked.requires_grad_()
    loss = cross_entropy(masked, labels, label_smoothing=0.3)
    few = functional.cross_entropy(logits[:, [0, 1, 3]], labels, label_smoothing=0.3)
    torch.testing.assert_close(loss, few)
    loss.backward()
    assert bool(masked.grad.isfinite().all()) and not bool(masked.grad[:, [2, 4]].any())


# ---- losses over time ---------------------------------------------------------------------------

BATCH, CLASSES = 4, 5
VARIANTS = {name: LOSSES.get(name)() for name in LOSSES.names()} | {
    "step_smoothed": StepCrossEntropy(label_smoothing=0.2),
    "tet_strong": Tet(lam=0.7, target=0.3),
    "count_mse_rates": CountMse(correct=0.75, incorrect=0.25),
    "first_spike_wide": FirstSpike(xi=1.0, tau_syn=20.0),
}
each = pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
each_over_time = pytest.mark.parametrize(
    "loss",
    [v for v in VARIANTS.values() if v.per_step],
    ids=[k for k in VARIANTS if VARIANTS[k].per_step],
)


def labels():
    return torch.tensor([0, 3, 1, 3])


def output_for(loss, steps=6):
    """Outputs between 0 and 1, as probabilities of spikes."""
    shape = (steps, BATCH, CLASSES) if loss.per_step else (BATCH, CLASSES)
    return torch.rand(shape, dtype=torch.float64)


def spike_trains(steps=10, p=0.3):
    return (torch.rand(steps, BATCH, CLASSES) < p).float()


@each
def test_a_scalar_with_a_right_gradient(loss):
    output = output_for(loss, 3).requires_grad_()
    assert loss(output, labels()).shape == ()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels()), output)


@each
def test_descending_makes_the_label_win(loss):
    output = output_for(loss).requires_grad_()
    before = loss(output, labels())
    (gradient,) = torch.autograd.grad(before, output)
    assert loss(output - 0.1 * gradient, labels()) < before


@each
def test_masked_classes_are_left_out(loss):
    """Masking classes is the same as not having them, and their gradient is zero."""
    full, keep = output_for(loss), [0, 1, 3]
    masked = full.clone()
    masked[..., [2, 4]] = -torch.inf
    masked.requires_grad_()
    few = loss(full[..., keep], torch.tensor([0, 2, 1, 2]))
    torch.testing.assert_close(loss(masked, labels()), few)
    loss(masked, labels()).backward()
    assert bool(masked.grad.isfinite().all())
    assert not bool(masked.grad[..., [2, 4]].any())


@each
def test_mean_over_the_batch(loss):
    """The loss of a batch is the mean of the losses of its samples."""
    output = output_for(loss)
    axis = 1 if loss.per_step else 0
    each_alone = [loss(output.narrow(axis, b, 1), labels()[b : b + 1]) for b in range(BATCH)]
    torch.testing.assert_close(loss(output, labels()), torch.stack(each_alone).mean())


@each_over_time
def test_one_step_works_and_more_of_the_same_change_nothing(loss):
    one = output_for(loss, 1)
    if isinstance(loss, FirstSpike):
        one = one.round()
    else:
        torch.testing.assert_close(loss(one.expand(7, -1, -1), labels()), loss(one, labels()))
    assert bool(loss(one, labels()).isfinite())


@each
def test_the_wrong_number_of_axes_is_refused(loss):
    wrong = output_for(loss)[0] if loss.per_step else output_for(loss)[None]
    with pytest.raises(UsageError, match=f"{type(loss).__name__}: got shape"):
        loss(wrong, labels())


@each
def test_table_round_trip(loss):
    assert isinstance(loss, Loss)
    assert from_table(type(loss), to_table(loss), "loss") == loss


def test_permuting_the_steps():
    """Losses of rates and maxima do not see the order of the steps, the first spike does."""
    spikes, order = spike_trains(8), torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    for blind in (StepCrossEntropy(), Tet(), CountMse(), MaxMembrane()):
        torch.testing.assert_close(blind(spikes[order], labels()), blind(spikes, labels()))
    first = FirstSpike()
    assert not torch.allclose(first(spikes[order], labels()), first(spikes, labels()))


def test_a_membrane_sees_the_order_of_the_spikes_it_integrates():
    def membrane(spikes):
        v, out = 0.0, []
        for step in spikes:
            v = 0.8 * v + step
            out.append(v)
        return torch.stack(out)

    spikes, order = spike_trains(8), torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    a, b = (MaxMembrane()(membrane(s), labels()) for s in (spikes, spikes[order]))
    assert not torch.allclose(a, b)


def test_smoothing_arrives():
    z = torch.randn(6, BATCH, CLASSES)
    theirs = [functional.cross_entropy(step, labels(), label_smoothing=0.2) for step in z]
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.2)(z[0], labels()), theirs[0])
    ours = StepCrossEntropy(label_smoothing=0.2)(z, labels())
    torch.testing.assert_close(ours, torch.stack(theirs).mean())


# ---- each against another library or its formula ------------------------------------------------


def test_rate_and_count_cross_entropy():
    spikes = spike_trains()
    count = CrossEntropy()(SumDecoder()(spikes), labels())
    torch.testing.assert_close(count, snn.ce_count_loss()(spikes, labels()))
    rate = CrossEntropy()(MeanDecoder()(spikes), labels())
    torch.testing.assert_close(rate, snn.ce_count_loss()(spikes / 10, labels()))
    assert rate != count


def test_step_cross_entropy_is_snntorchs_rate_loss():
    spikes = spike_trains()
    theirs = snn.ce_rate_loss()(spikes, labels())
    torch.testing.assert_close(StepCrossEntropy()(spikes, labels()), theirs[0])


def test_step_cross_entropy_is_not_that_of_the_mean():
    """By Jensen it lies above; the two are equal for constant outputs."""
    z = torch.randn(6, BATCH, CLASSES, dtype=torch.float64)
    assert StepCrossEntropy()(z, labels()) > CrossEntropy()(z.mean(0), labels())


def test_tet_by_its_definition():
    z = torch.randn(6, BATCH, CLASSES, dtype=torch.float64)
    ce = sum(functional.cross_entropy(step, labels()) for step in z) / 6
    pull = sum(functional.mse_loss(step, torch.full_like(step, 0.4)) for step in z) / 6
    ours = Tet(lam=0.2, target=0.4)(z, labels())
    torch.testing.assert_close(ours, 0.8 * ce + 0.2 * pull)
    assert Tet(lam=0.0)(z, labels()) == StepCrossEntropy()(z, labels())


def test_the_gradient_of_tet_is_that_of_every_step_alone():
    """Deng et al.: no step is excused by the others."""
    z = torch.randn(6, BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Tet(lam=0.0)(z, labels()), z)
    alone = z.detach().softmax(2) - functional.one_hot(labels(), CLASSES)
    torch.testing.assert_close(gradient, alone / (6 * BATCH))


@pytest.mark.parametrize(("correct", "incorrect"), [(1.0, 0.0), (0.8, 0.2), (0.5, 0.5)])
def test_count_mse_times_the_steps_is_snntorchs(correct, incorrect):
    spikes = spike_trains(10)
    theirs = snn.mse_count_loss(correct_rate=correct, incorrect_rate=incorrect)(spikes, labels())
    ours = CountMse(correct=correct, incorrect=incorrect)(spikes, labels())
    torch.testing.assert_close(10 * ours, theirs)


def test_snntorch_rounds_target_counts_down_and_we_do_not():
    spikes = torch.zeros(10, 1, 1)
    label = torch.tensor([0])
    theirs = snn.mse_count_loss(correct_rate=0.75)(spikes, label)
    assert float(theirs) == pytest.approx(7**2 / 10)
    assert float(CountMse(correct=0.75)(spikes, label)) == pytest.approx(0.75**2)


def test_count_mse_is_spikingjellys_mean_square_of_rates():
    spikes = spike_trains()
    one_hot = functional.one_hot(labels(), CLASSES).float()
    theirs = functional.mse_loss(spikes.mean(0), one_hot)
    torch.testing.assert_close(CountMse()(spikes, labels()), theirs)


def test_max_membrane_is_snntorchs_with_its_gradient():
    z = torch.randn(6, BATCH, CLASSES, requires_grad=True)
    ours, theirs = MaxMembrane()(z, labels()), snn.ce_max_membrane_loss()(z, labels())
    torch.testing.assert_close(ours, theirs)
    a, b = (torch.autograd.grad(loss, z)[0] for loss in (ours, theirs))
    torch.testing.assert_close(a, b)


def test_first_spike_by_hand():
    spikes = torch.zeros(5, 1, 3)
    spikes[2, 0, 0] = spikes[4, 0, 1] = 1  # class 2 stays silent: its time is 5
    scores = [math.exp(-t / (0.5 * 4.0)) for t in (2, 4, 5)]
    loss = FirstSpike(xi=0.5, tau_syn=4.0)(spikes, torch.tensor([1]))
    assert float(loss) == pytest.approx(-math.log(scores[1] / sum(scores)), rel=1e-6)


def test_first_spike_is_snntorchs_when_all_spike():
    spikes = spike_trains(6, 0.5)
    spikes[5] = 1
    theirs = snn.ce_temporal_loss()(spikes, labels())
    torch.testing.assert_close(FirstSpike(xi=1.0, tau_syn=1.0)(spikes, labels()), theirs)
    logits = FirstSpikeDecoder(xi=1.0, tau_syn=1.0)(spikes)
    torch.testing.assert_close(CrossEntropy()(logits, labels()), theirs)


def test_silent_outputs_learn_from_the_first_spike():
    spikes = torch.zeros(5, 1, 2, requires_grad=True)
    FirstSpike()(spikes, torch.tensor([0])).backward()
    assert bool((spikes.grad[:, 0, 0] < 0).all()) and bool((spikes.grad[:, 0, 1] > 0).all())
    assert bool((spikes.grad[:, 0, 0].diff() > 0).all())  # the earlier, the more


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Tet, {"lam": 1.5}),
        (CountMse, {"correct": 2.0}),
        (FirstSpike, {"xi": 0.0}),
        (FirstSpike, {"tau_syn": -1.0}),
        (CrossEntropy, {"label_smoothing": -0.1}),
    ],
)
def test_senseless_parameters_are_refused(cls, options):
    with pytest.raises(ConfigError):
        cls(**options)


def test_every_registered_name_is_found_again():
    expected = ["cross_entropy", "step_cross_entropy", "tet", "step_mse", "count_mse"]
    assert list(LOSSES.table) == [*expected, "max_membrane", "first_spike"]
    for name in LOSSES.names():
        assert LOSSES.name_of(LOSSES.get(name)) == name
