"""Precisions beside FP32: made from the exported features, gated through the runtime, and added to the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from flawscope.bundle import Gate, Golden, Graph, Head, KeptNode, Manifest, Precision, open_bundle, write_bundle
from flawscope.calibration.gate import measure_gate
from flawscope.calibration.int8 import Quantiser, fewest_kept
from flawscope.calibration.limits import LIMITS, Limits, Method, failures
from flawscope.datasets import Dataset, Sample, hash_contents
from flawscope.errors import ArgumentError, DataError, GateError
from flawscope.export.head import BankFile, append_head
from flawscope.images import UInt8Array, decode_image, prepare, read_image
from flawscope.runtime import Inspector
from flawscope.runtime.backends.ort import import_onnxruntime
from flawscope.runtime.heads import build_head
from flawscope.training.loading import Progress, no_progress

_MOST_CALIBRATION, _MOST_GOOD, _SENSITIVITY = 64, 128, 8
"""Pictures for value ranges, for the gate, and for the sensitivity of operators."""


@dataclass(frozen=True)
class Wanted:
    """Which precisions a bundle shall have, and from what they are made and judged.

    Attributes:
        precisions: Names, without `fp32`.
        calibration: Dataset whose good pictures give value ranges and go through the gate.
        labelled: Dataset whose test pictures go through the gate as well, or None.
        method: How value ranges are found.
        limits: Precision -> what it may do; `LIMITS` where one is missing.
    """

    precisions: tuple[str, ...]
    calibration: Dataset
    labelled: Dataset | None = None
    method: Method = "percentile"
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ArgumentError unless every precision can be made and every limit can be kept."""
        for name in self.precisions:
            if name != "int8":
                raise ArgumentError(f"precision: expected fp32 or int8, got {name!r}.")
            self.limits.get(name, LIMITS[name]).check()


class PrecisionRefused(GateError):
    """A precision is outside its limits; `gate` has the figures."""

    def __init__(self, precision: str, gate: Gate, reasons: Sequence[str]) -> None:
        self.precision, self.gate = precision, gate
        super().__init__(
            f"{precision}: expected figures within the limits of the gate, got: {'; '.join(reasons)}. No bundle was "
            "written. Export without it, or allow more."
        )


@dataclass(frozen=True)
class Pictures:
    """Prepared pictures, each uint8 [H, W, 3]: for value ranges, for the gate; and the labelled ones as samples."""

    calibration: tuple[UInt8Array, ...]
    good: tuple[UInt8Array, ...]
    labelled: tuple[Sample, ...]


def read_pictures(wanted: Wanted, manifest: Manifest, learned: Sequence[str], progress: Progress) -> Pictures:
    """Choose and read the pictures: ranges from those the detector has learned, the gate on those it has not.

    Args:
        wanted: The datasets.
        manifest: Says how pictures are prepared.
        learned: Content hashes of the pictures in the bank.
        progress: Told how many are read.

    Raises:
        DataError: If the dataset has no good picture that the detector has not learned.
    """
    samples = wanted.calibration.train_good
    contents = hash_contents([sample.path for sample in samples], lambda done, total: None)
    known = frozenset(learned)
    unseen = [sample for sample in samples if contents[sample.path] not in known]
    seen = [sample for sample in samples if contents[sample.path] in known]
    if not unseen:
        raise DataError(
            f"{wanted.calibration.root}: expected good pictures that the detector has not learned from, for the gate; "
            f"got none among {len(samples)}. Keep some out of training (--set held_out=0.2), or name another set."
        )
    chosen = _spread(seen or unseen, _MOST_CALIBRATION), _spread(unseen, _MOST_GOOD)
    total, done = len(chosen[0]) + len(chosen[1]), 0
    read: tuple[list[UInt8Array], list[UInt8Array]] = ([], [])
    for group, into in zip(chosen, read, strict=True):
        for sample in group:
            into.append(prepare(read_image(sample.path), manifest.input))
            progress("Reading pictures", done := done + 1, total)
    labelled = wanted.labelled.test if wanted.labelled is not None else ()
    return Pictures(tuple(read[0]), tuple(read[1]), labelled)


