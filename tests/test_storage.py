"""State on disk: bit-exact, whole or not at all, damage and full disks named."""

import errno
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from spikecl import storage
from spikecl.errors import RunError
from spikecl.storage import join, load_state, nbytes, read_json, save_state, split, write_json

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


def bits(tensor):
    raw = tensor.contiguous().clone().flatten().view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), raw.numpy()


def assert_same(a, b):
    assert list(a) == list(b) or sorted(a) == sorted(b)
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            for left, right in zip(bits(value), bits(b[key]), strict=True):
                np.testing.assert_array_equal(left, right)
        elif isinstance(value, dict):
            assert_same(value, b[key])
        else:
            assert type(value) is type(b[key])
            assert value == b[key]


def random_tensor(shape, dtype, seed):
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)  # NaN payloads, denormals and all


tensors = st.builds(
    random_tensor,
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5), st.lists(st.integers(), max_size=3),
)  # fmt: skip
keys = st.text("abc.0_ä", min_size=1, max_size=4)
states = st.dictionaries(
    keys,
    st.recursive(
        st.one_of(tensors, values), lambda child: st.dictionaries(keys, child, max_size=3)
    ),
    max_size=4,
)
OLD = {"a": torch.arange(5.0), "b": {"n": 1}}
NEW = {"a": torch.zeros(7), "b": {"n": 2}}


@quick
@given(states)
def test_split_and_join_are_inverse(state):
    flat, plain = split(state)
    assert all(isinstance(value, torch.Tensor) for value in flat.values())
    assert_same(join(flat, json.loads(json.dumps(plain))), state)


