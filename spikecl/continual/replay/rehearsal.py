"""What every method that replays does with its memory: open, fill, ask, clear and save it."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from spikecl.continual.method import Context, Method
from spikecl.continual.replay.memory import Memory, Policy, capacity_of
from spikecl.errors import UsageError
from spikecl.storage import State
from spikecl.streams import Batch, LearnerView, Reveal, Samples, Unlearn


class RawType(NamedTuple):
    """The type a data set has, and back: intensity 1.0 is ``peak``. Nothing is lost on the way."""

    dtype: torch.dtype
    peak: float

    @classmethod
    def of(cls, samples: Samples) -> RawType:
        """Return the type of samples; floats stay intensities."""
        kinds = {part.x.dtype for part in samples.parts}
        if len(kinds) > 1 or any(kind.is_floating_point for kind in kinds):
            return cls(torch.float32, 1.0)
        return cls(kinds.pop(), samples.peak)

    def store(self, x: Tensor) -> Tensor:
        """Return intensities in the data's type."""
        return x if self.dtype.is_floating_point else (x * self.peak).round().to(self.dtype)

    def read(self, raw: Tensor) -> Tensor:
        """Return intensities, as a batch has them."""
        x = raw.float()
        return x if self.peak == 1 else x / self.peak


class Rehearsal(Method):
    """A memory that follows a stream; a method says what to do with what it recalls.

    Room for all is taken when the first experience begins. Samples are kept as they came, in the
    data's own type, after the step that learned from them, in their first epoch (in every one
    where boundaries are hidden: nobody can tell which is the first).

    Args:
        name: Of the method.
        context: The run.
        capacity: Samples there is room for; ``None`` is 500, or as many as ``max_bytes`` holds.
        max_bytes: Most bytes the memory may take.
        policy: What it keeps.
    """

    def __init__(
        self,
        name: str,
        context: Context,
        *,
        capacity: int | None,
        max_bytes: int | None,
        policy: Policy,
    ):
        self._name, self._context, self._policy = name, context, policy
        self._room = capacity, max_bytes
        self.memory: Memory | None = None
        self._raw = RawType(torch.float32, 1.0)
        self._incoming: Batch | None = None  # from the beginning to the end of a step
        self._experience, self._epoch, self._draws = -1, 0, 0

    # ---- experiences ----------------------------------------------------------------------------

    def begin(self, view: LearnerView) -> None:
        raw = RawType.of(view.samples)
        if self.memory is None:
            self._raw, x = raw, view.samples.parts[0].x
            like = {"x": x.new_empty((0, *x.shape[1:]), dtype=raw.dtype)}
            for column, shown in (("y", Reveal.LABELS), ("uid", Reveal.SAMPLE_IDS)):
                if shown in self._context.reveal:
                    like[column] = torch.empty(0, dtype=torch.int64)
            self.memory = self._open(like, capacity_of(like, *self._room))
        elif raw != self._raw:
            self._refuse(f"{raw.dtype} with peak {raw.peak:g}")
        self._experience, self._epoch = self._experience + 1, 0

    def _refuse(self, came: str) -> NoReturn:
        raise UsageError(
            f"method '{self._name}' keeps samples as {self._raw.dtype} with peak "
            f"{self._raw.peak:g}, and those that came now are {came}; use one type for all data of "
            "a stream"
        )

    def _open(self, like: dict[str, Tensor], capacity: int) -> Memory:
        return Memory(
            like,
            capacity=capacity,
            policy=self._policy,
            classes=self._context.classes,
            seeds=self._context.seeds,
            name=f"{self._name}-keep",
            device=self._context.device,
        )

    def end_epoch(self) -> None:
        self._epoch += 1

    # ---- steps ----------------------------------------------------------------------------------

    def hold(self, batch: Batch) -> None:
        """Remember the batch that comes until its step is done."""
        self._incoming = None if self._epoch else batch

    def after_step(self) -> None:
        if self._incoming is not None and self.memory is not None:
            x, y, uid = self._incoming
            raw = self._raw.store(x)
            whole = not self._raw.dtype.is_floating_point
            if whole and not torch.equal(self._raw.read(raw), x.float()):  # no boundary showed it
                self._refuse("others")
            came = {"x": raw, "y": y, "uid": uid}
            self.memory.add({name: t for name, t in came.items() if t is not None})
        self._incoming = None

    def recall(self, count: int, *, balanced: bool = False) -> Batch | None:
        """Return up to ``count`` different samples of the memory; ``None`` where it is empty."""
        if self.memory is None or not self.memory.size:
            return None
        generator = self._context.seeds.generator(f"{self._name}-draw", step=self._draws)
        self._draws += 1
        found = self.memory.take(self.memory.draw(count, generator, balanced=balanced))
        return Batch(self._raw.read(found["x"]), found.get("y"), found.get("uid"))

    # ---- beside steps ---------------------------------------------------------------------------

    def unlearn(self, request: Unlearn) -> None:
        if Reveal.SAMPLE_IDS not in self._context.reveal:
            raise UsageError(
                f"method '{self._name}' cannot tell which of its samples to forget: the stream "
                "hides sample ids (sample_ids); use a stream that reveals them"
            )
        if self.memory is not None:
            self.memory.delete(request.uids)

    def report(self) -> dict[str, object]:
        if self.memory is None:
            return {}
        kept = {str(c): n for c, n in enumerate(self.memory.classes_kept()) if n}
        return {"stored": self.memory.size, "seen": self.memory.seen, "classes": kept}

    def state_dict(self) -> State:
        state: State = {"experience": self._experience, "epoch": self._epoch, "draws": self._draws}
        if self.memory is not None:
            state |= {"peak": self._raw.peak, "memory": self.memory.state_dict()}
        return state

    def load_state_dict(self, state: State) -> None:
        self._experience, self._epoch = state["experience"], state["epoch"]
        self._draws = state["draws"]
        self.memory, self._incoming = None, None
        if "memory" in state:
            columns = state["memory"]["columns"]
            self._raw = RawType(columns["x"].dtype, state["peak"])
            self.memory = self._open(columns, state["memory"]["capacity"])
            self.memory.load_state_dict(state["memory"])

    def nbytes(self) -> int:
        return 0 if self.memory is None else self.memory.nbytes()
