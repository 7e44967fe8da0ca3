"""Make the separate environment in which the rival of the benchmark runs.

anomalib is not a dependency of flawscope and must not meet its environment: the two want different versions of the
same libraries. So it gets a virtual environment of its own, made once and re-used while the pins stay the same.
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
)
"""What pip is asked for; the result of each run records all versions that were used."""

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "build" / "anomalib"
MARKER = "flawscope-pins.txt"


def ensure_environment(folder: Path = DEFAULT_FOLDER) -> Path:
    """Return the Python of an environment that has anomalib, made from the package index where it is not there yet.

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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        # pip tells the reason in its last line that begins so; what follows are hints.
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip said nothing"]
        raise FlawscopeError(
            f"anomalib: expected pip to install {', '.join(PINS)}, got status {done.returncode}: {errors[-1]} "
            "Check the network and the free space, or point to an environment that has anomalib."
        )
