"""Switches of a memory bank from training to the line: the parity gate, both paths, and a bundle of schema 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_dataset import CATEGORY, anomalous_images, normal_images

from flawscope.bundle import PatchcoreHead
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.export.detectors.detector_export import export_run
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long

BASE: dict[str, Any] = {
    "resize": 64,
    "stages": [1, 2],
    "coreset": 60,
    "sigma": 2.0,
    "held_out_minimum": 5,
    "reweight": "none",
}
# Every pair of switches is in one of them.
TOGETHER: list[dict[str, Any]] = [
    {"metric": "cosine", "top_share": 0.05, "layers": "separate", "views": "flips", "components": 0.9},
    {"metric": "cosine", "layers": "joined", "standardize": "scale", "reweight": "seed"},
    {"metric": "euclidean", "top_share": 0.01, "layers": "separate", "shrinkage": None, "standardize": "whiten"},
]


@pytest.mark.parametrize("switches", TOGETHER)
def test_a_bundle_with_switches_scores_alike_on_every_path(
    tiny_root: Path, tmp_path: Path, switches: dict[str, Any]
) -> None:
    config, _ = build_config("patchcore", {**BASE, **switches})
    train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    bundle = tmp_path / "part.flaw"
    manifest = export_run(tmp_path / "run", bundle, max_batch=4)
    head = manifest.head
    assert isinstance(head, PatchcoreHead)
    share = switches.get("top_share", 0)
    assert (head.metric, head.top) == (switches["metric"], max(1, int(share * 256)))
    assert head.banks == (2 if switches["layers"] == "separate" else 1)
    # The gate has compared them with plain torch already; the figures are far within its limits.
    assert all(row.score_max_relative < 1e-4 for row in manifest.evidence.parity)
    images = [*normal_images(tiny_root), *anomalous_images(tiny_root)]
    answers = []
    for path in ("kernel", "graph"):
        with Inspector.load(bundle, "cpu", path=path) as inspector:
            results = inspector(images)
        answers.append((np.array([result.score for result in results]), [result.anomaly_map for result in results]))
    np.testing.assert_allclose(answers[0][0], answers[1][0], rtol=1e-3)
    np.testing.assert_allclose(answers[0][1], answers[1][1], rtol=1e-2, atol=1e-3)
    scores, normal = answers[0][0], len(normal_images(tiny_root))
    assert scores[normal:].mean() > scores[:normal].mean()
