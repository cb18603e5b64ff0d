"""Refuse, before anything starts, what cannot work together; both sides are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from spikecl.continual.compose import Composition, check_slots, method_name
from spikecl.continual.importance.importance import Measure
from spikecl.continual.metaplasticity.sampled import Sampled, Voting
from spikecl.continual.method import MethodSpec, check_reveal, overrides
from spikecl.continual.projection.protection import ProjectFactors, ProjectUpdates
from spikecl.encoding import Encoder, FirstSpike, Loss, PopulationDecoder
from spikecl.errors import ConfigError, PairingError, RunError, UsageError
from spikecl.learner.heads import Heads
from spikecl.learner.plan import TrainPlan
from spikecl.networks import Layer, Network
from spikecl.neurons import ConductanceLIF, SpikingNeuron
from spikecl.optim import OptimiserSpec
from spikecl.optim.schedules import schedule_name
from spikecl.registry import ENCODINGS, LOSSES, OPTIMISERS, TRAINERS
from spikecl.streams import Experience, Reveal, Stream, Unlearn
from spikecl.trainers import Trainer

REHEARSING = ("extend_batch", "training_set")  # hooks by which methods bring old samples


def check_pairings(stream: Stream, trainer: Trainer, methods: Sequence[MethodSpec]) -> None:
    """Check what trainer and methods need against what the stream reveals and asks."""
    name = type(trainer).__name__.lower()
    check_reveal("trainer", name, trainer.needs, stream.name, stream.reveal)
    for spec in methods:
        check_reveal("method", method_name(spec), spec.needs, stream.name, stream.reveal)
    check_slots(methods)
    check_kept(methods)
    if any(isinstance(event, Unlearn) for event in stream):
        deaf = [method_name(spec) for spec in methods if "unlearn" not in spec.offers]
        if deaf or not methods:
            raise PairingError(
                f"stream '{stream.name}' has unlearning requests, which {deaf or 'no method'} "
                "cannot serve; use methods that offer 'unlearn'"
            )
        for spec in methods:
            needs = spec.needs_to_unlearn
            check_reveal("method", method_name(spec), needs, stream.name, stream.reveal)


def check_restart(
    methods: Composition, specs: Sequence[MethodSpec], optimiser: OptimiserSpec
) -> None:
    """Refuse to begin anew where another method goes on from what it keeps of old weights."""
    anew = [method_name(spec) for spec in specs if getattr(spec, "restart", False)]
    held = [
        name
        for name, m in methods.methods.items()
        if m.remembers or isinstance(m, Measure | ProjectFactors)
    ]
    if anew and held:
        raise PairingError(
            f"method '{anew[0]}' with restart=true begins each experience from the initial "
            f"weights, and method '{held[0]}' protects, or goes on from, what they learned before; "
            f"set method.{anew[0]}.restart=false, or use one of the two alone"
        )
    if anew and optimiser.state == "carried":
        raise PairingError(
            f"method '{anew[0]}' with restart=true begins each experience from the initial "
            "weights, and optimiser.state='carried' goes on with what it remembers of others; use "
            f"'fresh', or set method.{anew[0]}.restart=false"
        )


def check_still(methods: Composition) -> None:
    """Refuse to write weights that another method holds still."""
    running = methods.methods.items()
    writing = [name for name, m in running if m.writes]
    holding = [name for name, m in running if overrides(m, "still")]
    if writing and holding:
        raise PairingError(
            f"method '{holding[0]}' holds weights still, and method '{writing[0]}' changes them "
            "beside the update, where nothing holds them; leave one of the two out"
        )


def check_draws(methods: Composition) -> None:
    """Refuse to draw weights over what another method made of them, or passes that leave it out."""
    changing = [name for name, m in methods.methods.items() if overrides(m, "weights")]
    for place, name in enumerate(changing):
        method = methods.methods[name]
        if not isinstance(method, Sampled):
            continue
        if place:
            raise PairingError(
                f"method '{name}' draws weights anew, and what method '{changing[0]}' made of them "
                "would get lost; leave one of the two out"
            )
        pulling = [n for n in changing[1:] if methods.methods[n].needs_gradient]
        if pulling:
            raise PairingError(
                f"method '{name}' draws weights anew in each step, and method '{pulling[0]}' "
                "learns by the gradient at those that are stored; leave one of the two out"
            )
        if method.passes > 1 and changing[1:]:
            raise PairingError(
                f"method '{name}' with samples={method.passes} asks for passes of its own, and "
                f"what method '{changing[1]}' makes of weights would be in the first alone; set "
                f"method.{name}.samples=1, or leave one of the two out"
            )


def check_kept(methods: Sequence[MethodSpec]) -> None:
    """Refuse what makes a task's own part of the network meaningless, or all of them the same."""
    for spec in methods:
        for other in methods if spec.keeps else ():
            own, name = method_name(spec), method_name(other)
            if getattr(other, "restart", False):
                raise PairingError(
                    f"method '{own}' tests old tasks with the {spec.keeps} that they left, and "
                    f"method '{name}' with restart=true draws the weights behind them anew; use "
                    "restart=false, or one of the two alone"
                )


