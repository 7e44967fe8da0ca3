"""Feature graphs made by hand, and naive scores in float64 to hold a head against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import safetensors.numpy
from native_heads import append_head
from onnx import TensorProto, helper, numpy_helper

from flawscope.arrays import Float32Array
from flawscope.bank_names import bank_names, norm_names
from flawscope.bundle import Head, PatchcoreHead
from flawscope.export.detectors.head_nodes import BankFile

SIDE = 4
POSITIONS, CHANNELS = 8, 6
GRID = (4, 2)


def features_graph() -> onnx.ModelProto:
    """Return the graph image uint8 [N, 4, 4, 3] -> patches float32 [N, 8, 6]: two pixels side by side are a patch."""
    shape = numpy_helper.from_array(np.array([-1, POSITIONS, CHANNELS], np.int64), "patch_shape")
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "patch_shape"], ["patches"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["N", POSITIONS, CHANNELS])],
        [shape],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def random_images(count: int, seed: int, high: int = 12) -> npt.NDArray[np.uint8]:
    """Return uint8 [count, 4, 4, 3] with small values, so that all distances are exact in float32."""
    return np.random.default_rng(seed).integers(0, high, (count, SIDE, SIDE, 3), np.uint8)


def patches_of(images: npt.NDArray[np.uint8]) -> Float32Array:
    """Return what the graph makes of images."""
    return images.astype(np.float32).reshape(len(images), POSITIONS, CHANNELS)


def build_graph(
    folder: Path, head: Head, tensors: dict[str, npt.NDArray[Any]], size: tuple[int, int], max_batch: int
) -> onnx.ModelProto:
    """Write bank.safetensors and score.onnx into `folder`; return the whole graph."""
    stored = dict(tensors)
    if isinstance(head, PatchcoreHead):
        for bank, norms in zip(bank_names(head.banks), norm_names(head.banks), strict=True):
            stored[norms] = np.einsum("md,md->m", stored[bank], stored[bank])
    safetensors.numpy.save_file(stored, folder / "bank.safetensors")
    model = append_head(features_graph(), head, BankFile(folder / "bank.safetensors"), size, max_batch)
    onnx.save(model, folder / "score.onnx")
    onnx.checker.check_model(str(folder / "score.onnx"), full_check=True)
    return model


def run_graph(folder: Path, images: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps and scores by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(folder / "score.onnx"), providers=["CPUExecutionProvider"])
    maps, scores = session.run(["anomaly_map", "score"], {"image": images})
    return maps, scores


def naive_patchcore(patches: Float32Array, bank: Float32Array, head: PatchcoreHead) -> tuple[Any, float]:
    """Return distances [P] and the score of one image, patches [P, D], by the formulas, one number at a time."""
    rows = bank.astype(np.float64)
    queries = patches.astype(np.float64)
    distances = np.array([min(float(np.linalg.norm(q - m)) for m in rows) for q in queries])
    place = int(distances.argmax())
    count = min(head.neighbors, len(rows))
    if head.reweight == "none" or count == 1:
        return distances, float(distances[place])
    to_query = np.linalg.norm(rows - queries[place], axis=1)
    if head.reweight == "seed":
        around = np.sort(to_query)[:count]
        own = np.exp(around.max())
    else:
        match = int(to_query.argmin())
        to_match = np.linalg.norm(rows - rows[match], axis=1)
        to_match[match] = -1.0  # itself first, also where a row is repeated
        around = to_query[np.argsort(to_match, kind="stable")[:count]]
        own = np.exp(to_query[match])
    return distances, float(distances[place] * (1.0 - own / np.exp(around).sum()))
