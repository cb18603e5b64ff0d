"""A continual-learning method of your own: pull the weights towards where the last task left them.

python examples/write_your_own_method.py
"""

from __future__ import annotations

import tempfile

import spikecl
from spikecl.components import PositiveFloat, component
from spikecl.continual import Method, MethodSpec
from spikecl.streams import Reveal


# method: begin
@component
class Anchor(MethodSpec):
    """Pull the weights towards where the last experience left them."""

    needs = Reveal.BOUNDARY  # a stream that hides this is refused
    strength: PositiveFloat = 0.03

    def start(self, context):
        """Return what runs."""
        return _Anchor(self.strength, context.network)


class _Anchor(Method):
    def __init__(self, strength, network):
        self.strength, self.network, self.old = strength, network, {}

    def gradients(self, gradients):
        now = self.network.weights()
        pull = {n: self.strength * (now[n] - old) for n, old in self.old.items()}
        return {n: g + pull.get(n, 0) for n, g in gradients.items()}

    def end(self, view):
        self.old = {n: w.detach().clone() for n, w in self.network.weights().items()}

    # method: state
    def state_dict(self):
        return {"old": self.old}

    def load_state_dict(self, state):
        self.old = state.get("old", {})

    def nbytes(self):
        return sum(w.nbytes for w in self.old.values())


# method: run
def main() -> None:
    """Compare it with fine-tuning on three permutations of the digits."""
    stream = spikecl.permuted(spikecl.load_data("digits"), experiences=3)
    network = spikecl.SpikingMlp(hidden=(100,))
    plan = spikecl.TrainPlan(epochs=3, batch=32)
    with tempfile.TemporaryDirectory() as runs:
        for method in (spikecl.Finetune(), Anchor(), Anchor(strength=0.3)):
            settings = {"methods": [method], "plan": plan, "runs_dir": runs}
            result = spikecl.run(stream, network, **settings)
            acc, bwt = (100 * result.summary[key] for key in ("acc", "bwt"))
            print(f"{method!s:24} ACC {acc:5.1f} %   BWT {bwt:5.1f} %")


if __name__ == "__main__":
    main()
