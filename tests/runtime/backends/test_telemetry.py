"""ONNX Runtime and OpenVINO leave no file below HOME, whichever module of ours imports it, nor does a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SESSION = """
import numpy, onnxruntime
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.zeros(1, numpy.float32)})
"""


OPENVINO = "\nimport openvino; openvino.Core()\n"


def files_left(home: Path, code: str) -> list[Path]:
    """Run code in a process whose home is a new folder; return the files that it leaves there."""
    home.mkdir()
    variables = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    environment["HOME"] = str(home)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment, capture_output=True)
    return [path for path in home.rglob("*") if not path.is_dir()]


def test_without_flawscope_it_leaves_files(tmp_path: Path) -> None:
    if not files_left(tmp_path / "home", SESSION):
        pytest.skip("this ONNX Runtime writes no files of telemetry: nothing to switch off")


@pytest.mark.parametrize(
    "first",
    [
        "import flawscope",
        "from flawscope.runtime.backends.ort import import_onnxruntime; import_onnxruntime()",
        "from flawscope.calibration.extras import require; require('onnxruntime', 'onnxruntime', 'a test')",
    ],
)
def test_with_flawscope_it_leaves_none(first: str, tmp_path: Path) -> None:
    assert files_left(tmp_path / "home", first + SESSION) == []


def test_a_child_process_leaves_none(tmp_path: Path) -> None:
    child = f"import flawscope, subprocess, sys; subprocess.run([sys.executable, '-I', '-c', {SESSION!r}], check=True)"
    assert files_left(tmp_path / "home", child) == []


def test_openvino_leaves_files_without_flawscope(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    if not files_left(tmp_path / "home", OPENVINO):
        pytest.skip("this OpenVINO writes no files of telemetry: nothing to switch off")


@pytest.mark.parametrize(
    "first",
    ["import flawscope", "from flawscope.runtime.backends.openvino_devices import openvino_core; openvino_core()"],
)
def test_with_flawscope_openvino_leaves_none_and_sends_nothing(first: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    # A name that is looked up, or an address that is connected to, ends the process with an error.
    refuse = """
import sys

def hook(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        import os
        os.write(2, f"network: {event}".encode())
        os._exit(3)

sys.addaudithook(hook)
"""
    assert files_left(tmp_path / "home", refuse + first + OPENVINO) == []
