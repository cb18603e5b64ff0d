"""Sphinx configuration. Generated pages and copies of the notebooks are made here, at each build.

python -m sphinx -W --keep-going -q -b html docs docs/_build/html
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402
import results  # noqa: E402

import spikecl  # noqa: E402


def code_digest() -> str:
    """Return a digest of the package: notebooks run again when the code they show changes."""
    digest = hashlib.sha256()
    for package in ("spikecl", "hardware/spikecl_hardware"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def copy_notebooks() -> None:
    """Put the notebooks where Sphinx finds them, marked with the code they are to be run with."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    for old in (HERE / "_build" / "notebooks").glob("*"):
        if old.name != code_digest():
            shutil.rmtree(old)
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for stale in {p.name for p in target.glob("*.ipynb")} - {p.name for p in sources}:
        (target / stale).unlink()
    for source in sources:
        notebook = json.loads(source.read_text(encoding="utf-8"))
        notebook["metadata"]["spikecl_code"] = code_digest()
        reference.write(target / source.name, json.dumps(notebook, indent=1) + "\n")


def plain_kernel() -> None:
    """Run notebooks with a profile of our own: no user's startup files, no chatter."""
    profile = HERE / "_build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n")
    os.environ["IPYTHONDIR"] = str(profile.parent)
    os.environ.pop("MPLBACKEND", None)  # the kernel shows figures in the page
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("traitlets").setLevel(logging.WARNING)


GENERATED = HERE / "generated"
GENERATED.mkdir(exist_ok=True)
reference.main(GENERATED)
results.main(ROOT / "benchmarks" / "results", GENERATED)
copy_notebooks()
plain_kernel()

# ---- Sphinx -------------------------------------------------------------------------------------

project = "spikecl"
author = "The spikecl developers"
copyright = "the spikecl developers"
version = release = spikecl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
]
exclude_patterns = ["_build", "generated", "jupyter_execute", "**.ipynb_checkpoints"]
suppress_warnings = ["ref.python"]  # names that two modules have, as Program

html_theme = "furo"
html_title = f"spikecl {release}"
html_static_path = ["_static"]
html_css_files = ["spikecl.css"]
html_math_renderer = "mathml"

# ---- Markdown and notebooks ---------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks" / code_digest())
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True

# ---- reference from docstrings ------------------------------------------------------------------

autodoc_default_options = {"show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def skip_noise(app, what, name, member, skip, options):
    """Leave out what Python writes by itself: fields of named tuples."""
    return skip or (getattr(member, "__doc__", None) or "").startswith("Alias for field number")


def escape_shapes(app, what, name, obj, options, lines):
    """Keep the star of a shape such as [T, B, *features] from starting emphasis."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<=[ \[])\*(?=\w+[\],)])", r"\\*", part) for part in parts[::2]]
        lines[i] = "``".join(parts)


def setup(app):
    app.connect("autodoc-skip-member", skip_noise)
    app.connect("autodoc-process-docstring", escape_shapes)
