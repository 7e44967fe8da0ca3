"""Times of a bundle on the backends of a machine, kept so that they are measured once.

Each measurement is a small file, named after all that it depends on: the model, how it is run, the machine and the
versions. A file that is broken, or of something else, is as good as none. One that somebody else could have changed is
neither used nor replaced. Whatever a file says, only backends that the bundle allows are ever taken.

Times hold for as long as what they depend on. That a backend was left out because it failed may be over by tomorrow,
whatever the versions (memory, say, that another program had taken): such a file holds for `LEFT_OUT_FOR`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import msgspec

import flawscope
from flawscope.bundle import Manifest
from flawscope.bundle.manifest import external_data
from flawscope.bundle.model_identity import model_identity
from flawscope.errors import BackendError, StorageError
from flawscope.files import locked, storage_errors, temporary_folder
from flawscope.private_files import Kept, PrivateRoot, private_file
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores, usable_cores
from flawscope.text import NOT_JSON, encode_json
from flawscope.user_folders import CACHE_VARIABLE, cache_folder
from flawscope.versions import cpu_name

TIMES = Kept("auto", CACHE_VARIABLE)
"""What is kept, for messages."""

LEFT_OUT_FOR = datetime.timedelta(days=1)
"""How long a measurement holds that left a backend out."""

_MOST_BYTES = 1 << 16
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino")
_SETTINGS = ("FLAWSCOPE_NATIVE", "FLAWSCOPE_SIMD", "OMP_", "ONEDNN_")
"""Beginnings of environment variables that speed depends on: instruction sets and threads."""


class TimesKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that times depend on; the name of their file is a hash of it.

    Attributes:
        model: SHA-256 of what is computed; other thresholds or evidence in the bundle do not change it.
        precision: Precision of the graphs.
        path: How maps are made, as it was asked for.
        threads: Threads that were asked for, or None.
        streams: Streams that were asked for, or None.
        rivals: The backends, the one that is kept in doubt first.
        cpu: Name of the processor.
        cores: Cores that this process may use.
        system: System and machine.
        versions: Package -> version.
        settings: Environment variables that speed depends on.
    """

    model: str
    precision: str
    path: str
    threads: int | None
    streams: int | None
    rivals: tuple[str, ...]
    cpu: str
    cores: int
    system: str
    versions: dict[str, str]
    settings: dict[str, str]

    def digest(self) -> str:
        """Return the first 32 digits of the key's SHA-256."""
        return hashlib.sha256(encode_json(self, order="sorted")).hexdigest()[:32]


