"""The command line: parse, build a configuration, one library call.

Exit codes: 0 done, 2 wrong usage or configuration, 1 failed, 75 interrupted and resumable.
"""

from __future__ import annotations

import contextlib
import enum
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from spikecl import screen
from spikecl.errors import Interrupted, RunError, SpikeclError, UsageError
from spikecl.signals import stop_early

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Spiking networks that keep learning without forgetting.",
)
data_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify data sets.")
app.add_typer(data_app, name="data")
hardware_app = typer.Typer(no_args_is_help=True, help="Install and check what runs exports.")
app.add_typer(hardware_app, name="hardware")

RunsDir = Annotated[Path, typer.Option(help="Where run directories are.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with data sets (before SPIKECL_DATA and the cache).")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
LavaPython = Annotated[
    str | None, typer.Option(help="Interpreter that has Lava (before SPIKECL_LAVA_PYTHON).")
]
RUNS = Path("runs")


class Target(enum.StrEnum):
    """What a network is exported to."""

    nir, loihi, netx = "nir", "loihi", "netx"


_RUNS_HELP = "Runs: paths, names, unique prefixes, groups of seeds, or patterns with *."


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of all commands."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Configuration (TOML).")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override: section.key=value.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Run this many seeds, in parallel over cores.")] = 1,
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a configuration; again, show the finished result or go on where it stopped."""
    from spikecl.experiments import load_config, run_config, run_seeds

    checked = load_config(config, set_ or [])
    with screen.progress(quiet or as_json) as show:
        if seeds == 1:
            record = run_config(checked, runs_dir=runs_dir, data_dir=data_dir, show=show).record
        else:
            group = run_seeds(checked, seeds, runs_dir=runs_dir, data_dir=data_dir, show=show)
    if seeds != 1:
        screen.show_group(group.table, group.path, as_json)
    else:
        screen.show_run(record, as_json)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Run: path, name or unique prefix.")],
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Finish an interrupted run."""
    from spikecl.experiments import resume as resume_run
    from spikecl.records import find_run

    with screen.progress(quiet or as_json) as show:
        result = resume_run(find_run(run, runs_dir), data_dir=data_dir, show=show)
    screen.show_run(result.record, as_json)


