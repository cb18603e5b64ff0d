"""Data sets as plain arrays with a checksum: by name, from the user's ``.npz``, or downloaded."""

from spikecl.data import catalogue
from spikecl.data.arrays import Data, checked
from spikecl.data.events import Events, Frames
from spikecl.data.evidence import evidence
from spikecl.data.library import (
    CatalogueRow,
    VerifyRow,
    catalogue_rows,
    fetch,
    load,
    verify,
)
from spikecl.data.subsets import first_samples, fold
from spikecl.data.tonic import from_tonic
from spikecl.data.validation import hold_out

__all__ = [
    "CatalogueRow",
    "Data",
    "Events",
    "Frames",
    "VerifyRow",
    "catalogue",
    "catalogue_rows",
    "checked",
    "evidence",
    "fetch",
    "first_samples",
    "fold",
    "from_tonic",
    "hold_out",
    "load",
    "verify",
]
