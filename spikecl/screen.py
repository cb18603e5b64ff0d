"""What the command line shows: tables, records, comparisons and bars of progress."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from spikecl.experiments.progress import Progress, Show
    from spikecl.plots import Group
    from spikecl.records import RunRecord

out, err = Console(), Console(stderr=True)
if not out.is_terminal:
    out = Console(width=1000)  # a file or pipe has no edge to cut tables at

FEW = 14  # rows or columns of an accuracy matrix that are shown whole
METRICS = {"acc": "ACC %", "bwt": "BWT %", "fwt": "FWT %", "learning_accuracy": "learning %"}


def show_run(record: RunRecord, as_json: bool) -> None:
    """Show a run: its figures, its accuracy matrix, what tasks cost, and where it is."""
    if as_json:
        show_json(record.summary)
        return
    summary = record.summary
    names = [[key, str(summary[key])] for key in ("stream", "method", "network", "trainer", "seed")]
    numbers = [[label, percent(summary[key])] for key, label in METRICS.items()]
    show_table([*names, *numbers], [record.id, ""])
    events, sets = record.matrix_names()
    matrix = record.matrix()
    rows = [[event, *map(percent, row)] for event, row in zip(events, matrix, strict=True)]
    show_table(_ends(rows), _ends_of(["accuracy %", *sets]))
    if tasks := record.tasks():
        cells = [["–" if v is None else str(_short(v)) for v in row.values()] for row in tasks]
        show_table(_ends(cells), list(tasks[0]))
        out.print(record.cost["tasks"]["note"], soft_wrap=True)
        for table, told in record.cost["tasks"]["tables"].items():
            out.print(f"energy, {table}: an estimate; {told['source']}", soft_wrap=True)
    if "geometry" in str(summary["method"]).split("+"):
        _show_geometry(record)
    out.print(f"record: {record.path}", soft_wrap=True)


def _show_geometry(record: RunRecord) -> None:
    """Show what method ``geometry`` saw at the end."""
    from spikecl.plots import geometry_tables, has_geometry

    for rows in geometry_tables(record) if has_geometry(record) else ():
        if rows:
            show_rows([{k: _short(v) for k, v in row.items()} for row in rows], False)


def show_export(made: Any, as_json: bool) -> None:
    """Show a file that was written, its layers, and where they lie on the chip."""
    from spikecl.experiments.export import layer_rows

    rows = layer_rows(made)
    if as_json:
        show_json({"path": str(made.path), "layers": rows})
        return
    if rows:
        show_rows([{k: _short(v) for k, v in row.items()} for row in rows], False)
    if made.program is not None:
        p = made.program
        out.print(
            f"{p.steps} steps for each sample, the answer {p.latency} later: each synapse sends "
            "what it summed one step before",
            soft_wrap=True,
        )
    if made.graph is not None and made.graph != made.path:
        out.print(f"graph: {made.graph}", soft_wrap=True)
    out.print(f"file: {made.path}", soft_wrap=True)


def show_simulation(made: Any, as_json: bool) -> None:
    """Show accuracies, where backends differ, and what a sample costs."""
    if as_json:
        show_json(made.as_dict())
        return
    show_rows([{k: _short(v) for k, v in row.items()} for row in made.rows()], False)
    for name, report_ in made.comparisons.items():
        out.print(f"{name}, first samples, against {report_.outputs[0].backend}")
        show_rows([{k: _short(v) for k, v in row.items()} for row in report_.rows()], False)
    for row in made.energies():
        out.print(f"estimate: {row['total nJ']:.4g} nJ a sample, {row['table']}", soft_wrap=True)
        out.print(f"  {row['source']}", soft_wrap=True, style="dim")


def show_group(table: dict[str, Any], path: Path, as_json: bool) -> None:
    """Show what seeds came to: means, deviations, intervals."""
    if as_json:
        show_json(table)
        return
    rows = [
        [
            metric,
            percent(v["mean"]),
            percent(v["sd"]),
            f"{percent(v['low'])} … {percent(v['high'])}",
        ]
        for metric, v in table["metrics"].items()
    ]
    title = f"{table['stream']} {table['method']} (n = {len(table['seeds'])})"
    show_table(rows, [title, "mean %", "sd", "95 % interval"])
    out.print(f"record: {path}", soft_wrap=True)


def show_comparison(groups: Sequence[Group]) -> None:
    """Show groups of runs below each other."""
    rows = []
    for group in groups:
        cells = []
        for metric in METRICS:
            stats = group.statistics(metric)
            spread = f" ± {percent(stats.sd)}" if stats and stats.sd is not None else ""
            cells.append(f"{percent(stats.mean if stats else None)}{spread}")
        rows.append([group.summaries[0]["stream"], group.label, str(len(group.records)), *cells])
    show_table(rows, ["stream", "method", "n", *METRICS.values()])


def show_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Show rows with the same keys; there is one at least."""
    if as_json:
        show_json(rows)
    else:
        show_table(
            [["–" if v is None else str(v) for v in row.values()] for row in rows], list(rows[0])
        )


def show_table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Show cells below their columns."""
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    out.print()


def show_json(value: object) -> None:
    """Write a value to standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Show | None]:
    """Show a bar per run on standard error: event, accuracy so far, time left."""
    if quiet or not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Bars(*columns, TextColumn("{task.fields[note]}"), console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(now: Progress) -> None:
            if now.run not in tasks:
                tasks[now.run] = bars.add_task(now.run, total=1.0, note="")
            note = f"event {now.event}/{now.events}"
            if now.accuracy is not None:
                note += f", accuracy so far {percent(now.accuracy)} %"
            if now.seconds_left is not None:
                note += f", {now.seconds_left:.0f} s left"
            bars.update(tasks[now.run], completed=now.fraction, note=note)

        yield show


@contextlib.contextmanager
def counting(quiet: bool) -> Iterator[Any]:
    """Show a bar per backend and test set on standard error."""
    if quiet or not err.is_terminal:
        yield None
        return
    from rich.progress import Progress as Bars

    with Bars(console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield show


def _ends(rows: list[list[str]]) -> list[list[str]]:
    """Return what a screen has room for: of a long stream the first and last events and sets."""
    shown = [_ends_of(row) for row in rows]
    if len(shown) <= FEW:
        return shown
    return [*shown[: FEW // 2], ["…"] * len(shown[0]), *shown[-FEW // 2 + 1 :]]


def _ends_of(row: list[str]) -> list[str]:
    return row if len(row) <= FEW else [*row[: FEW // 2], "…", *row[-FEW // 2 + 1 :]]


def percent(value: float | None) -> str:
    """Return a share as a percentage, and a dash for what is not known."""
    return "–" if value is None or value != value else f"{100 * value:.2f}"


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def plain(value: object) -> object:
    """Return a value as JSON and tables take it."""
    if value is None or isinstance(value, int | float | str | bool | dict):
        return value
    return list(value) if isinstance(value, tuple) else str(value)