@app.command("list")
def list_runs(runs_dir: RunsDir = RUNS, as_json: AsJson = False) -> None:
    """List runs with their status and accuracy."""
    from spikecl.records import FORMAT_VERSION, find_runs

    rows: list[dict[str, Any]] = []
    for record in find_runs(runs_dir):
        acc = None
        try:
            info = record.run
            current = info.get("format_version") == FORMAT_VERSION
            status = (
                info.get("status", "damaged") if current else f"format {info.get('format_version')}"
            )
            acc = record.summary["acc"] if record.finished and current else None
        except RunError:
            status = "damaged"
        rows.append({"run": record.id, "status": status, "acc": acc})
    if as_json:
        screen.show_json(rows)
    elif not rows:
        screen.out.print(f"no runs in {runs_dir}; 'spikecl run CONFIG' makes one")
    else:
        screen.show_table(
            [[r["run"], r["status"], screen.percent(r["acc"])] for r in rows],
            ["run", "status", "ACC %"],
        )


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Run: path, name or unique prefix.")],
    runs_dir: RunsDir = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show the result of a run: summary and accuracy matrix."""
    from spikecl.records import find_run

    screen.show_run(find_run(run, runs_dir), as_json)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help=_RUNS_HELP)],
    runs_dir: RunsDir = RUNS,
    figure: Annotated[Path, typer.Option(help="Where the figure goes.")] = Path("compare.png"),
    as_json: AsJson = False,
) -> None:
    """Compare runs: a table, grouped over seeds, and a figure."""
    from spikecl.plots import group_records, plot_comparison
    from spikecl.records import select_runs
    from spikecl.storage import writing

    records = select_runs(runs, runs_dir)
    if as_json:
        screen.show_json([record.summary for record in records])
        return
    screen.show_comparison(group_records(records))
    with writing(figure):
        plot_comparison(records).savefig(figure, dpi=120)
    screen.out.print(f"figure: {figure}", soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help=_RUNS_HELP)],
    runs_dir: RunsDir = RUNS,
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about runs."""
    from spikecl.records import select_runs
    from spikecl.report import write_report

    path = write_report(select_runs(runs, runs_dir), output)
    screen.out.print(f"report: {path}", soft_wrap=True)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List continual-learning methods and what they need."""
    from spikecl.registry import METHODS

    rows = []
    for name in METHODS.names():
        spec = METHODS.get(name)()
        needs = ", ".join(spec.needs.names()) or "nothing"
        summary = (spec.__doc__ or "").strip().splitlines()[0]
        rows.append({"method": name, "needs": needs, "summary": summary})
    screen.show_rows(rows, as_json)


@app.command()
def trainers(as_json: AsJson = False) -> None:
    """List credit-assignment rules: what each is local in, holds, is exact for and needs."""
    from spikecl.registry import TRAINERS

    rows = []
    for name in TRAINERS.names():
        spec = TRAINERS.get(name)
        summary = (spec.__doc__ or "").strip().splitlines()[0]
        traits = spec.traits
        row = {
            "trainer": name,
            "local in time": traits.time,
            "local in space": traits.space,
            "memory": traits.memory,
            "exact": traits.exact,
            "network": traits.network,
        }
        if as_json:
            row |= {"source": traits.source, "needs": ", ".join(spec.needs.names())}
            row["summary"] = summary
        rows.append(row)
    screen.show_rows(rows, as_json)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Run: path, name or unique prefix.")],
    to: Annotated[Target, typer.Option(help="nir, loihi or netx.")] = Target.nir,
    output: Annotated[Path | None, typer.Option(help="File (default: in the run).")] = None,
    weight_bits: Annotated[int, typer.Option(help="Bits of a dense weight, 1 to 8.")] = 8,
    message_bits: Annotated[int, typer.Option(help="Bits of a graded input, 2 to 24.")] = 8,
    convolutions: Annotated[str, typer.Option(help="auto, shared or unrolled.")] = "auto",
    calibrate: Annotated[int, typer.Option(help="Training samples for scales; 0: none.")] = 256,
    search: Annotated[bool, typer.Option("--search", help="Try scales, keep the best.")] = False,
    fine_tune: Annotated[int, typer.Option(help="Epochs of training on integers.")] = 0,
    chip: Annotated[str, typer.Option(help="loihi1 or loihi2.")] = "loihi2",
    chips: Annotated[int, typer.Option(help="How many chips.")] = 1,
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained network to a file: NIR, a Loihi program, or lava-dl's .net."""
    from spikecl.experiments.export import SUFFIXES, chip_named, options_of
    from spikecl.experiments.export import export as write
    from spikecl.experiments.fine_tune import fine_tuned
    from spikecl.records import find_run

    if fine_tune and to is Target.nir:
        raise UsageError(
            "--fine-tune trains on integers, which a .nir file has not; add --to loihi"
        )
    options = options_of(weight_bits, message_bits, convolutions, search=search, to=to.value)
    record, limits = find_run(run, runs_dir), chip_named(chip)
    choice: dict[str, Any] = {"options": options, "calibrate": calibrate, "data_dir": data_dir}
    fit: dict[str, Any] = {"chip": limits, "chips": chips}
    if fine_tune:
        tuned = fine_tuned(record, epochs=fine_tune, **choice)
        output = output or record.path / "export" / f"{record.id}-tuned{SUFFIXES[to]}"
        made = write(
            tuned.network, output, to=to.value, input_shape=tuned.shape, meta=tuned.meta, **fit
        )
    else:
        made = write(record, output, to=to.value, **choice, **fit)
    screen.show_export(made, as_json)


