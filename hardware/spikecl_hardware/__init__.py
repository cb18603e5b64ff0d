"""Spiking networks on neuromorphic hardware: integers, their exact semantics, their cost.

The package needs numpy, nir and h5py, and no deep-learning framework, so that it also runs on the
host beside a board.
"""

__version__ = "0.1.0"
