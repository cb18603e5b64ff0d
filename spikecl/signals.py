"""Ctrl-C and SIGTERM: finish the step, save, stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from spikecl.errors import Interrupted


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = False


def stop_early(message: str = "") -> None:
    """Let SIGINT and SIGTERM end a process that has nothing to save, at once and with 75.

    An exception would not do: compiled code that is being imported may clear it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        os.write(2, message.encode())
        os._exit(Interrupted.exit_code)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


@contextmanager
def stop_on_signals(also: Callable[[], None] | None = None) -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of dying; a second SIGINT stops at once.

    Outside the main thread nothing is installed: Python delivers signals to the main thread only.

    Args:
        also: Called at the first signal.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.asked and number == signal.SIGINT:
            raise Interrupted("stopped at once; what was saved before is intact")
        request.asked = True
        if also is not None:
            also()

    before: dict[int, Any] = {
        number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
