"""Text from strangers: no control character and no surrogate leaves, and what was shown can be told apart."""

from __future__ import annotations

import json
import os
import re
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from project_paths import ROOMS, ROOT

from flawscope.text import encode_json, name_bytes, printable, printable_json, storable

ANY_TEXT = st.text(st.characters(codec=None), max_size=20)
FILE_NAMES = st.binary(min_size=1, max_size=20).map(os.fsdecode)
# What a terminal obeys or an encoder refuses: controls, surrogates, separators of lines and paragraphs.
OBEYED = {"Cc", "Cs", "Zl", "Zp"}
TURNS_TEXT = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_harmless(text):
    return all(
        unicodedata.category(letter) not in OBEYED and unicodedata.bidirectional(letter) not in TURNS_TEXT
        for letter in text
    )


@given(ANY_TEXT | FILE_NAMES)
def test_a_printable_text_holds_nothing_that_a_terminal_obeys(text):
    shown = printable(text)
    assert is_harmless(shown)
    assert shown.encode("utf-8").decode("utf-8") == shown


@given(ANY_TEXT)
def test_a_harmless_text_stays_as_it_is(text):
    harmless = "".join(letter for letter in text if is_harmless(letter) and letter not in "\u061c\u200e\u200f")
    assert printable(harmless) == storable(harmless) == harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;aGk=\x07.png", r"\x1b]52;c;aGk=\x07.png"),
        ("a.png\naccept  b.png", r"a.png\x0aaccept  b.png"),
        (os.fsdecode(b"gr\xfcn.png"), r"gr\xfcn.png"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("\ud83d alone", r"\ud83d alone"),
        ("grün 部品 \U0001f600.png", "grün 部品 \U0001f600.png"),
    ],
)
def test_what_is_shown_in_place(text, shown):
    assert printable(text) == shown


@given(FILE_NAMES)
def test_the_bytes_of_a_name_that_is_not_utf8_are_kept(name):
    data = os.fsencode(name)
    try:
        data.decode("utf-8")
        assert name_bytes(name) is None
    except UnicodeDecodeError:
        assert name_bytes(name) == data


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | ANY_TEXT | FILE_NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT | FILE_NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_every_value_becomes_json_and_a_terminal_gets_the_same(value):
    data = encode_json(value)
    again = msgspec.json.decode(data)  # a strict reader: UTF-8 and no lone surrogates
    for text in (printable_json(data), printable_json(msgspec.json.format(data, indent=1))):
        assert is_harmless(text.replace("\n", ""))
        assert json.loads(text) == again


@given(JSON_VALUES, st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_json_for_a_terminal_of_another_encoding_is_the_same_json(value, encoding):
    data = encode_json(value)
    assert json.loads(printable_json(data, encoding).encode(encoding).decode(encoding)) == json.loads(data)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_json_of_plain_text_is_that_of_msgspec(value):
    assert encode_json(value, order="sorted") == msgspec.json.encode(value, order="sorted")


def test_readers_of_json_catch_all_that_msgspec_raises():
    """Of three errors that bytes can cause, one or two are easily forgotten."""
    modules = [path for room in ("core", *ROOMS) for path in (ROOT / room).rglob("*.py")]
    found = [path for path in modules if re.search(r"except \(?[^:]*msgspec\.DecodeError", path.read_text("utf-8"))]
    assert [path.relative_to(ROOT).as_posix() for path in found] == ["core/yaml_file.py"]  # YAML raises more
