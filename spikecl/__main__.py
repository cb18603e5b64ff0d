"""``python -m spikecl`` is the command ``spikecl``."""

from spikecl.cli import main

main()
