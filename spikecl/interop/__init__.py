"""Networks of other libraries become ours, and ours theirs, with the same spikes; files too.

No library is imported before it is needed.
"""

from spikecl.errors import InteropError
from spikecl.interop.brian2_out import to_brian2
from spikecl.interop.nir_in import from_nir
from spikecl.interop.nir_out import first_difference, to_nir
from spikecl.interop.norse_in import from_norse
from spikecl.interop.norse_out import to_norse
from spikecl.interop.parts import Currents, Flatten, OneToOne
from spikecl.interop.snntorch_in import from_snntorch
from spikecl.interop.snntorch_out import to_snntorch
from spikecl.interop.surrogates import SpikeGrad

__all__ = [
    "Currents",
    "Flatten",
    "InteropError",
    "OneToOne",
    "SpikeGrad",
    "first_difference",
    "from_nir",
    "from_norse",
    "from_snntorch",
    "to_brian2",
    "to_nir",
    "to_norse",
    "to_snntorch",
]
