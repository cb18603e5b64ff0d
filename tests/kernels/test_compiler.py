"""Where compiled code is kept, and what happens where nothing can be compiled."""

import ctypes
import multiprocessing
import os
import stat
import subprocess
import sys

import pytest
import torch

from spikecl.errors import UsageError
from spikecl.kernels import Kernels, choose, compiler, reference, scan, scans
from spikecl.neurons import LIF

needs_compiler = pytest.mark.skipif(compiler.compiler() is None, reason="no C compiler here")
X = torch.full((3, 1, 2), 0.7)
SOURCE = "int answer(void) { return 42; }\n"
CACHES = (compiler.compiler, compiler.load, compiler.against, scans._choose)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return an empty folder for compiled kernels; forget what was found before."""
    monkeypatch.setenv("SPIKECL_KERNELS", str(tmp_path / "kernels"))
    forget()
    yield tmp_path / "kernels"
    monkeypatch.undo()
    forget()


def forget():
    for cached in CACHES:
        cached.cache_clear()


def fake_compiler(path, text):
    """Write a program that stands in for the C compiler."""
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def assert_fused_because(text):
    kernel = choose(LIF(), X)
    assert kernel.name == "fused"
    assert text in kernel.reason
    out, state = scan(X, None, LIF())
    expected, last = reference(X, None, LIF())
    assert torch.equal(out, expected)
    assert torch.equal(state.v, last.v)
    with pytest.raises(UsageError, match="'compiled' cannot run here") as caught:
        scan(X, None, LIF(), kernels=Kernels(scan="compiled"))
    assert text in str(caught.value)


def test_the_folder_is_the_users_unless_another_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("SPIKECL_KERNELS", raising=False)
    assert compiler.folder().name == "kernels"
    assert "spikecl" in compiler.folder().parts
    monkeypatch.setenv("SPIKECL_KERNELS", str(tmp_path))
    assert compiler.folder() == tmp_path


@needs_compiler
def test_what_was_compiled_once_is_found_again(place, monkeypatch):
    library = compiler.load(SOURCE)
    assert library.answer() == 42
    (made,) = place.iterdir()  # nothing else is left behind
    assert made.suffix == ".so"
    before = made.stat().st_mtime_ns

    def refuse(*given, **options):
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert compiler.load(SOURCE) is library
    forget()
    assert compiler.load(SOURCE).answer() == 42
    assert made.stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="compiled again"):
        compiler.load(SOURCE.replace("42", "43"))


@needs_compiler
def test_other_flags_another_compiler_and_another_processor_are_other_files(place, monkeypatch):
    compiler.load(SOURCE)
    for name, value in (("FLAGS", (*compiler.FLAGS, "-g")), ("_processor", lambda: "another")):
        monkeypatch.setattr(compiler, name, value)
        compiler.load.cache_clear()
        compiler.load(SOURCE)
    monkeypatch.setattr(compiler, "compiler", lambda: "/bin/false")
    compiler.load.cache_clear()
    with pytest.raises(UsageError, match="/bin/false failed"):
        compiler.load(SOURCE)
    assert len(list(place.iterdir())) == 3


@needs_compiler
def test_a_neuron_is_compiled_once_whatever_its_numbers(place):
    from spikecl.kernels import c_code

    c_code._LIBRARIES.clear()
    for neuron in (LIF(beta=0.51), LIF(beta=0.52, v_th=0.7)):
        scan(X, None, neuron, kernels=Kernels(scan="compiled"))
        scan(X[:, :, :1].expand(-1, 4, 300), None, neuron, kernels=Kernels(scan="compiled"))
    assert len(list(place.glob("*.so"))) == 2  # and the one that tries the compiler


def test_no_compiler(place, monkeypatch):
    monkeypatch.setenv("CC", "")
    assert compiler.compiler() is None
    assert_fused_because("no C compiler")
    assert not place.exists()


def test_a_compiler_that_is_not_there(place, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiler.compiler() is None
    assert_fused_because("no C compiler")


@needs_compiler
def test_a_compiler_of_ones_own(place, monkeypatch):
    found = compiler.compiler()
    compiler.compiler.cache_clear()
    monkeypatch.setenv("CC", found)
    assert compiler.compiler() == found
    assert choose(LIF(), X).name == "compiled"


@pytest.mark.skipif(os.name != "posix", reason="stands in by a script")
def test_a_compiler_that_fails(place, monkeypatch, tmp_path):
    text = "import sys\nsys.stdin.read()\nsys.exit('cc1: the disk is on fire')\n"
    monkeypatch.setenv("CC", fake_compiler(tmp_path / "cc", text))
    assert_fused_because("failed: cc1: the disk is on fire")
    assert list(place.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="stands in by a script")
def test_a_compiler_that_makes_nothing(place, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", fake_compiler(tmp_path / "cc", "import sys\nsys.stdin.read()\n"))
    assert_fused_because("cannot be kept")


@pytest.mark.skipif(os.name != "posix", reason="stands in by a script")
def test_a_compiler_that_makes_nonsense(place, monkeypatch, tmp_path):
    text = (
        "import sys\nsys.stdin.read()\nopen(sys.argv[sys.argv.index('-o') + 1], 'w').write('?')\n"
    )
    monkeypatch.setenv("CC", fake_compiler(tmp_path / "cc", text))
    assert_fused_because("")


@needs_compiler
def test_a_folder_that_is_a_file(place):
    place.write_text("in the way")
    assert_fused_because("cannot be kept in")


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(place):
    place.mkdir()
    place.chmod(0o500)
    try:
        assert_fused_because("cannot be kept in")
    finally:
        place.chmod(0o700)


@needs_compiler
def test_a_file_that_was_cut_short_is_made_again(place, monkeypatch, tmp_path):
    compiler.load(SOURCE)
    (made,) = place.iterdir()
    other = tmp_path / "other" / made.name  # a place of its own: what is loaded stays loaded
    other.parent.mkdir()
    other.write_bytes(made.read_bytes()[:100])
    monkeypatch.setenv("SPIKECL_KERNELS", str(other.parent))
    forget()
    assert compiler.load(SOURCE).answer() == 42


def _build(index, gate, results):
    gate.wait()
    results.put(compiler.load(SOURCE).answer())


@needs_compiler
def test_processes_that_compile_the_same_at_once(place):
    context = multiprocessing.get_context("fork" if sys.platform != "darwin" else "spawn")
    gate, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_build, args=(k, gate, results)) for k in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [42, 42]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    (made,) = place.iterdir()
    assert ctypes.CDLL(str(made)).answer() == 42


@needs_compiler
def test_code_rounds_each_product_before_it_is_added():
    """The torch rounding: no fused multiply-add."""
    x = 1.0 + 2.0**-12
    flags = " ".join(compiler.FLAGS)
    assert "-ffp-contract=off" in flags
    assert "fast-math" not in flags
    library = compiler.load("float f(float a, float b, float c) { return a * b + c; }\n")
    library.f.restype, library.f.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    a = torch.tensor(x)
    assert library.f(x, x, -1.0) == float(a * a - 1.0) != x * x - 1.0
