"""The cache of engines: where they are stored, what they were built for, and why one fits or does not.

An engine is never shipped and never trusted by its name. Beside it lies an entry: what it was built from and for, and
the SHA-256 of its file. An engine that does not match in every point is built again, or refused with the reason.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flawscope.errors import ArgumentError, BackendError
from flawscope.files import atomic_folder, sha256_file, storage_errors
from flawscope.runtime.engines.build import BuildOptions, Built
from flawscope.runtime.engines.target import Target
from flawscope.user_folders import cache_folder

ENTRY, PLAN, LAYERS, TIMING = "entry.json", "engine.plan", "layers.json", "timing.cache"
SCHEMA = 1  # of entry.json; engines of another schema are not used, because rebuilding is always possible


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
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


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
    """

    folder: Path
    entry: Entry | None
    problem: str | None

    @property
    def plan(self) -> Path:
        """The engine file."""
        return self.folder / PLAN


class EngineCache:
    """Engines of this machine.

    Args:
        root: The folder; `FLAWSCOPE_ENGINES` or the user's cache folder unless given.

    Raises:
        ArgumentError: If no folder is named, and the user has no home folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        # Absolute: a service that changes its working folder must find its engines again.
        self.root = (root if root is not None else _default_root()).absolute()

    def folder(self, key: Key) -> Path:
        """Return the folder of a key's engine, whether it exists or not."""
        return self.root / key.digest()[:32]

    def stored(self, key: Key) -> Stored | None:
        """Return the engine of a key, its file checked by SHA-256, or None if there is none."""
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        stored = read_stored(folder)
        # The folder's name is not proof enough: it may have been copied or renamed by hand.
        if stored.problem is None and stored.entry is not None and stored.entry.key != key:
            return Stored(folder, stored.entry, "its entry is of another engine")
        return stored

    def all(self) -> Iterator[Stored]:
        """Yield every engine, checked, in the order of their folders' names."""
        if self.root.is_dir():
            # Names with a dot are folders that `atomic_folder` is still writing, or was writing when it was killed.
            for folder in sorted(path for path in self.root.iterdir() if path.is_dir() and path.name[:1] != "."):
                yield read_stored(folder)

    def put(self, key: Key, bundle: str, built: Built) -> Stored:
        """Store an engine, in place of an earlier one of the same key. It is either there completely or not at all.

        Raises:
            StorageError: If it cannot be written.
        """
        folder = self.folder(key)
        with storage_errors(folder):
            self.root.mkdir(parents=True, exist_ok=True)
            if folder.is_dir() and not (folder / ENTRY).is_file():
                shutil.rmtree(folder)  # remains of an interrupted removal, which `replace_if` would refuse
        with atomic_folder(folder, replace_if=ENTRY) as temporary:
            (temporary / PLAN).write_bytes(built.plan)
            if built.layers is not None:
                (temporary / LAYERS).write_text(built.layers, encoding="utf-8")
            if built.timing_cache:
                (temporary / TIMING).write_bytes(built.timing_cache)
            entry = Entry(
                key=key,
                bundle=bundle,
                sha256=sha256_file(temporary / PLAN),
                size=len(built.plan),
                created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                build_seconds=round(built.seconds, 3),
                warnings=built.warnings,
                layers_missing=built.layers_missing,
            )
            (temporary / ENTRY).write_bytes(msgspec.json.format(msgspec.json.encode(entry), indent=1) + b"\n")
        return Stored(folder, entry, None)

    def remove(self, stored: Stored) -> None:
        """Remove one engine.

        Raises:
            StorageError: If the system refuses.
        """
        with storage_errors(stored.folder):
            shutil.rmtree(stored.folder)

    def timing_cache(self, key: Key) -> bytes:
        """Return the timing cache of the newest build for the same device, module and version, or nothing."""
        # Whatever the model: kernels are measured by shape, and another model of the same backbone shares most shapes.
        newest: tuple[str, bytes] = ("", b"")
        for stored in self.all():
            entry, file = stored.entry, stored.folder / TIMING
            if entry is None or stored.problem is not None or not file.is_file() or entry.created <= newest[0]:
                continue
            if (entry.key.target, entry.key.runtime, entry.key.version) == (key.target, key.runtime, key.version):
                newest = (entry.created, file.read_bytes())
        return newest[1]


