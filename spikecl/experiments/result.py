"""A finished run in Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spikecl.errors import RunError
from spikecl.records import RunRecord, find_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from spikecl.networks import Network


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """What a finished run measured, read from its directory."""

    record: RunRecord

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.record.path

    @property
    def summary(self) -> dict[str, Any]:
        """Scalars; accuracies in [0, 1]."""
        return self.record.summary

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Accuracy after each event (rows, the untrained network first) on each set (columns)."""
        return self.record.matrix()

    def steps(self) -> list[dict[str, Any]]:
        """Return the measurements in order."""
        return self.record.steps()

    def network(self) -> Network:
        """Return the trained network; of a run that went on on the chip, as it was exported.

        Raises:
            RunError: The run was made from a network of the user's own, which has no description.

        Example:
            >>> import spikecl, tempfile
            >>> stream = spikecl.permuted(spikecl.load_data("digits"), experiences=1)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result = spikecl.run(stream, spikecl.Mlp(hidden=(9,)), runs_dir=folder)
            ...     network = result.network()
            >>> network.layers["hidden1"].synapse.weight.shape
            torch.Size([9, 64])
        """
        from spikecl.components import from_table
        from spikecl.registry import NETWORKS
        from spikecl.storage import load_state

        run = self.record.run
        if run["identity"] is None:
            raise RunError(
                f"run {self.record.id} used a component that is not registered; build the network "
                f"and load {self.path / 'weights'} with spikecl.storage.load_state"
            )
        name, table = run["identity"]["network"][0]
        spec = from_table(NETWORKS.get(name), table, f"network.{name}")
        network: Network = spec.build(tuple(run["input_shape"]), run["outputs"])
        network.set_parameters(load_state(self.path / "weights"))
        return network

    def plot(self) -> Figure:
        """Return a figure: accuracy matrix, accuracies over the stream, loss."""
        from spikecl.plots import plot_run

        return plot_run(self.record)

    def _repr_html_(self) -> str:
        names = ("acc", "bwt", "fwt", "forgetting", "learning_accuracy")
        summary = self.summary
        cells = "".join(
            f"<tr><td>{n}</td><td>{'–' if summary[n] is None else f'{summary[n]:.4f}'}</td></tr>"
            for n in names
        )
        return f"<table><caption>{self.record.id}</caption>{cells}</table>"


def load(run: str | Path, *, runs_dir: str | Path = "runs") -> RunResult:
    """Return a finished run from its directory, or from its name or a unique prefix of it."""
    record = find_run(str(run), Path(runs_dir))
    if not record.finished:
        raise RunError(
            f"run {record.id} is not finished (status {record.run['status']}); resume it first"
        )
    return RunResult(record)
