"""Networks of other libraries become ours, and ours theirs, with the same spikes.

Neither library is imported before it is needed.
"""

from spikecl.errors import InteropError
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
    "from_norse",
    "from_snntorch",
    "to_norse",
    "to_snntorch",
]
