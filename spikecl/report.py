"""One self-contained HTML page about runs.

Figures are inside the page; it loads nothing, from the network or from disk.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from spikecl.errors import RunError, UsageError
from spikecl.plots import (
    Group,
    geometry_tables,
    group_records,
    has_geometry,
    importance_map,
    plot_comparison,
    plot_distribution,
    plot_geometry,
    plot_learning_rate,
    plot_run,
    plot_synapses,
)
from spikecl.plots.style import new_figure, thinned
from spikecl.records import RunRecord
from spikecl.storage import read_json, writing


class Column(NamedTuple):
    """A column of the table: key in a summary, heading, unit, factor, digits."""

    key: str
    heading: str
    unit: str
    scale: float
    digits: int


class Cell(NamedTuple):
    """Mean, standard deviation and 95 % interval of one scalar in one group, as text."""

    mean: str
    sd: str
    interval: str


MOST = 4  # parameters, or layers, of a run in a figure, and variables of each
Panel = tuple[Callable[..., object], *tuple[str, ...]]  # what draws, and of what

COLUMNS = (
    Column("acc", "ACC", "%", 100, 2),
    Column("bwt", "BWT", "%", 100, 2),
    Column("fwt", "FWT", "%", 100, 2),
    Column("forgetting", "forgetting", "%", 100, 2),
    Column("learning_accuracy", "learning accuracy", "%", 100, 2),
    Column("parameters", "parameters", "", 1, 0),
    Column("method_bytes", "method memory", "bytes", 1, 0),
    Column("cpu_s", "CPU time", "s", 1, 1),
)


def write_report(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Write a page with a table over seeds, a comparison, and a section for every run.

    The page appears whole or not at all; its folder is made if it is missing.

    Args:
        records: Finished runs.
        path: Where the page goes, e.g. ``report.html``.

    Returns:
        The path of the page.

    Raises:
        UsageError: No runs were given, or the path is a folder.
        RunError: A run is not finished, or the page cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it, e.g. {target / 'report.html'}")
    page = render(records)
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(target)
    return target


def render(records: Sequence[RunRecord]) -> str:
    """Return the page as text; see :func:`write_report`."""
    groups = group_records(records)
    members = [record for group in groups for record in group.records]
    template = (resources.files("spikecl") / "report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        title=_title(groups),
        columns=COLUMNS,
        groups=[(g.label, len(g.records), [_cell(g, c) for c in COLUMNS]) for g in groups],
        comparison=_picture(plot_comparison(members)),
        runs=[_run(record) for record in members],
    )


def _title(groups: Sequence[Group]) -> str:
    streams = {str(s["stream"]): None for group in groups for s in group.summaries}
    return f"Continual learning on {', '.join(streams)}"


def _cell(group: Group, column: Column) -> Cell:
    stats = group.statistics(column.key)
    if stats is None:
        return Cell("–", "", "")

    def text(value: float) -> str:
        shown = f"{column.scale * value:,.{column.digits}f}"
        return shown.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")

    if stats.sd is None or stats.sd == column.digits == 0:  # one run, or a count that all share
        return Cell(text(stats.mean), "", "")
    assert stats.low is not None and stats.high is not None
    return Cell(text(stats.mean), text(stats.sd), f"{text(stats.low)} to {text(stats.high)}")


def _run(record: RunRecord) -> dict[str, Any]:
    """Return what the section of one run shows."""
    run, summary, cost = record.run, record.summary, record.cost
    names = ("stream", "method", "network", "encoding", "trainer", "optimiser", "seed")
    return {
        "id": record.id,
        "names": {name: summary[name] for name in names},
        "picture": _picture(plot_run(record)),
        "geometry": _geometry(record),
        "reported": [
            {"heading": heading, "page": page, "picture": _picture(_grid(record, rows))}
            for heading, page, rows in _reported(record)
            if rows
        ],
        "from_file": run["config"] is not None,
        "settings": _toml(run["config"] or _python_settings(run["identity"] or {})),
        "environment": dict(_flat(run["environment"])),
        "cost": {
            **dict(_flat({key: summary[key] for key in ("wall_s", "cpu_s")})),
            **dict(_flat({k: v for k, v in cost.items() if k not in ("format_version", "tasks")})),
        },
        "tasks": _tasks(record),
        "hardware": _hardware(record),
        "revealed": run["reveal"],
        "fingerprint": run["stream_fingerprint"],
    }


def _tasks(record: RunRecord) -> dict[str, Any] | None:
    """Return operations and energy by event, with where the prices come from."""
    rows = record.tasks()
    if not rows:
        return None
    told = record.cost["tasks"]
    return {"note": told["note"], "table": _table(rows), "sources": told["tables"]}


def _geometry(record: RunRecord) -> dict[str, Any] | None:
    """Return what method ``geometry`` recorded, as a figure and tables of text."""
    if not has_geometry(record):
        return None
    tables = [_table(rows) for rows in geometry_tables(record)]
    return {"picture": _picture(plot_geometry(record)), "tables": tables}


def _reported(record: RunRecord) -> Iterator[tuple[str, str, list[list[Panel]]]]:
    """Yield headings, pages of the documentation, and panels of what methods said after events."""
    rows = [each for each in record.steps() if each["phase"] == "report"]
    said = [each["value"] for each in rows if each["value"] and isinstance(each["value"], dict)]
    held = _first(said, lambda entry: "histogram" in _having("counts", entry))
    row: list[Panel] = [(importance_map, path) for path in _some(held)]
    yield "Importance", "Importance", [row[i : i + 2] for i in range(0, len(row), 2)]
    inside = _first(said, lambda e: "weight" in _having("positive", e) or "states" in e)
    kept = {path: _having("positive", inside[path]) or ["weight"] for path in _some(inside)}
    yield "Synapses", "Metaplasticity", _panels(plot_synapses, kept)
    spread: dict[str, dict[str, None]] = {}  # quantities, each once, by layer or synapse
    for path, entry in (item for value in said for item in value.items()):
        for quantity in _having("quantiles", entry):
            spread.setdefault(path, {})[quantity] = None
    yield "Neurons", "Homeostasis", _panels(plot_distribution, spread)
    need = any(each["metric"] == "need" for each in rows)
    yield "Learning rate", "Homeostasis", [[(plot_learning_rate,)]] if need else []


def _first(
    said: Iterable[dict[str, Any]], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Return the first of what was said whose entries all fit, or nothing."""
    return next((v for v in said if all(isinstance(e, dict) and fits(e) for e in v.values())), {})


