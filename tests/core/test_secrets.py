"""Secrets are read from where a configuration says, and no message shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from error_lines import reason

from flawscope.errors import ArgumentError
from flawscope.secrets import read_secret, without_secrets


def test_a_secret_comes_from_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINE_TOKEN", "s3cr:t ü")
    file = tmp_path / "token"
    file.write_text("from a file\r\n", encoding="utf-8")
    assert read_secret("env:LINE_TOKEN") == "s3cr:t ü"
    assert read_secret(f"file:{file}") == "from a file"
    file.write_text("renewed", encoding="utf-8")
    assert read_secret(f"file:{file}") == "renewed"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"hunter2\nhunter3\n", "one line"),
        (b"hunter2\x00", "one line"),
        (b"hunter2\xff", "UTF-8"),
        (b"hunter2" * 20000, "more than"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused_without_its_content(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ArgumentError) as raised:
        read_secret(f"file:{file}")
    assert expected in reason(raised)
    assert str(file) in reason(raised)
    assert "hunter2" not in reason(raised)
    assert raised.value.__cause__ is None


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINE_TOKEN", raising=False)
    with pytest.raises(ArgumentError) as raised:
        read_secret("env:LINE_TOKEN")
    assert "LINE_TOKEN" in reason(raised)
    with pytest.raises(ArgumentError) as raised:
        read_secret(f"file:{tmp_path / 'none'}")
    assert "No such file" in reason(raised)


@pytest.mark.parametrize("place", ["hunter2", "env:", "file:", "pass:hunter2", ""])
def test_a_secret_in_the_place_of_its_place_is_not_repeated(place: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        read_secret(place)
    assert "hunter2" not in reason(raised)


def test_messages_of_libraries_lose_the_secrets() -> None:
    text = "no way to rtsp://us%40er:p%2Fw@host, p/w and us@er refused"
    assert without_secrets(text, "us@er", "p/w", None, "") == "no way to rtsp://***:***@host, *** and *** refused"
    assert without_secrets("abc abcd", "abc", "abcd") == "*** ***"
