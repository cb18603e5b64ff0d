"""What cannot work together is refused before anything starts; losses get what they ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from spikecl.continual import (
    BennaFusi,
    Bimu,
    Cascade,
    Cuber,
    Finetune,
    FiringRates,
    Gpm,
    HalfFineTuning,
    Hlop,
    Inhibition,
    JointTraining,
    Laborieux,
    Need,
    Scaling,
    Sleep,
    Tacos,
    Threshold,
    Trgp,
)
from spikecl.continual.compose import method_name
from spikecl.continual.homeostasis.dendrites import Dendrites
from spikecl.continual.homeostasis.gating import Gating
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.mas import Mas
from spikecl.continual.importance.si import Si
from spikecl.continual.metaplasticity.mesu import Mesu
from spikecl.continual.replay.er import ExperienceReplay
from spikecl.data import load
from spikecl.encoding import (
    CountMse,
    CrossEntropy,
    Direct,
    FirstSpike,
    MaxMembrane,
    Rate,
    Sequence,
    StepCrossEntropy,
    Tet,
)
from spikecl.errors import ConfigError, PairingError, RunError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.learner.pairing import check_loss, check_time
from spikecl.networks import Mlp, SpikingMlp, form_gradients, initialise
from spikecl.neurons import LIF
from spikecl.optim import Sgd
from spikecl.registry import ENCODINGS, LOSSES, TRAINERS
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, TASK_IL, Experience, Reveal, Samples, Stream, permuted
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, PerStep

CPU, N, T, CLASSES = torch.device("cpu"), 5, 4, 3


def stream_of(*sizes, temporal=False):
    sets = []
    for i, size in enumerate(sizes):
        shape = (size, 6, N) if temporal else (size, N)
        x = torch.rand(shape, generator=torch.Generator().manual_seed(i))
        sets.append(Samples((Part(x, torch.arange(size) % CLASSES, torch.arange(size)),)))
    events = [Experience(i, s, (0, 1, 2), task=i) for i, s in enumerate(sets)]
    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    shape = (6, N) if temporal else (N,)
    return Stream(
        "made", {}, 0, DOMAIN_IL, CLASSES, shape, len(events), lambda i: events[i], tests, temporal
    )


def learner_of(
    stream,
    *,
    encoder=None,
    loss=None,
    readout="mean_current",
    output=None,
    methods=(),
    hidden=(7,),
    learns=(),
    per_neuron=False,
    binary="none",
    trainer=None,
    **plan,
):
    network = SpikingMlp(
        hidden=hidden,
        neuron=LIF(beta=0.5, v_th=0.2),
        readout=readout,
        output=output,
        learns=learns,
        per_neuron=per_neuron,
        binary=binary,
    ).build((N,), CLASSES)
    return Learner(
        stream=stream,
        network=network,
        encoder=encoder or Direct(steps=T),
        trainer=trainer or Bptt(),
        methods=methods,
        optimiser=Sgd(lr=0.1),
        plan=TrainPlan(**{"batch": 4, **plan}),
        seeds=Seeds(1),
        device=CPU,
        loss=loss,
    )


@pytest.mark.parametrize("name", ENCODINGS.names())
@pytest.mark.parametrize("temporal", [False, True])
def test_time_is_not_taken_for_features_nor_features_for_time(name, temporal):
    encoder, stream = ENCODINGS.get(name)(), stream_of(8, temporal=temporal)
    if encoder.temporal == temporal:
        check_time(stream, encoder)
        return
    with pytest.raises(PairingError) as caught:
        check_time(stream, encoder)
    text = str(caught.value)
    assert f"encoding '{name}' does not fit stream 'made'" in text
    fitting = text.split("use one of: ")[1].split(", ")
    assert {n for n in ENCODINGS.names() if ENCODINGS.get(n).temporal == temporal} == set(fitting)


def test_the_learner_checks_before_it_draws():
    network = SpikingMlp(hidden=(7,)).build((N,), CLASSES)
    for options in ({"encoder": Sequence()}, {"loss": Tet(), "readout": "mean_rate"}):
        with pytest.raises(PairingError):
            learner_of(stream_of(8), **options)
    assert not any(p.any() for p in network.parameters())
    run = list(learner_of(stream_of(8, temporal=True), encoder=Sequence()).ticks())
    assert run


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_over_time_needs_time_at_the_readout(name):
    loss = LOSSES.get(name)()
    networks = {
        r: SpikingMlp(hidden=(7,), readout=r).build((N,), 3)
        for r in ("mean_rate", "mean_current", "max")
    }
    for readout, network in networks.items():
        if loss.per_step and readout == "mean_rate":
            with pytest.raises(
                PairingError, match="looks at every step.*mean_current|about spikes"
            ):
                check_loss(network, loss)
        elif name == "first_spike":
            with pytest.raises(PairingError, match="about spikes"):
                check_loss(network, loss)
        else:
            check_loss(network, loss)
    # neurons at the readout: no mean is taken before it
    check_loss(SpikingMlp(hidden=(7,), output=LIF()).build((N,), 3), loss)


@pytest.mark.parametrize("readout", ["mean_rate", "mean_current"])
@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_over_time_needs_one_output_for_each_class(name, readout):
    loss = LOSSES.get(name)()
    spec = SpikingMlp(hidden=(7,), output=LIF(), population=2, readout=readout)
    if loss.per_step:
        with pytest.raises(PairingError, match=f"'{name}' takes one output for each class.*pop"):
            check_loss(spec.build((N,), 3), loss)
    else:
        check_loss(spec.build((N,), 3), loss)


@pytest.mark.parametrize("batch", [1, 2, 4, 3, 8, 16])
def test_a_membrane_that_is_carried_needs_batches_of_one_size(batch):
    stream = stream_of(8, 4)
    fits = all(size % batch == 0 for size in (8, 4))
    learner_of(stream, batch=batch)
    if fits:
        learner_of(stream, batch=batch, membrane="detach")
        return
    with pytest.raises(ConfigError, match=rf"membrane='detach'.*make no batches of {batch}"):
        learner_of(stream, batch=batch, membrane="detach")


@pytest.mark.parametrize(
    ("method", "reveal"),
    [(ExperienceReplay(), DOMAIN_IL), (JointTraining(), DOMAIN_IL | Reveal.OLD_DATA)],
)
def test_a_membrane_is_not_carried_into_samples_of_another_time(method, reveal):
    stream = replace(stream_of(8, 4), reveal=reveal)
    learner_of(stream, methods=(method,), batch=4)
    with pytest.raises(PairingError, match="membrane='detach'.*puts old samples among them"):
        learner_of(stream, methods=(method,), batch=4, membrane="detach")


KNOWN = DOMAIN_IL | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL | Reveal.OLD_DATA


@pytest.mark.parametrize("method", [Trgp(), Cuber()], ids=["trgp", "cuber"])
@pytest.mark.parametrize(
    "old", [ExperienceReplay(), JointTraining(restart=False)], ids=["er", "joint"]
)
def test_old_samples_are_not_trained_with_weights_of_another_task(method, old):
    stream = replace(stream_of(8, 4), reveal=KNOWN)
    for alone in (method, old):
        learner_of(stream, methods=(alone,))
    for both in ((method, old), (old, method)):
        with pytest.raises(PairingError, match=r"'(trgp|cuber)' trains.*old samples.*'(er|joint)'"):
            learner_of(stream, methods=both)


@pytest.mark.parametrize("anew", [Finetune, JointTraining])
@pytest.mark.parametrize("method", [Gpm(), Hlop(faithful=True), Inhibition()], ids=str)
def test_what_begins_anew_leaves_nothing_to_protect(anew, method):
    stream = replace(stream_of(8, 4), reveal=KNOWN)
    learner_of(stream, methods=(anew(restart=False), method))
    with pytest.raises(PairingError, match="with restart=true begins.*protects, or goes on from"):
        learner_of(stream, methods=(anew(restart=True), method))


REMEMBERING = [
    Ewc(),
    L2(),
    Mas(),
    Si(),
    BennaFusi(),
    Tacos(),
    Mesu(),
    Scaling(),
    Sleep(),
    Threshold(),
] + [Gating(), Dendrites(), Cascade()]
FORGETTING = [ExperienceReplay(), FiringRates(), HalfFineTuning(), Laborieux(), Bimu(), Need()]


@pytest.mark.parametrize("method", REMEMBERING, ids=method_name)
def test_nothing_goes_on_from_weights_that_are_drawn_anew(method):
    stream, name = stream_of(8, 4).with_reveal(KNOWN), method_name(method)
    options = {"binary": "fixed"} if isinstance(method, Cascade) else {}
    if isinstance(method, Threshold):
        options = {"learns": ("v_th",), "per_neuron": True}
    contexts = isinstance(method, Gating | Dendrites)  # which nothing old is trained beside
    for anew in (Finetune(restart=True), *(() if contexts else (JointTraining(),))):
        own = method_name(anew)
        with pytest.raises(PairingError, match=f"'{own}' with.*'{name}'.*method.{own}.restart"):
            learner_of(stream, methods=(anew, method), **options)
        learner_of(stream, methods=(replace(anew, restart=False), method), **options)


@pytest.mark.parametrize("method", FORGETTING, ids=method_name)
def test_what_keeps_nothing_of_weights_may_begin_anew(method):
    stream = stream_of(8, 4).with_reveal(KNOWN | Reveal.LABELS)
    binary = "fixed" if isinstance(method, Laborieux | Bimu) else "none"
    list(learner_of(stream, methods=(Finetune(restart=True), method), binary=binary).ticks())


def test_a_wait_that_never_ends_is_no_silent_success():
    stream = replace(stream_of(8, 4), reveal=DOMAIN_IL | Reveal.OLD_DATA)
    learner = learner_of(stream, methods=(JointTraining(wait=2),))
    with pytest.raises(UsageError, match=r"nothing was learned.*method.joint.wait"):
        list(learner.ticks())
    assert len(list(learner_of(stream, methods=(JointTraining(wait=1),)).ticks())) > 4


@pytest.mark.parametrize("hidden", [(6,), (7, 7)])
def test_a_checkpoint_of_another_network_is_refused(hidden):
    state = learner_of(stream_of(8)).state_dict()
    with pytest.raises(RunError, match=r"of another network \((hidden|readout)[\w.]+: .* there, "):
        learner_of(stream_of(8), hidden=hidden).load_state_dict(state)
    learner_of(stream_of(8)).load_state_dict(state)


def by_hand(name, steps, labels):
    """The loss in torch's own words, of outputs [T, B, C]."""
    one_hot = functional.one_hot(labels, CLASSES).to(steps)
    each = [functional.cross_entropy(z, labels) for z in steps]
    return {
        "cross_entropy": lambda: functional.cross_entropy(steps.mean(0), labels),
        "step_cross_entropy": lambda: sum(each) / T,
        "tet": lambda: (
            0.95 * sum(each) / T + 0.05 * functional.mse_loss(steps, torch.ones_like(steps))
        ),
        "step_mse": lambda: functional.mse_loss(steps, one_hot.expand_as(steps)),
        "count_mse": lambda: functional.mse_loss(steps.mean(0), one_hot),
        "max_membrane": lambda: functional.cross_entropy(steps.amax(0), labels),
        "first_spike": lambda: functional.cross_entropy(
            -(1 - steps).cumprod(0).sum(0) / (0.4 * 5.0), labels
        ),
    }[name]()


