"""The preset anomalydino on a small ViT with random weights: mechanics alone, which say nothing about accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from tiny_dataset import CATEGORY, anomalous_images, normal_images

from flawscope.bundle import PatchcoreHead
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.export.detectors.detector_export import export_run
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.settings import read_settings

pytestmark = pytest.mark.long

# A small network and few of its blocks, at a size with more than 200 tokens: 1 % of them are two.
SMALLER: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "resize": 240, "views": "flips", "max_bank": 100}


@pytest.mark.parametrize(
    "layers", [pytest.param({"stages": [2]}, marks=pytest.mark.slow), {"stages": [1, 2], "layers": "separate"}]
)
def test_the_preset_goes_from_training_to_the_line(tiny_root: Path, tmp_path: Path, layers: dict[str, Any]) -> None:
    config, _ = build_config("patchcore", read_settings("anomalydino"), {**SMALLER, **layers, "held_out_minimum": 5})
    weights = tmp_path / "random.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model(SMALLER["backbone"]).state_dict(), weights)
    record = train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run", weights=weights)
    banks = config.banks
    assert record.grid == (15, 15)
    assert (record.facts["bank_rows"], record.facts["channels"], record.facts["views"]) == (100 * banks, 192 * banks, 4)
    manifest = export_run(tmp_path / "run", tmp_path / "part.flaw", max_batch=2)
    head = manifest.head
    assert isinstance(head, PatchcoreHead)
    assert (head.metric, head.top, head.banks, head.reweights) == ("cosine", 2, banks, False)
    assert all(row.score_max_relative < 1e-4 for row in manifest.evidence.parity)
    images = [normal_images(tiny_root)[0], anomalous_images(tiny_root)[0]]
    answers = []
    for path in ("kernel", "graph"):
        with Inspector.load(tmp_path / "part.flaw", "cpu", path=path) as inspector:
            answers.append([result.score for result in inspector(images)])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-3)
    assert 0 < min(answers[0]) < max(answers[0]) < 1  # 1 - cos of vectors that are much alike
