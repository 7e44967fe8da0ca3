"""Paths in JSON come back as they were, whatever their bytes."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from flawscope.stored_paths import path_from, stored_path


@given(st.binary(max_size=30).map(lambda name: name.replace(b"\0", b"")))
@example(b"w\xff/%41/parts")
@example(b"bytes:/x")
@example("größe".encode())
def test_a_path_comes_back_with_all_its_bytes(name: bytes) -> None:
    path = Path(os.fsdecode(b"/data/" + name))
    text = msgspec.json.decode(msgspec.json.encode(stored_path(path)))
    assert path_from(text) == path
    assert text == str(path) or text.startswith("bytes:/data/")


def test_a_path_is_made_absolute_and_a_text_in_utf_8_stays() -> None:
    assert stored_path("parts/a b%20.png") == str(Path("parts/a b%20.png").absolute())
    assert path_from("parts") == Path("parts")
