"""A bundle whose graph does not return ends the command, and raises in Python."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import brightness_graph, golden_image, write_tiny_bundle

from flawscope.errors import DeviceError, LoadTimeout
from flawscope.imaging.png import write_png
from flawscope.runtime import Inspector, ready_scorer
from flawscope.time_limit import is_left_behind


def endless_graph() -> bytes:
    """Return the tiny bundle's graph, whose score waits for 2⁶² rounds of a loop; its operators are allowed."""
    model = onnx.load_from_string(brightness_graph())
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Mul", ["zero_in", "zero_in"], ["zero_out"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("zero_in", TensorProto.FLOAT, ["N"]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("zero_out", TensorProto.FLOAT, ["N"]),
        ],
    )
    model.graph.node[-1].output[0] = "highest"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 << 62, np.int64), "rounds"),
            numpy_helper.from_array(np.array(True), "yes"),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("Sub", ["highest", "highest"], ["zero"]),
            helper.make_node("Loop", ["rounds", "yes", "zero"], ["nothing"], body=body),
            helper.make_node("Add", ["highest", "nothing"], ["score"]),
        ]
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.mark.long
@pytest.mark.parametrize("verb", ["score", "bench", "doctor"])
def test_a_graph_that_does_not_return_ends_the_command_in_one_line(tmp_path: Path, verb: str) -> None:
    write_tiny_bundle(tmp_path / "endless.flaw", {"score.onnx": endless_graph()})
    write_png(tmp_path / "image.png", golden_image())
    images = [tmp_path / "image.png"] if verb == "score" else []
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "flawscope", verb, tmp_path / "endless.flaw", *images],
        capture_output=True,
        text=True,
        env={**os.environ, "FLAWSCOPE_LOAD_TIMEOUT": "1"},
        timeout=300,
        check=False,
    )
    assert time.monotonic() - started < 60
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(
        f"error: {tmp_path / 'endless.flaw'}: expected the bundle to be ready within 1 s, got no answer."
    )
    assert process.stderr.count("\n") == 1


@pytest.fixture
def slow_to_open(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Scorers that take half a second to open, in code without Python; the list has those that were opened."""
    opened: list[Any] = []
    really = ready_scorer.open_scorer

    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        opened.append(really(*arguments))
        return opened[-1]

    monkeypatch.setattr(ready_scorer, "open_scorer", slow)
    return opened


def test_a_load_that_is_not_ready_in_time_raises_and_zero_is_no_limit(
    tmp_path: Path, slow_to_open: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw")
    with pytest.raises(LoadTimeout, match=r"tiny\.flaw: expected the bundle to be ready within 0\.05 s"):
        Inspector.load(tmp_path / "tiny.flaw", timeout_s=0.05)
    assert is_left_behind()
    while is_left_behind():
        time.sleep(0.01)
    monkeypatch.setenv("FLAWSCOPE_LOAD_TIMEOUT", "0.05")
    with Inspector.load(tmp_path / "tiny.flaw", timeout_s=0) as ready:
        assert ready(golden_image()).score == 200.0


def test_a_device_that_is_opened_again_has_the_same_limit(
    tmp_path: Path, slow_to_open: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw")
    with Inspector.load(tmp_path / "tiny.flaw", timeout_s=60) as ready:

        def lost(*_: object) -> None:
            raise DeviceError("lost")

        monkeypatch.setattr(ready.scorer, "score", lost)
        assert ready(golden_image()).decision == "fault"
        ready._ready._limit_s = 0.05
        late = ready(golden_image())
        assert (late.decision, "to be ready within 0.05 s" in (late.reason or "")) == ("fault", True)
        while is_left_behind():
            time.sleep(0.01)
        ready._ready._limit_s = 60
        assert ready(golden_image()).score == 200.0
