"""The export pipeline, top to bottom: run → graphs → size proof → parity gate → bundle."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy

import flawscope
from flawscope.arrays import UInt8Array
from flawscope.bundle import (
    IMAGE_HASHES,
    Bundle,
    DdadHead,
    DsadHead,
    Evidence,
    Golden,
    Graph,
    Head,
    ImageHashes,
    Manifest,
    PadimHead,
    Parity,
    PatchcoreHead,
    Provenance,
    StfpmHead,
    external_data,
    head_tag,
    open_bundle,
    write_bundle,
)
from flawscope.config import DdadConfig, PadimConfig, PatchcoreConfig, StfpmConfig, flatten
from flawscope.errors import ArgumentError, RunError
from flawscope.export.detectors.head_nodes import BankFile, append_head
from flawscope.export.detectors.reconstruction_graphs import reconstruction_graphs
from flawscope.export.detectors.reference_scores import network_scores, reconstruction_scores, torch_scores
from flawscope.export.graph_files import INLINE_LIMIT, describe_graph, write_graph
from flawscope.export.onnx_trace import export_module
from flawscope.export.parity import check_parity, measure_parity
from flawscope.export.precisions import Wanted, add_precision, read_pictures
from flawscope.files import check_replaceable, storage_errors
from flawscope.imaging.images import decode_image, prepare
from flawscope.progress import Progress, no_progress
from flawscope.runtime import Inspector
from flawscope.runtime.scorers.base import scorer_kind
from flawscope.training.detectors.detector_run import Run, read_run
from flawscope.training.detectors.stfpm import StfpmNetwork
from flawscope.training.diffusion.torch_reconstruction import Reconstruction
from flawscope.training.features.patch_features import PatchFeatures
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
    if wanted is not None and wanted.precisions and not isinstance(run.module, PatchFeatures):
        raise ArgumentError(
            f"--precision {wanted.precisions[0]}: expected a run of patchcore or padim, got one without a bank, which "
            "has FP32 alone. Leave it out."
        )
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
    steps = 5
    progress("exporting", 0, steps)
    images = [prepare(decode_image(data, name), spec) for name, data in samples]
    head = head_of(run, images)
    progress("exporting", 1, steps)
    if isinstance(run.module, Reconstruction):
        made = _network_graphs(run.module, spec.size, scratch, max_batch)
    elif isinstance(run.module, StfpmNetwork):
        made = _network_graph(run.module, spec.size, scratch, max_batch)
    else:
        made = _bank_graphs(run, run.module, head, scratch, max_batch)
    progress("exporting", 2, steps)

    manifest = Manifest(
        name=out.name.removesuffix(".flaw"),
        kind="score",
        method=head_tag(head),
        flawscope=flawscope.__version__,
        input=spec,
        tiling=run.record.config.tiling,
        max_batch=max_batch,
        graphs=made.graphs,
        bank=made.bank,
        head=head,
        golden=(),
        provenance=_provenance(run, command),
        files={},
    )
    sources: dict[str, Path | bytes] = {
        **{graph.file: scratch / graph.file for graph in made.graphs.values()},
        **{path.name: path for path in scratch.glob(external_data("*.onnx"))},
        **({} if made.bank is None else {made.bank: scratch / made.bank}),
        IMAGE_HASHES: ImageHashes(run.record.training, run.record.held_out).encode(),
    }
    # The gate runs on a bundle as it will ship, not on its parts.
    write_bundle(scratch / "candidate", manifest, sources)
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
                name,
                final,
                sources,
                made.arrays,
                scratch,
                pictures,
                wanted,
                partial(describe_graph, max_batch),
                progress,
            )
            sources |= added
        final = msgspec.structs.replace(final, precisions=found)
    written = write_bundle(out, final, sources)
    progress("exporting", 5, steps)
    return written


@dataclass(frozen=True)
class _Made:
    """Graphs in the scratch folder, with the bank they refer to."""

    graphs: dict[str, Graph]
    bank: str | None
    arrays: dict[str, npt.NDArray[Any]]


def _bank_graphs(run: Run, module: PatchFeatures, head: Head, scratch: Path, max_batch: int) -> _Made:
    """Write the bank, `features.onnx`, and `score.onnx` with the head written node by node."""
    assert isinstance(head, PatchcoreHead | PadimHead)
    size = run.record.config.preprocessing.size
    bank_path = scratch / "bank.safetensors"
    tensors = dict(run.fitted.tensors)
    if isinstance(head, PatchcoreHead):
        bank = np.asarray(tensors["bank"], np.float32)
        tensors["norms"] = np.einsum("md,md->m", bank, bank)
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    bank_path.write_bytes(safetensors.numpy.save(arrays))
    features = export_module(module, size, max_batch)
    score = append_head(features, head, BankFile(bank_path), size, max_batch)
    graphs = {
        name: write_graph(max_batch, name, model, scratch, INLINE_LIMIT)
        for name, model in (("features", features), ("score", score))
    }
    return _Made(graphs, bank_path.name, arrays)


def _network_graph(module: StfpmNetwork, size: tuple[int, int], scratch: Path, max_batch: int) -> _Made:
    """Write `score.onnx` of a network that makes map and score itself."""
    model = export_module(module, size, max_batch, ("anomaly_map", "score"))
    return _Made({"score": write_graph(max_batch, "score", model, scratch, INLINE_LIMIT)}, None, {})


def _network_graphs(reconstruction: Reconstruction, size: tuple[int, int], scratch: Path, max_batch: int) -> _Made:
    """Write the graphs of a detector that reconstructs, and the noise of its sampling."""
    noise = scratch / "noise.safetensors"
    noise.write_bytes(safetensors.numpy.save({"noise": np.ascontiguousarray(reconstruction.noise)}))
    graphs = {
        name: write_graph(max_batch, name, model, scratch, INLINE_LIMIT)
        for name, model in reconstruction_graphs(reconstruction, size, max_batch)
    }
    return _Made(graphs, noise.name, {})


def head_of(run: Run, images: Sequence[UInt8Array]) -> Head:
    """Return the head that scores what a run has fitted; `images` are its prepared sample pictures."""
    config = run.record.config
    if isinstance(config, StfpmConfig):
        assert isinstance(run.module, StfpmNetwork)
        return StfpmHead(config.maps.sigma, float(network_scores(run.module, images)[1].mean()))
    if isinstance(run.module, Reconstruction):
        scale = float(reconstruction_scores(run.module, images)[1].mean())
        if isinstance(config, DdadConfig):
            return DdadHead(run.module.sampling, run.module.rule, scale)
        edges: Literal["canny", "none"] = "canny" if run.module.networks.edges else "none"
        return DsadHead(run.module.sampling, run.module.rule, scale, edges)
    if isinstance(config, PatchcoreConfig):
        return PatchcoreHead(run.record.grid, config.neighbors, config.reweight, config.maps.sigma)
    assert isinstance(config, PadimConfig), "an autoencoder is refused before"
    return PadimHead(run.record.grid, config.maps.sigma)


def _gate(
    run: Run, head: Head, candidate: Bundle, images: list[UInt8Array], samples: list[tuple[str, bytes]]
) -> tuple[tuple[Parity, ...], list[tuple[Golden, bytes]]]:
    """Measure torch ↔ graph and graph ↔ native path; return the evidence and the golden images."""
    spec = candidate.manifest.input
    graph = _scores(Inspector(candidate, "cpu", "graph"), images)
    least = scorer_kind(candidate).least_score(candidate)
    joined: tuple[Parity, ...]
    graph_name = "denoise.onnx and the others, cpu" if isinstance(run.module, Reconstruction) else "score.onnx, cpu"
    if isinstance(run.module, PatchFeatures):
        assert isinstance(head, PatchcoreHead | PadimHead)
        expected = torch_scores(run.module, head, run.fitted.tensors, spec.size, images)
        kernel = _scores(Inspector(candidate, "cpu", "kernel"), images)
        joined = (measure_parity(graph_name, "features.onnx + kernel, cpu", graph, kernel, least),)
    elif isinstance(run.module, Reconstruction):
        expected, joined = reconstruction_scores(run.module, images), ()
    else:
        expected, joined = network_scores(run.module, images), ()
    parity = (measure_parity("torch", graph_name, expected, graph, least), *joined)
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
    )
