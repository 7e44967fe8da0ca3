"""Runs of `train inpainting` in memory, with any tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_dataset import CATEGORY
from torch import Tensor

from flawscope.config.setting_parts import tag_of
from flawscope.runs import SynthesisRecord
from flawscope.training.synthesis.base_model import SynthesisBase
from flawscope.training.synthesis.generator_run import SynthesisRun


def run_of(base: SynthesisBase, settings: Any, networks: dict[str, dict[str, Tensor]]) -> SynthesisRun:
    """Return a run as it is read back."""
    record = SynthesisRecord(
        kind=tag_of(type(settings)),
        config=settings,
        category=CATEGORY,
        layout="mvtec",
        dataset="0" * 64,
        training=(),
        base=base.identity,
        licence="own",
        defects=(),
        networks={},
        facts={},
        seconds={},
        versions={},
        created="",
        command="",
        flawscope="0",
    )
    return SynthesisRun(Path("run"), record, "", networks)
