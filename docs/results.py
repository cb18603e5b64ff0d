"""Renders the committed results of benchmarks: nobody types a number into the documentation.

    python docs/results.py      writes benchmarks.md, kernels.md, ... in docs/generated

A file ``benchmarks/results/NAME.json`` says how it was made (``command``, ``commit``, ``versions``,
``cpu``, ``threads``, ``notes``) and holds ``rows`` (label, text columns, and ``metrics`` with n,
mean, sd, low, high) or ``results`` (by key: median, min, max, n).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reference import cell, write

from spikecl.plots.style import colour, new_figure, tidy

PERCENT = {
    "acc": "ACC %",
    "bwt": "BWT %",
    "fwt": "FWT %",
    "forgetting": "forgetting %",
    "learning_accuracy": "learning accuracy %",
    "acc_task_aware": "ACC, task known %",
    "acc_task_agnostic": "ACC, task unknown %",
    "last_five": "the last five tasks %",
    "prequential": "accuracy before the step %",
    "vote": "accuracy %",
    "learned_last": "tasks 4 and 5 as learned %",
    "lost_at_export": "lost by the export %",
    "busiest": "spikes of the busiest neuron %",
}

CASES = {
    "step_b64": "training step",
    "step_dense_hidden": "training step, denser spikes",
    "step_b1": "training step, one sample",
    "forward_b64": "pass",
    "forward_b1": "pass, one sample",
    "conv_step": "training step, convolutions",
    "conv_forward": "pass, convolutions",
}
CONTESTANTS = {
    "dense": "`dense`",
    "event": "`auto`",
    "lean": "`auto`, `lean`",
    "plain": "plain loop",
    "snntorch": "snnTorch",
    "norse": "Norse",
    "spikingjelly": "SpikingJelly",
}
TASKS = {
    "mnist": "MNIST",
    "spoken_digits": "spoken digits",
    "braille": "Braille",
    "evidence": "delayed evidence",
}
NOTHING = "Nothing was measured.\n"
NOT_ON_A_GPU = """Nothing has been measured on a GPU yet, and nothing has run on one: the `triton`
kernels are tested in Triton's interpreter, and compiled without being launched; `CapturedStep` is
tested with a recorder of operations in the place of CUDA. `python benchmarks/gpu_scan.py --write`
measures where there is a GPU.
"""

NBSP = "\N{NO-BREAK SPACE}"


def main(source: Path, folder: Path) -> None:
    """Write ``benchmarks.md`` from all results in a folder; an empty page if there are none.

    Others show one of the files in a form of their own, for the page that is about it.
    """
    files = sorted(source.glob("*.json")) if source.is_dir() else []
    write(folder / "benchmarks.md", "\n".join(render(path) for path in files))
    names = {path.name: path for path in files}
    scan, gpu = names.get("scan.json"), names.get("gpu_scan.json")
    write(folder / "kernels.md", render_scan(scan) if scan else NOTHING)
    write(folder / "kernels_gpu.md", render(gpu, title=False) if gpu else NOT_ON_A_GPU)
    loihi = names.get("to_loihi.json")
    write(folder / "to_loihi.md", render(loihi, title=False) if loihi else NOTHING)
    across = names.get("across_export.json")
    write(folder / "across_export.md", render(across, title=False) if across else NOTHING)
    lost = names.get("plasticity.json")
    write(folder / "plasticity.md", render_plasticity(lost, folder) if lost else NOTHING)
    tables = {"trainers_learn": learned, "trainers_hlop": protected, "trainers": costs}
    for name, table in tables.items():
        path = names.get(f"{name}.json")
        made = render_as(path, table) if path else NOTHING
        write(folder / f"{'trainers_cost' if name == 'trainers' else name}.md", made)


def render(path: Path, *, title: bool = True) -> str:
    """Return the section of one file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not ("rows" in content or "results" in content):
            raise ValueError("it has neither 'rows' nor 'results'")
        parts = [f"## {content.get('name', path.stem)}" if title else "", notes(content)]
        parts += [rows_table(content["rows"])] if content.get("rows") else []
        parts += [results_table(content["results"])] if content.get("results") else []
        return "\n\n".join(part for part in [*parts, origin(content)] if part) + "\n"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be shown: {error!r}") from error


