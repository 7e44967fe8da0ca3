"""Engines of real bundles in every precision, built without a GPU: PatchCore, PaDiM, and a ResNet-18."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.numpy
from modelopt_here import needs_modelopt

from flawscope.bundle import open_bundle
from flawscope.calibration.quantization.gate_limits import Limits
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.export.detectors.detector_export import export_run
from flawscope.export.precisions import Wanted
from flawscope.runtime.engines import BuildOptions, EngineCache, Target, import_tensorrt
from flawscope.runtime.engines.ensure import ensure_engine
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long

pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')

LOOSE = Limits(1.0, 1.0, -1.0, 1.0, 0.5, images=5)
"""What 64 pixels of a tiny set can be held to: the figures are judged elsewhere, on real images."""
BUNDLES = ("patchcore", "padim", "resnet18")
PRECISIONS = ("fp16", "int8")


@pytest.fixture(scope="module")
def resnet18_run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """A PatchCore run on a ResNet-18 whose weights are drawn: engines do not ask what they are good for."""
    import timm
    import torch

    folder = tmp_path_factory.mktemp("resnet18")
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in timm.create_model("resnet18").state_dict().items()}
    safetensors.numpy.save_file(weights, folder / "weights.safetensors")
    settings = {"backbone": "resnet18", "resize": 64, "stages": [2, 3], "coreset": 50, "held_out_minimum": 5}
    train_detector(
        build_config("patchcore", settings)[0],
        open_dataset(tiny_root, "steel"),
        folder / "run",
        weights=folder / "weights.safetensors",
    )
    return folder / "run"


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path], resnet18_run: Path, tiny_root: Path
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("precisions")
    dataset = open_dataset(tiny_root, "steel")
    for name, run in {**runs, "resnet18": resnet18_run}.items():
        wanted = Wanted(PRECISIONS, dataset, dataset, limits=dict.fromkeys(PRECISIONS, LOOSE), backends=("cpu",))
        export_run(run, folder / f"{name}.flaw", max_batch=8, wanted=wanted)
    return {name: folder / f"{name}.flaw" for name in BUNDLES}


@needs_modelopt
@pytest.mark.parametrize("graph", ["features", "score"])
@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
@pytest.mark.parametrize("name", BUNDLES)
def test_every_precision_builds_for_batches_of_1_to_8(
    exported: dict[str, Path], tmp_path: Path, name: str, precision: str, graph: str
) -> None:
    with open_bundle(exported[name]) as bundle:
        ensured = ensure_engine(
            bundle,
            graph,
            import_tensorrt("tensorrt-rtx"),
            Target("", (8, 9), ""),
            BuildOptions(1, 1, 8),
            EngineCache(tmp_path),
            precision=precision,
        )
    entry = ensured.stored.entry
    assert entry is not None
    assert ensured.stored.problem is None
    assert entry.key.precision == precision
    assert entry.size > 10_000


@needs_modelopt
@pytest.mark.parametrize("name", BUNDLES)
def test_fp16_is_smaller_and_says_how_it_was_made(exported: dict[str, Path], name: str) -> None:
    with open_bundle(exported[name]) as bundle:
        manifest = bundle.manifest
        assert set(manifest.precisions) == set(PRECISIONS)
        made = manifest.precisions["fp16"]
        assert made.method.startswith("AutoCast of ModelOpt ")
        assert made.quantised > 0
        assert made.gate is not None
        assert 0 < made.gate.score_max_relative < 0.05
        sizes = {kind: manifest.files[manifest.graphs_of(kind)["features"].file].size for kind in ("fp32", "fp16")}
        if name == "resnet18":  # where weights are most of a graph
            assert sizes["fp16"] < 0.55 * sizes["fp32"]
