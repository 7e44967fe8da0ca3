"""What tests of signatures share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def hidden_cryptography(monkeypatch):
    """Make the package `cryptography` one that is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
