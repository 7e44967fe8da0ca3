"""Bias correction: channel means of the graph in INT8 are those in FP32, and what cannot be corrected is left."""

from __future__ import annotations

import int8_graphs
import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.calibration.quantization.bias_correction import channel_means, correct_biases, correctable
from flawscope.calibration.quantization.qdq import insert_qdq

CONVOLUTIONS = ["stem", "first", "second"]
LARGEST = {"pixels": 255.0, "b": 6.0, "stage": 20.0}


def distance(model: onnx.ModelProto, exact: dict[str, np.ndarray], images: list[dict[str, np.ndarray]]) -> float:
    found = channel_means(model, list(exact), images)
    return max(float(np.abs(found[name] - exact[name]).max()) for name in exact)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.8))
def test_channels_have_the_means_of_fp32_on_the_images(seed: int, clipped: float) -> None:
    model = int8_graphs.two_stages(np.random.default_rng(seed))
    images = [{"image": image[None]} for image in int8_graphs.images(4, seed)]
    # Ranges that cut off values move means far.
    quantised = insert_qdq(model, CONVOLUTIONS, {name: clipped * largest for name, largest in LARGEST.items()})
    exact = channel_means(model, CONVOLUTIONS, images)
    before = quantised.SerializeToString()
    corrected = correct_biases(quantised, CONVOLUTIONS, exact, images)
    onnx.checker.check_model(corrected, full_check=True)
    assert quantised.SerializeToString() == before
    moved = distance(quantised, exact, images)
    assert moved > 0.01
    # Not to the last digit: a corrected value may be rounded to the next step in another section of the graph.
    assert distance(corrected, exact, images) < 0.1 * moved + 0.01


def test_what_was_not_quantised_keeps_its_bias() -> None:
    model = int8_graphs.two_stages(np.random.default_rng(0))
    images = [{"image": image[None]} for image in int8_graphs.images(2)]
    quantised = insert_qdq(model, ["first"], LARGEST)
    exact = channel_means(model, ["first"], images)
    corrected = correct_biases(quantised, ["first"], exact, images)
    stored = {tensor.name: tensor for tensor in corrected.graph.initializer}
    for tensor in quantised.graph.initializer:
        assert (stored[tensor.name] == tensor) == (tensor.name != "first.bias")


def test_a_bias_that_is_shared_or_missing_is_left() -> None:
    model = int8_graphs.two_stages(np.random.default_rng(0))
    assert correctable(model, CONVOLUTIONS) == CONVOLUTIONS
    assert correctable(model, ["second"]) == ["second"]
    nodes = {node.name: node for node in model.graph.node}
    nodes["first"].input[2] = "second.bias"
    assert correctable(model, CONVOLUTIONS) == ["stem"]
    del nodes["stem"].input[2]
    assert correctable(model, CONVOLUTIONS) == []
    assert channel_means(model, [], []) == {}
    assert correct_biases(model, [], {}, []) == model
