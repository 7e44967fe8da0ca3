"""What an error says, which has to be one line."""

from __future__ import annotations

import pytest

from flawscope import cli


def reason(raised: pytest.ExceptionInfo[Exception]) -> str:
    """Return the message of a raised error; fail if it is more than a line."""
    message = str(raised.value)
    assert "\n" not in message
    return message


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; return the one line that says why."""
    assert cli.run(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    return error
