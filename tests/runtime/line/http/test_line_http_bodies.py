"""Bodies of several images: what was put in comes out, and whatever else is one sentence."""

from __future__ import annotations

import contextlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from no_garbage import no_collections

from flawscope.runtime.line.http.bodies import BodyMemory, images_of
from flawscope.runtime.line.http.refusal import Refusal

TYPE = "multipart/form-data; boundary=b0"
NAMES = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789_.-", min_size=1, max_size=10)
# Bytes that look like the format itself are the ones that a careless reader stumbles over.
CONTENT = st.lists(st.sampled_from([b"\r\n", b"--", b"b0", b"\0", b"\r\n\r\n", b"\r\n--b", b"x"]), max_size=12).map(
    b"".join
)


def body_of(images: dict[str, bytes]) -> bytes:
    parts = [
        b'--b0\r\ncontent-disposition: form-data; name="%b"; filename="f.png"\r\nContent-Type: image/png\r\n\r\n%b\r\n'
        % (name.encode(), data)
        for name, data in images.items()
    ]
    return b"".join(parts) + b"--b0--\r\n"


@given(images=st.dictionaries(NAMES, CONTENT.filter(lambda data: b"\r\n--b0" not in b"\r\n" + data), max_size=4))
def test_what_was_put_in_comes_out(images: dict[str, bytes]) -> None:
    assert images_of(body_of(images), TYPE) == images


@settings(max_examples=300)
@given(data=st.data())
def test_bytes_that_are_changed_are_read_or_refused_in_one_sentence(data: st.DataObject) -> None:
    whole = body_of({"left": b"abc", "right": b"\r\n--x"})
    place = data.draw(st.integers(0, len(whole)))
    changed = whole[:place] + data.draw(CONTENT) + whole[place + data.draw(st.integers(0, 20)) :]
    refusal, images = None, {}
    try:
        images = images_of(changed, TYPE)
    except Refusal as err:
        refusal = err
    assert refusal is None or (refusal.status == 400 and "\n" not in str(refusal))
    assert sum(len(one) for one in images.values()) <= len(changed)


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 201, "x", ""],
)
def test_a_boundary_is_needed(content_type: str) -> None:
    with pytest.raises(Refusal, match="with a boundary"):
        images_of(body_of({"left": b"x"}), content_type)


def test_a_body_of_very_many_parts_is_refused() -> None:
    with pytest.raises(Refusal, match="whole multipart body"):
        images_of(body_of({f"v{number}": b"" for number in range(65)}), TYPE)


def test_a_refusal_keeps_no_body_in_memory() -> None:
    body = body_of({"left": b"x"})[:-8]
    with no_collections():
        before = sys.getrefcount(body)
        for _ in range(3):
            with contextlib.suppress(Refusal):
                images_of(body, TYPE)
                raise AssertionError("it was read")
        assert sys.getrefcount(body) == before


def test_names_of_fields_hold_no_control_characters() -> None:
    (name,) = images_of(body_of({"a": b"x"}).replace(b'"a"', b'"a\x1b[2J"'), TYPE)
    assert name == "a\\x1b[2J"


def test_bodies_that_are_read_at_once_are_bounded_but_one_is_always_taken() -> None:
    memory = BodyMemory(100)
    with memory.holding(150), pytest.raises(Refusal) as raised, memory.holding(1):
        pass
    assert raised.value.status == 503
    with memory.holding(60), memory.holding(40), pytest.raises(Refusal), memory.holding(1):
        pass
    with memory.holding(100):
        pass