def render_scan(path: Path) -> str:
    """Return the ratios of ``scan.json``, a row for each case, and the memory of a pass."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows: dict[str, dict[str, str]] = {}
        for key, value in content["results"].items():
            found = re.fullmatch(rf"(?:({'|'.join(CONTESTANTS)})_)?(.+)_over_gemm", key)
            if found is None:
                continue
            own = "dense" if f"event_{key}" in content["results"] else "event"  # no name: default
            low, high = (number(value[bound], 2) for bound in ("low", "high"))
            text = f"{number(value['median'], 2)} ({low}{NBSP}to{NBSP}{high})"
            rows.setdefault(found[2], {})[found[1] or own] = text
        body = [
            [CASES.get(case, f"`{case}`"), *(cells.get(who, "") for who in CONTESTANTS)]
            for case, cells in sorted(rows.items(), key=lambda row: ranked(row[0], CASES))
        ]
        saved = content.get("saved_bytes", {})
        names = list(dict.fromkeys(name for by in saved.values() for name in by))
        kept = [
            [f"`{name}`", *(f"{by[name] / 1e6:.1f}" if name in by else "" for by in saved.values())]
            for name in names
        ]
        active = [
            f"`{name}` {', '.join(number(100 * part, 1) for part in found)}"
            for name, found in content.get("densities", {}).items()
        ]
        densities = (
            f"Active in % (input, then layer by layer): {'; '.join(active)}." if active else ""
        )
        times = markdown_table(["CPU time over the bound", *CONTESTANTS.values()], body)
        memory = markdown_table(["kept for the backward pass, MB", *saved], kept) if kept else ""
        return (
            "\n\n".join(part for part in (times, densities, memory, origin(content)) if part) + "\n"
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be shown: {error!r}") from error


def render_as(path: Path, table: Callable[[Mapping[str, Any]], str]) -> str:
    """Return the table of one file, and how it was made."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = (table(content), notes(content), origin(content))
        return "\n\n".join(part for part in parts if part) + "\n"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be shown: {error!r}") from error


