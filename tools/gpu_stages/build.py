"""The kernels for the GPU that is here, as the project's own build makes them; on a CPU their emulation."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_stages.document import ROOT
from gpu_stages.here import program
from gpu_stages.report import Absent, Report

EMULATION = "libflawscope_emulation.so"
CUDA = ROOT / "cpp_ext" / "cuda"
INCLUDE = [f"-I{ROOT / 'cpp_ext' / name}" for name in ("include", "src", "cuda")]
EMULATED = 800
"""Compute capability that is emulated, times 100."""


def checks() -> list[Path]:
    """Return the sources of the checks: each a program, on a card named `card_` and the name of the file."""
    return sorted((ROOT / "tests" / "cpp_ext").glob("cuda_emulated*.cpp"))


def run(report: Report, *command: object) -> str:
    """Run a command of the build; return what it says, or end the stage with it."""
    limit = max(1.0, report.left_s)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(f"failed with status {done.returncode}: {' '.join(map(str, command))[:400]}")
    return done.stdout + done.stderr


def python_problem() -> str | None:
    """Return why the Python module cannot be built here, None where it can."""
    if importlib.util.find_spec("nanobind") is None:
        return "no nanobind in this Python"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"no {header}"


def on_card(report: Report) -> None:
    """CMake's build for the native architecture: library, Python module, and the programs of checks."""
    build = report.work / "build"
    problem = python_problem()
    options = [
        *("-DFLAWSCOPE_CUDA=ON", "-DFLAWSCOPE_CUDA_CHECKS=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"),
        *(f"-DFLAWSCOPE_PYTHON={'OFF' if problem else 'ON'}", f"-DPython_EXECUTABLE={sys.executable}"),
        f"-DCMAKE_CUDA_COMPILER={program('nvcc')}",
    ]
    cmake = program("cmake")
    started = time.monotonic()
    text = run(report, cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={program('ninja')}", "-S", ROOT / "cpp_ext", "-B",
               build, *options)  # fmt: skip
    configured = time.monotonic()
    run(report, cmake, "--build", build, "--parallel", os.cpu_count() or 1)
    report.put(
        configure_s=configured - started,
        compile_s=time.monotonic() - configured,
        cuda=[line.strip("- ") for line in text.splitlines() if "CUDA kernels" in line],
    )
    # ninja has nothing to say where all was built before: then there are no figures of the compiler.
    report.put(resources=resources(report, build))
    if problem:
        report.leave_out("the Python module", problem)
        report.summary(f"library and checks alone: {problem}")
        return
    tree(build)
    report.summary(f"compiled in {time.monotonic() - configured:.0f} s")


def tree(build: Path) -> Path:
    """Make the package with the built module in it; return the folder for PYTHONPATH."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from sanitize import link_tree
    except ModuleNotFoundError as err:  # tomli, on Python 3.10
        raise Absent(f"the package cannot be put together: {err}") from err

    return link_tree(build)


def resources(report: Report, build: Path) -> list[str]:
    """Return registers and spills of the kernels of the search, by the toolkit's disassembler; empty without it."""
    cuobjdump = program("cuobjdump")
    library = next(iter(sorted(build.glob("libflawscope_kernels.so"))), None)
    if cuobjdump is None or library is None:
        report.leave_out("registers", "no cuobjdump")
        return []
    lines = run(report, cuobjdump, "--dump-resource-usage", library).splitlines()
    rows = []
    for name, usage in itertools.pairwise(lines):
        if "search" in name and "REG:" in usage:
            kernel = re.sub(r".*Function (\S+):.*", r"\1", name)
            rows.append(f"{kernel}: {usage.strip()}")
    return rows


def on_cpu(report: Report) -> None:
    """The kernels' own sources in emulation: a library for Python, and the programs of checks."""
    compiler = program("g++")
    if compiler is None:
        raise Absent("no g++ to compile the emulation with")
    build = report.work / "build"
    build.mkdir(exist_ok=True)
    rest = build / "rest.cpp"
    rest.write_text(_REST, encoding="utf-8")
    options = ["-std=c++17", "-O1", "-fPIC", "-DFLAWSCOPE_EMULATION", f"-DFLAWSCOPE_EMULATED_ARCH={EMULATED}"]
    options += ["-Wno-unknown-pragmas", *INCLUDE]
    kernels = [*sorted(CUDA.glob("*.cu")), rest]
    started = time.monotonic()

    def compiled(source: Path) -> Path:
        target = build / f"{source.stem}.o"
        run(report, compiler, *options, "-x", "c++", "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compiled, [*kernels, *checks()]))
    common = objects[: len(kernels)]
    run(report, compiler, "-shared", *common, "-o", build / f"new-{EMULATION}")
    (build / f"new-{EMULATION}").replace(build / EMULATION)  # another process may have the old one loaded
    for program_object in objects[len(kernels) :]:
        # `rest` is of the library alone.
        run(report, compiler, program_object, *common[:-1], "-o", build / program_object.stem)
    report.put(compile_s=time.monotonic() - started)
    report.summary("the emulation, for capability 8.0")


_REST = """
// What api.cpp has beside the kernels of the CPU, which the emulation does without.
#include "flawscope/patch_distance.h"
#include "status.h"
extern "C" {
const char* flawscope_status_text(int status) {
    return status >= FLAWSCOPE_CUDA ? flawscope::cuda_status_text(status) : "a status below those of CUDA";
}
int flawscope_patch_distance_version(void) { return FLAWSCOPE_PATCH_DISTANCE_VERSION; }
}
"""
