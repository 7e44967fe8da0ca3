"""What an error says, which has to be one line."""

from __future__ import annotations

import pytest


def reason(raised: pytest.ExceptionInfo[Exception]) -> str:
    """Return the message of a raised error; fail if it is more than a line."""
    message = str(raised.value)
    assert "\n" not in message
    return message
