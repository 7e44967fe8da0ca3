"""What moves at one place in all maps: little where values are rounded, much where a border is computed wrong."""

from __future__ import annotations

import numpy as np
import pytest
from pooled_int8 import SIZE, pooled_model

from flawscope.bundle import OnnxModel
from flawscope.calibration.quantization.gate_limits import LIMITS
from flawscope.calibration.quantization.precision_gate import place_change
from flawscope.runtime.backends.ort import OrtSession

LIMIT = LIMITS["int8"].map_place


def maps(count: int = 30, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 2, (count, size, size)).astype(np.float32)


def test_rounding_of_single_values_is_little_of_it() -> None:
    before = maps()
    after = before + np.random.default_rng(1).uniform(-0.1, 0.1, before.shape).astype(np.float32)
    assert 0 < place_change(before, after) < LIMIT
    assert place_change(before, before) == 0


def test_one_place_that_moves_in_all_maps_is_found_though_no_maximum_does() -> None:
    before = maps()
    after = before.copy()
    after[:, 0, 3] -= 0.5  # below the maximum: no score is another
    assert place_change(before, after) == pytest.approx(0.25, rel=0.01)
    after[7, 5, 5] = np.nan
    assert not place_change(before, after) <= LIMIT


def test_maps_of_nothing_have_no_size() -> None:
    assert place_change(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.float32)) == 0


def test_a_border_that_openvino_computes_wrong_is_outside_the_limit() -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from flawscope.runtime.backends.openvino import OpenvinoSession
    from flawscope.runtime.backends.openvino_devices import cuts_int8
    from flawscope.runtime.backends.openvino_graph import Place

    if cuts_int8():
        pytest.skip("OpenVINO cuts sums of INT8 products on this processor")
    images = np.random.default_rng(1).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    changes = []
    for is_read_twice in (False, True):
        model = OnnxModel("pooled.onnx", pooled_model(is_read_twice=is_read_twice).SerializeToString(), {})
        sessions = (OrtSession(model, "cpu"), OpenvinoSession(model, Place("openvino", "CPU", "int8")))
        right, got = (session.infer(images)["anomaly_map"] for session in sessions)
        changes.append(place_change(right, got))
    assert changes[0] < LIMIT
    if changes[1] < LIMIT:
        pytest.skip("this OpenVINO computes the pooling of INT8 right at the border")
    assert changes[1] > 2 * LIMIT
