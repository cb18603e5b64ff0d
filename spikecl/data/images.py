"""The image sets of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spikecl.data import cifar, idx
from spikecl.data.entry import Entry, Variant

# The published files of the MNIST family have the same names everywhere.
IDX_FILES: Mapping[str, str] = MappingProxyType(
    {
        "x_train": "train-images-idx3-ubyte.gz",
        "y_train": "train-labels-idx1-ubyte.gz",
        "x_test": "t10k-images-idx3-ubyte.gz",
        "y_test": "t10k-labels-idx1-ubyte.gz",
    }
)

TEN_DIGITS = tuple("0123456789")

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
    class_names=TEN_DIGITS,
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
    class_names=TEN_DIGITS,
    licence="CC BY-SA 3.0",
    citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998). Gradient-based learning applied "
    "to document recognition. Proceedings of the IEEE 86(11), 2278-2324",
    remote=IDX_FILES,
    decode=idx.read_all,
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
    remote=IDX_FILES,
    decode=idx.read_all,
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
    remote=IDX_FILES,
    decode=idx.read_all,
)

_KRIZHEVSKY = (
    "A. Krizhevsky (2009). Learning multiple layers of features from tiny images. Technical "
    "report, University of Toronto"
)

_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

CIFAR10 = Entry(
    name="cifar10",
    variants=(
        Variant("cifar10.npz", "cifar10", None),
        Variant(
            "cifar10_11k.npz",
            "cifar10_11k",
            "5165881d67a7b9b47ed8cccc0ea6ed5a521bd5aa034407535c9af2dc4cce5d49",
            note="subset: 900 training and 200 test images of each class",
        ),
    ),
    base_url="https://www.cs.toronto.edu/~kriz/",
    train=50000,
    test=10000,
    shape=(32, 32, 3),
    peak=255.0,
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    licence="none stated by the author, who asks to be cited",
    citation=_KRIZHEVSKY,
    remote={"archive": "cifar-10-binary.tar.gz"},
    md5={"archive": "c32a1d4ab5d03f1284b67883e8d87530"},
    decode=cifar.read_10,
)

CIFAR100 = Entry(
    name="cifar100",
    variants=(
        Variant("cifar100.npz", "cifar100", None),
        Variant(
            "cifar100_24k.npz",
            "cifar100_24k",
            "aa5fb9baecec474f424a380b62d9c0325de65bf6860c26e115542da68503408b",
            note="subset: 200 training and 40 test images of each class",
        ),
    ),
    base_url="https://www.cs.toronto.edu/~kriz/",
    train=50000,
    test=10000,
    shape=(32, 32, 3),
    peak=255.0,
    class_names=tuple(_CIFAR100_CLASSES.split()),
    licence="none stated by the author, who asks to be cited",
    citation=_KRIZHEVSKY,
    remote={"archive": "cifar-100-binary.tar.gz"},
    md5={"archive": "03b5dce01913d631647c71ecec9e9cb8"},
    decode=cifar.read_100,
)