def check_frozen(methods: Composition, specs: Sequence[MethodSpec]) -> None:
    """Refuse to keep a task's own part of the network where it learns in the first one alone."""
    keeping = [spec for spec in specs if spec.keeps]
    for spec in specs if keeping else ():
        own, name = method_name(keeping[0]), method_name(spec)
        method = methods.methods[name]
        if isinstance(method, ProjectFactors) and method.freezes:
            said, use = f"method '{name}'", f"leave '{own}' out"
            if hasattr(spec, "others"):
                said, use = (
                    f"{said} with others='freeze'",
                    f"set method.{name}.others='learn', or {use}",
                )
            raise PairingError(
                f"method '{own}' keeps the {keeping[0].keeps} of each task, and {said} lets none "
                f"learn after the first, so all would be the same; {use}"
            )


def _rehearsing(methods: Composition) -> list[str]:
    """Return the methods that bring old samples."""
    running = methods.methods.items()
    return [name for name, m in running if any(overrides(m, hook) for hook in REHEARSING)]


def check_rehearsal(methods: Composition, specs: Sequence[MethodSpec]) -> None:
    """Refuse to train old samples with what tests of them do not use."""
    brings = _rehearsing(methods)
    answers = _with_weights_of_tasks(methods)
    if brings and answers:
        raise PairingError(
            f"method '{answers[0]}' trains with weights of the present task and tests old tasks "
            f"with theirs, so old samples of method '{brings[0]}' would be trained with weights "
            "that their tests never use; leave one of the two out"
        )
    kept = [spec for spec in specs if spec.keeps]
    if brings and kept:
        raise PairingError(
            f"method '{method_name(kept[0])}' tests old tasks with the {kept[0].keeps} that they "
            f"left, so old samples of method '{brings[0]}' would be trained with {kept[0].keeps} "
            "that their tests never use; leave one of the two out"
        )


def check_heads(stream: Stream, heads: Heads, methods: Composition) -> None:
    """Refuse old samples whose labels do not tell at which head they learn."""
    brings = _rehearsing(methods)
    if not brings or heads.kind != "multi" or len(heads.tasks) < 2:
        return
    finds = f"method '{brings[0]}' with head 'multi' finds the head of an old sample by its label"
    if hidden := (Reveal.CLASSES | Reveal.BOUNDARY) & ~stream.reveal:
        raise PairingError(
            f"{finds}, so it needs {', '.join(hidden.names())}, which the stream hides; use a "
            "stream that reveals it, or head 'single'"
        )
    owners: dict[int, int] = {}
    for event in (each for each in stream if isinstance(each, Experience)):
        for label in event.classes:
            if (owner := owners.setdefault(label, event.task)) != event.task:
                raise PairingError(
                    f"{finds}, and tasks {owner} and {event.task} share the label {label}; use "
                    "head 'single', or tasks of different classes"
                )


def _with_weights_of_tasks(methods: Composition) -> list[str]:
    """Return the methods that train and test with weights of a task, not with those stored."""
    return [
        name
        for name, m in methods.methods.items()
        if overrides(m, "weights") and overrides(m, "predict") and not isinstance(m, Voting)
    ]


