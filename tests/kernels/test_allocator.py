"""Freed memory stays with the process where the C library can be told so."""

import os
import platform
import subprocess
import sys

import pytest

from spikecl.kernels import allocator, keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"

# asks for what a training step asks for, and counts the pages that the system had to hand out
STEPS = """
import resource, sys
import torch
from spikecl.kernels import keep_freed_memory
torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        held = [torch.ones(5_000_000, dtype=torch.float32) for _ in range(2)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
done = keep_freed_memory()
assert keep_freed_memory() is done
faults()
print(done, given_back, faults(), resource.getpagesize())
"""


def test_it_says_whether_it_was_done():
    assert keep_freed_memory() is GLIBC
    assert keep_freed_memory() is GLIBC  # and again


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda *given: 1 / 0)
    assert keep_freed_memory() is False


@pytest.mark.parametrize(("answers", "done"), [((1, 1), True), ((1, 0), False), ((0, 1), False)])
def test_a_setting_that_is_refused_is_not_done(monkeypatch, answers, done):
    class Library:
        said = iter(answers)

        def mallopt(self, name, value):
            assert value > 20_000_000
            return next(self.said)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library())
    assert keep_freed_memory() is done


@pytest.mark.skipif(not GLIBC, reason="glibc alone has such a setting")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another allocator may be loaded")
def test_memory_of_a_step_is_there_for_the_next():
    """Without it every array of 20 MB is made of new pages; with it, of the old ones.

    What glibc does of its own accord depends on where the heap happens to end; so it is told to
    start out with giving large arrays back, always.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment["GLIBC_TUNABLES"] = "glibc.malloc.mmap_threshold=131072"
    run = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True
    )
    done, given_back, kept, page = run.stdout.split()
    assert done == "True"
    arrays, size = 10, 20_000_000 // int(page)
    if int(given_back) < arrays * size // 600:  # pages of 2 MB, or more
        pytest.skip("this system hands out memory without a fault for each page")
    assert int(kept) < int(given_back) / 10


def test_nothing_is_set_by_an_import():
    """It is a setting of the whole process; runs ask for it."""
    code = (
        "import ctypes; real = ctypes.CDLL.__getattr__\n"
        "def look(self, name):\n"
        "    assert name != 'mallopt', 'set on import'\n"
        "    return real(self, name)\n"
        "ctypes.CDLL.__getattr__ = look\n"
        "import spikecl, spikecl.kernels, spikecl.networks, spikecl.experiments\n"
        "try: spikecl.kernels.keep_freed_memory()\n"
        "except AssertionError: print('seen')\n"
        "else: print('not seen')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["seen"] if GLIBC else ["not", "seen"])
