"""Files of named tensors: safetensors and torch.save read one tensor at a time, and safetensors written so.

A model of gigabytes is converted in the memory of its largest tensor. bfloat16, which NumPy lacks, becomes float32;
everything else keeps its type.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.errors import DataError
from flawscope.open_files import RECORD_BYTES, open_regular, read_regular
from flawscope.text import NOT_JSON, printable
from flawscope.torch_file import Saved, read_checkpoint, read_state_dict
from flawscope.torch_pickle import BFLOAT16, SavedTensor

_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_BF16 = "BF16"
_HEADER_BYTES = 100 << 20  # the limit of the safetensors package itself
_MOST_AXES = 32


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that is read when it is asked for.

    Attributes:
        dtype: Type of its numbers.
        shape: Its shape.
        read: Returns the numbers; raises DataError if the file is broken.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file, or of the several files of a sharded model.

    Attributes:
        path: The file, or the index of the shards.
        tensors: Name -> tensor.
        metadata: Texts that safetensors keep beside them; empty for other files.
    """

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


class _Header(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def open_tensors(path: Path, max_bytes: int) -> TensorFile:
    """Open a file of safetensors or of torch.save, by what it holds; nothing is unpickled.

    Args:
        path: The file.
        max_bytes: Largest file that is read.

    Raises:
        DataError: If it is neither, broken or too large.
    """
    try:
        with open_regular(path) as file:
            start = file.read(9)
    except OSError as err:
        raise DataError(f"{path}: expected a file of tensors, got: {err.strerror or err}. Check the path.") from err
    if start[:4] == b"GGUF":
        raise DataError(
            f"{path}: expected tensors in safetensors or of torch.save, got a GGUF file, whose weights are quantized. "
            "Get the model in safetensors."
        )
    # A zip begins with PK and a pickle with 0x80: neither has an opening brace behind eight bytes of a small length.
    if path.suffix == ".safetensors" or (start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _HEADER_BYTES):
        return _open_safetensors(path, max_bytes)
    saved, tensors = read_checkpoint(path, max_bytes)
    return TensorFile(path, {name: _torch_entry(path, saved, tensor) for name, tensor in tensors.items()}, {})


def open_state_dict(path: Path, max_bytes: int) -> TensorFile:
    """Open what `torch.save` wrote of a network alone; see `flawscope.torch_file.read_state_dict`.

    Raises:
        DataError: If it holds anything besides tensors, is broken or too large.
    """
    saved, tensors = read_state_dict(path, max_bytes)
    return TensorFile(path, {name: _torch_entry(path, saved, tensor) for name, tensor in tensors.items()}, {})


def open_shards(index: Path, max_bytes: int) -> TensorFile:
    """Open the files that an index (`*.index.json`) lists, as one.

    Args:
        index: The index, beside its files.
        max_bytes: Largest single file that is read.

    Raises:
        DataError: If the index or one of the files is broken, or they contradict each other.
    """
    try:
        places = msgspec.json.decode(read_regular(index, RECORD_BYTES), type=_Index).weight_map
    except (OSError, *NOT_JSON) as err:
        raise DataError(f"{index}: expected an index with a weight_map, got: {err}. Get the folder again.") from err
    files: dict[str, TensorFile] = {}
    tensors = {}
    for name, place in places.items():
        # A name with folders in it would lead out of the model.
        if Path(place).name != place:
            raise DataError(f"{index}: expected names of files beside it, got {printable(place)}. Get it again.")
        if place not in files:
            is_pickle = place.endswith(".bin")
            files[place] = (open_state_dict if is_pickle else open_tensors)(index.with_name(place), max_bytes)
        if name not in files[place].tensors:
            raise DataError(
                f"{index}: expected {printable(name)} in {printable(place)}, as it says, got none. Get both again."
            )
        tensors[name] = files[place].tensors[name]
    return TensorFile(index, tensors, {})


def write_tensors(path: Path, tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, one tensor in memory at a time; the same tensors give the same bytes.

    Raises:
        DataError: If a tensor cannot be read, or has a type that is not written.
        OSError: If the system refuses to write.
    """
    # Wide types first, as the safetensors package itself does: each tensor then starts at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        entry = tensors[name]
        start, end = end, end + entry.dtype.itemsize * math.prod(entry.shape)
        if entry.dtype not in _NAMES:
            raise DataError(f"{path}: expected numbers that safetensors can hold, got {entry.dtype} for {name}.")
        header[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = tensors[name].read()
            assert (values.dtype, values.shape) == (tensors[name].dtype, tensors[name].shape), name
            file.write(np.ascontiguousarray(values).tobytes())


def shaped(entry: TensorEntry, shape: tuple[int, ...]) -> TensorEntry:
    """Return a tensor in another shape.

    Raises:
        ValueError: If that has another count of numbers.
    """
    if math.prod(shape) != math.prod(entry.shape):
        raise ValueError(f"a tensor of shape {list(entry.shape)} in place of {list(shape)}")
    return TensorEntry(entry.dtype, shape, lambda: entry.read().reshape(shape))


def _torch_entry(path: Path, saved: Saved, tensor: SavedTensor) -> TensorEntry:
    # Of a stranger's pickle, so it may be anything; True is an int to isinstance.
    if not all(type(side) is int and side >= 0 for side in tensor.size):
        raise DataError(
            f"{path}: expected tensors of whole sizes, got {reprlib.repr(tensor.size)}. Get the file again."
        )
    kind = "<f4" if tensor.storage.kind == BFLOAT16 else tensor.storage.kind
    return TensorEntry(np.dtype(kind), tensor.size, lambda: saved.array(tensor))


def _open_safetensors(path: Path, max_bytes: int) -> TensorFile:
    with open_regular(path) as file:
        return _read_header(path, file, max_bytes)


def _read_header(path: Path, file: BinaryIO, max_bytes: int) -> TensorFile:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise DataError(
            f"{path}: expected a file of at most {max_bytes >> 20} MiB, got {size >> 20} MiB. Name another."
        )
    try:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER_BYTES, size):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        content = msgspec.json.decode(file.read(length), type=dict[str, Any])
        metadata = msgspec.convert(content.pop("__metadata__", {}), dict[str, str])
        entries = {
            name: _entry(path, 8 + length, size, msgspec.convert(value, _Header)) for name, value in content.items()
        }
    except (ValueError, *NOT_JSON) as err:
        raise DataError(
            f"{path}: expected safetensors, got a broken file: {printable(str(err)[:200])}. Get it again."
        ) from err
    return TensorFile(path, entries, metadata)


def _entry(path: Path, start: int, size: int, header: _Header) -> TensorEntry:
    kind = "<u2" if header.dtype == _BF16 else _TYPES.get(header.dtype)
    if kind is None:
        raise ValueError(f"numbers of the type {header.dtype}")
    begin, end = header.data_offsets
    fits = len(header.shape) <= _MOST_AXES and all(side >= 0 for side in header.shape) and 0 <= begin <= end
    if not fits or end - begin != math.prod(header.shape) * np.dtype(kind).itemsize or start + end > size:
        raise ValueError(f"a tensor of shape {header.shape} in the bytes {begin} to {end} of {size - start}")
    shape = tuple(header.shape)
    read = partial(_numbers, path, start + begin, end - begin, kind, shape)
    if header.dtype != _BF16:
        return TensorEntry(np.dtype(kind), shape, read)
    # bfloat16 is the upper half of a float32.
    return TensorEntry(np.dtype("<f4"), shape, lambda: (read().astype(np.uint32) << np.uint32(16)).view("<f4"))


def _numbers(path: Path, start: int, count: int, kind: str, shape: Iterable[int]) -> npt.NDArray[Any]:
    # Opened for each tensor, so that no file stays open as long as somebody might still ask for one.
    try:
        with open_regular(path) as file:
            file.seek(start)
            data = file.read(count)
    except OSError as err:
        raise DataError(f"{path}: expected a file of tensors, got: {err.strerror or err}. Check the path.") from err
    if len(data) != count:  # it was made shorter meanwhile
        raise DataError(f"{path}: expected {count} bytes of a tensor, got {len(data)}. Get the file again.")
    return np.frombuffer(data, kind).reshape(tuple(shape))