def check_measures(methods: Composition) -> None:
    """Refuse to measure importances at weights that neither training nor tests run with."""
    looking = [n for n, m in methods.methods.items() if isinstance(m, Measure) and m.looks]
    others = _with_weights_of_tasks(methods)
    if looking and others:
        raise PairingError(
            f"method '{looking[0]}' measures importances at the weights that are stored, and "
            f"method '{others[0]}' trains and tests with others; use 'si', which measures in "
            "training, or leave one of the two out"
        )


def check_credit(trainer: Trainer, methods: Composition) -> None:
    """Refuse methods that ask of the trainer what it does not have: errors, gradients of a loss."""
    for name, method in methods.methods.items():
        if overrides(method, "errors") and not trainer.sends_errors:
            raise PairingError(
                f"method '{name}' sends errors to hidden neurons, and trainer '{trainer.name}' "
                f"follows none through them; use one of {_trainers('sends_errors')}"
            )
        if method.needs_gradient and not trainer.has_gradient:
            raise PairingError(
                f"method '{name}' needs the gradient of the loss, and trainer '{trainer.name}' "
                "has none: it changes weights by a rule of its own, or by an estimate that is "
                f"mostly noise; use one of {_trainers('has_gradient')}"
            )


def _trainers(trait: str) -> str:
    return ", ".join(name for name in TRAINERS.names() if getattr(TRAINERS.get(name), trait))


def check_experiences(stream: Stream, methods: Composition) -> None:
    """Refuse experiences without samples for methods that gather some, and too many contexts."""
    shown = [event for event in stream if isinstance(event, Experience)]
    if Reveal.BOUNDARY not in stream.reveal:
        shown = [*shown[:1], *shown[-1:]]
    empty = [event.index for event in shown if not len(event.train)]
    known = Reveal.TASK_ID_TRAIN in stream.reveal
    contexts = len({event.task for event in shown}) if known else len(shown)
    for name, method in methods.methods.items():
        if method.gathers and empty:
            raise UsageError(
                f"method '{name}' gathers {method.gathers} from the samples of each experience, "
                f"and experience {empty[0]} of stream '{stream.name}' has none; leave it out of "
                "the stream"
            )
        if method.room is not None and contexts > method.room:
            raise UsageError(
                f"method '{name}' has units for {method.room} contexts that share none "
                f"(disjoint=true), and stream '{stream.name}' has {contexts}; silence a larger "
                "share, or use wider layers or disjoint=false"
            )


def check_time(stream: Stream, encoder: Encoder) -> None:
    """Refuse an encoder that would take time for features, or features for time."""
    if encoder.temporal == stream.temporal:
        return
    name = ENCODINGS.name_of(type(encoder)) or type(encoder).__name__
    kinds = {n: ENCODINGS.get(n).temporal for n in ENCODINGS.names()}
    fitting = ", ".join(n for n, temporal in kinds.items() if temporal == stream.temporal)
    has = "samples with time of their own" if stream.temporal else "samples without time"
    raise PairingError(
        f"encoding '{name}' does not fit stream '{stream.name}', which has {has} "
        f"{list(stream.input_shape)}; use one of: {fitting}"
    )


def check_input(network: Network, encoder: Encoder) -> None:
    """Refuse input of both signs where neurons take it for conductances."""
    for name, module in network.layers.items():
        layer = cast(Layer, module)
        conductance = layer.neuron is not None and isinstance(layer.neuron.neuron, ConductanceLIF)
        if conductance and "input" in layer.inputs and getattr(encoder, "centre", False):
            raise PairingError(
                f"layer '{name}' has conductance neurons, and the encoding's centre=true gives "
                "input of both signs, negative conductances; use centre=false, or encoding 'rate'"
            )


def check_loss(network: Network, loss: Loss) -> None:
    """Refuse a loss of steps where time is gone or classes share outputs, of spikes without any."""
    readout = cast(Layer, list(network.layers.values())[-1]).neuron
    spiking = readout is not None and isinstance(readout.neuron, SpikingNeuron)
    if isinstance(loss, FirstSpike) and not spiking:
        raise PairingError(
            "loss 'first_spike' is about spikes, and the network's readout has none; give it "
            "spiking neurons (output)"
        )
    name, decoder = LOSSES.name_of(type(loss)) or type(loss).__name__, network.decoder
    if loss.per_step and isinstance(decoder, PopulationDecoder) and decoder.units > 1:
        raise PairingError(
            f"loss '{name}' takes one output for each class, and the network has several "
            "(population); use population=1, or loss 'cross_entropy'"
        )
    if loss.per_step and network.mean_first:
        raise PairingError(
            f"loss '{name}' looks at every step, but the network averages the spikes before its "
            "readout (readout='mean_rate'); use readout='mean_current'"
        )


