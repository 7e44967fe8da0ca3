"""PyCUDA: compiled from a source that was brought along, or as it is installed. Written, not run."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu_stages.driver import LIBRARIES
from gpu_stages.here import source_of_pycuda, toolkit
from gpu_stages.report import Absent, Report

DOUBLE = "__global__ void twice(float* x) { x[threadIdx.x] *= 2; }"


def on_card(report: Report) -> None:
    """Compile it where that is asked for, import it, and use what sessions on a device use of it."""
    source = source_of_pycuda(str(report.wheels or ""))
    if source is not None:
        install(report, source)
    started = time.monotonic()
    try:
        driver: Any = importlib.import_module("pycuda.driver")
        compiler: Any = importlib.import_module("pycuda.compiler")
    except ImportError as err:
        raise Absent(f"PyCUDA cannot be imported: {err}") from err
    report.put(version=list(importlib.import_module("pycuda").VERSION), import_s=time.monotonic() - started)
    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()
    try:
        use(report, driver, compiler)
    finally:
        context.pop()
    report.summary("imported and used" if source is None else "compiled, imported and used")


def use(report: Report, driver: Any, compiler: Any) -> None:
    """Check memory, a stream, a kernel, and the class of what is raised where memory does not suffice."""
    numbers = driver.pagelocked_empty((32,), np.float32)
    numbers[:] = np.arange(32)
    stream, memory = driver.Stream(1), driver.mem_alloc(numbers.nbytes)
    started = time.monotonic()
    module = compiler.SourceModule(DOUBLE)
    report.put(kernel_compile_s=time.monotonic() - started)
    driver.memcpy_htod_async(int(memory), numbers, stream)
    module.get_function("twice")(memory, block=(32, 1, 1), grid=(1, 1), stream=stream)
    driver.memcpy_dtoh_async(numbers, int(memory), stream)
    stream.synchronize()
    report.check(bool((numbers == 2 * np.arange(32)).all()), "a kernel of PyCUDA's own")
    report.check(int(stream.handle) != 0, "a stream has a number")
    try:
        driver.mem_alloc(1 << 60)
        report.check(False, "an exabyte could be allocated")
    except driver.Error as err:
        report.put(out_of_memory=[kind.__qualname__ for kind in type(err).__mro__])
        report.check(isinstance(err, driver.MemoryError), f"out of memory is {type(err).__name__}")
    memory.free()
    numbers.base.free()


def install(report: Report, source: Path) -> None:
    """Compile PyCUDA from its source, without cuRAND, into the folder of what was brought along."""
    if importlib.util.find_spec("pip") is None:
        raise Absent("no pip to build PyCUDA with")
    folder = report.work / "pycuda"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = next(folder.iterdir())
    root = toolkit()
    if root is None:
        raise Absent("no CUDA toolkit with cuda.h")
    settings = {"CUDA_ROOT": str(root), "CUDA_ENABLE_CURAND": False, "CUDADRV_LIB_DIR": [str(driver_folder(folder))]}
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    (unpacked / "siteconf.py").write_text("".join(lines), encoding="utf-8")
    target = report.work / "site"
    target.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    command += ["--upgrade", "--target", str(target), str(unpacked)]
    started = time.monotonic()
    environment = {**os.environ, "MAX_JOBS": str(os.cpu_count() or 1), "NPY_NUM_BUILD_JOBS": str(os.cpu_count() or 1)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=report.left_s, env=environment, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-3000:])
        raise SystemExit(f"PyCUDA could not be built: status {done.returncode}")
    report.put(build_s=time.monotonic() - started)
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()


def driver_folder(folder: Path) -> Path:
    """Return a folder where the linker finds the driver: many machines have only the name that programs load."""
    ctypes.CDLL(LIBRARIES[0])
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split()[-1]
        if "/libcuda.so" in path:
            links = folder / "links"
            links.mkdir()
            (links / "libcuda.so").symlink_to(path)
            return links
    raise Absent("the driver is loaded from no file that can be linked to")
