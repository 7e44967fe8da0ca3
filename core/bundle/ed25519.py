"""Keys of signatures, and their files: Ed25519 by the package `cryptography`, which is imported when a key is used."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawscope.bundle.bounded_file import read_bounded
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.files import check_outside_bundles, storage_errors, temporary_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_ID_DIGITS = 32
MAX_KEY_BYTES = 64 << 10
PUBLIC = ".pub"
"""What `write_keys` appends to the name of the private key's file for that of the public one."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n.*?-----END \1-----[ \t]*\r?\n?", re.DOTALL)


@dataclass(frozen=True)
class PublicKey:
    """A public key.

    Attributes:
        raw: Its 32 bytes.
    """

    raw: bytes

    @property
    def id(self) -> str:
        """Name of the key: the first 32 hexadecimal digits of the SHA-256 of its bytes."""
        return hashlib.sha256(self.raw).hexdigest()[:KEY_ID_DIGITS]

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Return whether the key's owner made this signature of `data`. Raises MissingExtra."""
        _require()
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A private key, with the public one that belongs to it."""

    public: PublicKey
    _key: Ed25519PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the signature of `data`."""
        return self._key.sign(data)


def _require() -> None:
    """Raise MissingExtra unless the package of signatures is there."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519
        import cryptography.hazmat.primitives.serialization  # noqa: F401
    except ImportError as err:
        raise MissingExtra("signing and checking signatures of bundles", "cryptography", "sign") from err


def _of(key: Ed25519PrivateKey) -> PrivateKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return PrivateKey(PublicKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)), key)


def write_keys(path: Path, passphrase: str | None = None) -> PublicKey:
    """Make a key and write it: the private part to `path` (PEM of PKCS #8, mode 0600), the public one to `path`.pub.

    Args:
        path: File of the private key.
        passphrase: Encrypts the private key; None leaves it as it is.

    Raises:
        ArgumentError: If one of the two files exists, or the passphrase is empty.
        MissingExtra: If the package `cryptography` is not installed.
        StorageError: If the system refuses to write.
    """
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    if passphrase == "":
        raise ArgumentError("passphrase: expected at least one character, got none. Type one, or leave the option out.")
    key = Ed25519PrivateKey.generate()
    locked: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        locked = BestAvailableEncryption(passphrase.encode())
    if not path.name:
        raise ArgumentError(f"{path}: expected a file name for the key, got a folder. Add a name.")
    check_outside_bundles(path)
    public = path.with_name(path.name + PUBLIC)
    # Both before the first is written, for the message; a file that appears meanwhile is not overwritten either.
    for taken in (public, path):
        if os.path.lexists(taken):
            raise _exists(taken)
    _write_new(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    try:
        _write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked), 0o600)
    except BaseException:
        public.unlink(missing_ok=True)
        raise
    return _of(key).public


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist: whole, with its mode from the first moment on, and never over another."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder, storage_errors(path):
        scratch = folder / "key"
        scratch.touch(mode, exist_ok=False)
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            # A rename would overwrite: the private key of somebody cannot be made again.
            os.link(scratch, path)
        except FileExistsError as err:
            raise _exists(path) from err


def _exists(path: Path) -> ArgumentError:
    return ArgumentError(f"{path}: expected a new file for a key, got one that exists. Choose another name.")


def read_private_key(path: Path, ask: Callable[[], str | None]) -> PrivateKey:
    """Read the file of a private key.

    Args:
        path: The file.
        ask: Called where the key is encrypted; returns the passphrase, or None where there is none.

    Raises:
        ArgumentError: If the file is no Ed25519 private key, others can read it, or the passphrase is missing or wrong.
        MissingExtra: If the package `cryptography` is not installed.
    """
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, status = read_bounded(path, MAX_KEY_BYTES, "a private key", ArgumentError)
    if (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        raise ArgumentError(
            f"{path}: expected a private key that only its owner can read, got mode {mode:04o}. Run chmod 600 on it; "
            "if others may have read it, make a new one."
        )
    passphrase: bytes | None = None
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data:
        text = ask()
        if text is None:
            raise ArgumentError(
                f"{path}: expected a passphrase, because the key is encrypted, got none. Set "
                "FLAWSCOPE_KEY_PASSPHRASE, or run the command in a terminal."
            )
        passphrase = text.encode()
    try:
        key: Any = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        reason = "a wrong passphrase, or a broken file" if passphrase is not None else "another file"
        raise ArgumentError(
            f"{path}: expected a private key in PEM, got {reason}. Make one with flawscope bundle keygen."
        ) from err
    if not isinstance(key, Ed25519PrivateKey):
        raise ArgumentError(
            f"{path}: expected an Ed25519 key, got {type(key).__name__}. Make one with flawscope bundle keygen."
        )
    return _of(key)


def parse_public_keys(data: bytes, where: str) -> tuple[PublicKey, ...]:
    """Return the public keys of a PEM file, at least one; between them empty lines and comments (#) alone.

    Raises:
        ArgumentError: If there is none, or anything else.
        MissingExtra: If the package `cryptography` is not installed.
    """
    _require()
    keys = []
    for block in _BLOCK.finditer(data):
        if block[1] != b"PUBLIC KEY":
            raise ArgumentError(
                f"{where}: expected public keys alone, got a block {block[1].decode()}. Name the file that ends in "
                f"{PUBLIC}; a private key belongs to whoever signs."
            )
        keys.append(_public_key(block[0], where))
    # What is passed over would be a key that somebody believes to be trusted.
    for line in _BLOCK.sub(b"", data).splitlines():
        if line.strip() and not line.lstrip().startswith(b"#"):
            raise ArgumentError(
                f"{where}: expected public keys in PEM and comments (#), got the line "
                f"{line[:60].decode(errors='backslashreplace')!r}. Copy the keys again."
            )
    if not keys:
        raise ArgumentError(f"{where}: expected at least one public key in PEM, got none. Add one, or remove the file.")
    return tuple(keys)


def _public_key(block: bytes, where: str) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key: Any = load_pem_public_key(block)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise ArgumentError(f"{where}: expected a public key in PEM, got a broken one. Copy it again.") from err
    if not isinstance(key, Ed25519PublicKey):
        raise ArgumentError(f"{where}: expected an Ed25519 key, got {type(key).__name__}. Remove it.")
    return PublicKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def read_public_keys(path: Path) -> tuple[PublicKey, ...]:
    """Read a file of public keys; see `parse_public_keys`."""
    return parse_public_keys(read_bounded(path, MAX_KEY_BYTES, "public keys", ArgumentError)[0], str(path))
