"""From training to inspection with a window: every gate passes, and all paths score alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_dataset import CATEGORY, normal_images

from flawscope.bundle import PatchcoreHead, open_bundle
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.errors import BundleError
from flawscope.export.detectors.detector_export import export_run
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def windowed(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windowed")
    config, _ = build_config("patchcore", {"resize": 64, "stages": [1, 2], "coreset": 300, "window": 2})
    train_detector(config, open_dataset(tiny_root, CATEGORY), folder / "run")
    export_run(folder / "run", folder / "part.flaw", max_batch=4)  # the parity gate: torch, graph and kernels
    return folder / "part.flaw"


def test_the_bundle_has_the_window_and_the_places(windowed: Path) -> None:
    with open_bundle(windowed) as bundle:
        head, tensors = bundle.manifest.head, bundle.tensors()
    assert isinstance(head, PatchcoreHead)
    assert head.window == 2
    assert tensors["places"].shape == (300, 2)
    assert tensors["neighbours"].shape == (300, 9)  # of the whole bank


def test_kernels_and_graph_score_alike(windowed: Path, tiny_root: Path) -> None:
    images = normal_images(tiny_root)[:3]
    scores = []
    for path in ("kernel", "graph"):
        with Inspector.load(windowed, "cpu", path) as inspector:
            scores.append([inspector(image).score for image in images])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_a_window_whose_places_are_gone_is_one_line(windowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bundle(windowed) as bundle:
        kind, tensors = type(bundle), dict(bundle.tensors())
    del tensors["places"]
    monkeypatch.setattr(kind, "tensors", lambda self: tensors)
    with pytest.raises(BundleError, match=r"bank: expected the tensor places, got .*Export the bundle") as err:
        Inspector.load(windowed, "cpu")
    assert "\n" not in str(err.value)