class Times(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measurement.

    Attributes:
        key: What it was of.
        bundle: Name of the bundle, for whoever reads the file.
        measured: UTC time of it.
        milliseconds: Backend -> median time of one image.
        left_out: Backend -> why it was not measured: it is not there, or cannot run the bundle.
        schema: Version of this struct.
    """

    key: TimesKey
    bundle: str
    measured: Annotated[datetime.datetime, msgspec.Meta(tz=True)]
    milliseconds: dict[str, Annotated[float, msgspec.Meta(gt=0, le=1e9)]]
    left_out: dict[str, str]
    schema: Literal[1] = 1

    def is_over(self) -> bool:
        """Return whether it left a backend out too long ago, or in what is the future by this clock."""
        return bool(self.left_out) and not datetime.timedelta() <= now() - self.measured < LEFT_OUT_FOR


def now() -> datetime.datetime:
    """Return the UTC time, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def times_key(
    manifest: Manifest, precision: str, path: str, rivals: tuple[str, ...], cores: Cores = OWN_CHOICE
) -> TimesKey:
    """Return the key of a bundle on this machine, in this environment."""
    return TimesKey(
        model=_model(manifest, precision),
        precision=precision,
        path=path,
        threads=cores.threads,
        streams=cores.streams,
        rivals=rivals,
        cpu=cpu_name(),
        cores=usable_cores(),
        system=f"{platform.system()} {platform.machine()}",
        versions={"flawscope": flawscope.__version__, **dict(_versions())},
        settings={name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
    )


class KeptTimes:
    """The file of one key.

    Args:
        key: The key.

    Attributes:
        path: The file, whether it exists or not; None for a user without a folder for it.
        problem: Why nothing can be kept or nothing that is kept is believed, a clause; empty where it can.
    """

    def __init__(self, key: TimesKey) -> None:
        self.key = key
        self.path: Path | None = None
        self.problem = ""
        base = cache_folder()
        if base is None:
            self.problem = f"the user has no home folder, and {TIMES.variable} names none"
        else:
            self._root = _root_in(base)
            self.path = self._root.path / f"{key.digest()}.json"

    def read(self) -> Times | None:
        """Return the times that are kept and hold, or None."""
        if self.path is None:
            return None
        try:
            with self._root.opened() as root:
                if root is None:
                    return None
                times = _read(self.path, root)
        except (FileNotFoundError, *NOT_JSON):
            return None
        except BackendError as err:
            self.problem = _clause(err)
            return None
        except OSError as err:
            self.problem = f"{self.path}: cannot be read: {err.strerror or err}"
            return None
        # Its name is not proof enough: it may have been copied by hand.
        whole = times.milliseconds.keys() | times.left_out.keys() == set(self.key.rivals)
        holds = whole and self.key.rivals[0] in times.milliseconds and not times.is_over()
        return times if times.key == self.key and holds else None

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Let one process at a time measure; the others wait, and find the times when they look again.

        Where nothing can be kept, nobody waits.
        """
        with contextlib.ExitStack() as stack:
            if self.path is not None and not self.problem:
                try:
                    stack.enter_context(self._root.made())
                    stack.enter_context(locked(self.path))
                except (BackendError, StorageError) as err:
                    self.problem = _clause(err)
            yield

    def write(self, times: Times) -> None:
        """Keep times, in place of those that were there; within `measuring`, and only without a problem."""
        if self.path is None or self.problem:
            return
        try:
            with storage_errors(self.path), temporary_folder(self.path.parent) as aside:
                written = aside / self.path.name
                written.write_bytes(msgspec.json.format(encode_json(times), indent=1) + b"\n")
                written.chmod(0o600)  # whatever the umask: a file that others may write to is not believed
                written.replace(self.path)
        except StorageError as err:
            self.problem = _clause(err)

    def forget(self) -> None:
        """Remove what is kept, so that it is measured again.

        Raises:
            StorageError: If the system refuses.
        """
        if self.path is not None:
            with storage_errors(self.path):
                self.path.unlink(missing_ok=True)


def forget_model(manifest: Manifest, precision: str) -> None:
    """Remove all times of a model in a precision, whatever else they depend on; those that nobody would believe stay.

    Raises:
        StorageError: If the system refuses.
    """
    base = cache_folder()
    if base is None:
        return
    folder, model = _root_in(base), _model(manifest, precision)
    with contextlib.suppress(BackendError), folder.opened() as root:
        if root is None:
            return
        # Of the open folder: its path could name another one by now.
        for name in [found.name for found in os.scandir(root)]:
            path = folder.path / name
            try:
                key = _read(path, root).key
            except (OSError, BackendError, *NOT_JSON):
                continue
            if (key.model, key.precision) == (model, precision):
                with storage_errors(path):
                    path.unlink(missing_ok=True)


def _root_in(base: Path) -> PrivateRoot:
    return PrivateRoot(base.absolute() / "flawscope" / "auto", TIMES)


def _model(manifest: Manifest, precision: str) -> str:
    graphs = manifest.graphs_of(precision).values()
    files = {name for graph in graphs for name in (graph.file, external_data(graph.file)) if name in manifest.files}
    model = {name: manifest.files[name].sha256 for name in files} | {"": model_identity(manifest)}
    return hashlib.sha256(encode_json(model, order="sorted")).hexdigest()


def _read(path: Path, root: int) -> Times:
    with private_file(path, TIMES, root) as file:
        return msgspec.json.decode(file.read(_MOST_BYTES), type=Times)


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield package, version(package)


def _clause(err: Exception) -> str:
    return str(err).removeprefix(f"{TIMES.name}: ").rstrip(".")
