"""Folders and files that only their owner may change: opened once, and judged by what was opened.

What is kept between runs of a program, such as engines, is believed when it is read again, and a hash that lies beside
it proves nothing: whoever may write there could replace both. A path that was judged could name something else a moment
later, so the judgement is on the open descriptor, and files are opened from the descriptor of their folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flawscope.errors import BackendError
from flawscope.files import storage_errors

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening a pipe must not wait for its other end.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINK = (errno.ELOOP, errno.ENOTDIR)


class UntrustedFile(BackendError):
    """A file or folder could have been put there, or changed, by somebody else."""


@dataclass(frozen=True)
class Kept:
    """What is kept, for messages.

    Attributes:
        name: What it is, such as `engine`.
        variable: The environment variable that names the folder.
    """

    name: str
    variable: str

    @property
    def mend(self) -> str:
        """What to do about a file that must not be used, a sentence."""
        return f"Remove it, or name another folder with {self.variable}."


class PrivateRoot:
    """The folder around all that is kept; it need not exist.

    Args:
        path: The folder, absolute.
        kept: What is kept there.
    """

    def __init__(self, path: Path, kept: Kept) -> None:
        self.path, self._kept = path, kept

    @contextlib.contextmanager
    def opened(self) -> Iterator[int | None]:
        """Yield the descriptor of the folder, judged, or None if there is none.

        Raises:
            UntrustedFile: As `private_folder`.
            BackendError: If it cannot be opened.
        """
        with contextlib.ExitStack() as stack:
            try:
                root = stack.enter_context(private_folder(self.path, self._kept))
            except FileNotFoundError:
                root = None
            except OSError as err:
                raise BackendError(
                    f"{self._kept.name}: {self.path}: cannot be read: {err.strerror or err}. Name a folder with "
                    f"{self._kept.variable}."
                ) from err
            yield root

    @contextlib.contextmanager
    def made(self) -> Iterator[int]:
        """Yield the descriptor of the folder, judged; it is made if it is missing.

        Raises:
            StorageError: If it cannot be made.
            BackendError: As `opened`.
        """
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
        with self.opened() as root:
            if root is None:
                raise BackendError(f"{self._kept.name}: {self.path}: was removed meanwhile. Do it again.")
            yield root


@contextlib.contextmanager
def private_folder(path: Path, kept: Kept, inside: int | None = None) -> Iterator[int]:
    """Yield the descriptor of a folder of this user that nobody else may write to.

    Args:
        path: The folder, absolute.
        kept: What is kept there.
        inside: Descriptor of the folder around it, which was judged itself; None: `path` is looked up by its full name.

    Raises:
        UntrustedFile: If it is a link or no folder, of another user, or others may write to it.
        OSError: If it cannot be opened.
    """
    with _opened(path, kept, _FOLDER, inside, "a folder") as handle:
        yield handle


@contextlib.contextmanager
def private_file(path: Path, kept: Kept, inside: int) -> Iterator[IO[bytes]]:
    """Yield an open regular file of this user that nobody else may write to.

    Args:
        path: The file; messages name it.
        kept: What it is part of.
        inside: Descriptor of the folder around it, which was judged itself.

    Raises:
        UntrustedFile: If it is a link, a folder, a pipe or a device, of another user, or others may write to it.
        OSError: If it cannot be opened.
    """
    with (
        _opened(path, kept, _FILE, inside, "a plain file") as handle,
        os.fdopen(handle, "rb", closefd=False) as file,
    ):
        yield file


@contextlib.contextmanager
def _opened(path: Path, kept: Kept, flags: int, inside: int | None, kind: str) -> Iterator[int]:
    try:
        handle = os.open(path if inside is None else path.name, flags, dir_fd=inside)
    except OSError as err:
        if err.errno in _LINK:
            raise UntrustedFile(
                f"{kept.name}: {path}: expected {kind}, got a link or another kind. {kept.mend}"
            ) from err
        raise
    try:
        _judge(path, kept, os.fstat(handle), kind, stat.S_ISDIR if flags & os.O_DIRECTORY else stat.S_ISREG)
        yield handle
    finally:
        os.close(handle)


def _judge(path: Path, kept: Kept, found: os.stat_result, kind: str, is_kind: Callable[[int], bool]) -> None:
    """Raise UntrustedFile for what is of another kind, or what this user alone did not make and alone may change."""
    if not is_kind(found.st_mode):
        got = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise UntrustedFile(f"{kept.name}: {path}: expected {kind}, got {got}. {kept.mend}")
    user = os.geteuid()
    if found.st_uid != user:
        raise UntrustedFile(
            f"{kept.name}: {path}: expected {kind} of the user with the number {user}, got one of user "
            f"{found.st_uid}, who could change it. {kept.mend}"
        )
    # The bits of an access control list, too: with one, those of the group show the most that it grants to anybody.
    # Hard links need no look: owner and mode belong to the file, under whatever name it was opened.
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedFile(
            f"{kept.name}: {path}: expected {kind} that only its owner may write, got mode "
            f"{stat.S_IMODE(found.st_mode):04o}. If nobody changed it: chmod go-w {path}"
        )
