"""Atomic writing of files and folders: an output appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from flawscope.errors import ArgumentError, StorageError
from flawscope.open_files import RECORD_BYTES, list_folder, open_regular, read_regular, walk_folder
from flawscope.scratch import (
    common_folder,
    exclusive,
    is_scratch,
    remove_leftovers,
    scratch_file,
    scratch_folder,
    swap_in,
    sync,
)
from flawscope.text import name_bytes, storable

_log = logging.getLogger(__name__)

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
def atomic_file(
    path: Path, *, beside: Path | None = None, durable: bool = False, private: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Args:
        path: The file to write.
        beside: The folder around `path` beside which the temporary file lies, for a folder that may hold nothing
            else, such as a bundle; None: the temporary file lies beside `path` itself.
        durable: Whether the file must survive a power cut from the moment on that it has its name.
        private: Whether its owner alone may read and write it, whatever the umask says.

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
            if not private:
                follow_umask(temporary)
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


def follow_umask(path: Path) -> None:
    """Give a temporary file or folder, which only its owner may read, the permissions of an ordinary one."""
    # The umask can be read only by setting it.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_bytes(
    path: Path, data: bytes, *, beside: Path | None = None, durable: bool = False, private: bool = False
) -> None:
    """Write `data` to `path` atomically; see `atomic_file`."""
    with atomic_file(path, beside=beside, durable=durable, private=private) as temporary:
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
    own: Collection[str] = (),
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
        overwrite: Whether such an earlier output may be replaced. Where it holds files that the new one has not, other
            than in `own`, it is kept under another name, as they may be somebody's.
        own: Names below `path` of files and folders that earlier outputs of the kind have, whatever is in them.
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
            # A chain and no list: there may be millions.
            for entry in itertools.chain((temporary,), walk_folder(temporary)):
                if private:
                    entry.chmod(0o700 if entry.is_dir() else 0o600)
                else:
                    follow_umask(entry)
                if durable:
                    sync(entry)
            # Again: another command may have written there meanwhile.
            check_replaceable(path, replace_if, overwrite=overwrite)
            keep = _name_to_keep(path, temporary, own)
            swap_in(temporary, path, keep)
            if keep is not None:
                _log.warning("%s: held files that the new output has not: the earlier folder is now %s.", path, keep)
            if durable:
                sync(path.parent)


def _name_to_keep(old: Path, new: Path, own: Collection[str]) -> Path | None:
    """Return a free name for a folder that is replaced, if it holds what nobody could make again; else None."""
    if not old.is_dir():
        return None
    places = (path.relative_to(old) for path in walk_folder(old) if not path.is_dir() or path.is_symlink())
    if all(place.parts[0] in own or place.as_posix() in own or os.path.lexists(new / place) for place in places):
        return None
    names = (old.with_name(f"{old.name}.replaced-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None, name: str | None = None) -> Iterator[Path]:
    """Yield a private folder, removed afterwards; those that killed processes left there are removed first.

    Args:
        parent: Where it is made, by default in the system's folder of temporary files. It is made if it is missing.
        name: What processes of this machine and user say that have the folder in common; the last of them removes it.
            None for a folder of this process's own.

    Raises:
        StorageError: If it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    with contextlib.ExitStack() as stack:
        # An OSError of whoever uses the folder is not one of this place.
        with storage_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            remove_leftovers(place)
            folder = stack.enter_context(scratch_folder(place) if name is None else common_folder(place, name))
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
            stack.enter_context(exclusive(path))
        yield


def check_replaceable(path: Path, marker: str | None, *, overwrite: bool = False) -> None:
    """Check, before the work, that a folder can be written.

    Args:
        path: The folder.
        marker: File name that marks an earlier output of the same kind; None if none is ever replaced.
        overwrite: Whether an earlier output may be replaced.

    Raises:
        ArgumentError: Unless `path` is a name in UTF-8 and free, an empty folder, or one with `marker` that may be
            replaced.
        StorageError: If the system would refuse to write there.
    """
    # Records name it, and libraries below (onnx, for one) take no other paths.
    if name_bytes(str(path)) is not None:
        raise ArgumentError(f"{path}: expected a folder name in UTF-8, got other bytes. Choose another name.")
    # A finished folder is renamed to it, from beside it: neither can be.
    if path.name in ("", ".."):
        raise ArgumentError(
            f"{path}: expected the name of a folder to make, got one that every system has. Name a new folder, such "
            f"as {path / 'out'}."
        )
    _check_writable(path)
    check_outside_bundles(path)
    # A link to nothing is somebody's too.
    if not os.path.lexists(path):
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


_BEGINNINGS = {
    "json": (b"{", b"["),
    "html": (b"<!doctype html", b"<html"),
    "svg": (b"<?xml", b"<svg"),
    "zip": (b"PK",),
    "png": (b"\x89PNG",),
    "csv": (b"image,decision,",),
}
"""Kind of a file -> how its text begins, without case."""


def check_new_file(path: Path | None, *, overwrite: bool = False, kind: str | None = None) -> None:
    """Check, before the work, that a file can be written; None is a file that was not asked for.

    Args:
        path: The file.
        overwrite: Whether a file that lies there may be replaced.
        kind: `json`, `html`, `svg`, `zip`, `png` or `csv`: a file of another kind is never replaced. None for any.

    Raises:
        ArgumentError: If a folder lies at `path`, or a file that may not be replaced, or it lies in a bundle.
        StorageError: If the system would refuse to write there.
    """
    if path is None:
        return
    with storage_errors(path):
        has_file = path.is_file()  # a name that is too long is no answer
    if os.path.lexists(path) and not has_file:
        # Renaming a finished file to such a name would fail after the work, or replace a device.
        kind = "a folder" if path.is_dir() else "a device, a pipe or a link to nothing"
        raise ArgumentError(f"{path}: expected a file name, got {kind}. Choose another name.")
    if has_file and not overwrite:
        raise ArgumentError(
            f"{path}: expected a new name, got an existing file. Choose another name, or replace it with --overwrite "
            "(Python: overwrite=True)."
        )
    if has_file and kind is not None and not _begins_as(path, kind):
        raise ArgumentError(
            f"{path}: expected a new name, or an earlier {kind} file to replace, got a file of another kind. Choose "
            "another name."
        )
    check_outside_bundles(path)
    _check_writable(path)


def _begins_as(path: Path, kind: str) -> bool:
    with storage_errors(path), open_regular(path) as file:
        beginning = file.read(512).lstrip().lower()
    return not beginning or beginning.startswith(tuple(word.lower() for word in _BEGINNINGS[kind]))


def check_outside_bundles(path: Path) -> None:
    """Raise ArgumentError if an output would lie in a bundle, which would then hold what its manifest does not list."""
    for folder in path.absolute().parents:
        # Other programs have files of that name too.
        record = folder / "manifest.json"
        with storage_errors(path):
            is_bundle = record.is_file() and b'"flawscope"' in read_regular(record, RECORD_BYTES)
        if is_bundle:
            raise ArgumentError(
                f"{path}: expected a place outside of bundles, got one in {folder}, where only listed files may lie. "
                "Choose another name."
            )


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
    check_outside_bundles(folder / "file")
    _check_writable(folder, is_folder=True)


def _check_writable(path: Path, *, is_folder: bool = False) -> None:
    """Raise StorageError if nothing can be made at `path`, or in it: what took hours could not be written."""
    with storage_errors(path):
        place = path.absolute()
        parent = next(place for place in (*([place] if is_folder else []), *place.parents, place) if place.exists())
        if not parent.is_dir():  # an executable file passes for a folder that may be written
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is a file")
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
