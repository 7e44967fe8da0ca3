"""A release: an OCI image manifest of the kind that ORAS calls an artifact, whose one layer is a packed, signed bundle.

Its config holds what a line must know before it pulls the layer: the manifest of the bundle with its signature. A
release that is not signed by a trusted key, or that a view cannot take, is refused after some kilobytes.

    {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
     "artifactType": "application/vnd.flawscope.bundle.v1",
     "config": {"mediaType": "application/vnd.flawscope.bundle.config.v1+json", "digest": "sha256:...", "size": 4711},
     "layers": [{"mediaType": "application/vnd.flawscope.bundle.v1+zip", "digest": "sha256:...", "size": 14900000}]}
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from flawscope.bundle import Manifest, decode_manifest
from flawscope.bundle.signature import decode_signature
from flawscope.bundle.trust import check_trusted, signature_of
from flawscope.bundle.trusted_keys import TrustedKeys
from flawscope.errors import FlawscopeError
from flawscope.ranges import Count
from flawscope.text import NOT_JSON, encode_json, printable

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.flawscope.bundle.v1"
CONFIG_TYPE = "application/vnd.flawscope.bundle.config.v1+json"
LAYER_TYPE = "application/vnd.flawscope.bundle.v1+zip"

MOST_MANIFEST_BYTES = 1 << 20
"""Largest manifest that is read: ours have less than a kilobyte."""
MOST_CONFIG_BYTES = 16 << 20
"""Largest config that is read or written."""

_DIGEST = r"^sha256:[0-9a-f]{64}\Z"
Digest = Annotated[str, msgspec.Meta(pattern=_DIGEST)]


class ReleaseRefused(FlawscopeError):
    """A release is not what it must be: whoever asks again gets the same."""


class SourceAway(FlawscopeError):
    """Where releases come from does not answer, or has none: it may later."""


class _Oci(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base: fields that the specification may add are passed over."""


class Descriptor(_Oci, frozen=True, kw_only=True):
    """A blob: type, hash and size, as `mediaType`, `digest` and `size`."""

    media_type: str
    digest: Digest
    size: Count
    artifact_type: str = ""
    annotations: dict[str, str] = {}


class OciManifest(_Oci, frozen=True, kw_only=True):
    """An OCI image manifest (image specification 1.1)."""

    schema_version: Literal[2]
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], msgspec.Meta(max_length=64)]
    annotations: dict[str, str] = {}


class BundleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The config of a release.

    Attributes:
        manifest: The bytes of the bundle's `manifest.json`, as text.
        signature: Those of its `signature.json`.
        schema: Version of this struct.
    """

    manifest: str
    signature: str
    schema: Literal[1] = 1


@dataclass(frozen=True)
class Release:
    """A release as its manifest has it.

    Attributes:
        digest: Digest of the manifest, `sha256:...`, which is that of the release.
        config: Its config.
        layer: The packed bundle.
    """

    digest: str
    config: Descriptor
    layer: Descriptor


def digest_of(data: bytes) -> str:
    """Return the digest of a blob."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_release(data: bytes) -> Release:
    """Read the manifest of a release; that it is the one that was asked for, whoever fetched it has checked.

    Raises:
        ReleaseRefused: If it is anything else.
    """
    digest = digest_of(data)
    try:
        found = msgspec.json.decode(data, type=OciManifest)
    except NOT_JSON as err:
        raise ReleaseRefused(
            f"release {digest[:19]}…: expected an OCI image manifest, got another text: {printable(str(err))}. Publish "
            "the bundle with flawscope fleet publish."
        ) from err
    if (found.artifact_type, found.config.media_type) != (ARTIFACT_TYPE, CONFIG_TYPE):
        got = printable(found.artifact_type or found.config.media_type)[:200]
        raise ReleaseRefused(
            f"release {digest[:19]}…: expected a bundle ({ARTIFACT_TYPE}), got {got!r}. Give the tag to a release of "
            "flawscope fleet publish."
        )
    if len(found.layers) != 1 or found.layers[0].media_type != LAYER_TYPE:
        raise ReleaseRefused(
            f"release {digest[:19]}…: expected one layer, a packed bundle ({LAYER_TYPE}), got "
            f"{len(found.layers)} or another kind. Publish the bundle again."
        )
    if found.config.size > MOST_CONFIG_BYTES:
        raise ReleaseRefused(
            f"release {digest[:19]}…: expected a config of at most {MOST_CONFIG_BYTES >> 20} MiB, got "
            f"{found.config.size:,} bytes. Publish the bundle again."
        )
    return Release(digest, found.config, found.layers[0])


def read_bundle_config(data: bytes, where: str, trusted: TrustedKeys | None) -> Manifest:
    """Return the manifest of the bundle of a release, which is signed.

    Args:
        data: The config, whose hash was compared.
        where: What the release is called in messages.
        trusted: The keys that are trusted. None for whoever only lists releases: then it has to be signed by any key.

    Raises:
        ReleaseRefused: If it is broken, not signed, or not by one of the keys.
    """
    try:
        config = msgspec.json.decode(data, type=BundleConfig)
    except NOT_JSON as err:
        raise ReleaseRefused(
            f"{where}: expected the manifest of a bundle, got another text: {printable(str(err))}. Publish it again."
        ) from err
    manifest_bytes, signature = config.manifest.encode(), config.signature.encode()
    try:
        manifest = decode_manifest(manifest_bytes, where)
        if signature_of(signature, manifest.digest, where) is None:
            raise ReleaseRefused(
                f"{where}: expected a signed bundle, got the signature of another one. Sign it with flawscope bundle "
                "sign, and publish it again."
            )
        check_trusted(manifest_bytes, manifest.digest, signature, where, trusted)
    except ReleaseRefused:
        raise
    except FlawscopeError as err:
        raise ReleaseRefused(str(err)) from err
    return manifest


def signer_of(data: bytes, where: str) -> str:
    """Return the id of the key that signed the bundle of a config, which `read_bundle_config` has read; not checked."""
    return decode_signature(msgspec.json.decode(data, type=BundleConfig).signature.encode(), where).key


def encode_bundle_config(manifest: bytes, signature: bytes) -> bytes:
    """Return the config of a release."""
    return encode_json(BundleConfig(manifest.decode(), signature.decode()))


def encode_release(config: bytes, layer: Descriptor, annotations: dict[str, str]) -> bytes:
    """Return the manifest of a release. It has no time of its own: the same bundle gives the same release."""
    described = Descriptor(media_type=CONFIG_TYPE, digest=digest_of(config), size=len(config))
    return encode_json(
        OciManifest(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            artifact_type=ARTIFACT_TYPE,
            config=described,
            layers=(layer,),
            annotations=annotations,
        )
    )
