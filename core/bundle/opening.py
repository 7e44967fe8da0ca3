"""Opening bundles: every file is listed in the manifest with its hash, and any other is refused.

An ONNX graph may load external data beside it, so an unlisted file could become part of a model. Zip members must be
stored without compression (no zip bombs), with the listed names and sizes.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from flawscope.bundle.file_names import MANIFEST, is_safe
from flawscope.bundle.manifest import FileEntry, Manifest, decode_manifest
from flawscope.errors import ArgumentError, BundleError
from flawscope.files import sha256_file, storage_errors

# Read into memory before anything is verified, hence a limit.
_MAX_MANIFEST_BYTES = 64 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# The tensors of our writers; others would fail later, in the kernels.
_BANK_DTYPES = tuple(np.dtype(kind) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64))


class Bundle:
    """An opened, verified bundle. Close it, or use it in `with`: a packed one occupies a temporary folder.

    Attributes:
        path: The folder or file that was opened.
        folder: The folder in which the bundle's files lie.
        manifest: Its manifest.
    """

    def __init__(self, path: Path, folder: Path, manifest: Manifest, temporary: Path | None = None) -> None:
        self.path = path
        self.folder = folder
        self.manifest = manifest
        self._temporary = temporary

    def file(self, name: str) -> Path:
        """Return the path of a listed file."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest names {name} but does not list it. Export the bundle again.")
        return self.folder / name

    def graph(self, name: str, precision: str = "fp32") -> Path:
        """Return the path of the ONNX graph `name` (`score` or `features`) of a precision.

        Raises:
            ArgumentError: If the bundle lacks the precision.
            BundleError: If it has no such graph.
        """
        graphs = self.manifest.graphs_of(precision)
        if name not in graphs:
            raise BundleError(f"{self.path}: expected a graph called {name}, got {sorted(graphs)}. Export it again.")
        return self.file(graphs[name].file)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors of the memory bank, all finite and not empty; none where the method has no bank.

        Raises:
            BundleError: If the bank is missing, empty, or holds NaN or infinity.
        """
        if self.manifest.bank is None:
            return {}
        path = self.file(self.manifest.bank)
        try:
            tensors: dict[str, npt.NDArray[Any]] = safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, ValueError, OSError) as err:
            raise BundleError(
                f"{self.path}: {path.name}: expected a safetensors file, got: {err}. Export it again."
            ) from err
        except (TypeError, AttributeError) as err:  # what safetensors raises for bfloat16 and 8 bit floats
            raise BundleError(
                f"{self.path}: {path.name}: expected types that NumPy has, got: {err}. Export it again."
            ) from err
        if not tensors:
            raise BundleError(f"{self.path}: {path.name}: expected tensors, got none. Train and export again.")
        for name, tensor in tensors.items():
            if tensor.dtype not in _BANK_DTYPES:
                raise BundleError(
                    f"{self.path}: {path.name}: expected {', '.join(map(str, _BANK_DTYPES))} in {name}, "
                    f"got {tensor.dtype}. Export it again."
                )
            # One NaN in the bank would spread into every distance; NaN > threshold is false.
            if tensor.size == 0 or not np.isfinite(tensor).all():
                raise BundleError(
                    f"{self.path}: {path.name}: expected finite numbers in {name}, got "
                    f"{'an empty array' if tensor.size == 0 else 'NaN or infinity'}. Train and export again."
                )
        return tensors

    def member(self, name: str) -> Bundle:
        """Return a member of an ensemble, a bundle in a folder of this one, which has to stay open while it is used.

        Raises:
            ArgumentError: If this is not an ensemble, or has no such member.
            BundleError: If the member's manifest is missing or broken.
        """
        members = {entry.name: entry.folder for entry in self.manifest.head.members}
        if name not in members:
            raise ArgumentError(f"{self.path}: expected a member of this bundle ({sorted(members)}), got {name!r}.")
        path = self.path / members[name]
        data = self.file(f"{members[name]}/{MANIFEST}").read_bytes()
        return Bundle(path, self.folder / members[name], decode_manifest(data, str(path)))

    def close(self) -> None:
        """Remove the temporary folder of a packed bundle."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_bundle(path: Path | str) -> Bundle:
    """Open and verify a bundle, folder or packed file.

    Raises:
        BundleError: If it is missing, broken, changed, of a newer schema, or holds anything unlisted.
        StorageError: If a packed bundle cannot be unpacked, for lack of room.
    """
    path = Path(path)
    if path.is_dir():
        try:
            return _open_folder(path)
        except OSError as err:
            raise BundleError(f"{path}: could not be read: {err.strerror or err}. Check its permissions.") from err
    if not path.is_file():
        raise BundleError(f"{path}: expected a bundle, got no such file or folder. Make one with flawscope export.")
    return _open_packed(path)


def _open_folder(path: Path) -> Bundle:
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path}: expected a bundle with {MANIFEST}, got a folder without it.")
    if (path / MANIFEST).stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(_too_large(path))
    manifest = decode_manifest((path / MANIFEST).read_bytes(), str(path))
    _check_names(manifest, path)
    names = set()
    for entry in path.rglob("*"):
        # A link could point to another file after the hash was checked. Tested first: is_file and is_dir follow links.
        if entry.is_symlink():
            raise BundleError(f"{path}: expected plain files, got the link {entry.name}. Copy the files themselves.")
        if not entry.is_dir():
            if not entry.is_file():
                raise BundleError(f"{path}: expected plain files, got the pipe or device {entry.name}. Remove it.")
            names.add(entry.relative_to(path).as_posix())
    _check_listing(names, manifest, path)
    for name, listed in manifest.files.items():
        file = path / name
        # Size first: it refuses a file of gigabytes without hashing it.
        _check_size(file.stat().st_size, name, listed, path)
        _check_hash(sha256_file(file), name, listed, path)
    return _checked_members(Bundle(path, path, manifest))


