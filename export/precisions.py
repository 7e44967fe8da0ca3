"""Reduced precisions: converted from the exported features, checked by the acceptance gate, added to the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from flawscope import methods
from flawscope.arrays import UInt8Array
from flawscope.bundle import (
    Gate,
    Golden,
    Graph,
    Manifest,
    Precision,
    head_tag,
    open_bundle,
    write_bundle,
)
from flawscope.calibration.quantization.gate_limits import LIMITS, Limits, Method, failures
from flawscope.calibration.quantization.modelopt import find_python
from flawscope.calibration.quantization.precision_gate import measure_gate
from flawscope.calibration.quantization.reduced_precision import FP16_IMAGES, quantize_to_int8, reduce_to_fp16
from flawscope.datasets import Dataset, Sample, hash_contents
from flawscope.errors import ArgumentError, DataError, GateError
from flawscope.export.detectors.head_nodes import BankFile
from flawscope.export.exporter import ReducibleHead, exporter_named
from flawscope.imaging.images import decode_image, prepare
from flawscope.imaging.tiles import ImageSource, read_source
from flawscope.progress import Progress, no_progress
from flawscope.runtime import Inspector
from flawscope.training.loop.image_batches import image_sources

_MOST_CALIBRATION, _MOST_GOOD = 64, 128
"""Images for value ranges, and for the gate."""


@dataclass(frozen=True)
class Wanted:
    """Which precisions a bundle shall have, and from what they are made and judged.

    Attributes:
        precisions: Names, without `fp32`.
        calibration: Dataset whose normal images give value ranges and go through the gate.
        labelled: Dataset whose test images go through the gate as well, or None.
        method: How value ranges are found.
        limits: Precision -> what it may do; `LIMITS` where one is missing.
        int8_rest: What operators that are not in INT8 compute in, `fp32` or `fp16`.
        modelopt_python: Interpreter with ModelOpt, for FP16; see `find_python` in
            `flawscope.calibration.quantization.modelopt`.
    """

    precisions: tuple[str, ...]
    calibration: Dataset
    labelled: Dataset | None = None
    method: Method = "percentile"
    limits: Mapping[str, Limits] = field(default_factory=dict)
    int8_rest: Literal["fp32", "fp16"] = "fp32"
    modelopt_python: Path | None = None

    def check(self) -> None:
        """Raise ArgumentError unless every precision can be made and every limit can be kept."""
        for name in self.precisions:
            if name not in LIMITS:
                raise ArgumentError(f"precision: expected fp32, {' or '.join(LIMITS)}, got {name!r}.")
            self.limits.get(name, LIMITS[name]).check()
        if "fp16" in self.precisions or ("int8" in self.precisions and self.int8_rest == "fp16"):
            find_python(self.modelopt_python)


class PrecisionRefused(GateError):
    """A precision is outside its limits; `gate` has the figures."""

    def __init__(self, precision: str, gate: Gate, reasons: Sequence[str]) -> None:
        self.precision, self.gate = precision, gate
        super().__init__(
            f"{precision}: expected figures within the limits of the gate, got: {'; '.join(reasons)}. No bundle was "
            "written. Export without it, or allow more."
        )


@dataclass(frozen=True)
class GateImages:
    """Prepared images, each uint8 [H, W, 3]: for value ranges, for the gate; and the labelled ones as samples."""

    calibration: tuple[UInt8Array, ...]
    good: tuple[UInt8Array, ...]
    labelled: tuple[Sample, ...]


def read_images(wanted: Wanted, manifest: Manifest, learned: Sequence[str], progress: Progress) -> GateImages:
    """Choose and read the images: ranges from those the detector has learned, the gate on those it has not.

    Args:
        wanted: The datasets.
        manifest: Says how images are prepared.
        learned: Content hashes of the images in the bank.
        progress: Told how many are read.

    Raises:
        DataError: If the dataset has no normal image that the detector has not learned.
    """
    samples = wanted.calibration.train_good
    contents = hash_contents([sample.path for sample in samples], lambda done, total: None)
    known = frozenset(learned)
    unseen = [sample for sample in samples if contents[sample.path] not in known]
    seen = [sample for sample in samples if contents[sample.path] in known]
    if not unseen:
        raise DataError(
            f"{wanted.calibration.root}: expected normal images that the detector has not learned from, for the gate; "
            f"got none among {len(samples)}. Keep some out of training (--set held_out=0.2), or name another set."
        )
    chosen = tuple(
        _spread(image_sources(part, manifest.tiling), most)
        for part, most in ((seen or unseen, _MOST_CALIBRATION), (unseen, _MOST_GOOD))
    )
    total, done = len(chosen[0]) + len(chosen[1]), 0
    read: tuple[list[UInt8Array], list[UInt8Array]] = ([], [])
    for group, into in zip(chosen, read, strict=True):
        for image in group:
            into.append(prepare(read_source(image), manifest.input))
            progress("Reading images", done := done + 1, total)
    labelled = wanted.labelled.test if wanted.labelled is not None else ()
    return GateImages(tuple(read[0]), tuple(read[1]), labelled)


def add_precision(
    name: str,
    manifest: Manifest,
    sources: Mapping[str, Path | bytes],
    tensors: Mapping[str, npt.NDArray[Any]],
    scratch: Path,
    images: GateImages,
    wanted: Wanted,
    describe: Any,
    progress: Progress = no_progress,
) -> tuple[Precision, dict[str, Path | bytes]]:
    """Convert to a reduced precision and run the acceptance gate.

    Args:
        name: `fp16` or `int8`.
        manifest: The bundle's manifest in FP32, golden images included.
        sources: What the FP32 bundle consists of.
        tensors: The bank.
        scratch: Folder with `features.onnx` and the bank; the new graphs are written there.
        images: See `read_images`.
        wanted: Method and limits.
        describe: Function (graph name, model) -> `Graph`, which also proves the sizes.
        progress: Told what is being done.

    Returns:
        What the manifest says of it, and the files to add.

    Raises:
        PrecisionRefused: If it is outside the limits.
    """
    head = manifest.head
    reducible = exporter_named(manifest.method).reducible
    assert reducible is not None, "refused before"
    limits = wanted.limits.get(name, LIMITS[name])
    features = scratch / "features.onnx"
    if name == "fp16":
        lowered = reduce_to_fp16(features, images.calibration, wanted.modelopt_python, progress)
    else:
        lowered = quantize_to_int8(
            features,
            methods.scorer_of(head_tag(head)).head(head, tensors, manifest.input.size),
            images.calibration,
            images.good,
            wanted.method,
            limits,
            wanted.int8_rest,
            wanted.modelopt_python,
            progress,
        )
    graphs, added = _write_graphs(name, lowered.model, reducible, manifest, scratch, describe)
    precision = Precision(
        graphs=graphs,
        golden=(),
        method=lowered.method,
        calibration_images=min(len(images.calibration), FP16_IMAGES if name == "fp16" else _MOST_CALIBRATION),
        quantised=lowered.lowered,
        kept=lowered.kept,
    )
    golden, gate = _judge(name, manifest, precision, {**sources, **added}, scratch, images, progress)
    if reasons := failures(gate, limits):
        raise PrecisionRefused(name, gate, reasons)
    return msgspec.structs.replace(precision, golden=golden, gate=gate), added


def _judge(
    name: str,
    manifest: Manifest,
    precision: Precision,
    sources: Mapping[str, Path | bytes],
    scratch: Path,
    images: GateImages,
    progress: Progress,
) -> tuple[tuple[Golden, ...], Gate]:
    """Measure the bundle as it would ship; return the golden scores and the figures."""
    folder = scratch / f"candidate-{name}"
    write_bundle(folder, msgspec.structs.replace(manifest, precisions={name: precision}), sources)
    with open_bundle(folder) as bundle:
        reference = Inspector(bundle, "cpu", "auto")
        candidate = Inspector(bundle, "cpu", "auto", name)
        gate = measure_gate(reference, candidate, images.good, images.labelled, progress)
        graph = Inspector(bundle, "cpu", "graph", name)
        golden = []
        for entry in manifest.golden:
            data = bundle.file(entry.file).read_bytes()
            maps, scores = graph.infer(prepare(decode_image(data, entry.file), manifest.input)[None])
            golden.append(Golden(entry.file, float(scores[0]), float(maps[0].max())))
    return tuple(golden), gate


def _write_graphs(
    name: str, features: onnx.ModelProto, reducible: ReducibleHead, manifest: Manifest, scratch: Path, describe: Any
) -> tuple[dict[str, Graph], dict[str, Path | bytes]]:
    assert manifest.bank is not None, "a head with a bank"
    bank = BankFile(scratch / manifest.bank)
    score = reducible.score_graph(features, manifest.head, bank, manifest.input.size, manifest.max_batch)
    graphs: dict[str, Graph] = {}
    added: dict[str, Path | bytes] = {}
    for graph, model in (("features", features), ("score", score)):
        file = f"{graph}.{name}.onnx"
        graphs[graph] = msgspec.structs.replace(describe(graph, model), file=file)
        onnx.save(model, scratch / file)
        onnx.checker.check_model(str(scratch / file), full_check=True)
        added[file] = scratch / file
    return graphs, added


def _spread(samples: Sequence[ImageSource], most: int) -> list[ImageSource]:
    """Return at most so many images, evenly spread: neighbours in a folder often show the same part."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(index)] for index in np.linspace(0, len(samples) - 1, most)]
