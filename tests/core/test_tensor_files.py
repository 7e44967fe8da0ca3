"""Files of tensors are read one tensor at a time, equal to what their libraries read, and strangers' files refused."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from odd_bytes import assert_read_or_refused, odd_bytes
from odd_files import ODD

from flawscope.errors import DataError
from flawscope.tensor_files import TensorEntry, open_shards, open_tensors, write_tensors

LARGE = 1 << 30
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def held(values: Any) -> TensorEntry:
    return TensorEntry(values.dtype, values.shape, lambda: values)


@pytest.mark.parametrize("form", ["safetensors", "zip", "sequence", "nested"])
@pytest.mark.parametrize("kind", TYPES)
def test_tensors_of_every_type_are_read_as_they_are(tmp_path: Path, kind: torch.dtype, form: str) -> None:
    drawn = torch.Generator().manual_seed(1)
    state = {
        "a.weight": (10 * torch.randn((3, 4), generator=drawn)).to(kind),
        "number": torch.tensor(1).to(kind),
        "nothing": torch.zeros((0, 3), dtype=kind),
    }
    path = tmp_path / "model"
    if form == "safetensors":
        safetensors.torch.save_file(state, path, {"said": "so"})
    else:
        content = {"state_dict": state, "epoch": 3} if form == "nested" else state
        torch.save(content, path, _use_new_zipfile_serialization=form != "sequence")
    file = open_tensors(path, LARGE)
    assert dict(file.metadata) == ({"said": "so"} if form == "safetensors" else {})
    assert file.tensors.keys() == state.keys()
    for name, tensor in state.items():
        expected = (tensor.float() if kind is torch.bfloat16 else tensor).numpy()
        entry = file.tensors[name]
        assert (entry.dtype, entry.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(entry.read(), expected, strict=True)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
        arrays.arrays(
            st.sampled_from([np.dtype(kind) for kind in ("f8", "f4", "f2", "i8", "i1", "u1", "?")]),
            arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
        ),
        max_size=5,
    )
)
def test_what_is_written_is_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("written") / "file.safetensors"
    write_tensors(path, {name: held(value) for name, value in values.items()}, {"format": "pt"})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(values)
        for name, value in values.items():
            np.testing.assert_array_equal(file.get_tensor(name), value, strict=True)


def test_the_same_tensors_in_any_order_are_the_same_bytes(tmp_path: Path) -> None:
    values = {"a": held(np.arange(3.0)), "b": held(np.ones((2, 2), np.float16)), "c": held(np.array(7))}
    write_tensors(tmp_path / "one", values, {"x": "1", "y": "2"})
    write_tensors(tmp_path / "two", dict(reversed(values.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("form", ["safetensors", "zip", "sequence"])
def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, form: str) -> None:
    count, side = 24, 512  # of a megabyte each
    state = {f"layer.{number}.weight": torch.full((side, side), float(number)) for number in range(count)}
    path = tmp_path / "model"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=form == "zip")
    tracemalloc.start()
    try:
        file = open_tensors(path, LARGE)
        write_tensors(tmp_path / "out.safetensors", file.tensors, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
    read = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(read[name], value) for name, value in state.items())


# ---- Strangers' files ------------------------------------------------------------------------------------------------


def read_all(path: Path) -> None:
    for entry in open_tensors(path, 1 << 20).tensors.values():
        entry.read()


WHOLE = safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, {"k": "v"})


@given(odd_bytes(WHOLE) | st.binary(max_size=60))
def test_changed_safetensors_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("odd") / "m.safetensors"
    path.write_bytes(data)
    assert_read_or_refused(lambda: read_all(path))


_header = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "", 3]),
        "shape": st.lists(st.integers(-2, 5) | st.just(1 << 62) | st.text(max_size=1), max_size=3),
        "data_offsets": st.lists(st.integers(-8, 64) | st.just(1 << 63), min_size=1, max_size=3),
    }
)


@given(st.dictionaries(st.text(max_size=3), _header | st.none(), max_size=3))
def test_headers_that_lie_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("lies") / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(48))
    assert_read_or_refused(lambda: read_all(path))


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    ODD[kind](tmp_path / "model.ckpt")
    with pytest.raises(DataError, match=r"model\.ckpt: expected a file of tensors, got: .*Check the path"):
        open_tensors(tmp_path / "model.ckpt", LARGE)


def test_files_that_shrink_or_are_too_large_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(WHOLE)
    file = open_tensors(path, LARGE)
    os.truncate(path, len(WHOLE) - 20)
    with pytest.raises(DataError, match=r"m\.safetensors: expected 24 bytes of a tensor, got 12"):
        file.tensors["a"].read()
    with pytest.raises(DataError, match="expected a file of at most 0 MiB"):
        open_tensors(path, 10)


def test_an_index_that_contradicts_its_files_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m-1.safetensors").write_bytes(WHOLE)
    index = tmp_path / "m.safetensors.index.json"
    for places, words in (
        ({"a": "m-1.safetensors", "none": "m-1.safetensors"}, "expected none in m-1.safetensors, as it says"),
        ({"a": "../m-1.safetensors"}, r"expected names of files beside it, got \.\./m-1"),
        ({"a": "m-2.safetensors"}, "m-2.safetensors: expected a file of tensors"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(DataError, match=words):
            open_shards(index, LARGE)
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors"}}))
    assert set(open_shards(index, LARGE).tensors) == {"a"}
