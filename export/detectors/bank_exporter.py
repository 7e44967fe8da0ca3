"""Export of PatchCore and PaDiM: the feature graph is traced, the head is appended to it node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from flawscope import methods
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bank_names import bank_names, norm_names
from flawscope.bundle import BankHead, Manifest, PatchcoreHead, Upkeep, with_room
from flawscope.errors import ArgumentError
from flawscope.export.detectors import head_nodes
from flawscope.export.detectors.head_nodes import BankFile
from flawscope.export.exporter import ExportedGraphs
from flawscope.export.graph_files import INLINE_LIMIT, write_graph
from flawscope.export.onnx_trace import export_module
from flawscope.imaging.grid_places import GridPlaces
from flawscope.runtime.upkeep.bank_rows import rows_problem
from flawscope.training.detectors import torch_scores
from flawscope.training.detectors.detector_run import Run
from flawscope.training.detectors.padim import padim_head
from flawscope.training.detectors.patchcore import patchcore_head
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.triangles import pack_triangles

BANK = "bank.safetensors"

ROOM_SHARE = 0.25
"""Room of a bank for rows that are added later, as a share of its rows, unless it is given."""


@dataclass(frozen=True)
class BankExporter:
    """Exports a method whose head works on patches and stored tensors; see `Exporter` for the contract.

    Attributes:
        make_head: `(settings, patch grid, places of the patches) -> head`.
        nodes: Appends the head to the feature graph; see `head_nodes.append_head`.
        distances: The same head by plain torch; see `torch_scores.torch_scores`.
        stored: `(tensors of the run) -> tensors of the bundle`, which graph and kernels need.
    """

    make_head: Callable[[Any, tuple[int, int], GridPlaces | None], BankHead]
    nodes: head_nodes.WriteHead
    distances: torch_scores.Distances
    stored: Callable[[Mapping[str, npt.NDArray[Any]]], dict[str, npt.NDArray[Any]]]
    graph_words = "score.onnx, cpu"
    other_paths = ("kernel",)
    traced = ("patches",)
    converted = "features"
    precisions: tuple[str, ...] = ("fp16", "int8")
    networks: tuple[str, ...] = ()

    @property
    def reducible(self) -> BankExporter:
        """This exporter: the feature graph can be computed in reduced precision, the head stays in FP32."""
        return self

    def head(self, run: Run, images: Sequence[UInt8Array]) -> BankHead:
        """Return the head; it needs no measurement on images."""
        return self.make_head(run.record.config, run.record.grid, run.fitted.finest_places)

    def graphs(self, run: Run, head: BankHead, scratch: Path, max_batch: int, room: int | None) -> ExportedGraphs:
        """Write the bank, `features.onnx`, and `score.onnx`."""
        size = run.record.config.preprocessing.size
        arrays = {name: np.ascontiguousarray(value) for name, value in self.stored(run.fitted.tensors).items()}
        rows, spare = self._room(head, arrays, room)
        # Written before the graph: its initializers are offsets into this file.
        path = scratch / BANK
        path.write_bytes(safetensors.numpy.save(with_room(arrays, spare)))
        features = export_module(run.module, size, max_batch)
        # A copy of the features with the head: score.onnx runs alone, features.onnx with the native kernels.
        score = self.score_graph(features, head, BankFile(path), size, max_batch)
        graphs = {
            name: write_graph(max_batch, name, model, scratch, INLINE_LIMIT)
            for name, model in (("features", features), ("score", score))
        }
        return ExportedGraphs(graphs, path.name, arrays, Upkeep(rows, spare) if any(spare) else None)

    def _room(
        self, head: BankHead, arrays: Mapping[str, npt.NDArray[Any]], room: int | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the rows of each bank, and the rows of room behind them."""
        if not head.banks:
            return (), ()
        rows = tuple(len(arrays[name]) for name in bank_names(head.banks))
        if problem := rows_problem(cast("PatchcoreHead", head), arrays):
            if room:
                raise ArgumentError(f"--bank-room: {problem}. Leave it out.")
            return rows, (0,) * len(rows)
        return rows, tuple(int(count * ROOM_SHARE) if room is None else room for count in rows)

    def score_graph(
        self, features: onnx.ModelProto, head: BankHead, bank: BankFile, size: tuple[int, int], max_batch: int
    ) -> onnx.ModelProto:
        """Return features and head as one graph."""
        return head_nodes.append_head(features, head, bank, size, max_batch, self.nodes)

    def score_head(self, manifest: Manifest, tensors: Mapping[str, npt.NDArray[Any]]) -> Any:
        """Return the head on patches, by NumPy and the native kernels."""
        return methods.scorer_of(manifest.method).head(manifest.head, tensors, manifest.input.size)

    def examples(self, bundle: Path, images: Sequence[UInt8Array]) -> dict[str, npt.NDArray[Any]]:
        """Return the images themselves."""
        return {"image": np.stack(images)}

    def reduced_graphs(self, model: onnx.ModelProto, manifest: Manifest, scratch: Path) -> dict[str, onnx.ModelProto]:
        """Return the features, and the whole graph: the same features with the head in FP32."""
        assert manifest.bank is not None, "a bank exporter writes a bank"
        bank = BankFile(scratch / manifest.bank)
        head: Any = manifest.head
        return {
            "features": model,
            "score": self.score_graph(model, head, bank, manifest.input.size, manifest.max_batch),
        }

    def reference(self, run: Run, head: BankHead, images: Sequence[UInt8Array]) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores by plain torch."""
        module: PatchFeatures = run.module
        size = run.record.config.preprocessing.size
        return torch_scores.torch_scores(module, head, run.fitted.tensors, size, images, self.distances)


def _with_norms(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Add the squared norms of the rows of each bank, float32 [M], which the graph adds to its products."""
    count = max(1, sum(name.startswith("bank.") for name in tensors))
    banks = {name: np.asarray(tensors[name], np.float32) for name in bank_names(count)}
    norms = {
        norms: np.einsum("md,md->m", bank, bank) for norms, bank in zip(norm_names(count), banks.values(), strict=True)
    }
    return {**tensors, **norms}


def _without_zeros(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Keep the upper triangles of the whitening matrices alone, half of their numbers."""
    return {"mean": tensors["mean"], "triangles": pack_triangles(tensors["whitening"])}


PATCHCORE = BankExporter(patchcore_head, head_nodes.patchcore_nodes, torch_scores.patchcore_distances, _with_norms)
PADIM = BankExporter(padim_head, head_nodes.padim_nodes, torch_scores.padim_distances, _without_zeros)
