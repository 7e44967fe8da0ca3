"""A bundle of a few kilobytes that opens, verifies and scores: made by hand, without torch and without training.

Its graph is the brightness of an image: the map is the mean of the three channels, the score the map's maximum.
"""

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

from flawscope.bundle import (
    Golden,
    Graph,
    Manifest,
    PatchcoreHead,
    Provenance,
    Threshold,
    Thresholds,
    write_bundle,
)
from flawscope.imaging.images import Preprocessing

SIDE = 16
"""Height and width of the graph's input, in pixels."""
BANK = np.arange(12, dtype=np.float32).reshape(4, 3)


def brightness_graph() -> bytes:
    """Return an ONNX file: `image` uint8 [N, 16, 16, 3] -> `anomaly_map` [N, 16, 16] and `score` [N]."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "channel"], ["anomaly_map"], keepdims=0),
        helper.make_node("ReduceMax", ["anomaly_map", "rows_columns"], ["score"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", SIDE, SIDE]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        [
            numpy_helper.from_array(np.array([3], np.int64), "channel"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "rows_columns"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def golden_image() -> npt.NDArray[np.uint8]:
    """Return the golden image, uint8 [16, 16, 3] RGB: a bright square on grey; its score is 200."""
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    image[4:9, 6:11] = 200
    return image


def tiny_sources() -> dict[str, Path | bytes]:
    """Return the files of the bundle, without the manifest."""
    done, image = cv2.imencode(".png", golden_image()[..., ::-1])
    assert done
    return {
        "score.onnx": brightness_graph(),
        "bank.safetensors": safetensors.numpy.save({"bank": BANK}),
        "golden/0.png": image.tobytes(),
        "images.json": b'{"training": [], "held_out": []}\n',
    }


def tiny_manifest(**changes: Any) -> Manifest:
    """Return the manifest that fits `tiny_sources`, its files not yet filled in.

    Args:
        **changes: Fields to set differently.
    """
    manifest = Manifest(
        name="tiny",
        kind="score",
        method="patchcore",
        flawscope="0.0.0",
        input=Preprocessing(resize=(SIDE, SIDE)),
        max_batch=4,
        graphs={"score": Graph("score.onnx", ("anomaly_map", "score"), "pixels", 4 * SIDE * SIDE * 3, 1 << 14)},
        bank="bank.safetensors",
        head=PatchcoreHead(grid=(4, 4), neighbors=1, reweight="none", sigma=0.0),
        golden=(Golden("golden/0.png", score=200.0, map_max=200.0),),
        provenance=Provenance(
            created="2026-01-01T00:00:00+00:00",
            command="flawscope export run --out tiny.flaw",
            run="0" * 64,
            dataset="1" * 64,
            category="tiny",
            seed=0,
            versions={"numpy": "2.0"},
            config={"sigma": 0.0, "stages": [1, 2]},
            weights="none",
            images="images.json",
        ),
        files={},
    )
    return msgspec.structs.replace(manifest, **changes)


def tiny_thresholds(value: float = 150.0) -> Thresholds:
    """Return image and pixel thresholds set by hand to one value."""
    return Thresholds(image=Threshold(value, "manual"), pixel=Threshold(value, "manual"))


def write_tiny_bundle(path: Path, sources: dict[str, Path | bytes] | None = None, **changes: Any) -> Manifest:
    """Write the bundle folder `path`, in place of one that lies there, and return its manifest.

    Args:
        path: Folder to make.
        sources: Files that replace or join those of `tiny_sources`.
        **changes: Manifest fields to set differently.
    """
    return write_bundle(path, tiny_manifest(**changes), tiny_sources() | (sources or {}), overwrite=True)
