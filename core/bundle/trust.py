"""Whether a bundle may be run: signed by one of the trusted keys, where keys are trusted."""

from __future__ import annotations

from flawscope.bundle.ed25519 import PublicKey
from flawscope.bundle.signature import Signature, decode_signature, fits
from flawscope.bundle.trusted_keys import TrustedKeys, is_made_here
from flawscope.errors import BundleError


def signature_of(data: bytes | None, digest: str, where: str) -> Signature | None:
    """Return the signature of a bundle, or None where it has none; that it fits is not checked here.

    Args:
        data: The bytes of `signature.json`; None where there is no such file.
        digest: Digest of the manifest that lies beside it.
        where: What the bundle is called in messages.

    Raises:
        BundleError: If it is broken.
    """
    signature = None if data is None else decode_signature(data, where)
    # What is left of a bundle that was changed by a writer that was killed before it removed the signature.
    return None if signature is None or signature.digest != digest else signature


def check_trusted(
    manifest: bytes, digest: str, signature: bytes | None, where: str, trusted: TrustedKeys | None
) -> None:
    """Raise BundleError unless a bundle may be run: by its signature, or because nothing is set that asks for one.

    Args:
        manifest: The bytes of `manifest.json`.
        digest: The digest in it.
        signature: The bytes of `signature.json`, or None.
        where: What the bundle is called in messages.
        trusted: The keys that are trusted here; None where none are set.
    """
    found = signature_of(signature, digest, where)
    if trusted is None or is_made_here(digest):
        return
    expected = f"{where}: expected a bundle signed by a key of {trusted.source}"
    if found is None:
        raise BundleError(
            f"{expected}, got one without signature. Get a signed one, or sign it with flawscope bundle sign."
        )
    key = trusted.keys.get(found.key)
    if key is None:
        raise BundleError(
            f"{expected}, got one signed by {found.key}, which is none of them. Get one of a trusted key; trust this "
            "key only if you know whose it is."
        )
    _check_fits(found, manifest, key, where)


def check_signed_by(
    manifest: bytes, digest: str, signature: bytes | None, where: str, keys: dict[str, PublicKey]
) -> str:
    """Return the id of the key among `keys` that signed a bundle; raise BundleError if none of them did."""
    found = signature_of(signature, digest, where)
    wanted = ", ".join(sorted(keys))
    if found is None:
        raise BundleError(f"{where}: expected a signature by {wanted}, got none. Sign it with flawscope bundle sign.")
    if found.key not in keys:
        raise BundleError(
            f"{where}: expected a signature by {wanted}, got one by {found.key}. Get the bundle of that key."
        )
    _check_fits(found, manifest, keys[found.key], where)
    return found.key


def _check_fits(signature: Signature, manifest: bytes, key: PublicKey, where: str) -> None:
    if not fits(signature, manifest, key):
        raise BundleError(
            f"{where}: the signature says {key.id}, but that key did not sign this bundle: it is forged or damaged. "
            "Do not use it; get the bundle again from its maker."
        )