SPIKES = LIF(beta=0.3, v_th=0.1)


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("encoder", [Direct(steps=T), Rate(steps=T)], ids=["direct", "rate"])
def test_every_loss_reaches_the_trainer(name, encoder):
    """First step of a run against autograd through the steps; the right number of axes."""
    loss = LOSSES.get(name)()
    learner = learner_of(stream_of(8), encoder=encoder, loss=loss, output=SPIKES)
    network = learner.network
    start = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    list(zip(range(3), learner.ticks()))  # the test, the event, the first step
    data = learner.stream[0].train.load()
    picked = torch.randperm(8, generator=Seeds(1).generator("order"))[:4]
    generator = Seeds(1).generator("encode")
    x = encoder.encode(data.x[picked], learner.statistics, generator)
    steps = network(x, weights=start).steps
    assert steps.shape == (T, 4, CLASSES) and bool(steps.any())
    expected = by_hand(name, steps, data.y[picked])
    gradients = torch.autograd.grad(expected, list(start.values()))
    assert float(learner.training.window.losses[0]) == pytest.approx(expected.item(), rel=1e-5)
    for (n, p), gradient in zip(network.weights().items(), gradients, strict=True):
        assert bool(gradient.any())
        torch.testing.assert_close(p.detach(), start[n].detach() - 0.1 * gradient)


