"""Modules of torch that have no equal, or no place, are refused by name."""

import pytest
import snntorch
import torch
from torch import nn

from spikecl.errors import InteropError
from spikecl.interop import from_snntorch


def twice(module):
    return [nn.Linear(4, 4), module, nn.Linear(4, 4), module]


def hooked():
    module = nn.Linear(4, 3)
    module.register_forward_hook(lambda *given: None)
    return [module]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)


class Backwards(nn.Sequential):
    def forward(self, x):
        return super().forward(-x)


def conv(*more, **options):
    return [nn.Conv2d(2, 2, **{"kernel_size": 3, **options}), *more]


def dense(*more):
    return [nn.Linear(4, 3), *more]


LEAKY = snntorch.Leaky(0.5)
SIDES = "windows here lie side by side"
REFUSED = {
    "no synapse": ([LEAKY], r"'0' \(Leaky\): no synapse comes before"),
    "two neurons": (dense(LEAKY, snntorch.Leaky(0.5)), r"'2' \(Leaky\): no synapse comes before"),
    "pool at the end": (conv(LEAKY, nn.MaxPool2d(2)), "no synapse listens"),
    "flatten at the end": (conv(LEAKY, nn.Flatten()), "no synapse listens"),
    "norm of spikes": (dense(LEAKY, nn.BatchNorm1d(3).eval()), "normalises activity"),
    "dropout of currents": (dense(nn.Dropout(0.5).eval(), LEAKY), "drops currents"),
    "dropout in training": (dense(LEAKY, nn.Dropout(0.5)), r"other units at every step.*eval\(\)"),
    "norm in training": (dense(nn.BatchNorm1d(3)), r"statistics of one step.*eval\(\)"),
    "norm without statistics": (
        dense(nn.BatchNorm1d(3, track_running_stats=False).eval()),
        "statistics of one step",
    ),
    "norm with another eps": (dense(nn.BatchNorm1d(3, eps=1e-3).eval()), r"eps=0\.001"),
    "norm by count": (dense(nn.BatchNorm1d(3, momentum=None).eval()), "momentum=None"),
    "groups": (conv(groups=2), "groups=2, convolutions here have 1"),
    "dilation": (conv(dilation=2), r"dilation=\(2, 2\)"),
    "padding mode": (conv(padding_mode="reflect"), "padding_mode=reflect"),
    "even same": (conv(kernel_size=4, padding="same"), "where the kernel is even"),
    "oblong kernel": (conv(kernel_size=(3, 5)), r"kernel_size=\(3, 5\) differs"),
    "oblong padding": (conv(padding=(0, 1)), r"padding=\(0, 1\) differs"),
    "overlap": ([nn.MaxPool2d(3, stride=2)], SIDES),
    "padded pool": ([nn.AvgPool2d(2, padding=1)], SIDES),
    "dilated pool": ([nn.MaxPool2d(2, dilation=2)], SIDES),
    "ceil": ([nn.AvgPool2d(2, ceil_mode=True)], SIDES),
    "divisor": ([nn.AvgPool2d(2, divisor_override=3)], SIDES),
    "indices": ([nn.MaxPool2d(2, return_indices=True)], SIDES),
    "adaptive": ([nn.AdaptiveAvgPool2d(3)], "only the mean of a map"),
    "part of flatten": ([nn.Flatten(2)], "start_dim=2"),
    "another module": ([nn.Tanh()], r"'0' \(Tanh\): has no counterpart here; use .*Conv2d"),
    "a network of code": (Net(), r"Net: its forward is code.*net\.fc1"),
    "a chain of code": (Backwards(nn.Linear(4, 3)), "Backwards: its forward is code"),
    "a chain of code within": ([Backwards(nn.Linear(4, 3))], "Backwards: its forward is code"),
    "no module": (dense(torch.relu), "'1' is a builtin_function_or_method"),
    "nothing": ([], "no layer: pass modules"),
    "tied neurons": (twice(snntorch.Leaky(0.5)), "shares parameters or state with '1'"),
    "tied weights": (twice(nn.Linear(4, 4)), "shares parameters or state with '1'"),
    "hooks": (hooked(), "hooks, which may change"),
}


@pytest.mark.parametrize("spikes_only", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_equal_is_refused(case, spikes_only):
    net, message = REFUSED[case]
    with pytest.raises(InteropError, match=message):
        from_snntorch(net, spikes_only=spikes_only)


def test_a_weight_in_two_places_is_refused():
    modules = twice(nn.Identity())
    modules[2].weight = modules[0].weight
    with pytest.raises(InteropError, match=r"'2' \(Linear\): shares parameters or state with '0'"):
        from_snntorch(modules)
    assert len(from_snntorch(twice(nn.ReLU())).layers) == 2  # no state, nothing to share


def test_weights_that_a_hook_computes_are_refused():
    with pytest.warns(FutureWarning, match="deprecated"):
        old = nn.utils.weight_norm(nn.Linear(4, 3))
    new = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    for module, message in ((old, "hooks"), (new, "ParametrizedLinear")):
        with pytest.raises(InteropError, match=message):
            from_snntorch([module])


@pytest.mark.parametrize(
    ("padding", "ours"), [("same", 2), ("valid", 0), (1, 1), ((3, 3), 3)], ids=str
)
def test_padding(padding, ours):
    (layer,) = from_snntorch([nn.Conv2d(1, 1, 5, padding=padding)]).layers.values()
    assert layer.synapse.geometry.padding == ours
