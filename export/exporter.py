"""The `Exporter` protocol of detectors, and the exporter of a run, as the table of methods names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import onnx

from flawscope import methods
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Graph, Head, Manifest, Upkeep
from flawscope.calibration.quantization.candidate_scores import Head as PatchHead
from flawscope.errors import ArgumentError
from flawscope.runs import RunRecord
from flawscope.training.detectors.detector_run import Run


@dataclass(frozen=True)
class ExportedGraphs:
    """Graphs in a scratch folder.

    Attributes:
        graphs: Name → entry of the manifest.
        bank: Name of the file with the tensors that graphs or runtime need, or None.
        arrays: The tensors in that file, without room, where a reduced precision needs them.
        upkeep: Rows in use, where the bank has room.
    """

    graphs: dict[str, Graph]
    bank: str | None = None
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    upkeep: Upkeep | None = None


class Reducible(Protocol):
    """Face of a method whose graphs can be computed in reduced precision.

    Attributes:
        converted: Name of the graph that is converted.
        precisions: Precisions that it may have.
        networks: Modules of that graph that are reduced, as the names of their operators begin; empty for all.
    """

    converted: str
    precisions: tuple[str, ...]
    networks: tuple[str, ...]

    def score_head(self, manifest: Manifest, tensors: Mapping[str, npt.NDArray[Any]]) -> PatchHead | None:
        """Return what makes scores of the converted graph's patches; None where the graph ends in the score."""

    def examples(self, bundle: Path, images: Sequence[UInt8Array]) -> dict[str, npt.NDArray[Any]]:
        """Return inputs of the converted graph for prepared images, as they come in use.

        Args:
            bundle: Folder of the bundle in FP32.
            images: Prepared normal images, each uint8 [H, W, 3].
        """

    def reduced_graphs(self, model: onnx.ModelProto, manifest: Manifest, scratch: Path) -> dict[str, onnx.ModelProto]:
        """Return name -> graph of all graphs of the precision that are not those of FP32.

        Args:
            model: The converted graph.
            manifest: The manifest in FP32.
            scratch: Folder with the file of the memory bank, if there is one.
        """


class Exporter(Protocol):
    """Turns the run of a detector into graphs, and computes the reference for them in torch.

    Attributes:
        graph_words: Name of the graphs in the evidence of a bundle.
        other_paths: Paths beside `graph` that must give the same scores.
        traced: Outputs of the module, where one traced graph is compared by `flawscope explain`; None where there are
            several graphs.
        reducible: How it gets reduced precisions; None where the method has FP32 alone.
    """

    graph_words: str
    other_paths: tuple[str, ...]
    traced: tuple[str, ...] | None
    reducible: Reducible | None

    def head(self, run: Run, images: Sequence[UInt8Array]) -> Head:
        """Return the head of the bundle; `images` are the run's prepared sample images, uint8 [H, W, 3]."""

    def graphs(self, run: Run, head: Any, scratch: Path, max_batch: int, room: int | None) -> ExportedGraphs:
        """Write the graphs.

        Args:
            run: The run.
            head: Of `head`.
            scratch: Folder to write to.
            max_batch: Largest batch.
            room: Rows of room in each memory bank; None for the default. Methods without such a bank have none.

        Raises:
            RunError: If torch cannot export a network, or a tensor would be too large.
        """

    def reference(self, run: Run, head: Any, images: Sequence[UInt8Array]) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N] by plain torch, the reference of the parity gate."""


def exporter_of(record: RunRecord) -> Exporter:
    """Return the exporter of a run.

    Raises:
        ArgumentError: If it is not the run of a detector, or one that has no exporter.
    """
    return exporter_named(str(type(record.config).__struct_config__.tag))


def exporter_named(method: str) -> Exporter:
    """Return the exporter of a detector by the method's name; see `exporter_of`."""
    row = methods.method(method)
    if row.kind != "detector" or row.exporter is None:
        raise ArgumentError(f"export: expected the run of a detector, got one of {method}.")
    # By name: exporters import torch and onnx, the table of methods may not.
    exporter: Exporter = methods.load(row.exporter)
    return exporter
