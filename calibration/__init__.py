"""Measuring a bundle and setting its thresholds: metrics, bounds, `calibrate`, `evaluate` and the report.

Names are imported when they are first used, so that one metric does not bring Matplotlib or ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "auroc": "metrics",
    "aupro": "metrics",
    "average_precision": "metrics",
    "f1_max": "metrics",
    "pixel_auroc": "metrics",
    "pixel_average_precision": "metrics",
    "rank_pixels": "metrics",
    "clopper_pearson": "intervals",
    "image_intervals": "intervals",
    "pixel_intervals": "intervals",
    "rate": "intervals",
    "upper_bound": "intervals",
    "f1_threshold": "thresholds",
    "images_needed": "thresholds",
    "order_statistic_threshold": "thresholds",
    "calibrate_bundle": "calibrate",
    "set_thresholds": "calibrate",
    "evaluate_bundle": "evaluate",
    "record_accuracy": "evaluate",
    "write_report": "report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