@quick
@given(states)
def test_round_trip_on_disk_is_bit_exact(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state") / "x"
    save_state(folder, state)
    assert_same(load_state(folder), state)


def test_saved_tensors_may_be_views_of_one_storage(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = {"whole": whole, "column": whole[:, 1], "transposed": whole.T, "row": whole[2]}
    save_state(tmp_path / "x", state)
    assert_same(load_state(tmp_path / "x"), state)


def test_split_takes_a_copy_outside_the_graph():
    weight = torch.nn.Parameter(torch.ones(3))
    flat, _ = split({"w": weight})
    with torch.no_grad():
        weight.mul_(2)
    assert flat["w"].tolist() == [1, 1, 1]
    assert not flat["w"].requires_grad


def test_loaded_tensors_own_aligned_storage(tmp_path):
    odd = {f"t{i}": random_tensor((2 * i + 1,), torch.uint8, i) for i in range(9)}
    save_state(tmp_path / "x", odd | {"f": torch.rand(3), "d": torch.rand(5).double()})
    loaded = load_state(tmp_path / "x")
    for tensor in loaded.values():
        assert tensor.untyped_storage().nbytes() == nbytes(tensor)
        assert tensor.storage_offset() == 0
        assert tensor.data_ptr() % 64 == 0
    assert len({t.untyped_storage().data_ptr() for t in loaded.values()}) == len(loaded)


def test_the_files_are_safetensors_without_metadata_and_json(tmp_path):
    save_state(tmp_path / "x", OLD)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "sha256.txt",
        "state.json",
        "tensors.safetensors",
        "x",
    ]
    with safetensors.safe_open(tmp_path / "x" / "tensors.safetensors", "pt") as file:
        assert file.metadata() is None
        assert list(file.keys()) == ["a"]
    assert json.loads((tmp_path / "x" / "state.json").read_text()) == {"b": {"n": 1}}


def test_saving_again_replaces(tmp_path):
    save_state(tmp_path / "x", OLD)
    save_state(tmp_path / "x", NEW)
    assert_same(load_state(tmp_path / "x"), NEW)


def fail_at(monkeypatch, point, error):
    """Make one step of writing fail after it has done half of its work."""
    write_text, save_file, flush = Path.write_text, safetensors.torch.save_file, storage._flush

    def half_text(self, text, *args, **kwargs):
        write_text(self, text[: len(text) // 2], *args, **kwargs)
        raise error

    def half_tensors(tensors, path, *args, **kwargs):
        save_file(tensors, path, *args, **kwargs)
        os.truncate(path, os.path.getsize(path) // 2)
        raise error

    def no_flush(path):
        flush(path)
        raise error

    def no_rename(self, target):
        raise error

    if point == "text":
        monkeypatch.setattr(Path, "write_text", half_text)
    elif point == "tensors":
        monkeypatch.setattr(safetensors.torch, "save_file", half_tensors)
    elif point == "flush":
        monkeypatch.setattr(storage, "_flush", no_flush)
    else:
        monkeypatch.setattr(Path, "replace", no_rename)
        monkeypatch.setattr(Path, "rename", no_rename)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("point", ["tensors", "text", "flush", "rename"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL], ids=["kill", "full"])
def test_a_failed_save_leaves_the_old_state(tmp_path, point, error):
    folder = tmp_path / "x"
    save_state(folder, OLD)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, point, error)
        with pytest.raises(RunError if error is FULL else KeyboardInterrupt):
            save_state(folder, NEW)
    assert_same(load_state(folder), OLD)
    save_state(folder, NEW)  # what the failure left does not stand in the way
    assert_same(load_state(folder), NEW)


@pytest.mark.parametrize("point", ["text", "flush", "rename"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL], ids=["kill", "full"])
def test_a_failed_json_write_leaves_the_old_file(tmp_path, point, error):
    path = tmp_path / "run.json"
    write_json(path, {"n": 1})
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, point, error)
        with pytest.raises(RunError if error is FULL else KeyboardInterrupt):
            write_json(path, {"n": 2, "long": "x" * 100})
    if point != "flush":  # the last flush comes after the rename
        assert read_json(path) == {"n": 1}
    assert read_json(path) in ({"n": 1}, {"n": 2, "long": "x" * 100})
    write_json(path, {"n": 3})
    assert read_json(path) == {"n": 3}


def test_everything_is_flushed_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    log = []
    flush, replace = os.fsync, Path.replace

    def fsync(descriptor):
        log.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    def rename(self, target):
        log.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    save_state(tmp_path / "x", OLD)
    at = log.index("rename")
    assert {"tensors.safetensors", "state.json"} < set(log[:at])
    assert len(log[:at]) == 4  # the checksum too, and the temporary folder itself
    assert log[at + 1 :] == [tmp_path.name]
    log.clear()
    write_json(tmp_path / "y.json", 1)
    assert log[1:] == ["rename", tmp_path.name]
    assert "y.json" in log[0]


@pytest.mark.parametrize("write", [save_state, write_json])
def test_a_full_disk_names_the_path_and_what_to_do(tmp_path, monkeypatch, write):
    fail_at(monkeypatch, "text", FULL)
    with pytest.raises(RunError) as error:
        write(tmp_path / "place", {"n": 1})
    assert str(tmp_path / "place") in str(error.value)
    assert "No space left" in str(error.value)
    assert "--runs-dir" in str(error.value)


def test_a_full_disk_inside_safetensors_is_named_too(tmp_path, monkeypatch):
    fail_at(monkeypatch, "tensors", SafetensorError("I/O error: No space left on device"))
    with pytest.raises(RunError, match="No space left") as error:
        save_state(tmp_path / "place", OLD)
    assert str(tmp_path / "place") in str(error.value)


def test_other_errors_are_not_disguised(tmp_path):
    with pytest.raises(TypeError):
        save_state(tmp_path / "x", {"f": object()})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe{}", b"nul"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged") as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(RunError, match="No such file") as error:
        read_json(tmp_path / "run.json")
    assert str(tmp_path / "run.json") in str(error.value)


@pytest.mark.parametrize("damage", ["empty", "half", "header", "missing"])
def test_damaged_tensors_are_named(tmp_path, damage):
    folder = tmp_path / "00000001"
    save_state(folder, {"a": torch.arange(100.0)})
    path = folder / "tensors.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        new = {"empty": b"", "half": content[: len(content) // 2], "header": b"\xff" * 50}
        path.write_bytes(new[damage])
    with pytest.raises(RunError, match="damaged") as error:
        load_state(folder)
    assert str(folder) in str(error.value)


def test_a_damaged_state_json_is_named(tmp_path):
    folder = tmp_path / "00000001"
    save_state(folder, OLD)
    (folder / "state.json").write_text('{"b": {')
    with pytest.raises(RunError, match="damaged") as error:
        load_state(folder)
    assert str(folder) in str(error.value)


def test_a_folder_left_by_a_killed_writer_is_no_obstacle(tmp_path):
    (tmp_path / ".x.tmp").mkdir()
    (tmp_path / ".x.tmp" / "stray").write_text("half")
    save_state(tmp_path / "x", OLD)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "sha256.txt",
        "state.json",
        "tensors.safetensors",
    ]
    shutil.rmtree(tmp_path / "x")


def test_json_keeps_the_order_of_keys(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": 2})
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]


def test_nbytes():
    assert nbytes() == 0
    assert nbytes(torch.zeros(3, 2), torch.zeros(5, dtype=torch.uint8)) == 29
    assert nbytes(torch.zeros(1).expand(4)) == 16


def test_to_device_moves_every_tensor_and_nothing_else():
    moved = storage.to_device(
        {"a": torch.ones(2), "b": {"c": torch.ones(1), "n": 3}}, torch.device("meta")
    )
    assert moved["a"].device.type == moved["b"]["c"].device.type == "meta"
    assert moved["b"]["n"] == 3