def render_plasticity(path: Path, folder: Path) -> str:
    """Return the table of ``plasticity.json`` and a figure, which is written beside it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    figure = new_figure(10.5, 3.6)
    left, right = figure.subplots(1, 2)
    for i, row in enumerate(cells.values()):
        learned = 100 * np.mean(row["learned"], axis=0)
        left.plot(range(1, len(learned) + 1), learned, color=colour(i), label=row["label"])
    left.set(xlabel="task", ylabel="%")
    tidy(left, "accuracy on a task when it was learned")
    for i, synapse in enumerate(cells["all"]["plasticity"][0] if "all" in cells else ()):
        kept = np.mean([seed[synapse] for seed in cells["all"]["plasticity"]], axis=0)
        right.plot(range(1, len(kept) + 1), kept, color=colour(i), label=synapse)
    right.set(xlabel="tasks learned", ylabel="tr P / n", ylim=(0, 1))
    tidy(right, "inhibition: plasticity left")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8.5)
    figure.savefig(folder / "plasticity.svg")
    shown = "```{figure} generated/plasticity.svg\nMeans over seeds.\n```"
    return f"{shown}\n\n{render(path, title=False)}"


def learned(content: Mapping[str, Any]) -> str:
    """Return a table of accuracies, a row for each trainer and a column for each data set."""
    cells = content["cells"]
    found = {task for row in cells.values() for task, value in row.items() if "mean" in value}
    tasks = sorted(found, key=lambda task: (ranked(task, TASKS), task))
    body = [[cell(name), *(share(row.get(task)) for task in tasks)] for name, row in cells.items()]
    table = markdown_table(["trainer", *(TASKS.get(task, task) for task in tasks)], body)
    reasons = [
        (f"{name}, {TASKS.get(task, task)}", value["reason"])
        for name, row in cells.items()
        for task, value in row.items()
        if task in tasks and "reason" in value
    ]
    return f"{table}\n\n{refusals(reasons)}".strip()


METHODS = {"finetune": "", "hlop": ", HLOP", "inhibition": ", inhibition"}
LEARNS = 0.80  # learning accuracy of fine-tuning from which a trainer counts as learning


def protected(content: Mapping[str, Any]) -> str:
    """Return a table of what trainers keep of old tasks, without and with projections."""
    keys = {key: PERCENT[key] for key in ("acc", "bwt", "learning_accuracy")}
    rows = content["cells"].items()
    methods = {m: shown for m, shown in METHODS.items() if any(m in row for _, row in rows)}
    header = ["trainer", *(f"{key}{shown}" for shown in methods.values() for key in keys.values())]
    body, reasons = [], []
    for name, row in rows:
        if "reason" in row:
            reasons.append((name, row["reason"]))
        values = [row.get(method, {}).get(key) for method in methods for key in keys]
        body.append([cell(name), *(share(row if "reason" in row else value) for value in values)])
        learned = row.get("finetune", {}).get("learning_accuracy", {}).get("mean", 1.0)
        if learned < LEARNS:
            why = f"does not count as learning: {PERCENT['learning_accuracy']} of fine-tuning is "
            reasons.append((name, f"{why}below {100 * LEARNS:.0f}"))
    return f"{markdown_table(header, body)}\n\n{refusals(reasons)}".strip()


def share(value: Mapping[str, Any] | None) -> str:
    """Return mean ± sd in percent, a dash where there is a reason, nothing where nobody looked."""
    if value is None:
        return ""
    return spread({key: value.get(key) for key in ("mean", "sd")}, 100)


def refusals(reasons: Sequence[tuple[str, str]]) -> str:
    """Return why cells have no value, each reason once."""
    who: dict[str, list[str]] = {}
    for name, reason in reasons:
        who.setdefault(reason, []).append(name)
    return "\n".join(f"- {cell('; '.join(names))}: {cell(why)}" for why, names in who.items())


def costs(content: Mapping[str, Any]) -> str:
    """Return a table of times and memory over those of BPTT, and one of what else was measured."""
    ratios: dict[str, dict[str, str]] = {}
    rest = dict(content["results"])
    for key, value in content["results"].items():
        if found := re.fullmatch(r"(.+)_(time|peak)_over_bptt", key):
            bounds = {"low": value["min"], "high": value["max"]} if value["n"] > 1 else {}
            text = spread({"mean": value["median"], **bounds}, 1, digits=2)
            ratios.setdefault(found[1], {})[found[2]] = text
            del rest[key]
    body = [
        [f"`{name}`", *(row.get(k, "") for k in ("time", "peak"))] for name, row in ratios.items()
    ]
    table = markdown_table(["trainer", "CPU time over BPTT", "peak memory over BPTT"], body)
    return f"{table}\n\n{results_table(rest)}" if rest else table


def ranked(name: str, order: Mapping[str, str]) -> int:
    """Return the place of a name in an order; what is not in it comes last."""
    return list(order).index(name) if name in order else len(order)


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


def spread(value: Mapping[str, Any] | None, scale: float, digits: int | None = None) -> str:
    """Return ``mean ± sd (low to high)``, as far as it was measured."""
    if not value or value.get("mean") is None:
        return "–"
    digits = 2 if scale == 100 else digits
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
    listed = {}
    for key in ("versions", "peers"):
        given = content.get(key) or {}
        mapping = isinstance(given, Mapping)
        listed[key] = ", ".join(f"{k} {v}" for k, v in given.items()) if mapping else given
    facts = {
        "commit": content.get("commit"),
        **listed,
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
