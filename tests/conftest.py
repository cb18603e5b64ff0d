from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from spikecl.records import FORMAT_VERSION, RowLog, RunRecord, matrix_table
from spikecl.storage import write_json

torch.set_num_threads(1)  # tests run side by side

NAN = float("nan")
MATRIX = (  # untrained, then three events, on three sets; what is not tested is NaN
    (0.10, 0.12, 0.08),
    (0.90, 0.20, NAN),
    (0.70, 0.95, 0.15),
    (0.60, 0.80, 1.00),
)
NAMES = {"network": "mlp", "trainer": "bptt", "encoding": "direct", "optimiser": "sgd"}


@pytest.fixture
def fake_run(tmp_path):
    """Write the directory of a finished run that never ran, and return its record."""

    def make(
        name: str = "run",
        *,
        matrix=MATRIX,
        sets=None,
        losses=((2.0, 1.0), (1.5, 0.5), (1.2, 0.4)),
        lr: float = 0.1,
        seed: int = 0,
        from_file: bool = True,
        **summary,
    ) -> RunRecord:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        values = np.array(matrix)
        columns = sets or [f"task{j}" for j in range(values.shape[1])]
        write_json(
            path / "matrix.json", matrix_table(values, values, columns=columns, chosen="aware")
        )
        content = {
            "format_version": FORMAT_VERSION,
            "run": name,
            "method": "finetune",
            **NAMES,
            "stream": "permuted-digits",
            "seed": seed,
            "acc": float(np.nanmean(values[-1])),
            "bwt": -0.225,
            "fwt": 0.075,
            "forgetting": 0.225,
            "learning_accuracy": 0.95,
            "parameters": 12345,
            "method_bytes": 0,
            "wall_s": 1.0,
            "cpu_s": 2.0,
            **summary,
        }
        _write_rows(path, losses)
        write_json(path / "run.json", _run_json(content, lr, from_file))
        write_json(
            path / "cost.json",
            {"format_version": FORMAT_VERSION, "firing_rates": {"hidden1": 0.123456789}},
        )
        write_json(path / "summary.json", content)
        return RunRecord(path)

    return make


def _write_rows(path, losses) -> None:
    log = RowLog(path / "steps.jsonl")
    for event, part in enumerate(losses):
        for window, loss in enumerate(part):
            row = {"event": event, "phase": "train", "eval_set": None}
            seen = 100 * (2 * event + window + 1)
            for metric, value in (("loss", loss), ("accuracy", 0.5)):
                log.append([{**row, "samples_seen": seen, "metric": metric, "value": value}])
    log.close()


def _run_json(summary, lr, from_file):
    names = {key: summary[key] for key in ("method", "stream", "seed", *NAMES)}
    identity = {key: [[summary[key], {}]] for key in (*NAMES, "method")}
    identity |= {"optimiser": [["sgd", {"lr": lr}]], "train": {"epochs": 5}, "seed": names["seed"]}
    config = {
        "run": {"seed": summary["seed"]},
        "stream": {"name": "permuted", "permuted": {"experiences": 3}},
        "optimiser": {"name": "sgd", "sgd": {"lr": lr, "nesterov": None}},
        "method": {"name": [summary["method"]]},
    }
    return copy.deepcopy(
        {
            "format_version": FORMAT_VERSION,
            "status": "finished",
            **names,
            "stream_fingerprint": "feed",
            "reveal": ["boundary", "labels"],
            "config": config if from_file else None,
            "identity": identity,
            "environment": {"torch": "2.9.9", "kernels": {"hidden1": "fused"}, "fallbacks": []},
        }
    )
