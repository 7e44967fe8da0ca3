"""The export pipeline, top to bottom: run → graphs → size proof → parity gate → bundle."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx
import safetensors.numpy

import flawscope
from flawscope.bundle import (
    Bundle,
    Evidence,
    Golden,
    Graph,
    Head,
    Manifest,
    PadimHead,
    Parity,
    PatchcoreHead,
    Provenance,
    open_bundle,
    write_bundle,
)
from flawscope.config import PatchcoreConfig
from flawscope.errors import ArgumentError, RunError
from flawscope.export.features_graph import export_features
from flawscope.export.head import BankFile, append_head
from flawscope.export.parity import check_parity, measure_parity
from flawscope.export.precisions import Wanted, add_precision, read_pictures
from flawscope.export.proof import prove_sizes
from flawscope.export.torch_scores import torch_scores
from flawscope.files import check_replaceable, storage_errors
from flawscope.images import UInt8Array, decode_image, prepare
from flawscope.runtime import Inspector
from flawscope.runtime.heads import distance_scale
from flawscope.runtime.inspector import ZERO_SHARE
from flawscope.training.loading import Progress, no_progress
from flawscope.training.run import Run, read_run
from flawscope.versions import package_versions

_GOLDEN = 2
"""Golden images per bundle."""


def export_run(
    path: Path,
    out: Path,
    *,
    max_batch: int = 8,
    wanted: Wanted | None = None,
    command: str = "",
    progress: Progress = no_progress,
) -> Manifest:
    """Export a run as a bundle folder; nothing is written unless size proof and parity gate hold.

    Args:
        path: The run.
        out: Bundle folder to write; an earlier bundle there is replaced.
        max_batch: Largest batch the graphs take.
        wanted: Precisions beside FP32, and from what they are made and judged.
        command: Command line for the record.
        progress: Told what is being done.

    Returns:
        The manifest as written.

    Raises:
        RunError: If the run is broken or unfitted, or a tensor would be too large.
        GateError: If torch, graph and native path disagree, or a precision is outside its limits.
        StorageError: If the bundle cannot be written.
    """
    if not 1 <= max_batch <= 256:
        raise ArgumentError(f"max_batch: expected 1 to 256, got {max_batch}.")
    if wanted is not None:
        wanted.check()
    check_replaceable(out, "manifest.json")
    run = read_run(path)
    samples = [(sample.name, sample.read_bytes()) for sample in run.samples]
    if not samples:
        raise RunError(f"{path}: expected sample pictures in samples/, got none. Train again.")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        with storage_errors(out):
            return _export(run, out, scratch, samples, max_batch, wanted, command, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _export(
    run: Run,
    out: Path,
    scratch: Path,
    samples: list[tuple[str, bytes]],
    max_batch: int,
    wanted: Wanted | None,
    command: str,
    progress: Progress,
) -> Manifest:
    spec = run.record.config.preprocessing
    head = head_of(run)
    steps = 5
    progress("exporting", 0, steps)
    bank_path = scratch / "bank.safetensors"
    tensors = dict(run.fitted.tensors)
    if isinstance(head, PatchcoreHead):
        bank = np.asarray(tensors["bank"], np.float32)
        tensors["norms"] = np.einsum("md,md->m", bank, bank)
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    bank_path.write_bytes(safetensors.numpy.save(arrays))
    features = export_features(run.features, spec.size, max_batch)
    progress("exporting", 1, steps)
    score = append_head(features, head, BankFile(bank_path), spec.size, max_batch)
    graphs = {}
    for name, model in (("features", features), ("score", score)):
        graphs[name] = _described(max_batch, name, model)
        onnx.save(model, scratch / f"{name}.onnx")
        onnx.checker.check_model(str(scratch / f"{name}.onnx"), full_check=True)
    progress("exporting", 2, steps)

    manifest = Manifest(
        name=out.name.removesuffix(".flaw"),
        kind="score",
        method="patchcore" if isinstance(head, PatchcoreHead) else "padim",
        flawscope=flawscope.__version__,
        input=spec,
        max_batch=max_batch,
        graphs=graphs,
        bank=bank_path.name,
        head=head,
        golden=(),
        provenance=_provenance(run, command),
        files={},
    )
    sources: dict[str, Path | bytes] = {
        "features.onnx": scratch / "features.onnx",
        "score.onnx": scratch / "score.onnx",
        "bank.safetensors": bank_path,
        "images.json": msgspec.json.encode({"training": run.record.training, "held_out": run.record.held_out}),
    }
    # The gate runs on a bundle as it will ship, not on its parts.
    write_bundle(scratch / "candidate", manifest, sources)
    images = [prepare(decode_image(data, name), spec) for name, data in samples]
    progress("exporting", 3, steps)
    with open_bundle(scratch / "candidate") as candidate:
        parity, golden = _gate(run, head, candidate, images, samples)
    progress("exporting", 4, steps)
    final = msgspec.structs.replace(
        manifest, golden=tuple(entry for entry, _ in golden), evidence=Evidence(parity=parity)
    )
    sources |= {entry.file: data for entry, data in golden}
    if wanted is not None and wanted.precisions:
        pictures = read_pictures(wanted, final, run.record.training, progress)
        found = {}
        for name in wanted.precisions:
            found[name], added = add_precision(
                name, final, sources, arrays, scratch, pictures, wanted, partial(_described, max_batch), progress
            )
            sources |= added
        final = msgspec.structs.replace(final, precisions=found)
    written = write_bundle(out, final, sources)
    progress("exporting", 5, steps)
    return written


def head_of(run: Run) -> Head:
    """Return the head that scores what a run has fitted."""
    config = run.record.config
    if isinstance(config, PatchcoreConfig):
        return PatchcoreHead(run.record.grid, config.neighbors, config.reweight, config.sigma)
    return PadimHead(run.record.grid, config.sigma)


def _gate(
    run: Run, head: Head, candidate: Bundle, images: list[UInt8Array], samples: list[tuple[str, bytes]]
) -> tuple[tuple[Parity, ...], list[tuple[Golden, bytes]]]:
    """Measure torch ↔ graph and graph ↔ native path; return the evidence and the golden images."""
    spec = candidate.manifest.input
    expected = torch_scores(run.features, head, run.fitted.tensors, spec.size, images)
    graph = _scores(Inspector(candidate, "cpu", "graph"), images)
    kernel = _scores(Inspector(candidate, "cpu", "kernel"), images)
    least = ZERO_SHARE * distance_scale(head, candidate.tensors())
    parity = (
        measure_parity("torch", "score.onnx, cpu", expected, graph, least),
        measure_parity("score.onnx, cpu", "features.onnx + kernel, cpu", graph, kernel, least),
    )
    check_parity(parity)
    golden = []
    for index, (_, data) in enumerate(samples[:_GOLDEN]):
        entry = Golden(f"golden/{index:03d}.png", float(graph[1][index]), float(graph[0][index].max()))
        golden.append((entry, data))
    return parity, golden


def _scores(
    inspector: Inspector, images: list[UInt8Array]
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    maps, scores = zip(*(inspector.infer(image[None]) for image in images), strict=True)
    return np.concatenate(maps), np.concatenate(scores)


def _check_standard(model: onnx.ModelProto, name: str) -> None:
    foreign = sorted({node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise RunError(
            f"export: {name}.onnx would need operators outside standard ONNX ({', '.join(foreign) or 'functions'}). "
            "Choose another backbone."
        )


def _described(max_batch: int, name: str, model: onnx.ModelProto) -> Graph:
    """Return what the manifest says of a graph whose operators are standard and whose tensors fit."""
    _check_standard(model, name)
    proof = prove_sizes(model, max_batch)
    return Graph(
        file=f"{name}.onnx",
        outputs=tuple(output.name for output in model.graph.output),
        largest_tensor=proof.largest_tensor,
        largest_elements=proof.largest_elements,
        peak_bytes=proof.peak_bytes,
    )


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
        config=msgspec.to_builtins(record.config),
        weights=f"{record.backbone.name}: {record.backbone.weights}; licence: {record.backbone.licence}",
        images="images.json",
    )
