"""Export pipeline of detectors: run → graphs → size check → parity gate → reduced precisions → bundle."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

import flawscope
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import (
    COMPUTED,
    IMAGE_HASHES,
    PRECISIONS,
    Bundle,
    Evidence,
    Golden,
    Head,
    ImageHashes,
    Manifest,
    Parity,
    Precision,
    Provenance,
    external_data,
    head_tag,
    making,
    open_bundle,
    write_bundle,
)
from flawscope.config import flatten
from flawscope.config.setting_parts import tag_of
from flawscope.errors import ArgumentError, RunError
from flawscope.export.exporter import ExportedGraphs, Exporter, exporter_of
from flawscope.export.graph_files import describe_graph
from flawscope.export.parity import check_parity, measure_parity
from flawscope.export.precisions import Wanted, add_precision, read_images
from flawscope.files import check_replaceable, storage_errors, temporary_folder
from flawscope.imaging.images import decode_image, prepare, read_encoded
from flawscope.progress import Progress, no_progress
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_run import Run, read_run
from flawscope.versions import package_versions

MOST_ROOM = 1_000_000
"""Most rows of room; far more than any bank has."""

_GOLDEN = 2
"""Golden images per bundle."""


@making()
def export_run(
    path: Path,
    out: Path,
    *,
    max_batch: int = 8,
    wanted: Wanted | None = None,
    bank_room: int | None = None,
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> Manifest:
    """Export a run as a bundle folder; nothing is written unless size check and parity gate hold.

    Args:
        path: The run.
        out: Bundle folder to write.
        max_batch: Largest batch the graphs take.
        wanted: Precisions beside FP32, with the data for their value ranges and gate.
        bank_room: Rows of room in each memory bank, for `bundle bank add`; None for a quarter of its rows.
        command: Command line for the record.
        progress: Told what is being done.
        overwrite: Whether an earlier bundle there may be replaced.

    Returns:
        The manifest as written.

    Raises:
        ArgumentError: If an option is out of range, or `out` is taken.
        RunError: If the run is broken or unfitted, or a tensor would be too large.
        GateError: If torch, graph and native path disagree, or a precision is outside its limits.
        StorageError: If the bundle cannot be written.
    """
    if type(max_batch) is not int or not 1 <= max_batch <= 256:
        raise ArgumentError(f"max_batch: expected 1 to 256, got {max_batch!r}.")
    if bank_room is not None and not 0 <= bank_room <= MOST_ROOM:
        raise ArgumentError(f"--bank-room: expected 0 to {MOST_ROOM} rows, got {bank_room}.")
    if wanted is not None:
        wanted.check()
    check_replaceable(out, "manifest.json", overwrite=overwrite)  # before the work, not after
    run = read_run(path)
    if wanted is not None:
        _check_precisions(wanted, exporter_of(run.record), run)
    samples = [(sample.name, read_encoded(sample)) for sample in run.samples]
    if not samples:
        raise RunError(f"{path}: expected sample images in samples/, got none. Train again.")
    # Beside the bundle, not in /tmp: the graphs of a large detector may not fit there.
    with temporary_folder(out.parent) as scratch, storage_errors(out):
        return _export(run, out, scratch, samples, max_batch, wanted, bank_room, command, progress, overwrite)


def _check_precisions(wanted: Wanted, exporter: Exporter, run: Run) -> None:
    """Raise ArgumentError if the method of a run has not all of the precisions that are wanted."""
    converted = () if exporter.reducible is None else exporter.reducible.precisions
    # Every method may have a precision that needs no conversion; the gate says whether it should.
    offered = tuple(name for name in PRECISIONS if name in ("fp32", *COMPUTED, *converted))
    for name in wanted.precisions:
        if name not in offered:
            method = tag_of(type(run.record.config))
            raise ArgumentError(
                f"--precision {name}: expected one that {method} has ({', '.join(offered)}), got {name}. Leave it out."
            )


def _export(
    run: Run,
    out: Path,
    scratch: Path,
    samples: list[tuple[str, bytes]],
    max_batch: int,
    wanted: Wanted | None,
    bank_room: int | None,
    command: str,
    progress: Progress,
    overwrite: bool,
) -> Manifest:
    steps = 5
    progress("exporting", 0, steps)
    images = [prepare(decode_image(data, name), run.record.config.preprocessing) for name, data in samples]
    exporter = exporter_of(run.record)
    head = exporter.head(run, images)
    if bank_room and not head.banks:
        raise ArgumentError(
            "--bank-room: expected a run of patchcore, got one without a memory bank of rows. Leave it out."
        )
    progress("exporting", 1, steps)
    exported = exporter.graphs(run, head, scratch, max_batch, bank_room)
    progress("exporting", 2, steps)

    record = run.record
    hashes = ImageHashes(record.training, record.held_out, record.cross, record.defect_images)
    manifest = _manifest(run, out.name.removesuffix(".flaw"), head, exported, max_batch, command)
    sources: dict[str, Path | bytes] = {
        **{graph.file: scratch / graph.file for graph in exported.graphs.values()},
        **{path.name: path for path in scratch.glob(external_data("*.onnx"))},
        **({} if exported.bank is None else {exported.bank: scratch / exported.bank}),
        IMAGE_HASHES: hashes.encode(),
    }
    # The gate runs on a bundle as it will ship, not on its parts.
    write_bundle(scratch / "candidate", manifest, sources)
    progress("exporting", 3, steps)
    with open_bundle(scratch / "candidate") as candidate:
        parity, golden = _gate(run, exporter, head, candidate, images, samples)
    progress("exporting", 4, steps)
    manifest = msgspec.structs.replace(
        manifest, golden=tuple(entry for entry, _ in golden), evidence=Evidence(parity=parity, drawn=run.record.drawn)
    )
    sources |= {entry.file: data for entry, data in golden}
    if wanted is not None and wanted.precisions:
        # After the parity gate: a reduced precision is measured against the FP32 bundle and its golden images.
        manifest, added = _with_precisions(wanted, manifest, sources, exported, sorted(hashes.seen), scratch, progress)
        sources |= added
    written = write_bundle(out, manifest, sources, overwrite=overwrite)
    progress("exporting", 5, steps)
    return written


def _manifest(run: Run, name: str, head: Head, exported: ExportedGraphs, max_batch: int, command: str) -> Manifest:
    """Return the manifest before the parity gate: without golden images and evidence."""
    return Manifest(
        name=name,
        kind="score",
        method=head_tag(head),
        flawscope=flawscope.__version__,
        input=run.record.config.preprocessing,
        tiling=run.record.config.tiling,
        learned=run.record.learned,
        max_batch=max_batch,
        graphs=exported.graphs,
        bank=exported.bank,
        upkeep=exported.upkeep,
        head=head,
        golden=(),
        provenance=_provenance(run, command),
        files={},
        defects=msgspec.UNSET if run.record.defects is None else run.record.defects,
    )


def _with_precisions(
    wanted: Wanted,
    manifest: Manifest,
    sources: Mapping[str, Path | bytes],
    exported: ExportedGraphs,
    learned: Sequence[str],
    scratch: Path,
    progress: Progress,
) -> tuple[Manifest, dict[str, Path | bytes]]:
    """Return the manifest with the wanted precisions, and the files to add; see `add_precision`."""
    gate_images = read_images(wanted, manifest, learned, progress)
    precisions: dict[str, Precision] = {}
    all_added: dict[str, Path | bytes] = {}
    for name in wanted.precisions:
        precisions[name], added = add_precision(
            name,
            manifest,
            {**sources, **all_added},
            exported.arrays,
            scratch,
            gate_images,
            wanted,
            partial(describe_graph, manifest.max_batch),
            progress,
        )
        all_added |= added
    return msgspec.structs.replace(manifest, precisions=precisions), all_added


def _gate(
    run: Run,
    exporter: Exporter,
    head: Head,
    candidate: Bundle,
    images: list[UInt8Array],
    samples: list[tuple[str, bytes]],
) -> tuple[tuple[Parity, ...], list[tuple[Golden, bytes]]]:
    """Measure torch ↔ graph and graph ↔ other paths; return the evidence and the golden images.

    Raises:
        GateError: If two of them disagree.
    """
    inspector = Inspector(candidate, "cpu", "graph", is_candidate=True)
    graph = _scores(inspector, images)
    # Where a score can be (almost) zero, relative errors need a floor: the score that counts as rounding.
    least = inspector.scorer.least_score
    expected = exporter.reference(run, head, images)
    parity = [measure_parity("torch", exporter.graph_words, expected, graph, least)]
    for path in exporter.other_paths:
        other = _scores(Inspector(candidate, "cpu", path, is_candidate=True), images)
        parity.append(measure_parity(exporter.graph_words, f"features.onnx + {path}, cpu", graph, other, least))
    check_parity(tuple(parity))  # raises, so golden images are taken from graphs that passed
    golden = []
    for index, (_, data) in enumerate(samples[:_GOLDEN]):
        entry = Golden(f"golden/{index:03d}.png", float(graph[1][index]), float(graph[0][index].max()))
        # The stored file, byte for byte: the expected scores are those of decoding exactly this one.
        golden.append((entry, data))
    return tuple(parity), golden


def _scores(inspector: Inspector, images: list[UInt8Array]) -> tuple[Float32Array, Float32Array]:
    # One image at a time, as the reference does it: other batch sizes may round differently.
    maps, scores = zip(*(inspector.infer(image[None]) for image in images), strict=True)
    return np.concatenate(maps), np.concatenate(scores)


def _provenance(run: Run, command: str) -> Provenance:
    record = run.record
    return Provenance(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command,
        run=run.digest,
        dataset=record.dataset,
        category=record.category,
        seed=record.config.seed,
        versions=package_versions(),
        config=flatten(record.config),
        weights=f"{record.backbone.name}: {record.backbone.weights}; licence: {record.backbone.licence}",
        images=IMAGE_HASHES,
        conditions=record.backbone.conditions,
    )
