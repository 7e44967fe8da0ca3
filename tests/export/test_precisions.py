"""A bundle with INT8 beside FP32: made, gated, run, calibrated and built as an engine; or refused, whole."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from modelopt_here import needs_modelopt

from flawscope import cli
from flawscope.bundle import open_bundle, rewrite_manifest
from flawscope.calibration.quantization.autocast import operators_in
from flawscope.calibration.quantization.gate_limits import Limits
from flawscope.calibration.quantization.qdq import OPERATORS
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, BundleError, DataError, GateError
from flawscope.export.detectors.detector_export import export_run
from flawscope.export.precisions import Wanted
from flawscope.runtime import Inspector
from flawscope.runtime.backends.table import is_there

pytestmark = pytest.mark.long

LOOSE = Limits(1.0, 1.0, -1.0, 1.0, 0.5, images=5)
"""What 64 pixels of a tiny set can be held to: the figures are judged elsewhere, on real images."""


@pytest.fixture(scope="module")
def with_int8(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path], tiny_root: Path) -> dict[str, Path]:
    dataset = open_dataset(tiny_root, "steel")
    folder = tmp_path_factory.mktemp("int8")
    for method, run in runs.items():
        wanted = Wanted(("int8",), dataset, dataset, limits={"int8": LOOSE})
        export_run(run, folder / f"{method}.flaw", max_batch=4, wanted=wanted)
    return {method: folder / f"{method}.flaw" for method in runs}


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_the_bundle_has_both_and_says_what_int8_does(with_int8: dict[str, Path], method: str) -> None:
    with open_bundle(with_int8[method]) as bundle:
        manifest = bundle.manifest
        precision = manifest.precisions["int8"]
        assert {graph.file for graph in precision.graphs.values()} == {"features.int8.onnx", "score.int8.onnx"}
        assert bundle.graph_file("score", "int8") != bundle.graph_file("score")
        assert precision.quantised > 0
        assert precision.gate is not None
        assert precision.gate.images == 5
        assert precision.gate.labelled > 0
        backends = ["cpu", *(["openvino"] if is_there("openvino", "int8") else [])]
        assert [gate.backend for gate in precision.all_gates] == backends
        # OpenVINO rounds otherwise than ONNX Runtime: it is held against its own scores.
        assert list(precision.golden_by_backend) == backends[1:]
        for own in precision.golden_by_backend.values():
            assert [golden.file for golden in own] == [golden.file for golden in precision.golden]
            assert all(a.score == pytest.approx(b.score, rel=0.05) for a, b in zip(own, precision.golden, strict=True))
        assert all(gate.score_max_relative <= LOOSE.score_error for gate in precision.all_gates)
        assert f"of the multiply-adds, chosen for {' and '.join(backends)} in" in precision.method
        assert 0 < precision.gate.score_max_relative <= LOOSE.score_error
        assert [golden.file for golden in precision.golden] == [golden.file for golden in manifest.golden]
        assert all(golden.score != other.score for golden, other in zip(precision.golden, manifest.golden, strict=True))
        with pytest.raises(ArgumentError, match=r"precision: expected one the bundle has \(fp32, int8\), got 'fp16'"):
            bundle.graph_file("score", "fp16")


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_both_paths_give_the_same_scores_in_int8(with_int8: dict[str, Path], tiny_root: Path, method: str) -> None:
    images = [sample.path for sample in open_dataset(tiny_root, "steel").test[:4]]
    scores = {}
    for path in ("graph", "kernel"):
        with Inspector.load(with_int8[method], "cpu", path, "int8") as inspector:
            scores[path] = np.array([result.score for result in inspector(images)])
    with Inspector.load(with_int8[method], "cpu") as inspector:
        exact = np.array([result.score for result in inspector(images)])
    np.testing.assert_allclose(scores["kernel"], scores["graph"], rtol=1e-4)
    assert (scores["graph"] != exact).all()


def test_golden_scores_of_another_precision_are_found_out(with_int8: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(with_int8["padim"], tmp_path / "padim.flaw"))
    with open_bundle(broken) as bundle:
        manifest = bundle.manifest
    precision = manifest.precisions["int8"]
    shifted = tuple(msgspec.structs.replace(golden, score=1.01 * golden.score) for golden in precision.golden)
    precisions = {"int8": msgspec.structs.replace(precision, golden=shifted)}
    rewrite_manifest(broken, msgspec.structs.replace(manifest, precisions=precisions))
    Inspector.load(broken, "cpu").close()
    with pytest.raises(BundleError, match="golden image"):
        Inspector.load(broken, "cpu", precision="int8")


def test_each_precision_gets_thresholds_of_its_own(
    with_int8: dict[str, Path], tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_int8["patchcore"]
    data = ["--data", str(tiny_root), "--category", "steel"]
    assert cli.run(["calibrate", str(bundle), *data]) == 0
    assert "precision int8:" in capsys.readouterr().out
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    first, second = manifest.thresholds_of("fp32"), manifest.thresholds_of("int8")
    assert first is not None
    assert second is not None
    assert first.image.value != second.image.value
    assert {(change.precision, change.name) for change in manifest.threshold_changes} == {
        (precision, name) for precision in ("fp32", "int8") for name in ("image", "pixel")
    }
    image = str(open_dataset(tiny_root, "steel").test[0].path)
    assert cli.run(["score", str(bundle), image, "--precision", "int8", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["threshold"] == second.image.value
    capsys.readouterr()
    report, host = tmp_path / "report", tmp_path / "host.json"
    assert cli.run(["evaluate", str(bundle), *data, "--json", str(host)]) == 0
    reduced = ["evaluate", str(bundle), *data, "--precision", "int8"]
    assert cli.run([*reduced, "--report", str(report), "--against", str(host)]) == 0
    printed = capsys.readouterr()
    assert "backend cpu, INT8" in printed.out
    # The bundle has other bytes than the figures were made with, which were recorded in it, and the same model.
    (images,) = re.findall(r"drift from cpu.* (\d+) images in both", printed.out)
    assert int(images) == len(open_dataset(tiny_root, "steel").test)
    assert "image threshold in force was" in printed.err
    assert "backend cpu, INT8," in (report / "report.html").read_text(encoding="utf-8")
    with open_bundle(bundle) as opened:
        assert opened.manifest.evidence.accuracy[-1].backend.endswith("int8)")
    assert cli.run(["calibrate", str(bundle), "--image-threshold", "7", "--precision", "int8"]) == 0
    with open_bundle(bundle) as opened:
        after = opened.manifest.thresholds_of("int8")
        assert after is not None
        assert (after.image.value, after.pixel) == (7.0, second.pixel)
        assert opened.manifest.thresholds_of("fp32") == first


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_int8_builds_as_an_engine(with_int8: dict[str, Path], tmp_path: Path, method: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    from flawscope.runtime.engines import BuildOptions, EngineCache, Target, import_tensorrt
    from flawscope.runtime.engines.ensure import ensure_engine, model_hash

    with open_bundle(with_int8[method]) as bundle:
        stored = ensure_engine(
            bundle,
            "features",
            import_tensorrt("tensorrt-rtx"),
            Target("", (8, 9), ""),
            BuildOptions(1, 1, 4),
            EngineCache(tmp_path),
            precision="int8",
        ).stored
        assert stored.entry is not None
        assert stored.entry.key.precision == "int8"
        assert stored.entry.key.model == model_hash(bundle, "features", "int8") != model_hash(bundle, "features")


@needs_modelopt
def test_what_is_not_in_int8_may_be_in_fp16(
    runs: dict[str, Path], tiny_root: Path, tmp_path: Path, traced_features: None
) -> None:
    dataset = open_dataset(tiny_root, "steel")
    narrow = Limits(1.0, 1.0, -1.0, 1.0, 0.02, images=5)
    wanted = Wanted(("int8",), dataset, limits={"int8": narrow}, int8_rest="fp16")
    precision = export_run(runs["padim"], tmp_path / "mixed.flaw", max_batch=4, wanted=wanted).precisions["int8"]
    assert "the rest in FP16 by ModelOpt" in precision.method
    assert precision.kept
    model = onnx.load(tmp_path / "mixed.flaw" / "features.int8.onnx")
    in_fp16 = operators_in(model, OPERATORS, onnx.TensorProto.FLOAT16)
    assert set(in_fp16) == {entry.node for entry in precision.kept}
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= precision.quantised


# --- refused


def test_a_precision_outside_its_limits_leaves_no_bundle_and_shows_its_table(
    runs: dict[str, Path], tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], traced_features: None
) -> None:
    out = tmp_path / "refused.flaw"
    arguments = ["export", str(runs["padim"]), "--out", str(out), "--precision", "int8", "--category", "steel"]
    arguments += ["--calibration-data", str(tiny_root), "--max-score-change", "0.5", "--min-spearman", "1"]
    arguments += ["--min-gate-images", "5"]
    assert cli.run([*arguments, "--labelled-data", str(tiny_root)]) == 1
    output = capsys.readouterr()
    assert "gate of int8 on cpu: 5 normal images," in output.out
    assert "rank correlation of scores" in output.out
    assert "of the time of FP32 on cpu" in output.out or "is not faster than FP32 on cpu" in output.out
    assert output.err.startswith("error: int8: expected figures within the limits of the gate, got on cpu: ")
    assert ("gate of int8 on openvino: " in output.out) == is_there("openvino", "int8")
    assert "rank correlation of the scores is" in output.err
    assert list(tmp_path.iterdir()) == []


def test_where_no_operator_can_bear_it_there_is_no_int8(
    runs: dict[str, Path], tiny_root: Path, tmp_path: Path, traced_features: None
) -> None:
    exact = Limits(1.0, 1.0, -1.0, 1.0, 0.0, images=5)
    wanted = Wanted(("int8",), open_dataset(tiny_root, "steel"), limits={"int8": exact})
    with pytest.raises(GateError, match=r"int8: expected operators .* within 0\.0% on cpu.*, got none after"):
        export_run(runs["padim"], tmp_path / "none.flaw", max_batch=4, wanted=wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "error: --precision int8: expected --calibration-data ROOT with normal images, got"),
        (
            ("--calibration-data", "{data}"),
            "error: --calibration-data: expected it with --precision fp16 or --precision bf16 or --precision int8, got",
        ),
        (
            ("--min-spearman", "0.9"),
            "error: --min-spearman: expected it with --precision fp16 or --precision bf16 or --precision int8, got it",
        ),
        (
            ("--precision", "int8", "--calibration-data", "{data}", "--category", "steel", "--max-false-rejects", "2"),
            "error: limit false_rejects: expected 0 to 1, got 2.0.",
        ),
        (
            ("--precision", "int8", "--calibration-data", "{data}", "--category", "none"),
            "error: ",
        ),
        (
            (
                *("--precision", "bf16", "--calibration-data", "{data}", "--category", "steel"),
                *("--gate-backend", "cpu"),
            ),
            "error: --gate-backend: expected one that is gated in bf16 (openvino), got cpu.",
        ),
        (("--int8-budget", "1"), "error: --int8-budget: expected it with --precision int8, got it without."),
        (
            ("--precision", "int8", "--calibration-data", "{data}", "--category", "steel", "--int8-budget", "0"),
            "error: --int8-budget: expected a number of minutes above 0, got 0.0.",
        ),
        (("--precision", "fp16"), "error: --precision fp16: expected --calibration-data ROOT with normal images, got"),
        (
            ("--precision", "fp16", "--calibration-data", "{data}", "--int8-rest", "fp16"),
            "error: --int8-rest: expected it with --precision int8, got it without.",
        ),
        (
            (
                "--precision",
                "fp16",
                "--modelopt-python",
                "nobody",
                "--calibration-data",
                "{data}",
                "--category",
                "steel",
            ),
            "error: --modelopt-python: expected a Python interpreter, got nobody.",
        ),
    ],
)
def test_a_wrong_request_is_one_line(
    patchcore_run: Path,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    arguments = [option.format(data=tiny_root) for option in options]
    assert cli.run(["export", str(patchcore_run), "--out", str(tmp_path / "x.flaw"), *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_gate_with_few_images_is_refused_in_one_line(
    patchcore_run: Path, tiny_root: Path, tmp_path: Path, traced_features: None
) -> None:
    wanted = Wanted(("int8",), open_dataset(tiny_root, "steel"), limits={"int8": Limits(1.0, 1.0, -1.0, 1.0, 0.5)})
    with pytest.raises(DataError, match=r"at least 20 normal images .* got 5: one of so few is 20%.*--min-gate-images"):
        export_run(patchcore_run, tmp_path / "x.flaw", max_batch=4, wanted=wanted)
    assert list(tmp_path.iterdir()) == []
