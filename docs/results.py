"""Renders the committed results of benchmarks: nobody types a number into the documentation.

    python docs/results.py              writes docs/generated/benchmarks.md

A file ``benchmarks/results/NAME.json`` says how it was made (``command``, ``commit``, ``versions``,
``cpu``, ``threads``, ``notes``) and holds ``rows`` (label, text columns, and ``metrics`` with n,
mean, sd, low, high) or ``results`` (by key: median, min, max, n).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reference import cell, write

PERCENT = {
    "acc": "ACC %",
    "bwt": "BWT %",
    "fwt": "FWT %",
    "forgetting": "forgetting %",
    "learning_accuracy": "learning accuracy %",
    "acc_task_aware": "ACC, task known %",
    "acc_task_agnostic": "ACC, task unknown %",
}

NBSP = "\N{NO-BREAK SPACE}"


def main(source: Path, folder: Path) -> None:
    """Write ``benchmarks.md`` from all results in a folder; an empty page if there are none."""
    files = sorted(source.glob("*.json")) if source.is_dir() else []
    write(folder / "benchmarks.md", "\n".join(render(path) for path in files))


def render(path: Path) -> str:
    """Return the section of one file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not ("rows" in content or "results" in content):
            raise ValueError("it has neither 'rows' nor 'results'")
        parts = [f"## {content.get('name', path.stem)}", notes(content)]
        parts += [rows_table(content["rows"])] if content.get("rows") else []
        parts += [results_table(content["results"])] if content.get("results") else []
        return "\n\n".join(part for part in [*parts, origin(content)] if part) + "\n"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be shown: {error!r}") from error


def notes(content: Mapping[str, Any]) -> str:
    """Return the notes, which are text or a list of texts."""
    given = content.get("notes") or []
    return "\n\n".join([given] if isinstance(given, str) else [str(note) for note in given])


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of rows: their text columns, n, and mean ± sd with the 95 % interval."""
    metrics = ordered(name for row in rows for name in row.get("metrics", {}))
    metrics = [name for name in metrics if not repeats_acc(name, rows)]
    texts = ordered(k for row in rows for k, v in row.items() if k != "metrics" and plain(v))
    header = [*texts, "n", *(PERCENT.get(m, m.replace("_", " ")) for m in metrics)]
    body = []
    for row in rows:
        measured = row.get("metrics", {})
        counts = sorted({v["n"] for v in measured.values() if v and "n" in v})
        count = " to ".join(str(n) for n in sorted({counts[0], counts[-1]})) if counts else ""
        values = [spread(measured.get(m), 100 if m in PERCENT else 1) for m in metrics]
        body.append([*(number(row.get(k, "")) for k in texts), count, *values])
    return markdown_table(header, body)


def repeats_acc(metric: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a variant of ACC is ACC itself in every row, as where tasks have all classes."""
    measured = [row.get("metrics", {}) for row in rows]
    variant = metric.startswith("acc_task")
    return variant and all(m.get(metric) == m.get("acc") for m in measured)


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of medians with their ranges."""
    body = [
        [f"`{key}`", *(number(value.get(k, "")) for k in ("median", "min", "max", "n"))]
        for key, value in results.items()
    ]
    return markdown_table(["key", "median", "min", "max", "n"], body)


def spread(value: Mapping[str, Any] | None, scale: float) -> str:
    """Return ``mean ± sd (low to high)``, as far as it was measured."""
    if not value or value.get("mean") is None:
        return "–"
    digits = 2 if scale == 100 else None
    text = number(scale * value["mean"], digits)
    if value.get("sd") is not None:
        text += f"{NBSP}±{NBSP}{number(scale * value['sd'], digits)}"
    if value.get("low") is not None and value.get("high") is not None:
        low, high = (number(scale * value[k], digits) for k in ("low", "high"))
        text += f" ({low}{NBSP}to{NBSP}{high})"
    return text


def number(value: Any, digits: int | None = None) -> str:
    """Return a number with few digits, anything else as text."""
    if isinstance(value, float):
        text = f"{value:.{digits}f}" if digits is not None else f"{value:.4g}"
        return text.replace("-", "\N{MINUS SIGN}")
    return cell(str(value))


def origin(content: Mapping[str, Any]) -> str:
    """Return how the numbers were made."""
    versions = content.get("versions") or {}
    if isinstance(versions, Mapping):
        versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    facts = {
        "commit": content.get("commit"),
        "versions": versions,
        "CPU": content.get("cpu"),
        "threads": content.get("threads"),
    }
    known = "; ".join(f"{name} {value}" for name, value in facts.items() if value)
    command = f"Made by `{content['command']}`. " if content.get("command") else ""
    return (command + (known[:1].upper() + known[1:] + "." if known else "")).strip()


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ordered(names: Any) -> list[str]:
    """Return names once each, in the order they first came."""
    return list(dict.fromkeys(names))


def plain(value: Any) -> bool:
    """Tell whether a value can stand in a cell as it is."""
    return isinstance(value, str | int | float)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    (here / "generated").mkdir(exist_ok=True)
    main(here.parent / "benchmarks" / "results", here / "generated")
