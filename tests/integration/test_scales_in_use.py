"""Several scales from training to the line: parity on both paths, what goes with them, and refusals."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from small_networks import SMALL
from tiny_dataset import CATEGORY, anomalous_images, normal_images

from flawscope.bundle import PatchcoreHead
from flawscope.cli import run
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.export.detectors.detector_export import export_run
from flawscope.runs import RECORD
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long

BASE: dict[str, Any] = {
    "resize": 96,
    "stages": [1, 2],
    "scales": [0.5, 1, 1.5],
    "sigma": 2.0,
    "held_out_minimum": 5,
}
BANK: dict[str, Any] = {**BASE, "coreset": 60, "reweight": "none"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("patchcore", {**BANK, "metric": "cosine", "top_share": 0.02, "views": "flips", "standardize": "whiten"}),
    ("patchcore", {**BANK, "layers": "separate", "standardize": "scale", "window": 3, "cross_fit": 3}),
    ("patchcore", {**BANK, "layers": "separate", "metric": "cosine", "components": 0.9, "align": False}),
    ("patchcore", {**BANK, "reweight": "paper", "window": 4, "upsample": "nearest", "scales": [1, 2]}),
    ("padim", {**BASE, "channels": 40, "cross_fit": 2}),
]


def scores_of(bundle: Path, path: str, images: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and maps of images on one path."""
    with Inspector.load(bundle, "cpu", path=path) as inspector:  # type: ignore[arg-type]
        results = [inspector(image) for image in images]
    return np.array([each.score for each in results]), np.stack([np.asarray(each.anomaly_map) for each in results])


@pytest.mark.parametrize(
    ("method", "settings"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:-1]), CASES[-1]],
)
def test_a_bundle_of_several_scales_scores_alike_on_every_path(
    tiny_root: Path, tmp_path: Path, method: str, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = build_config(method, settings)
    record = train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    scales = tuple(settings["scales"])
    assert record.grid == (24, 24)
    assert record.places is None if settings.get("align") is False else len(record.places or ()) == 2 * len(scales)
    assert (record.cross is None) == ("cross_fit" not in settings)
    manifest = export_run(tmp_path / "run", tmp_path / "part.flaw", max_batch=4)
    assert all(row.score_max_relative < 1e-4 for row in manifest.evidence.parity)
    if isinstance(manifest.head, PatchcoreHead):
        assert manifest.head.banks == (2 * len(scales) if settings.get("layers") == "separate" else 1)
    images = [*normal_images(tiny_root), *anomalous_images(tiny_root)]
    kernel, graph = (scores_of(tmp_path / "part.flaw", path, images) for path in ("kernel", "graph"))
    np.testing.assert_allclose(kernel[0], graph[0], rtol=1e-3)
    np.testing.assert_allclose(kernel[1], graph[1], rtol=1e-2, atol=1e-3)
    normal = len(normal_images(tiny_root))
    assert kernel[0][normal:].mean() > kernel[0][:normal].mean()
    capsys.readouterr()
    assert run(["bundle", "info", str(tmp_path / "part.flaw")]) == 0
    sizes = {0.5: "48x48", 1: "96x96", 1.5: "144x144", 2: "192x192"}
    expected = ", ".join(f"{scale:g} ({sizes[scale]})" for scale in scales)
    assert any(line.split() == ["scales", *expected.split()] for line in capsys.readouterr().out.splitlines())


@pytest.mark.slow
def test_a_transformer_sees_every_scale_and_its_table_is_resized_at_export(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vit_tiny_patch16_224"
    settings = {**BANK, "backbone": name, "backbone_options": SMALL[name], "resize": 64, "stages": [1, 3]}
    config, _ = build_config("patchcore", {**settings, "scales": [0.7, 1]})
    torch.manual_seed(0)
    weights = tmp_path / "random.safetensors"
    safetensors.torch.save_file(timm.create_model(name, **SMALL[name]).state_dict(), weights)
    record = train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run", weights=weights)
    assert record.backbone.conditions[-1] == "scales: 0.7 (48x48), 1 (64x64)"
    assert record.config.features.backbone_options["dynamic_img_size"] is True  # type: ignore[attr-defined]
    manifest = export_run(tmp_path / "run", tmp_path / "part.flaw", max_batch=2)
    assert all(row.score_max_relative < 1e-4 for row in manifest.evidence.parity)
    model = onnx.load(tmp_path / "part.flaw" / "features.onnx")
    assert not [node.name for node in model.graph.node if node.op_type == "Resize"]
    # Products with weights look like such, at both scales: INT8 and the estimate of memory go by that.
    constants = {tensor.name for tensor in model.graph.initializer}
    mine = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]
    assert (
        len([node for node in mine if node.name.startswith("backbone.inner.network")]) == 2 * 4 * SMALL[name]["depth"]
    )
    images = [normal_images(tiny_root)[0], anomalous_images(tiny_root)[0]]
    kernel, graph = (scores_of(tmp_path / "part.flaw", path, images)[0] for path in ("kernel", "graph"))
    np.testing.assert_allclose(kernel, graph, rtol=1e-3)
    if importlib.util.find_spec("tensorrt_rtx") is not None:  # for another GPU, not run here
        monkeypatch.setenv("FLAWSCOPE_ENGINES", str(tmp_path / "engines"))
        built = ["engine", "build", str(tmp_path / "part.flaw"), "--runtime", "tensorrt-rtx", "--target", "8.9"]
        assert run(built) == 0
        assert run([*built, "--graph", "score"]) == 0


def test_a_run_without_the_setting_is_of_one_scale(tiny_root: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in BANK.items() if key != "scales"}
    config, _ = build_config("patchcore", settings)
    record = train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    assert not any("scales" in line for line in record.backbone.conditions)
    export_run(tmp_path / "run", tmp_path / "now.flaw", max_batch=1)
    plain = msgspec.json.decode((tmp_path / "run" / RECORD).read_bytes())
    assert plain["config"].pop("scales") == [1.0]
    (tmp_path / "run" / RECORD).write_bytes(msgspec.json.encode(plain))
    assert read_run(tmp_path / "run").record.config.patches.scales == (1.0,)  # type: ignore[attr-defined]
    export_run(tmp_path / "run", tmp_path / "older.flaw", max_batch=1)
    for file in ("features.onnx", "score.onnx", "bank.safetensors"):
        assert (tmp_path / "now.flaw" / file).read_bytes() == (tmp_path / "older.flaw" / file).read_bytes()
    model = onnx.load(tmp_path / "now.flaw" / "features.onnx")
    assert not [node.name for node in model.graph.node if "resizing" in node.name or "inner" in node.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": [0.25, 1], "resize": 64}, r"scales: expected a backbone that takes images of 16x16 pixels, "),
        ({"scales": [0.98, 1]}, r"scales: expected sizes that differ, got 96x96 for both 1 and 0\.98 "),
        (
            {"scales": [0.1, 1], "resize": 32},
            r"scales: expected at least 8 pixels along each side, .* got 3x3 for 0\.1",
        ),
        ({"scales": [1, 4], "resize": 4096}, r"scales: expected at most 8192 pixels along each side, got 16384x16384"),
    ],
)
def test_scales_that_cannot_be_are_refused_before_images_are_read(
    tiny_root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config, _ = build_config("patchcore", {**BANK, **changes})
    said: list[str] = []
    with pytest.raises(ArgumentError, match=message):
        train_detector(
            config,
            open_dataset(tiny_root, CATEGORY),
            tmp_path / "run",
            progress=lambda stage, count, total: said.append(stage),
        )
    assert said == []
    assert list(tmp_path.iterdir()) == []
