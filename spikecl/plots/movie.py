"""A layer's activity as a film."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from spikecl.errors import UsageError
from spikecl.metrics.trains import Trains, positive
from spikecl.plots.recording import one_sample, place, whole_numbers
from spikecl.plots.style import DARK, NORMAL, SMALL, tidy


def animation(
    activity: Trains,
    dt: float,
    *,
    shape: Sequence[int] | None = None,
    sample: int = 0,
    label: str = "spikes",
    frame_ms: float = 50.0,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Return a film of a layer, one frame per time step; the title is the time.

    Colours go from the least to the most of the whole recording, from 0 where nothing is negative.
    ``film.save("layer.gif", writer="pillow")`` writes a file, ``film.to_jshtml()`` a player for a
    notebook. Keep the film until then: it goes with its last name.

    Args:
        activity: Spikes, membranes or other numbers [T, B, N] or [T, N].
        dt: Time step in ms.
        shape: Rows and columns (H, W), H W = N, row by row; one row of N if not given.
        sample: Which of the B samples.
        label: What the colours mean, with its unit.
        frame_ms: How long a frame is shown, in ms of the viewer's time.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: The array or a time cannot be, the shape does not hold N neurons, or there is no
            such sample.

    Example:
        >>> import numpy as np, tempfile
        >>> film = animation(np.eye(6), dt=1.0, shape=(2, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     film.save(f"{folder}/layer.gif", writer="pillow")
    """
    x = one_sample(activity, sample, "activity", counts=False)
    steps, n = x.shape
    grid = (1, n) if shape is None else tuple(shape)
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != n:
        raise UsageError(f"shape is {shape}, the layer has {n} neurons; give rows times columns")
    times = np.arange(steps) * positive(dt, "dt")
    frames = x.reshape(steps, *grid)
    low = min(0.0, float(x.min()))
    high = float(x.max()) if x.max() > low else low + 1.0
    height = 1.6 if shape is None else float(np.clip(0.7 + 4.3 * grid[0] / grid[1], 1.6, 7.0))
    figure, ax = place(ax, 7.2 if shape is None else 5.6, height)
    image = ax.imshow(
        frames[0].astype(np.float32),
        cmap="viridis",
        vmin=low,
        vmax=high,
        aspect="auto" if shape is None else "equal",
    )
    bar = figure.colorbar(image, ax=ax, pad=0.02, ticks=MaxNLocator(4))
    bar.set_label(label, fontsize=SMALL, color=DARK)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    tidy(ax, "0 ms", grid="none")
    ax.set(xlabel="neuron" if shape is None else "column", ylabel="" if shape is None else "row")
    for axis, length in ((ax.yaxis, grid[0]), (ax.xaxis, grid[1])):
        axis.set_major_locator(whole_numbers() if length > 1 else NullLocator())

    def draw(step: int) -> list[Artist]:
        image.set_data(frames[step].astype(np.float32))
        title = ax.set_title(f"{times[step]:g} ms", fontsize=NORMAL, color=DARK, loc="left")
        return [image, title]

    return FuncAnimation(
        figure, draw, frames=steps, interval=positive(frame_ms, "frame_ms"), cache_frame_data=False
    )
