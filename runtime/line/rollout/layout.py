"""A folder of releases: an OCI image layout, which `oras` and other programs read and write as well.

oci-layout                {"imageLayoutVersion": "1.0.0"}
index.json                the tags, each with the digest of its manifest
blobs/sha256/HASH         manifests, configs, and packed bundles
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec

from flawscope.errors import ArgumentError, FlawscopeError, StorageError
from flawscope.files import atomic_file, is_litter, locked, sha256_file, storage_errors, write_bytes
from flawscope.open_files import list_folder, open_regular, read_regular
from flawscope.ranges import Count
from flawscope.runtime.line.rollout.place import check_manifest, is_digest
from flawscope.runtime.line.rollout.release import (
    ARTIFACT_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    MOST_MANIFEST_BYTES,
    Descriptor,
    ReleaseRefused,
    SourceAway,
    digest_of,
)
from flawscope.runtime.line.rollout.table import FolderReleases
from flawscope.scratch import is_scratch
from flawscope.text import NOT_JSON, encode_json

LAYOUT, INDEX = "oci-layout", "index.json"
_TAG = "org.opencontainers.image.ref.name"
_VERSION = "1.0.0"
_BLOCK_BYTES = 1 << 20
_MOST_INDEX_BYTES = 4 << 20


class _Layout(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


class _Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    # Of another program perhaps: its digest is looked at where the row is used.
    media_type: str
    digest: str
    size: Count
    artifact_type: str = ""
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    schema_version: Literal[2]
    media_type: str = ""
    manifests: tuple[_Row, ...] = ()
    annotations: dict[str, str] = {}


class Layout:
    """An OCI image layout; a `Place`.

    Args:
        options: Its options.
    """

    def __init__(self, options: FolderReleases) -> None:
        self._folder = options.path
        self.name = str(options.path)

    def manifest(self, reference: str) -> bytes:
        """Return the bytes of a manifest; see `Place`."""
        digest = reference if is_digest(reference) else self._digest_of(reference)
        with self._reading():
            data = read_regular(self._path(digest), MOST_MANIFEST_BYTES)
        return check_manifest(data, digest, self.name)

    @contextlib.contextmanager
    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Return a block with a blob piece by piece; see `Place`."""
        with self._reading():
            file = open_regular(self._path(blob.digest))
        with file:
            with self._reading():
                file.seek(offset)
            yield offset, self._pieces(file, blob.size - offset)

    def tags(self) -> list[str]:
        """Return all tags, sorted."""
        return sorted({row.annotations[_TAG] for row in self._index().manifests if _TAG in row.annotations})

    def has_blob(self, blob: Descriptor) -> bool:
        """Return whether a blob is there and whole."""
        path = self._path(blob.digest)
        with contextlib.suppress(OSError):
            return path.stat().st_size == blob.size and f"sha256:{sha256_file(path)}" == blob.digest
        return False

    def put_blob(self, blob: Descriptor, file: IO[bytes]) -> None:
        """Store a blob; see `Place`."""
        self._begin()
        with atomic_file(self._path(blob.digest), durable=True) as temporary, temporary.open("wb") as target:
            shutil.copyfileobj(file, target, _BLOCK_BYTES)

    def put_manifest(self, tag: str, data: bytes) -> None:
        """Store a manifest, and give it a tag; see `Place`."""
        self._begin()
        described = _Row(
            media_type=MANIFEST_TYPE,
            digest=digest_of(data),
            size=len(data),
            artifact_type=ARTIFACT_TYPE,
            annotations={_TAG: tag},
        )
        write_bytes(self._path(described.digest), data, durable=True)
        path = self._folder / INDEX
        with locked(path):
            index = self._index() if path.exists() else _Index(schema_version=2, media_type=INDEX_TYPE)
            others = tuple(row for row in index.manifests if row.annotations.get(_TAG) != tag)
            index = msgspec.structs.replace(index, manifests=(*others, described))
            write_bytes(path, msgspec.json.format(encode_json(index), indent=1) + b"\n", durable=True)

    def close(self) -> None:
        """Nothing waits but the system."""

    def _begin(self) -> None:
        """Make the folder, unless it is one of releases.

        Raises:
            ArgumentError: If something else lies there.
        """
        path = self._folder / LAYOUT
        if path.exists():
            return
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            taken = next((entry for entry in list_folder(self._folder) if not _is_nothing(entry.name)), None)
        if taken is not None:
            raise ArgumentError(
                f"{self._folder}: expected a folder of releases or an empty one, got one with {taken.name}. Name "
                "another."
            )
        write_bytes(path, encode_json(_Layout(_VERSION)), durable=True)

    def _digest_of(self, tag: str) -> str:
        found = [row for row in self._index().manifests if row.annotations.get(_TAG) == tag]
        if not found:
            raise SourceAway(f"{self.name}: expected a release with the tag {tag}, got none. Publish one.")
        # As others append: the last one counts.
        return found[-1].digest

    def _index(self) -> _Index:
        with self._reading():
            layout = read_regular(self._folder / LAYOUT, MOST_MANIFEST_BYTES)
            data = read_regular(self._folder / INDEX, _MOST_INDEX_BYTES)
        try:
            if msgspec.json.decode(layout, type=_Layout).image_layout_version != _VERSION:
                raise SourceAway(
                    f"{self.name}: expected an OCI layout of version {_VERSION}, got another. Publish anew."
                )
            return msgspec.json.decode(data, type=_Index)
        except NOT_JSON as err:
            raise SourceAway(f"{self.name}: expected an OCI layout, got another text: {err}. Publish anew.") from err

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):  # it becomes a part of the path
            raise ReleaseRefused(f"{self.name}: expected a digest (sha256:...), got another text. Publish anew.")
        return self._folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _pieces(self, file: IO[bytes], left: int) -> Iterator[bytes]:
        while left > 0:
            with self._reading():
                piece = file.read(min(_BLOCK_BYTES, left))
            if not piece:
                return
            left -= len(piece)
            yield piece

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what reading raises into SourceAway: a share that is not mounted now may be so later."""
        try:
            yield
        except StorageError:
            raise
        except (OSError, FlawscopeError) as err:
            if isinstance(err, SourceAway | ReleaseRefused):
                raise
            said = f"{err.filename}: {err.strerror}" if isinstance(err, OSError) and err.strerror else str(err)
            raise SourceAway(f"{self.name}: could not be read: {said}. Is the folder there, and mounted?") from err


def _is_nothing(name: str) -> bool:
    """Return whether an entry of a folder is of another publisher or of a system, and no release."""
    return name == LAYOUT or is_scratch(name) or is_litter(name) or name == "lost+found"
