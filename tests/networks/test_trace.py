"""Recordings against a loop of single steps."""

import numpy as np
import pytest
import torch

from spikecl.errors import UsageError
from spikecl.networks import Mlp, Recording, SpikingMlp, initialise
from spikecl.neurons import ALIF, CUBA, LIF, MODELS, AdEx, ConductanceLIF
from spikecl.seeds import Seeds


def by_steps(network, x):
    """Run one step at a time, state in hand; return outputs and states of every step."""
    state, found = None, []
    for t in range(len(x)):
        taps = {}
        output = network(x[t : t + 1], state, taps=taps)
        state = output.state
        found.append((dict(state), taps, output.logits))
    return found


def fields_of(state):
    """Tensors of a state by name, those of nested states too."""
    found = {}
    for name, value in zip(state._fields, state):
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif hasattr(value, "_fields"):
            found |= fields_of(value)
    return found


def test_traces_are_those_of_single_steps(case):
    network, x = case.network(), case.inputs()
    recording = network.record(x)
    assert list(recording) == [n for n, layer in network.layers.items() if layer.neuron]
    steps = by_steps(network, x)
    for name, traces in recording.items():
        layer = network.layers[name]
        assert traces["spikes"].shape[:2] == (5, 4)
        if layer.recurrent is not None or case.spiking:
            states = [fields_of(state[name]) for state, _, _ in steps]
            for field in traces.keys() - {"spikes"}:
                expected = torch.stack([s[field] for s in states]).detach().numpy()
                np.testing.assert_allclose(traces[field], expected, rtol=1e-12, atol=1e-14)
        assert ("v" in traces) == case.spiking
    last = list(network.layers)[-1]
    sent = torch.stack([taps[last].rows for _, taps, _ in steps]).detach()  # before the readout
    if not any(layer.before for layer in [network.layers[last]]):
        final = next(iter(network.layers[last].inputs))
        np.testing.assert_allclose(recording[final]["spikes"], sent.numpy())


def test_recording_does_not_change_the_run(case):
    network, x = case.network(), case.inputs()
    before = network(x)
    trace = network.record(x)
    assert torch.equal(network(x).logits, before.logits)
    again = network.record(x)
    for name in trace:
        assert all(np.array_equal(trace[name][k], again[name][k]) for k in trace[name])
        assert all(not isinstance(a, torch.Tensor) for a in trace[name].values())


def test_a_constant_input_is_recorded_at_every_step(case):
    """Units without memory too: a trace has one row per step."""
    network, x = case.network(), case.inputs()[0]
    static = network.record(x.expand(5, *x.shape))
    dense = network.record(x.expand(5, *x.shape).clone())
    for name in dense:
        assert static[name].keys() == dense[name].keys()
        for key, trace in dense[name].items():
            assert trace.shape[0] == 5
            np.testing.assert_allclose(static[name][key], trace, rtol=1e-12, atol=1e-14)


MODELS_AND_FIELDS = {
    "lif": {"v"},
    "alif": {"v", "b"},
    "cuba": {"v", "i"},
    "conductance": {"v", "g_exc", "g_inh"},
    "izhikevich": {"v", "u"},
    "adex": {"v", "w"},
    "leaky_integrator": {"v"},
    "synaptic_integrator": {"i", "v"},
    "sigma_delta": {"sigma", "act", "residue"},
    "loihi": {"u", "v"},
    "if": {"v"},
    "plif": {"v"},
    "rectified": set(),
    "rate_if": {"v"},
    "rate_lif": {"v"},
}


@pytest.mark.parametrize("model", MODELS)
def test_every_field_of_every_model_is_there(model):
    network = SpikingMlp(hidden=(3,), neuron=MODELS[model]()).build((4,), 2)
    initialise(network, Seeds(0))
    traces = network.record(torch.rand(6, 2, 4))["hidden1"]
    assert set(traces) == {"spikes"} | MODELS_AND_FIELDS[model]
    assert all(t.shape == (6, 2, 3) for t in traces.values())


