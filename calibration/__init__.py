"""Measuring a bundle and setting its thresholds: metrics, bounds, `calibrate`, `evaluate` and the report.

Names are imported when they are first used, so that one metric does not bring Matplotlib or ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "auroc": "evaluation.metrics",
    "aupro": "evaluation.metrics",
    "average_precision": "evaluation.metrics",
    "f1_max": "evaluation.metrics",
    "pixel_auroc": "evaluation.metrics",
    "pixel_average_precision": "evaluation.metrics",
    "rank_pixels": "evaluation.metrics",
    "clopper_pearson": "evaluation.intervals",
    "image_intervals": "evaluation.intervals",
    "pixel_intervals": "evaluation.intervals",
    "rate": "evaluation.intervals",
    "upper_bound": "evaluation.intervals",
    "f1_threshold": "thresholds.normal_quantile",
    "images_needed": "evaluation.intervals",
    "order_statistic_threshold": "thresholds.normal_quantile",
    "calibrate_bundle": "thresholds.calibrate",
    "set_thresholds": "thresholds.calibrate",
    "evaluate_bundle": "evaluation.evaluate",
    "record_accuracy": "evaluation.evaluate",
    "write_report": "evaluation.report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
