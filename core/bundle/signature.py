"""Signatures of bundles: Ed25519 over the manifest, which lists the hash of every other file.

What is signed is a text that says what it is for, followed by the bytes of `manifest.json`: a key that also signs other
things cannot be made to sign a manifest unknowingly.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

import msgspec

from flawscope.bundle.ed25519 import KEY_ID_DIGITS, PrivateKey, PublicKey
from flawscope.errors import BundleError
from flawscope.ranges import Sha256
from flawscope.text import NOT_JSON, encode_json

MAX_SIGNATURE_BYTES = 4096
_SIGNED = b"flawscope bundle manifest v1\0"

KeyId = Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{KEY_ID_DIGITS}}}$")]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `signature.json`.

    Attributes:
        algorithm: How it was signed.
        key: Id of the key that signed; see `PublicKey`.
        digest: Digest of the manifest that was signed. A signature of another digest is what is left of a bundle that
            was changed since: the bundle is not signed.
        signature: The 64 bytes in Base64.
        schema: Version of this struct.
    """

    algorithm: Literal["ed25519"]
    key: KeyId
    digest: Sha256
    signature: str
    schema: Literal[1] = 1


def sign_manifest(manifest: bytes, digest: str, key: PrivateKey) -> bytes:
    """Return the bytes of `signature.json` for a manifest.

    Args:
        manifest: The bytes of `manifest.json`.
        digest: The digest in it.
        key: The key that signs.
    """
    signature = base64.b64encode(key.sign(_SIGNED + manifest)).decode()
    return _encode(Signature("ed25519", key.public.id, digest, signature))


def decode_signature(data: bytes, where: str) -> Signature:
    """Read `signature.json`; whether it fits a manifest is not checked here.

    Args:
        data: Its bytes.
        where: What the bundle is called in messages.

    Raises:
        BundleError: If it is anything but what `sign_manifest` writes.
    """
    try:
        signature = msgspec.json.decode(data, type=Signature)
        # Byte for byte, so that one signature has one spelling and every changed byte is noticed.
        is_whole = _encode(signature) == data and len(_bytes_of(signature)) == 64
    except (*NOT_JSON, binascii.Error, ValueError) as err:
        raise BundleError(f"{where}: the signature is broken: {err}. Sign the bundle again, or copy it again.") from err
    if not is_whole:
        raise BundleError(f"{where}: the signature was changed after it was made. Sign the bundle again.")
    return signature


def fits(signature: Signature, manifest: bytes, key: PublicKey) -> bool:
    """Return whether `key` made the signature of the bytes of a manifest."""
    return signature.key == key.id and key.verify(_bytes_of(signature), _SIGNED + manifest)


def _bytes_of(signature: Signature) -> bytes:
    data = base64.b64decode(signature.signature, validate=True)
    # Base64 has several spellings of some bytes: the last digit has bits that do not count.
    if base64.b64encode(data).decode() != signature.signature:
        raise ValueError("Base64 in another spelling")
    return data


def _encode(signature: Signature) -> bytes:
    return msgspec.json.format(encode_json(signature, order="sorted"), indent=1) + b"\n"
