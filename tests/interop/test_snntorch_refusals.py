"""What snnTorch computes otherwise is refused by name."""

import pytest
import snntorch
import snntorch.surrogate as theirs
import torch
from torch import nn

from spikecl.errors import InteropError
from spikecl.interop import from_snntorch
from spikecl.neurons import LIF, step


def leaky(**options):
    return [nn.Linear(4, 3), snntorch.Leaky(0.5, **options)]


def behind(neuron):
    return [nn.Linear(4, 3), neuron]


def changed():
    modules = leaky()
    modules[1].reset_mechanism = "zero"
    return modules


class Own(snntorch.Leaky):
    pass


SNN = snntorch
REFUSED = {
    "soft reset at once": (leaky(reset_delay=False), "above its threshold after a reset"),
    "changed reset": (changed(), "still computes 'subtract'"),
    "delay": (
        behind(SNN.RSynaptic(0.1, 0.5, linear_features=3, reset_delay=False)),
        r"resets a copy of its membrane.*use reset_delay=True",
    ),
    "graded": (leaky(graded_spikes_factor=2.0), "graded_spikes_factor scales"),
    "graded and learned": (leaky(learn_graded_spikes_factor=True), "graded_spikes_factor"),
    "quantised": (leaky(state_quant=lambda x: x.round()), "state_quant rounds"),
    "negative threshold": (leaky(threshold=-0.1), "reset before the first step"),
    "infinite": (leaky(threshold=float("inf")), r"'1' \(Leaky\): LIF\.v_th: got inf; input should"),
    "no step": (leaky(spike_grad=torch.relu), "no step from 0 to 1"),
    "alpha": (behind(SNN.Alpha(0.9, 0.5)), "difference of two currents"),
    "slstm": ([SNN.SLSTM(4, 3)], r"'0' \(SLSTM\): its cells have gates; use Leaky"),
    "parallel": ([SNN.LeakyParallel(4, 3, beta=0.5)], "rectified and has no reset"),
    "linear": ([SNN.LinearLeaky(0.5, 4, 3)], "no reset and is convolved"),
    "delta": (behind(SNN.DeltaLeaky(0.5, 0.1)), "fires at changes"),
    "subclass": (behind(Own(0.5)), r"'1' \(Own\): has no counterpart"),
    "Lapicque with R": (behind(SNN.Lapicque(R=2, C=3.0)), "bias by R and use R=1, C=6"),
    "unstable": (behind(SNN.Lapicque(R=1, C=0.4)), r"decay .* is -1\.5"),
    "convolutional recurrence": (
        [nn.Conv2d(1, 2, 3), SNN.RLeaky(0.5, conv2d_channels=2, kernel_size=3)],
        "recurrent is Conv2d, here it is dense",
    ),
    "recurrence without a number": (
        [nn.Conv2d(1, 2, 3), SNN.RLeaky(0.5, all_to_all=False)],
        "the number of its neurons is not known",
    ),
    "recurrence of another number": (
        behind(SNN.RLeaky(0.5, all_to_all=False, V=torch.ones(4))),
        "the number of its neurons is not known",
    ),
}


@pytest.mark.parametrize("spikes_only", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_is_refused(case, spikes_only):
    net, message = REFUSED[case]
    with pytest.raises(InteropError, match=message):
        from_snntorch(net, spikes_only=spikes_only)


def test_inhibition_is_refused():
    with pytest.warns(UserWarning, match="unstable"):
        modules = leaky(inhibition=True)
    with pytest.raises(InteropError, match="strongest neuron"):
        from_snntorch(modules)


GRADIENTS = {
    "triangular": (leaky(spike_grad=theirs.triangular()), "none of spikecl.neurons.SURROGATES"),
    "disabled": (leaky(surrogate_disable=True), "none of spikecl.neurons.SURROGATES"),
    "Lapicque": (behind(SNN.Lapicque(beta=0.6, learn_beta=True)), "keeps the graph"),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_other_gradients_are_refused_unless_spikes_are_enough(lab, case):
    modules, message = GRADIENTS[case]
    with pytest.raises(InteropError, match=f"{message}.*spikes_only=True"):
        from_snntorch(modules)
    x = 2 + lab.draw(9, lab.STEPS, 1, 4)
    assert lab.prepare(lab.SNNTORCH, modules, x)
    expected = lab.SNNTORCH.run(modules, x)[-1]
    assert torch.equal(from_snntorch(modules, spikes_only=True)(x).steps, expected.double())


def test_what_the_refusal_of_a_soft_reset_at_once_says_is_so():
    """Above two thresholds snnTorch takes one away before the next spike, and gives it back."""
    lif, mem, state, spikes = snntorch.Leaky(0.5, reset_delay=False), torch.zeros(1, 1), None, []
    for x in (torch.full((1, 1), current) for current in (4.0, 0.0, 0.0)):
        theirs, mem = lif(x, mem)
        ours, state = step(x, state, LIF(beta=0.5))
        spikes.append((float(ours), float(theirs)))
    assert spikes == [(1, 1), (1, 0), (0, 0)]
