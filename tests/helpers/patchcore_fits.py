"""Settings and fits of PatchCore on the tiny dataset."""

from __future__ import annotations

from pathlib import Path

import msgspec

from flawscope.config import PatchcoreConfig, build_config
from flawscope.progress import no_progress
from flawscope.training.detectors.patchcore import fit_patchcore
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop.fit_result import FitResult


def patchcore_config(**settings: object) -> PatchcoreConfig:
    config, _ = build_config("patchcore", {"resize": 64, "stages": [1, 2], "coreset": 40, **settings})
    assert isinstance(config, PatchcoreConfig)
    return config


def with_budget_mb(config: PatchcoreConfig, budget: int) -> PatchcoreConfig:
    """Set a budget below what the settings allow: tests have few patches."""
    changed = msgspec.structs.replace(config)
    msgspec.structs.force_setattr(changed, "memory_budget_mb", budget)
    return changed


def fit(config: PatchcoreConfig, backbone: Backbone, paths: list[Path], scratch: Path) -> FitResult:
    return fit_patchcore(config, backbone, paths, scratch, no_progress)
