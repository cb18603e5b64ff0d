"""Runs with other kernels: what is refused, what is recorded, and that the results are the same."""

import json
import os
import signal
import sys

import numpy as np
import pytest
import torch

import spikecl
from spikecl import cli
from spikecl.continual import Finetune, Hlop
from spikecl.encoding import Direct, Encoder, Rate
from spikecl.errors import Interrupted, KernelError, RunError
from spikecl.experiments import parse_config, run, run_config
from spikecl.kernels import Kernels, compiler, events, product, scans
from spikecl.learner import Heads, Learner, TrainPlan
from spikecl.networks import SpikingMlp, SpikingRecurrentNet
from spikecl.neurons import LIF
from spikecl.optim import Sgd
from spikecl.records import find_runs
from spikecl.seeds import Seeds
from spikecl.streams import CLASS_IL, TASK_IL
from spikecl.trainers import Bptt

# the small networks here start silent: what they compute is the question, not what they learn
pytestmark = pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")

COMPILES = compiler.compiler() is not None
needs_compiler = pytest.mark.skipif(not COMPILES, reason="no C compiler here")
CACHES = (
    compiler.compiler, compiler.load, compiler.against, scans._choose, events._library
)  # fmt: skip
FIRING = {"spiking_mlp": {"neuron": {"model": "lif", "beta": 0.6, "v_th": 0.3}}}  # in all layers
FINAL = ("steps.jsonl", "matrix.json", "cost.json", "run.json", "weights/tensors.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 + 30 samples of 4x4 bytes in 6 classes that can be told apart."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 6
    x = (rng.integers(0, 200, (6, 4, 4))[y] + rng.integers(0, 56, (90, 4, 4))).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return str(path)


@pytest.fixture
def make(data):
    """Return a function from changes to a small configuration."""

    def make(**changes):
        table = {
            "data": {"name": data},
            "stream": {"experiences": 2},
            "network": {"hidden": [12, 9]},
            "encoding": {"name": "rate", "steps": 4},
            "train": {"epochs": 2, "batch": 10, "eval_batch": 7},
            "checkpoint": {"every_steps": 2},
        }
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        return parse_config(table)

    return make


@pytest.fixture
def without_compiler(monkeypatch, tmp_path):
    """Return a function that takes the C compiler away."""

    def forget():
        for cached in CACHES:
            cached.cache_clear()

    def take():
        monkeypatch.setenv("CC", "")
        monkeypatch.setenv("SPIKECL_KERNELS", str(tmp_path / "kernels"))
        forget()
        assert compiler.against() is not None

    yield take
    monkeypatch.undo()
    forget()


# The command line


@pytest.fixture
def command(capsys, monkeypatch, tmp_path, data):
    """Return a function that runs the command in this process: (exit code, stdout, stderr)."""
    (tmp_path / "c.toml").write_text(
        f'[data]\nname = "{data}"\n[stream]\nexperiences = 2\n[network]\nhidden = [6]\n'
        "[encoding]\nsteps = 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def call(*changes):
        sets = [word for change in changes for word in ("--set", change)]
        monkeypatch.setattr(sys, "argv", ["spikecl", "run", "c.toml", "--quiet", *sets])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def refused(result, tmp_path, *words):
    """A refusal: exit code 2, one line on standard error, and nothing written."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("spikecl: "), err
    for word in words:
        assert word in err
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_triton_is_refused_on_a_cpu_before_anything_is_written(command, tmp_path):
    words = ("kernel 'triton' cannot run here", "the input is on cpu", "reference, fused")
    refused(command("kernels.scan=triton"), tmp_path, *words)


def test_a_kernel_that_does_not_fit_the_neuron_is_refused(command, tmp_path):
    words = ("kernel 'fused' cannot run here", "LIF draws random numbers", "these can: reference")
    refused(command("kernels.scan=fused", "network.neuron.noise=0.1"), tmp_path, *words)


def test_compiled_is_refused_without_a_compiler(command, tmp_path, without_compiler):
    without_compiler()
    words = ("'compiled' cannot run here", "no C compiler", "these can: reference, fused")
    refused(command("kernels.scan=compiled"), tmp_path, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("kernels.scan=warp", ("kernels.scan", "'warp'", "'reference'", "'compiled'", "'triton'")),
        ("kernels.synapse=sparse", ("kernels.synapse", "'sparse'", "'events'", "'dense'")),
        ("kernels.memory=low", ("kernels.memory", "'low'", "'lean'")),
        ("kernels.precision=half", ("kernels.precision", "'half'", "'bfloat16'")),
        ("kernels.chunk=-1", ("kernels.chunk", "-1")),
        ("kernels.chunk=2.5", ("kernels.chunk", "2.5")),
        ("kernels.scam=fused", ("kernels", "scam", "did you mean 'scan'")),
        ("kernel.scan=fused", ("kernel", "did you mean 'kernels'")),
    ],
)
def test_options_that_do_not_exist_are_named_with_those_that_do(command, tmp_path, change, words):
    refused(command(change), tmp_path, *words)


def test_options_that_exist_are_taken(command, tmp_path):
    changes = ("kernels.scan=fused", "kernels.synapse=events", "kernels.memory=lean")
    assert command(*changes, "train.epochs=1", "kernels.chunk=3", "kernels.steps=2")[0] == 0
    (record,) = find_runs(tmp_path / "runs")
    expected = {
        "scan": "fused", "synapse": "events", "precision": "full", "memory": "lean",
        "chunk": 3, "steps": 2,
    }  # fmt: skip
    assert record.run["config"]["kernels"] == expected
    assert record.run["identity"]["kernels"] == expected
    assert record.run["environment"]["kernels"] == {"hidden1": "fused", "readout": "linear"}


# From Python


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_run_from_python_is_refused_too(make, data, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    stream = spikecl.permuted(spikecl.load_data(data), experiences=2)
    triton = Kernels(scan="triton")
    for call in (
        lambda: run_config(make(kernels={"scan": "triton"}), runs_dir=tmp_path / "runs"),
        lambda: run(stream, SpikingMlp(hidden=(6,)), kernels=triton, runs_dir=tmp_path / "runs"),
    ):
        with pytest.raises(KernelError, match="'triton' cannot run here") as caught:
            call()
        assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_kernels_are_part_of_what_a_run_is(make, data, tmp_path):
    """Other kernels round otherwise, so they are another run."""
    stream = spikecl.permuted(spikecl.load_data(data), experiences=2)
    plan = TrainPlan(epochs=1, batch=10)

    def name(kernels):
        network = SpikingMlp(hidden=(6,))
        result = run(stream, network, plan=plan, kernels=kernels, runs_dir=tmp_path / "runs")
        return result.path.name

    names = [name(k) for k in (None, Kernels(), Kernels(synapse="events"), Kernels(scan="fused"))]
    assert names[0] == names[1]
    assert len(set(names)) == 3


# What is recorded


def environment(make, tmp_path, **changes):
    return run_config(make(**changes), runs_dir=tmp_path / "runs").record.run["environment"]


@needs_compiler
def test_kernels_and_products_are_recorded(make, tmp_path):
    found = environment(make, tmp_path)
    both = {"hidden1": "compiled", "hidden2": "compiled", "readout": "linear"}
    assert found["kernels"] == both
    assert found["products"] == "compiled"
    assert found["fallbacks"] == []
    asked = environment(make, tmp_path, kernels={"scan": "reference"})
    assert set(asked["kernels"].values()) == {"reference", "linear"}
    assert asked["products"] == "compiled"


@needs_compiler
@pytest.mark.parametrize("why", ["none is named", "the folder cannot be made"])
def test_a_run_without_a_compiler_says_so(make, tmp_path, without_compiler, monkeypatch, why):
    if why == "none is named":
        without_compiler()
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SPIKECL_KERNELS", str(tmp_path / "file" / "kernels"))
        for cached in CACHES:
            cached.cache_clear()
    found = environment(make, tmp_path)
    assert found["kernels"] == {"hidden1": "fused", "hidden2": "fused", "readout": "linear"}
    assert found["products"] == "torch"
    reason = "no C compiler" if why == "none is named" else "compiled kernels cannot be kept in"
    assert len(found["fallbacks"]) == 2
    for layer, text in zip(("hidden1", "hidden2"), found["fallbacks"]):
        assert text.startswith(f"{layer}: ")
        assert f"not compiled: {reason}" in text


@needs_compiler
def test_a_run_is_not_resumed_where_its_last_bits_would_differ(
    make, tmp_path, stop_at, without_compiler
):
    stop_at(9)
    with pytest.raises(Interrupted):
        run_config(make(), runs_dir=tmp_path)
    stop_at(None)
    without_compiler()
    with pytest.raises(RunError, match="cannot be resumed identically") as caught:
        run_config(make(), runs_dir=tmp_path)
    text = str(caught.value)
    assert "products was 'compiled', is 'torch'" in text
    assert "kernels was" in text


# The same results


class Double(Encoder):
    """An encoder's output in float64, so that nothing tips."""

    def __init__(self, inner):
        self.inner, self.steps, self.random = inner, inner.steps, inner.random

    def encode(self, x, statistics, generator):
        return self.inner.encode(x, statistics, generator).double()


SPECS = {
    "mlp": SpikingMlp(hidden=(12, 9), neuron=LIF(beta=0.6, v_th=0.3), head="multi"),
    "recurrent": SpikingRecurrentNet(hidden=(10,), neuron=LIF(beta=0.8, v_th=0.4), head="growing"),
    "normed": SpikingMlp(hidden=(12, 9), norm="batch", dropout=0.2, bias=True),
}


def learn(data, name, method, encoder, kernels):
    """Return all that a learner measured, and its weights."""
    spec, all_of_it = SPECS[name], spikecl.load_data(data)
    if spec.head == "single":
        stream = spikecl.permuted(all_of_it, experiences=2)
    else:
        reveal = TASK_IL if spec.head == "multi" else CLASS_IL
        stream = spikecl.split_classes(all_of_it, experiences=3, reveal=reveal)
    outputs = Heads(spec.head, stream, torch.device("cpu")).outputs
    network = spec.build(stream.input_shape, outputs).double()
    network.kernels = kernels
    learner = Learner(
        stream=stream, network=network, encoder=Double(encoder), trainer=Bptt(), methods=(method,),
        optimiser=Sgd(lr=0.2), plan=TrainPlan(epochs=2, batch=5), seeds=Seeds(4),
        device=torch.device("cpu"), head=spec.head,
    )  # fmt: skip
    rows = [row for tick in learner.ticks() for row in tick.rows]
    return rows, {n: p.detach().clone() for n, p in network.weights().items()}


def numbers(value):
    """Return the numbers of a measured value, which may be a table."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [value] if isinstance(value, float | int) else []


PAIRS = [  # weights that pass through maps cannot be projected
    pytest.param(name, method, id=f"{name}-{type(method).__name__.lower()}")
    for name in SPECS
    for method in (Finetune(), Hlop(rate=0.1))
    if (name, type(method)) != ("recurrent", Hlop)
]


@pytest.mark.parametrize("encoder", [Rate(steps=4), Direct(steps=3)], ids=["rate", "direct"])
@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_a_stream_is_learned_alike_with_events(data, name, method, encoder):
    plain = learn(data, name, method, encoder, Kernels(scan="reference", synapse="dense"))
    accuracies = [row["value"] for row in plain[0] if row["metric"] == "accuracy"]
    assert len(set(accuracies)) > 1
    for kernels in (Kernels(synapse="events"), Kernels(synapse="dense", memory="full")):
        rows, weights = learn(data, name, method, encoder, kernels)
        assert len(rows) == len(plain[0])
        for ours, expected in zip(rows, plain[0], strict=True):
            assert ours == {**expected, "value": ours["value"]}
            measured = numbers(ours["value"])
            assert measured == pytest.approx(numbers(expected["value"]), rel=1e-7, abs=1e-7)
        for key, weight in plain[1].items():
            torch.testing.assert_close(weights[key], weight, rtol=1e-8, atol=1e-9)


def test_the_matrix_is_the_same_in_single_precision(make, tmp_path):
    """A spike may tip where sums are rounded otherwise, and the answer hardly ever."""
    found = [
        run_config(
            make(kernels={"synapse": synapse}, method={"name": "hlop"}, network=FIRING),
            runs_dir=tmp_path / synapse,
        ).matrix
        for synapse in ("dense", "events")
    ]
    known = ~np.isnan(found[0])
    assert (known == ~np.isnan(found[1])).all()
    assert np.abs(found[0] - found[1])[known].max() <= 0.2


# Stopped and resumed


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that stops the learner at its n-th tick from now on."""
    ticks = Learner.ticks
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def arm(number):
        seen = []

        def armed(self):
            for tick in ticks(self):
                if len(seen) == number:
                    os.kill(os.getpid(), signal.SIGTERM)
                seen.append(tick.kind)
                yield tick

        monkeypatch.setattr(Learner, "ticks", armed)
        return seen

    yield arm
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def final(path):
    summary = json.loads((path / "summary.json").read_text())
    del summary["wall_s"], summary["cpu_s"]
    return {name: (path / name).read_bytes() for name in FINAL} | {"summary": summary}


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("synapse", ["events", "auto"])
def test_a_resumed_run_with_events_is_byte_identical(
    make, tmp_path, stop_at, monkeypatch, synapse, batch
):
    """``auto`` takes events here and there: the choice depends on the batch alone."""
    for name, value in (("SMALLEST", 1), ("SEARCH", 0.0), ("TURN", 0.0)):
        monkeypatch.setattr(events, name, value)
    taken, find = [], events.events_of
    monkeypatch.setattr(product, "events_of", lambda rows: taken.append(len(rows)) or find(rows))
    config = make(
        kernels={"synapse": synapse},
        method={"name": "hlop", "hlop": {"rate": 0.1}},
        train={"epochs": 1, "batch": batch},
        network=FIRING,
    )
    seen = stop_at(None)
    expected, total = final(run_config(config, runs_dir=tmp_path / "whole").path), len(seen)
    assert taken
    stops, rng = 0, np.random.default_rng(batch)
    while not (path := tmp_path / "cut").exists() or not list(path.glob("*/summary.json")):
        stop_at(int(rng.integers(2, total // 3)))
        try:
            run_config(config, runs_dir=path)
        except Interrupted:
            stops += 1
            assert stops < 50
    assert stops >= 2
    (path,) = path.iterdir()
    assert final(path) == expected
