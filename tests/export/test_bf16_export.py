"""A bundle with BF16 beside FP32: gated where it is computed, calibrated there, kept up; or refused, whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.calibration.quantization.gate_limits import Limits
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, BackendError
from flawscope.export.detectors.detector_export import export_run
from flawscope.export.precisions import Wanted
from flawscope.export.triton import TritonOptions, write_triton
from flawscope.runtime import Inspector
from flawscope.runtime.backends import openvino_devices
from flawscope.runtime.backends.table import is_there

pytest.importorskip("openvino", reason="the extra openvino is not installed")
needs_bf16 = pytest.mark.skipif(not is_there("openvino", "bf16"), reason="OpenVINO does not compute in BF16 here")

LOOSE = Limits(1.0, 1.0, -1.0, 1.0, 0.5, images=5)
"""What 64 pixels of a tiny set can be held to: the figures are judged elsewhere, on real images."""


@pytest.fixture(scope="module")
def with_bf16(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path], tiny_root: Path) -> Path:
    dataset = open_dataset(tiny_root, "steel")
    out = tmp_path_factory.mktemp("bf16") / "patchcore.flaw"
    export_run(runs["patchcore"], out, max_batch=4, wanted=Wanted(("bf16",), dataset, limits={"bf16": LOOSE}))
    return out


@needs_bf16
@pytest.mark.long
def test_it_has_the_graphs_of_fp32_and_scores_of_its_own(with_bf16: Path) -> None:
    with open_bundle(with_bf16) as bundle:
        manifest = bundle.manifest
    precision = manifest.precisions["bf16"]
    assert precision.graphs == manifest.graphs
    assert not [name for name in manifest.files if "bf16" in name]
    assert [gate.backend for gate in precision.all_gates] == ["openvino"]
    assert 0 < precision.all_gates[0].score_max_relative <= LOOSE.score_error
    assert precision.golden_by_backend == {}
    assert all(own.score != exact.score for own, exact in zip(precision.golden, manifest.golden, strict=True))
    Inspector.load(with_bf16, "openvino", "auto", "bf16").close()
    Inspector.load(with_bf16, "cpu").close()


@needs_bf16
@pytest.mark.long
def test_each_precision_is_calibrated_where_it_has_passed_its_gate(
    with_bf16: Path,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = Path(shutil.copytree(with_bf16, tmp_path / "patchcore.flaw"))
    calibrate = ["calibrate", str(bundle), "--data", str(tiny_root), "--category", "steel"]
    assert cli.run([*calibrate, "--precision", "fp32", "--backend", "cpu"]) == 0
    monkeypatch.setenv("FLAWSCOPE_AUTO", "cpu,openvino")
    assert cli.run([*calibrate, "--precision", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert "precision bf16:" in printed
    assert "backend openvino)" in printed
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    exact, rounded = manifest.thresholds_of("fp32"), manifest.thresholds_of("bf16")
    assert exact is not None
    assert rounded is not None
    assert rounded.image.backend == "openvino" != exact.image.backend
    assert exact.image.value != rounded.image.value
    image = str(open_dataset(tiny_root, "steel").test[0].path)
    arguments = ["score", str(bundle), image, "--precision", "bf16", "--backend", "openvino", "--json"]
    assert cli.run(arguments) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["threshold"] == rounded.image.value


@needs_bf16
@pytest.mark.long
def test_after_the_bank_was_changed_its_golden_scores_are_measured_anew(
    with_bf16: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawscope.runtime.upkeep import changed_bundle
    from flawscope.runtime.upkeep.addition import add_images

    images = [sample.path for sample in open_dataset(tiny_root, "steel").test if not sample.is_anomalous][:2]
    add_images(with_bf16, images, tmp_path / "more.flaw", all_good=True)
    with open_bundle(with_bf16) as before, open_bundle(tmp_path / "more.flaw") as after:
        old, new = before.manifest.precisions["bf16"], after.manifest.precisions["bf16"]
    assert (new.all_gates, new.golden_by_backend) == ((), {})
    assert [entry.file for entry in new.golden] == [entry.file for entry in old.golden]
    Inspector.load(tmp_path / "more.flaw", "openvino", "auto", "bf16").close()
    monkeypatch.setattr(changed_bundle, "is_there", lambda name, precision="fp32": (name, precision) == ("cpu", "fp32"))
    with pytest.raises(BackendError, match=r"precision bf16: expected a backend that computes it here, .* got none"):
        add_images(with_bf16, images, tmp_path / "none.flaw", all_good=True)
    assert not (tmp_path / "none.flaw").exists()


@needs_bf16
@pytest.mark.long
def test_triton_does_not_serve_it(with_bf16: Path, tmp_path: Path) -> None:
    with (
        open_bundle(with_bf16) as bundle,
        pytest.raises(ArgumentError, match="expected one that ONNX Runtime computes"),
    ):
        write_triton(bundle, tmp_path / "models", TritonOptions(precision="bf16"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["export", "export-triton"])
def test_where_nothing_computes_in_it_the_error_says_so(
    runs: dict[str, Path],
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    monkeypatch.setattr(openvino_devices, "rounds_to", lambda precision: False)
    arguments = [verb, str(runs["padim"]), "--out", str(tmp_path / "x.flaw"), "--precision", "bf16"]
    assert cli.run([*arguments, "--calibration-data", str(tiny_root), "--category", "steel"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --precision bf16: expected ")
    if verb == "export":
        assert "got none. openvino: OpenVINO does not compute in BF16 on this CPU" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
