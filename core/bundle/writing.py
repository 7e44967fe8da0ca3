"""Writing bundles: whole or not at all, and packing them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from flawscope.bundle.ed25519 import PrivateKey
from flawscope.bundle.file_names import MANIFEST, RESERVED, SIGNATURE, is_safe, overlay_beside
from flawscope.bundle.manifest import SCHEMA, Evidence, FileEntry, Manifest, decode_manifest, encode_manifest
from flawscope.bundle.opening import Bundle, check_bundle_trusted, open_bundle
from flawscope.bundle.signature import MAX_SIGNATURE_BYTES, sign_manifest
from flawscope.bundle.threshold_overlay import set_aside
from flawscope.bundle.trust import signature_of
from flawscope.bundle.trusted_keys import find_trusted_keys, remember_made
from flawscope.errors import ArgumentError, BundleError, FlawscopeError
from flawscope.files import atomic_file, atomic_folder, check_new_file, locked, sha256_file, storage_errors, write_bytes
from flawscope.open_files import RECORD_BYTES, read_regular, regular_path

_log = logging.getLogger(__name__)


def write_bundle(
    path: Path, manifest: Manifest, sources: Mapping[str, Path | bytes], *, overwrite: bool = False
) -> Manifest:
    """Write a bundle folder whole, or not at all.

    Args:
        path: The folder to make.
        manifest: The manifest; its `files` and `digest` are filled in here.
        sources: Name in the bundle -> file to copy, or the bytes themselves.
        overwrite: Whether a bundle that lies there may be replaced.

    Returns:
        The manifest as written.

    Raises:
        ArgumentError: If a name is not allowed in a bundle, or `path` is taken.
        BundleError: If the manifest holds NaN or infinity.
        StorageError: If the system refuses to write; an existing bundle stays as it was.
    """
    for name in sources:
        if not is_safe(name) or name in RESERVED:
            raise ArgumentError(
                f"{name!r}: expected a relative file name other than {' and '.join(sorted(RESERVED))}. "
                "Choose another name."
            )
    _check_ours(path)
    # Locked: whoever changes the bundle that lies there meanwhile would change one that is gone.
    with (
        locked(path),
        _replacing(path),
        atomic_folder(path, replace_if=MANIFEST, overwrite=overwrite, own=_listed_there(path), durable=True) as folder,
    ):
        signer = _signer_there(path)
        files = {}
        for name, source in sources.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(regular_path(source), target)
            files[name] = FileEntry(sha256_file(target), target.stat().st_size)
        # The manifest last: it lists the hashes of all others.
        data = encode_manifest(msgspec.structs.replace(manifest, files=files))
        (folder / MANIFEST).write_bytes(data)
    _tell_dropped(path, signer)
    return _made(data, path)


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[None]:
    """Hold the lock of the threshold overlay beside a bundle that is replaced, and move the overlay aside afterwards.

    An overlay is for one digest, so the next load would refuse it; and thresholds that were chosen for another bundle
    must not go on without a word.
    """
    with locked(overlay_beside(place)):
        yield
        with storage_errors(overlay_beside(place)):
            aside = set_aside(place)
    if aside is not None:
        _log.warning("%s: its threshold overlay no longer holds and was moved to %s.", place, aside)


def _signer_there(path: Path) -> str | None:
    """Return the key that signed the bundle folder at `path`, or None where there is no signature."""
    file = path / SIGNATURE
    try:
        data = read_regular(file, MAX_SIGNATURE_BYTES)
        digest = decode_manifest(read_regular(path / MANIFEST, RECORD_BYTES), str(path)).digest
        found = signature_of(data, digest, str(path))
    except FileNotFoundError:
        return None
    except (OSError, FlawscopeError):  # it is thrown away with the bundle, whatever it was
        return "an unknown key"
    return None if found is None else found.key


def _listed_there(path: Path) -> frozenset[str]:
    """Return the names of the files of the bundle folder at `path`, as far as its manifest can be read."""
    try:
        manifest = decode_manifest(read_regular(path / MANIFEST, RECORD_BYTES), str(path))
    except (OSError, FlawscopeError):
        return frozenset()
    return frozenset({*manifest.files, SIGNATURE})


def _tell_dropped(path: Path, signer: str | None) -> None:
    if signer is not None:
        _log.warning("%s: the signature of %s was dropped: sign again with flawscope bundle sign.", path, signer)


def _made(data: bytes, path: Path) -> Manifest:
    manifest = decode_manifest(data, str(path))
    remember_made(manifest.digest)
    return manifest


def _check_ours(path: Path) -> None:
    """Refuse to replace a folder whose manifest.json is not a bundle's: web apps have a file of that name too."""
    file = path / MANIFEST
    with storage_errors(path):
        is_ours = not file.is_file() or b'"flawscope"' in read_regular(file, RECORD_BYTES)
    if not is_ours:
        raise ArgumentError(
            f"{path}: expected a new folder or a bundle, got a folder whose {MANIFEST} is not of flawscope. "
            "Choose another name."
        )


