"""Drawing with the networks as engines, on stand-ins for the GPU and TensorRT: the images of the backend `cpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import Stand, check_left, stand_in
from tensorrt_stand_in import tensorrt_module
from tiny_synth_bundle import GROUND, MAX_BATCH, write_tiny_synth

from flawscope.runtime.backends import engine_session
from flawscope.runtime.engines import BuildOptions, Target, TensorRT
from flawscope.runtime.synthesis import DrawOrder, Synthesizer

ASKED: dict[str, BuildOptions] = {}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A GPU in host memory, for which engines are at hand."""
    stand = Stand()
    stand_in(stand, monkeypatch)

    def engine(bundle: Any, graph: str, tensorrt: Any, target: Any, options: BuildOptions, *_: Any, **__: Any) -> Any:
        ASKED[graph] = options
        data = str(bundle.path / bundle.graph_file(graph)).encode()
        return SimpleNamespace(stored=SimpleNamespace(load=lambda: data, plan=Path("engine.plan"), layers=None))

    tensorrt = TensorRT("tensorrt", "11.0", tensorrt_module(stand))
    monkeypatch.setattr(engine_session, "import_tensorrt", lambda: tensorrt)
    monkeypatch.setattr(engine_session, "current_target", lambda: Target("stand-in", (8, 9), "1"))
    monkeypatch.setattr(engine_session, "ensure_engine", engine)
    # The loop on the host: what is compiled for a GPU finds none here, and test_device_drawing.py has the emulation.
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", False)
    yield stand
    check_left(stand)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_same_orders_give_the_same_images_and_every_step_is_one_launch(
    tmp_path: Path, stand: Stand, batch: int
) -> None:
    write_tiny_synth(tmp_path / "drawer.flaw")
    pixel = np.rint((np.array(GROUND[:3]) + 1) * 127.5).astype(np.uint8)
    mask = np.zeros((48, 64), np.bool_)
    mask[12:30, 16:40] = True
    orders = [DrawOrder(np.broadcast_to(pixel, (48, 64, 3)).copy(), mask, "pitting", seed=seed) for seed in range(2)]
    with Synthesizer.load(tmp_path / "drawer.flaw", "cpu") as synthesizer:
        expected = synthesizer.draw(orders, batch=batch)
    with Synthesizer.load(tmp_path / "drawer.flaw", "tensorrt") as synthesizer:
        enqueued = stand.enqueued
        drawn = synthesizer.draw(orders, batch=batch)
        assert stand.launches > 0
        assert stand.enqueued == enqueued, "something was not captured when the engines were loaded"
    assert ASKED["denoise"] == BuildOptions(2, 2, MAX_BATCH)
    assert ASKED["text"] == BuildOptions(1, 1, 1)
    for got, other in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(got.image, other.image)
    assert (stand.freed, stand.unpinned, stand.streams) == (stand.allocated, stand.pinned, {})
