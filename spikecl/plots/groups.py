"""Groups of runs that differ in their seed alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spikecl.errors import RunError, UsageError
from spikecl.metrics import Interval, interval
from spikecl.records import FORMAT_VERSION, RunRecord

_KINDS = ("stream", "network", "encoding", "trainer", "optimiser", "method")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Finished runs that differ in their seed alone.

    Args:
        label: The method, and whatever else distinguishes the group from the other groups.
        records: The runs.
        summaries: Their scalars, in the same order.
    """

    label: str
    records: tuple[RunRecord, ...]
    summaries: tuple[dict[str, Any], ...]

    def values(self, metric: str) -> list[float]:
        """Return a scalar of every run that has it."""
        return [float(s[metric]) for s in self.summaries if s[metric] is not None]

    def statistics(self, metric: str) -> Interval | None:
        """Return mean and spread over seeds; ``None`` if the runs do not have this scalar."""
        values = self.values(metric)
        return interval(values) if values else None


def group_records(records: Sequence[RunRecord]) -> list[Group]:
    """Group runs over seeds, in the order given; a run given twice counts once.

    Runs belong together if all components, their parameters and the training plan are the same.
    The stream's own draw depends on the seed, so of the stream its name and parameters count.

    Raises:
        UsageError: No runs were given.
        RunError: A run is not finished or from another version.
    """
    if not records:
        raise UsageError("no runs were given; name one or more finished runs")
    unique = {record.path.resolve(): record for record in records}.values()
    members: dict[str, list[RunRecord]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for record in unique:
        found = _settings(record)
        key = json.dumps(found, sort_keys=True)
        members.setdefault(key, []).append(record)
        settings[key] = found
    labels = _labels(list(settings.values()))
    return [
        Group(label, tuple(runs), tuple(record.summary for record in runs))
        for label, runs in zip(labels, members.values(), strict=True)
    ]


def _settings(record: RunRecord) -> dict[str, Any]:
    """Return what ran, seeds left out, as one flat table with the components' names first."""
    summary, run = record.summary, record.run
    if summary.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"run {record.id} has format {summary.get('format_version')}, this version reads "
            f"{FORMAT_VERSION}; run it again"
        )
    flat = {kind: summary[kind] for kind in _KINDS}
    identity, config = run["identity"] or {}, run["config"]
    for kind in _KINDS[1:]:
        for name, parameters in identity.get(kind, []):
            flat |= {f"{name}.{key}": value for key, value in parameters.items()}
    flat |= {f"train.{key}": value for key, value in identity.get("train", {}).items()}
    if config is None:  # the stream was made in Python
        return {**flat, "events": len(record.matrix()) - 1}
    chosen = config["stream"]["name"]
    return flat | {f"{chosen}.{k}": v for k, v in config["stream"].get(chosen, {}).items()}


def _labels(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Name each group by its method and what is not the same in all groups that have it."""
    values: dict[str, set[str]] = {}
    for found in settings:
        for key, value in found.items():
            values.setdefault(key, set()).add(json.dumps(value))
    differing = [key for key, seen in values.items() if len(seen) > 1 and key != "method"]
    labels: list[str] = []
    for found in settings:
        parts = [str(found["method"])]
        for key in (key for key in differing if key in found):
            shown = found[key] if isinstance(found[key], str) else json.dumps(found[key])
            parts.append(shown if key in _KINDS else f"{key}={shown}")
        label = ", ".join(parts)
        labels.append(f"{label} ({labels.count(label) + 1})" if label in labels else label)
    return labels
