"""Atomic writing of files and folders: an output appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flawscope.errors import ArgumentError, StorageError
from flawscope.text import name_bytes, storable


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(err: OSError) -> str:
    if err.errno == errno.ENOSPC:
        return "the disk is full"
    return err.strerror or str(err)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError raised while writing `path` into a StorageError that names it."""
    try:
        yield
    except OSError as err:
        raise StorageError(
            f"{path}: could not be written: {_reason(err)}. Nothing was left behind. "
            "Free space or choose another place."
        ) from err


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Raises:
        StorageError: If the system refuses to write.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: a rename is atomic only within one file system. The dot hides it from dataset readers.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes files of mode 0600, which a service of another user could not read.
            _follow_umask(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _follow_umask(path: Path) -> None:
    """Give a temporary file or folder, which only its owner may read, the permissions of an ordinary one."""
    # The umask can be read only by setting it.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8; what has none, as in names that are not UTF-8, becomes an escape."""
    write_bytes(path, storable(text).encode())


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace_if: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, remove it on failure.

    Args:
        path: The folder to write. It must not exist, or be empty, or hold `replace_if`.
        replace_if: File name that marks an existing folder as an earlier output of the same kind, which may be
            replaced (`run.json`, `manifest.json`).

    Raises:
        ArgumentError: If `path` holds something else.
        StorageError: If the system refuses to write.
    """
    # Before the work: hours of training must not end with a name that was taken from the start.
    check_replaceable(path, replace_if)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            for entry in (temporary, *temporary.rglob("*")):
                _follow_umask(entry)
            _swap_in(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap_in(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`; a folder there before is deleted on success and restored on failure."""
    if not path.exists():
        new.replace(path)
        return
    # rename() replaces files and empty folders alone, so the old folder has to step aside first.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    old = aside / path.name
    try:
        path.replace(old)
        new.replace(path)
    # BaseException: Ctrl-C between the two renames must not lose the old folder.
    except BaseException:
        if old.exists():
            old.replace(path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(path: Path, marker: str | None) -> None:
    """Raise ArgumentError unless `path` is UTF-8 and free, an empty folder, or a folder that holds `marker`."""
    # Records name it, and libraries below (onnx, for one) take no other paths.
    if name_bytes(str(path)) is not None:
        raise ArgumentError(f"{path}: expected a folder name in UTF-8, got other bytes. Choose another name.")
    if not path.exists():
        return
    if not path.is_dir():
        raise ArgumentError(f"{path}: expected a folder name that is free, got an existing file. Choose another name.")
    if any(path.iterdir()) and not (marker and (path / marker).is_file()):
        raise ArgumentError(
            f"{path}: expected a new folder{f' or one with {marker}' if marker else ''}, "
            "got a folder with other files. Choose another name or empty it."
        )


_LITTER = frozenset({".ds_store", "thumbs.db", "desktop.ini", "__macosx"})
_LITTER_PREFIXES = ("._", ".nfs")
"""Resource forks of macOS, and files of NFS that were removed while they were open."""


def is_litter(name: str) -> bool:
    """Return whether file managers and network file systems leave a file or folder of this name behind."""
    return name.lower() in _LITTER or name.startswith(_LITTER_PREFIXES)


def free_name(stem: str, taken: set[str]) -> str:
    """Return `stem`, with a number appended if it is in `taken`, and add it there.

    The stem is never shortened: shortened names of two images could be equal.
    """
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name
