"""flawscope: visual anomaly detection, trained on normal images, shipped as one bundle, run without PyTorch."""

import importlib
import os
import sys

__version__ = "0.2.0"

# ONNX Runtime 1.29 and later writes an identifier of the device and queues events below HOME, unless this is set before
# its library is loaded. Here, because no module of flawscope is imported without this one; child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# OpenVINO sends an event over the network when it is imported, and writes an identifier below HOME; so does NNCF. Both
# send nothing where this module cannot be imported, which None in its place means.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# Strings, imported when a name is first used: nothing here may import a room above, and `import flawscope` stays light.
# `__init__.pyi` says the same to type checkers and editors; a test compares the two.
_PLACES = {
    "Box": "flawscope.runtime.results",
    "Bundle": "flawscope.workflows.api",
    "Calibration": "flawscope.calibration.thresholds.calibrate",
    "Figures": "flawscope.calibration.evaluation.figures",
    "FlawscopeError": "flawscope.errors",
    "Frame": "flawscope.runtime.frame",
    "Inspector": "flawscope.runtime.inspector",
    "Manifest": "flawscope.bundle.manifest",
    "Result": "flawscope.runtime.results",
    "Router": "flawscope.runtime.router",
    "Run": "flawscope.workflows.api",
    "Threshold": "flawscope.bundle.threshold_structs",
    "Thresholds": "flawscope.bundle.threshold_structs",
    "fit": "flawscope.workflows.api",
}

__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
