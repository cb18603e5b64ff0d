"""One run in a process of its own: a job on standard input, messages on standard output."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from spikecl.errors import Interrupted, SpikeclError
from spikecl.signals import stop_early


def main() -> int:
    """Run the job; the last message says how it ended."""
    stop_early()
    job = json.loads(sys.stdin.read())
    try:
        path = _run(job)
    except Interrupted:
        return _say({"code": Interrupted.exit_code})
    except SpikeclError as error:
        return _say({"code": error.exit_code, "error": str(error)})
    return _say({"code": 0, "path": path})


def _run(job: dict[str, Any]) -> str:
    from spikecl.experiments.config import parse_config
    from spikecl.experiments.progress import Progress
    from spikecl.experiments.runner import run_config

    def show(progress: Progress) -> None:
        if _say({"progress": list(progress)}):
            # nobody listens any more: save and stop
            os.kill(os.getpid(), signal.SIGTERM)

    config = parse_config(job["config"])
    result = run_config(config, runs_dir=job["runs_dir"], data_dir=job["data_dir"], show=show)
    return str(result.path)


def _say(message: dict[str, Any]) -> int:
    """Write a message; return its exit code, or 75 if the reader is gone."""
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the pipe is gone for good
        return Interrupted.exit_code
    return int(message.get("code", 0))


if __name__ == "__main__":
    sys.exit(main())
