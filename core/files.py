"""Atomic writing of files and folders: an output appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flawscope.errors import ArgumentError, StorageError
from flawscope.open_files import list_folder, open_regular, walk_folder
from flawscope.scratch import exclusive, is_scratch, remove_leftovers, scratch_file, scratch_folder, swap_in, sync
from flawscope.text import name_bytes, storable

_LITTER = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})
_LITTER_BEGINNINGS = ("._", ".nfs")


def is_litter(name: str) -> bool:
    """Return whether a file or folder is one that systems leave behind by themselves: never read, nor refused.

    `.DS_Store`, `__MACOSX` and `._NAME` are of macOS, `Thumbs.db` and `desktop.ini` of Windows; `.nfsXXXX` is a deleted
    file that a program of an NFS client still has open.

    Args:
        name: The name alone, without its folder.
    """
    # Without case: Windows and macOS keep the case that a name was written in, and copies may change it.
    lower = name.lower()
    return lower in _LITTER or lower.startswith(_LITTER_BEGINNINGS)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        OSError: If it cannot be opened or read, or is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
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
def atomic_file(path: Path, *, beside: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Args:
        path: The file to write.
        beside: The folder around `path` beside which the temporary file lies, for a folder that may hold nothing
            else, such as a bundle; None: the temporary file lies beside `path` itself.
        durable: Whether the file must survive a power cut from the moment on that it has its name.

    Raises:
        StorageError: If the system refuses to write.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: a rename is atomic only within one file system.
        place = (path if beside is None else beside).parent
        _clear(place, again=durable)
        with scratch_file(place) as temporary:
            yield temporary
            # Scratch has the mode 0600, which a service of another user could not read.
            _follow_umask(temporary)
            if durable:
                sync(temporary)
            temporary.replace(path)
            if durable:
                sync(path.parent)


_cleared = set[Path]()


def _clear(folder: Path, *, again: bool) -> None:
    """Remove leftovers of killed processes from a folder; unless `again`, only before the first file in it."""
    # A folder of thousands of maps must not be listed for each of them.
    if again or folder not in _cleared:
        _cleared.add(folder)
        remove_leftovers(folder)


def _follow_umask(path: Path) -> None:
    """Give a temporary file or folder, which only its owner may read, the permissions of an ordinary one."""
    # The umask can be read only by setting it.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_bytes(path: Path, data: bytes, *, beside: Path | None = None, durable: bool = False) -> None:
    """Write `data` to `path` atomically; see `atomic_file`."""
    with atomic_file(path, beside=beside, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8; what has none, as in names that are not UTF-8, becomes an escape."""
    write_bytes(path, storable(text).encode())


