"""Trainings on other images export the same feature graph, to the last byte, so that their bundles can share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published_weights import write_backbone_weights
from tiny_dataset import CATEGORY, write_rgb

from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.parts import render
from flawscope.export.detectors.detector_export import export_run
from flawscope.runtime import Router
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long

LEARNED = {"backbone": "resnet18", "stages": [1, 2]}
PLAIN = {"backbone": "scattering", "stages": [1, 2]}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two datasets without an image in common."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in (CATEGORY, "gear"):
        for index in range(12):
            write_rgb(folder / kind / "train" / "good" / f"{index:03d}.png", render(kind, 0, index, 64)[0])
    return {kind: folder / kind for kind in (CATEGORY, "gear")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone_weights(tmp_path_factory.mktemp("weights") / "resnet18.safetensors", "resnet18")


def bundles_of(
    method: str, settings: dict[str, Any], roots: dict[str, Path], weights: Path, folder: Path
) -> dict[str, Path]:
    """Train and export on both datasets; with PatchCore other seeds and numbers of rows, too."""
    made = {}
    for number, (kind, root) in enumerate(roots.items()):
        own = {"seed": number, "coreset": 40 + number} if method == "patchcore" else {}
        chosen = {"resize": 64, "held_out_minimum": 2, **own, **settings}
        run, made[kind] = folder / f"{kind}.run", folder / f"{kind}.flaw"
        is_learned = settings["backbone"] != "scattering"
        train_detector(
            build_config(method, chosen)[0],
            open_dataset(root),
            run,
            weights=weights if is_learned else None,
            drawn_check=False,
        )
        export_run(run, made[kind], max_batch=2)
    return made


@pytest.mark.parametrize(
    ("method", "settings", "is_equal"),
    [
        pytest.param("patchcore", LEARNED, True, marks=pytest.mark.slow),
        ("patchcore", {**LEARNED, "metric": "cosine", "window": 3}, True),
        pytest.param("padim", {**LEARNED, "channels": 12}, True, marks=pytest.mark.slow),
        # Statistics of the images are in the graph.
        ("patchcore", PLAIN, False),
    ],
)
def test_the_feature_graph_depends_on_the_images_only_where_a_setting_says_so(
    roots: dict[str, Path], weights: Path, tmp_path: Path, method: str, settings: dict[str, Any], is_equal: bool
) -> None:
    made = bundles_of(method, settings, roots, weights, tmp_path)
    graphs = [(bundle / "features.onnx").read_bytes() for bundle in made.values()]
    assert (graphs[0] == graphs[1]) == is_equal
    with Router(made, "cpu", "kernel") as router:
        assert [use.bundles for use in router.sharing] == (
            [tuple(sorted(made))] if is_equal else [(kind,) for kind in made]
        )
