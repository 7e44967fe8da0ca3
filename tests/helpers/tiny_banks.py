"""Bundles with a memory bank, of a few kilobytes, made by hand: one backbone, and for each bundle a bank of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import SIDE, tiny_manifest, tiny_thresholds

from flawscope.bundle import Golden, Graph, PadimHead, PatchcoreHead, open_bundle, rewrite_manifest, write_bundle
from flawscope.export.detectors.head_nodes import BankFile, append_head, padim_nodes, patchcore_nodes
from flawscope.runtime import Inspector

GRID = (4, 4)
HEAD = PatchcoreHead(grid=GRID, neighbors=1, reweight="none", sigma=1.0)
KINDS = ("patchcore", "window", "padim")
_CELL = SIDE // GRID[0]


def backbone_graph(factor: float) -> onnx.ModelProto:
    """Return image uint8 [N, 16, 16, 3] -> patches float32 [N, 16, 3]: means of 4 x 4 pixels, times a factor."""
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["channels_first"], ["cells"], kernel_shape=[_CELL, _CELL], strides=[_CELL, _CELL]
        ),
        helper.make_node("Mul", ["cells", "factor"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["patches"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["N", GRID[0] * GRID[1], 3])],
        [
            numpy_helper.from_array(np.array([factor], np.float32), "factor"),
            numpy_helper.from_array(np.array([0, 3, -1], np.int64), "flat"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def part_images(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [count, 16, 16, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def _contents(kind: str, seed: int) -> tuple[Any, dict[str, npt.NDArray[Any]], Any]:
    """Return head, tensors of the bank, and what adds the head's nodes to a graph."""
    rng = np.random.default_rng(seed)
    if kind == "padim":
        mean = rng.uniform(0, 255, (GRID[0] * GRID[1], 3)).astype(np.float32)
        triangles = rng.uniform(0.01, 0.02, (GRID[0] * GRID[1], 6)).astype(np.float32)
        return PadimHead(grid=GRID, sigma=1.0), {"mean": mean, "triangles": triangles}, padim_nodes
    bank = rng.uniform(0, 255, (12, 3)).astype(np.float32)
    tensors = {"bank": bank, "norms": np.einsum("md,md->m", bank, bank)}
    if kind == "patchcore":
        return HEAD, tensors, patchcore_nodes
    assert kind == "window"
    cells = np.sort(rng.integers(0, GRID[0] * GRID[1], 12))
    tensors["places"] = np.stack(np.divmod(cells, GRID[1]), axis=1)
    return msgspec.structs.replace(HEAD, window=1), tensors, patchcore_nodes


def write_bank_bundle(
    path: Path, seed: int, factor: float = 1.0, max_batch: int = 4, kind: str = "patchcore", **changes: Any
) -> Path:
    """Write a bundle folder with thresholds and a golden image, and return its path.

    Args:
        path: Folder to make; its name is the bundle's.
        seed: Of the bank.
        factor: Another one is another backbone.
        max_batch: Largest batch.
        kind: One of `KINDS`.
        **changes: Manifest fields to set differently.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".scratch")
    scratch.mkdir()
    head, tensors, write_head = _contents(kind, seed)
    (scratch / "bank.safetensors").write_bytes(safetensors.numpy.save(tensors))
    features = backbone_graph(factor)
    bank_file = BankFile(scratch / "bank.safetensors")
    score = append_head(features, head, bank_file, (SIDE, SIDE), max_batch, write_head)
    done, image = cv2.imencode(".png", part_images(1, 99)[0][..., ::-1])
    assert done
    sources: dict[str, Path | bytes] = {
        "features.onnx": features.SerializeToString(),
        "score.onnx": score.SerializeToString(),
        "bank.safetensors": scratch / "bank.safetensors",
        "golden/0.png": image.tobytes(),
        "images.json": b'{"training": [], "held_out": []}\n',
    }
    graphs = {
        "features": Graph("features.onnx", ("patches",), "numbers", 4 * SIDE * SIDE * 3, 1 << 14),
        "score": Graph("score.onnx", ("anomaly_map", "score"), "numbers", 4 * SIDE * SIDE * 3, 1 << 14),
    }
    method = "padim" if kind == "padim" else "patchcore"
    manifest = tiny_manifest(name=path.stem, method=method, graphs=graphs, head=head, max_batch=max_batch, golden=())
    write_bundle(path, manifest, sources)
    with Inspector(open_bundle(path), "cpu", "kernel", is_candidate=True) as inspector:
        maps, scores = inspector.infer(part_images(1, 99))
        written = inspector.manifest
    golden = (Golden("golden/0.png", float(scores[0]), float(maps[0].max())),)
    fields = {"golden": golden, "thresholds": tiny_thresholds(float(scores[0])), **changes}
    rewrite_manifest(path, msgspec.structs.replace(written, **fields))
    return path
