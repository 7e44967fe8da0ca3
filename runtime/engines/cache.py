"""The cache of engines: where they lie, what they were built for, and why one fits or does not.

An engine is never shipped and never trusted by its name: its folder has an entry that says what it was built from and
for, with the SHA-256 of the file. What does not match in every point is built again or refused with the reason.
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

from flawscope.errors import BackendError
from flawscope.files import atomic_folder, sha256_file, storage_errors
from flawscope.runtime.engines.build import BuildOptions, Built
from flawscope.runtime.engines.target import Target

ENTRY, PLAN, LAYERS, TIMING = "entry.json", "engine.plan", "layers.json", "timing.cache"
SCHEMA = 1


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides whether an engine fits.

    Attributes:
        model: SHA-256 over the graph and its external data.
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
        """Return the SHA-256 of the key: the name of the engine's folder begins with it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies beside an engine.

    Attributes:
        key: What it was built from and for.
        bundle: Name of the bundle.
        sha256: SHA-256 of the engine file.
        size: Its size in bytes.
        created: UTC time of the build, ISO 8601.
        build_seconds: How long it took.
        warnings: What TensorRT warned of.
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
        folder: Where it lies.
        entry: What is said of it; None where that cannot be read.
        problem: Why it must not be used, or None.
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
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else _default_root()

    def folder(self, key: Key) -> Path:
        """Return where the engine of a key lies, or would lie."""
        return self.root / key.digest()[:32]

    def stored(self, key: Key) -> Stored | None:
        """Return the engine of a key, checked to the last byte, or None if there is none."""
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        found = read_stored(folder)
        if found.problem is None and found.entry is not None and found.entry.key != key:
            return Stored(folder, found.entry, "its entry is of another engine")
        return found

    def all(self) -> Iterator[Stored]:
        """Yield every engine, in the order of their names, each checked."""
        if self.root.is_dir():
            for folder in sorted(path for path in self.root.iterdir() if path.is_dir() and path.name[:1] != "."):
                yield read_stored(folder)

    def put(self, key: Key, bundle: str, built: Built) -> Stored:
        """Store an engine whole, in place of an earlier one of the same key.

        Raises:
            StorageError: If it cannot be written.
        """
        folder = self.folder(key)
        with storage_errors(folder):
            self.root.mkdir(parents=True, exist_ok=True)
            if folder.is_dir() and not (folder / ENTRY).is_file():
                shutil.rmtree(folder)  # what is left of one that was interrupted
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
        """Return what the newest build for the same device, module and version measured, or nothing."""
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
    return Stored(folder, entry, _problem(folder / PLAN, entry))


def _problem(plan: Path, entry: Entry) -> str | None:
    if entry.schema != SCHEMA:
        return f"its entry is of schema {entry.schema}, expected {SCHEMA}"
    try:
        size = plan.stat().st_size
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
    nearest: list[str] | None = None
    for other in cache.all():
        if other.entry is None or (other.entry.bundle, other.entry.key.graph) != (bundle, key.graph):
            continue
        found = differences(other.entry.key, key)
        if nearest is None or len(found) < len(nearest):
            nearest = found
    if nearest is None:
        return None, f"no engine of {bundle}, graph {key.graph}, was built yet"
    return None, f"the nearest engine was built for something else: {'; '.join(nearest)}"


def differences(had: Key, wanted: Key) -> list[str]:
    """Return in what two keys differ, in words."""
    pairs = (
        ("model", had.model[:12] + "…", wanted.model[:12] + "…"),
        ("precision", had.precision, wanted.precision),
        ("runtime", had.runtime, wanted.runtime),
        (f"{wanted.runtime} version", had.version, wanted.version),
        ("GPU", had.target.gpu or "any", wanted.target.gpu or "any"),
        ("compute capability", _dotted(had.target), _dotted(wanted.target)),
        ("driver", had.target.driver or "any", wanted.target.driver or "any"),
        ("options", _words(had.options), _words(wanted.options)),
    )
    return [f"{name} {before}, expected {now}" for name, before, now in pairs if before != now]


def refuse(bundle: str, reason: str) -> BackendError:
    """Return the error of a run that may not build."""
    return BackendError(
        f"engine: {reason}. Building was not allowed (--no-build). Build it with: flawscope engine build {bundle}"
    )


def _dotted(target: Target) -> str:
    return ".".join(map(str, target.compute_capability))


def _words(options: BuildOptions) -> str:
    workspace = "" if options.workspace_mib is None else f", workspace {options.workspace_mib} MiB"
    return f"batch {options.min_batch}/{options.opt_batch}/{options.max_batch}{workspace}"


def _default_root() -> Path:
    if named := os.environ.get("FLAWSCOPE_ENGINES"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flawscope" / "engines"