def read_stored(folder: Path) -> Stored:
    """Read and check one engine: entry, size and SHA-256."""
    try:
        entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
    except OSError as err:
        return Stored(folder, None, f"its {ENTRY} cannot be read: {err.strerror or err}")
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        return Stored(folder, None, f"its {ENTRY} is broken: {err}")
    return Stored(folder, entry, _file_problem(folder / PLAN, entry))


def _file_problem(plan: Path, entry: Entry) -> str | None:
    if entry.schema != SCHEMA:
        return f"its entry is of schema {entry.schema}, expected {SCHEMA}"
    try:
        size = plan.stat().st_size  # first, because hashing hundreds of megabytes takes seconds
        if size != entry.size:
            return f"its file has {size} bytes, expected {entry.size}"
        digest = sha256_file(plan)
    except OSError as err:
        return f"its file cannot be read: {err.strerror or err}"
    if digest != entry.sha256:
        return f"its file was changed: SHA-256 {digest[:12]}…, expected {entry.sha256[:12]}…"
    return None


def find_engine(cache: EngineCache, key: Key, bundle: str) -> tuple[Stored | None, str]:
    """Look for the engine of a key.

    Returns:
        The engine and an empty reason, or None and why none fits.
    """
    stored = cache.stored(key)
    if stored is not None:
        return (
            (stored, "") if stored.problem is None else (None, f"the engine in {stored.folder} fails: {stored.problem}")
        )
    # Only to explain: "driver 550, expected 570" tells more than "no engine".
    nearest: list[str] | None = None
    for other in cache.all():
        if other.entry is None or (other.entry.bundle, other.entry.key.graph) != (bundle, key.graph):
            continue
        different = differences(other.entry.key, key)
        if nearest is None or len(different) < len(nearest):
            nearest = different
    if nearest is None:
        return None, f"no engine of {bundle}, graph {key.graph}, was built yet"
    return None, f"the nearest engine was built for something else: {'; '.join(nearest)}"


def differences(stored: Key, expected: Key) -> list[str]:
    """Return what differs between two keys, each as `NAME GOT, expected EXPECTED`."""
    pairs = (
        ("model", stored.model[:12] + "…", expected.model[:12] + "…"),
        ("precision", stored.precision, expected.precision),
        ("runtime", stored.runtime, expected.runtime),
        (f"{expected.runtime} version", stored.version, expected.version),
        ("GPU", stored.target.gpu or "any", expected.target.gpu or "any"),
        ("compute capability", _dotted(stored.target), _dotted(expected.target)),
        ("driver", stored.target.driver or "any", expected.target.driver or "any"),
        ("options", _options_text(stored.options), _options_text(expected.options)),
    )
    return [f"{name} {got}, expected {needed}" for name, got, needed in pairs if got != needed]


def refuse(bundle: str, reason: str) -> BackendError:
    """Return the error for an engine that does not fit when building is not allowed."""
    return BackendError(
        f"engine: {reason}. Building was not allowed (--no-build). Build it with: flawscope engine build {bundle}"
    )


def _dotted(target: Target) -> str:
    return ".".join(map(str, target.compute_capability))


def _options_text(options: BuildOptions) -> str:
    workspace = "" if options.workspace_mib is None else f", workspace {options.workspace_mib} MiB"
    return f"batch {options.min_batch}/{options.opt_batch}/{options.max_batch}{workspace}"


def _default_root() -> Path:
    if named := os.environ.get("FLAWSCOPE_ENGINES"):
        return Path(named)
    base = cache_folder()
    # Not the temporary folder: others may write there, and engines would be built again after every restart.
    if base is None:
        raise ArgumentError(
            "engine: expected a folder for engines, got a user without a home folder. Name one with FLAWSCOPE_ENGINES."
        )
    return base / "flawscope" / "engines"
