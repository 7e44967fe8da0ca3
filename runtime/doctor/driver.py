"""Compatibility of the NVIDIA driver with the installed CUDA libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from typing import Any

from flawscope.errors import BackendError
from flawscope.runtime.engines.cuda_driver import cuda_of_driver
from flawscope.runtime.engines.target import nvml_versions

# TensorRT tells its CUDA version only in the names of its wheels: `tensorrt-cu12`, `tensorrt_rtx_cu13`.
_TENSORRT = re.compile(r"tensorrt(?:[-_]rtx)?[-_]cu(\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class DriverMatch:
    """CUDA version of the driver, and those that the installed libraries need. The fields are keys of `doctor --json`.

    Attributes:
        driver: Version of the driver, or None if none answers.
        cuda: The newest CUDA that the driver supports, for example `13.0`, or None.
        wanted: Installed package -> the CUDA version it was built for.
        problems: What is incompatible, and what to do; empty if nothing is, or if there is no driver.
    """

    driver: str | None
    cuda: str | None
    wanted: dict[str, str]
    problems: tuple[str, ...]


def match_driver() -> DriverMatch:
    """Compare the driver with the installed libraries."""
    driver, cuda = _driver()
    built_for = _wanted()
    problems = []
    if cuda is not None:
        for package, version in built_for.items():
            # Within a major version a library runs on an older driver (minor version compatibility).
            if _major(version) > _major(cuda):
                problems.append(
                    f"{package} is built for CUDA {version}, the driver {driver} supports CUDA {cuda} at most. "
                    f"Update the driver, or install a {package} built for CUDA {_major(cuda)}."
                )
    return DriverMatch(driver, cuda, built_for, tuple(problems))


def _driver() -> tuple[str | None, str | None]:
    """Return the versions of the driver and of the newest CUDA that it supports, or None for both."""
    versions = nvml_versions()
    if versions is not None:
        return versions
    try:
        return "of unknown version", cuda_of_driver()
    except BackendError:  # no driver, or nothing to ask it with
        return None, None


def _wanted() -> dict[str, str]:
    """Return the CUDA version that each installed library was built for."""
    versions = {}
    try:
        # ONNX Runtime writes this module at build time. Importing it loads no CUDA library.
        built: Any = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except ImportError:
        built = None
    if version := getattr(built, "cuda_version", None):
        versions[str(getattr(built, "package_name", "onnxruntime-gpu"))] = str(version)
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"])
        if match := _TENSORRT.match(name):
            versions[name] = match[1]
    return dict(sorted(versions.items()))


def _major(version: str) -> int:
    return int(version.partition(".")[0])
