"""The sets of the catalogue that happen in time: events, touch and speech."""

from __future__ import annotations

from spikecl.data import nmnist, spoken
from spikecl.data.entry import Entry, Variant

_DIGITS = tuple("0123456789")

NMNIST = Entry(
    name="nmnist",
    variants=(
        Variant("nmnist.npz", "nmnist", None),
        Variant(
            "nmnist_small.npz",
            "nmnist_small",
            "9c786d8f167ce259ef45c094cd2537d5e0881b238669c5f609c7f585457ffe47",
            note="subset: the first 1,000 training and 100 test recordings",
        ),
    ),
    base_url="https://data.mendeley.com/public-files/datasets/468j46mzdv/files/",
    train=60000,
    test=10000,
    shape=(34, 34, 2),
    peak=1.0,
    class_names=_DIGITS,
    licence="CC BY-SA 4.0",
    citation="G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor (2015). Converting static image "
    "datasets to spiking neuromorphic datasets using saccades. Frontiers in Neuroscience 9, 437. "
    "doi:10.17632/468j46mzdv.1",
    remote={
        "train": "39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
        "test": "05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
    },
    md5={
        "train": "20959b8e626244a1b502305a9e6e2031",
        "test": "69ca8762b2fe404d9b9bad1103e97832",
    },
    decode=nmnist.read,
    temporal=True,
    events=True,
)

BRAILLE = Entry(
    name="braille",
    variants=(
        Variant("braille.npz", "braille", None),
        Variant(
            "braille7.npz",
            "braille7",
            "92ae015b795e227494e18f2686c93e55a3da5fb15fbb022b110e70450f39b84a",
            note="subset: 1,158 recordings of seven letters, own 80/20 split",
            class_names=("Space", *"AEIOUY"),
        ),
    ),
    base_url="https://zenodo.org/records/7050094/",
    train=4320,
    test=1080,
    shape=(256, 12),
    peak=1.0,
    class_names=("Space", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    licence="CC BY 4.0",
    citation="S. F. Müller-Cleve, V. Fra, L. Khacef et al. (2022). Braille letter reading: a "
    "benchmark for spatio-temporal pattern recognition on neuromorphic hardware. Frontiers in "
    "Neuroscience 16, 951164. doi:10.5281/zenodo.7050094",
    temporal=True,
    step_ms=5.0,
    conversion="its official files are Python pickles, which can run any code and are never read "
    "here; unpickle them yourself where you trust them, mark the times of each letter's events in "
    "256 steps of 5 ms x 12 taxels of 0 and 1, and save x_train, y_train, x_test, y_test (labels 0 "
    "Space, 1 A to 26 Z) with numpy.savez as braille.npz; the page Data of the documentation has "
    "the lines",
)

FSDD = Entry(
    name="fsdd",
    variants=(
        Variant(
            "fsdd.npz", "fsdd", "54679cfd4c8cf04393cfdd8d3038093c43978cee138235d4f6aeb5554e145a12"
        ),
        Variant(
            "fsdd_mel40.npz",
            "fsdd_mel40",
            "cb86271cf6958490882109c8e760ecfe828876e30d483177eda9650b75e86085",
            note="variant: the same recordings and split, other mel bands on another scale",
        ),
    ),
    base_url="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/",
    train=2700,
    test=300,
    shape=(100, 40),
    peak=255.0,
    class_names=_DIGITS,
    licence="CC BY-SA 4.0",
    citation="Z. Jackson et al. (2020). Free Spoken Digit Dataset, v1.0.10. "
    "github.com/Jakobovski/free-spoken-digit-dataset",
    remote={"archive": "v1.0.10.zip"},
    decode=spoken.read,
    temporal=True,
    step_ms=10.0,
)
