"""The bundles that a line keeps: one packed file each, named by its digest, there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from flawscope.bundle import MANIFEST, Bundle, decode_manifest, open_bundle, pack_bundle
from flawscope.bundle.file_names import SIGNATURE
from flawscope.bundle.manifest import MAX_MANIFEST_BYTES
from flawscope.bundle.signature import MAX_SIGNATURE_BYTES, decode_signature
from flawscope.bundle.stored_files import ZipFiles
from flawscope.errors import ArgumentError, BundleError, FlawscopeError, StorageError
from flawscope.files import storage_errors
from flawscope.open_files import list_folder
from flawscope.scratch import remove_leftovers, scratch_file, sync

_SUFFIX = ".flaw"
_PARTIAL = ".pulled"
_RESERVE_BYTES = 1 << 30
"""Space that stays free on the disk: without any, the journal cannot be written, and each part is a fault."""


class StoredBundle(msgspec.Struct, frozen=True):
    """A bundle in the store, as its manifest has it; its other files were verified when it came, and are at each load.

    Attributes:
        digest: Its digest.
        bytes: Size of its file.
        name: Its name.
        method: Method of its detector.
        category: What it was trained for.
        created: When it was exported, UTC.
        flawscope: Version that exported it.
        precisions: Its precisions beside fp32.
        thresholds: Precision -> `{"image", "low", "high"}`, the limits null where the bundle states none.
        signed_by: Id of the key that signed it, empty for none. Whether it is trusted, a swap says.
        problem: Why it cannot be read; empty where it can.
    """

    digest: str
    bytes: int
    name: str = ""
    method: str = ""
    category: str = ""
    created: str = ""
    flawscope: str = ""
    precisions: tuple[str, ...] = ()
    thresholds: dict[str, dict[str, float | None]] = {}
    signed_by: str = ""
    problem: str = ""


class BundleStore:
    """The folder of the bundles.

    Args:
        folder: The folder; it is made where it is missing.
        trusted_keys: Public keys: with them, bundles that none of them has signed are refused.
        reserve_bytes: Space that stays free on the disk.
    """

    def __init__(self, folder: Path, trusted_keys: Path | None, *, reserve_bytes: int = _RESERVE_BYTES) -> None:
        self._folder, self._trusted_keys, self._reserve = folder, trusted_keys, reserve_bytes
        self._read: dict[tuple[str, int, int], StoredBundle] = {}

    def path_of(self, digest: str) -> Path:
        """Return where a bundle is, or would be."""
        return self._folder / f"{digest}{_SUFFIX}"

    def has(self, digest: str) -> bool:
        """Return whether a bundle is there; whether it is whole, opening it says."""
        return _is_digest(digest) and self.path_of(digest).is_file()

    def open(self, digest: str) -> Bundle:
        """Open and verify a bundle.

        Raises:
            ArgumentError: If it is not there.
            BundleError: As `open_bundle`, and if it is another one than its name says.
        """
        path = self.path_of(digest)
        if not self.has(digest):
            raise ArgumentError(
                f"expected the digest of a bundle of this line, got {digest[:12]}…, which is not in {self._folder}. "
                "Add it first."
            )
        bundle = open_bundle(path, trusted_keys=self._trusted_keys)
        if bundle.manifest.digest != digest:
            bundle.close()
            raise BundleError(f"{path}: expected the bundle of this digest, got {bundle.manifest.digest}. Remove it.")
        return bundle

    def keep(self, bundle: Bundle) -> str:
        """Copy an opened bundle into the store unless it is there and whole; return its digest.

        Raises:
            StorageError: If it cannot be written.
        """
        digest = bundle.manifest.digest
        if self.has(digest):
            # What is not whole, or has another signature than the one that was just found good, is replaced.
            with contextlib.suppress(FlawscopeError), self.open(digest) as stored:
                if stored.signature_bytes == bundle.signature_bytes:
                    return digest
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self.check_room(sum(entry.size for entry in bundle.manifest.files.values()))
        pack_bundle(bundle, self.path_of(digest), overwrite=True)
        return digest

    @contextlib.contextmanager
    def receiving(self, most_bytes: int) -> Iterator[Receiving]:
        """Yield what takes a bundle piece by piece; what is not finished leaves nothing behind.

        Args:
            most_bytes: Largest file that is taken.

        Raises:
            StorageError: If the disk has no room.
        """
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self._folder)
        with contextlib.ExitStack() as stack:
            with storage_errors(self._folder):
                temporary = stack.enter_context(scratch_file(self._folder))
                file = stack.enter_context(temporary.open("wb"))
            yield Receiving(self, temporary, file, most_bytes)

    def partial_of(self, blob: str) -> Path:
        """Return where what was pulled of a blob (64 hexadecimal digits) lies; the folder is there then."""
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f".{blob}{_PARTIAL}"

    def forget_partials(self, keep: Collection[Path]) -> None:
        """Remove what was pulled of blobs that nobody wants any more."""
        if not self._folder.is_dir():
            return
        with storage_errors(self._folder):
            for path in list_folder(self._folder):
                if path.name.startswith(".") and path.name.endswith(_PARTIAL) and path not in keep:
                    path.unlink(missing_ok=True)

    def take(self, temporary: Path) -> str:
        """Verify a packed bundle that lies in the folder under a temporary name, and give it its own; its digest."""
        try:
            with open_bundle(temporary, trusted_keys=self._trusted_keys) as bundle:
                digest = bundle.manifest.digest
        except FlawscopeError as err:
            raise BundleError(str(err).replace(str(temporary), "what was sent")) from err
        with storage_errors(self.path_of(digest)):
            temporary.chmod(0o644)
            sync(temporary)
            temporary.replace(self.path_of(digest))
            sync(self._folder)
        return digest

    def check_room(self, size: int) -> None:
        """Raise StorageError unless the disk has room for so many bytes more, and for its journal besides."""
        with storage_errors(self._folder):
            free = shutil.disk_usage(self._folder).free
        if free - size < self._reserve:
            raise StorageError(
                f"{self._folder}: expected {(size + self._reserve) >> 20:,} MiB of free space, as a line whose disk is "
                f"full accepts nothing, got {free >> 20:,} MiB. Free some."
            )

    def bundles(self) -> list[StoredBundle]:
        """Return all bundles of the store, by their digests."""
        if not self._folder.is_dir():
            return []
        with storage_errors(self._folder):
            files = sorted(path for path in list_folder(self._folder) if _is_stored(path))
        return [self._stored(path) for path in files]

    def _stored(self, path: Path) -> StoredBundle:
        try:
            status = path.stat()
            key = (path.name, status.st_mtime_ns, status.st_size)
            if key not in self._read:
                self._read[key] = _described(path, status.st_size)
            return self._read[key]
        # What zipfile raises for hostile archives is not foreseen by name.
        except Exception as err:
            return StoredBundle(path.name.removesuffix(_SUFFIX), 0, problem=f"cannot be read: {err}")


class Receiving:
    """A bundle that is being received.

    Args:
        store: Where it goes.
        temporary: Its file until it is whole.
        file: The same, open.
        most_bytes: Largest file that is taken.
    """

    def __init__(self, store: BundleStore, temporary: Path, file: IO[bytes], most_bytes: int) -> None:
        self._store, self._temporary, self._file, self._most = store, temporary, file, most_bytes
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ArgumentError: If it is too large.
            StorageError: If the disk has no room.
        """
        self._size += len(data)
        if self._size > self._most:
            raise ArgumentError(
                f"expected a bundle of at most {self._most >> 20:,} MiB, got a larger one. Raise swap.upload_mb in the "
                "configuration."
            )
        self._store.check_room(len(data))
        with storage_errors(self._temporary):
            self._file.write(data)

    def finish(self) -> str:
        """Verify what came and keep it; return its digest.

        Raises:
            BundleError: If it is no packed bundle, not whole, or not signed by a trusted key where there are any.
            StorageError: If it cannot be written.
        """
        with storage_errors(self._temporary):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._store.take(self._temporary)


