"""From run to bundle: what is written, what is refused before anything is, and that any ONNX runtime can run it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import safetensors.numpy
from tiny_dataset import CATEGORY, anomalous_images, normal_images

from flawscope import cli
from flawscope.bundle import PadimHead, PatchcoreHead, open_bundle
from flawscope.config import build_config, flatten
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, GateError, RunError, StorageError
from flawscope.export.detectors import bank_exporter, detector_export
from flawscope.export.detectors.detector_export import export_run
from flawscope.imaging.grid_places import GridPlaces
from flawscope.imaging.images import prepare, read_image
from flawscope.runs import RECORD, SAMPLES, WEIGHTS
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long

METHODS = ["patchcore", "padim"]


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


def edit_weights(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = dict(safetensors.numpy.load_file(path / WEIGHTS))
    change(tensors)
    safetensors.numpy.save_file(tensors, path / WEIGHTS)


@pytest.mark.parametrize("method", METHODS)
def test_a_bundle_says_where_it_comes_from(
    uncalibrated_bundles: dict[str, Path], runs: dict[str, Path], method: str
) -> None:
    run = read_run(runs[method])
    with open_bundle(uncalibrated_bundles[method]) as bundle:
        manifest = bundle.manifest
        images = json.loads(bundle.read(manifest.provenance.images))
    assert (manifest.name, manifest.kind, manifest.method, manifest.max_batch) == (method, "score", method, 4)
    assert manifest.thresholds is None
    assert manifest.provenance.run == run.digest
    assert manifest.provenance.dataset == run.record.dataset
    assert manifest.provenance.category == "steel"
    assert manifest.provenance.config == json.loads(msgspec.json.encode(flatten(run.record.config)))
    assert manifest.provenance.weights == "scattering: none: fixed filters; licence: Apache-2.0"
    assert {"torch", "onnx", "onnxruntime", "opencv-python-headless"} <= manifest.provenance.versions.keys()
    assert images == {"training": list(run.record.training), "held_out": list(run.record.held_out)}
    assert manifest.input == run.record.config.preprocessing
    places = GridPlaces((0.0, 0.0), (4.0, 4.0))  # scattering of stride 4 begins on the first pixel
    is_patchcore = method == "patchcore"
    bank_head, gaussian_head = PatchcoreHead((16, 16), 5, "paper", 2.0, places=places), PadimHead((16, 16), 2.0, places)
    assert manifest.head == (bank_head if is_patchcore else gaussian_head)


def test_a_run_from_before_alignment_exports_to_a_bundle_that_draws_centred(padim_run: Path, tmp_path: Path) -> None:
    run = copy_of(padim_run, tmp_path)
    record = json.loads((run / RECORD).read_text())
    del record["places"], record["config"]["align"]
    (run / RECORD).write_text(json.dumps(record))
    export_run(run, tmp_path / "old.flaw", max_batch=4)
    with open_bundle(tmp_path / "old.flaw") as bundle:
        assert bundle.manifest.head == PadimHead((16, 16), 2.0)
        assert bundle.manifest.provenance.config["align"] is False


@pytest.mark.parametrize("method", METHODS)
def test_a_bundle_holds_graphs_bank_golden_images_and_nothing_else(
    uncalibrated_bundles: dict[str, Path], method: str
) -> None:
    folder = uncalibrated_bundles[method]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    graphs = {"features.onnx", "score.onnx", "bank.safetensors"}
    assert names == graphs | {"images.json", "manifest.json", "golden/000.png", "golden/001.png"}
    with open_bundle(folder) as bundle:
        assert {name: graph.outputs for name, graph in bundle.manifest.graphs.items()} == {
            "features": ("patches",),
            "score": ("anomaly_map", "score"),
        }


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_exporting_machine_is_left_in_the_graphs(
    uncalibrated_bundles: dict[str, Path], method: str
) -> None:
    for name in ("features", "score"):
        data = (uncalibrated_bundles[method] / f"{name}.onnx").read_bytes()
        assert b"/home" not in data
        assert b"site-packages" not in data
        assert str(Path.cwd()).encode() not in data
        assert b"torch.nn" not in data


@pytest.mark.parametrize("method", METHODS)
def test_golden_scores_are_those_of_the_graph(uncalibrated_bundles: dict[str, Path], method: str) -> None:
    with Inspector.load(uncalibrated_bundles[method], "cpu", "graph") as inspector:
        goldens = inspector.manifest.golden
        assert len(goldens) == 2
        for golden in goldens:
            result = inspector(inspector.bundle.path / golden.file)
            assert result.anomaly_map is not None
            assert result.score == golden.score
            assert float(result.anomaly_map.max()) == golden.map_max


PLAIN_RUNTIME = """
import json, sys
for name in ("flawscope", "torch", "onnx", "cv2"):
    sys.modules[name] = None  # importing it raises
