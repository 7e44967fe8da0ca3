"""Make the separate environment for anomalib, the rival of the benchmarks.

anomalib is no dependency of flawscope, and the two need different versions of the same libraries. So anomalib gets a
virtual environment of its own, which is made once and used again as long as the pins stay the same.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.files import storage_errors, write_text

PINS = (
    "anomalib==2.7.0",
    "timm==1.0.31",
    "lightning==2.6.6",
    'torch==2.15.0; python_version >= "3.11"',  # has no build for 3.10, where pip takes the newest that has
    'torchvision==0.29.2; python_version >= "3.11"',
    # For detectors that anomalib exports to OpenVINO: its extra `openvino`, pinned.
    "openvino==2026.4.1",
    "nncf==3.4.0",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
)
"""Requirements for pip; the result of each run records all versions that were used."""

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "build" / "anomalib"
MARKER = "flawscope-pins.txt"


def ensure_environment(folder: Path = DEFAULT_FOLDER) -> Path:
    """Return the Python of an environment with anomalib, installed from the package index if it does not exist yet.

    Making it takes minutes and some gigabytes. The marker with the pins is written last, so an interrupted or failed
    installation is done again; an environment of other pins is replaced.

    Args:
        folder: The environment; it must not exist, be empty, or be an environment.

    Raises:
        ArgumentError: If `folder` holds something else.
        FlawscopeError: If the environment cannot be made or pip fails.
        StorageError: If the system refuses to write.
    """
    python = folder / "bin" / "python"
    marker = folder / MARKER
    pins = "\n".join([f"python {sys.version_info.major}.{sys.version_info.minor}", *PINS, ""])
    if python.exists() and marker.is_file() and marker.read_text(encoding="utf-8") == pins:
        return python
    _check_free(folder)
    try:
        with storage_errors(folder):
            venv.create(folder, clear=True, with_pip=True)
    except subprocess.CalledProcessError as err:
        raise FlawscopeError(
            f"{folder}: expected a new virtual environment, got a failure of ensurepip (status {err.returncode}). "
            "Install the venv package of your Python, or point to an environment that has anomalib."
        ) from err
    _install(python)
    write_text(marker, pins)
    return python


def _check_free(folder: Path) -> None:
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / "pyvenv.cfg").is_file():
        raise ArgumentError(
            f"{folder}: expected a free name or a virtual environment, got something else. Choose another folder."
        )


def _install(python: Path) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        lines = [line for line in (process.stderr or process.stdout).splitlines() if line.strip()]
        # The last line that begins so has the reason; lines after it are hints.
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no output of pip"]
        raise FlawscopeError(
            f"anomalib: expected pip to install {', '.join(PINS)}, got status {process.returncode}: {errors[-1]} "
            "Check the network and the free space, or point to an environment that has anomalib."
        )
