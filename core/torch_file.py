"""Reader of `torch.save` files that needs no torch and never unpickles.

A pickle is a program: unpickling it runs what its author wanted. Here a restricted interpreter follows only the opcodes
that build numbers, strings, lists and dictionaries, and knows a few names, which it never imports or calls; a tensor is
a view of a storage. Every other opcode or name is refused.

Two formats are read: the zip of torch 1.6 and later, and the older sequence of pickles. The tar of the first months of
torch is recognised and refused.

The numbers of a tensor are read on demand: of a large classifier often only a part is needed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import reprlib
import struct
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from flawscope.errors import DataError
from flawscope.open_files import open_regular
from flawscope.text import printable
from flawscope.torch_pickle import BFLOAT16, PickleMachine, SavedTensor, Storage, expect

MAX_BYTES = 64 << 20
"""Default size limit of a file; a learned embedding has a few kilobytes."""

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the older format (torch.serialization.MAGIC_NUMBER)
_PROTOCOL = 1001  # second pickle of the older format, of torch's own numbering
# zipfile raises RuntimeError for a member that claims to be encrypted, and seeks to wherever a file tells it to.
_BROKEN = (
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, RuntimeError, OverflowError, OSError),
    *(MemoryError, struct.error, zipfile.BadZipFile),
)
_MOST_OF_A_REASON = 200  # in characters: names in a broken file may have megabytes


@dataclass(frozen=True)
class Saved:
    """Contents of a file.

    Attributes:
        value: The saved object, made of dictionaries, lists, tuples, numbers, strings, `SavedTensor`, `SavedModule`.
    """

    path: Path
    value: Any
    _read: Callable[[Storage], bytes]

    def array(self, tensor: SavedTensor) -> npt.NDArray[Any]:
        """Return the numbers of a tensor; bfloat16 becomes float32.

        Raises:
            DataError: If it reaches beyond its storage, or the storage is broken.
        """
        storage, size, stride = tensor.storage, tensor.size, tensor.stride
        numbers = (tensor.offset, *size, *stride)
        # `type(...) is int`: True is an int to isinstance, and floats would pass the comparisons below.
        fits = len(size) == len(stride) and all(type(number) is int and number >= 0 for number in numbers)
        if fits and 0 not in size:
            # as_strided below checks nothing: a stride or offset beyond the storage would read foreign memory.
            last = tensor.offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
            fits = last < storage.count and math.prod(size) <= storage.count
        if not fits:
            raise DataError(
                f"{self.path}: expected a tensor within its {storage.count} numbers, got size "
                f"{reprlib.repr(list(size))} and stride {reprlib.repr(list(stride))} from "
                f"{reprlib.repr(tensor.offset)} on. Get the file again."
            )
        with _broken(self.path):
            data = self._read(storage)
            if len(data) != storage.nbytes:
                raise ValueError(f"a storage of {len(data)} bytes where {storage.count} numbers are referred to")
            if storage.kind == BFLOAT16:
                # bfloat16 is the upper half of a float32.
                flat: npt.NDArray[Any] = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view("<f4")
            else:
                flat = np.frombuffer(data, storage.kind)
            if 0 in size:
                return np.zeros(size, flat.dtype)
            steps = [step * flat.itemsize for step in stride]
            values: npt.NDArray[Any] = np.lib.stride_tricks.as_strided(flat[tensor.offset :], size, steps).copy()
            return values


def read_torch_file(
    path: Path, *, what: str = "a learned word", max_bytes: int | None = None, is_checkpoint: bool = False
) -> Saved:
    """Read what `torch.save` wrote.

    Args:
        path: The file. It stays open; the numbers of a tensor are copied on demand.
        what: Expected contents, for messages.
        max_bytes: Largest file that is read; None for `MAX_BYTES`.
        is_checkpoint: Whether objects of a training (settings, callbacks, optimizer states) may lie beside the
            tensors; they become `Unread`.

    Raises:
        DataError: If the file cannot be read, is too large or broken, or holds anything but tensors in dictionaries,
            lists and ParameterDicts; the message names the class that was found.
    """
    limit = MAX_BYTES if max_bytes is None else max_bytes
    try:
        file = open_regular(path)
    except OSError as err:
        raise DataError(f"{path}: expected a file of torch.save, got: {err.strerror or err}. Check the path.") from err
    with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        saved = _read(path, what, limit, file, is_checkpoint)
        stack.pop_all()
    weakref.finalize(saved, file.close)
    return saved


def _read(path: Path, what: str, limit: int, file: BinaryIO, is_checkpoint: bool) -> Saved:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise DataError(
            f"{path}: expected {what} in a file of at most {limit >> 20} MiB, got {size >> 20} MiB. Name the right "
            "file: is it the whole model, or a training?"
        )
    # Not mapped into memory: the process would be killed if somebody made the file shorter meanwhile.
    reader = _Reader(path, what, file, size, is_checkpoint)
    with _broken(path):
        if zipfile.is_zipfile(file):
            return reader.from_zip()
        # Where a tar header has its magic number.
        file.seek(257)
        if file.read(5) == b"ustar":
            raise DataError(
                f"{path}: expected {what} as torch saves it since 2017, got the older tar format. Load it with torch "
                "and save its tensors as safetensors."
            )
        file.seek(0)
        return reader.from_sequence()


def read_state_dict(path: Path, max_bytes: int) -> tuple[Saved, dict[str, SavedTensor]]:
    """Read the state dict of a network that `torch.save` wrote: its tensors by name.

    Raises:
        DataError: As `read_torch_file`, or if it holds anything besides tensors.
    """
    saved = read_torch_file(path, what="a state dict of tensors", max_bytes=max_bytes)
    if not isinstance(saved.value, dict):
        raise DataError(
            f"{path}: expected a state dict of tensors, got {type(saved.value).__name__}. Save the network's "
            "state_dict() alone."
        )
    for name, tensor in saved.value.items():
        if not isinstance(tensor, SavedTensor) or not isinstance(name, str):
            raise DataError(
                f"{path}: expected a state dict of tensors, got {type(tensor).__name__} for {reprlib.repr(name)}. "
                "Save the network's state_dict() alone."
            )
    return saved, saved.value


def read_checkpoint(path: Path, max_bytes: int) -> tuple[Saved, dict[str, SavedTensor]]:
    """Read the tensors of a training's checkpoint by name, such as PyTorch Lightning writes.

    They lie under `state_dict`, or are the file itself. What lies beside them (optimizer states, callbacks, settings)
    is not read, and nothing of it is imported or called.

    Raises:
        DataError: As `read_torch_file`, or if there are no tensors.
    """
    what = "a checkpoint with a state_dict of tensors"
    saved = read_torch_file(path, what=what, max_bytes=max_bytes, is_checkpoint=True)
    content = saved.value if isinstance(saved.value, dict) else {}
    nested = content.get("state_dict")
    state = nested if isinstance(nested, dict) else content
    # Numbers may lie among the tensors, such as the counter of an average.
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, SavedTensor)}
    if not tensors:
        got = ", ".join(sorted(content)[:5]) or type(saved.value).__name__
        raise DataError(f"{path}: expected {what}, got {printable(got)}. Name the checkpoint of a model.")
    return saved, tensors


@contextlib.contextmanager
def _broken(path: Path) -> Iterator[None]:
    """Turn the errors that a broken file causes into a DataError that names it."""
    try:
        yield
    except _BROKEN as err:
        reason = printable(str(err)[:_MOST_OF_A_REASON]) or type(err).__name__
        raise DataError(f"{path}: expected a file of torch.save, got a broken one: {reason}. Get it again.") from err


class _Reader:
    """Reads one open file of a known size."""

    def __init__(self, path: Path, what: str, file: BinaryIO, size: int, is_checkpoint: bool) -> None:
        self._path, self._what, self._file, self._size = path, what, file, size
        self._is_checkpoint = is_checkpoint

    def from_zip(self) -> Saved:
        archive = zipfile.ZipFile(self._file)
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        for member in members.values():
            # A compressed member of kilobytes could inflate to fill the memory. torch itself never compresses.
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > self._size:
                raise DataError(
                    f"{self._path}: expected members as torch writes them, got {reprlib.repr(member.filename)}, "
                    "which is compressed. Get the file again."
                )
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise DataError(f"{self._path}: expected numbers in little-endian order. Save it on another machine.")
        value, storages = self._run(io.BytesIO(archive.read(members["data.pkl"])))
        self._check(storages, {key: members[f"data/{key}"].file_size for key in storages})
        return Saved(self._path, value, lambda storage: archive.read(members[f"data/{storage.key}"]))

    def from_sequence(self) -> Saved:
        stream = self._file
        # Five pickles in a row: magic number, protocol, byte order, the object, the keys of its storages; then their
        # numbers.
        if self._run(stream)[0] != _MAGIC or self._run(stream)[0] != _PROTOCOL:
            raise ValueError("it does not begin as one")
        if expect(self._run(stream)[0], dict).get("little_endian") is not True:
            raise DataError(f"{self._path}: expected numbers in little-endian order. Save it on another machine.")
        value, storages = self._run(stream)
        keys = expect(self._run(stream)[0], list)
        # A TypeError of keys of mixed types is a broken file too, which `_broken` reports.
        if sorted(keys) != sorted(storages):
            raise ValueError(f"it lists {len(keys)} storages and refers to {len(storages)}")
        starts, left = {}, {}
        for key in keys:
            count = int.from_bytes(stream.read(8), "little")
            if count != storages[key].count:
                raise ValueError(f"a storage of {count} numbers where {storages[key].count} are referred to")
            starts[key] = stream.tell()
            # Seeking beyond the end is no error; `_check` compares what is really there.
            left[key] = min(storages[key].nbytes, self._size - starts[key])
            stream.seek(storages[key].nbytes, io.SEEK_CUR)
        self._check(storages, left)

        def numbers(storage: Storage) -> bytes:
            stream.seek(starts[storage.key])
            return stream.read(storage.nbytes)

        return Saved(self._path, value, numbers)

    def _run(self, stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
        machine = PickleMachine(self._path, self._what, is_checkpoint=self._is_checkpoint)
        return machine.run(stream), machine.storages

    def _check(self, storages: Mapping[str, Storage], available: Mapping[str, int]) -> None:
        """Raise ValueError unless every storage has the bytes that are referred to."""
        total = sum(storage.nbytes for storage in storages.values())
        # Before any number is read: a small file could claim storages of gigabytes.
        if total > self._size:
            raise ValueError(f"its storages would have {total} bytes, the file has {self._size}")
        for key, storage in storages.items():
            if available[key] != storage.nbytes:
                raise ValueError(f"a storage of {available[key]} bytes where {storage.count} numbers are referred to")
