from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spikecl.errors import RunError
from spikecl.plots import plot_matrix

MATRIX = np.linspace(0, 1, 60).reshape(10, 6)


def draw(record):
    ax = Figure().subplots()
    plot_matrix(record, ax)
    return ax


def test_cells_hold_the_accuracies_in_percent_and_nan_is_hatched(fake_run):
    ax = draw(fake_run())
    cells = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert cells == {
        (0, 0): "10.0", (0, 1): "12.0", (0, 2): "8.0",
        (1, 0): "90.0", (1, 1): "20.0",
        (2, 0): "70.0", (2, 1): "95.0", (2, 2): "15.0",
        (3, 0): "60.0", (3, 1): "80.0", (3, 2): "100.0",
    }  # fmt: skip
    hatched = [p.get_xy() for p in ax.patches if isinstance(p, Rectangle) and p.get_hatch()]
    assert hatched == [(2, 1)]
    colours = ax.collections[0].get_array()
    assert np.ma.getmaskarray(colours).reshape(4, 3).nonzero() == (np.array([1]), np.array([2]))
    assert ax.collections[0].get_clim() == (0, 1)


def test_first_event_is_on_top_and_names_are_the_records(fake_run):
    ax = draw(fake_run(sets=["a$b$", "c", "d"]))
    rows = [t.get_text() for t in ax.get_yticklabels()]
    assert rows == ["untrained", "event0", "event1", "event2"]
    assert [t.get_text() for t in ax.get_xticklabels()] == [r"a\$b\$", "c", "d"]
    assert ax.yaxis_inverted()


def test_numbers_are_readable_on_their_cell(fake_run):
    ax = draw(fake_run(matrix=MATRIX))
    mesh = ax.collections[0]

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for text in ax.texts:
        x, y = text.get_position()
        ground = luminance(mesh.cmap(mesh.norm(MATRIX[int(y), int(x)]))[:3])
        ink = 1.0 if text.get_color() == "white" else 0.0
        ratio = (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05)
        assert ratio >= 4.2, text.get_text()


def test_many_sets_have_no_numbers_and_few_names(fake_run):
    ax = draw(fake_run(matrix=np.full((42, 41), 0.5)))
    assert not ax.texts
    assert len(ax.get_xticks()) <= 20
    assert len(ax.get_yticks()) <= 20


def test_an_unfinished_run_says_how_to_finish_it(fake_run):
    record = fake_run()
    (record.path / "summary.json").unlink()
    with pytest.raises(RunError, match="spikecl resume run"):
        draw(record)
