"""Drawing with the networks in OpenVINO: the images of the backend `cpu`, but for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_synth_bundle import GROUND, write_tiny_synth

from flawscope.runtime.synthesis import DrawOrder, Synthesizer

pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.mark.parametrize("batch", [1, 2])
def test_the_same_orders_give_the_same_images(tmp_path: Path, batch: int) -> None:
    write_tiny_synth(tmp_path / "drawer.flaw")
    pixel = np.rint((np.array(GROUND[:3]) + 1) * 127.5).astype(np.uint8)
    mask = np.zeros((48, 64), np.bool_)
    mask[12:30, 16:40] = True
    orders = [DrawOrder(np.broadcast_to(pixel, (48, 64, 3)).copy(), mask, "pitting", seed=seed) for seed in range(3)]
    drawn = {}
    for backend in ("cpu", "openvino"):
        with Synthesizer.load(tmp_path / "drawer.flaw", backend) as synthesizer:
            assert synthesizer.backend == backend
            drawn[backend] = synthesizer.draw(orders, batch=batch)
    for order, expected, got in zip(orders, drawn["cpu"], drawn["openvino"], strict=True):
        assert np.abs(got.image.astype(int) - expected.image).max() <= 1
        assert (expected.image != order.image).any()
