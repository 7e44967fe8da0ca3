"""Messages of errors: what strangers wrote does not make them megabytes long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.errors import ArgumentError, BundleError, FlawscopeError, ImageError, MissingExtra

KINDS = st.sampled_from([FlawscopeError, ArgumentError, BundleError, ImageError])


@given(kind=KINDS, text=st.text(max_size=200))
def test_an_ordinary_message_is_as_it_was_written(kind: type[FlawscopeError], text: str) -> None:
    assert str(kind(text)) == text


@given(kind=KINDS, length=st.integers(8001, 200_000))
def test_a_message_that_nobody_would_read_keeps_its_beginning_and_its_end(
    kind: type[FlawscopeError], length: int
) -> None:
    told = str(kind(f"{'where: expected a name, got '}{'x' * length}. Choose another."))
    assert len(told) < 8100
    assert told.startswith("where: expected a name, got xxx")
    assert told.endswith("xxx. Choose another.")


def test_a_missing_package_is_told_whole() -> None:
    with pytest.raises(MissingExtra, match=r'^drawing needs the package torch, .* pip install "flawscope\[train\]"$'):
        raise MissingExtra("drawing", "torch", "train")