def _open_packed(path: Path) -> Bundle:
    with storage_errors(Path(tempfile.gettempdir())):
        # Unpacked to a private folder (mode 0700): ONNX Runtime opens external data by path, not from memory.
        temporary = Path(tempfile.mkdtemp(prefix="flawscope-"))
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _extract(archive, path, temporary)
        return _checked_members(Bundle(path, temporary, manifest, temporary))
    # What zipfile raises for hostile archives: NotImplementedError for a method, RuntimeError for encryption.
    except (zipfile.BadZipFile, EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError) as err:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BundleError(f"{path}: expected a bundle, got no readable zip file ({err}). Copy it again.") from err
    except OSError as err:
        shutil.rmtree(temporary, ignore_errors=True)
        if err.errno in _NO_ROOM:
            with storage_errors(temporary):
                raise
        raise BundleError(f"{path}: could not be read: {err.strerror or err}. Check its permissions.") from err
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _extract(archive: zipfile.ZipFile, path: Path, target: Path) -> Manifest:
    members = archive.infolist()
    names = [member.filename for member in members]
    for member in members:
        _check_member(member, path)
    # zipfile reads the last member of a name, other tools the first: two readers could see two bundles.
    if len(set(names)) != len(names):
        raise BundleError(f"{path}: expected every name once, got a repeated member. Pack it again.")
    if MANIFEST not in names:
        raise BundleError(f"{path}: expected a bundle with {MANIFEST}, got a zip file without it.")
    if archive.getinfo(MANIFEST).file_size > _MAX_MANIFEST_BYTES:
        raise BundleError(_too_large(path))
    data = archive.read(MANIFEST)
    manifest = decode_manifest(data, str(path))
    _check_names(manifest, path)
    _check_listing(set(names), manifest, path)
    (target / MANIFEST).write_bytes(data)
    for name, listed in manifest.files.items():
        _check_size(archive.getinfo(name).file_size, name, listed, path)
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Hashed while it is written: what was checked is what lies on the disk.
        digest = hashlib.sha256()
        with archive.open(name) as source, destination.open("wb") as file:
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
        _check_hash(digest.hexdigest(), name, listed, path)
    return manifest


def _too_large(path: Path) -> str:
    return f"{path}: {MANIFEST}: expected at most {_MAX_MANIFEST_BYTES >> 20} MiB, got more. Check that it is a bundle."


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    if member.is_dir() or stat.S_ISLNK(member.external_attr >> 16):
        raise BundleError(f"{path}: the member {member.filename!r} is a folder or a link, not a file. Pack it again.")
    if not is_safe(member.filename):
        raise BundleError(f"{path}: the member name {member.filename!r} leaves the bundle. It was not unpacked.")
    if member.compress_type != zipfile.ZIP_STORED:
        raise BundleError(f"{path}: the member {member.filename!r} is compressed. Pack it with flawscope bundle pack.")


def _check_names(manifest: Manifest, path: Path) -> None:
    for name in manifest.files:
        if not is_safe(name) or name == MANIFEST:
            raise BundleError(f"{path}: the manifest lists the name {name!r}, which is not allowed in a bundle.")


def _check_listing(names: set[str], manifest: Manifest, path: Path) -> None:
    listed = {*manifest.files, MANIFEST}
    if missing := sorted(listed - names):
        raise BundleError(f"{path}: expected the listed file {missing[0]}, which is missing. Copy the bundle again.")
    if unlisted := sorted(names - listed):
        raise BundleError(f"{path}: expected only listed files, got {unlisted[0]!r} as well. Remove it.")


def _check_size(size: int, name: str, listed: FileEntry, path: Path) -> None:
    if size != listed.size:
        raise BundleError(f"{path}: {name}: expected {listed.size} bytes, got {size}. Copy the bundle again.")


def _check_hash(digest: str, name: str, listed: FileEntry, path: Path) -> None:
    if digest != listed.sha256:
        raise BundleError(
            f"{path}: {name}: expected SHA-256 {listed.sha256[:12]}…, got {digest[:12]}…: the file was changed. "
            "Copy or export the bundle again."
        )


def _checked_members(bundle: Bundle) -> Bundle:
    """Return a bundle whose hashes were checked; of an ensemble, check that its members are what both manifests say."""
    manifest = bundle.manifest
    if not manifest.head.members:
        return bundle
    if manifest.graphs or manifest.bank is not None or manifest.precisions:
        raise BundleError(f"{bundle.path}: expected an ensemble without graphs and bank of its own. Combine it again.")
    for entry in manifest.head.members:
        member = bundle.member(entry.name)
        theirs = member.manifest
        # Without the member's manifest, which no manifest lists itself in.
        inside = f"{entry.folder}/"
        files = {
            name.removeprefix(inside): listed
            for name, listed in manifest.files.items()
            if name.startswith(inside) and name != inside + MANIFEST
        }
        if theirs.digest != entry.digest or theirs.files != files:
            raise BundleError(
                f"{member.path}: expected the whole bundle {entry.digest[:12]}…, got other files. Combine it again."
            )
        # Members see the same prepared image: other preprocessing or tiles would shift their maps against each other.
        fits = (theirs.method, theirs.input, theirs.tiling) == (entry.method, manifest.input, manifest.tiling)
        if theirs.head.members or not fits or theirs.max_batch < manifest.max_batch:
            raise BundleError(
                f"{member.path}: expected a detector with method, input, tiles and largest batch as the ensemble says, "
                "got another. Combine it again."
            )
    return bundle
