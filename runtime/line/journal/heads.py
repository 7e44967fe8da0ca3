"""Signed heads: the end of the chain at one moment, signed by the device, for whoever keeps them elsewhere.

A chain alone shows that somebody changed a row, unless he computed all hashes anew. A head that left the machine before
shows that, too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flawscope.bundle.ed25519 import PUBLIC, PrivateKey, PublicKey, read_private_key, read_public_keys, write_keys
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.files import storage_errors
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.runtime.line.journal.chain import canonical
from flawscope.scratch import sync
from flawscope.text import NOT_JSON

HEADS = "heads.jsonl"
KEY = Path("keys") / "device.key"
PUBLIC_KEY = KEY.with_name(KEY.name + PUBLIC)

_PREFIX = b"flawscope line head\n"


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a chain at one moment.

    Attributes:
        line: Name of the line.
        link: Place of its last entry.
        hash: Hash of that entry.
        seq: Largest number of a part until then.
        utc: When it was signed.
        key: Name of the key; empty where nobody signed.
        signature: Signature in hex; empty where nobody signed.
    """

    line: str
    link: int
    hash: str
    seq: int
    utc: str
    key: str = ""
    signature: str = ""

    def signed_bytes(self) -> bytes:
        """Return what is signed: `flawscope line head`, a line feed, and the first five fields as canonical JSON."""
        fields = msgspec.structs.asdict(self)
        return _PREFIX + canonical({name: fields[name] for name in ("line", "link", "hash", "seq", "utc")})

    def signed_by(self, key: PrivateKey | None) -> Head:
        """Return the head with the signature of a key; None leaves it unsigned."""
        if key is None:
            return self
        signature = key.sign(self.signed_bytes()).hex()
        return msgspec.structs.replace(self, key=key.public.id, signature=signature)

    def is_signed_by(self, key: PublicKey) -> bool:
        """Return whether the signature is of this key. Raises MissingExtra."""
        with contextlib.suppress(ValueError):
            return key.verify(bytes.fromhex(self.signature), self.signed_bytes())
        return False


def device_key(folder: Path) -> PrivateKey | None:
    """Return the key of this device, made at the first call; None where the package `cryptography` is not installed.

    Args:
        folder: State folder of the line.

    Raises:
        ArgumentError: If its file is no key, or others can read it.
        StorageError: If it cannot be written.
    """
    path = folder / KEY
    try:
        if not os.path.lexists(path):
            with storage_errors(path):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _put_aside(folder / PUBLIC_KEY)
            write_keys(path)
        return read_private_key(path, lambda: None)
    except MissingExtra:
        return None


def _put_aside(public: Path) -> None:
    """Rename a public key whose private one is gone: heads that it signed are checked with it."""
    if os.path.lexists(public):
        names = (public.with_name(f"device-{number}.key{PUBLIC}") for number in itertools.count(1))
        with storage_errors(public):
            public.rename(next(name for name in names if not os.path.lexists(name)))


def public_key(path: Path) -> PublicKey:
    """Return the one public key of a file.

    Raises:
        ArgumentError: If it is something else.
        MissingExtra: If the package `cryptography` is not installed.
    """
    keys = read_public_keys(path)
    if len(keys) != 1:
        raise ArgumentError(f"{path}: expected one public key, got {len(keys)}. Name the file of the device's own.")
    return keys[0]


class _Entry(msgspec.Struct, frozen=True):
    """What is taken of an entry that a sink has stored; it has more fields."""

    line: str
    link: int
    kind: str
    hash: str
    utc: str
    seq: int = 0
    head_link: int = 0
    head_hash: str = ""
    key: str = ""
    signature: str = ""

    def head(self) -> Head:
        """Return the head that it holds, or, as it has place and hash of itself, the unsigned one that it is."""
        if self.kind == "head":
            return Head(self.line, self.head_link, self.head_hash, self.seq, self.utc, self.key, self.signature)
        return Head(self.line, self.link, self.hash, self.seq, self.utc)


def read_heads(path: Path) -> tuple[list[Head], list[str]]:
    """Return the heads of a file, and what is wrong with it; no file is none.

    A power cut may leave half of the last line, which is said, and no more than that. The file may be one of a sink,
    too: of entries that are no heads the last one counts as one, which nobody has signed.

    Raises:
        ArgumentError: If it cannot be read.
    """
    try:
        data = read_regular(path, RECORD_BYTES)
    except FileNotFoundError:
        return [], []
    except OSError as err:
        raise ArgumentError(f"{path}: expected signed heads, got: {err.strerror}. Name another file.") from err
    heads, problems, last = [], [], None
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                head, is_meant = _decoded(line)
            except NOT_JSON:
                problems.append(f"line {number} of {path.name} is no head")
                continue
            if is_meant:
                heads.append(head)
            else:
                last = head
    return heads + ([] if last is None else [last]), problems


def _decoded(line: bytes) -> tuple[Head, bool]:
    """Return the head of a line, and whether it was written as one."""
    try:
        return msgspec.json.decode(line, type=Head), True
    except msgspec.ValidationError:
        entry = msgspec.json.decode(line, type=_Entry)
        return entry.head(), entry.kind == "head"


def append_heads(path: Path, heads: Sequence[Head]) -> None:
    """Append heads to their file and wait for the disk. Raises OSError."""
    is_new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(handle).st_size
        # Half a line that a power cut left must not swallow the next.
        begin = b"\n" if size and os.pread(handle, 1, size - 1) != b"\n" else b""
        text = begin + b"".join(canonical(msgspec.structs.asdict(head)) + b"\n" for head in heads)
        while text:
            text = text[os.write(handle, text) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    if is_new:
        sync(path.parent)
