"""Package versions and processor name, recorded with every measured figure."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import flawscope

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnx",
    "torch",
    "timm",
    "scikit-learn",
    "scipy",
)


def package_versions() -> dict[str, str]:
    """Return the versions of flawscope, Python, and the installed packages that affect results."""
    versions = {"flawscope": flawscope.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    try:
        # platform.processor() is empty or just "x86_64" on Linux.
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
