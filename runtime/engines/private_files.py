"""Folders and files that only their owner may change: opened once, and judged by what was opened.

An engine is a program for the GPU, and its hash lies beside it: whoever may write there could replace both. A path that
was judged could name something else a moment later, so the judgement is on the open descriptor, and files are opened
from the descriptor of their folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flawscope.errors import BackendError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening a pipe must not wait for its other end.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINK = (errno.ELOOP, errno.ENOTDIR)


class UntrustedFile(BackendError):
    """A file or folder could have been put there, or changed, by somebody else."""


@contextlib.contextmanager
def private_folder(path: Path, inside: int | None = None) -> Iterator[int]:
    """Yield the descriptor of a folder of this user that nobody else may write to.

    Args:
        path: The folder, absolute.
        inside: Descriptor of the folder around it, which was judged itself; None: `path` is looked up by its full name.

    Raises:
        UntrustedFile: If it is a link or no folder, of another user, or others may write to it.
        OSError: If it cannot be opened.
    """
    with _opened(path, _FOLDER, inside, "a folder") as handle:
        yield handle


@contextlib.contextmanager
def private_file(path: Path, inside: int) -> Iterator[IO[bytes]]:
    """Yield an open regular file of this user that nobody else may write to.

    Args:
        path: The file; messages name it.
        inside: Descriptor of the folder around it, which was judged itself.

    Raises:
        UntrustedFile: If it is a link, a pipe or a device, of another user, or others may write to it.
        OSError: If it cannot be opened.
    """
    with _opened(path, _FILE, inside, "a plain file") as handle, os.fdopen(handle, "rb", closefd=False) as file:
        yield file


@contextlib.contextmanager
def _opened(path: Path, flags: int, inside: int | None, kind: str) -> Iterator[int]:
    try:
        handle = os.open(path if inside is None else path.name, flags, dir_fd=inside)
    except OSError as err:
        if err.errno in _LINK:
            raise UntrustedFile(f"engine: {path}: expected {kind}, got a link or another kind. {_MEND}") from err
        raise
    try:
        _judge(path, os.fstat(handle), kind)
        yield handle
    finally:
        os.close(handle)


_MEND = "Remove it, or name another folder with FLAWSCOPE_ENGINES."


def _judge(path: Path, found: os.stat_result, kind: str) -> None:
    """Raise UntrustedFile for what this user alone did not make and alone may change."""
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UntrustedFile(f"engine: {path}: expected {kind}, got a pipe or device. {_MEND}")
    user = os.geteuid()
    if found.st_uid != user:
        raise UntrustedFile(
            f"engine: {path}: expected {kind} of the user with the number {user}, got one of user {found.st_uid}, who "
            f"could change it. {_MEND}"
        )
    # The bits of an access control list, too: with one, those of the group show the most that it grants to anybody.
    # Hard links need no look: owner and mode belong to the file, under whatever name it was opened.
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedFile(
            f"engine: {path}: expected {kind} that only its owner may write, got mode "
            f"{stat.S_IMODE(found.st_mode):04o}. If nobody changed it: chmod go-w {path}"
        )
