"""Opening what others made: regular files of at most a stated size, and folders that can be listed.

A pipe makes whoever opens it wait for ever, a device fills the memory, and `Path.glob` takes a folder that it may not
list for an empty one. Files and folders that a user or a stranger names are opened here; a test refuses other ways.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flawscope.errors import DataError

SETTINGS_BYTES = 1 << 16
"""Largest file of settings that is read: people write them by hand, and YAML takes seconds for a megabyte."""

TEXT_BYTES = 1 << 20
"""Largest file of sentences, or of a licence, that is read."""

RECORD_BYTES = 256 << 20
"""Largest record, table or vocabulary that is read; a line for each of a million images fits."""

_KINDS = {
    stat.S_IFIFO: "it is a pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, to read its bytes.

    Raises:
        OSError: If it cannot be opened or is something else; `strerror` says why.
    """
    try:
        # Before it is opened: opening alone can already set off a device.
        _check_kind(os.stat(path).st_mode, path)  # noqa: PTH116
        # Another may take its place meanwhile: a pipe would block without O_NONBLOCK, which files do not mind.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as err:  # a name that no system takes: a null byte, or no bytes at all
        raise OSError(errno.EINVAL, str(err), str(path)) from err
    try:
        _check_kind(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a regular file, or of a link to one.

    Args:
        path: The file.
        most_bytes: Largest size that is read.

    Raises:
        OSError: As `open_regular`, or if the file is larger; `strerror` says why.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most_bytes:
            data = file.read(size + 1)
            # It may have grown, and files of /proc announce no size at all.
            while len(data) <= most_bytes and (more := file.read(1 << 20)):
                data += more
            if len(data) <= most_bytes:
                return data
    raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes, the most that is read", str(path))


def regular_path(path: Path) -> Path:
    """Return `path` if it is a regular file or a link to one, for libraries that open files by their names.

    Raises:
        OSError: If it cannot be opened or is something else; `strerror` says why.
    """
    open_regular(path).close()
    return path


def regular_folder(folder: Path) -> Path:
    """Return `folder` if all below it are folders, regular files and links to these, for libraries that open them.

    Raises:
        DataError: If it or a folder below cannot be listed.
        OSError: If a file cannot be opened or is something else; `strerror` says why.
    """
    for path in walk_folder(folder):
        if not path.is_dir():
            regular_path(path)
    return folder


def _check_kind(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, _KINDS.get(stat.S_IFMT(mode), "it is not a file"), str(path))


def list_folder(folder: Path) -> list[Path]:
    """Return the entries of a folder in the order of their names.

    Raises:
        DataError: If it cannot be listed.
    """
    try:
        # Sorted, because the file system's order differs between machines.
        with os.scandir(folder) as entries:
            # Names, not paths, whose comparison takes most of the time for a folder of many files.
            return [folder / name for name in sorted(entry.name for entry in entries)]
    except (OSError, ValueError) as err:
        raise _unlisted(folder, err) from err


def scan_folder(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder as the system gives them, one at a time: it may hold millions.

    The order differs between machines: whoever uses it sorts.

    Raises:
        DataError: If it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (OSError, ValueError) as err:
        raise _unlisted(folder, err) from err


def walk_folder(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder, folders before what is in them; links to folders are not followed.

    Raises:
        DataError: If it or a folder below cannot be listed: nothing is passed over.
    """
    pending = [folder]
    while pending:
        for path in list_folder(pending.pop()):
            yield path
            try:
                is_folder = stat.S_ISDIR(path.lstat().st_mode)
            except OSError as err:
                raise _unlisted(path, err) from err
            if is_folder:
                pending.append(path)


def _unlisted(folder: Path, err: OSError | ValueError) -> DataError:
    reason = getattr(err, "strerror", None) or str(err)
    return DataError(f"{folder}: expected a folder that can be listed, got: {reason}. Check its permissions.")
