from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))  # meetings.py serves several files


@pytest.fixture(params=["dense", "recurrent", "conv"])
def kind(request):
    return request.param


@pytest.fixture
def network(kind):
    from meetings import SPECS, build

    return build(*SPECS[kind])


@pytest.fixture
def x(kind):
    from meetings import SPECS, trains

    return trains(12, 3, *SPECS[kind][1])


@pytest.fixture
def labels():
    return torch.tensor([0, 2, 1])


@pytest.fixture
def loss(labels):
    return lambda logits: functional.cross_entropy(logits, labels)