def _having(key: str, entry: Any) -> list[str]:
    """Return the names of the tables in an entry that have a key."""
    tables = entry.items() if isinstance(entry, dict) else ()
    return [name for name, value in tables if isinstance(value, dict) and key in value]


def _some(names: Iterable[str]) -> list[str]:
    """Return names that are few enough for a figure, evenly spaced."""
    every = list(names)
    return [every[i] for i in thinned(len(every), MOST)]


def _panels(
    show: Callable[..., object], variables: Mapping[str, Iterable[str]]
) -> list[list[Panel]]:
    """Return a row of panels for each path, a column for each of its variables."""
    return [[(show, path, name) for name in _some(variables[path])] for path in _some(variables)]


def _grid(record: RunRecord, rows: Sequence[Sequence[Panel]]) -> Figure:
    """Draw panels of a run in rows."""
    columns = max(map(len, rows))
    figure = new_figure(max(9.6, 3.6 * columns), 2.6 * len(rows))
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for ax, (show, *given) in zip(axes, row):
            show(record, *given, ax=ax)
        for ax in axes[len(row) :]:
            ax.remove()
    return figure


def _hardware(record: RunRecord) -> dict[str, Any] | None:
    """Return what ``spikecl simulate`` found of the run's export, as tables of text."""
    path = record.path / "export" / "simulation.json"
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except RunError:
        raise RunError(f"{path} is damaged; simulate again, or remove it") from None
    if not isinstance(found, dict) or found.get("format_version") != 1:
        return None  # of another version; the next simulation writes it again
    return {
        "file": found["file"],
        "results": _table(found["rows"]),
        "layers": [
            (name, comparison["outputs"][0]["backend"], _table(comparison["rows"]))
            for name, comparison in found["comparisons"].items()
        ],
        "energy": _table(found["energy"]),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return headings and cells of rows that have the same columns."""

    def text(value: Any) -> str:
        if value is None:
            return "–"
        return f"{value:.5g}" if isinstance(value, float) else str(value)

    columns = list(rows[0]) if rows else []
    return {"columns": columns, "cells": [[text(row[c]) for c in columns] for row in rows]}


def _python_settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the components of a run made in Python as tables by component name."""
    table: dict[str, Any] = {}
    for kind, value in identity.items():
        if isinstance(value, list):
            table[kind] = {"name": [name for name, _ in value], **dict(value)}
        elif isinstance(value, dict):
            table[kind] = value
        else:
            table.setdefault("run", {})[kind] = value
    return table


def _toml(table: Mapping[str, Any], path: str = "") -> str:
    """Return nested tables as TOML; values that are ``None`` are defaults and left out."""
    plain = {k: v for k, v in table.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain.items()]
    if lines and path:
        lines.insert(0, f"\n[{path}]")
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines.append(_toml(value, f"{path}.{key}" if path else key))
    return "\n".join(line for line in lines if line)


def _flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested tables, for reading, with their dotted names."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        elif isinstance(value, float):
            yield f"{path}{key}", f"{value:.6g}"
        elif isinstance(value, list):
            yield f"{path}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{path}{key}", "–" if value is None else str(value)


def _picture(figure: Figure) -> str:
    """Return a figure as the address of an image that is its own data."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"
