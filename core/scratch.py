"""Scratch files and folders beside outputs, and locks: known as ours, and removed once whoever made them is dead.

Every scratch is locked by the process that uses it. The system releases the lock when the process ends, however it
ends: what nobody holds is a leftover. A name with a process number would not do: containers that share a folder have
numbers of their own.

Names begin with a dot, which hides them from dataset readers:

- `.flawscope-XXXXXXXX.tmp`: a file or folder that is being written, or that has just been replaced; a folder that
  processes have in common;
- `.flawscope-XXXXXXXX.old`: a folder around an output that stepped aside while another takes its place;
- `.flawscope-XXXXXXXX.lock`: held while an output is read and changed.

The first two end in `-MACHINE`, before their suffix: some shared disks (BeeGFS, Lustre and NFS as they may be mounted)
give locks that other machines do not see. What another machine has touched within a day is no leftover.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PREFIX = ".flawscope-"
_UNFINISHED, _ASIDE, _LOCK = ".tmp", ".old", ".lock"
_MACHINE = re.compile(r"-([0-9a-f]{8})\.[a-z]+")
_ELSEWHERE_S = 86400.0
"""Seconds for which scratch of another machine is left alone after it was last changed."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# Whoever the names belong to: a link is never followed, and opening a pipe must not wait for its other end.
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def scratch_file(parent: Path) -> contextlib.AbstractContextManager[Path]:
    """Return a block with a new empty file in `parent`, removed afterwards unless it was renamed. Raises OSError."""
    return _held(parent, is_folder=False, suffix=_UNFINISHED)


def scratch_folder(parent: Path) -> contextlib.AbstractContextManager[Path]:
    """Return a block with a new folder (mode 0700), removed afterwards unless it was renamed. Raises OSError."""
    return _held(parent, is_folder=True, suffix=_UNFINISHED)


@contextlib.contextmanager
def _held(parent: Path, *, is_folder: bool, suffix: str, keeps: bool = False) -> Iterator[Path]:
    """Yield a new file or folder that this process holds the lock of; it is removed afterwards, unless `keeps`."""
    while True:
        # The name before the file: a signal that ends the command may come at any moment from then on.
        path = parent / f"{_PREFIX}{secrets.token_hex(8)}-{_machine()}{suffix}"
        is_removed = True
        try:
            try:
                _make(path, is_folder=is_folder)
            except FileExistsError:
                is_removed = False
                raise
            with contextlib.ExitStack() as stack:
                try:
                    held = os.open(path, _OPEN)
                except FileNotFoundError:
                    continue
                stack.callback(os.close, held)
                # Between making and locking, another process may have taken it for a leftover.
                if _try_lock(held) is not False and _is_at(held, path):
                    is_removed = not keeps
                    yield path
                    return
        finally:
            if is_removed:
                _remove(path)


@functools.cache
def _machine() -> str:
    """Return eight hexadecimal digits that all processes of this machine share, in whatever container."""
    # Not the name of the host: containers of one machine have their own, and share its locks.
    try:
        boot = _BOOT_ID.read_text()
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def _is_in_use_elsewhere(path: Path) -> bool:
    """Return whether another machine made a scratch, and has changed it of late: its lock may not show here."""
    found = _MACHINE.search(path.name)
    if found is None or found[1] == _machine():
        return False
    return time.time() - path.lstat().st_mtime < _ELSEWHERE_S


def _make(path: Path, *, is_folder: bool) -> None:
    if is_folder:
        path.mkdir(mode=0o700)
    else:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _try_lock(descriptor: int) -> bool | None:
    """Take the lock of an open file: whether that worked, or None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems lock no folders. Then nobody can tell a leftover, and nobody removes one.
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether a path still names the file that was opened."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


@contextlib.contextmanager
def common_folder(parent: Path, name: str) -> Iterator[Path]:
    """Let processes of this machine and user that say one name have a folder in common; who leaves it last removes it.

    All of them hold it: it is a leftover once all are dead. Raises OSError, also where folders cannot be locked: nobody
    could tell then who is the last.

    Args:
        parent: Where it is made, or found.
        name: What they have agreed on, and nobody else says.
    """
    path = parent / f"{_PREFIX}{hashlib.sha256(name.encode()).hexdigest()[:16]}-{_machine()}{_UNFINISHED}"
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        with contextlib.ExitStack() as stack:
            try:
                held = os.open(path, _OPEN)
            except FileNotFoundError:
                continue
            stack.callback(os.close, held)
            found = os.fstat(held)
            if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
                raise PermissionError(errno.EPERM, "not ours", str(path))
            # Before it is held: a signal that ends the command may come while it waits for whoever removes it.
            stack.callback(_surely, _remove_unless_held, held, path)
            # Some network file systems lock a folder for readers alone, and then nobody could remove it.
            if _try_lock(held) is None:
                _remove_once(path)
                raise OSError(errno.ENOLCK, "folders cannot be locked there", str(parent))
            fcntl.flock(held, fcntl.LOCK_SH)
            # The last one may have removed it meanwhile, or somebody who took it for a leftover.
            if not _is_at(held, path):
                continue
            yield path
            return


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time change what lies at `path`; others wait. Raises OSError.

    The lock is a file beside `path`, there only while it is held or waited for.
    """
    # The name of what is locked may be as long as names can be: it is hashed.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    lock = path.parent / f"{_PREFIX}{name}{_LOCK}"
    while True:
        with contextlib.ExitStack() as stack:
            # Opened for writing: network file systems give the lock for nothing less.
            held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, held)
            # Before it is held: a signal that ends the command may come while it waits.
            stack.callback(_surely, _remove_unless_held, held, lock)
            fcntl.flock(held, fcntl.LOCK_EX)
            # Whoever held it before has removed the file: the lock of a file without a name excludes nobody.
            if not _is_at(held, lock):
                continue
            yield
            return


