"""Worker of the FP16 conversion: a script for the interpreter with ModelOpt, which needs nothing of flawscope.

    python -I autocast_worker.py REQUEST.json

ModelOpt pins an ONNX Runtime that conflicts with ours, so it usually lives in an environment of its own. This file may
import nothing of flawscope, and no package at its top: a missing one is reported in the answer.
The request names files and numbers, the answer is written beside the graph: `{"kept": {node: reason}, "version": …}`,
or `{"error": …}`.
"""

import importlib.metadata
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any


class _Skipped(logging.Handler):
    """Collects which nodes ModelOpt leaves in FP32, and why."""

    # ModelOpt gives this nowhere but in its log, at level INFO; a reworded message would leave the list empty.

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.reasons: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        match = re.match(r"Skipping node (\S+): (.*)", record.getMessage(), re.DOTALL)
        if match:
            self.reasons[match[1]] = " ".join(match[2].split())


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Convert one graph as the request says; return the answer."""
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    skipped = _Skipped()
    logger = logging.getLogger("modelopt.onnx")
    logger.handlers[:] = [skipped]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    model = convert_to_mixed_precision(
        onnx_path=str(request["graph"]),
        low_precision_type="fp16",
        # ModelOpt passes these to re.match: without "$", conv1 would exclude conv10 as well.
        nodes_to_exclude=[re.escape(name) + "$" for name in request["exclude"]],
        op_types_to_exclude=request["exclude_types"],
        data_max=float("inf"),  # operators with large values are among those that are excluded
        keep_io_types=True,
        providers=["cpu"],
    )
    # Weights in a file of their own, however small: a Protobuf message ends at 2 GB.
    onnx.save(model, str(request["out"]), save_as_external_data=True, location="fp16.onnx.data")
    return {"kept": skipped.reasons, "version": importlib.metadata.version("nvidia-modelopt")}


def main() -> None:
    """Read the request, write the answer."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        answer = convert(request)
    except ModuleNotFoundError as err:
        answer = {"missing": str(err.name)}
    except Exception as err:
        # Whatever goes wrong in ModelOpt becomes one line in the caller's message, instead of a traceback.
        answer = {"error": f"{type(err).__name__}: {' '.join(str(err).split())[:500]}"}
    Path(str(request["answer"])).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
