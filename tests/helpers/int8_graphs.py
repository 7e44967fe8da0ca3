"""A small graph as features are: two stages, one of them pooled with padding, resampled and joined."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
CHANNELS = 8


def two_stages(draw: np.random.Generator, bias: float = 1.0) -> onnx.ModelProto:
    """Convolutions with ReLU6 between; the first stage goes into the next convolution and into the pooling."""
    arrays = {
        "stem.weight": draw.normal(size=(CHANNELS, 3, 3, 3)) / 255,
        "stem.bias": bias * draw.normal(size=CHANNELS),
        "first.weight": draw.normal(size=(CHANNELS, CHANNELS, 1, 1)),
        "first.bias": bias * draw.normal(size=CHANNELS),
        "second.weight": draw.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 3,
        "second.bias": bias * draw.normal(size=CHANNELS),
        "low": np.zeros(()),
        "high": np.full((), 6.0),
    }
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "stem.weight", "stem.bias"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], name="clip"),
        helper.make_node("Conv", ["b", "first.weight", "first.bias"], ["stage"], name="first"),
        helper.make_node(
            "Conv",
            ["stage", "second.weight", "second.bias"],
            ["deeper"],
            name="second",
            pads=[1, 1, 1, 1],
        ),
        helper.make_node("AveragePool", ["stage"], ["pooled"], name="pool", **pool),
        helper.make_node("AveragePool", ["deeper"], ["deeper_pooled"], name="deeper_pool", **pool),
        helper.make_node("Concat", ["pooled", "deeper_pooled"], ["patches"], name="join", axis=1),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    patches = helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["N", 2 * CHANNELS, SIZE, SIZE])
    return helper.make_model(
        helper.make_graph(nodes, "graph", [image], [patches], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def joined(draw: np.random.Generator, between: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Two convolutions with results of very different sizes, joined for a third; operators without options between.

    Those with weights are named `left`, `right` and `last`, which takes the tensor `taken`.
    """
    arrays = {
        "left.weight": draw.normal(size=(CHANNELS, 3, 1, 1)) / 255,
        "right.weight": draw.normal(size=(CHANNELS, 3, 3, 3)) / 255 / 20,
        "last.weight": draw.normal(size=(CHANNELS, 2 * CHANNELS, 3, 3)),
        "low": np.zeros(()),
    }
    names = ["joined", *(f"between.{place}" for place in range(1, len(between))), "taken"]
    chain = [
        helper.make_node(kind, [names[place], "low"] if kind == "Clip" else [names[place]], [names[place + 1]])
        for place, kind in enumerate(between or ("Identity",))
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "left.weight"], ["a"], name="left"),
        helper.make_node("Conv", ["pixels", "right.weight"], ["b"], name="right", pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["a", "b"], ["joined"], name="join", axis=1),
        *chain,
        helper.make_node("Conv", ["taken", "last.weight"], ["patches"], name="last", pads=[1, 1, 1, 1]),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    patches = helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])
    return helper.make_model(
        helper.make_graph(nodes, "graph", [image], [patches], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def images(count: int, seed: int = 1) -> list[np.ndarray]:
    """Images of random pixels, uint8 [H, W, 3]."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))
