"""NVIDIA's own bindings, with our calls and arguments, over a driver of host memory that is compiled for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project_paths import ROOT

CALLS = """
import ctypes
import numpy as np
from flawscope.errors import BackendError
from flawscope.runtime.backends.device import Graph
from flawscope.runtime.engines import cuda_driver, current_target
from flawscope.runtime.engines.cuda_driver import DriverError, bindings, call

target = current_target()
assert (target.gpu, target.compute_capability) == ("Host memory", (8, 7)), target
try:
    current_target(1)
except BackendError as err:
    print(err)
try:
    call("cuMemGetInfo")
except DriverError as err:
    print(err)
stream, source, place = 0x10, np.full(4, 7, np.uint8), np.zeros(4, np.uint8)
assert call("cuCtxPushCurrent", 1) is None
assert call("cuMemGetInfo") == (1, 2)
call("cuStreamBeginCapture", stream, bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
call("cuMemcpyHtoDAsync", place.ctypes.data, source.ctypes.data, 4, stream)
captured = call("cuStreamEndCapture", stream)
executable = call("cuGraphInstantiate", captured, 0)
call("cuGraphDestroy", captured)
call("cuGraphUpload", executable, stream)
assert place.max() == 0
graph = Graph(executable, stream)
graph.launch()
assert place.min() == 7
graph.close()
call("cuStreamSynchronize", stream)
driver = ctypes.CDLL("libcuda.so.1")
for code in cuda_driver.STICKY:
    ctypes.c_int.in_dll(driver, "sticky_error").value = code
    try:
        call("cuStreamSynchronize", stream)
    except DriverError as err:
        assert err.code == code and cuda_driver.STICKY[code] in str(err), err
    else:
        raise SystemExit(f"{code} was not raised")
print("done")
"""


def test_our_calls_are_those_that_the_bindings_take(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("no gcc to compile a driver with, or not Linux")
    library = tmp_path / "libcuda.so.1"
    source = ROOT / "tests" / "helpers" / "host_memory_driver.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "device: expected CUDA device 1, got 1 devices.",
        "cuMemGetInfo failed with CUDA error 201 (INVALID_CONTEXT).",
        "done",
    ]
