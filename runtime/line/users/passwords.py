"""Passwords: only what scrypt makes of them is kept, and a name that nobody has costs as much as one that exists."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from typing import Annotated

import msgspec

from flawscope.errors import ArgumentError

LEAST_CHARACTERS = 12
MOST_CHARACTERS = 256
_LEAST_DIFFERENT = 5

# 32 MiB and three turns: as hard to guess as 128 MiB and one, and a line has other uses for memory.
_N, _R, _P = 1 << 15, 8, 3
_SALT_BYTES, _KEY_BYTES = 16, 32

_Hex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){16,64}\Z")]


class PasswordHash(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a password.

    Attributes:
        n: Cost of scrypt, a power of two.
        r: Its block size.
        p: Its turns.
        salt: Random bytes, in hex.
        key: What scrypt made of the password and them, in hex.
    """

    # Bounded: a file that was changed must not take all memory.
    n: Annotated[int, msgspec.Meta(ge=1 << 14, le=1 << 17)]
    r: Annotated[int, msgspec.Meta(ge=1, le=16)]
    p: Annotated[int, msgspec.Meta(ge=1, le=16)]
    salt: _Hex
    key: _Hex

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if self.n & (self.n - 1):
            raise ValueError(f"expected a power of two as n, got {self.n}")

    def matches(self, password: str) -> bool:
        """Return whether this was made of a password; takes the time and memory of scrypt."""
        return hmac.compare_digest(_derived(password, self), bytes.fromhex(self.key))


def hash_password(password: str) -> PasswordHash:
    """Return what is kept of a password."""
    bare = PasswordHash(_N, _R, _P, secrets.token_hex(_SALT_BYTES), "00" * _KEY_BYTES)
    return msgspec.structs.replace(bare, key=_derived(password, bare).hex())


def nobody() -> PasswordHash:
    """Return what no password was made of, to be compared where nobody has the name: that takes as long."""
    return PasswordHash(_N, _R, _P, secrets.token_hex(_SALT_BYTES), secrets.token_hex(_KEY_BYTES))


def check_password(name: str, password: str) -> None:
    """Refuse a password that is easily guessed, or that cannot be typed in a line.

    Args:
        name: Name of its user.
        password: The password.

    Raises:
        ArgumentError: If it is; the message does not hold it.
    """
    if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
        raise ArgumentError(
            f"password: expected {LEAST_CHARACTERS} to {MOST_CHARACTERS} characters, got {len(password)}. Take another."
        )
    if not password.isprintable():
        raise ArgumentError("password: expected one line without control characters, got some. Take another.")
    lower = password.lower()
    if len(set(lower.replace(name.lower(), ""))) < _LEAST_DIFFERENT:
        raise ArgumentError(
            f"password: expected at least {_LEAST_DIFFERENT} different characters beside the name, got fewer. Take "
            "another."
        )


def _derived(password: str, settings: PasswordHash) -> bytes:
    # One way to write an accent: keyboards differ.
    text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    n, r, p = settings.n, settings.r, settings.p
    # What OpenSSL counts, and a little: its default refuses these settings.
    most = 128 * r * (n + p + 2) + (1 << 20)
    return hashlib.scrypt(
        text, salt=bytes.fromhex(settings.salt), n=n, r=r, p=p, maxmem=most, dklen=len(settings.key) // 2
    )