def add_precision(
    name: str,
    manifest: Manifest,
    sources: Mapping[str, Path | bytes],
    tensors: Mapping[str, npt.NDArray[Any]],
    scratch: Path,
    pictures: Pictures,
    wanted: Wanted,
    describe: Any,
    progress: Progress = no_progress,
) -> tuple[Precision, dict[str, Path | bytes]]:
    """Make a precision and let it through the gate.

    Args:
        name: `int8`.
        manifest: The bundle's manifest in FP32, golden pictures included.
        sources: What the FP32 bundle consists of.
        tensors: The bank.
        scratch: Folder with `features.onnx` and the bank; the new graphs are written there.
        pictures: See `read_pictures`.
        wanted: Method and limits.
        describe: Function (graph name, model) -> `Graph`, which also proves the sizes.
        progress: Told what is being done.

    Returns:
        What the manifest says of it, and the files to add.

    Raises:
        PrecisionRefused: If it is outside the limits.
    """
    limits = wanted.limits.get(name, LIMITS[name])
    features = scratch / "features.onnx"
    quantiser = Quantiser(
        features, pictures.calibration, wanted.method, lambda done, total: progress("Value ranges", done, total)
    )
    if not quantiser.operators:
        raise GateError(f"{name}: expected operators that can be quantised, got none in this backbone. Export without.")
    sensitivities = quantiser.sensitivities(
        pictures.calibration[:_SENSITIVITY], lambda done, total: progress("Sensitivity", done, total)
    )
    score = build_head(manifest.head, tensors, manifest.input.size)
    exact = _scores(onnx.load(features), score, pictures.good)

    def is_good(operators: list[str]) -> bool:
        moved = np.abs(_scores(quantiser.quantise(operators), score, pictures.good) - exact)
        return bool((moved <= limits.score_error * np.maximum(exact, 1e-12)).all())

    progress("Choosing operators", 0, 1)
    chosen, tries = fewest_kept(sensitivities, is_good)
    progress("Choosing operators", 1, 1)
    if not chosen:
        raise GateError(
            f"{name}: expected operators whose INT8 keeps the scores of good pictures within "
            f"{limits.score_error:.1%}, got none after {tries} tries. Export without it, or allow more."
        )
    graphs, added = _write_graphs(name, quantiser.quantise(chosen), manifest.head, manifest, scratch, describe)
    kept = tuple(
        KeptNode(node, quantiser.operators[node], f"quantised alone it moves the patches by {value:.2%}")
        for node, value in sensitivities.items()
        if node not in set(chosen)
    )
    precision = Precision(
        graphs=graphs,
        golden=(),
        method=f"{name}: explicit Q/DQ, symmetric, weights per channel, ranges by {wanted.method}",
        calibration_images=len(pictures.calibration),
        quantised=len(chosen),
        kept=kept,
    )
    golden, gate = _judge(name, manifest, precision, {**sources, **added}, scratch, pictures, progress)
    if reasons := failures(gate, limits):
        raise PrecisionRefused(name, gate, reasons)
    return msgspec.structs.replace(precision, golden=golden, gate=gate), added


def _judge(
    name: str,
    manifest: Manifest,
    precision: Precision,
    sources: Mapping[str, Path | bytes],
    scratch: Path,
    pictures: Pictures,
    progress: Progress,
) -> tuple[tuple[Golden, ...], Gate]:
    """Measure the bundle as it would ship; return the golden scores and the figures."""
    folder = scratch / f"candidate-{name}"
    write_bundle(folder, msgspec.structs.replace(manifest, precisions={name: precision}), sources)
    with open_bundle(folder) as bundle:
        reference = Inspector(bundle, "cpu", "auto")
        candidate = Inspector(bundle, "cpu", "auto", name)
        gate = measure_gate(reference, candidate, pictures.good, pictures.labelled, progress)
        graph = Inspector(bundle, "cpu", "graph", name)
        golden = []
        for entry in manifest.golden:
            data = bundle.file(entry.file).read_bytes()
            maps, scores = graph.infer(prepare(decode_image(data, entry.file), manifest.input)[None])
            golden.append(Golden(entry.file, float(scores[0]), float(maps[0].max())))
    return tuple(golden), gate


def _write_graphs(
    name: str, features: onnx.ModelProto, head: Head, manifest: Manifest, scratch: Path, describe: Any
) -> tuple[dict[str, Graph], dict[str, Path | bytes]]:
    bank = BankFile(scratch / manifest.bank)
    score = append_head(features, head, bank, manifest.input.size, manifest.max_batch)
    graphs: dict[str, Graph] = {}
    added: dict[str, Path | bytes] = {}
    for graph, model in (("features", features), ("score", score)):
        file = f"{graph}.{name}.onnx"
        graphs[graph] = msgspec.structs.replace(describe(graph, model), file=file)
        onnx.save(model, scratch / file)
        onnx.checker.check_model(str(scratch / file), full_check=True)
        added[file] = scratch / file
    return graphs, added


def _scores(model: onnx.ModelProto, score: Any, images: Sequence[UInt8Array]) -> npt.NDArray[np.float32]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [score(session.run(["patches"], {name: image[None]})[0])[1] for image in images]
    return np.concatenate(found)


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most so many samples, evenly spread: neighbours in a folder often show the same part."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(index)] for index in np.linspace(0, len(samples) - 1, most)]
