from __future__ import annotations

import re

import pytest

from spikecl.data.catalogue import CATALOGUE


def test_names():
    images = ["digits", "mnist", "fashion_mnist", "notmnist", "cifar10", "cifar100"]
    assert list(CATALOGUE) == [
        *images,
        "evidence",
        "evidence_short",
        "nmnist",
        "braille",
        "fsdd",
    ]
    assert all(name == entry.name for name, entry in CATALOGUE.items())


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda e: e.name)
def test_every_entry_is_complete(entry):
    classes = {"cifar100": 100, "braille": 27, "evidence": 2, "evidence_short": 2}.get(
        entry.name, 10
    )
    assert entry.licence and entry.citation and len(set(entry.class_names)) == classes
    assert set(entry.md5) <= set(entry.remote)
    assert bool(entry.conversion) is (entry.decode is None and not entry.built_in)
    assert bool(entry.remote) is (entry.decode is not None)
    assert entry.built_in or entry.draw is None
    assert entry.temporal or entry.step_ms is None
    for variant in entry.variants:
        assert set(variant.class_names) <= set(entry.class_names)
        assert variant.checksum is None or re.fullmatch("[0-9a-f]{64}", variant.checksum)
        assert bool(variant.file) is not entry.built_in
    assert entry.full.note == ""
    assert all(variant.note for variant in entry.variants[1:])


def test_a_subset_has_another_name_and_checksum_than_the_full_set():
    variants = [v for entry in CATALOGUE.values() for v in entry.variants]
    for values in ([v.name for v in variants], [v.checksum for v in variants if v.checksum]):
        assert len(set(values)) == len(values)


def test_the_classes_of_a_subset_are_its_own():
    subset = CATALOGUE["braille"].variants[1]
    assert subset.class_names == ("Space", "A", "E", "I", "O", "U", "Y")


def test_addresses():
    urls = CATALOGUE["mnist"].urls()
    assert urls["x_test"] == (
        "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-images-idx3-ubyte.gz"
    )
    mirror = CATALOGUE["mnist"].urls("http://localhost:1")
    assert mirror["y_train"] == "http://localhost:1/train-labels-idx1-ubyte.gz"
    assert CATALOGUE["digits"].urls() == {}
