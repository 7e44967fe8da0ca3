"""Locates ModelOpt, usually in a separate environment because it pins another ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from flawscope.errors import ArgumentError

PYTHON = "FLAWSCOPE_MODELOPT_PYTHON"
"""Environment variable: the Python interpreter that has ModelOpt."""

HELP = (
    'ModelOpt wants an environment of its own: python -m venv fp16 && fp16/bin/pip install "flawscope[fp16]", then '
    f"name fp16/bin/python with --modelopt-python or {PYTHON}."
)


def find_python(given: Path | None = None) -> Path:
    """Return the interpreter with ModelOpt: `given`, that of `FLAWSCOPE_MODELOPT_PYTHON`, or this one, in that order.

    Raises:
        ArgumentError: If there is none.
    """
    named = given or (Path(os.environ[PYTHON]) if os.environ.get(PYTHON) else None)
    if named is not None:
        interpreter = shutil.which(named)
        if interpreter is None:
            raise ArgumentError(f"--modelopt-python: expected a Python interpreter, got {named}. {HELP}")
        # Not resolved: the python of a virtual environment is a link, and through it that environment is found.
        return Path(interpreter).absolute()
    # Looked for, not imported: importing it takes seconds, and only the worker needs it.
    if importlib.util.find_spec("modelopt") is None:
        raise ArgumentError(f"FP16: expected the package nvidia-modelopt[onnx] in this environment, got none. {HELP}")
    return Path(sys.executable)
