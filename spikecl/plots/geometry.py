"""The geometry of a run on one page, and its end in two tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.plots import drift, subspaces
from spikecl.plots.style import DARK, NORMAL, new_figure, plain
from spikecl.plots.training import Said, paths, reports
from spikecl.records import RunRecord

_MOST_COLUMNS = 4  # synapses or layers side by side
_WIDTH, _HEIGHT = 3.4, 2.4  # inches of a panel

Draw = Callable[[Axes], None]


def plot_geometry(record: RunRecord) -> Figure:
    """Return a figure of all that method ``geometry`` recorded.

    First the whole network, then a column for each synapse, then one for each layer of neurons. Of
    more than four, four that are evenly spaced are drawn. What is not in the record has no panel.

    Args:
        record: A finished run.

    Raises:
        RunError: The run is not finished, or has no record of its geometry.
    """
    said = reports(record)
    rows = _rows(record, said)
    columns = max(map(len, rows))
    figure = new_figure(_WIDTH * columns, _HEIGHT * len(rows) + 0.3)
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for i, ax in enumerate(axes):
            if i < len(row):
                row[i](ax)
            else:
                ax.remove()
    figure.suptitle(plain(record.id), fontsize=NORMAL + 1, color=DARK, x=0.01, ha="left")
    return figure


def _rows(record: RunRecord, said: Said) -> list[list[Draw]]:
    """Return what each row of panels draws."""
    synapses, layers = (_some(paths(said, kind)) for kind in ("synapses", "layers"))
    held, learning = (bool(paths(said, "synapses", key)) for key in ("plasticity", "caught"))
    leaks = bool(paths(said, "synapses", "leakage"))
    each = [subspaces.plot_spectrum]
    each += [subspaces.plot_task_angles] if len(said) > 1 else []
    each += [subspaces.plot_angles, subspaces.plot_inside] if held else []
    of_layers = [drift.plot_flipped] if paths(said, "layers", "flipped") else []
    of_layers += [drift.plot_similarity] if paths(said, "layers", "cka") else []
    whole: list[Callable[[RunRecord, Axes], None]] = [_plot_own_tasks]
    whole += [subspaces.plot_plasticity] if held else []
    whole += [subspaces.plot_free_dimensions]
    whole += [drift.plot_leakage, drift.plot_alignment] if leaks else []
    whole += [subspaces.plot_caught, subspaces.plot_orthonormality] if learning else []
    width = max(3, len(synapses), len(layers))
    first = [_drawing(show, record) for show in whole]
    return [
        *(first[i : i + width] for i in range(0, len(first), width)),
        *([_drawing(show, record, path) for path in synapses] for show in each),
        *([_drawing(show, record, path) for path in layers] for show in of_layers),
    ]


def _drawing(show: Callable[..., None], *given: Any) -> Draw:
    return lambda ax: show(*given, ax)


def _plot_own_tasks(record: RunRecord, ax: Axes) -> None:
    drift.plot_tasks([record], ax)


def _some(names: Sequence[str]) -> list[str]:
    """Return names that are few enough to stand side by side."""
    if len(names) <= _MOST_COLUMNS:
        return list(names)
    chosen = np.linspace(0, len(names) - 1, _MOST_COLUMNS).round().astype(int)
    return [names[i] for i in chosen]


def geometry_tables(record: RunRecord) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what the end of a run looks like: a row for each synapse, and for each layer.

    Of a synapse: inputs; directions that no task needs; dimensionality of the last task; what is
    left of its plasticity; the energy of old activity held; leakage, mean over all looks. Of a
    layer of neurons: its rate for the last task; old spikes flipped and alignment, means over old
    tasks. ``None`` is not recorded.

    Args:
        record: A run.

    Raises:
        RunError: The run has no record of its geometry.
    """
    said = reports(record)
    end, last = said[-1]["curve"][-1], said[-1]
    present = last["experience"]
    old = [i for i, task in enumerate(last["tasks"]) if task != present]
    synapses = []
    for path, now in end["synapses"].items():
        own = last["synapses"].get(path, {})
        looks = [look["synapses"][path] for report in said for look in report["curve"]]
        row = {
            "synapse": path,
            "inputs": own.get("inputs"),
            "free": own.get("free_of_all"),
            "dimensionality": (own.get("dimensionality") or [None])[-1],
            "plasticity": now.get("plasticity"),
            "old energy held": _mean([now["inside"][i] for i in old] if "inside" in now else []),
            "leakage": _mean([look.get("leakage") for look in looks]),
        }
        synapses.append(row)
    layers = [
        {
            "layer": name,
            "rate": now["rate"][-1] if now["rate"] else None,
            "old spikes flipped": _mean(now.get("flipped", ())),
            "old alignment": _mean(now["cka"]),
        }
        for name, now in end["layers"].items()
    ]
    return synapses, layers


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
