"""The room is light: no library is imported before a network of it is."""

import subprocess
import sys

import pytest

import spikecl.interop
from spikecl.errors import InteropError
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF

LIBRARIES = {"snntorch", "norse", "nir", "nirtorch", "torchvision", "matplotlib"}


def modules_after(code):
    program = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_importing_the_room_imports_no_library():
    assert not modules_after("import spikecl.interop") & LIBRARIES


def test_each_direction_imports_its_own_library():
    network = (
        "from spikecl.interop import {0}\n"
        "from spikecl.networks import SpikingMlp\n"
        "from spikecl.neurons import LIF, Reset\n"
        "neuron = LIF(scale_input={1}, reset=Reset.ZERO, detach_reset=False)\n"
        "{0}(SpikingMlp(hidden=(3,), neuron=neuron).build((2,), 2))"
    )
    after = modules_after(network.format("to_snntorch", False))
    assert "snntorch" in after and "norse" not in after
    quiet = "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
    after = modules_after(quiet + network.format("to_norse", True))
    assert "norse" in after and "snntorch" not in after and "torchvision" not in after


@pytest.mark.parametrize("name", ["snntorch", "norse"])
def test_a_missing_library_is_named(name, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    network = SpikingMlp(hidden=(3,), neuron=LIF.snntorch(0.5)).build((2,), 2)
    with pytest.raises(InteropError, match=rf"{name}.* is not installed; pip install 'spikecl\["):
        getattr(spikecl.interop, f"to_{name}")(network)


def test_the_public_names_are_these():
    assert spikecl.interop.__all__ == sorted(spikecl.interop.__all__)
    assert {"from_norse", "from_snntorch", "to_norse", "to_snntorch"} < set(spikecl.interop.__all__)
    for name in spikecl.interop.__all__:
        assert getattr(spikecl.interop, name).__doc__
