"""Draws the picture of the README from the runs of ``make demo``; runs them if they are missing.

python docs/make_readme_figure.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.experiments import RunResult, load_config, run_seeds
from spikecl.metrics import interval
from spikecl.plots.curves import mean_so_far
from spikecl.plots.style import colour, new_figure, tidy

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 3
NAMES = {"finetune": "fine-tuning", "hlop": "HLOP"}


def main() -> None:
    """Write ``docs/_static/permuted_digits.png``."""
    config = ROOT / "examples" / "permuted_digits.toml"
    groups = {
        method: run_seeds(
            load_config(config, [f"method.name={method}"]), SEEDS, runs_dir=ROOT / "runs"
        ).results
        for method in NAMES
    }
    target = ROOT / "docs" / "_static" / "permuted_digits.png"
    draw(groups).savefig(target, dpi=150)
    print(target)


def draw(groups: dict[str, Sequence[RunResult]]) -> Figure:
    """Return the matrices of both methods, mean over seeds, and accuracy over the stream."""
    figure = new_figure(10.5, 3.3)
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.45])
    for axis, (method, results) in zip(axes, groups.items()):
        draw_matrix(results, axis)
        tidy(axis, f"{NAMES[method]}: accuracy %", grid="")
        axis.grid(False)
    for i, (method, results) in enumerate(groups.items()):
        draw_course(results, axes[2], colour(i), NAMES[method])
    axes[2].set(xlabel="tasks learned", xticks=range(1, 5), ylim=(60, 101))
    axes[2].legend(frameon=False, fontsize=8.5, loc="lower left")
    tidy(axes[2], "mean accuracy on the tasks so far, %")
    return figure


def draw_matrix(results: Sequence[RunResult], axis: Axes) -> None:
    """Draw the mean accuracy matrix; empty cells were not tested."""
    values = 100 * np.mean([result.matrix[1:] for result in results], axis=0)
    axis.imshow(values, cmap="YlGnBu", vmin=0, vmax=110)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "white" if value > 60 else "black"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink)
    count = range(len(values))
    axis.set_xticks(count, [f"task {i + 1}" for i in count])
    axis.set_yticks(count, [f"after {i + 1}" for i in count])


def draw_course(results: Sequence[RunResult], axis: Axes, shade: str, name: str) -> None:
    """Draw mean and standard deviation over seeds; the label says ACC and BWT."""
    curves = 100 * np.array([mean_so_far(result.record) for result in results])
    mean, sd, tasks = curves.mean(0), curves.std(0, ddof=1), np.arange(1, curves.shape[1] + 1)
    acc, bwt = (interval([100 * r.summary[key] for r in results]) for key in ("acc", "bwt"))
    numbers = f"ACC {acc.mean:.1f} ± {acc.sd:.1f}, BWT {bwt.mean:.1f} ± {bwt.sd:.1f}"
    label = f"{name}: " + numbers.replace("-", "\N{MINUS SIGN}")
    axis.plot(tasks, mean, color=shade, marker="o", label=label)
    axis.fill_between(tasks, mean - sd, mean + sd, color=shade, alpha=0.18, linewidth=0)


if __name__ == "__main__":
    main()