def change_bundle(path: Path, read: Manifest, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Change the manifest of a bundle, folder or packed, without touching its other files.

    Minutes may lie between reading a bundle and changing it, and other commands write too. So the change is made to the
    manifest that is there now, and only if it is still of the same model. Other writers wait meanwhile. A signature is
    dropped, which is logged as a warning, unless the manifest stays as it was.

    Args:
        path: The bundle.
        read: The manifest that the change was computed from.
        change: Returns the changed manifest of the one that is there; called once, with no other writer in between.

    Returns:
        The manifest as written.

    Raises:
        BundleError: If another model lies at `path` by now, or the changed manifest holds NaN or infinity.
        StorageError: If the system refuses to write; the bundle stays as it was.
    """
    # The bundle itself, by whatever link it was named: otherwise two names of one bundle had two locks.
    place = path.resolve()
    # It is not run here: whoever computed the change has checked the signature of what was run.
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(place))
        bundle = stack.enter_context(open_bundle(place, check_signature=False))
        current = bundle.manifest
        if current.digest != read.digest and _model(current) != _model(read):
            raise BundleError(
                f"{path}: expected the bundle {read.digest[:12]}… that was read, got the other model "
                f"{current.digest[:12]}… that was written meanwhile. It was left as it is: run the command again."
            )
        data = encode_manifest(change(current))
        if data == bundle.manifest_bytes:
            return current
        signer, was_trusted = _signer(bundle), _is_trusted(bundle)
        stack.enter_context(_replacing(place))
        if place.is_dir():
            # The manifest first: with it the old signature is void at once, also if this process is killed here.
            write_bytes(place / MANIFEST, data, beside=place, durable=True)
            with storage_errors(place / SIGNATURE):
                (place / SIGNATURE).unlink(missing_ok=True)
        else:
            _pack(bundle, data, place, None)
    _tell_dropped(path, signer)
    # Otherwise a stranger's bundle would be taken for one that was made here.
    return _made(data, path) if was_trusted else decode_manifest(data, str(path))


def _signer(bundle: Bundle) -> str | None:
    try:
        found = signature_of(bundle.signature_bytes, bundle.manifest.digest, str(bundle.path))
    except BundleError:  # broken; it is dropped as any other
        return "an unknown key"
    return None if found is None else found.key


def _is_trusted(bundle: Bundle) -> bool:
    with contextlib.suppress(FlawscopeError):
        check_bundle_trusted(bundle, find_trusted_keys())
        return True
    return False


def sign_bundle(path: Path, key: PrivateKey, *, overwrite: bool = False) -> Manifest:
    """Sign a bundle, folder or packed file; its manifest stays as it is.

    Args:
        path: The bundle.
        key: The key.
        overwrite: Whether the signature of another key may be replaced.

    Returns:
        Its manifest.

    Raises:
        ArgumentError: If another key has signed it.
        BundleError: If the bundle is broken.
        StorageError: If the system refuses to write; the bundle stays as it was.
    """
    place = path.resolve()
    with locked(place), open_bundle(place, check_signature=False) as bundle:
        other = None
        with contextlib.suppress(BundleError):  # a broken one is nobody's
            other = signature_of(bundle.signature_bytes, bundle.manifest.digest, str(path))
        if other is not None and other.key != key.public.id and not overwrite:
            raise ArgumentError(
                f"{path}: expected a bundle that no other key has signed, got one signed by {other.key}. Replace that "
                "signature with --overwrite (Python: overwrite=True)."
            )
        signature = sign_manifest(bundle.manifest_bytes, bundle.manifest.digest, key)
        if place.is_dir():
            write_bytes(place / SIGNATURE, signature, beside=place, durable=True)
        else:
            _pack(bundle, bundle.manifest_bytes, place, signature)
        return bundle.manifest


def check_changeable(path: Path) -> None:
    """Raise StorageError unless the bundle at `path` can be changed, before figures are computed for it.

    Where there is none nothing is raised: whoever opens it says that it is missing.
    """
    place = path.resolve()
    with storage_errors(path):
        if not place.exists():
            return
    with locked(place), storage_errors(path):
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def rewrite_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Replace the manifest of a bundle that nobody else can see yet; any other is changed with `change_bundle`."""
    data = encode_manifest(manifest)
    if path.is_dir():
        write_bytes(path / MANIFEST, data, beside=path)
        with storage_errors(path / SIGNATURE):
            (path / SIGNATURE).unlink(missing_ok=True)
    else:
        with open_bundle(path, check_signature=False) as bundle:
            _pack(bundle, data, path, None)
    return _made(data, path)


def _model(manifest: Manifest) -> Manifest:
    """Return a manifest without all that may change while the model stays the same: its scores do not change."""
    return msgspec.structs.replace(
        manifest,
        precisions={
            name: msgspec.structs.replace(precision, thresholds=None) for name, precision in manifest.precisions.items()
        },
        thresholds=None,
        threshold_changes=(),
        min_area_px=1,
        evidence=Evidence(),
        digest="",
        schema=SCHEMA,
    )


def pack_bundle(bundle: Bundle, path: Path, *, overwrite: bool = False) -> None:
    """Write a bundle as one uncompressed zip with fixed times, so equal bundles give equal files; it stays signed.

    Args:
        bundle: The bundle.
        path: The file to write.
        overwrite: Whether a file that lies there may be replaced.

    Raises:
        ArgumentError: If `path` is taken, or lies in the bundle.
        StorageError: If the system refuses to write.
    """
    if path.is_dir():
        raise ArgumentError(f"{path}: expected a file name for the packed bundle, got an existing folder.")
    if bundle.path.is_dir() and path.resolve().is_relative_to(bundle.path.resolve()):
        raise ArgumentError(f"{path}: expected a place outside the bundle, where only listed files may lie.")
    with locked(path):
        check_new_file(path, overwrite=overwrite, kind="zip")
        # Byte for byte, so that identity and signature stay.
        _pack(bundle, bundle.manifest_bytes, path, bundle.signature_bytes)


def _pack(bundle: Bundle, manifest: bytes, path: Path, signature: bytes | None) -> None:
    with atomic_file(path, durable=True) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(MANIFEST), manifest)
        if signature is not None:
            archive.writestr(_member(SIGNATURE), signature)
        for name in sorted(bundle.manifest.files):
            member = _member(name)
            # open(..., "w") decides by this size whether a member needs ZIP64; a file over 4 GiB would fail half-way.
            member.file_size = bundle.manifest.files[name].size
            with archive.open(member, "w") as target:
                bundle.copy(name, target)


def _member(name: str) -> zipfile.ZipInfo:
    # 1980 is the first year that zip can hold; the mode is fixed too, whatever the umask.
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    return member
