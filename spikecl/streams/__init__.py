"""Task streams: pure sequences of events, and what a learner may see of them."""

from spikecl.streams.domains import Domains, domains
from spikecl.streams.events import (
    Adapt,
    Batch,
    Evaluate,
    Event,
    Experience,
    Export,
    Loaded,
    Samples,
    Unlearn,
)
from spikecl.streams.mixtures import Drifting, drifting
from spikecl.streams.reveal import CLASS_IL, DOMAIN_IL, TASK_FREE, TASK_IL, LearnerView, Reveal
from spikecl.streams.scenarios import (
    Joint,
    Permuted,
    Rotated,
    SplitClasses,
    StreamSpec,
    joint,
    permuted,
    rotated,
    split_classes,
)
from spikecl.streams.shifts import ConceptShift, concept_shift
from spikecl.streams.stream import Stream

__all__ = [
    "CLASS_IL",
    "DOMAIN_IL",
    "TASK_FREE",
    "TASK_IL",
    "Adapt",
    "Batch",
    "ConceptShift",
    "Domains",
    "Drifting",
    "Evaluate",
    "Event",
    "Experience",
    "Export",
    "Joint",
    "LearnerView",
    "Loaded",
    "Permuted",
    "Reveal",
    "Rotated",
    "Samples",
    "SplitClasses",
    "Stream",
    "StreamSpec",
    "Unlearn",
    "concept_shift",
    "domains",
    "drifting",
    "joint",
    "permuted",
    "rotated",
    "split_classes",
]
