"""Where releases lie: what publishing and pulling ask of it. A row of `table.PLACES` and a file make another kind."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import msgspec

from flawscope.errors import ArgumentError
from flawscope.runtime.line.rollout.release import (
    MOST_MANIFEST_BYTES,
    Descriptor,
    ReleaseRefused,
    SourceAway,
    digest_of,
)
from flawscope.runtime.line.rollout.table import (
    PLACES,
    PLAIN,
    SECURE,
    FolderReleases,
    RegistryReleases,
    ReleaseOptions,
    Tag,
)
from flawscope.text import printable

_IS_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Place(Protocol):
    """A folder of releases, or a repository of a registry. One thread at a time, but for `close`.

    All of it raises SourceAway where it does not answer or has no such thing, ReleaseRefused where it answers what it
    must not, and for writing StorageError besides.
    """

    name: str
    """What it is called in messages: without anything that may be secret."""

    def manifest(self, reference: str) -> bytes:
        """Return the bytes of a manifest, by tag or digest; at most `MOST_MANIFEST_BYTES`."""

    def blob(self, blob: Descriptor, offset: int = 0) -> contextlib.AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """Return a block with a blob: where its first piece begins, which is `offset` or 0, and the pieces.

        At most one byte more than the blob has; whether they are the right ones, whoever takes them compares.
        """

    def tags(self) -> list[str]:
        """Return all tags, sorted."""

    def has_blob(self, blob: Descriptor) -> bool:
        """Return whether a blob is there."""

    def put_blob(self, blob: Descriptor, file: IO[bytes]) -> None:
        """Store a blob; its hash is compared by whoever has it then."""

    def put_manifest(self, tag: str, data: bytes) -> None:
        """Store a manifest, and give it a tag, which another one loses."""

    def close(self) -> None:
        """End what waits, from another thread."""


def open_place(options: ReleaseOptions) -> Place:
    """Return where releases lie.

    Raises:
        ArgumentError: If its options cannot be used.
    """
    module, _, attribute = PLACES[type(options)].partition(":")
    place: Place = getattr(importlib.import_module(module), attribute)(options)
    return place


def options_of(place: str, what: str = "PLACE") -> ReleaseOptions:
    """Return the options of a place as a command names it: `oci://HOST:PORT/NAME`, or a folder.

    Args:
        place: The place.
        what: What it is called in messages.

    Raises:
        ArgumentError: If it is another kind of address, which would pass for a folder, or none at all.
    """
    if place.startswith((SECURE, PLAIN)):
        return RegistryReleases(url=place)
    scheme, separator, _ = place.partition("://")
    if separator or not place:
        # Not the rest: a password may stand in it.
        got = f"{printable(scheme)[:40]}://" if separator else "nothing"
        raise ArgumentError(
            f"{what}: expected oci://HOST:PORT/NAME (oci+http:// without TLS) or a folder, got {got}. Mend it."
        )
    return FolderReleases(path=Path(place))


def checked_tag(tag: str) -> str:
    """Return a tag. Raises ArgumentError unless OCI allows it."""
    try:
        return msgspec.convert(tag, Tag)
    except msgspec.ValidationError as err:
        raise ArgumentError(
            f"tag: expected at most 128 letters, digits, `_`, `.` and `-`, no `.` or `-` first, got {printable(tag)!r}."
        ) from err


def is_digest(reference: str) -> bool:
    """Return whether a reference is a digest and no tag."""
    return _IS_DIGEST.fullmatch(reference) is not None


def check_manifest(data: bytes, reference: str, where: str) -> bytes:
    """Return the bytes of a manifest that was fetched.

    Raises:
        ReleaseRefused: If there are too many, or they are not those that a digest names.
    """
    if len(data) > MOST_MANIFEST_BYTES:
        raise ReleaseRefused(
            f"{where}: expected a manifest of at most {MOST_MANIFEST_BYTES >> 10} KiB, got a larger one. Is it ours?"
        )
    if is_digest(reference) and digest_of(data) != reference:
        raise ReleaseRefused(
            f"{where}: expected the manifest {reference[:19]}…, got {digest_of(data)[:19]}…: it was changed "
            "on the way. Look at the registry."
        )
    return data


def read_blob(place: Place, blob: Descriptor) -> bytes:
    """Return a small blob, whose hash is right.

    Raises:
        SourceAway: If it is not all there.
        ReleaseRefused: If it is another one.
    """
    with place.blob(blob) as (_, pieces):
        data = b"".join(pieces)
    if len(data) < blob.size:
        raise SourceAway(f"{place.name}: expected {blob.size:,} bytes, got {len(data):,}. It is tried again.")
    if digest_of(data) != blob.digest:
        raise ReleaseRefused(
            f"{place.name}: expected the blob {blob.digest[:19]}…, got others: it was changed on the way. Look at the "
            "registry."
        )
    return data
