"""What this machine has: asked in a process of its own, as a driver that is half there may end the one that asks.

    python -m gpu_stages.here [WHEELS]

prints a JSON object: `missing`, name of what a stage may need -> why it is not here, or null where it is; and `gpu`,
the name of the first GPU, or null.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from gpu_stages.driver import CudaError, Driver

TOOLKIT = Path("/usr/local/cuda/bin")


def program(name: str) -> str | None:
    """Return the path of a program on the PATH or in the CUDA toolkit's usual folder, or None."""
    # The folder of this Python as well: cmake and ninja are often packages of it.
    for folder in (None, str(TOOLKIT), str(Path(sys.executable).parent)):
        if found := shutil.which(name, path=folder):
            return found
    return None


def toolkit() -> Path | None:
    """Return the folder of the CUDA toolkit, None where its headers are not found."""
    # nvcc may be a script that stands elsewhere and calls the one in the toolkit.
    nvcc = program("nvcc")
    folders = [*([Path(nvcc).resolve().parent.parent] if nvcc else []), TOOLKIT.parent]
    return next((folder for folder in folders if (folder / "include" / "cuda.h").is_file()), None)


def _driver() -> str | None:
    try:
        driver = Driver()
        return None if driver.device_count() else "the driver counts no GPU"
    except CudaError as err:
        return str(err)


def gpu() -> str | None:
    """Return the name of the first GPU, None where there is none."""
    return None if _driver() is not None else str(Driver().facts()["gpu"])


def _module(module: str, package: str) -> Callable[[], str | None]:
    def problem() -> str | None:
        try:
            there = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):  # the package around it is not there
            there = False
        return None if there else f"no {package} in this Python"

    return problem


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if program(name) else f"no {name} on the PATH or in {TOOLKIT}"


def _onnxruntime() -> str | None:
    if (problem := _module("onnxruntime", "onnxruntime-gpu")()) is not None:
        return problem
    # By the packages and not by an import, which takes seconds: the one without CUDA provides the same module.
    names = {name.lower() for one in importlib.metadata.distributions() if (name := one.metadata["Name"])}
    return None if "onnxruntime-gpu" in names else "no onnxruntime-gpu in this Python, only one without CUDA"


def _tensorrt() -> str | None:
    problems = [_module(name, name)() for name in ("tensorrt", "tensorrt_rtx")]
    return None if None in problems else "no tensorrt or tensorrt_rtx in this Python"


def source_of_pycuda(wheels: str) -> Path | None:
    """Return PyCUDA's source among the files that were brought along, or None."""
    return next(iter(sorted(Path(wheels).glob("pycuda-*.tar.gz"))), None) if wheels else None


def missing(wheels: str = "") -> dict[str, str | None]:
    """Return why each thing that a stage may need is not here, None where it is.

    Args:
        wheels: The folder of --wheels, or empty.
    """
    asked: dict[str, Callable[[], str | None]] = {
        "driver": _driver,
        "nvcc": _program("nvcc"),
        "cmake": _program("cmake"),
        "ninja": _program("ninja"),
        "g++": _program("g++"),
        "compute-sanitizer": _program("compute-sanitizer"),
        "ncu": _program("ncu"),
        "numpy": _module("numpy", "numpy"),
        "pytest": _module("pytest", "pytest"),
        "torch": _module("torch", "torch"),
        "pycuda": _module("pycuda", "pycuda"),
        "cuda-bindings": _module("cuda.bindings.driver", "cuda-bindings"),
        "onnxruntime-gpu": _onnxruntime,
        "tensorrt": _tensorrt,
        "flawscope": _module("flawscope", "flawscope"),
    }
    found = {name: ask() for name, ask in asked.items()}
    if found["pycuda"] and source_of_pycuda(wheels):
        found["pycuda"] = None  # its stage compiles it
    return found


if __name__ == "__main__":
    print(json.dumps({"missing": missing(*sys.argv[1:]), "gpu": gpu()}))
