from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from spikecl.data import idx
from spikecl.errors import DataError


def test_reads_a_hand_written_file(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(
        gzip.compress(bytes.fromhex("00000803 00000002 00000001 00000003 010203 0405ff"))
    )
    array = idx.read(path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, [[[1, 2, 3]], [[4, 5, 255]]])


def test_reads_labels(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(struct.pack(">BBBBI3B", 0, 0, 8, 1, 3, 7, 0, 9)))
    np.testing.assert_array_equal(idx.read(path), [7, 0, 9])


WHOLE = bytes.fromhex("00000801 00000003 070809")
BAD = {
    "not gzip": (b"<html>404</html>", "not a whole gzip file"),
    "gzip cut": (gzip.compress(WHOLE)[:-6], "not a whole gzip file"),
    "gzip altered": (gzip.compress(WHOLE)[:-8] + bytes(8), "not a whole gzip file"),
    "floats": (
        gzip.compress(bytes.fromhex("00000d01 00000001 00000000")),
        "starts with 00 00 0d 01",
    ),
    "empty": (gzip.compress(b""), "starts with nothing"),
    "header cut": (gzip.compress(WHOLE[:6]), "ends inside its header"),
    "too short": (gzip.compress(WHOLE[:-1]), r"has 2 values, its header says \(3,\)"),
    "too long": (gzip.compress(WHOLE + b"\0"), r"has 4 values, its header says \(3,\)"),
}


@pytest.mark.parametrize(("content", "says"), BAD.values(), ids=BAD.keys())
def test_anything_else_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        idx.read(path)
    assert str(caught.value).startswith("labels.gz: ")
    assert "\n" not in str(caught.value)