def _described(path: Path, size: int) -> StoredBundle:
    with contextlib.closing(ZipFiles(path, path.name)) as files:
        with files.open(MANIFEST) as file:
            manifest = decode_manifest(file.read(MAX_MANIFEST_BYTES), path.name)
        signed = None
        if SIGNATURE in files.sizes():
            with files.open(SIGNATURE) as file:
                signed = file.read(MAX_SIGNATURE_BYTES)
    thresholds: dict[str, dict[str, float | None]] = {}
    for precision in ("fp32", *manifest.precisions):
        if (own := manifest.thresholds_of(precision)) is not None:
            limits: Any = None if own.limits is None else own.limits.image
            thresholds[precision] = {
                "image": own.image.value,
                "low": None if limits is None else limits.low,
                "high": None if limits is None else limits.high,
            }
    return StoredBundle(
        manifest.digest,
        size,
        manifest.name,
        manifest.method,
        manifest.provenance.category,
        manifest.provenance.created,
        manifest.flawscope,
        tuple(manifest.precisions),
        thresholds,
        "" if signed is None else decode_signature(signed, path.name).key,
    )


def _is_stored(path: Path) -> bool:
    return path.name.endswith(_SUFFIX) and _is_digest(path.name.removesuffix(_SUFFIX))


def _is_digest(text: str) -> bool:
    # It comes from strangers, and becomes part of a path.
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
