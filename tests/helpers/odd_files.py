"""Things under the names of files that are no files, and folders that cannot be listed, whoever runs the tests."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest


def _socket(path: Path) -> None:
    """Make a socket; its path may be longer than the system lets one bind."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "link_to_pipe": lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")),
    "endless_device": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "absent": lambda path: None,
}
"""Kind -> makes one at a path. None of them can be read as root either, as a file without permissions can."""


def refuse_listing(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Make the system refuse to list folders, as it does for lack of a permission; root lacks none."""
    refused = {folder.resolve() for folder in folders}

    def guarded(list_: Callable[..., object]) -> Callable[..., object]:
        def refuse(path: object = ".") -> object:
            if not isinstance(path, int) and Path(os.fspath(path)).resolve() in refused:  # type: ignore[call-overload]
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return list_(path)

        return refuse

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
