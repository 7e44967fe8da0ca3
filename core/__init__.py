"""flawscope: visual anomaly detection, trained on normal images, shipped as one bundle, run without PyTorch."""

import os
import sys

__version__ = "0.1.0"

# ONNX Runtime 1.29 and later writes an identifier of the device and queues events below HOME, unless this is set before
# its library is loaded. Here, because no module of flawscope is imported without this one; child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# OpenVINO sends an event over the network when it is imported, and writes an identifier below HOME; so does NNCF. Both
# send nothing where this module cannot be imported, which None in its place means.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
