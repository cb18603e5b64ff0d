"""The data sets known by name: where they come from, what they hold, how they are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# The published files of the MNIST family have the same names everywhere.
IDX_FILES: Mapping[str, str] = MappingProxyType(
    {
        "x_train": "train-images-idx3-ubyte.gz",
        "y_train": "train-labels-idx1-ubyte.gz",
        "x_test": "t10k-images-idx3-ubyte.gz",
        "y_test": "t10k-labels-idx1-ubyte.gz",
    }
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of a data set on disk.

    Attributes:
        file: File name looked for in the data folders; empty when it comes with a library.
        name: ``Data.name`` of what the file holds; a subset has its own.
        checksum: Expected :func:`~spikecl.data.arrays.checksum_of`, ``None`` where none is known.
        note: What sets it apart from the full set, empty for the full set.
    """

    file: str
    name: str
    checksum: str | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set of the catalogue.

    Attributes:
        name: The name in configurations.
        variants: Forms it is found in, the full set first.
        base_url: Folder of the official files, ending in ``/``; ``None`` when built in.
        train: Samples of the full training set.
        test: Samples of the full test set.
        shape: Shape of one sample.
        peak: The input value that stands for intensity 1.0.
        class_names: One name for each class, in the order of the labels.
        licence: Under which terms the authors offer it.
        citation: What to cite.
        remote: Array → file name below ``base_url``.
    """

    name: str
    variants: tuple[Variant, ...]
    base_url: str | None
    train: int
    test: int
    shape: tuple[int, ...]
    peak: float
    class_names: tuple[str, ...]
    licence: str
    citation: str
    remote: Mapping[str, str] = field(default_factory=lambda: IDX_FILES)

    @property
    def full(self) -> Variant:
        """The full set."""
        return self.variants[0]

    @property
    def built_in(self) -> bool:
        """Whether it comes with a library and needs no file."""
        return self.base_url is None

    def urls(self, base_url: str | None = None) -> dict[str, str]:
        """Return array → address, below another folder when one is given."""
        base = base_url or self.base_url
        return (
            {} if base is None else {a: f"{base.rstrip('/')}/{f}" for a, f in self.remote.items()}
        )


_TEN_DIGITS = tuple("0123456789")

DIGITS = Entry(
    name="digits",
    variants=(
        Variant("", "digits", "aa40ac23406deb9a941d19cf01ad9be94f4ca90c907c80333686e932806d16a8"),
    ),
    base_url=None,
    train=1442,
    test=355,
    shape=(8, 8),
    peak=16.0,
    class_names=_TEN_DIGITS,
    licence="CC BY 4.0 (UCI Machine Learning Repository); the part that scikit-learn ships",
    citation="E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI "
    "Machine Learning Repository. doi:10.24432/C50P49",
)

MNIST = Entry(
    name="mnist",
    variants=(
        Variant(
            "mnist.npz",
            "mnist",
            "1c3a2de06f669095861ad2a9f48393c7a6cf3ee91fa0e65445312a5dba13205c",
        ),
    ),
    base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    train=60000,
    test=10000,
    shape=(28, 28),
    peak=255.0,
    class_names=_TEN_DIGITS,
    licence="CC BY-SA 3.0",
    citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998). Gradient-based learning applied "
    "to document recognition. Proceedings of the IEEE 86(11), 2278-2324",
)

FASHION_MNIST = Entry(
    name="fashion_mnist",
    variants=(
        Variant(
            "fashion_mnist.npz",
            "fashion_mnist",
            "c475638b9fd81c96db9d24576c02e8b0e4c0513b82b59132ddc5b12bcb39aec7",
        ),
    ),
    base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    train=60000,
    test=10000,
    shape=(28, 28),
    peak=255.0,
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    licence="MIT (Zalando)",
    citation="H. Xiao, K. Rasul, R. Vollgraf (2017). Fashion-MNIST: a novel image dataset for "
    "benchmarking machine learning algorithms. arXiv:1708.07747",
)

# The author offers archives of half a million PNG files without a fixed split. What the literature
# calls notMNIST in the form of MNIST is the sample of 60,000 + 10,000 below, taken at one commit.
# The checksum of its arrays is not published, and nobody here has computed it: hence None.
NOTMNIST = Entry(
    name="notmnist",
    variants=(
        Variant("notmnist.npz", "notmnist", None),
        Variant(
            "notmnist_10k.npz",
            "notmnist_10k",
            "5185c445328575e74abb527035ab165ed432fe96917f75dad93c536ad61a3ba2",
            note="subset: 9,804 different images of the test file, own 80/20 split",
        ),
    ),
    base_url="https://raw.githubusercontent.com/davidflanagan/notMNIST-to-MNIST/"
    "17823f4d4a3acd8317c07866702d2eb2ac79c7a0/",
    train=60000,
    test=10000,
    shape=(28, 28),
    peak=255.0,
    class_names=tuple("ABCDEFGHIJ"),
    licence="none stated by the author (Y. Bulatov); files posted with his permission",
    citation="Y. Bulatov (2011). notMNIST dataset. "
    "http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html; in the form of MNIST by "
    "D. Flanagan, github.com/davidflanagan/notMNIST-to-MNIST",
)

CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {entry.name: entry for entry in (DIGITS, MNIST, FASHION_MNIST, NOTMNIST)}
)
