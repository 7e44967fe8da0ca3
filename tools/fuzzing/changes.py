"""Hypothesis strategies that change valid input: bytes, JSON, and messages of protobuf."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 64, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 1 << 24),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
"""Integers at the edges of types and of what programs count with."""

SCALARS: tuple[Any, ...] = (
    *(None, True, False, -1, -(1 << 31), -(1 << 63), *NUMBERS, 10**30),
    *(0.5, -0.5, 1e-320, 1e-30, 1e6, 1e30, 1e300, 1.7e308, -1e300, float("nan"), float("inf")),
    *("", ".", "..", "/", "x", "x" * 5000, "a\nb", "\x00", "\x1b[2J", "ä", "\u202e", "\ud800", "NaN", "0" * 64),
    *("../outside", "/etc/passwd", "score.onnx", "manifest.json", "fp32", "fp16", "int8", "padim", "patchcore", "cpu"),
)
"""Values of JSON that readers may not have expected."""


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes, other: bytes = b"", most: int = 3) -> bytes:
    """Return bytes with one to `most` changes: bits, numbers, lost, doubled, moved or foreign pieces, an early end.

    Args:
        draw: Of Hypothesis.
        data: What is changed.
        other: Bytes of the same kind, pieces of which are put in; those of `data` if it is empty.
        most: Largest number of changes.
    """
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(("bit", "byte", "number", "number", "lose", "double", "end", "put", "insert")))
        if not changed:
            return bytes(changed)
        if kind == "bit":
            changed[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            changed[start] = draw(st.integers(0, 255))
        elif kind == "number":
            width = draw(st.sampled_from((2, 4, 8)))
            number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * width)
            changed[start : start + width] = number.to_bytes(width, draw(st.sampled_from(("little", "big"))))
        elif kind == "lose":
            del changed[start : start + length]
        elif kind == "double":
            changed[start:start] = changed[start : start + length] * draw(st.sampled_from((1, 2, 40)))
        elif kind == "end":
            del changed[start:]
        else:
            source = other or data
            piece = source[(begin := draw(st.integers(0, len(source) - 1))) : begin + length]
            changed[start : start + (len(piece) if kind == "put" else 0)] = piece
    return bytes(changed)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a JSON tree with each of its keys or positions."""
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in pairs:
        yield tree, key
        yield from _places(value)


@st.composite
def changed_json(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """Return a JSON tree with one to `most` changes of values, types, keys and structure.

    Args:
        draw: Of Hypothesis.
        tree: What is changed, a dict or list; it stays as it is.
        most: Largest number of changes.
    """
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(tree))
        if not places or len(places) > 2000:
            return tree
        container, key = draw(st.sampled_from(places))
        value = container[key]
        kind = draw(
            st.sampled_from(("scalar", "scalar", "near", "near", "lose", "rename", "copy", "wrap", "many", "deep"))
        )
        if kind == "scalar":
            container[key] = draw(st.sampled_from(SCALARS))
        elif kind == "near":
            container[key] = draw(_near(value))
        elif kind == "lose":
            del container[key]
        elif kind == "rename" and isinstance(container, dict):
            container[str(draw(st.sampled_from(SCALARS)))] = container.pop(key)
        elif kind == "copy":
            source, place = draw(st.sampled_from(places))
            container[key] = copy.deepcopy(source[place]) if place in source or isinstance(source, list) else None
        elif kind == "wrap":
            container[key] = draw(st.sampled_from(([value], {"type": value}, [value, value], [], {})))
        elif kind == "many":
            # A large part many times over would keep the generator busy, not the reader.
            is_small = not isinstance(value, dict | list)
            container[key] = [value] * (draw(st.sampled_from((2, 100, 3000))) if is_small else 2)
        else:
            for _ in range(draw(st.sampled_from((10, 900, 5000)))):
                value = [value]
            container[key] = value
            return tree  # nothing recursive can walk it any more
    return tree


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of values of the same type that are close to one, or to its limits."""
    if isinstance(value, bool) or value is None:
        return st.sampled_from((True, False, None))
    if isinstance(value, int):
        return (
            st.sampled_from((value + 1, value - 1, -value, value * 2, value // 2, value * 1000, 0, 1)) | st.integers()
        )
    if isinstance(value, float):
        return st.sampled_from((0.0, -value, value * 2, value * 1e6, value * 1e-6)) | st.floats(allow_nan=False)
    if isinstance(value, str):
        return st.sampled_from((value + "x", value[:-1], value.upper(), "/" + value, "../" + value, value + "/"))
    if isinstance(value, list):
        return st.sampled_from((value[:-1], value + value[:1], value[::-1], value * 2))
    return st.just({})


Chooser = Callable[[st.DrawFn, Any, Any], Any]
"""`(draw, message, field) -> value`: a value for a text or bytes field of a message, or None for any."""


@st.composite
def changed_message(draw: st.DrawFn, message: Any, choose: Chooser, most: int = 3) -> Any:
    """Return a protobuf message with one to `most` changes of fields anywhere in it.

    Args:
        draw: Of Hypothesis.
        message: What is changed; it stays as it is.
        choose: Proposes texts.
        most: Largest number of changes.
    """
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(draw(st.integers(1, most))):
        part = draw(st.sampled_from(list(_messages(changed))))
        fields = part.DESCRIPTOR.fields
        present = [field for field, _ in part.ListFields()]
        field = draw(st.sampled_from(present if present and draw(st.booleans()) else list(fields)))
        if field.is_repeated:
            _change_repeated(draw, getattr(part, field.name), part, field, choose)
        elif draw(st.integers(0, 4)) == 0:
            part.ClearField(field.name)
        elif field.message_type is not None:
            getattr(part, field.name).SetInParent()
        else:
            setattr(part, field.name, _value(draw, part, field, choose))
    return changed


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                yield from _messages(part)


def _change_repeated(draw: st.DrawFn, values: Any, part: Any, field: Any, choose: Chooser) -> None:
    kind = draw(st.sampled_from(("lose", "double", "swap", "new", "change", "change")))
    if not len(values) or kind == "new":
        if field.message_type is not None:
            values.add()
        else:
            values.append(_value(draw, part, field, choose))
        return
    place = draw(st.integers(0, len(values) - 1))
    if kind == "lose":
        del values[place]
    elif kind == "double":
        values.append(values[place])
    elif kind == "swap":
        moved = list(values)
        moved[place], moved[0] = moved[0], moved[place]
        copies: Sequence[Any] = [copy.deepcopy(value) for value in moved]
        del values[:]
        values.extend(copies)
    elif field.message_type is None:
        values[place] = _value(draw, part, field, choose)


def _value(draw: st.DrawFn, part: Any, field: Any, choose: Chooser) -> Any:
    """Return a value of a field's type."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        value = choose(draw, part, field)
        if value is None:
            value = draw(st.sampled_from([text for text in SCALARS if isinstance(text, str) and text != "\ud800"]))
        return value.encode() if field.type == field.TYPE_BYTES else value
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw(st.sampled_from((0.0, -1.0, 1e30, 1e-40, float("nan"), float("inf"))))
    if kind == field.CPPTYPE_ENUM:
        return draw(st.sampled_from([value.number for value in field.enum_type.values]))
    if kind == field.CPPTYPE_BOOL:
        return draw(st.booleans())
    width = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    number = draw(st.integers(-4, 32) | st.sampled_from(NUMBERS)) % (1 << width)
    is_signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    return number - (1 << width) if is_signed and number >> (width - 1) else number
