"""An engine as it lies in the cache: what it was built from and for, and the reading and checking of its files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from flawscope.errors import BackendError
from flawscope.private_files import Kept, UntrustedFile, private_file, private_folder
from flawscope.runtime.engines.build import BuildOptions
from flawscope.runtime.engines.target import Target
from flawscope.text import NOT_JSON, encode_json

ENGINES = Kept("engine", "FLAWSCOPE_ENGINES")
"""What the cache keeps, for messages."""
ENTRY, PLAN, LAYERS, TIMING = "entry.json", "engine.plan", "layers.json", "timing.cache"
# Of entry.json, 2 since options have `tf32`. Engines of another schema are not used: they can always be built again.
SCHEMA = 2
_BLOCK = 1 << 20
# Read into memory whole. TensorRT's reports and measurements of large networks have some megabytes.
_MOST_BYTES = {ENTRY: 1 << 20, LAYERS: 256 << 20, TIMING: 256 << 20}


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides whether an engine fits.

    The name of an engine's folder is a hash of this struct: a new or renamed field orphans every cached engine.

    Attributes:
        model: SHA-256 over the graph, its external data and its bank; see `model_hash`.
        graph: Name of the graph in the bundle, for example `features`.
        precision: Precision of the graph.
        runtime: `tensorrt` or `tensorrt-rtx`.
        version: Version of that module.
        target: Device.
        options: Profile and limits.
    """

    model: str
    graph: str
    precision: str
    runtime: str
    version: str
    target: Target
    options: BuildOptions

    def digest(self) -> str:
        """Return the SHA-256 of the key; its first 32 digits name the engine's folder."""
        return hashlib.sha256(encode_json(self, order="sorted")).hexdigest()


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Description of a stored engine, in `entry.json` beside it.

    Attributes:
        key: What it was built from and for.
        bundle: Name of the bundle.
        sha256: SHA-256 of the engine file.
        size: Its size in bytes.
        created: UTC time of the build, ISO 8601.
        build_seconds: How long it took.
        warnings: TensorRT's warnings.
        layers_missing: Why there is no report of the engine inspector, or None.
        schema: Version of this struct.
    """

    key: Key
    bundle: str
    sha256: str
    size: int
    created: str
    build_seconds: float
    warnings: tuple[str, ...] = ()
    layers_missing: str | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Stored:
    """An engine in the cache.

    Attributes:
        folder: Its folder.
        entry: Its description; None if that cannot be read.
        problem: Why the engine must not be used, or None.
        layers: Report of the engine inspector as JSON, or None.
        data: The engine, or None where it was only checked, or must not be used.
    """

    folder: Path
    entry: Entry | None
    problem: str | None
    layers: bytes | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)

    @property
    def plan(self) -> Path:
        """Where the engine lies, for messages: what runs is `load()`, as the file may be another by now."""
        return self.folder / PLAN

    def load(self) -> bytes:
        """Return the engine: the bytes whose SHA-256 was compared.

        Raises:
            BackendError: If the engine must not be used, or was listed without being read.
        """
        if self.problem is not None or self.data is None:
            raise BackendError(f"engine: {self.folder}: {self.problem or 'it was not read'}. Build it again.")
        return self.data


def read_stored(folder: Path, root: int, *, keep: bool = False, is_strict: bool = False) -> Stored | None:
    """Read and check one engine: its owner, entry, size and SHA-256.

    Args:
        folder: Its folder.
        root: Descriptor of the folder around it.
        keep: Whether the engine is kept in memory.
        is_strict: Whether what somebody else could have changed is an error; else it is the problem of the result.

    Returns:
        The engine, or None if there is none.

    Raises:
        UntrustedFile: With `is_strict`.
    """
    while True:
        try:
            with private_folder(folder, ENGINES, root) as inside:
                stored = _read_files(folder, inside, keep=keep)
                # One that is replaced or removed meanwhile loses its files one by one: that is no damage.
                if stored.problem is None or _is_at(folder, inside, root):
                    return stored
        except FileNotFoundError:
            return None
        except UntrustedFile as err:
            if is_strict:
                raise
            return Stored(folder, None, str(err).removeprefix("engine: "))
        except OSError as err:
            return Stored(folder, None, f"it cannot be read: {err.strerror or err}")


def read_entry(folder: Path, root: int) -> Entry | None:
    """Return the entry of an engine alone; None if there is none that may be used. Its engine is not looked at."""
    try:
        with private_folder(folder, ENGINES, root) as inside:
            entry = msgspec.json.decode(small_file(folder / ENTRY, inside), type=Entry)
    except (OSError, UntrustedFile, *NOT_JSON):
        return None
    return entry if entry.schema == SCHEMA and folder.name == entry.key.digest()[:32] else None


def _is_at(folder: Path, inside: int, root: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(inside), os.lstat(folder.name, dir_fd=root))
    return False


def _read_files(folder: Path, inside: int, *, keep: bool) -> Stored:
    try:
        entry = msgspec.json.decode(small_file(folder / ENTRY, inside), type=Entry)
    except OSError as err:
        return Stored(folder, None, f"its {ENTRY} cannot be read: {err.strerror or err}")
    except NOT_JSON as err:
        return Stored(folder, None, f"its {ENTRY} is broken: {err}")
    layers: bytes | None = None
    data: bytes | None = None
    try:
        problem, data = _read_plan(folder / PLAN, inside, entry, keep=keep)
        for name in (LAYERS, TIMING):
            with contextlib.suppress(FileNotFoundError):
                content = small_file(folder / name, inside)
                layers = content if name == LAYERS else layers
    except OSError as err:
        problem = f"its file cannot be read: {err.strerror or err}"
    # The folder's name is not proof enough: it may have been copied or renamed by hand.
    if problem is None and folder.name != entry.key.digest()[:32]:
        problem = "its entry is of another engine"
    return Stored(folder, entry, problem, layers, data if problem is None else None)


def _read_plan(plan: Path, inside: int, entry: Entry, *, keep: bool) -> tuple[str | None, bytes | None]:
    """Return why an engine's file must not be used, or None, and the engine if it is to be kept."""
    if entry.schema != SCHEMA:
        return f"its entry is of schema {entry.schema}, expected {SCHEMA}", None
    with private_file(plan, ENGINES, inside) as file:
        size = os.fstat(file.fileno()).st_size  # first, because hashing hundreds of megabytes takes seconds
        if size != entry.size:
            return f"its file has {size} bytes, expected {entry.size}", None
        if keep:
            data: bytes | None = file.read(size)
            digest = hashlib.sha256(data or b"").hexdigest()
        else:
            data, blocks = None, hashlib.sha256()
            while block := file.read(_BLOCK):
                blocks.update(block)
            digest = blocks.hexdigest()
    if digest != entry.sha256:
        return f"its file was changed: SHA-256 {digest[:12]}…, expected {entry.sha256[:12]}…", None
    return None, data


def small_file(path: Path, inside: int) -> bytes:
    """Return the bytes of the entry, the report or the timing cache of an engine.

    Raises:
        UntrustedFile: If somebody else could have changed it.
        OSError: If it cannot be read, or is too large.
    """
    most = _MOST_BYTES[path.name]
    with private_file(path, ENGINES, inside) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"has more than {most >> 20} MiB")
    return data
