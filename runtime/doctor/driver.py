"""Compatibility of the NVIDIA driver with the installed CUDA libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from typing import Any

_TENSORRT = re.compile(r"tensorrt(?:[-_]rtx)?[-_]cu(\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class DriverMatch:
    """What the driver offers and what the installed libraries want.

    Attributes:
        driver: Version of the driver, or None where none answers.
        cuda: The newest CUDA it knows, for example `13.0`, or None.
        wanted: Installed package -> the CUDA it is made for.
        problems: What does not fit, with what to do; empty where all does, or where there is no driver to fit.
    """

    driver: str | None
    cuda: str | None
    wanted: dict[str, str]
    problems: tuple[str, ...]


def match_driver() -> DriverMatch:
    """Compare the driver with the installed libraries."""
    driver, cuda = _driver()
    wanted = _wanted()
    problems = []
    if cuda is not None:
        for package, version in wanted.items():
            # Within a major version a library runs on an older driver (minor version compatibility).
            if _major(version) > _major(cuda):
                problems.append(
                    f"{package} is made for CUDA {version}, the driver {driver} knows CUDA {cuda} at most. "
                    f"Update the driver, or install a {package} made for CUDA {_major(cuda)}."
                )
    return DriverMatch(driver, cuda, wanted, tuple(problems))


def _driver() -> tuple[str | None, str | None]:
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, None
    try:
        name = pynvml.nvmlSystemGetDriverVersion()
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return (name.decode() if isinstance(name, bytes) else str(name)), f"{number // 1000}.{number % 1000 // 10}"
    except pynvml.NVMLError:
        return None, None
    finally:
        pynvml.nvmlShutdown()


def _wanted() -> dict[str, str]:
    wanted = {}
    try:
        built: Any = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except ImportError:
        built = None
    if version := getattr(built, "cuda_version", None):
        wanted[str(getattr(built, "package_name", "onnxruntime-gpu"))] = str(version)
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"])
        if match := _TENSORRT.match(name):
            wanted[name] = match[1]
    return dict(sorted(wanted.items()))


def _major(version: str) -> int:
    return int(version.partition(".")[0])
