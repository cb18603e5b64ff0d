"""Memory of a process that runs the same step over and over."""

from __future__ import annotations

import ctypes
import platform

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 1 << 25


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next step instead of giving it back.

    A training step frees tens of megabytes at its end and asks for them again at once; each time
    the system would have to clear them. The process then holds its largest use so far. It is a
    setting of the whole process, so nothing calls this on import; runs do.

    Returns:
        Whether it was done: glibc alone has such a setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_TRIM, 1 << 30)) and bool(mallopt(_MAP, _LARGE))
