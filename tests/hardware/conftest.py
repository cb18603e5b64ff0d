from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "loihi"))  # programs.py serves several files


@pytest.fixture(scope="session")
def installed():
    """Return the Lava of this interpreter; without one a test fails, unless that was said."""
    from spikecl_hardware.loihi import lava

    if os.environ.get("SPIKECL_WITHOUT_LAVA"):
        pytest.skip("SPIKECL_WITHOUT_LAVA is set: an environment without Lava")
    try:
        return lava.find(sys.executable)
    except lava.LavaError as error:
        pytest.fail(str(error), pytrace=False)
