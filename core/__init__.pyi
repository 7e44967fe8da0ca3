# The public names for type checkers and editors; at run time they are strings in `__init__.py`, which a test compares.
from flawscope.bundle.manifest import Manifest
from flawscope.bundle.threshold_structs import Threshold, Thresholds
from flawscope.calibration.evaluation.figures import Figures
from flawscope.calibration.thresholds.calibrate import Calibration
from flawscope.errors import FlawscopeError
from flawscope.runtime.frame import Frame
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Box, Result
from flawscope.runtime.router import Router
from flawscope.workflows.api import Bundle, Run, fit

__version__: str
__all__ = [
    "Box",
    "Bundle",
    "Calibration",
    "Figures",
    "FlawscopeError",
    "Frame",
    "Inspector",
    "Manifest",
    "Result",
    "Router",
    "Run",
    "Threshold",
    "Thresholds",
    "__version__",
    "fit",
]
