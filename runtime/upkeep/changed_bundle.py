"""Writing a bundle whose memory bank was changed, and going back to one that was changed before.

Of a bundle only the file of the bank changes, and what was measured with it: golden scores are measured anew,
thresholds and accuracy are removed. Before every addition the manifest is kept, so that taking the last ones out gives
back the bundle itself: every file as it was, the same digest.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import msgspec
import numpy as np
import safetensors.numpy

from flawscope.arrays import Int64Array
from flawscope.bundle import (
    Additions,
    BankChange,
    Bundle,
    Evidence,
    FileEntry,
    Golden,
    ImageHashes,
    Manifest,
    PatchcoreHead,
    Upkeep,
    decode_additions,
    decode_manifest,
    load_tensors,
    open_bundle,
    read_image_hashes,
    rewrite_manifest,
    write_bundle,
)
from flawscope.errors import ArgumentError, BackendError, BundleError
from flawscope.files import storage_errors, temporary_folder
from flawscope.runtime.backends.table import ROWS, is_there
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.scorers.golden import measured_golden
from flawscope.runtime.upkeep.bank_rows import BankRows, rows_problem

_FOLDER = "upkeep"
_STATE = re.compile(rf"{_FOLDER}/before-([1-9][0-9]{{0,15}})\.json")


@dataclass(frozen=True)
class Source:
    """A bundle whose bank can be changed.

    Attributes:
        bundle: The opened bundle.
        head: Its head.
        rows: Its rows in use.
        additions: What was added since the export.
        hashes: The images that it knows of.
    """

    bundle: Bundle
    head: PatchcoreHead
    rows: BankRows
    additions: Additions
    hashes: ImageHashes

    @classmethod
    def of(cls, bundle: Bundle) -> Source:
        """Return an opened bundle as a source.

        Raises:
            BundleError: If its method has no memory bank of rows, or its graph does not let them be changed.
        """
        manifest, where = bundle.manifest, str(bundle.path)
        if not manifest.head.banks:
            hint = "Change its members and combine them again." if manifest.head.members else "Train and export again."
            raise BundleError(
                f"{where}: expected a bundle with a memory bank of rows (patchcore), got {manifest.method}. {hint}"
            )
        head, tensors = cast("PatchcoreHead", manifest.head), bundle.tensors()
        if problem := rows_problem(head, tensors):
            raise BundleError(f"{where}: {problem}. Export it again from a run with more rows.")
        record = None if manifest.upkeep is None else manifest.upkeep.record
        additions = Additions() if record is None else decode_additions(bundle.read(record), f"{where}: {record}")
        _check_numbers(manifest, additions, where)
        rows = BankRows.of(head, tensors, additions.banks)
        return cls(bundle, head, rows, additions, read_image_hashes(bundle))

    @property
    def stored(self) -> bytes:
        """The file of the bank."""
        return self.bundle.read(_bank(self.bundle.manifest))

    @property
    def room(self) -> tuple[int, ...]:
        """Rows that each bank has room for."""
        upkeep = self.bundle.manifest.upkeep
        return (0,) * len(self.rows.counts) if upkeep is None else upkeep.room


@dataclass(frozen=True)
class Change:
    """What becomes of a bundle.

    Attributes:
        what: As in `BankChange`.
        command: The command, for the record.
        images: Images that are added or taken out.
        rows: The rows afterwards.
        additions: The record afterwards.
        hashes: The images that it knows of afterwards.
        kept: Numbers of the additions that can be gone back behind afterwards.
        manifest: The manifest before, but with what changes beside the bank.
    """

    what: Literal["added", "removed", "pruned"]
    command: str
    images: int
    rows: BankRows
    additions: Additions
    hashes: ImageHashes
    kept: frozenset[int]
    manifest: Manifest

    @property
    def number(self) -> int:
        """The number of this change."""
        upkeep = self.manifest.upkeep
        return 1 if upkeep is None or not upkeep.changes else upkeep.changes[-1].number + 1


def _check_numbers(manifest: Manifest, additions: Additions, where: str) -> None:
    """Raise BundleError unless every image of the record was added by a change that the manifest has.

    The next addition would otherwise get a number that is taken, and replace the state that it names.
    """
    changes = () if manifest.upkeep is None else manifest.upkeep.changes
    known = {change.number for change in changes if change.what == "added"}
    if odd := sorted({*additions.numbers} - known):
        raise BundleError(
            f"{where}: expected a record of images that the additions {sorted(known)} have brought, got some of "
            f"addition {odd[0]}. Export the bundle again."
        )


def states(bundle: Bundle) -> frozenset[int]:
    """Return the numbers of the additions that can be gone back behind."""
    return frozenset(int(found[1]) for name in bundle.manifest.files if (found := _STATE.fullmatch(name)))


def state_with(source: Source, images: Sequence[str]) -> int | None:
    """Return the number of the addition before which exactly these images had been added, or None.

    Args:
        source: The bundle.
        images: Their content hashes, in the order of the record.
    """
    for number in sorted(states(source.bundle)):
        upkeep = _earlier(source.bundle, number).upkeep
        record = None if upkeep is None else upkeep.record
        before = Additions() if record is None else decode_additions(source.bundle.read(record), record)
        if list(before.images) == list(images):
            return number
    return None


def _earlier(bundle: Bundle, number: int) -> Manifest:
    """Return the manifest of before an addition."""
    name = f"{_FOLDER}/before-{number}.json"
    return decode_manifest(bundle.read(name), f"{bundle.path}: {name}")


def write_changed(source: Source, change: Change, out: Path, *, overwrite: bool) -> Manifest:
    """Write the changed bundle, after golden scores were measured and reproduced on both paths.

    Raises:
        ArgumentError: If `out` is taken, or the rows are too few for the graph.
        BundleError: If the two paths disagree.
        StorageError: If it cannot be written.
    """
    if problem := rows_problem(source.head, change.rows.tensors):
        raise ArgumentError(f"bank: {problem} afterwards. Nothing was written: keep more rows.")
    bundle, number = source.bundle, change.number
    before, data = _state(source, change), change.rows.encode(source.stored)
    record, images = f"{_FOLDER}/record-{number}.json", f"{_FOLDER}/images-{number}.json"
    earlier = () if bundle.manifest.upkeep is None else bundle.manifest.upkeep.changes
    entry = BankChange(number, change.what, _now(), change.command, change.images, change.rows.counts)
    manifest = msgspec.structs.replace(
        change.manifest,
        upkeep=Upkeep(change.rows.counts, change.rows.room(source.stored), (*earlier, entry), record),
        provenance=msgspec.structs.replace(change.manifest.provenance, images=images),
        thresholds=None,
        precisions={
            name: msgspec.structs.replace(
                precision, golden=(), gate=None, thresholds=None, gates=msgspec.UNSET, golden_on=msgspec.UNSET
            )
            for name, precision in change.manifest.precisions.items()
        },
        evidence=Evidence(),
        golden=(),
        files={},
    )
    sources: dict[str, Path | bytes] = {
        _bank(manifest): data,
        record: change.additions.encode(),
        images: change.hashes.encode(),
        **before,
    }
    unchanged = _unchanged(bundle, sources, change.kept)
    with _scratch(out) as scratch, bundle.unpacked(unchanged) as copies:
        sources |= {name: copies / name for name in unchanged}
        write_bundle(scratch / "candidate", manifest, sources)
        with open_bundle(scratch / "candidate") as candidate:
            manifest = _with_golden(candidate, bundle.manifest)
        rewrite_manifest(scratch / "candidate", manifest)
        for precision in ("fp32", *manifest.precisions):
            backend = _first_backend(precision)
            for path in ("graph", "kernel") if backend == "cpu" else ("auto",):
                # Loading compares each with the golden scores, which are those of the graph.
                Inspector.load(scratch / "candidate", backend, path, precision, use_overlay=False).close()
        return write_bundle(out, manifest, sources, overwrite=overwrite)


def write_state(source: Source, number: int, rows: BankRows, out: Path, *, overwrite: bool) -> Manifest:
    """Write the bundle as it was before an addition: the same files, the same digest.

    Args:
        source: The bundle.
        number: Number of the addition.
        rows: Its rows without those of this addition and of later ones.
        out: Bundle folder to write.
        overwrite: Whether an earlier bundle there may be replaced.

    Raises:
        BundleError: If it does not come out as it was.
    """
    bundle = source.bundle
    earlier = _earlier(bundle, number)
    if (neighbours := f"{_FOLDER}/before-{number}.safetensors") in bundle.manifest.files:
        # As it was, and not computed again: another processor may round otherwise and order equally near rows anew.
        stored = load_tensors(bundle.read(neighbours), f"{bundle.path}: {neighbours}")
        rows = BankRows(rows.head, {**rows.tensors, **stored}, rows.origins)
    bank = _bank(earlier)
    data = rows.encode(source.stored)
    unchanged = set(earlier.files) - {bank}
    files = {name: bundle.manifest.files.get(name) for name in unchanged}
    files[bank] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    if files != earlier.files:
        raise BundleError(
            f"{bundle.path}: expected the files of before addition {number}, got others. Nothing was written."
        )
    with bundle.unpacked(unchanged) as copies:
        sources: dict[str, Path | bytes] = {name: copies / name for name in unchanged} | {bank: data}
        return write_bundle(out, earlier, sources, overwrite=overwrite)


def _state(source: Source, change: Change) -> dict[str, bytes]:
    """Return the files that let an addition be undone."""
    if change.what != "added":
        return {}
    files = {f"{_FOLDER}/before-{change.number}.json": source.bundle.manifest_bytes}
    if "neighbours" in source.rows.tensors:
        table: Mapping[str, Int64Array] = {"neighbours": np.ascontiguousarray(source.rows.tensors["neighbours"])}
        files[f"{_FOLDER}/before-{change.number}.safetensors"] = safetensors.numpy.save(dict(table))
    return files


def _unchanged(bundle: Bundle, new: Mapping[str, object], kept: frozenset[int]) -> set[str]:
    """Return the names of the files that stay, of those of the upkeep what the states that are kept need."""
    names = {name for name in bundle.manifest.files if not name.startswith(f"{_FOLDER}/")}
    for number in kept:
        names |= {f"{_FOLDER}/before-{number}.json", f"{_FOLDER}/before-{number}.safetensors"}
        names |= set(_earlier(bundle, number).files)
    # The state before this change needs all that there is.
    if any(name.startswith(f"{_FOLDER}/before-") for name in new):
        names |= set(bundle.manifest.files)
    return {name for name in names if name in bundle.manifest.files and name not in new}


def _with_golden(candidate: Bundle, before: Manifest) -> Manifest:
    """Return the candidate's manifest with the golden scores of the changed bank, for every precision."""
    manifest = candidate.manifest
    precisions = {}
    for name, precision in manifest.precisions.items():
        earlier = before.precisions[name]
        # A backend that is not here has none of its own afterwards: it will be held against those of `golden`.
        own = {
            backend: _measured(candidate, name, backend, entries)
            for backend, entries in earlier.golden_by_backend.items()
            if is_there(backend, name)
        }
        first = _first_backend(name)
        golden = _measured(candidate, name, first, earlier.golden)
        precisions[name] = msgspec.structs.replace(precision, golden=golden, golden_on=own or msgspec.UNSET)
    return msgspec.structs.replace(
        manifest, golden=_measured(candidate, "fp32", "cpu", before.golden), precisions=precisions, digest=""
    )


def _first_backend(precision: str) -> str:
    """Return the backend that golden scores of a precision come from: ONNX Runtime on the CPU if it computes in it.

    Raises:
        BackendError: If no backend here computes in it.
    """
    able = next((name for name in ("cpu", *ROWS) if is_there(name, precision)), None)
    if able is None:
        raise BackendError(
            f"precision {precision}: expected a backend that computes it here, since golden scores are measured anew, "
            "got none. Change the bank on a machine that has one: see flawscope doctor."
        )
    return able


def _measured(candidate: Bundle, precision: str, backend: str, golden: tuple[Golden, ...]) -> tuple[Golden, ...]:
    # On the CPU the whole graph: the path that every backend has.
    path = "graph" if backend == "cpu" else "auto"
    scorer = Inspector(candidate, backend, path, precision, is_candidate=True).scorer
    with contextlib.closing(scorer):
        return measured_golden(candidate, scorer, golden)


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    with temporary_folder(out.parent) as scratch, storage_errors(out):
        yield scratch


def _bank(manifest: Manifest) -> str:
    assert manifest.bank is not None  # a head of PatchCore has one
    return manifest.bank


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
