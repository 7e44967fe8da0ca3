"""Opening bundles: every file is listed in the manifest with its hash, and any other but its signature is refused.

An ONNX graph may load external data beside it, so an unlisted file could become part of a model. Zip members must be
stored without compression (no zip bombs), with the listed names and sizes.

Opening hashes all files. A file that is used is read once more, into memory. It is this memory whose hash is compared
again and which is handed on: to ONNX Runtime, to the kernels, to the decoder of the golden images. What lies on disk
afterwards has no influence any more, also when a device is opened anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from flawscope.bundle.cross_checks import check_manifest
from flawscope.bundle.file_names import MANIFEST, RESERVED, SIGNATURE, is_safe
from flawscope.bundle.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, decode_manifest
from flawscope.bundle.onnx_model import OnnxModel, external_files
from flawscope.bundle.signature import MAX_SIGNATURE_BYTES
from flawscope.bundle.stored_files import FolderFiles, MemberFiles, StoredFiles, ZipFiles
from flawscope.bundle.trust import check_trusted
from flawscope.bundle.trusted_keys import TrustedKeys, find_trusted_keys
from flawscope.bundle.upkeep import in_use
from flawscope.errors import ArgumentError, BundleError, FlawscopeError
from flawscope.files import is_litter, storage_errors, temporary_folder
from flawscope.path_kinds import UNFINISHED, kind_of_path
from flawscope.scratch import recover
from flawscope.unfinished import resume_command

_BLOCK = 1 << 20
# The tensors of our writers; others would fail later, in the kernels.
_BANK_DTYPES = tuple(np.dtype(kind) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64))


class Bundle:
    """An opened, verified bundle. Close it, or use it in `with`: it holds what was read, and a packed one its file.

    Attributes:
        path: The folder or file that was opened, as it was named.
        manifest: Its manifest.
        manifest_bytes: The bytes of `manifest.json`, which an ensemble stores and a signature covers.
        signature_bytes: Those of `signature.json`, or None where there is none.
    """

    def __init__(self, path: Path, data: bytes, files: StoredFiles) -> None:
        self.path = path
        self.manifest = decode_manifest(data, str(path))
        self.manifest_bytes = data
        self.signature_bytes: bytes | None = None
        self._files = files
        self._memory: dict[str, bytes] = {}
        self._members: dict[str, Bundle] = {}
        self._is_closed = False

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, verified by their hash. They stay in memory: a file is read only once.

        Raises:
            BundleError: If the file is not listed, or was changed since the bundle was opened.
        """
        self._check_open()
        if name not in self._memory:
            listed = self._listed(name)
            with _readable(self.path), self._files.open(name) as file:
                data = file.read(listed.size + 1)  # one byte more shows a file that has grown
            _check_size(len(data), name, listed, self.path)
            _check_hash(hashlib.sha256(data).hexdigest(), name, listed, self.path)
            self._memory[name] = data
        return self._memory[name]

    def adopt(self, name: str, data: bytes) -> None:
        """Take the bytes of a listed file from whoever read an equal one, in place of reading it; they are not copied.

        Raises:
            BundleError: If the file is not listed, or these are not its bytes.
        """
        self._check_open()
        listed = self._listed(name)
        if name not in self._memory:
            _check_size(len(data), name, listed, self.path)
            _check_hash(hashlib.sha256(data).hexdigest(), name, listed, self.path)
            self._memory[name] = data

    def copy(self, name: str, target: IO[bytes]) -> None:
        """Write the bytes of a listed file to an open file, a block at a time; they are not kept in memory.

        Raises:
            BundleError: If the file is not listed, or was changed since the bundle was opened; what was written so far
                must be thrown away.
        """
        self._check_open()
        listed = self._listed(name)
        if name in self._memory:
            target.write(self._memory[name])
            return
        for block in self._blocks(name, listed):
            target.write(block)

    def verify(self) -> None:
        """Compare the hash of every file with the manifest's.

        Raises:
            BundleError: If a file was changed.
        """
        for name, listed in self.manifest.files.items():
            for _ in self._blocks(name, listed):
                pass

    def _blocks(self, name: str, listed: FileEntry) -> Iterator[bytes]:
        """Yield a file block by block; raise at the end unless size and hash are as listed."""
        digest, size = hashlib.sha256(), 0
        # An error of whoever takes the blocks is not raised in here: a full disk is no unreadable bundle.
        with _readable(self.path), self._files.open(name) as file:
            # A growing file must not be read for ever.
            while size <= listed.size and (block := file.read(_BLOCK)):
                size += len(block)
                digest.update(block)
                yield block
        _check_size(size, name, listed, self.path)
        _check_hash(digest.hexdigest(), name, listed, self.path)

    def _listed(self, name: str) -> FileEntry:
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest names {name} but does not list it. Export the bundle again.")
        return self.manifest.files[name]

    def graph_file(self, name: str, precision: str = "fp32") -> str:
        """Return the file name of the ONNX graph `name` (`score` or `features`) of a precision.

        Raises:
            ArgumentError: If the bundle lacks the precision.
            BundleError: If it has no such graph.
        """
        graphs = self.manifest.graphs_of(precision)
        if name not in graphs:
            raise BundleError(f"{self.path}: expected a graph called {name}, got {sorted(graphs)}. Export it again.")
        self._listed(graphs[name].file)
        return graphs[name].file

    def model(self, name: str, precision: str = "fp32") -> OnnxModel:
        """Return the ONNX graph `name` of a precision, with the values that it keeps in other files.

        Raises:
            ArgumentError: If the bundle lacks the precision.
            BundleError: If it has no such graph; the graph has operators that the bundle format does not name; or it
                refers to a file that the bundle does not list.
        """
        file = self.graph_file(name, precision)
        return OnnxModel.read(file, self.read, f"{self.path}: {file}")

    def graph_files(self, name: str, precision: str = "fp32") -> tuple[str, ...]:
        """Return the file names of an ONNX graph and, after it, of its external data; see `model`."""
        file = self.graph_file(name, precision)
        external = external_files(file, self.read(file), f"{self.path}: {file}")
        return (file, *sorted({place for place, _ in external}))

    @contextlib.contextmanager
    def unpacked(self, files: Iterable[str]) -> Iterator[Path]:
        """Yield a private temporary folder with verified copies of some files, for tools that take paths.

        Raises:
            BundleError: As `read`.
            StorageError: If there is no room.
        """
        # Mode 0700: nobody else can change the copies.
        with temporary_folder() as folder:
            for name in sorted(set(files)):
                target = folder / name
                with storage_errors(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        self.copy(name, file)
            yield folder

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors of the memory bank, all finite and not empty; none where the method has no bank.

        Of a bank with room they are the rows in use.

        Raises:
            BundleError: If the bank is missing, empty, or holds NaN or infinity.
        """
        if self.manifest.bank is None:
            return {}
        where = f"{self.path}: {self.manifest.bank}"
        tensors = load_tensors(self.read(self.manifest.bank), where)
        if not tensors:
            raise BundleError(f"{where}: expected tensors, got none. Train and export again.")
        for key, tensor in tensors.items():
            if tensor.dtype not in _BANK_DTYPES:
                raise BundleError(
                    f"{where}: expected {', '.join(map(str, _BANK_DTYPES))} in {key}, got {tensor.dtype}. "
                    "Export it again."
                )
            # One NaN in the bank would spread into every distance; NaN > threshold is false.
            if tensor.size == 0 or not np.isfinite(tensor).all():
                raise BundleError(
                    f"{where}: expected finite numbers in {key}, got "
                    f"{'an empty array' if tensor.size == 0 else 'NaN or infinity'}. Train and export again."
                )
        upkeep = self.manifest.upkeep
        return tensors if upkeep is None else in_use(tensors, upkeep, where)

    def member(self, name: str) -> Bundle:
        """Return a member of an ensemble, a bundle in a folder of this one, which has to stay open while it is used.

        Raises:
            ArgumentError: If this is not an ensemble, or has no such member.
            BundleError: If the member's manifest is missing or broken.
        """
        members = {entry.name: entry.folder for entry in self.manifest.head.members}
        if name not in members:
            raise ArgumentError(f"{self.path}: expected a member of this bundle ({sorted(members)}), got {name!r}.")
        self._check_open()
        # One object for each: a device that is opened anew must find what was read before.
        if name not in self._members:
            data = self.read(f"{members[name]}/{MANIFEST}")
            self._members[name] = Bundle(self.path / members[name], data, MemberFiles(self._files, members[name]))
        return self._members[name]

    def forget(self) -> None:
        """Let go of what was read, where nothing will be opened again; a later `read` verifies anew."""
        self._memory.clear()
        for member in self._members.values():
            member.forget()

    def _check_open(self) -> None:
        if self._is_closed:
            raise BundleError(f"{self.path}: the bundle was closed. Open it again.")

    def close(self) -> None:
        """Let go of what was read and of a packed bundle's file; nothing can be read from it any more."""
        self._is_closed = True
        self._memory.clear()
        for member in self._members.values():
            member.close()
        self._files.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_tensors(data: bytes, where: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a safetensors file of a bundle.

    Args:
        data: Its bytes.
        where: What it is called in messages.

    Raises:
        BundleError: If it is none, or has types that NumPy has not.
    """
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError) as err:
        raise BundleError(f"{where}: expected a safetensors file, got: {err}. Export it again.") from err
    # What safetensors raises for bfloat16 and 8 bit floats, and for types that it does not know.
    except (TypeError, AttributeError, KeyError) as err:
        raise BundleError(f"{where}: expected types that NumPy has, got: {err}. Export it again.") from err


def open_bundle(path: Path | str, *, trusted_keys: Path | str | None = None, check_signature: bool = True) -> Bundle:
    """Open and verify a bundle, folder or packed file.

    Args:
        path: The bundle.
        trusted_keys: A file or folder of the keys that are trusted, in place of those that are set on this machine.
        check_signature: Whether it must be signed where keys are trusted. Only what does not run the bundle may do
            without: showing, copying, signing and changing it.

    Raises:
        ArgumentError: If trusted keys are set and cannot be used.
        BundleError: If it is missing, broken, changed, of a newer schema, holds anything unlisted, or is not signed by
            a trusted key where there are any.
        MissingExtra: If keys are trusted and the package `cryptography` is not installed.
    """
    path = Path(path)
    # Before the bundle: a setting that cannot be used must be noticed whatever lies there.
    trusted = find_trusted_keys(trusted_keys) if check_signature else None
    recover(path)
    with _readable(path):
        if not path.exists():
            raise BundleError(f"{path}: expected a bundle, got no such file or folder. Make one with flawscope export.")
        files: StoredFiles = FolderFiles(path, str(path)) if path.is_dir() else ZipFiles(path, str(path))
        try:
            bundle = _verified(path, files)
        except BaseException:
            files.close()
            raise
        try:
            if check_signature:
                check_bundle_trusted(bundle, trusted)
        except BaseException:
            bundle.close()
            raise
        return bundle


def trusted_bundle(bundle: Bundle | Path | str, trusted_keys: Path | str | None = None) -> Bundle:
    """Return a bundle that may be run, for whoever takes it opened or by its path; see `open_bundle`.

    One that is refused is closed.
    """
    if not isinstance(bundle, Bundle):
        if not isinstance(bundle, str | Path):
            raise ArgumentError(f"bundle: expected a path or an opened bundle, got {type(bundle).__name__}.")
        return open_bundle(bundle, trusted_keys=trusted_keys)
    try:
        # Again: it may have been opened without the check, or be held against other keys.
        check_bundle_trusted(bundle, find_trusted_keys(trusted_keys))
    except BaseException:
        bundle.close()
        raise
    return bundle


@contextlib.contextmanager
def made_ready(bundle: Bundle) -> Iterator[None]:
    """Make a bundle ready in the block; one for which that fails is closed.

    Raises:
        BundleError: If something fails that nobody foresaw: a bundle can be whole and still hold such numbers.
    """
    try:
        yield
    except BaseException as err:
        bundle.close()
        if isinstance(err, FlawscopeError) or not isinstance(err, Exception):
            raise
        raise BundleError(
            f"{bundle.path}: could not be made ready: unexpected {type(err).__name__}: {err}. Export it again."
        ) from err


def check_bundle_trusted(bundle: Bundle, trusted: TrustedKeys | None) -> None:
    """Raise BundleError unless an opened bundle may be run; see `check_trusted`."""
    check_trusted(bundle.manifest_bytes, bundle.manifest.digest, bundle.signature_bytes, str(bundle.path), trusted)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a bundle raises into a BundleError."""
    try:
        yield
    except BundleError:
        raise
    except OSError as err:
        raise BundleError(f"{path}: could not be read: {err.strerror or err}. Check its permissions.") from err
    # What zipfile raises for hostile archives: NotImplementedError for a method, RuntimeError for encryption.
    except (zipfile.BadZipFile, EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError) as err:
        if (kind := kind_of_path(path)) in (None, "a bundle"):
            raise BundleError(f"{path}: expected a bundle, got no readable zip file ({err}). Copy it again.") from err
        raise BundleError(f"{path}: expected a bundle, got {kind}. {_hint(path, kind)}") from err


def _hint(path: Path, kind: str) -> str:
    if kind == UNFINISHED:
        return f"Continue it with: {resume_command(path)}"
    if kind == "a training run":
        return "Export it first: flawscope export."
    return "Name a bundle: what flawscope export wrote."


def _hint_within(folder: Path) -> str:
    """Return which bundle of a folder was probably meant, as in what `flawscope pipeline` writes; or nothing."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        # The first entries alone: a folder that is no bundle may hold millions of files.
        found = [entry.name for entry in itertools.islice(entries, 100) if entry.name.endswith(".flaw")]
        if len(found) == 1:
            return f" Did you mean {folder / found[0]}?"
    return ""


def _verified(path: Path, files: StoredFiles) -> Bundle:
    # The manifest before the listing: a folder that is no bundle may hold millions of files.
    try:
        with files.open(MANIFEST) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, KeyError) as err:  # of a folder, of a zip file
        if kind := kind_of_path(path):
            if kind == "a bundle":  # by its first bytes or its name alone
                form = "a folder" if path.is_dir() else "an archive"
                raise BundleError(
                    f"{path}: expected a bundle with {MANIFEST}, got {form} without it at the top. Make one file of a "
                    "bundle's folder with flawscope bundle pack."
                ) from err
            raise BundleError(f"{path}: expected a bundle with {MANIFEST}, got {kind}. {_hint(path, kind)}") from err
        kind = "a folder" if path.is_dir() else "a zip file"
        within = _hint_within(path) if path.is_dir() else ""
        raise BundleError(f"{path}: expected a bundle with {MANIFEST}, got {kind} without it.{within}") from err
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path}: {MANIFEST}: expected at most {MAX_MANIFEST_BYTES >> 20} MiB, got more. Is it a bundle?"
        )
    bundle = Bundle(path, data, files)
    manifest = bundle.manifest
    for name in manifest.files:
        if not is_safe(name) or name in RESERVED:
            raise BundleError(f"{path}: the manifest lists the name {name!r}, which is not allowed in a bundle.")
        if any(parent.as_posix() in manifest.files for parent in PurePosixPath(name).parents):
            raise BundleError(f"{path}: the manifest lists {name!r} below a file. Export the bundle again.")
    sizes = files.sizes()
    _check_listing(set(sizes), manifest, path)
    check_manifest(manifest, str(path))
    # Sizes first: they refuse a file of gigabytes without hashing it.
    for name, listed in manifest.files.items():
        _check_size(sizes[name], name, listed, path)
    bundle.verify()
    _check_members(bundle)
    if SIGNATURE in sizes:
        bundle.signature_bytes = _signature(path, files)
    return bundle


def _signature(path: Path, files: StoredFiles) -> bytes | None:
    try:
        with files.open(SIGNATURE) as file:
            data = file.read(MAX_SIGNATURE_BYTES + 1)
    except FileNotFoundError:  # removed by a writer since the folder was listed
        return None
    if len(data) > MAX_SIGNATURE_BYTES:
        raise BundleError(
            f"{path}: {SIGNATURE}: expected at most {MAX_SIGNATURE_BYTES} bytes, got more. Remove it and sign again."
        )
    return data


def _check_listing(names: set[str], manifest: Manifest, path: Path) -> None:
    listed = {*manifest.files, MANIFEST}
    if missing := sorted(listed - names):
        raise BundleError(f"{path}: expected the listed file {missing[0]}, which is missing. Copy the bundle again.")
    # What file managers leave behind is never read, as no graph may name an unlisted file.
    if unlisted := sorted(name for name in names - listed - {SIGNATURE} if not is_litter(PurePosixPath(name).name)):
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


def _check_members(bundle: Bundle) -> None:
    """Of an ensemble, check that its members are what both manifests say; all hashes were checked before."""
    manifest = bundle.manifest
    if not manifest.head.members:
        return
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
        check_manifest(theirs, str(member.path))
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
