"""Exceptions: every one says what was given, what is allowed and what to do.

``exit_code`` is what the command line ends with when the exception reaches it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpikeclError(Exception):
    """Base of all errors raised on purpose; the run or command failed."""

    exit_code = 1


class UsageError(SpikeclError, ValueError):
    """What the user gave cannot be used; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key, type or value is wrong."""


class DataError(UsageError):
    """A data set is unknown, missing, damaged or of the wrong layout."""


class PairingError(UsageError):
    """Two components cannot work together; both are named."""


class InteropError(UsageError):
    """A network has no equal in the other library; the layer and the difference are named."""


class HardwareError(UsageError):
    """Something cannot run on the chip, or a backend cannot run here; the layer is named."""


class KernelError(UsageError):
    """A kernel that was asked for cannot run here; those that can are named."""


class HiddenFieldError(SpikeclError, AttributeError):
    """A learner asked for something the stream does not reveal."""


class RunError(SpikeclError):
    """A run directory is in use, damaged, or from another version."""


class NonFiniteLossError(SpikeclError):
    """The loss became infinite or NaN; the step is named."""


class ActivityWarning(UserWarning):
    """A layer was silent, or fired all the time; the layer is named."""


class Interrupted(BaseException):
    """The run was asked to stop; its state is saved and it can be resumed.

    Like ``KeyboardInterrupt`` it is no ``Exception``: a library that catches those cannot lose it.
    """

    exit_code = 75


def suggest(given: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? allowed: a, b"`` for an unknown name."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{hint} allowed: {', '.join(names) or 'none'}"
