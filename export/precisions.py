"""Reduced precisions: converted from the exported graphs, checked by the acceptance gate, added to the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from flawscope.arrays import UInt8Array
from flawscope.bundle import (
    COMPUTED,
    Gate,
    Golden,
    Graph,
    Manifest,
    Precision,
    open_bundle,
    write_bundle,
)
from flawscope.calibration.quantization.gate_limits import LIMITS, Limits, Method, failures
from flawscope.calibration.quantization.modelopt import find_python
from flawscope.calibration.quantization.operator_choice import Budget
from flawscope.calibration.quantization.precision_gate import measure_gate
from flawscope.calibration.quantization.reduced_precision import FP16_IMAGES, quantize_to_int8, reduce_to_fp16
from flawscope.datasets import Dataset, Sample, as_recorded, hash_contents
from flawscope.errors import ArgumentError, BackendError, BundleError, DataError, GateError
from flawscope.export.exporter import Reducible, exporter_named
from flawscope.imaging.images import prepare
from flawscope.imaging.tiles import ImageSource, read_source
from flawscope.progress import Progress, no_progress
from flawscope.runtime import Inspector
from flawscope.runtime.backends import choose_backend
from flawscope.runtime.backends.table import backend_problem, is_there, precision_problem
from flawscope.runtime.scorers.golden import measured_golden
from flawscope.training.loop.image_batches import image_sources

_MOST_CALIBRATION, _MOST_NORMAL = 64, 128
"""Most images for value ranges, and most normal images for the gate."""

GATE_BACKENDS = {"fp16": ("cpu", "openvino"), "bf16": ("openvino",), "int8": ("cpu", "openvino")}
"""Precision -> the backends that it is gated on, where they are there and compute in it."""


@dataclass(frozen=True)
class Wanted:
    """The precisions a bundle shall have beside FP32, and the data for their value ranges and gate.

    Attributes:
        precisions: Names, without `fp32`.
        calibration: Dataset whose normal images give value ranges and go through the gate.
        labelled: Dataset whose test images go through the gate as well, or None.
        method: How value ranges are chosen.
        limits: Precision -> limits of its gate; `LIMITS` where one is missing.
        int8_rest: Precision of the operators that are not in INT8, `fp32` or `fp16`.
        modelopt_python: Interpreter with ModelOpt, for FP16; see `find_python` in
            `flawscope.calibration.quantization.modelopt`.
        backends: Backends of the gate; empty for those of `GATE_BACKENDS` that are here.
        int8_minutes: Budget of the search for operators in INT8; None for as long as it takes.
    """

    precisions: tuple[str, ...]
    calibration: Dataset
    labelled: Dataset | None = None
    method: Method = "percentile"
    limits: Mapping[str, Limits] = field(default_factory=dict)
    int8_rest: Literal["fp32", "fp16"] = "fp32"
    modelopt_python: Path | None = None
    backends: tuple[str, ...] = ()
    int8_minutes: float | None = None

    def backends_of(self, precision: str) -> tuple[str, ...]:
        """Return the backends that a precision is gated on: those that were named, or those that are here.

        Raises:
            ArgumentError: If one that was named does not compute in it.
            BackendError: If one that was named is not there, or does not compute the precision on this processor, or
                computes it wrong; or if none is left.
        """
        offered = GATE_BACKENDS[precision]
        named = tuple(name for name in offered if name in self.backends)
        if self.backends and not named:
            raise ArgumentError(
                f"--gate-backend: expected one that is gated in {precision} ({', '.join(offered)}), got "
                f"{', '.join(self.backends)}."
            )
        for name in named:
            choose_backend(name)
            if problem := precision_problem(name, precision):
                raise BackendError(
                    f"--gate-backend: expected one that computes {precision} right here, got {name}: {problem} Leave "
                    "it out, or export on another processor: see flawscope doctor."
                )
        # One that is there and computes it wrong is left out: bundles in this precision are refused on it here.
        taken = named or tuple(name for name in offered if is_there(name, precision))
        if not taken:
            problems = " ".join(f"{name}: {backend_problem(name, precision)}" for name in offered)
            raise BackendError(
                f"--precision {precision}: expected a backend that computes it here, got none. {problems} Leave it "
                "out, or export on another machine: see flawscope doctor."
            )
        return taken

    def check(self) -> None:
        """Raise ArgumentError if a precision is unknown, a limit out of range, or ModelOpt needed and missing.

        Raises:
            BackendError: If a backend that was named is not there.
        """
        Budget(self.int8_minutes)
        for name in self.precisions:
            if name not in LIMITS:
                raise ArgumentError(f"precision: expected fp32, {' or '.join(LIMITS)}, got {name!r}.")
            self.limits.get(name, LIMITS[name]).check()
            self.backends_of(name)
        if "fp16" in self.precisions or ("int8" in self.precisions and self.int8_rest == "fp16"):
            find_python(self.modelopt_python)


class PrecisionRefused(GateError):
    """A precision is outside the limits of its gate on a backend; `gates` has the figures of all of them."""

    def __init__(self, precision: str, gates: Sequence[Gate], reasons: Mapping[str, Sequence[str]]) -> None:
        self.precision, self.gates = precision, tuple(gates)
        told = "; ".join(f"on {backend}: {'; '.join(phrases)}" for backend, phrases in reasons.items() if phrases)
        super().__init__(
            f"{precision}: expected figures within the limits of the gate, got {told}. No bundle was written. Export "
            "without it, raise the limits, or name the backends that it is for (--gate-backend)."
        )


@dataclass(frozen=True)
class GateImages:
    """Images of the gate.

    Attributes:
        calibration: Prepared images for value ranges, each uint8 [H, W, 3].
        good: Prepared normal images that the detector has not learned, each uint8 [H, W, 3].
        labelled: Labelled samples that the detector has not learned, read when the gate needs them.
    """

    calibration: tuple[UInt8Array, ...]
    good: tuple[UInt8Array, ...]
    labelled: tuple[Sample, ...]


def read_images(wanted: Wanted, manifest: Manifest, learned: Sequence[str], progress: Progress) -> GateImages:
    """Choose and read the images: value ranges from those the detector has learned, the gate on those it has not.

    Args:
        wanted: The datasets.
        manifest: Has the preprocessing and tiling.
        learned: Content hashes of the images the detector has learned.
        progress: Told how many are read.

    Raises:
        DataError: If the dataset has no normal image that the detector has not learned, or fewer than the gate needs;
            or if all of the test images have been learned.
    """
    samples = wanted.calibration.train_good
    # By content, not by path: a copy of a learned image under another name must not count as new.
    learned_hashes = frozenset(learned)
    hashes = as_recorded(hash_contents([sample.path for sample in samples]), learned_hashes)
    unseen = [sample for sample in samples if hashes[sample.path] not in learned_hashes]
    seen = [sample for sample in samples if hashes[sample.path] in learned_hashes]
    if not unseen:
        raise DataError(
            f"{wanted.calibration.root}: expected normal images that the detector has not learned from, for the gate; "
            f"got none among {len(samples)}. Keep some out of training (--set held_out=0.2), or name another set."
        )
    least = max(wanted.limits.get(name, LIMITS[name]).images for name in wanted.precisions)
    if len(unseen) < least:
        raise DataError(
            f"{wanted.calibration.root}: expected at least {least} normal images that the detector has not learned "
            f"from, for the gate, got {len(unseen)}: one of so few is {1 / len(unseen):.0%}. Add images, or lower "
            "--min-gate-images."
        )
    chosen = tuple(
        _spread(image_sources(part, manifest.tiling), most)
        for part, most in ((seen or unseen, _MOST_CALIBRATION), (unseen, _MOST_NORMAL))
    )
    # Read once and held: the gate scores them with several candidates.
    total, count = len(chosen[0]) + len(chosen[1]), 0
    groups: tuple[list[UInt8Array], list[UInt8Array]] = ([], [])
    for sources, images in zip(chosen, groups, strict=True):
        for source in sources:
            images.append(prepare(read_source(source, manifest.input.bits), manifest.input))
            progress("Reading images", count := count + 1, total)
    return GateImages(tuple(groups[0]), tuple(groups[1]), _unseen_labelled(wanted, learned_hashes))


def _unseen_labelled(wanted: Wanted, learned: frozenset[str]) -> tuple[Sample, ...]:
    """Return the test images that the detector has not learned: the gate's AUROC goes into the bundle."""
    if wanted.labelled is None:
        return ()
    samples = wanted.labelled.test
    hashes = as_recorded(hash_contents([sample.path for sample in samples]), learned)
    kept = tuple(sample for sample in samples if hashes[sample.path] not in learned)
    if samples and not kept:
        raise DataError(
            f"{wanted.labelled.root}: expected test images that the detector has not learned from, for the gate, got "
            f"none among {len(samples)}. Name another set."
        )
    return kept


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
        name: `fp16`, `bf16` or `int8`.
        manifest: The bundle's manifest in FP32, golden images included.
        sources: Files of the FP32 bundle, and of precisions added before.
        tensors: The tensors in the file of the memory bank.
        scratch: Folder with the graphs, the bank, and the bundle in FP32 (`candidate`); new graphs are written there.
        images: Of `read_images`.
        wanted: Method and limits.
        describe: `(graph name, model) -> Graph`; it also checks the sizes.
        progress: Told what is being done.

    Returns:
        Its entry for the manifest, and the files to add.

    Raises:
        PrecisionRefused: If it is outside its limits.
    """
    limits, backends = wanted.limits.get(name, LIMITS[name]), wanted.backends_of(name)
    added: dict[str, Path | bytes] = {}
    if name in COMPUTED:
        method = f"the graphs of FP32, computed in {name.upper()} by the backend"
        precision = Precision(dict(manifest.graphs), (), method, calibration_images=0, quantised=0, kept=())
    else:
        precision, added = _converted(name, manifest, tensors, scratch, images, wanted, describe, progress)
    files = {**sources, **added}
    golden, gates = _run_gate(name, manifest, precision, files, scratch, images, backends, progress)
    reasons = {gate.backend: failures(gate, limits) for gate in gates}
    if any(reasons.values()):
        raise PrecisionRefused(name, gates, reasons)
    gated = msgspec.structs.replace(_with_golden(precision, golden), gate=gates[0], gates=gates[1:] or msgspec.UNSET)
    return gated, added


def _converted(
    name: str,
    manifest: Manifest,
    tensors: Mapping[str, npt.NDArray[Any]],
    scratch: Path,
    images: GateImages,
    wanted: Wanted,
    describe: Any,
    progress: Progress,
) -> tuple[Precision, dict[str, Path | bytes]]:
    """Return the entry of a precision with graphs of its own, before its gate, and their files; see `add_precision`."""
    reducible = exporter_named(manifest.method).reducible
    assert reducible is not None, "export_run refuses such methods"
    assert name in reducible.precisions, "export_run refuses such precisions"
    graph = scratch / f"{reducible.converted}.onnx"
    if name == "fp16":
        inputs = reducible.examples(scratch / "candidate", images.calibration[:FP16_IMAGES])
        converted = reduce_to_fp16(graph, inputs, wanted.modelopt_python, progress, reducible.networks)
    else:
        # Its search for sensitive operators scores images, so it needs the head and the images of the gate.
        converted = quantize_to_int8(
            graph,
            reducible.score_head(manifest, tensors),
            images.calibration,
            images.good,
            wanted.method,
            wanted.limits.get(name, LIMITS[name]),
            wanted.int8_rest,
            wanted.modelopt_python,
            progress,
            reducible.networks,
            wanted.backends_of(name),
            wanted.int8_minutes,
        )
    graphs, added = _write_graphs(name, converted.model, reducible, manifest, scratch, describe)
    return Precision(
        graphs=graphs,
        golden=(),
        method=converted.method,
        calibration_images=min(len(images.calibration), FP16_IMAGES if name == "fp16" else _MOST_CALIBRATION),
        quantised=converted.lowered,
        kept=converted.kept,
    ), added


def _run_gate(
    name: str,
    manifest: Manifest,
    precision: Precision,
    sources: Mapping[str, Path | bytes],
    scratch: Path,
    images: GateImages,
    backends: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, tuple[Golden, ...]], tuple[Gate, ...]]:
    """Measure the bundle as it would ship; return the golden scores of each backend, and the gate's figures on each.

    The first of the golden scores are those that hold where a backend has none of its own.
    """
    folder = scratch / f"candidate-{name}"
    write_bundle(folder, msgspec.structs.replace(manifest, precisions={name: precision}), sources)
    gates: list[Gate] = []
    golden: dict[str, tuple[Golden, ...]] = {}
    if is_there("cpu", name):
        with open_bundle(folder) as bundle:
            # The whole graph, as in FP32: the path that every backend has.
            graph = Inspector(bundle, "cpu", "graph", name, is_candidate=True)
            golden["cpu"] = measured_golden(bundle, graph.scorer, manifest.golden)
    for backend in backends:
        with open_bundle(folder) as bundle:
            # `auto`: the figures are those of the path that is used on a CPU. Each backend against itself in FP32.
            reference = Inspector(bundle, backend, "auto")
            candidate = Inspector(bundle, backend, "auto", name, is_candidate=True)
            gates.append(measure_gate(reference, candidate, images.good, images.labelled, progress))
            if backend != "cpu":
                golden[backend] = measured_golden(bundle, candidate.scorer, manifest.golden)
    whole = _with_golden(precision, golden)
    write_bundle(scratch / f"golden-{name}", msgspec.structs.replace(manifest, precisions={name: whole}), sources)
    for backend in backends:
        try:
            # As it will be loaded.
            Inspector.load(scratch / f"golden-{name}", backend, "auto", name).close()
        except BundleError as err:
            raise GateError(
                f"{name}: expected golden scores that {backend} reproduces, got another score: {err} Name the backends "
                "that it is for (--gate-backend)."
            ) from err
    return golden, tuple(gates)


def _with_golden(precision: Precision, golden: Mapping[str, tuple[Golden, ...]]) -> Precision:
    """Return the entry of a precision with its golden scores: the first for all that have none of their own."""
    first, *others = golden
    own = {backend: golden[backend] for backend in others}
    return msgspec.structs.replace(precision, golden=golden[first], golden_on=own or msgspec.UNSET)


def _write_graphs(
    name: str, model: onnx.ModelProto, reducible: Reducible, manifest: Manifest, scratch: Path, describe: Any
) -> tuple[dict[str, Graph], dict[str, Path | bytes]]:
    """Write the graphs of a precision; those that do not change are the files of FP32."""
    graphs = dict(manifest.graphs)
    added: dict[str, Path | bytes] = {}
    for graph_name, reduced in reducible.reduced_graphs(model, manifest, scratch).items():
        if name == "fp16":
            # AutoCast gives different sizes the same symbolic name (those of a UNet), and ONNX Runtime then puts both
            # tensors into one buffer. Without value_info, shapes are inferred anew.
            del reduced.graph.value_info[:]
        file = f"{graph_name}.{name}.onnx"
        graphs[graph_name] = msgspec.structs.replace(describe(graph_name, reduced), file=file)
        onnx.save(reduced, scratch / file)
        onnx.checker.check_model(str(scratch / file), full_check=True)
        added[file] = scratch / file
    return graphs, added


def _spread(samples: Sequence[ImageSource], most: int) -> list[ImageSource]:
    """Return at most `most` images, evenly spread: neighbours in a folder often show the same part."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(index)] for index in np.linspace(0, len(samples) - 1, most)]