def _remove_unless_held(descriptor: int, lock: Path) -> None:
    """Remove a lock, or what is in common, unless another process holds it or has made another in its place."""
    if _try_lock(descriptor) and _is_at(descriptor, lock):
        _remove_once(lock)


def remove_leftovers(parent: Path) -> None:
    """Remove scratch of killed processes from a folder; an output that one of them had moved aside is put back.

    What a living process holds stays, and so does what the system does not let us remove.
    """
    with contextlib.suppress(OSError):
        # Names first: removing entries while the folder is listed may skip some.
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if is_scratch(entry.name)]
        for path in (parent / name for name in names):
            with contextlib.suppress(OSError), _abandoned(path):
                if _is_in_use_elsewhere(path):
                    continue
                if path.suffix == _ASIDE:
                    _put_back(path)
                _remove(path)


def is_scratch(name: str) -> bool:
    """Return whether a name is one of scratch."""
    return name.startswith(_PREFIX) and name.endswith((_UNFINISHED, _ASIDE, _LOCK))


@contextlib.contextmanager
def _abandoned(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a leftover of this user; raises OSError if there is none, or a living process holds it."""
    held = os.open(path, _OPEN)
    try:
        found = os.fstat(held)
        # In a folder for all users, such as /tmp, others may have laid anything under such a name.
        if found.st_uid != os.geteuid() or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise PermissionError(errno.EPERM, "not ours", str(path))
        if wait:
            fcntl.flock(held, fcntl.LOCK_EX)
        elif not _try_lock(held):
            raise BlockingIOError(errno.EAGAIN, "in use", str(path))
        if not _is_at(held, path):
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))
        yield
    finally:
        os.close(held)


def _put_back(aside: Path) -> None:
    for earlier in aside.iterdir():
        target = aside.parent / earlier.name
        if not os.path.lexists(target):
            earlier.rename(target)


def recover(path: Path) -> None:
    """Put an output back that a killed process had moved aside, if nothing lies at `path`; else do nothing.

    Readers call it before they say that something is missing. While a living process exchanges the output they wait.
    """
    if os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        for aside in sorted(path.parent.glob(f"{_PREFIX}*{_ASIDE}")):
            with contextlib.suppress(OSError):
                if os.path.lexists(aside / path.name):
                    with _abandoned(aside, wait=True):
                        _put_back(aside)
                        _remove(aside)


def swap_in(new: Path, path: Path, keep: Path | None = None) -> None:
    """Rename the scratch folder `new` to `path`; a folder there before is deleted, or stays if that fails.

    Args:
        new: The folder.
        path: Its new name.
        keep: Where a folder that was there before goes; None deletes it.
    """
    if not os.path.lexists(path):
        new.replace(path)
        return
    if exchange(new, path):
        _put_away(new, keep)
        return
    # rename() replaces files and empty folders alone, so the old folder has to step aside first.
    with _held(path.parent, is_folder=True, suffix=_ASIDE, keeps=True) as aside:
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
        if keep is not None:
            old.replace(keep)
        _remove(aside)


def _put_away(old: Path, keep: Path | None) -> None:
    if keep is None:
        _remove(old)
    else:
        old.replace(keep)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False if the system or the file system cannot. Raises OSError."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as the system lets us."""
    _surely(_remove_once, path)


def _surely(clean: Callable[..., None], *arguments: Any) -> None:
    """Clean up, from the beginning again where a signal that ends the command interrupts it."""
    try:
        clean(*arguments)
    except BaseException:
        clean(*arguments)  # only one comes: see `flawscope.cli`
        raise


def _remove_once(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Let the disk store a file, or the names in a folder, before anything else happens. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as err:
        # Some file systems sync no folders.
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
