"""Every method of the table on `openvino`: scores, maps and drawn images are those of `cpu`, on every path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toy_method
from method_bundles import MAX_BATCH, MethodBundles, paths_of
from tiny_base import tiny_images
from tiny_dataset import DEFECTS, anomalous_images, normal_images
from tiny_drawers import traced_once, write_drawers

from flawscope import methods
from flawscope.export.synthesis.generator_export import export_synthesis
from flawscope.imaging.images import prepare, read_image
from flawscope.methods import METHODS
from flawscope.runtime import Inspector
from flawscope.runtime.synthesis import DrawOptions, DrawOrder, Synthesizer

pytest.importorskip("openvino", reason="the extra openvino is not installed")
pytestmark = pytest.mark.long

CLOSE = 2e-5
"""Largest difference of scores, relative to their size, and of map values, relative to the largest: both backends sum
in FP32, in another order."""
SCORING = methods.names("detector", "ensemble")
SLOW = ("stfpm", "destseg", "dsad")
"""Their networks take longest to train and trace: they run before a release, a method that is new on every change."""
DRAWING = methods.names("generator")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> MethodBundles:
    return MethodBundles(tmp_path_factory.mktemp("methods"), tiny_root)


def assert_agrees(method: str, bundle: Path, root: Path) -> None:
    """Compare every path on both backends with the graph on `cpu`, image by image and in batches."""
    paths = [*normal_images(root)[:3], *anomalous_images(root)[:3]]
    with Inspector.load(bundle, "cpu", "graph") as reference:
        images = np.stack([prepare(read_image(path), reference.manifest.input) for path in paths])
        maps, scores = reference.infer(images[:MAX_BATCH])
        more = reference.infer(images[MAX_BATCH:])
        least = reference.scorer.least_score
    maps, scores = np.concatenate([maps, more[0]]), np.concatenate([scores, more[1]])
    assert np.ptp(scores) > 100 * CLOSE * np.abs(scores).max(), "scores that are all alike show nothing"
    for path in paths_of(method):
        for backend in ("cpu", "openvino"):
            with Inspector.load(bundle, backend, path) as inspector:
                assert inspector.backend == backend
                for size in (1, MAX_BATCH):
                    found = [inspector.infer(images[start : start + size]) for start in range(0, len(images), size)]
                    got_maps, got_scores = (np.concatenate(part) for part in zip(*found, strict=True))
                    case = f"{method}, {path} on {backend}, batches of {size}"
                    error = np.abs(got_scores - scores) / np.maximum(np.abs(scores), least)
                    assert error.max() <= CLOSE, case
                    assert np.abs(got_maps - maps).max() <= CLOSE * max(float(np.abs(maps).max()), least), case


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SCORING]
)
def test_scores_and_maps_are_those_of_the_cpu(made: MethodBundles, tiny_root: Path, method: str) -> None:
    assert_agrees(method, made[method], tiny_root)


def test_a_method_that_is_new_needs_nothing_here(
    tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "toy", toy_method.ROW)
    assert_agrees("toy", MethodBundles(tmp_path, tiny_root)["toy"], tiny_root)


@pytest.fixture(scope="module")
def drawers(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Iterator[dict[str, Path]]:
    """Method -> a run of what draws."""
    with traced_once():
        yield write_drawers(tmp_path_factory.mktemp("drawers"), tiny_root)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name == "base" else name for name in DRAWING]
)
def test_drawn_images_are_those_of_the_cpu(drawers: dict[str, Path], tmp_path: Path, method: str) -> None:
    export_synthesis(drawers[method], tmp_path / "drawer.flaw", max_batch=4)
    orders = []
    for seed, image in enumerate(tiny_images(3)):
        mask = np.zeros(image.shape[:2], np.bool_)
        mask[4:12, 4 : 10 + seed] = True
        orders.append(DrawOrder(image, mask, DEFECTS[seed % 2], None, seed=seed))
    drawn = {}
    for backend in ("cpu", "openvino"):
        with Synthesizer.load(tmp_path / "drawer.flaw", backend) as synthesizer:
            assert synthesizer.backend == backend
            drawn[backend] = synthesizer.draw(orders, DrawOptions(steps=4), batch=2)
    for order, expected, got in zip(orders, drawn["cpu"], drawn["openvino"], strict=True):
        assert (expected.image != order.image).any()
        assert np.abs(got.image.astype(int) - expected.image).max() <= 1
