"""The room is light: no library is imported before a network of it is."""

import subprocess
import sys

import pytest

import spikecl.interop
from spikecl.errors import InteropError
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF

LIBRARIES = {"snntorch", "norse", "nir", "nirtorch", "torchvision", "matplotlib"}
PROGRAM = """
import sys, warnings
import spikecl.interop
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF, Reset

def present():
    print(*sorted({name.split(".")[0] for name in sys.modules}))

def network(scaled):
    neuron = LIF(scale_input=scaled, reset=Reset.ZERO, detach_reset=False)
    return SpikingMlp(hidden=(3,), neuron=neuron).build((2,), 2)

present()
spikecl.interop.from_snntorch(spikecl.interop.to_snntorch(network(False)))
present()
warnings.simplefilter("ignore", DeprecationWarning)
spikecl.interop.from_norse(spikecl.interop.to_norse(network(True)))
present()
"""


def test_a_library_is_imported_when_it_is_needed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    room, snntorch, norse = (set(line.split()) for line in done.stdout.splitlines())
    assert not room & LIBRARIES
    assert snntorch & LIBRARIES == {"snntorch"}
    assert "norse" in norse
    assert "torchvision" not in norse


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