@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), StepCrossEntropy(), Tet(), CountMse(), MaxMembrane(), FirstSpike()],
    ids=lambda loss: type(loss).__name__,
)
def test_factors_of_a_loss_over_time(loss):
    network = SpikingMlp(hidden=(7,), neuron=LIF(beta=0.5, v_th=0.2), output=SPIKES)
    network = network.build((N,), CLASSES).double()
    initialise(network, Seeds(0))
    x, y = torch.rand(T, 6, N).double() * 3, torch.arange(6) % 3

    def output_loss(output):
        assert output.dim() == (3 if loss.per_step else 2)
        return loss(output, y)

    wrapped = PerStep(output_loss) if loss.per_step else output_loss
    factors = Bptt().factors(network, x, wrapped)
    found = form_gradients(network, factors.synapses, factors.direct)
    output = network(x)
    value = loss(output.steps if loss.per_step else output.logits, y)
    torch.testing.assert_close(factors.loss, value.detach())
    torch.testing.assert_close(factors.logits, output.logits.detach())
    wanted = torch.autograd.grad(value, list(network.weights().values()))
    for name, gradient in zip(network.weights(), wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_nothing_is_learned_of_streams_that_make_their_events_anew_either():
    stream = permuted(load("digits"), experiences=2, seed=0, old_data=True)
    spec = Mlp(hidden=(5,))
    learner = Learner(
        stream=stream,
        network=spec.build(stream.input_shape, stream.classes),
        encoder=Direct(steps=1),
        trainer=Bptt(),
        methods=(JointTraining(wait=2),),
        optimiser=Sgd(),
        plan=TrainPlan(batch=256),
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )
    with pytest.raises(UsageError, match=r"nothing was learned.*method.joint.wait"):
        list(learner.ticks())


@pytest.mark.parametrize("method", [Mesu(tests=2), Mesu()], ids=str)
def test_old_samples_may_be_trained_with_drawn_weights(method):
    stream = replace(stream_of(8, 4), reveal=KNOWN)
    for both in ((method, ExperienceReplay()), (ExperienceReplay(), method)):
        assert list(learner_of(stream, methods=both).ticks())


@pytest.mark.parametrize("measure", [Ewc, Mas])
@pytest.mark.parametrize("other", [Gating(share=0.5), Dendrites(), Trgp()])
def test_importances_are_not_measured_at_weights_that_nobody_runs_with(measure, other):
    stream = stream_of(6, 6).with_reveal(TASK_IL)
    for strength in (0.0, 1.0):
        with pytest.raises(PairingError, match="at the weights that are stored, and method"):
            learner_of(stream, methods=(measure(strength=strength), other))
    for fine in ((Si(), other), (L2(), other), (measure(), Mesu())):
        learner_of(stream, methods=fine)


@pytest.mark.parametrize("name", TRAINERS.names())
def test_what_is_made_of_gradients_needs_a_trainer_that_has_some(name):
    trainer = TRAINERS.get(name)(**({"tbptt": {"steps": 2}}.get(name, {})))
    having = {"bptt", "tbptt", "eprop", "ottt", "sltt", "ostl", "decolle", "dsr", "eventprop"}
    stream = stream_of(8, 8).with_reveal(TASK_IL)
    assert trainer.has_gradient is (name in having)
    for method in (Si(), Si(strength=0.0), Si(step="implicit"), Mesu(), Trgp(), Dendrites()):
        if trainer.has_gradient:
            learner_of(stream, trainer=trainer, methods=[method])
            continue
        with pytest.raises(PairingError, match=f"trainer '{name}' has none.*one of bptt, "):
            learner_of(stream, trainer=trainer, methods=[method])
    learner_of(stream, trainer=trainer, methods=[L2(), Ewc(), Mas()])


@pytest.mark.parametrize("other", [Trgp(), Cuber(), Dendrites()])
def test_weights_that_are_drawn_are_not_those_that_others_differentiate_by(other):
    stream, name = stream_of(8, 8).with_reveal(TASK_IL), method_name(other)
    for both in ((Mesu(), other), (other, Mesu())):
        with pytest.raises(PairingError, match=f"'mesu' draws weights anew.*'{name}'"):
            learner_of(stream, methods=both)
    with pytest.raises(PairingError):
        learner_of(stream, methods=(Bimu(), other), binary="fixed")