import numpy, onnxruntime
images = numpy.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
assert given.type == "tensor(uint8)", given.type
maps, scores = session.run(["anomaly_map", "score"], {"image": images})
print(json.dumps({"scores": scores.tolist(), "peaks": maps.max(axis=(1, 2)).tolist(), "shape": maps.shape}))
"""


@pytest.mark.parametrize("method", METHODS)
def test_score_onnx_runs_in_plain_onnxruntime_without_flawscope(
    uncalibrated_bundles: dict[str, Path], tiny_root: Path, tmp_path: Path, method: str
) -> None:
    part_images = [*normal_images(tiny_root)[:2], *anomalous_images(tiny_root)[:2]]
    with Inspector.load(uncalibrated_bundles[method], "cpu", "kernel") as inspector:
        images = np.stack([prepare(read_image(path), inspector.manifest.input) for path in part_images])
        maps, scores = inspector.infer(images)
    np.save(tmp_path / "images.npy", images)
    graph = uncalibrated_bundles[method] / "score.onnx"
    command = [sys.executable, "-c", PLAIN_RUNTIME, str(graph), str(tmp_path / "images.npy")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert process.returncode == 0, process.stderr
    plain = json.loads(process.stdout)
    np.testing.assert_allclose(plain["scores"], scores, rtol=1e-4)
    np.testing.assert_allclose(plain["peaks"], maps.max(axis=(1, 2)), rtol=1e-4)
    assert plain["shape"] == [4, 64, 64]


def no_bank(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("bank.")]:
        del tensors[name]


def empty_bank(tensors: dict[str, Any]) -> None:
    name = "bank.bank" if "bank.bank" in tensors else "bank.mean"
    tensors[name] = np.zeros((0, 150), np.float32)


def nan_bank(tensors: dict[str, Any]) -> None:
    name = "bank.bank" if "bank.bank" in tensors else "bank.whitening"
    tensors[name] = np.full_like(tensors[name], np.nan)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (no_bank, r"expected a fitted detector, got a run without"),
        (empty_bank, r"expected finite numbers, got an empty array"),
        (nan_bank, r"expected finite numbers, got NaN or infinity"),
    ],
)
def test_an_unfitted_run_is_refused_before_anything_is_written(
    runs: dict[str, Path], tmp_path: Path, method: str, change: Callable[[dict[str, Any]], None], match: str
) -> None:
    run = copy_of(runs[method], tmp_path)
    edit_weights(run, change)
    out = tmp_path / "out"
    with pytest.raises(RunError, match=match):
        export_run(run, out / "part.flaw")
    assert not out.exists()


def test_a_run_without_samples_cannot_be_checked_and_is_refused(padim_run: Path, tmp_path: Path) -> None:
    run = copy_of(padim_run, tmp_path)
    shutil.rmtree(run / SAMPLES)
    with pytest.raises(RunError, match=r"expected sample images in samples/, got none"):
        export_run(run, tmp_path / "part.flaw")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("max_batch", [0, -1, 257])
def test_a_batch_out_of_range_is_refused(padim_run: Path, tmp_path: Path, max_batch: int) -> None:
    with pytest.raises(ArgumentError, match=rf"max_batch: expected 1 to 256, got {max_batch}"):
        export_run(padim_run, tmp_path / "part.flaw", max_batch=max_batch)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_for_single_images_has_a_batch_of_one(padim_run: Path, tiny_root: Path, tmp_path: Path) -> None:
    export_run(padim_run, tmp_path / "one.flaw", max_batch=1)
    with Inspector.load(tmp_path / "one.flaw", "cpu") as inspector:
        results = inspector(normal_images(tiny_root))
        assert [result.score is not None for result in results] == [True] * 6
        with pytest.raises(ArgumentError, match=r"batch: expected 1 to 1, got 2"):
            list(inspector.stream(normal_images(tiny_root), batch=2))


@pytest.mark.usefixtures("traced_features")
def test_exporting_again_replaces_the_bundle(padim_run: Path, patchcore_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.flaw"
    first = export_run(padim_run, out, max_batch=4)
    second = export_run(patchcore_run, out, max_batch=4, overwrite=True)
    assert first.digest != second.digest
    with open_bundle(out) as bundle:
        assert bundle.manifest == second
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.flaw"]


@pytest.mark.usefixtures("traced_features")
def test_the_same_run_gives_the_same_files(padim_run: Path, tmp_path: Path) -> None:
    first, second = (export_run(padim_run, tmp_path / name / "part.flaw", max_batch=4) for name in ("a", "b"))
    assert first.files == second.files
    assert first.golden == second.golden


def test_a_folder_that_is_no_bundle_is_not_replaced(padim_run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(ArgumentError, match=r"expected a new folder or one with manifest\.json"):
        export_run(padim_run, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("traced_features")
def test_a_failed_gate_keeps_the_earlier_bundle(
    padim_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "part.flaw"
    before = export_run(padim_run, out, max_batch=4)

    def closed(rows: object) -> None:
        raise GateError("parity: closed for a test.")

    monkeypatch.setattr(detector_export, "check_parity", closed)
    with pytest.raises(GateError, match="closed for a test"):
        export_run(padim_run, out, max_batch=4, overwrite=True)
    with open_bundle(out) as bundle:
        assert bundle.manifest == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.flaw"]


@pytest.mark.usefixtures("traced_features")
def test_a_tensor_that_would_be_too_large_stops_the_export(
    patchcore_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawscope.export.size_check.LIMIT", 100_000)
    with pytest.raises(RunError, match=r"export: .* would have [\d,]+ elements at batch 4"):
        export_run(patchcore_run, tmp_path / "part.flaw", max_batch=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_features")
@pytest.mark.parametrize("when", ["bank", "graph", "bundle"])
def test_a_full_disk_leaves_nothing(
    padim_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"bank": (Path, "write_bytes"), "graph": (onnx, "save"), "bundle": (shutil, "copyfile")}[when]
    monkeypatch.setattr(*target, full)
    with pytest.raises(StorageError, match=r"could not be written: the disk is full\. Nothing was left behind"):
        export_run(padim_run, tmp_path / "part.flaw", max_batch=4)
    assert list(tmp_path.iterdir()) == []


def test_operators_outside_standard_onnx_are_refused(
    padim_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncalibrated_bundles: dict[str, Path]
) -> None:
    def foreign(*_: object) -> onnx.ModelProto:
        model = onnx.load(uncalibrated_bundles["padim"] / "features.onnx")
        model.graph.node[0].domain = "com.microsoft"
        return model

    monkeypatch.setattr(bank_exporter, "export_module", foreign)
    with pytest.raises(RunError, match=r"features\.onnx would need operators outside standard ONNX \(com\.microsoft\)"):
        export_run(padim_run, tmp_path / "part.flaw", max_batch=4)
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_that_torch_cannot_trace_is_one_sentence(
    padim_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(
        RunError, match=r"could not turn the backbone into an ONNX graph: RuntimeError: first line\. Choose"
    ):
        export_run(padim_run, tmp_path / "part.flaw", max_batch=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_features")
def test_the_command_exports_and_shows_sizes_and_parity(
    patchcore_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part.flaw"
    assert cli.run(["export", str(patchcore_run), "--out", str(out), "--max-batch", "4"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "score.onnx: largest tensor" in output.out
    assert "parity score.onnx, cpu against torch, 5 images: scores " in output.out
    assert f"bundle: {out} (" in output.out
    assert "not calibrated yet" in output.out


def test_the_command_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", str(tmp_path / "none"), "--out", str(tmp_path / "part.flaw")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}: expected a run with {RECORD}, got none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_features")
def test_progress_counts_its_steps(padim_run: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export_run(padim_run, tmp_path / "part.flaw", max_batch=4, progress=lambda *step: seen.append(step))
    assert seen == [("exporting", step, 5) for step in range(6)]


def test_a_memory_of_everything_is_exported_though_its_samples_score_zero(tmp_path: Path, tiny_root: Path) -> None:
    config, _ = build_config("patchcore", {"resize": 64, "stages": [2], "coreset": 1.0, "held_out": 0.0})
    train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    manifest = export_run(tmp_path / "run", tmp_path / "all.flaw")
    assert all(abs(golden.score) < 1e-2 for golden in manifest.golden)
    with Inspector.load(tmp_path / "all.flaw", "cpu", "kernel") as inspector:
        assert inspector(normal_images(tiny_root)[0]).score is not None
