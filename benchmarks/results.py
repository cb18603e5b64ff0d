"""Results as files: what was measured, and what it takes to measure it again."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def write(name: str, command: str, content: Mapping[str, object]) -> None:
    """Write ``results/NAME.json``: command, commit, versions, processor, then the content."""
    table = {
        "name": name,
        "command": command,
        "commit": commit(),
        "versions": {package: version(package) for package in ("spikecl", "torch", "numpy")},
        "python": platform.python_version(),
        "cpu": cpu(),
        "threads": 1,
        **content,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")


def commit() -> str:
    """Return the short name of the commit that is checked out; nothing outside of a repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def cpu() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
