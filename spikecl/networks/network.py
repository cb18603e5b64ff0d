"""A network: an ordered list of layers, run over time in one pass per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spikecl.encoding.decoders import Decoder, MeanDecoder, PopulationDecoder
from spikecl.errors import UsageError, suggest
from spikecl.kernels import AUTO, Kernels, Recurrence
from spikecl.kernels.recurrence import Ways
from spikecl.networks.layer import Layer
from spikecl.networks.paths import ALL, turned
from spikecl.networks.presynaptic import Dropout, Pass, is_static
from spikecl.networks.synapses import Synapse
from spikecl.networks.tap import Tap, Taps, tapped
from spikecl.networks.trace import Recording, Trace, run_cells
from spikecl.neurons import State


class Output(NamedTuple):
    """Result of a pass.

    Args:
        logits: [B, classes].
        state: State after the last step by path.
        steps: What the logits were decoded from, [T, B, classes] ([1, B, classes] where the mean
            over time is taken before the readout).
        statistics: New running statistics of normalisation, by name (training only).
    """

    logits: Tensor
    state: dict[str, State]
    steps: Tensor
    statistics: dict[str, Tensor]


class Network(nn.Module):
    """An ordered list of named layers; the last one is the readout.

    The logits are decoded from the readout's output over time. A linear readout and a time mean
    (also that of populations) commute, so with ``mean_first`` the spikes are averaged before it:
    the same logits from T times fewer rows.

    Nothing is kept on the modules: state goes in and out, factors go through ``taps``.

    Args:
        layers: Layers by name, in order of execution.
        decoder: From the readout's output [T, B, classes] to logits.
        mean_first: Average the readout's input over time where that changes no logit.
        kernels: How layers are computed; an attribute that may be set at any time.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        *,
        decoder: Decoder | None = None,
        mean_first: bool = True,
        kernels: Kernels = AUTO,
    ):
        super().__init__()
        _check_order(layers)
        self.kernels = kernels
        self.layers = nn.ModuleDict(layers)
        self.decoder = MeanDecoder() if decoder is None else decoder
        # what every step looks up; the parameters themselves are asked of the modules each time
        self._plan = tuple(layers.items())
        self._synapses = dict(_synapses(layers))
        self._keys = tuple(
            (f"{path}.{key}", synapse, key)
            for path, synapse in self._synapses.items()
            for key, _ in synapse.named_parameters()
        )
        self._direct = tuple(
            f"{name}.{key}" for name, layer in layers.items() for key in layer.named_direct()
        )
        last = self._plan[-1][1]
        linear = isinstance(self.decoder, MeanDecoder | PopulationDecoder)
        self.mean_first = mean_first and linear and _commutes(last)
        cells = [layer.neuron for layer in layers.values() if layer.neuron is not None]
        self.is_spiking = any(c.is_spiking for c in cells)
        self.is_random = any(c.neuron.random for c in cells)
        drops = [s for layer in layers.values() for s in layer.stages() if isinstance(s, Dropout)]
        self.draws = self.is_random or any(drop.p for drop in drops)
        sent = {source for layer in layers.values() for source in layer.inputs}
        self._added = {s for layer in layers.values() for s in layer.currents} - sent
        self._memory = any(layer.has_memory for layer in layers.values())

    @property
    def synapses(self) -> Mapping[str, Synapse]:
        """Synapses by path, in order: the layer's name, or ``layer.recurrent``."""
        return self._synapses

    def weights(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters by ``path.parameter``: synapses first, in order.

        Those with ``requires_grad=False`` are frozen: a run leaves them as they are.
        """
        found = {name: getattr(synapse, key) for name, synapse, key in self._keys}
        if self._direct:
            for name, layer in self._plan:
                for key, parameter in layer.named_direct().items():
                    found[f"{name}.{key}"] = parameter
        return found

    def statistics(self) -> Mapping[str, Tensor]:
        """Return the running statistics of normalisation by name."""
        return {
            f"{name}.norm.{key}": buffer
            for name, layer in self._plan
            if layer.norm is not None
            for key, buffer in layer.norm.named_buffers()
        }

    @torch.no_grad()
    def set_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Take over parameters and running statistics by name; all must be there."""
        for name, own in {**self.weights(), **self.statistics()}.items():
            own.copy_(values[name])

    @torch.no_grad()
    def set_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Take over running statistics that a pass returned."""
        own = self.statistics()
        for name, value in statistics.items():
            own[name].copy_(value)

    def forward(
        self,
        x: Tensor,
        state: Mapping[str, State] | None = None,
        *,
        taps: dict[str, Tap] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        training: bool = False,
        generator: torch.Generator | None = None,
        trace: Trace | None = None,
        held: dict[str, Tensor] | None = None,
    ) -> Output:
        """Run the network.

        Args:
            x: Input [T, B, *features].
            state: State by path; what is missing starts from rest.
            taps: Filled with a :class:`Tap` per synapse. The weights are then taken as constants:
                gradients of the currents are what is wanted.
            weights: Effective parameters by name to use in place of the network's own.
            training: Drop units, and normalise by the statistics of the batch.
            generator: Where dropout, noise and escape firing draw from.
            trace: Filled with what happens at every step (see :meth:`record`).
            held: What dropout drew, by path: filled in, or taken from an earlier part of the same
                samples.
        """
        use: Mapping[str, Tensor] = self.weights() if weights is None else weights
        self._check(x, state, use)
        if isinstance(taps, Taps) and self._direct:
            taps.direct.update({n: use[n].detach().requires_grad_() for n in self._direct})
            use = {**use, **taps.direct}
        if not self._memory and is_static(x) and self.mean_first and trace is None:
            x = x[:1]  # units without memory give the same answer at every step
        held = {} if held is None else held
        run = Pass(use, dict(state or {}), training, generator, self.kernels, held)
        size = self.kernels.steps
        if not 0 < size < len(x) or training or taps is not None or trace is not None:
            current = self._steps(x, run, taps, trace)
        else:
            current = self._in_parts(torch.split(x, size), run)
        return Output(self.decode(current), run.after, current, run.statistics)

    def decode(self, steps: Tensor) -> Tensor:
        """Return logits of the readout's output."""
        return _mean(steps) if isinstance(self.decoder, MeanDecoder) else self.decoder(steps)

    def _steps(
        self, x: Tensor, run: Pass, taps: dict[str, Tap] | None = None, trace: Trace | None = None
    ) -> Tensor:
        """Return the readout's output, layer by layer, each over all steps."""
        activity, paths = {"input": x}, taps.paths if isinstance(taps, Taps) else ALL
        added: dict[str, Tensor] = {}  # currents of shortcuts, for their own synapse's error
        for name, layer in self._plan:
            h = _sum([activity[source] for source in layer.inputs])
            for key, stage in layer.before.items():
                h = stage(h, f"{name}.{key}", run)
            last = layer is self._plan[-1][1]
            if last and self.mean_first:
                h = _mean(h)[None]
            apart = paths.parted(last=last) and (layer.neuron is not None or name in self._added)
            current, through = _drive(name, layer, h, run, taps, apart=apart)
            for source in layer.currents:
                felt, own = activity[source], added.get(source)
                if through is not None:
                    through = through + felt
                    current = current + (felt.detach() if own is None else own)
                else:
                    current = current + (felt if own is None else own + (felt - felt.detach()))
            if layer.neuron is not None:
                current = _fire(name, layer, current, through, run, taps, trace)
            elif through is not None:
                added[name], current = current, through
            activity[name] = paths.choose(current)
            if paths.space == "none" and layer.neuron is not None and not last:
                activity[name] = current.detach()
        return activity[name]

    def _in_parts(self, parts: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the same from parts in time, one after the other: the state goes along."""
        outputs: list[Tensor] = []
        steps = sum(map(len, parts))
        for part in parts:
            made = self._steps(part, run)
            run.state = {**run.state, **run.after}
            if self.mean_first:
                made = made * (len(part) / steps)
                outputs = [outputs[0] + made if outputs else made]
            else:
                outputs.append(made)
        return torch.cat(outputs)

    def _check(
        self, x: Tensor, state: Mapping[str, State] | None, use: Mapping[str, Tensor]
    ) -> None:
        """Refuse input that no layer could take, state of another network, and mixed devices."""
        weight = next(iter(use.values()))
        if x.dim() < 3 or not x.shape[0]:
            raise UsageError(
                f"{_described(x)}; it must be [T, B, *features] with at least one step"
            )
        if x.dtype != weight.dtype or x.device != weight.device:
            raise UsageError(
                f"{_described(x)}; the network's weights are {weight.dtype} on {weight.device}; "
                "convert one"
            )
        for name, each in use.items():
            if each.device != weight.device:
                raise UsageError(
                    f"'{name}' is on {each.device}, other weights are on {weight.device}; move the "
                    "whole network: network.to(device)"
                )
        for name, layer in self._plan:
            if self.layers[name] is not layer or layer.synapse is not self._synapses[name]:
                raise UsageError(
                    f"layer '{name}' was replaced after the network was built; build a new Network"
                )
        if state:
            known = {f"{n}{tail}" for n, layer in self._plan for tail in ("", *_tails(layer))}
            for path in state:
                if path not in known:
                    raise UsageError(
                        f"state for '{path}', which does not exist{suggest(path, known)}"
                    )

    @torch.no_grad()
    def record(
        self,
        x: Tensor,
        *,
        layers: Sequence[str] | None = None,
        variables: Sequence[str] | None = None,
        state: Mapping[str, State] | None = None,
        generator: torch.Generator | None = None,
    ) -> Recording:
        """Run the network and return what its neurons did at every step.

        Args:
            x: Input [T, B, *features].
            layers: Layers to watch; by default all that have neurons.
            variables: ``spikes`` (the output), ``current`` (the input,
                without what comes from the layer itself) or fields of the neuron's
                state, such as ``v`` (after the reset); by default the output and all fields.
            state: State by path to start from.
            generator: Where noise and escape firing draw from.

        Raises:
            UsageError: A layer without neurons, or a variable that its neurons do not have.

        Example:
            >>> from spikecl.networks import SpikingMlp
            >>> network = SpikingMlp(hidden=(8,)).build((4,), 2)
            >>> network.record(torch.zeros(5, 3, 4))["hidden1"]["v"].shape
            (5, 3, 8)
        """
        known = [name for name, layer in self._plan if layer.neuron is not None]
        for name in layers or ():
            if name not in known:
                raise UsageError(f"no layer '{name}' with neurons to record{suggest(name, known)}")
        trace = Trace(known if layers is None else layers, variables)
        self(x, state, generator=generator, trace=trace)
        arrays = {
            name: {variable: t.cpu().numpy() for variable, t in found.items()}
            for name, found in trace.found.items()
        }
        return Recording(arrays)


def _described(x: Tensor) -> str:
    return f"input has shape {tuple(x.shape)}, {x.dtype}, on {x.device}"


def _tails(layer: Layer) -> tuple[str, ...]:
    return tuple(f".{key}" for key in layer.before)


def _check_order(layers: Mapping[str, Layer]) -> None:
    known = {"input"}
    for name, layer in layers.items():
        if name == "input" or "/" in name:
            raise UsageError(
                f"a layer cannot be called '{name}'; 'input' is taken, '/' not allowed"
            )
        if missing := {*layer.inputs, *layer.currents} - known:
            raise UsageError(
                f"layer '{name}' listens to {sorted(missing)}, which do not come before it; "
                f"known: {sorted(known)}"
            )
        known.add(name)


def _synapses(layers: Mapping[str, Layer]) -> list[tuple[str, Synapse]]:
    found: list[tuple[str, Synapse]] = []
    for name, layer in layers.items():
        found.append((name, layer.synapse))
        if layer.recurrent is not None:
            found.append((f"{name}.recurrent", layer.recurrent))
    return found


def _commutes(layer: Layer) -> bool:
    """Whether a layer is linear and without memory behind its synapse's input."""
    return layer.neuron is None and layer.norm is None and not layer.currents


def _sum(parts: list[Tensor]) -> Tensor:
    h = parts[0]
    for other in parts[1:]:
        h = h + other if h.shape == other.shape else h.flatten(2) + other.flatten(2)
    return h


def _mean(x: Tensor) -> Tensor:
    """Mean over time; of one step, the step."""
    return x[0] if x.shape[0] == 1 else x.mean(0)


def _drive(
    name: str, layer: Layer, x: Tensor, run: Pass, taps: dict[str, Tap] | None, *, apart: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the current [T, B, ...] of a layer's synapse, all steps in one product.

    A constant input (stride 0 in time) needs one step's rows; so does its gradient. Where the
    error that is passed on differs from the synapse's own, the current comes twice.
    """
    paths = taps.paths if isinstance(taps, Taps) else ALL
    steps, static = x.shape[0], is_static(x) and not (paths.stepwise and taps is not None)
    synapse = layer.synapse
    rows = synapse.rows(x[0] if static else x.flatten(0, 1))
    if rows.shape[1] != (size := synapse.inputs):
        raise UsageError(
            f"layer '{name}' takes {size} inputs (or channels), got {tuple(x.shape[2:])} from "
            f"{', '.join(layer.inputs)}"
        )
    weight, bias = _parameters(name, synapse, run)
    if taps is not None:
        weight, bias = weight.detach(), bias if bias is None else bias.detach()
    held = layer.inputs == ("input",) and not layer.before
    passing = held or (taps is None and not torch.is_grad_enabled())
    kept = synapse.keep(rows, run.kernels, passing=passing)
    back = paths.feedback.get(name)
    if taps is None or (back is None and not apart):
        current = synapse.product(rows, kept, weight, bias, run.kernels)
        passed = current
    else:
        current = synapse.product(rows.detach(), kept, weight, bias, run.kernels)
        passed = turned(rows, current.detach(), synapse, weight if back is None else back)
        current = current if apart else passed
    if taps is not None:
        taps[name], current = tapped(kept, current)

    def shaped(found: Tensor, run: Pass) -> Tensor:
        if layer.norm is not None:
            found = layer.norm(found, f"{name}.norm", run)
        if static:
            return found.expand(steps, *found.shape)
        return found.view(steps, -1, *found.shape[1:])

    if not apart:
        return shaped(current, run), None
    fixed = {key: weight.detach() for key, weight in run.weights.items()} if layer.norm else {}
    return shaped(current, run), shaped(passed, replace(run, weights=fixed))


def _parameters(path: str, synapse: Synapse, run: Pass) -> tuple[Tensor, Tensor | None]:
    if not synapse.maps:
        return run.weights[f"{path}.weight"], run.weights.get(f"{path}.bias")
    own = own_parameters(path, synapse, run.weights)
    return synapse.effective(own), own.get("bias")


def own_parameters(path: str, synapse: Synapse, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a synapse by their own names."""
    return {key: weights[f"{path}.{key}"] for key, _ in synapse.named_parameters()}


def _fire(
    name: str,
    layer: Layer,
    current: Tensor,
    through: Tensor | None,
    run: Pass,
    taps: dict[str, Tap] | None,
    trace: Trace | None,
) -> Tensor:
    """Return the output of a layer's neurons; tap the synapse onto themselves."""
    cells, recurrence, path = layer.neuron, None, f"{name}.recurrent"
    assert cells is not None
    paths = taps.paths if isinstance(taps, Taps) else ALL
    neuron = cells.bound({k: run.weights[f"{name}.neuron.{k}"] for k in cells.ranges})
    if paths.reset is not None and getattr(neuron, "detach_reset", None) is paths.reset:
        neuron = neuron.bind({"detach_reset": not paths.reset})
    before, felt = run.state.get(name), None
    if layer.recurrent is not None:
        weight, bias = _parameters(path, layer.recurrent, run)
        if taps is not None:
            weight, bias = weight.detach(), bias if bias is None else bias.detach()
            rows = current.flatten(0, 1)  # of an expanded view no gradient per step can be asked
            current, felt = rows.view(current.shape), paths.feedback.get(path)
        recurrence = Recurrence(weight, bias)
    out, after = run_cells(
        name,
        current,
        before,
        neuron,
        recurrence=recurrence,
        generator=run.generator,
        trace=trace,
        kernels=run.kernels,
        ways=Ways(paths.time == "instant", paths.recurrent, felt, through),
    )
    if after != ():
        run.after[name] = after
    if recurrence is not None and taps is not None:
        first = torch.zeros_like(out[:1]) if before is None else before.spikes[None]
        sent = torch.cat([first, out[:-1]]).detach()
        assert layer.recurrent is not None
        kept = layer.recurrent.keep(sent.flatten(0, 1).flatten(1), run.kernels)
        taps[path], _ = tapped(kept, rows)
    if isinstance(taps, Taps):
        taps.fired[name], taps.driven[name] = out, current.detach()
    return out


def count_parameters(network: Network) -> int:
    """Return the number of parameters, frozen ones too."""
    return sum(p.numel() for p in network.weights().values())


@torch.no_grad()
def firing_rates(
    network: Network, x: Tensor, *, generator: torch.Generator | None = None
) -> dict[str, float]:
    """Return the mean activity of each layer's presynaptic rows for an input [T, B, *features]."""
    taps: dict[str, Tap] = {}
    with torch.enable_grad():
        network(x, taps=taps, generator=generator)
    return {name: float(tap.rows.mean()) for name, tap in taps.items()}
