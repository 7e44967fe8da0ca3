"""Publishing signed bundles as releases, and giving tags to others of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from flawscope.bundle import Bundle, find_trusted_keys, open_bundle, pack_bundle
from flawscope.bundle.trust import signature_of
from flawscope.errors import ArgumentError, BundleError, FlawscopeError
from flawscope.files import sha256_file, temporary_folder
from flawscope.open_files import open_regular
from flawscope.runtime.line.rollout.place import Place, read_blob
from flawscope.runtime.line.rollout.release import (
    CONFIG_TYPE,
    LAYER_TYPE,
    MOST_CONFIG_BYTES,
    Descriptor,
    digest_of,
    encode_bundle_config,
    encode_release,
    read_bundle_config,
    read_release,
    signer_of,
)


def publish(bundle: Path, place: Place, tags: tuple[str, ...]) -> str:
    """Publish a bundle as a release, under some tags; return its digest, which is the same for the same bundle.

    Args:
        bundle: The bundle, folder or packed file.
        place: Where to.
        tags: The tags, which other releases lose.

    Raises:
        BundleError: If it is not whole, not signed, or not signed by a key that is trusted here, where there are any.
        SourceAway: If the place does not answer.
        StorageError: If it cannot be written.
    """
    with open_bundle(bundle) as opened, _packed(opened) as packed:
        config = _config(opened)
        digest = f"sha256:{sha256_file(packed)}"
        layer = Descriptor(
            media_type=LAYER_TYPE,
            digest=digest,
            size=packed.stat().st_size,
            annotations={"org.opencontainers.image.title": f"{opened.manifest.name}.flaw"},
        )
        data = encode_release(config, layer, _annotations(opened))
        # Blobs first: a tag must name nothing that is not there.
        described = Descriptor(media_type=CONFIG_TYPE, digest=digest_of(config), size=len(config))
        if not place.has_blob(layer):
            with open_regular(packed) as file:
                place.put_blob(layer, file)
        if not place.has_blob(described):
            place.put_blob(described, io.BytesIO(config))
        for tag in tags:
            place.put_manifest(tag, data)
    return digest_of(data)


def give_tag(place: Place, reference: str, tag: str) -> str:
    """Give a tag to a release, by another tag of it or its digest; return its digest.

    Raises:
        SourceAway: If there is no such release.
        ReleaseRefused: If it is no release of a signed bundle.
    """
    data = place.manifest(reference)
    release = read_release(data)
    read_bundle_config(read_blob(place, release.config), f"release {reference}", None)
    place.put_manifest(tag, data)
    return release.digest


def list_releases(place: Place) -> Iterator[dict[str, str]]:
    """Yield a row for each tag: `tag`, `release`, `bundle`, `name`, `method`, `key`, and `problem`, empty for none.

    Signatures are checked where keys are trusted on this machine.
    """
    trusted = find_trusted_keys()
    for tag in place.tags():
        row = {"tag": tag, "release": "", "bundle": "", "name": "", "method": "", "key": "", "problem": ""}
        try:
            release = read_release(place.manifest(tag))
            row["release"] = release.digest
            data = read_blob(place, release.config)
            manifest = read_bundle_config(data, f"release {tag}", trusted)
            row |= {"bundle": manifest.digest, "name": manifest.name, "method": manifest.method}
            row["key"] = signer_of(data, f"release {tag}")
        except FlawscopeError as err:
            row["problem"] = str(err)
        yield row


@contextlib.contextmanager
def _packed(bundle: Bundle) -> Iterator[Path]:
    """Yield the file of a bundle; a folder is packed for it."""
    if not bundle.path.is_dir():
        yield bundle.path
        return
    with temporary_folder() as folder:
        path = folder / "packed.flaw"
        pack_bundle(bundle, path)
        yield path


def _config(bundle: Bundle) -> bytes:
    signature = bundle.signature_bytes
    if signature is None or signature_of(signature, bundle.manifest.digest, str(bundle.path)) is None:
        raise BundleError(
            f"{bundle.path}: expected a signed bundle, as no line takes a release without, got one without signature. "
            "Sign it with flawscope bundle sign."
        )
    data = encode_bundle_config(bundle.manifest_bytes, signature)
    if len(data) > MOST_CONFIG_BYTES:
        raise ArgumentError(
            f"{bundle.path}: expected a manifest of at most {MOST_CONFIG_BYTES >> 20} MiB, got {len(data) >> 20}. "
            "Bring it to each line with flawscope line swap."
        )
    return data


def _annotations(bundle: Bundle) -> dict[str, str]:
    """Return what registries show of a release; nothing of it is believed by a line."""
    manifest = bundle.manifest
    said = {
        "org.opencontainers.image.title": manifest.name,
        "org.opencontainers.image.created": manifest.provenance.created,
        "io.flawscope.bundle.digest": manifest.digest,
        "io.flawscope.bundle.method": manifest.method,
        "io.flawscope.bundle.category": manifest.provenance.category,
        "io.flawscope.version": manifest.flawscope,
    }
    return {name: text for name, text in said.items() if text}
