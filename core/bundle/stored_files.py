"""The files of a bundle as they lie in storage: a folder, or an uncompressed zip. Each can list and open its files.

Nothing here trusts a name or a size: `flawscope.bundle.opening` compares both with the manifest, and every byte with
its hash.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from flawscope.bundle.file_names import is_safe
from flawscope.errors import BundleError

_LOCAL_HEADER = 30
"""Bytes of a zip member's local header before its name (APPNOTE.TXT 4.3.7)."""


class StoredFiles(Protocol):
    """Where a bundle's files lie."""

    def sizes(self) -> dict[str, int]:
        """Return name -> size in bytes of every file.

        Raises:
            BundleError: If there is anything other than plain files with safe names.
            OSError: If it cannot be listed.
        """

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file to read.

        Raises:
            BundleError: If it is no plain file any more.
            OSError: If it cannot be opened.
        """

    def close(self) -> None:
        """Release what is held open; closing twice is harmless."""


class FolderFiles:
    """A bundle that is a folder.

    Args:
        folder: The folder.
        name: What the bundle is called in messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        # Absolute: a service may change its working directory between opening a bundle and reopening a device.
        self._folder, self._name = folder.absolute(), name

    def sizes(self) -> dict[str, int]:
        """Return name -> size in bytes of every file."""
        sizes = {}
        # Not rglob: it leaves out a folder that it may not list, and an unlisted file could become part of a model.
        for parent, folders, files in os.walk(self._folder, onerror=_raise):
            for entry in (*folders, *files):
                path = Path(parent) / entry
                status = path.lstat()
                # A link could point to another file after the hash was checked.
                if stat.S_ISLNK(status.st_mode):
                    raise BundleError(f"{self._name}: expected plain files, got the link {entry}. Copy the files.")
                if stat.S_ISDIR(status.st_mode):
                    continue
                if not stat.S_ISREG(status.st_mode):
                    raise BundleError(f"{self._name}: expected plain files, got the pipe or device {entry}. Remove it.")
                sizes[path.relative_to(self._folder).as_posix()] = status.st_size
        return sizes

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file to read."""
        # Neither a link nor a pipe that took the file's place since it was listed: a pipe would block for ever.
        handle = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BundleError(f"{self._name}: {name}: expected a plain file, got another. Copy the bundle again.")
            yield file

    def close(self) -> None:
        """Do nothing: no file is held open."""


class ZipFiles:
    """A bundle that is one zip file; the file is held open, so that another of its name does not take its place.

    Args:
        path: The file.
        name: What the bundle is called in messages.

    Raises:
        zipfile.BadZipFile: If it is no zip file; and whatever else `zipfile` raises for hostile archives.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        # Without O_NONBLOCK a pipe would block for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        file = os.fdopen(handle, "rb")
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BundleError(f"{name}: expected a bundle, got a pipe or device. Name a bundle.")
            self._archive: zipfile.ZipFile | None = zipfile.ZipFile(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        # Members share one position in the file.
        self._lock = threading.Lock()

    def sizes(self) -> dict[str, int]:
        """Return name -> size in bytes of every file."""
        members = self._opened().infolist()
        for member in members:
            self._check_member(member)
        # zipfile reads the last member of a name, other tools the first: two readers could see two bundles.
        if len({member.filename for member in members}) != len(members):
            raise BundleError(f"{self._name}: expected every name once, got a repeated member. Pack it again.")
        self._check_places(members)
        return {member.filename: member.file_size for member in members}

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        # The name first: `is_dir` looks at its last character.
        if not is_safe(member.filename.removesuffix("/")):
            raise BundleError(f"{self._name}: the member name {member.filename!r} leaves the bundle. It was not read.")
        if member.is_dir() or stat.S_ISLNK(member.external_attr >> 16):
            raise BundleError(
                f"{self._name}: the member {member.filename!r} is a folder or a link, not a file. Pack it again."
            )
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise BundleError(
                f"{self._name}: the member {member.filename!r} is compressed. Pack it with flawscope bundle pack."
            )

    def _check_places(self, members: list[zipfile.ZipInfo]) -> None:
        """Refuse members that share bytes: a small file could otherwise open as gigabytes."""
        free_from = 0
        for member in sorted(members, key=lambda member: member.header_offset):
            self._file.seek(member.header_offset)
            header = self._file.read(_LOCAL_HEADER)
            if member.header_offset < free_from or len(header) < _LOCAL_HEADER:
                raise BundleError(
                    f"{self._name}: the member {member.filename!r} shares bytes with another, or lies outside the "
                    "file. Pack it again."
                )
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            free_from = member.header_offset + _LOCAL_HEADER + lengths + member.file_size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file to read."""
        with self._lock, self._opened().open(name) as file:
            yield file

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None:
            raise BundleError(f"{self._name}: the bundle was closed. Open it again.")
        return self._archive

    def close(self) -> None:
        """Close the file."""
        if self._archive is not None:
            self._archive.close()
            self._file.close()
            self._archive = None


class MemberFiles:
    """The files of an ensemble's member, which lie in a folder of the ensemble.

    Args:
        files: Those of the ensemble.
        folder: The member's folder in it.
    """

    def __init__(self, files: StoredFiles, folder: str) -> None:
        self._files, self._inside = files, f"{folder}/"

    def sizes(self) -> dict[str, int]:
        """Return name -> size in bytes of every file."""
        return {
            name.removeprefix(self._inside): size
            for name, size in self._files.sizes().items()
            if name.startswith(self._inside)
        }

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file to read."""
        return self._files.open(self._inside + name)

    def close(self) -> None:
        """Do nothing: the ensemble holds the files."""


def _raise(err: OSError) -> None:
    raise err
