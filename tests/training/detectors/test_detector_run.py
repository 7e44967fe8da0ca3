"""The run folder: written whole, read back exactly, refused where anything is missing or broken."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
import torch
from tiny_dataset import training_images, write_rgb
from torch.nn import functional

from flawscope.errors import ArgumentError, RunError, StorageError
from flawscope.imaging.images import read_image
from flawscope.runs import RECORD, SAMPLES, WEIGHTS
from flawscope.training.detectors.detector_run import read_run, write_run
from flawscope.training.features.backbone import build_backbone

Tensors = dict[str, Any]


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


def edit_weights(path: Path, change: Callable[[Tensors], None]) -> None:
    tensors = dict(safetensors.numpy.load_file(path / WEIGHTS))
    change(tensors)
    safetensors.numpy.save_file(tensors, path / WEIGHTS)


def edit_record(path: Path, **changes: Any) -> None:
    record = json.loads((path / RECORD).read_text())
    (path / RECORD).write_text(json.dumps(record | changes))


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_what_was_written_is_what_is_read(runs: dict[str, Path], tmp_path: Path, method: str) -> None:
    run = read_run(runs[method])
    backbone, _ = build_backbone(run.record.config.features, None)
    write_run(tmp_path / "again", run.record, run.fitted, backbone, run.samples)
    again = read_run(tmp_path / "again")
    assert again.record == run.record
    assert again.digest == run.digest
    assert again.fitted.tensors.keys() == run.fitted.tensors.keys()
    for name, value in run.fitted.tensors.items():
        assert value.tobytes() == again.fitted.tensors[name].tobytes()
        assert value.dtype == again.fitted.tensors[name].dtype
    for first, second in zip(run.samples, again.samples, strict=True):
        np.testing.assert_array_equal(read_image(first), read_image(second))


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_a_run_from_before_alignment_gives_the_patches_that_it_gave(
    runs: dict[str, Path], tmp_path: Path, method: str
) -> None:
    path = copy_of(runs[method], tmp_path)
    record = json.loads((path / RECORD).read_text())
    assert record["config"].pop("align") is True
    assert len(record.pop("places")) == len(record["config"]["stages"])
    (path / RECORD).write_text(json.dumps(record))
    old = read_run(path)
    assert old.record.config.patches.align is False
    assert old.fitted.places is None
    image = torch.from_numpy(read_image(old.samples[0])[None])
    # As patches were made before: stages that are taken as centred, enlarged by torch.
    grid, joined = None, []
    for stage in old.module.backbone(image):
        values = functional.avg_pool2d(stage, 3, stride=1, padding=1) if method == "patchcore" else stage
        grid = grid or values.shape[-2:]
        mode = old.record.config.patches.upsample
        if values.shape[-2:] != grid:
            values = functional.interpolate(values, size=grid, mode=mode)
        joined.append(values)
    patches = torch.cat(joined, dim=1).flatten(2).transpose(1, 2)
    if old.fitted.channels is not None:
        patches = patches[..., list(old.fitted.channels)]
    transform = torch.from_numpy(old.fitted.transform)
    expected = patches * transform if transform.ndim == 1 else patches @ transform
    assert torch.equal(old.module(image), expected)


def test_places_of_another_number_of_stages_are_refused(padim_run: Path, tmp_path: Path) -> None:
    path = copy_of(padim_run, tmp_path)
    edit_record(path, places=[{"start": [0.0, 0.0], "step": [4.0, 4.0]}] * 5)
    with pytest.raises(RunError, match=r"places: expected those of \d stages?, got 5\. Train again"):
        read_run(path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_they_were_whatever_their_order_in_memory(
    padim_run: Path, tmp_path: Path, order: Any
) -> None:
    run = read_run(padim_run)
    backbone, _ = build_backbone(run.record.config.features, None)
    transform = np.asarray(np.arange(100, dtype=np.float32).reshape(10, 10), order=order)
    mean = np.asarray(run.fitted.tensors["mean"], order=order)
    fitted = dataclasses.replace(run.fitted, transform=transform, tensors={**run.fitted.tensors, "mean": mean})
    write_run(tmp_path / "run", run.record, fitted, backbone, run.samples)
    again = read_run(tmp_path / "run").fitted
    assert again.transform is not None
    np.testing.assert_array_equal(again.transform, transform)
    np.testing.assert_array_equal(again.tensors["mean"], mean)


def test_a_run_holds_no_pickle(patchcore_run: Path) -> None:
    names = {path.relative_to(patchcore_run).as_posix() for path in patchcore_run.rglob("*") if path.is_file()}
    samples = {name for name in names if name.startswith(f"{SAMPLES}/") and name.endswith(".png")}
    assert names - samples == {RECORD, WEIGHTS}
    assert len(samples) == 5


def test_large_samples_are_made_smaller_and_keep_their_aspect(patchcore_run: Path, tmp_path: Path) -> None:
    run = read_run(patchcore_run)
    backbone, _ = build_backbone(run.record.config.features, None)
    large = write_rgb(tmp_path / "large.png", np.zeros((300, 2048, 3), np.uint8))
    write_run(tmp_path / "run", run.record, run.fitted, backbone, [large])
    (sample,) = read_run(tmp_path / "run").samples
    assert read_image(sample).shape == (150, 1024, 3)


def missing(name: str) -> Callable[[Path], None]:
    return lambda path: edit_weights(path, lambda tensors: tensors.pop(name))


def replaced(name: str, value: Any) -> Callable[[Path], None]:
    return lambda path: edit_weights(path, lambda tensors: tensors.update({name: value}))


def with_nan(name: str) -> Callable[[Path], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = np.nan

    return lambda path: edit_weights(path, change)


@pytest.mark.parametrize(
    ("method", "spoil", "match"),
    [
        ("patchcore", missing("bank.bank"), r"expected a fitted detector, got a run without bank"),
        ("patchcore", missing("bank.neighbours"), r"expected a fitted detector, got a run without neighbours"),
        ("padim", missing("bank.mean"), r"expected a fitted detector, got a run without mean"),
        ("padim", missing("bank.whitening"), r"expected a fitted detector, got a run without whitening"),
        ("padim", missing("transform"), r"expected a fitted detector, got a run without its channel transform"),
        ("patchcore", replaced("bank.bank", np.zeros((0, 150), np.float32)), r"bank\.bank: .* got an empty array"),
        ("patchcore", with_nan("bank.bank"), r"bank\.bank: expected finite numbers, got NaN or infinity"),
        ("padim", with_nan("bank.whitening"), r"bank\.whitening: expected finite numbers, got NaN"),
        ("padim", with_nan("transform"), r"transform: expected finite numbers, got NaN"),
        ("padim", lambda path: (path / WEIGHTS).unlink(), r"weights\.safetensors: expected the weights of the run"),
        ("padim", lambda path: (path / WEIGHTS).write_bytes(b"x" * 99), r"weights\.safetensors: expected the weights"),
        ("padim", lambda path: (path / RECORD).unlink(), r"expected a run with run\.json, got none"),
        ("padim", lambda path: (path / RECORD).write_bytes(b"{"), r"run\.json: is no run of this version"),
        ("padim", lambda path: (path / RECORD).write_bytes(b"\xff\xfe"), r"run\.json: is no run of this version"),
        ("padim", lambda path: edit_record(path, extra=1), r"run\.json: is no run of this version: .*extra"),
        ("padim", lambda path: edit_record(path, grid="8x8"), r"run\.json: is no run of this version"),
        (
            "padim",
            lambda path: edit_record(path, schema=3),
            r"expected run schema 2 or older, got 3\. .* newer flawscope",
        ),
    ],
)
def test_a_run_that_is_broken_or_unfitted_is_refused(
    runs: dict[str, Path], tmp_path: Path, method: str, spoil: Callable[[Path], None], match: str
) -> None:
    path = copy_of(runs[method], tmp_path)
    spoil(path)
    with pytest.raises(RunError, match=match) as caught:
        read_run(path)
    assert str(path) in str(caught.value)


def test_settings_in_a_run_are_checked_again(padim_run: Path, tmp_path: Path) -> None:
    path = copy_of(padim_run, tmp_path)
    record = json.loads((path / RECORD).read_text())
    record["config"]["channels"] = 0
    (path / RECORD).write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"is no run of this version: channels: expected 1 to 4096, got 0"):
        read_run(path)


def test_a_folder_that_is_no_run_is_not_replaced(padim_run: Path, tmp_path: Path) -> None:
    run = read_run(padim_run)
    backbone, _ = build_backbone(run.record.config.features, None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ArgumentError, match=r"expected a new folder or one with run\.json"):
        write_run(tmp_path / "mine", run.record, run.fitted, backbone, [])
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_failed_write_keeps_the_earlier_run(
    padim_run: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of(padim_run, tmp_path)
    run = read_run(path)
    backbone, _ = build_backbone(run.record.config.features, None)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(StorageError, match=r"run: could not be written: the disk is full\. Nothing was left behind"):
        write_run(path, run.record, run.fitted, backbone, training_images(tiny_root)[:1], overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert read_run(path).digest == run.digest


def test_the_writers_own_error_type_is_a_storage_error_too(
    padim_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(padim_run)
    backbone, _ = build_backbone(run.record.config.features, None)

    def full(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(StorageError, match=r"could not be written: I/O error: No space left on device"):
        write_run(tmp_path / "run", run.record, run.fitted, backbone, [])
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_readable_json_that_names_what_was_used(patchcore_run: Path) -> None:
    record = json.loads((patchcore_run / RECORD).read_text())
    assert record["kind"] == "detector"
    assert record["config"]["method"] == "patchcore"
    assert record["config"]["coreset"] == 90
    assert record["facts"]["bank_rows"] == 90
    assert record["backbone"] == {
        "name": "scattering",
        "weights": "none: fixed filters",
        "licence": "Apache-2.0",
        "conditions": [],
    }
    assert {"python", "torch", "numpy"} <= record["versions"].keys()
    assert msgspec.json.decode((patchcore_run / RECORD).read_bytes())["schema"] == 2
