"""External data of an ONNX graph made inputs: for backends that read a graph from memory, but external data from files.

The graph's bytes are written anew, field by field (https://protobuf.dev/programming-guides/encoding/): what is not an
initializer with external data is copied as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from flawscope.bundle.onnx_graph import ExternalTensor, fields_of, initializer_of

_GRAPH, _INITIALIZER, _INPUT = 7, 5, 11  # numbers of fields of onnx.ModelProto and onnx.GraphProto


def external_as_inputs(data: bytes) -> bytes:
    """Return an ONNX model whose initializers with external data are inputs of the same name, type and shape.

    Args:
        data: The bytes of an ONNX file that `read_graph` has taken.
    """
    return b"".join(
        _field(number, _graph(value)) if number == _GRAPH and isinstance(value, memoryview) else bytes(raw)
        for number, value, raw in fields_of(memoryview(data))
    )


def _graph(data: memoryview) -> bytes:
    parts: list[bytes] = []
    for number, value, raw in fields_of(data):
        external = initializer_of(value) if number == _INITIALIZER and isinstance(value, memoryview) else None
        parts.append(bytes(raw) if external is None else _field(_INPUT, _value_info(external)))
    return b"".join(parts)


def _value_info(tensor: ExternalTensor) -> bytes:
    """Return an onnx.ValueInfoProto: the name, and a type with element type and shape."""
    shape = b"".join(_field(1, _number(1, size)) for size in tensor.shape)
    kind = _number(1, tensor.kind) + _field(2, shape)
    return _field(1, tensor.name.encode()) + _field(2, _field(1, kind))


def _field(number: int, content: bytes) -> bytes:
    """Return a field that has a length."""
    return bytes(_varint(number << 3 | 2)) + bytes(_varint(len(content))) + content


def _number(number: int, value: int) -> bytes:
    """Return a field that is an integer, not negative."""
    return bytes(_varint(number << 3)) + bytes(_varint(value))


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
