"""The training pipeline and its command: what is learned from, what is held out, what is recorded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from native_heads import build_head
from tiny_dataset import CATEGORY, TRAIN, normal_images, training_images

from flawscope import cli
from flawscope.bundle import PatchcoreHead
from flawscope.config import MethodConfig, PadimConfig, PatchcoreConfig, build_config, from_flat
from flawscope.config.setting_parts import change_settings
from flawscope.datasets import fingerprint, hash_contents, image_hash, inspect_dataset, open_dataset
from flawscope.errors import ArgumentError, DataError, StorageError
from flawscope.imaging.images import read_image
from flawscope.progress import no_progress
from flawscope.runs import RECORD
from flawscope.training.detectors import patch_selection
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import check_recorded, train_detector
from flawscope.training.features.patch_extraction import iterate_patches

SMALL = ["--image-size", "64", "--set", "stages=1,2", "--set", "channels=6"]
FAST = from_flat(PadimConfig, {"resize": (64, 64), "stages": (1,), "channels": 4})


def record_of(path: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((path / RECORD).read_text())
    return record


def test_held_out_images_are_not_learned_from_and_none_is_lost(patchcore_run: Path, tiny_root: Path) -> None:
    record = read_run(patchcore_run).record
    assert not set(record.training) & set(record.held_out)
    every = {image_hash(path) for path in training_images(tiny_root)}
    assert set(record.training) | set(record.held_out) == every
    assert (len(record.training), len(record.held_out)) == (TRAIN - 5, 5)


def test_settings_left_open_are_those_of_the_run_and_others_have_to_be_its_own(patchcore_run: Path) -> None:
    run = read_run(patchcore_run)
    recorded = run.record.config
    assert recorded.features.stages is not None  # the run says which stages null stood for
    check_recorded(change_settings(recorded, {"stages": None, "mean": None, "std": None, "final_norm": None}), run)
    for name, value in (("stages", (4,)), ("mean", (0.1, 0.2, 0.3)), ("backbone_options", {"pad_type": "same"})):
        with pytest.raises(ArgumentError, match=rf"^{name}: expected .*, with which .* was trained, got"):
            check_recorded(change_settings(recorded, {name: value}), run)


def test_test_images_are_never_learned_from(patchcore_run: Path, tiny_root: Path) -> None:
    record = read_run(patchcore_run).record
    tested = {image_hash(path) for path in normal_images(tiny_root)}
    assert not tested & {*record.training, *record.held_out}


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "images",
    [[_noise(0)] * 5, [np.full((64, 64, 3), 250 + i, np.uint8) for i in range(5)], [_noise(0)]],
    ids=["copies", "constant", "single"],
)
def test_what_inspect_calls_fatal_is_not_trained_on(tmp_path: Path, images: list[np.ndarray]) -> None:
    for index, image in enumerate(images):
        # Other bytes for the same pixels.
        _write(tmp_path / f"part/good/{index}.{('png', 'bmp', 'tiff')[index % 3]}", image)
    dataset = open_dataset(tmp_path / "part")
    [fatal] = [problem.message for problem in inspect_dataset(dataset).problems if problem.is_fatal]
    with pytest.raises(DataError, match=re.escape(fatal)):
        train_detector(FAST, dataset, tmp_path / "run")


def test_the_image_that_is_held_out_of_two_is_named(tmp_path: Path) -> None:
    for seed in range(2):
        _write(tmp_path / f"part/good/{seed}.png", _noise(seed))
    with pytest.raises(DataError, match="got 1, since 1 of 2 were held out for thresholds"):
        train_detector(FAST, open_dataset(tmp_path / "part"), tmp_path / "run")


def test_copies_in_other_bytes_stay_on_one_side(tmp_path: Path) -> None:
    for seed in range(12):
        for suffix in ("png", "tiff"):
            _write(tmp_path / f"part/train/good/{seed}.{suffix}", _noise(seed))
    record = train_detector(FAST, open_dataset(tmp_path / "part"), tmp_path / "run")
    assert record.held_out
    assert not set(record.training) & set(record.held_out)


def test_samples_are_held_out_images(patchcore_run: Path, tiny_root: Path) -> None:
    run = read_run(patchcore_run)
    held_out = {
        read_image(path).tobytes() for path in training_images(tiny_root) if image_hash(path) in run.record.held_out
    }
    assert {read_image(sample).tobytes() for sample in run.samples} == held_out


def test_the_record_names_the_dataset_by_its_fingerprint(patchcore_run: Path, tiny_root: Path) -> None:
    dataset = open_dataset(tiny_root)
    record = read_run(patchcore_run).record
    assert record.dataset == fingerprint(dataset, hash_contents(sample.path for sample in dataset.samples))
    assert (record.category, record.layout) == (CATEGORY, "mvtec")
    assert set(record.seconds) == {"preparation", "fitting"}
    assert all(value >= 0 for value in record.seconds.values())


def test_nothing_held_out_means_every_image_is_learned_from(tiny_root: Path, tmp_path: Path) -> None:
    config = from_flat(PadimConfig, {"resize": (64, 64), "stages": (1,), "channels": 4, "held_out": 0.0})
    record = train_detector(config, open_dataset(tiny_root), tmp_path / "run")
    assert (len(record.training), len(record.held_out)) == (TRAIN, 0)
    assert len(read_run(tmp_path / "run").samples) == 8  # taken from the training images then


def test_the_same_settings_give_the_same_run_but_for_times(tiny_root: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        train_detector(FAST, open_dataset(tiny_root), tmp_path / name)
        weights.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
    first, second = (record_of(tmp_path / name) for name in ("a", "b"))
    for record in (first, second):
        del record["created"], record["seconds"], record["drawn"]["seconds"]
    assert first == second


@pytest.mark.parametrize("standardize", ["whiten", "scale", "none"])
@pytest.mark.long
def test_a_run_that_remembers_every_patch_gives_zero_on_its_training_images(
    tiny_root: Path, tmp_path: Path, standardize: str
) -> None:
    settings = {"resize": 32, "stages": [1, 2], "coreset": 1.0, "held_out": 0.0, "standardize": standardize}
    config, _ = build_config("patchcore", settings)
    train_detector(config, open_dataset(tiny_root), tmp_path / "run")
    run = read_run(tmp_path / "run")
    head = PatchcoreHead(run.record.grid, 9, "paper", 4.0)
    assert len(run.fitted.tensors["bank"]) == TRAIN * 64
    score = build_head(head, run.fitted.tensors, (32, 32))
    paths = training_images(tiny_root)
    for patches in iterate_patches(run.module, paths, run.record.config, "reading", no_progress):
        maps, scores = score(patches.numpy())
        np.testing.assert_array_equal(maps, np.zeros_like(maps))
        np.testing.assert_array_equal(scores, np.zeros_like(scores))


def test_progress_names_the_steps_and_reaches_the_end(tiny_root: Path, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    config = from_flat(PatchcoreConfig, {"resize": (64, 64), "stages": (1,), "coreset": 20})
    train_detector(
        config,
        open_dataset(tiny_root),
        tmp_path / "run",
        progress=lambda stage, count, total: seen.update({stage: (count, total)}),
    )
    stages = {"hashing images", "looking at images", "measuring channels", "reading patches", "selecting the coreset"}
    assert set(seen) == stages | {"checking with drawn defects"}
    assert all(count == total for count, total in seen.values())


def test_an_output_that_cannot_be_replaced_is_refused_before_the_work(tiny_root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("keep")
    calls: list[str] = []
    with pytest.raises(ArgumentError, match=r"expected a new folder or one with run\.json"):
        train_detector(
            FAST, open_dataset(tiny_root), tmp_path / "mine", progress=lambda stage, count, total: calls.append(stage)
        )
    assert calls == []


def test_settings_of_no_method_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"config: expected settings of a detector, got MethodConfig"):
        train_detector(MethodConfig(), open_dataset(tiny_root), tmp_path / "run")


def test_a_full_disk_while_patches_are_written_is_a_storage_error(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(patch_selection.tempfile, "TemporaryFile", full)
    config = from_flat(PatchcoreConfig, {"resize": (64, 64), "stages": (1,)})
    with pytest.raises(StorageError, match=r"run: could not be written: the disk is full"):
        train_detector(config, open_dataset(tiny_root), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_command_trains_and_says_what_it_made(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "padim", "--data", str(tiny_root), "--category", CATEGORY, "--out", str(out), "--seed", "7"]
    assert cli.run([*arguments, *SMALL, "--set", "held_out_minimum=6"]) == 0
    captured = capsys.readouterr()
    assert re.search(
        r"padim fitted on 18 normal images of steel in \d+\.\d s; 6 held out for calibration", captured.out
    )
    assert f"run: {out}" in captured.out
    assert re.search(r"^drawn defects: .*image AUROC", captured.out, re.MULTILINE)
    # What could be better, and no error.
    assert all(line.startswith(("note: drawn", "warning: drawn")) for line in captured.err.splitlines())
    record = read_run(out).record
    assert record.config.seed == 7
    assert record.command != ""


def test_a_run_is_replaced_by_the_next_only_if_that_is_asked_for(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train = ["train", "padim", "--data", str(tiny_root), "--out", str(out), *SMALL]
    assert cli.run([*train, "--seed", "1"]) == 0
    assert cli.run([*train, "--seed", "2"]) == 2
    assert "run: expected a new name, got an earlier output with run.json" in capsys.readouterr().err
    assert read_run(out).record.config.seed == 1
    assert cli.run([*train, "--seed", "2", "--overwrite"]) == 0
    assert read_run(out).record.config.seed == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert "run: " in capsys.readouterr().out


def test_options_win_over_set_and_set_over_the_file_which_may_name_the_data(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yml"
    file.write_text(
        f"data_path: {tiny_root}\ncategory: {CATEGORY}\nsave_path: /nowhere\ndo_eval: true\n"
        "resize: 128\nseed: 1\nchannels: 4\nstages: [1]\nsigma: 1.5\n"
    )
    out = tmp_path / "run"
    arguments = ["train", "padim", "--config", str(file), "--set", "seed=2", "--set", "channels=5", "--seed", "3"]
    assert cli.run([*arguments, "--image-size", "64", "--out", str(out)]) == 0
    config = read_run(out).record.config
    assert isinstance(config, PadimConfig)
    assert (config.input.resize, config.seed, config.channels, config.maps.sigma) == ((64, 64), 3, 5, 1.5)
    unused, *others = capsys.readouterr().err.splitlines()
    assert unused == "note: not used by train: save_path, do_eval"
    split = "note: 12 of 24 normal images were held out for thresholds. --set cross_fit=20 learns"
    assert any(line.startswith(split) for line in others)


def test_a_flat_folder_of_normal_images_is_enough(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_root / CATEGORY / "train" / "good", tmp_path / "cans"))
    arguments = ["train", "patchcore", "--data", str(folder), "--out", str(tmp_path / "run"), "--image-size", "64"]
    assert cli.run([*arguments, "--set", "coreset=20", "--set", "stages=1"]) == 0
    assert "of cans in" in capsys.readouterr().out
    assert read_run(tmp_path / "run").record.layout == "flat"


def test_without_data_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "padim", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: --data: expected the dataset's folder, got none. Say --data ROOT.\n"
