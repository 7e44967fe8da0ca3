"""The CUDA kernels computed by the CPU, as a library that `CudaKernels` loads: for tests where there is no GPU."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from project_paths import ROOT

from flawscope import cpp_ext
from flawscope.cpp_ext.cuda_kernels import CudaKernels

# What api.cpp has beside the kernels of the CPU, which the emulation does without.
_REST = """
#include "flawscope/patch_distance.h"
#include "status.h"
extern "C" {
const char* flawscope_status_text(int status) {
    if (status == FLAWSCOPE_OTHER_DEVICE) return "an array is on another device";
    return status >= FLAWSCOPE_CUDA ? flawscope::cuda_status_text(status) : "a status below those of CUDA";
}
int flawscope_patch_distance_version(void) { return VERSION; }
}
"""


def emulated_kernels(
    tmp_path_factory: pytest.TempPathFactory, version: str = "FLAWSCOPE_PATCH_DISTANCE_VERSION"
) -> CudaKernels:
    """Return the kernels in emulation, compiled once for all tests of a process; skips where they cannot be made."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the emulation with")
    if not cpp_ext.HAVE_NATIVE:
        pytest.skip("native kernels are not in this installation, which call the emulation")
    folder = tmp_path_factory.getbasetemp() / "cuda_emulation"
    library = folder / f"libkernels-{version}.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        rest = folder / "rest.cpp"
        rest.write_text(_REST.replace("VERSION;", f"{version};"))
        sources = sorted((ROOT / "cpp_ext" / "cuda").glob("*.cu"))
        command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-DFLAWSCOPE_EMULATION", "-Wno-unknown-pragmas"]
        command += ["-DFLAWSCOPE_EMULATED_ARCH=800", "-x", "c++", *map(str, sources), str(rest), "-o", str(library)]
        command += [f"-I{ROOT / 'cpp_ext' / name}" for name in ("include", "src", "cuda")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return CudaKernels(library)
