"""The cache of engines: where they are stored, what they were built for, and why one fits or does not.

An engine is never shipped and never trusted by its name. Beside it lies an entry: what it was built from and for, and
the SHA-256 of its file. An engine that does not match in every point is built again, or refused with the reason. What
somebody else could have put there (`flawscope.private_files`) is neither used nor replaced: that is for its owner to
look at.

An engine is read once; the bytes that were hashed are the bytes that run.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from flawscope.errors import ArgumentError, BackendError
from flawscope.files import atomic_folder, locked, storage_errors, temporary_folder
from flawscope.open_files import walk_folder
from flawscope.private_files import PrivateRoot, private_folder
from flawscope.runtime.engines.build import BuildOptions, Built
from flawscope.runtime.engines.stored_engine import (
    ENGINES,
    ENTRY,
    LAYERS,
    PLAN,
    TIMING,
    Entry,
    Key,
    Stored,
    read_entry,
    read_stored,
    small_file,
)
from flawscope.runtime.engines.target import Target
from flawscope.text import encode_json
from flawscope.user_folders import cache_folder

_ENGINE_NAME = re.compile("[0-9a-f]{32}")

_FILES = (ENTRY, PLAN, LAYERS, TIMING)


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
        self._root = PrivateRoot(self.root, ENGINES)

    def folder(self, key: Key) -> Path:
        """Return the folder of a key's engine, whether it exists or not."""
        return self.root / key.digest()[:32]

    def stored(self, key: Key) -> Stored | None:
        """Return the engine of a key, read into memory and checked by SHA-256, or None if there is none.

        Raises:
            BackendError: If somebody else could have changed it, or the folder of the engines.
        """
        with self._root.opened() as root:
            return None if root is None else read_stored(self.folder(key), root, keep=True, is_strict=True)

    def all(self) -> Iterator[Stored]:
        """Yield every engine, checked but not kept in memory, in the order of their folders' names.

        Raises:
            BackendError: If others may write to the folder of the engines.
        """
        with self._root.opened() as root:
            if root is None:
                return
            for name in sorted(found.name for found in os.scandir(root)):
                # Names with a dot are locks, and folders that `atomic_folder` is still writing.
                if name[:1] == "." or not _may_be_engine(name, root):
                    continue
                stored = read_stored(self.root / name, root)
                if stored is not None:
                    yield stored

    def entries(self) -> Iterator[tuple[Path, Entry]]:
        """Yield folder and entry of every engine whose entry can be read; the engines themselves are not.

        Raises:
            BackendError: If others may write to the folder of the engines.
        """
        with self._root.opened() as root:
            if root is None:
                return
            for name in sorted(found.name for found in os.scandir(root)):
                entry = read_entry(self.root / name, root) if _ENGINE_NAME.fullmatch(name) else None
                if entry is not None:
                    yield self.root / name, entry

    def newest_alike(self, key: Key) -> Key:
        """Return the key of the newest engine that computes the same, however it was tuned; `key` if there is none.

        What was tuned, `opt_batch` and the workspace, changes how fast an engine is, and not what it takes or gives.
        """
        newest, found = "", key
        for _, entry in self.entries():
            options = entry.key.options
            tuned = msgspec.structs.replace(
                key.options, opt_batch=options.opt_batch, workspace_mib=options.workspace_mib
            )
            if entry.created > newest and entry.key == msgspec.structs.replace(key, options=tuned):
                newest, found = entry.created, entry.key
        return found

    def put(self, key: Key, bundle: str, built: Built) -> Stored:
        """Store an engine, in place of an earlier one of the same key. It is either there completely or not at all.

        Returns:
            The engine, as it was built: it is not read back.

        Raises:
            BackendError: If others may write to the folder of the engines, or to that of the earlier engine.
            StorageError: If it cannot be written.
        """
        folder = self.folder(key)
        entry = Entry(
            key=key,
            bundle=bundle,
            sha256=hashlib.sha256(built.plan).hexdigest(),
            size=len(built.plan),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            build_seconds=round(built.seconds, 3),
            warnings=built.warnings,
            layers_missing=built.layers_missing,
        )
        layers = None if built.layers is None else built.layers.encode()
        with self._root.made() as root, locked(folder):
            # An engine that somebody else could have laid there is kept as it is: it shows what happened.
            earlier = read_stored(folder, root, is_strict=True)
            if earlier is not None and earlier.entry is None:
                self._set_aside(folder)  # without an entry, which `replace_if` would refuse
            with atomic_folder(folder, replace_if=ENTRY, overwrite=True, own=_FILES, private=True) as temporary:
                (temporary / PLAN).write_bytes(built.plan)
                if layers is not None:
                    (temporary / LAYERS).write_bytes(layers)
                if built.timing_cache:
                    (temporary / TIMING).write_bytes(built.timing_cache)
                (temporary / ENTRY).write_bytes(msgspec.json.format(encode_json(entry), indent=1) + b"\n")
        return Stored(folder, entry, None, layers, built.plan)

    def remove(self, stored: Stored) -> int | None:
        """Remove one engine; what is left of it when the process is killed is removed by the next one that writes.

        Returns:
            The bytes that became free; None if another process has removed it meanwhile.

        Raises:
            BackendError: If others may write to the folder of the engines.
            StorageError: If the system refuses.
        """
        with self._root.opened() as root:
            if root is None:
                return None
            with locked(stored.folder):
                return self._set_aside(stored.folder)

    @contextlib.contextmanager
    def building(self, key: Key) -> Iterator[None]:
        """Let one process at a time build the engine of a key; the others wait, and find it when they look again.

        Raises:
            BackendError: If others may write to the folder of the engines.
            StorageError: If the lock cannot be made.
        """
        # Another name than that of the engine: `put` takes that one, within this one.
        with self._root.made(), locked(self.root / f"{self.folder(key).name}.build"):
            yield

    def timing_cache(self, key: Key) -> bytes:
        """Return the timing cache of the newest build for the same device, module and version, or nothing."""
        # Whatever the model: kernels are measured by shape, and another model of the same backbone shares most shapes.
        newest: tuple[str, bytes] = ("", b"")
        for folder, entry in self.entries():
            if entry.created <= newest[0]:
                continue
            if (entry.key.target, entry.key.runtime, entry.key.version) != (key.target, key.runtime, key.version):
                continue
            # What another process removes meanwhile is no timing cache any more.
            with contextlib.suppress(FileNotFoundError), self._root.opened() as root:
                if root is not None:
                    with private_folder(folder, ENGINES, root) as inside:
                        newest = (entry.created, small_file(folder / TIMING, inside))
        return newest[1]

    def _set_aside(self, folder: Path) -> int | None:
        """Remove an engine's folder, or the link in its place: whole first, so that no reader meets half of it."""
        with storage_errors(folder), temporary_folder(self.root) as aside:
            try:
                folder.rename(aside / folder.name)
            except FileNotFoundError:
                return None
            return sum(status.st_size for path in walk_folder(aside) if stat.S_ISREG((status := path.lstat()).st_mode))


def _may_be_engine(name: str, root: int) -> bool:
    """Return whether what lies in the cache has to be told of: all but plain files under names that no engine has."""
    with contextlib.suppress(FileNotFoundError):
        return not stat.S_ISREG(os.lstat(name, dir_fd=root).st_mode) or _ENGINE_NAME.fullmatch(name) is not None
    return False


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
    for _, other in cache.entries():
        if (other.bundle, other.key.graph) != (bundle, key.graph):
            continue
        different = differences(other.key, key)
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
    tf32 = ", TF32" if options.tf32 else ""
    return f"batch {options.min_batch}/{options.opt_batch}/{options.max_batch}{workspace}{tf32}"


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
