"""Reduced precisions of detectors without patches: one graph (STFPM, segmenter), and the denoisers of DDAD and DSAD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from modelopt_here import needs_modelopt
from published_weights import write_backbone_weights
from tiny_dataset import CATEGORY
from tiny_judged import SIDE, write_place

from flawscope.bundle import open_bundle
from flawscope.calibration.quantization.autocast import operators_in
from flawscope.calibration.quantization.gate_limits import Limits
from flawscope.calibration.quantization.qdq import OPERATORS
from flawscope.calibration.quantization.reduced_precision import outside_of
from flawscope.config import build_config
from flawscope.datasets import Dataset, open_dataset
from flawscope.errors import ArgumentError, GateError
from flawscope.export.detectors.detector_export import export_run
from flawscope.export.exporter import exporter_named
from flawscope.export.precisions import Wanted
from flawscope.runtime import Inspector
from flawscope.runtime.backends.table import is_there
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long
needs_bf16 = pytest.mark.skipif(
    not is_there("openvino", "bf16"), reason="OpenVINO is not installed, or does not compute in BF16 here"
)

LOOSE = Limits(1.0, 1.0, -1.0, 1.0, 1.0, images=3)
"""What a few tiny images can be held to: the figures are judged elsewhere, on real images."""
NONE = Limits(0.0, 0.0, 1.0, 0.0, 0.0, images=3)
"""What no reduced precision can keep."""

Made = tuple[Path, Dataset]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("segmenter")
    place = write_place(folder)
    settings: dict[str, Any] = {"resize": SIDE, "stages": [1, 2], "batch_size": 8, "epoch_batches": 5, "epochs": 3}
    settings |= {"learning_rate": 0.02, "width": 16, "top": 20, "num_workers": 1, "device": "cpu", "held_out": 0.3}
    settings |= {"held_out_minimum": 3, "validation": 0.3, "drawn": str(place.helpful)}
    dataset = open_dataset(place.root)
    train_detector(build_config("segmenter", settings)[0], dataset, folder / "run", drawn_check=False)
    return folder / "run", dataset


@pytest.fixture(scope="module")
def draem(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Made:
    folder = tmp_path_factory.mktemp("draem")
    settings: dict[str, Any] = {"resize": 32, "width": 8, "depth": 2, "segmentation_width": 8, "segmentation_depth": 2}
    settings |= {
        "learning_rate": 0.01,
        "epochs": 3,
        "epoch_batches": 6,
        "batch_size": 4,
        "num_workers": 1,
        "device": "cpu",
        "held_out": 0.3,
    }
    settings |= {"held_out_minimum": 5, "validation": 0.3}
    dataset = open_dataset(tiny_root, CATEGORY)
    train_detector(build_config("draem", settings)[0], dataset, folder / "run", drawn_check=False)
    return folder / "run", dataset


@pytest.fixture(scope="module")
def destseg(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Made:
    folder = tmp_path_factory.mktemp("destseg")
    weights = write_backbone_weights(folder / "weights.safetensors", "mobilenetv2_035")
    settings: dict[str, Any] = {"backbone": "mobilenetv2_035", "resize": 64, "width": 8, "blocks": 1, "head_width": 16}
    settings |= {"epochs": 2, "epoch_batches": 4, "batch_size": 4, "num_workers": 1, "device": "cpu", "held_out": 0.3}
    settings |= {"held_out_minimum": 5, "validation": 0.3, "learning_rate": 0.1}
    dataset = open_dataset(tiny_root, CATEGORY)
    config = build_config("destseg", settings)[0]
    train_detector(config, dataset, folder / "run", weights=weights, drawn_check=False)
    return folder / "run", dataset


@pytest.fixture(scope="module")
def stfpm(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Made:
    folder = tmp_path_factory.mktemp("stfpm")
    weights = write_backbone_weights(folder / "weights.safetensors", "mobilenetv2_035")
    settings = {
        "backbone": "mobilenetv2_035",
        "resize": 64,
        "epochs": 1,
        "batch_size": 8,
        "num_workers": 1,
        "device": "cpu",
        "held_out_minimum": 5,
    }
    dataset = open_dataset(tiny_root, CATEGORY)
    config = build_config("stfpm", settings)[0]
    train_detector(config, dataset, folder / "run", weights=weights, drawn_check=False)
    return folder / "run", dataset


@pytest.fixture(scope="module")
def ddad(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Made:
    folder = tmp_path_factory.mktemp("ddad")
    settings: dict[str, Any] = {
        "backbone": "scattering",
        "resize": 32,
        "stages": [1, 2],
        "widths": [8, 16],
        "layers": 1,
    }
    settings |= {
        "attention": [16],
        "epochs": 1,
        "batch_size": 8,
        "steps": 3,
        "eta": 1.0,
        "held_out_minimum": 5,
        "num_workers": 1,
        "device": "cpu",
    }
    dataset = open_dataset(tiny_root, CATEGORY)
    train_detector(build_config("ddad", settings)[0], dataset, folder / "run", drawn_check=False)
    return folder / "run", dataset


@pytest.fixture(scope="module")
def dsad(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Made:
    folder = tmp_path_factory.mktemp("dsad")
    dataset = open_dataset(tiny_root, CATEGORY)
    both: dict[str, Any] = {"backbone": "scattering", "resize": 32, "layers": 1, "epochs": 1, "batch_size": 8}
    both |= {"accumulate": 1, "held_out_minimum": 5, "num_workers": 1, "device": "cpu"}
    learned = build_config("autoencoder", {**both, "widths": [8, 16, 16]})[0]
    train_detector(learned, dataset, folder / "autoencoder", drawn_check=False)
    settings = {**both, "stages": [1, 2], "widths": [16, 32], "heads": 2, "context": 8, "hint_widths": [4, 8, 16]}
    settings |= {"sketch_size": 16, "steps": 3, "pooling": 2, "sigma": 2.0}
    settings |= {"autoencoder": str(folder / "autoencoder")}
    train_detector(build_config("dsad", settings)[0], dataset, folder / "run", drawn_check=False)
    return folder / "run", dataset


def exported(made: Made, out: Path, precision: str, limits: Limits = LOOSE) -> Path:
    run, dataset = made
    # Networks of one epoch: how far two runtimes round them apart depends on the processor, and says nothing.
    wanted = Wanted((precision,), dataset, dataset, limits={precision: limits}, backends=("cpu",))
    export_run(run, out, max_batch=2, wanted=wanted)
    return out


def scores_of(bundle: Path, dataset: Dataset, precision: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    with Inspector.load(bundle, "cpu", precision=precision) as inspector:
        return np.array([result.score for result in inspector([sample.path for sample in dataset.test[:4]])])


@pytest.mark.parametrize(
    # STFPM and DeSTSeg take twenty seconds each for what DRAEM and the segmenter show in five.
    "method",
    ["segmenter", "draem", *(pytest.param(name, marks=pytest.mark.slow) for name in ("destseg", "stfpm"))],
)
@pytest.mark.parametrize("precision", ["int8", pytest.param("fp16", marks=needs_modelopt)])
def test_one_graph_has_its_networks_reduced_and_its_head_in_fp32(
    method: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(method)
    bundle = exported(made, tmp_path / "part.flaw", precision)
    networks = exporter_named(method).reducible.networks  # type: ignore[union-attr]
    with open_bundle(bundle) as opened:
        entry = opened.manifest.precisions[precision]
        plain = onnx.load(bundle / "score.onnx")
        reduced = onnx.load(bundle / f"score.{precision}.onnx")
    assert {graph.file for graph in entry.graphs.values()} == {f"score.{precision}.onnx"}
    assert entry.gate is not None
    assert entry.quantised > 0
    assert all(node.node.startswith(networks) for node in entry.kept)
    if precision == "fp16":
        lowered = operators_in(reduced, OPERATORS, onnx.TensorProto.FLOAT16)
    else:
        scaled = {out for node in reduced.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
        lowered = [node.name for node in reduced.graph.node if node.op_type in OPERATORS and node.input[0] in scaled]
    assert len(lowered) == entry.quantised
    assert all(name.startswith(networks) for name in lowered)
    # Products that draw the map are operators of the kinds that are reduced, and are not.
    head = {node.name for node in plain.graph.node if node.op_type in OPERATORS} & set(outside_of(plain, networks))
    assert head <= {node.name for node in reduced.graph.node}
    exact, other = (scores_of(bundle, made[1], name) for name in ("fp32", precision))
    assert (exact != other).any()
    np.testing.assert_allclose(other, exact, rtol=0.5)


@needs_bf16
@pytest.mark.parametrize(
    "method",
    [
        "segmenter",
        "draem",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddad", "dsad", "destseg", "stfpm")),
    ],
)
def test_every_graph_of_a_method_may_be_computed_in_bf16(
    method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(method)
    wanted = Wanted(("bf16",), made[1], made[1], limits={"bf16": LOOSE})
    manifest = export_run(made[0], tmp_path / "part.flaw", max_batch=2, wanted=wanted)
    assert manifest.precisions["bf16"].graphs == manifest.graphs
    scores = []
    for precision in ("fp32", "bf16"):
        with Inspector.load(tmp_path / "part.flaw", "openvino", precision=precision) as inspector:
            scores.append(np.array([result.score for result in inspector([s.path for s in made[1].test[:4]])]))
    assert (scores[0] != scores[1]).any()
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.5)


def test_a_segmenter_builds_as_an_engine(segmenter: Made, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    from flawscope.runtime.engines import BuildOptions, EngineCache, Target, import_tensorrt
    from flawscope.runtime.engines.ensure import ensure_engine

    with open_bundle(exported(segmenter, tmp_path / "part.flaw", "int8")) as bundle:
        for precision in ("fp32", "int8"):
            options = BuildOptions(1, 1, 2)
            cache = EngineCache(tmp_path / "engines")
            tensorrt = import_tensorrt("tensorrt-rtx")
            stored = ensure_engine(
                bundle, "score", tensorrt, Target("", (8, 9), ""), options, cache, precision=precision
            ).stored
            assert stored.entry is not None
            assert stored.entry.key.precision == precision


@needs_modelopt
@pytest.mark.parametrize("method", ["ddad", pytest.param("dsad", marks=pytest.mark.slow)])
def test_a_denoiser_is_run_in_fp16_and_all_else_as_it_was(
    method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(method)
    bundle = exported(made, tmp_path / "part.flaw", "fp16")
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    entry = manifest.precisions["fp16"]
    assert entry.graphs["denoise"].file == "denoise.fp16.onnx"
    others = manifest.graphs.keys() - {"denoise"}
    assert others
    assert all(entry.graphs[name] == manifest.graphs[name] for name in others)
    assert entry.quantised > 0
    exact, other = (scores_of(bundle, made[1], name) for name in ("fp32", "fp16"))
    assert (exact != other).any()
    np.testing.assert_allclose(other, exact, rtol=0.05)


@pytest.mark.parametrize("method", ["segmenter", pytest.param("stfpm", marks=pytest.mark.slow)])
def test_outside_its_limits_there_is_no_bundle(method: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # Operators may not move the score at all, so none is found, or the gate refuses.
    made: Made = request.getfixturevalue(method)
    with pytest.raises(GateError, match="int8: expected"):
        exported(made, tmp_path / "part.flaw", "int8", NONE)
    assert not (tmp_path / "part.flaw").exists()


@pytest.mark.parametrize("method", ["ddad", "dsad"])
def test_a_precision_that_a_method_lacks_is_refused_in_one_line(
    method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected = rf"--precision int8: expected one that {method} has \(fp32, fp16, bf16\), got int8"
    with pytest.raises(ArgumentError, match=expected):
        exported(request.getfixturevalue(method), tmp_path / "part.flaw", "int8")
