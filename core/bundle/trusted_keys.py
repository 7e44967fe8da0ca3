"""Keys that the operator of a machine trusts: where some are set, a bundle that none of them has signed is not run.

The first of these that is set counts: what a command or caller names, FLAWSCOPE_TRUSTED_KEYS,
`~/.config/flawscope/trusted_keys`, `/etc/flawscope/trusted_keys`. Each is a file of public keys in PEM, or a folder of
such files. A setting that cannot be used is an error and never taken for none.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from flawscope.bundle.bounded_file import read_bounded
from flawscope.bundle.ed25519 import MAX_KEY_BYTES, PUBLIC, PublicKey, parse_public_keys
from flawscope.errors import ArgumentError, DataError
from flawscope.files import is_litter
from flawscope.open_files import list_folder
from flawscope.user_folders import config_folder

VARIABLE = "FLAWSCOPE_TRUSTED_KEYS"
SYSTEM = Path("/etc/flawscope/trusted_keys")
_ENDINGS = (PUBLIC, ".pem")
_MAX_FILES = 1000


@dataclass(frozen=True)
class TrustedKeys:
    """Keys whose signatures count.

    Attributes:
        source: The setting that names them, for messages.
        keys: Key id -> key; at least one.
    """

    source: str
    keys: dict[str, PublicKey]


def find_trusted_keys(named: Path | str | None = None) -> TrustedKeys | None:
    """Return the keys that are trusted here, or None where nothing is set.

    Args:
        named: A file or folder of keys that takes the place of all settings.

    Raises:
        ArgumentError: If the setting that counts is missing, unreadable, empty, no keys, or writable for others than
            root and the user.
        MissingExtra: If keys are set and the package `cryptography` is not installed.
    """
    if named is not None:
        # Path("") is the current folder, in which anybody's keys may lie.
        if not isinstance(named, (str, Path)) or not str(named):
            raise ArgumentError(f"trusted_keys: expected a file or folder of keys, got {named!r}. Name one, or none.")
        return _read(Path(named), str(named))
    if (variable := os.environ.get(VARIABLE)) is not None:
        if not variable:
            raise ArgumentError(f"{VARIABLE}: expected a file or folder of keys, got an empty text. Set or unset it.")
        return _read(Path(variable), f"{VARIABLE}={variable}")
    config = config_folder()
    for path in (() if config is None else (config / "flawscope" / "trusted_keys",)) + (SYSTEM,):
        if _is_there(path):
            return _read(path, str(path))
    return None


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as err:
        # Nobody can say that nothing is trusted here: a bundle of a stranger would run.
        raise ArgumentError(
            f"{path}: whether keys are trusted here could not be looked up: {err.strerror}. Make its folder readable, "
            f"or name the keys with {VARIABLE}."
        ) from err
    return True


def _read(path: Path, source: str) -> TrustedKeys:
    try:
        # Absolute, and without links: it is the folders that really lead there that must be safe.
        place = path.resolve(strict=True)
        files = _files(place, source) if place.is_dir() else (place,)
        # By both ways: whoever can write to the folder of a link can let it lead elsewhere.
        for parent in {*place.parents, *path.absolute().parents}:
            _check_owner(parent, parent.stat(), source)
    except DataError as err:  # a folder that cannot be listed
        raise ArgumentError(str(err)) from err
    except (OSError, RuntimeError, ValueError) as err:  # RuntimeError: links that go round
        if isinstance(err, ArgumentError):
            raise
        reason = getattr(err, "strerror", None) or err
        raise ArgumentError(
            f"{source}: expected a file or folder of trusted keys, which could not be read: {reason}. "
            "Check path and permissions."
        ) from err
    keys = {}
    for file in files:
        data, status = read_bounded(file, MAX_KEY_BYTES, "trusted keys", ArgumentError)
        _check_owner(file, status, source)
        keys.update({key.id: key for key in parse_public_keys(data, str(file))})
    return TrustedKeys(source, keys)


def _files(folder: Path, source: str) -> tuple[Path, ...]:
    _check_owner(folder, folder.stat(), source)
    files = [entry for entry in list_folder(folder) if not is_litter(entry.name)]
    if other := next((file for file in files if file.suffix not in _ENDINGS), None):
        raise ArgumentError(
            f"{source}: expected files that end in {' or '.join(_ENDINGS)}, got {other.name} as well. Remove it."
        )
    if not 0 < len(files) <= _MAX_FILES:
        raise ArgumentError(f"{source}: expected 1 to {_MAX_FILES} files of keys, got {len(files)}. Change that.")
    # It would lead past the folders that are checked.
    if link := next((file for file in files if file.is_symlink()), None):
        raise ArgumentError(f"{source}: expected plain files, got the link {link.name}. Copy the file.")
    return tuple(files)


def _check_owner(path: Path, status: os.stat_result, source: str) -> None:
    """Raise ArgumentError if anybody but root and the user could put keys there."""
    # In a folder like /tmp (sticky) others cannot replace what they do not own.
    is_shared = bool(status.st_mode & 0o022) and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX)
    if is_shared or status.st_uid not in (0, os.geteuid()):
        got = (
            f"mode {stat.S_IMODE(status.st_mode):04o}" if is_shared else f"a file or folder of the user {status.st_uid}"
        )
        raise ArgumentError(
            f"{source}: expected keys that only root and this user can change, got {got} at {path}. Whoever can write "
            "there decides which bundles run: run chmod go-w or chown on it."
        )


_made: ContextVar[set[str] | None] = ContextVar("made", default=None)


@contextlib.contextmanager
def making() -> Iterator[None]:
    """Let bundles that are written inside of this block be opened in it, whatever keys are trusted.

    A bundle is measured while it is made, long before somebody can sign it. It is known by the digest that was written,
    so another bundle in its place is not taken for it.
    """
    if _made.get() is not None:
        yield
        return
    token = _made.set(set())
    try:
        yield
    finally:
        _made.reset(token)


def remember_made(digest: str) -> None:
    """Record that this program has just written the bundle with this digest; see `making`."""
    made = _made.get()
    if made is not None:
        made.add(digest)


def is_made_here(digest: str) -> bool:
    """Return whether the bundle with this digest was written inside of the `making` block that is running."""
    return digest in (_made.get() or ())