def check_membrane(stream: Stream, plan: TrainPlan, methods: Composition) -> None:
    """Refuse to carry the state of one batch into another of a different size, or of others."""
    if plan.membrane == "reset":
        return
    if methods.hooks("extend_batch") or methods.hooks("training_set"):
        raise PairingError(
            f"train.membrane='{plan.membrane}' carries the state from batch to batch, and a method "
            "of this run puts old samples among them; use 'reset', or a method without replay"
        )
    for event in stream:
        if isinstance(event, Experience) and len(event.train) % plan.batch:
            raise ConfigError(
                f"train.membrane='{plan.membrane}' carries the state from batch to batch, but "
                f"{len(event.train)} samples of experience {event.index} make no batches of "
                f"{plan.batch}; use a batch size that divides them"
            )


def check_schedule(stream: Stream, optimiser: OptimiserSpec) -> None:
    """Refuse a learning rate that follows each experience where no one may see their ends."""
    if optimiser.schedule.needs_ends and Reveal.BOUNDARY not in stream.reveal:
        raise PairingError(
            f"optimiser.schedule='{schedule_name(optimiser.schedule)}' follows the steps of an "
            f"experience, but stream '{stream.name}' hides where one ends; use 'constant' without "
            "warmup, or 'infinite', which counts the samples of the run"
        )


def check_average(stream: Stream, optimiser: OptimiserSpec, methods: Composition) -> None:
    """Refuse to average steps over the changes of a projection that act on them.

    At a boundary the average is what training goes on from, so what a projection protects from
    there on is protected in both. Without boundaries the average would still move where the
    projection has stopped the steps. One that holds back a part of a step alone would do so again
    whenever the average brings it.
    """
    if not optimiser.averages:
        return
    optimiser_name = OPTIMISERS.name_of(type(optimiser)) or type(optimiser).__name__
    for name, method in methods.methods.items():
        if overrides(method, "update") and Reveal.BOUNDARY not in stream.reveal:
            raise PairingError(
                f"optimiser '{optimiser_name}' averages its steps, and the average would move on "
                f"where method '{name}' stops the steps, since stream '{stream.name}' hides its "
                "boundaries; use 'sgd', 'adam' or 'adamw', or a stream that shows them"
            )
        if isinstance(method, ProjectUpdates) and not method.protection.projector:
            raise PairingError(
                f"optimiser '{optimiser_name}' averages its steps, and method '{name}' holds back "
                "a part of each update, so what the average brings of an earlier one would be held "
                "back twice; use 'sgd', 'adam' or 'adamw'"
            )
        if method.multiplies:
            raise PairingError(
                f"optimiser '{optimiser_name}' averages its steps, and method '{name}' multiplies "
                "each update, so what the average brings of an earlier one would be multiplied "
                "again; use 'sgd', 'adam' or 'adamw'"
            )


def check_tied(trainer: Trainer, optimiser: OptimiserSpec) -> None:
    """Refuse feedback that learns as the weights do where nothing makes the two meet."""
    if getattr(optimiser, "weight_decay", 0.0) == 0:
        raise PairingError(
            f"trainer '{trainer.name}' with feedback='adaptive' gives feedback weights the updates "
            "of the weights: the two meet because both decay, and optimiser.weight_decay is 0; set "
            "it (1e-4 to 1e-2), or use feedback='random'"
        )


def check_network(found: Mapping[str, Tensor], network: Network) -> None:
    """Refuse a checkpoint of another network."""
    own = {name: list(each.shape) for name, each in network.weights().items()}
    held = {name: list(each.shape) for name, each in found.items()}
    if own != held:
        differ = [n for n in {**own, **held} if own.get(n) != held.get(n)]
        shown = ", ".join(f"{n}: {held.get(n)} there, {own.get(n)} here" for n in differ[:3])
        raise RunError(
            f"the checkpoint is of another network ({shown}); resume with the configuration that "
            "it was made with"
        )