@app.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="Loihi program (.h5) or NIR graph (.nir).")],
    backend: Annotated[str, typer.Option(help="torch, emulator, lava or brian2.")] = "emulator",
    compare: Annotated[
        str | None, typer.Option(help="Backends with commas: where they first differ.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data: Annotated[str | None, typer.Option(help="Another data set than the file's.")] = None,
    sets: Annotated[str | None, typer.Option(help="Test sets, with commas.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each set.")] = None,
    states: Annotated[str, typer.Option(help="Keep u, v or u,v.")] = "",
    output: Annotated[Path | None, typer.Option(help="Records of first samples (.npz).")] = None,
    config: Annotated[str, typer.Option(help="Lava's run configuration.")] = "Loihi2SimCfg",
    arithmetic: Annotated[str, typer.Option(help="fixed_pt or floating_pt.")] = "fixed_pt",
    lava_python: LavaPython = None,
    limit: Annotated[float, typer.Option(help="Seconds for a batch in Lava.")] = 600.0,
    target: Annotated[
        str | None, typer.Option(help="Brian2's: numpy (default), cython, cpp_standalone.")
    ] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run an exported network on its test data: accuracy, operations, energy (estimated)."""
    from spikecl.experiments.backends import Lava
    from spikecl.experiments.simulate import npz, save
    from spikecl.experiments.simulate import simulate as run_file

    output = output and npz(output)
    with _stoppable(), screen.counting(quiet or as_json) as show:
        made = run_file(
            file,
            [backend] if compare is None else [word.strip() for word in compare.split(",")],
            sets=_words(sets) if sets else None,
            samples=samples,
            data=data,
            data_dir=data_dir,
            device=device,
            states=_words(states),
            lava_options=Lava(config, arithmetic, lava_python, limit),
            target=target,
            keep=output is not None,
            show=show,
        )
    screen.show_simulation(made, as_json)  # before writing: a full disk takes no answer away
    if made.fell_back:
        screen.err.print(f"brian2: there is no compiler for {target} that works; it ran with numpy")
    save(made, output)


@hardware_app.command("setup")
def hardware_setup() -> None:
    """Install Lava beside this environment (once), so that programs run on it."""
    from spikecl_hardware.loihi.lava import setup

    from spikecl.interop.boundary import hardware_errors

    with hardware_errors():
        screen.out.print(str(setup()), soft_wrap=True)


@hardware_app.command("doctor")
def hardware_doctor(lava_python: LavaPython = None) -> None:
    """Run a network with a known answer on every backend; the last line says ok or what is not."""
    from spikecl_hardware.doctor import main as diagnose

    raise typer.Exit(diagnose(lava_python))


@data_app.command("list")
def data_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List known data sets and where they were found (--json: with paths and licences)."""
    import dataclasses

    from spikecl.data import catalogue_rows

    rows = [dataclasses.asdict(row) for row in catalogue_rows(data_dir)]
    if not as_json:  # what fits the width of a terminal
        rows = [{k: v for k, v in row.items() if k != "licence"} for row in rows]
        rows = [{**row, "found": row["found"] and row["found"].name} for row in rows]
    screen.show_rows([{k: screen.plain(v) for k, v in row.items()} for row in rows], as_json)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="Data set.")], data_dir: DataDir = None
) -> None:
    """Download a data set to the user's cache unless it is there."""
    from spikecl.data import fetch

    screen.out.print(f"{name}: {fetch(name, data_dir=data_dir).found}", soft_wrap=True)


@data_app.command("verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="Data set.")], data_dir: DataDir = None
) -> None:
    """Check a data set against its published checksum."""
    from spikecl.data import verify

    row = verify(name, data_dir=data_dir)
    screen.out.print(row.message, soft_wrap=True)
    if row.ok is False:
        raise typer.Exit(1)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let signals end the children of a command, and its temporary folders, before its own end."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped; nothing was written")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point: run a command and end with its exit code."""
    stop_early("spikecl: stopped before there was anything to save\n")
    try:
        app(prog_name="spikecl")
    except Interrupted as stopped:
        screen.err.print(f"spikecl: {stopped}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(stopped.exit_code)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        known = isinstance(error, SpikeclError)
        text = str(error) if known else f"{type(error).__name__}: {error}; --debug shows where"
        line = " ".join(text.split())
        screen.err.print(f"spikecl: {line}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code if isinstance(error, SpikeclError) else 1)


if __name__ == "__main__":
    main()
