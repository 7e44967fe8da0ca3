"""The `Exporter` protocol of detectors, and the exporter of a run, as the table of methods names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import onnx

from flawscope import methods
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Graph, Head, Upkeep
from flawscope.errors import ArgumentError
from flawscope.export.detectors.head_nodes import BankFile
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


class ReducibleHead(Protocol):
    """Face of a method whose features can be computed in reduced precision; its head follows them in FP32."""

    def score_graph(
        self, features: onnx.ModelProto, head: Any, bank: BankFile, size: tuple[int, int], max_batch: int
    ) -> onnx.ModelProto:
        """Return the complete graph: features, then the head; see `flawscope.export.detectors.head_nodes`."""


class Exporter(Protocol):
    """Turns the run of a detector into graphs, and computes the reference for them in torch.

    Attributes:
        graph_words: Name of the graphs in the evidence of a bundle.
        other_paths: Paths beside `graph` that must give the same scores.
        traced: Outputs of the module, where one traced graph is compared by `flawscope explain`; None where there are
            several graphs.
        reducible: Appends the head to features in reduced precision; None where the method has FP32 alone.
    """

    graph_words: str
    other_paths: tuple[str, ...]
    traced: tuple[str, ...] | None
    reducible: ReducibleHead | None

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
