"""Switches of a memory bank from training to the line: the parity gate, both paths, and a bundle of schema 3."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_dataset import CATEGORY, anomalous_images, normal_images, write_rgb

from flawscope.bundle import PatchcoreHead
from flawscope.cli import run
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.errors import DataError
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
# Every pair of switches is in one of them or of those below.
TOGETHER: list[dict[str, Any]] = [
    {"metric": "cosine", "top_share": 0.05, "layers": "separate", "views": "flips", "components": 0.9},
    {"metric": "cosine", "layers": "joined", "standardize": "scale", "reweight": "seed"},
    {"metric": "euclidean", "top_share": 0.01, "layers": "separate", "shrinkage": None, "standardize": "whiten"},
]
IN_FOREGROUND: list[dict[str, Any]] = [
    {"metric": "cosine", "layers": "separate", "standardize": "scale", "top_share": 0.02, "views": "quarters"},
    {"metric": "euclidean", "layers": "joined", "standardize": "none", "reweight": "paper"},
    {"metric": "euclidean", "layers": "joined", "standardize": "none", "scales": [0.75, 1]},
]


@pytest.mark.parametrize("switches", TOGETHER)
def test_a_bundle_with_switches_scores_alike_on_every_path(
    tiny_root: Path,
    tmp_path: Path,
    switches: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    check_engine(bundle, head, tmp_path, monkeypatch, capsys)
    scores, normal = answers[0][0], len(normal_images(tiny_root))
    assert scores[normal:].mean() > scores[:normal].mean()


def check_engine(
    bundle: Path,
    head: PatchcoreHead,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Build an engine for another GPU, not run here: of the whole graph where the CUDA kernels do not do."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return
    monkeypatch.setenv("FLAWSCOPE_ENGINES", str(folder / "engines"))
    capsys.readouterr()
    assert run(["engine", "build", str(bundle), "--runtime", "tensorrt-rtx", "--target", "8.9"]) == 0
    assert f"graph {'features' if head.fits_device else 'score'}, fp32" in capsys.readouterr().out
    if head.fits_device:  # the nodes of the head are in the other one
        built = ["engine", "build", str(bundle), "--runtime", "tensorrt-rtx", "--target", "8.9", "--graph", "score"]
        assert run(built) == 0


def part_image(seed: int, spot: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Return a bright square before a dark background, both rough; with a spot of 8 x 8 pixels at a place."""
    generator = np.random.default_rng(seed)
    image = np.full((64, 64, 3), 40, np.int64)
    y, x = generator.integers(14, 19, 2)
    image[y : y + 32, x : x + 32] = 200
    image += generator.integers(-10, 11, image.shape)
    if spot is not None:
        # On the part it is bright, behind it dark: what looks like the other side would be taken for it.
        image[spot[0] : spot[0] + 8, spot[1] : spot[1] + 8] = [250, 120, 30] if min(spot) > 10 else [10, 10, 80]
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts before a background, in the layout of MVTec AD."""
    root = tmp_path_factory.mktemp("parts")
    for folder, seeds, spot in (("train/good", range(16), None), ("test/spot", range(20, 22), (28, 28))):
        (root / folder).mkdir(parents=True)
        for seed in seeds:
            write_rgb(root / folder / f"{seed:02}.png", part_image(seed, spot))
    return root


@pytest.mark.parametrize("switches", IN_FOREGROUND)
def test_what_lies_behind_the_part_does_not_count(
    parts: Path,
    tmp_path: Path,
    switches: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, _ = build_config("patchcore", {**BASE, **switches, "foreground": True, "coreset": 200})
    train_detector(config, open_dataset(parts), tmp_path / "run")
    manifest = export_run(tmp_path / "run", tmp_path / "part.flaw", max_batch=4)
    assert isinstance(manifest.head, PatchcoreHead)
    assert manifest.head.foreground
    images = [part_image(30), part_image(30, (1, 1)), part_image(30, (28, 28)), np.full((64, 64, 3), 40, np.uint8)]
    scores = []
    for path in ("kernel", "graph"):
        with Inspector.load(tmp_path / "part.flaw", "cpu", path=path) as inspector:
            scores.append(np.array([inspector(image).score for image in images]))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3)
    check_engine(tmp_path / "part.flaw", manifest.head, tmp_path, monkeypatch, capsys)
    plain, behind, on_part, missing = scores[0]
    if switches["metric"] == "euclidean":  # there the first component is brightness, elsewhere it sees colours too
        assert behind < 1.5 * plain
    assert on_part > 1.5 * plain
    assert missing > 1.5 * plain  # nothing of the part is no perfect part


def test_images_without_a_background_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    config, _ = build_config("patchcore", {**BASE, "foreground": True, "standardize": "scale"})
    with pytest.raises(DataError, match=r"foreground: expected patches in two groups, .* Set foreground=false\."):
        train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
