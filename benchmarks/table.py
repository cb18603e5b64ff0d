"""Tables over seeds: run (or resume) every row, then write benchmarks/results/NAME.json.

    python benchmarks/table.py permuted_digits

Runs go to ``--runs-dir`` and are found again there, so a table that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import write

from spikecl.experiments import GroupResult, load_config, run_seeds

HERE = Path(__file__).parent
FINETUNE = ("method.name=finetune",)
JOINT = ("method.name=joint", "stream.old_data=true")
TABLES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "permuted_digits": (
        "examples/permuted_digits.toml",
        {
            "fine-tuning": FINETUNE,
            "HLOP": (),
            "joint training on all tasks so far": JOINT,
        },
    ),
}


def main() -> None:
    """Run a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    config, rows = TABLES[given.name]
    done = []
    for label, overrides in rows.items():
        checked = load_config(HERE.parent / config, overrides)
        group = run_seeds(checked, given.seeds, runs_dir=given.runs_dir, data_dir=given.data_dir)
        done.append({"label": label, "set": list(overrides), **row(group)})
        command = f"python benchmarks/table.py {given.name}"
        write(given.name, command, {"config": config, "rows": done})
        print(label, {m: round(v["mean"], 4) for m, v in done[-1]["metrics"].items()}, flush=True)


def row(group: GroupResult) -> dict[str, object]:
    """Return the statistics of one row."""
    content = group.table
    return {key: content[key] for key in ("seeds", "parameters", "metrics")}


if __name__ == "__main__":
    main()