@contextlib.contextmanager
def atomic_folder(
    path: Path,
    *,
    replace_if: str | None = None,
    overwrite: bool = False,
    durable: bool = False,
    private: bool = False,
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, remove it on failure.

    At no moment is there neither the folder before nor the new one, where the system can exchange two names; where it
    cannot, the one before is put back by whatever reads or writes there next.

    Args:
        path: The folder to write. It must not exist, or be empty, or, with `overwrite`, hold `replace_if`.
        replace_if: File name that marks an existing folder as an earlier output of the same kind (`run.json`,
            `manifest.json`).
        overwrite: Whether such an earlier output may be replaced.
        durable: Whether the folder must survive a power cut from the moment on that it has its name.
        private: Whether its owner alone may read and write it, whatever the umask says.

    Raises:
        ArgumentError: If `path` holds something else, or an earlier output that may not be replaced.
        StorageError: If the system refuses to write.
    """
    with storage_errors(path):
        remove_leftovers(path.parent)
        # Before the work: hours of training must not end with a name that was taken from the start.
        check_replaceable(path, replace_if, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path.parent) as temporary:
            yield temporary
            for entry in (temporary, *walk_folder(temporary)):
                if private:
                    entry.chmod(0o700 if entry.is_dir() else 0o600)
                else:
                    _follow_umask(entry)
                if durable:
                    sync(entry)
            # Again: another command may have written there meanwhile.
            check_replaceable(path, replace_if, overwrite=overwrite)
            swap_in(temporary, path)
            if durable:
                sync(path.parent)


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a private folder, removed afterwards; those that killed processes left there are removed first.

    Args:
        parent: Where it is made, by default in the system's folder of temporary files. It is made if it is missing.

    Raises:
        StorageError: If it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    with contextlib.ExitStack() as stack:
        # An OSError of whoever uses the folder is not one of this place.
        with storage_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            remove_leftovers(place)
            folder = stack.enter_context(scratch_folder(place))
        yield folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time change the output at `path`; others wait until it is done or killed.

    Raises:
        StorageError: If the lock cannot be made beside `path`.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Here too: a change that turns out to change nothing writes no file.
            remove_leftovers(path.parent)
            # Not only where something is written: a command that finds nothing to change clears up as well.
            remove_leftovers(path.parent)
            stack.enter_context(exclusive(path))
        yield


def check_replaceable(path: Path, marker: str | None, *, overwrite: bool = False) -> None:
    """Check, before the work, that a folder can be written.

    Args:
        path: The folder.
        marker: File name that marks an earlier output of the same kind; None if none is ever replaced.
        overwrite: Whether an earlier output may be replaced.

    Raises:
        ArgumentError: Unless `path` is UTF-8 and free, an empty folder, or one with `marker` that may be replaced.
        StorageError: If the system would refuse to write there.
    """
    # Records name it, and libraries below (onnx, for one) take no other paths.
    if name_bytes(str(path)) is not None:
        raise ArgumentError(f"{path}: expected a folder name in UTF-8, got other bytes. Choose another name.")
    _check_writable(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise ArgumentError(f"{path}: expected a folder name that is free, got an existing file. Choose another name.")
    if not list_folder(path):
        return
    if not (marker and (path / marker).is_file()):
        raise ArgumentError(
            f"{path}: expected a new folder{f' or one with {marker}' if marker else ''}, "
            "got a folder with other files. Choose another name or empty it."
        )
    if not overwrite:
        raise ArgumentError(
            f"{path}: expected a new name, got an earlier output with {marker}. Choose another name, or replace it "
            "with --overwrite (Python: overwrite=True)."
        )


def check_new_file(path: Path | None, *, overwrite: bool = False) -> None:
    """Check, before the work, that a file can be written; None is a file that was not asked for.

    Raises:
        ArgumentError: If a folder lies at `path`, or a file that may not be replaced.
        StorageError: If the system would refuse to write there.
    """
    if path is None:
        return
    if os.path.lexists(path) and not path.is_file():
        # Renaming a finished file to such a name would fail after the work, or replace a device.
        kind = "a folder" if path.is_dir() else "a device, a pipe or a link to nothing"
        raise ArgumentError(f"{path}: expected a file name, got {kind}. Choose another name.")
    if path.exists() and not overwrite:
        raise ArgumentError(
            f"{path}: expected a new name, got an existing file. Choose another name, or replace it with --overwrite "
            "(Python: overwrite=True)."
        )
    _check_writable(path)


def check_new_files(folder: Path | None, *, overwrite: bool = False) -> None:
    """Check, before the work, that files can be written into a folder; None is one that was not asked for.

    Raises:
        ArgumentError: If it is a file, or, unless `overwrite`, holds files already, which nobody could tell from the
            new ones.
        StorageError: If the system would refuse to write there.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder}: expected a folder, got a file. Choose another name.")
    if not overwrite and folder.is_dir() and any(not is_scratch(path.name) for path in list_folder(folder)):
        raise ArgumentError(
            f"{folder}: expected a new folder, got one with files. Choose another name, or write into it with "
            "--overwrite."
        )
    _check_writable(folder, is_folder=True)


def _check_writable(path: Path, *, is_folder: bool = False) -> None:
    """Raise StorageError if nothing can be made at `path`, or in it: what took hours could not be written."""
    with storage_errors(path):
        place = path.absolute()
        parent = next(place for place in (*([place] if is_folder else []), *place.parents) if place.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)} in {parent}")


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
