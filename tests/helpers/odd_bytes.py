"""Bytes that strangers put where a record, a table or settings are expected, and how a reader has to take them."""

from __future__ import annotations

import time
from collections.abc import Callable

from hypothesis import strategies as st

from flawscope.errors import FlawscopeError

SECONDS = 5
"""Longest that a reader may take for a small file."""

DEEP = 100_000
SPECIAL = (
    *(b"", b"\0", b"null", b"[]", b"{}", b"1", b'"a"', b"true", b"NaN", b"-Infinity", b"1e999"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"[" * DEEP, b'{"a":' * DEEP, b"- " * 5000, b"x" * 5000, b"1" * 5000),
    *(b'{"schema": ' + b"1" * 400 + b"}", b'"\\ud800"', b'{"a":1,"a":2}', b"&a [*a]", b"a: &a b\nc: *a", b"<<: 5"),
    *(b"? [a]\n: 1", b"---\n---\n", b"a: 2020-99-99", b"a: .nan", b"a: !!int x", b"a: !!bool x", b"a: !!set {b}"),
    *(b"!!python/object/apply:os.system [true]", b"a: \x01", b"%YAML 9.9", b"a: " + b"1" * 5000, b"a: !!binary x"),
)
"""What readers have stumbled over: nesting, numbers and names without bounds, other encodings, what YAML offers."""

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _as_bytes(value: object) -> bytes:
    return repr(value).encode("utf-8", "replace")


def odd_bytes(whole: bytes) -> st.SearchStrategy[bytes]:
    """Draw bytes near a whole file, or far from it.

    Args:
        whole: The content of a file that the reader takes.
    """
    values = st.sampled_from(SPECIAL) | st.binary(max_size=20) | _json.map(_as_bytes)
    pieces = [place for place in range(len(whole)) if whole[place : place + 1] in b',:[]{}"\n 0123456789']
    places = st.sampled_from(pieces or [0])
    replaced = st.tuples(places, st.integers(0, 12), values).map(
        lambda drawn: whole[: drawn[0]] + drawn[2] + whole[drawn[0] + drawn[1] :]
    )
    encoded = st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "cp500"]).map(
        lambda name: whole.decode("utf-8", "replace").encode(name, "replace")
    )
    return values | replaced | encoded | places.map(lambda place: whole[:place])


def assert_read_or_refused(read: Callable[[], object], *others: type[BaseException]) -> None:
    """Assert that a reader returns something, or refuses in one line with an error of the project, soon.

    Args:
        read: Reads the file.
        others: Errors that callers of this reader catch, where it is no public one.
    """
    message = ""
    started = time.process_time()
    try:
        read()
    except (FlawscopeError, *others) as err:
        message = str(err)
    assert time.process_time() - started < SECONDS
    assert "\n" not in message
