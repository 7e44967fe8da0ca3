"""The C interface on every SIMD level by plain loops, here and, in emulation, on a processor of another kind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from project_paths import ROOT

from flawscope import cpp_ext

pytestmark = pytest.mark.long

SOURCES = ROOT / "cpp_ext" / "src"
CHECK = Path(__file__).with_name("levels_check.cpp")
OPTIONS = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", f"-I{ROOT / 'cpp_ext' / 'include'}", f"-I{SOURCES}"]


def run(*command: object) -> str:
    # Where the packages of the cross compiler put the loader of programs that are not static.
    environment = {"QEMU_LD_PREFIX": "/usr/aarch64-linux-gnu", **os.environ}
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the check with")
@pytest.mark.skipif(not cpp_ext.HAVE_NATIVE, reason="native kernels are not in this installation")
def test_every_level_of_this_processor_agrees_with_plain_loops(tmp_path: Path) -> None:
    library = Path(cpp_ext.__path__[0]) / "lib"
    program = tmp_path / "check"
    run("g++", *OPTIONS, CHECK, f"-L{library}", "-lflawscope_kernels", f"-Wl,-rpath,{library}", "-o", program)
    printed = run(program)
    assert "scalar checked" in printed
    assert printed.endswith("0 failures\n")


needs_cross_compiler = pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="no cross compiler and emulator for 64-bit Arm (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


@needs_cross_compiler
def test_the_neon_level_agrees_with_plain_loops_in_emulation(tmp_path: Path) -> None:
    compiler = "aarch64-linux-gnu-g++"
    objects = []
    for level, extra in (("scalar", ["-DFLAWSCOPE_FORCE_SCALAR"]), ("neon", [])):
        objects.append(tmp_path / f"{level}.o")
        define = f"-DFLAWSCOPE_LEVEL={level}"
        run(compiler, *OPTIONS, "-O3", define, *extra, "-c", SOURCES / "kernels.cpp", "-o", objects[-1])
    others = [path for path in SOURCES.glob("*.cpp") if not path.name.startswith(("binding", "kernels", "module"))]
    others.append(ROOT / "cpp_ext" / "cuda" / "absent.cpp")
    program = tmp_path / "check"
    run(compiler, *OPTIONS, "-static", CHECK, *others, *objects, "-lpthread", "-o", program)
    printed = run("qemu-aarch64", program)
    assert "neon checked" in printed
    assert printed.endswith("0 failures\n")


@pytest.mark.slow
@needs_cross_compiler
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on the PATH")
def test_the_toolchain_file_builds_a_library_for_arm(tmp_path: Path) -> None:
    toolchain = ROOT / "cpp_ext" / "aarch64.cmake"
    options = ["-DFLAWSCOPE_PYTHON=OFF", "-DFLAWSCOPE_CUDA=OFF", "-DFLAWSCOPE_EXAMPLES=ON"]
    run("cmake", "-S", ROOT / "cpp_ext", "-B", tmp_path, "--toolchain", toolchain, *options)
    run("cmake", "--build", tmp_path, "--parallel", 2)
    printed = run("qemu-aarch64", tmp_path / "nearest_example")
    assert printed.startswith("neon: most anomalous patch 300, ")