@pytest.mark.parametrize("options", [{"refractory": 2}, {"reset_time": "next"}])
def test_fields_of_states_inside_states(options):
    network = SpikingMlp(hidden=(3,), neuron=LIF(v_th=0.2, **options)).build((4,), 2)
    initialise(network, Seeds(0))
    traces = network.record(torch.rand(6, 2, 4))["hidden1"]
    assert set(traces) == {"spikes", "v"} | ({"left"} if "refractory" in options else set())


@pytest.mark.parametrize("neuron", [LIF(), ConductanceLIF(), AdEx(), ALIF(), CUBA()])
def test_the_current_is_what_drives_the_neurons(neuron):
    network = SpikingMlp(hidden=(3,), neuron=neuron).build((4,), 2)
    initialise(network, Seeds(0))
    x = torch.rand(6, 2, 4)
    trace = network.record(x, variables=["current"])["hidden1"]
    assert list(trace) == ["current"]
    current = x @ network.weights()["hidden1.weight"].detach().T
    if isinstance(neuron, ConductanceLIF):
        np.testing.assert_allclose(
            trace["current"][:, :, 0] - trace["current"][:, :, 1], current, atol=1e-6
        )
    else:
        np.testing.assert_allclose(trace["current"], current, rtol=1e-5, atol=1e-6)


def test_layers_and_variables_are_chosen():
    network = SpikingMlp(hidden=(3, 5)).build((4,), 2)
    recording = network.record(torch.rand(6, 2, 4), layers=["hidden2"], variables=["v", "spikes"])
    assert {n: list(t) for n, t in recording.items()} == {"hidden2": ["v", "spikes"]}
    assert len(recording) == 1 and len(network.record(torch.rand(6, 2, 4), layers=[])) == 0


def test_from_a_state_it_goes_on(case):
    network, x = case.network(), case.inputs()
    whole = network.record(x)
    second = network.record(x[2:], state=network(x[:2]).state)
    for name in whole:
        for key, trace in whole[name].items():
            np.testing.assert_allclose(second[name][key], trace[2:], rtol=1e-12, atol=1e-14)


def test_neurons_that_draw_are_recorded_with_a_generator():
    network = SpikingMlp(hidden=(3,), neuron=LIF(noise=0.5)).build((4,), 2)
    x = torch.rand(6, 2, 4)
    a, b = (
        network.record(x, generator=torch.Generator().manual_seed(s))["hidden1"]["v"]
        for s in (0, 1)
    )
    assert not np.array_equal(a, b)
    with pytest.raises(UsageError, match=r"pass a torch\.Generator"):
        network.record(x)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": ["hidden3"]}, "no layer 'hidden3'.*did you mean 'hidden1'"),
        ({"layers": ["readout"]}, "no layer 'readout' with neurons"),
        ({"variables": ["u"]}, r"layer 'hidden1' \(LIF\) has no variable 'u'.*current, spikes, v"),
    ],
)
def test_what_is_not_there_is_named(options, text):
    network = SpikingMlp(hidden=(3,)).build((4,), 2)
    with pytest.raises(UsageError, match=text):
        network.record(torch.rand(6, 2, 4), **options)


def test_units_without_state_have_no_variables_but_their_output():
    network = Mlp(hidden=(3,)).build((4,), 2)
    initialise(network, Seeds(0))
    x = torch.rand(6, 2, 4)
    traces = network.record(x)["hidden1"]
    assert list(traces) == ["spikes"]
    expected = (x @ network.weights()["hidden1.weight"].T).relu().detach()
    np.testing.assert_allclose(traces["spikes"], expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(UsageError, match=r"\(Rectified\) has no variable 'v'"):
        network.record(x, variables=["v"])


def test_a_recording_goes_to_a_file_and_back(tmp_path, case):
    recording = case.network().record(case.inputs())
    recording.save(tmp_path / "r.npz")
    again = Recording.load(tmp_path / "r.npz")
    assert list(again) == list(recording)
    for name in recording:
        assert list(again[name]) == list(recording[name])
        assert all(np.array_equal(again[name][k], recording[name][k]) for k in recording[name])
