"""Rows of a table of methods: the same trials for each, then the seeds of the table.

Settings are chosen on the first tasks with a tenth of the training samples held out, with a seed
that no row reports; test sets are read by the table alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from results import commit

from spikecl.errors import NonFiniteLossError
from spikecl.experiments import load_config, run_seeds
from spikecl.experiments.result import RunResult
from spikecl.experiments.runner import run_config
from spikecl.metrics import interval

SHOWN = ("acc", "bwt", "learning_accuracy", "last_five")
TRIAL_SEED, TRIAL_TASKS, HELD_OUT = 100, 3, 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Args:
        label: What it is called there.
        settings: What selects the method; TASKS stands for all tasks but the last.
        strengths: Settings to choose from.
        rates: Learning rates to choose from; none takes those of the table.
        note: What has to be known to read the row.
        score: What the settings are chosen by.
        seeds: Seeds of its own, fewer than those of the table; 0 takes the table's.
    """

    label: str
    settings: tuple[str, ...]
    strengths: tuple[tuple[str, ...], ...] = ((),)
    rates: tuple[float, ...] = ()
    note: str = ""
    score: str = "acc"
    seeds: int = 0

    def trials(self, rates: Sequence[float]) -> list[tuple[str, ...]]:
        """Return the settings of all trials."""
        return [
            (*strength, f"optimiser.lr={rate:.6g}")
            for strength, rate in itertools.product(self.strengths, self.rates or rates)
        ]

    def at(self, tasks: int) -> list[str]:
        """Return what selects the method for a number of tasks."""
        return [each.replace("TASKS", str(tasks - 1)) for each in self.settings]


BINARY = ("network.spiking_mlp.binary=fixed", "optimiser.name=adam")


def mesu(windows: Sequence[float]) -> Row:
    """Return the row of MESU, with windows in batches."""
    return Row(
        "MESU",
        ("method.name=mesu", "method.mesu.prior=0.1"),
        tuple(
            (f"method.mesu.width={width}", f"method.mesu.window={window}")
            for width in (1.0, 1.4)
            for window in windows
        ),
        rates=(0.1,),
        note="it has no learning rate: thresholds and norms, which would take it, do not learn",
    )


def bimu(windows: Sequence[float], likelihoods: Sequence[float]) -> Row:
    """Return the row of BiMU, with windows in batches and weights of the likelihood."""
    return Row(
        "BiMU, binary synapses",
        ("method.name=bimu", *BINARY),
        tuple(
            (f"method.bimu.likelihood={likelihood}", f"method.bimu.window={window}")
            for likelihood in likelihoods
            for window in windows
        ),
        rates=(0.001,),
        note="it has no learning rate but its own",
    )


def measured(
    row: Row,
    config: Path,
    *,
    rates: Sequence[float],
    tasks: int,
    seeds: int,
    common: Sequence[str] = (),
    trial: Sequence[str] = (),
    trial_tasks: int = TRIAL_TASKS,
    first_seed: int = 1,
    also: Mapping[str, Callable[[RunResult], float]] = MappingProxyType({}),
    where: Mapping[str, Any],
) -> dict[str, Any]:
    """Choose the settings of a row, run its seeds, and return what they came to.

    Args:
        row: The row.
        config: Configuration of all rows.
        rates: Learning rates, where the row has none of its own.
        tasks: Tasks of the stream.
        seeds: How many seeds the table has.
        common: Settings of all runs.
        trial: Settings of all trials, beside the number of their tasks.
        trial_tasks: Tasks of a trial: the first ones.
        first_seed: First seed of the table.
        also: Other figures of a run, by name.
        where: Folders of runs and data.
    """
    first, begun = min(trial_tasks, tasks), commit()
    narrowed = [f"stream.experiences={first}", *trial]
    tried: dict[tuple[str, ...], float] = {}
    for each in row.trials(rates):
        settings = [*common, *row.at(first), *each, *narrowed]
        settings += [f"data.validation={HELD_OUT}", f"run.seed={TRIAL_SEED}"]
        try:
            record = run_config(load_config(config, settings), **where).record
            tried[each] = record.summary[row.score]
        except NonFiniteLossError:
            tried[each] = -math.inf
        print(row.label, *each, f"{100 * tried[each]:.2f}", flush=True)
    best = max(tried, key=lambda each: tried[each])
    settings = [
        *common,
        *row.at(tasks),
        *best,
        f"stream.experiences={tasks}",
        f"run.seed={first_seed}",
    ]
    count = min(row.seeds, seeds) if row.seeds else seeds
    group = run_seeds(load_config(config, settings), count, **where)
    summaries = [result.summary for result in group.results]
    more = {
        name: interval([of(each) for each in group.results])._asdict() for name, of in also.items()
    }
    return {
        "label": row.label,
        "note": row.note,
        "settings": list(best),
        "trials": {" ".join(each): value for each, value in tried.items()},
        "metrics": dict(group.table["metrics"]) | more,
        "method_bytes": max(each["method_bytes"] for each in summaries),
        "cpu_s": [each["cpu_s"] for each in summaries],
        "commit": begun,
    }


def figures(found: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the figures of a row: means, standard deviations, bytes, time over fine-tuning's."""
    cell = found[method]
    shown = means(cell["metrics"])
    shown["bytes"] = cell["method_bytes"]
    plain = found.get("finetune", {}).get("cpu_s", [])
    if plain:
        ratios = [own / other for own, other in zip(cell["cpu_s"], plain)]
        shown["time_over_finetune"] = statistics.median(ratios)
    return shown


def means(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return means and standard deviations of what is shown."""
    shown = {}
    for metric in (m for m in SHOWN if m in metrics):
        shown[metric] = metrics[metric]["mean"]
        shown[f"{metric}_sd"] = metrics[metric]["sd"]
    return shown


def rows_of(cells: Mapping[str, Any], **columns: str) -> Iterator[dict[str, Any]]:
    """Yield the rows that the documentation shows, with some columns in front."""
    for method, cell in cells.items():
        time = figures(cells, method).get("time_over_finetune")
        yield {
            "label": cell["label"],
            **columns,
            "chosen": " ".join(cell["settings"]),
            "method MB": f"{cell['method_bytes'] / 1e6:.1f}",
            "time": "" if time is None else f"{time:.2f}",
            **({"note": cell["note"]} if any(each["note"] for each in cells.values()) else {}),
            "metrics": {n: v for n, v in cell["metrics"].items() if n in SHOWN},
        }
