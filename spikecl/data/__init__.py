"""Data sets as plain arrays with a checksum: by name, from the user's ``.npz``, or downloaded."""

from spikecl.data import catalogue
from spikecl.data.arrays import Data, checked
from spikecl.data.library import (
    CatalogueRow,
    VerifyRow,
    catalogue_rows,
    fetch,
    load,
    verify,
)

__all__ = [
    "CatalogueRow",
    "Data",
    "VerifyRow",
    "catalogue",
    "catalogue_rows",
    "checked",
    "fetch",
    "load",
    "verify",
]
