"""Reading an ONNX graph without the package `onnx`: which operators it has, and where its external data lie.

ONNX Runtime and TensorRT open external data by the paths that a graph names. Here those names are read first: they must
be files of the bundle, and the runtime is then given their verified bytes instead of a path.

Only the wire format of protobuf is read (https://protobuf.dev/programming-guides/encoding/), and of the messages in
onnx.proto only the fields that can name a file or an operator. Every occurrence of a field is visited. Protobuf itself
merges repeated occurrences or takes the last: it sees no more than is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flawscope.errors import BundleError

OPSETS = (18, 19)
"""Versions of ONNX's operators in the graphs of a bundle: 18 at export; 19 in INT8 with FP16 beside it, because
quantization has scales in FP16 only since then."""

_STANDARD = ("", "ai.onnx")
_MAX_DEPTH = 32
_MAX_TENSORS = 100_000
# Numbers of onnx.TensorProto.DataType that NumPy has.
_DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}
_EXTERNAL = 1  # onnx.TensorProto.DataLocation.EXTERNAL


class ExternalTensor(NamedTuple):
    """An initializer whose values lie in another file of the bundle.

    Attributes:
        name: Its name in the graph.
        kind: Its type as onnx.TensorProto.DataType.
        shape: Its shape.
        file: The file's name, relative to the graph's folder.
        offset: Where its bytes begin in the file.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its type in NumPy."""
        return np.dtype(_DTYPES[self.kind])

    def view(self, data: bytes, where: str) -> npt.NDArray[np.generic]:
        """Return its values as a view of the file's bytes.

        Raises:
            BundleError: If the file is too short.
        """
        count = int(np.prod(self.shape, dtype=object))
        if self.offset + count * self.dtype.itemsize > len(data):
            raise BundleError(
                f"{where}: expected {count * self.dtype.itemsize} bytes of {self.name} from {self.offset} on in "
                f"{self.file}, got a file of {len(data)} bytes. Export the bundle again."
            )
        array = np.frombuffer(data, self.dtype, count, self.offset).reshape(self.shape)
        # ONNX Runtime reads through typed pointers: an address that is not a multiple of the element's size is a copy.
        return array if array.flags.aligned else array.copy()


class _Broken(ValueError):
    """The bytes are no graph that may be run; the message says why."""


def read_graph(data: bytes, where: str) -> tuple[ExternalTensor, ...]:
    """Check the operators of an ONNX graph and return its initializers with external data.

    Args:
        data: The bytes of the ONNX file.
        where: What the graph is called in messages.

    Raises:
        BundleError: If the bytes are no ONNX graph; it has operators of another domain or version than the bundle
            format names, or functions; or external data are anywhere but in initializers.
    """
    try:
        return tuple(_model(memoryview(data)))
    except (_Broken, UnicodeDecodeError) as err:
        raise BundleError(f"{where}: expected a graph of standard operators, got {err}. Export it again.") from err


def _model(data: memoryview) -> Iterator[ExternalTensor]:
    versions: list[int] = []
    graphs: list[memoryview] = []
    for number, value in _fields(data):
        if number == 7:  # graph
            graphs.append(_message(value))
        elif number == 8:  # opset_import
            domain, version = "", 0
            for field, content in _fields(_message(value)):
                if field == 1:
                    domain = _text(content)
                elif field == 2:
                    version = _integer(content)
            # Other domains may be imported, as converters do; their operators may not be used.
            if domain in _STANDARD:
                versions.append(version)
        elif number in (20, 25):  # training_info, functions
            raise _Broken("functions or training code")
    if len(versions) != 1 or versions[0] not in OPSETS:
        expected = " or ".join(map(str, OPSETS))
        raise _Broken(f"operators of version {', '.join(map(str, versions)) or 'none'} in place of {expected}")
    if len(graphs) != 1:
        raise _Broken(f"{len(graphs)} graphs")
    for count, tensor in enumerate(_graph(graphs[0], 0)):
        if count == _MAX_TENSORS:
            raise _Broken(f"more than {_MAX_TENSORS} tensors of external data")
        yield tensor


def _graph(data: memoryview, depth: int) -> Iterator[ExternalTensor]:
    if depth > _MAX_DEPTH:
        raise _Broken("graphs nested too deeply")
    for number, value in _fields(data):
        if number == 1:  # node
            _node(_message(value), depth)
        elif number == 5:  # initializer
            tensor = initializer_of(_message(value))
            if tensor is not None:
                if depth:
                    raise _Broken("external data in an inner graph")
                yield tensor
        elif number == 15:  # sparse_initializer: values and indices
            _no_external(_message(value))


def _node(data: memoryview, depth: int) -> None:
    for number, value in _fields(data):
        if number == 7 and _text(value) not in _STANDARD:  # domain
            raise _Broken(f"an operator of the domain {_text(value)!r}")
        if number == 5:  # attribute
            for field, content in _fields(_message(value)):
                if field in (5, 10):  # t, tensors
                    if initializer_of(_message(content)) is not None:
                        raise _Broken("external data in an attribute")
                elif field in (22, 23):  # sparse_tensor, sparse_tensors
                    _no_external(_message(content))
                elif field in (6, 11):  # g, graphs
                    for _ in _graph(_message(content), depth + 1):
                        pass


def _no_external(sparse: memoryview) -> None:
    for number, value in _fields(sparse):
        if number in (1, 2) and initializer_of(_message(value)) is not None:  # values, indices
            raise _Broken("external data in a sparse tensor")


def initializer_of(data: memoryview) -> ExternalTensor | None:
    """Return a tensor that has external data, or None for one that holds its values itself."""
    name, kind, shape = "", 0, list[int]()
    entries: dict[str, str] = {}
    is_external = False
    for number, value in _fields(data):
        if number == 1:  # dims, packed or one by one
            shape += [_signed(value)] if isinstance(value, int) else [_signed(dim) for dim in _varints(value)]
        elif number == 2:  # data_type
            kind = _integer(value)
        elif number == 8:  # name
            name = _text(value)
        elif number == 13:  # external_data
            is_external = True
            pair = {field: _text(content) for field, content in _fields(_message(value)) if field in (1, 2)}
            if pair.get(1, "") in entries:
                raise _Broken(f"external data of {name!r} with {pair.get(1, '')!r} twice")
            entries[pair.get(1, "")] = pair.get(2, "")
        elif number == 14:  # data_location
            is_external = is_external or _integer(value) == _EXTERNAL
    if not is_external:
        return None
    if kind not in _DTYPES:
        raise _Broken(f"external data of type {kind} in {name!r}")
    if "location" not in entries or not name or any(dim < 0 for dim in shape):
        raise _Broken(f"external data of {name!r} without name, place or shape")
    offset = entries.get("offset", "0")
    if not (offset.isascii() and offset.isdecimal() and len(offset) < 19):
        raise _Broken(f"external data of {name!r} at the offset {offset!r}")
    return ExternalTensor(name, kind, tuple(shape), entries["location"], int(offset))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of the fields of a message: an integer, or the bytes of a field that has a length."""
    return ((number, value) for number, value, _ in fields_of(data) if value is not None)


def fields_of(data: memoryview) -> Iterator[tuple[int, int | memoryview | None, memoryview]]:
    """Yield number, value and all bytes of the fields of a message; the value is None where the size is fixed.

    Raises a ValueError for bytes that are no message; those that `read_graph` took are one.
    """
    position, end = 0, len(data)
    while position < end:
        start = position
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _Broken("broken bytes")
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value, data[start:position]
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:  # groups, which onnx.proto does not have
            raise _Broken("broken bytes")
        if length > end - position:
            raise _Broken("broken bytes")
        content = data[position : position + length]
        position += length
        yield number, content if wire == 2 else None, data[start:position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _Broken("broken bytes")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise _Broken("broken bytes")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _Broken("broken bytes")
    return _signed(value)


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Broken("broken bytes")
    return value


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")
