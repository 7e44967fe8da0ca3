"""A tiny bundle as a folder and packed, and a place of its own for temporary files."""

from __future__ import annotations

import tempfile

import pytest
from tiny_bundle import (
    write_tiny_bundle,
)

from flawscope.bundle import (
    open_bundle,
    pack_bundle,
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny.flaw"
    write_tiny_bundle(path)
    return path


@pytest.fixture
def packed(folder):
    path = folder.parent / "packed.flaw"
    with open_bundle(folder) as bundle:
        pack_bundle(bundle, path)
    return path


@pytest.fixture
def scratch(tmp_path_factory, monkeypatch):
    """The only place where temporary files are made."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path
