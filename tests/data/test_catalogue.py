from __future__ import annotations

import re

import pytest

from spikecl.data.catalogue import CATALOGUE


def test_names():
    assert list(CATALOGUE) == ["digits", "mnist", "fashion_mnist", "notmnist"]
    assert all(name == entry.name for name, entry in CATALOGUE.items())


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda e: e.name)
def test_every_entry_is_complete(entry):
    assert entry.licence and entry.citation and len(entry.class_names) == 10
    for variant in entry.variants:
        assert variant.checksum is None or re.fullmatch("[0-9a-f]{64}", variant.checksum)
        assert bool(variant.file) is not entry.built_in
    assert entry.full.note == ""
    assert all(variant.note for variant in entry.variants[1:])


def test_a_subset_has_another_name_and_checksum_than_the_full_set():
    variants = [v for entry in CATALOGUE.values() for v in entry.variants]
    for values in ([v.name for v in variants], [v.checksum for v in variants]):
        assert len(set(values)) == len(variants)


def test_addresses():
    urls = CATALOGUE["mnist"].urls()
    assert urls["x_test"] == (
        "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-images-idx3-ubyte.gz"
    )
    mirror = CATALOGUE["mnist"].urls("http://localhost:1")
    assert mirror["y_train"] == "http://localhost:1/train-labels-idx1-ubyte.gz"
    assert CATALOGUE["digits"].urls() == {}
