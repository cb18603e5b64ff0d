from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from spikecl.plots import plot_run

PNG = b"\x89PNG"


def test_three_panels_and_the_scalars(fake_run):
    figure = plot_run(fake_run())
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "accuracy %",
        "accuracy of each test set",
        "training loss",
    ]
    title = figure.get_suptitle()
    assert "run" in title and "ACC 80.0 %" in title and "BWT −22.5 %" in title


def test_one_task_has_no_bwt(fake_run):
    record = fake_run(matrix=[[0.1], [0.8]], losses=((1.0,),), bwt=None)
    figure = plot_run(record)
    assert "BWT" not in figure.get_suptitle()
    assert figure._repr_png_().startswith(PNG)


def test_no_pyplot_and_no_display_is_needed(fake_run):
    record = fake_run()
    code = (
        "import sys; from pathlib import Path\n"
        "from spikecl.plots import plot_comparison, plot_run\n"
        "from spikecl.records import RunRecord\n"
        f"record = RunRecord(Path({str(record.path)!r}))\n"
        "plot_run(record)._repr_png_(); plot_comparison([record])._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_figures_can_be_made_in_threads(fake_run):
    records = [fake_run(f"r{i}", matrix=np.full((4, 3), i / 10)) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        figures = list(pool.map(plot_run, records))
    assert [figure.axes[0].texts[0].get_text() for figure in figures] == [
        "0.0",
        "10.0",
        "20.0",
        "30.0",
    ]


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(fake_run):
    record = fake_run("$\\broken{$", sets=["$\\a$", "$\\b$", "_c"])
    assert plot_run(record)._repr_png_().startswith(PNG)
