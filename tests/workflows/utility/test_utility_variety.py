"""Inception score and IC-LPIPS in `flawscope synth judge`: from which files, over which images, before what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from published_weights import features_state, heads_state, inception_state
from tiny_dataset import write_rgb
from tiny_judged import SIDE, Place, arguments, part, quick_config, write_generated, write_place

from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.support_set import read_support, write_support
from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.progress import no_progress
from flawscope.scratch import scratch_folder
from flawscope.workflows.utility import utility_benchmark
from flawscope.workflows.utility.arms import read_arms
from flawscope.workflows.utility.utility_benchmark import UtilityPlan, run_utility_benchmark
from flawscope.workflows.utility.utility_data import DefectImages, UtilityData, read_utility_data
from flawscope.workflows.utility.utility_report import UtilityReport
from flawscope.workflows.utility.utility_variety import (
    Variety,
    VarietyNetworks,
    compared_size,
    load_networks,
    take_variety,
)

pytestmark = pytest.mark.long


class Files(NamedTuple):
    """Files of weights."""

    inception: Path
    lpips: Path
    heads: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("varied"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("weights")
    files = Files(folder / "inception.pth", folder / "alexnet.pth", folder / "alex.safetensors")
    torch.save(inception_state(), files.inception)
    torch.save(features_state("alexnet"), files.lpips, _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(heads_state("alexnet"), files.heads)
    return files


def options(files: Files) -> list[str]:
    return ["--inception", str(files.inception), "--lpips", str(files.lpips), "--lpips-heads", str(files.heads)]


def record_of(out: Path) -> UtilityReport:
    return msgspec.json.decode((out / "judge.json").read_bytes(), type=UtilityReport)


def lpips_of(files: Files) -> VarietyNetworks:
    networks = load_networks(None, files.lpips, files.heads, "cpu")
    assert networks is not None
    return networks


def variety_of(networks: VarietyNetworks, defects: dict[str, DefectImages]) -> Variety:
    return take_variety(networks, defects, quick_config(), "cpu", no_progress)


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_are_given_with_the_weights_and_change_no_verdict(
    place: Place, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_generated(tmp_path / "few", place.root, place.drawings[:10], place.seen)
    plain = run(arguments(place, few, tmp_path / "plain", "--steps", "4"))
    assert "diversity of the synthetic" not in capsys.readouterr().out
    assert run(arguments(place, few, tmp_path / "varied", "--steps", "4", *options(files))) == plain
    plain_report, varied = record_of(tmp_path / "plain"), record_of(tmp_path / "varied")
    assert plain_report.variety is None
    assert varied.verdict == plain_report.verdict
    assert [arm.figures for arm in varied.arms] == [arm.figures for arm in plain_report.arms]
    variety = varied.variety
    assert variety is not None
    assert {file.network: file.sha256 for file in variety.weights} == {
        "inception_v3": sha256_file(files.inception),
        "alexnet": sha256_file(files.lpips),
        "LPIPS heads": sha256_file(files.heads),
    }
    spot, tint = variety.defects["spot"], variety.defects["tint"]
    assert variety.pictures == spot.pictures + tint.pictures == varied.counts["synthetic"]
    for entry in (variety, spot, tint):
        score = entry.inception_score
        assert score is not None
        assert 1.0 < score.mean < entry.pictures
        assert (score.deviation, score.splits, score.pictures) == (None, 1, entry.pictures)
    # The support set has one spot and no tint.
    assert [(group.support, group.pictures) for group in spot.groups] == [(place.spot, spot.pictures)]
    assert spot.ic_lpips == spot.groups[0].lpips
    assert spot.ic_lpips is not None
    assert spot.ic_lpips > 0.0
    assert spot.size == (64, 64)
    assert (tint.ic_lpips, tint.groups, tint.size) == (None, (), None)
    assert variety.ic_lpips == spot.ic_lpips
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = shown.index(["diversity", "of", "the", "synthetic", "images,", "which", "decides", "nothing:"])
    assert shown[start + 2][0:2] == ["spot", str(spot.pictures)]
    assert shown[start + 2][-1] == f"{spot.ic_lpips:.4f}"
    assert shown[start + 3][0:2] + shown[start + 3][-1:] == ["tint", str(tint.pictures), "-"]
    assert shown[start + 4][0:2] == ["all", str(variety.pictures)]


def test_figures_are_taken_before_the_trainings(
    place: Place, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def stop(*anything: object, **named: object) -> None:
        steps.append("training")
        raise DataError("enough")

    monkeypatch.setattr(utility_benchmark, "train_detector", stop)
    with pytest.raises(DataError, match="enough"):
        run_utility_benchmark(
            plan(place, tmp_path / "out", lpips=files.lpips, lpips_heads=files.heads),
            lambda step, finished, total: steps.append(step),
        )
    assert steps.index("IC-LPIPS, spot") < steps.index("training")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--lpips", "L"], "--lpips-heads: expected a file together with --lpips, got none. Give both, or neither."),
        (["--lpips-heads", "H"], "--lpips: expected a file together with --lpips-heads, got none."),
        (["--inception", "L"], "expected the tensors of torchvision's inception_v3, got none named Conv2d_1a_3x3."),
        (["--lpips", "H", "--lpips-heads", "H"], "expected the tensors of torchvision's alexnet or vgg16, with "),
        (["--lpips", "L", "--lpips-heads", "L"], "expected the tensors of the linear heads of LPIPS for alexnet, got"),
        (["--inception", "none.pth"], "none.pth: expected a file of torch.save, got: No such file or directory."),
        (["--inception", "none.safetensors"], "none.safetensors: expected weights in safetensors, got: No such file"),
        (["--inception", "broken.safetensors"], "broken.safetensors: expected weights in safetensors, got: "),
        (["--inception", "calls.pth"], "calls.pth: expected a state dict of tensors, got a pickle with "),
        (["--inception", "nested.pth"], "nested.pth: expected a state dict of tensors, got dict for 'model'."),
        (
            ["--inception", "tensor.pth"],
            "tensor.pth: expected a state dict of tensors, got SavedTensor. Save the",
        ),
    ],
)
def test_wrong_weights_are_one_line_and_status_2_before_anything_is_trained(
    place: Place,
    files: Files,
    tmp_path: Path,
    more: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Calls:
        def __reduce__(self) -> Any:
            return os.system, ("touch done",)

    monkeypatch.chdir(tmp_path)
    Path("broken.safetensors").write_bytes(b"weights")
    torch.save({"a": Calls()}, "calls.pth")
    torch.save({"model": {"a": torch.zeros(1)}}, "nested.pth")
    torch.save(torch.zeros(1), "tensor.pth")
    named = [{"L": str(files.lpips), "H": str(files.heads)}.get(option, option) for option in more]
    assert run(arguments(place, place.helpful, tmp_path / "out", *named)) == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "done").exists()


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_both_kinds_of_file_give_the_same_network(files: Files, tmp_path: Path) -> None:
    other = Files(files.inception, tmp_path / "a.safetensors", tmp_path / "h.pth")
    safetensors.torch.save_file(features_state("alexnet"), other.lpips)
    torch.save(heads_state("alexnet"), other.heads)
    first, second = lpips_of(files).lpips, lpips_of(other).lpips
    assert first is not None
    assert second is not None
    expected = first.state_dict()
    assert {key: torch.equal(value, expected[key]) for key, value in second.state_dict().items()} == dict.fromkeys(
        expected, True
    )


def test_weights_in_half_precision_are_converted(files: Files, tmp_path: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in heads_state("alexnet").items()}
    safetensors.torch.save_file(halves, tmp_path / "h.safetensors")
    torch.save(halves, tmp_path / "h.pth")
    for name in ("h.safetensors", "h.pth"):
        networks = load_networks(None, files.lpips, tmp_path / name, "cpu")
        assert networks is not None
        assert networks.lpips is not None
        expected = halves["lin2.model.1.weight"].float().sqrt()
        assert torch.equal(networks.lpips.get_buffer("head2"), expected)


def test_without_weights_there_are_no_networks() -> None:
    assert load_networks(None, None, None, "cpu") is None
    with pytest.raises(ArgumentError, match="Give both, or neither"):
        load_networks(None, Path("a.pth"), None, "cpu")


# ---- Figures ---------------------------------------------------------------------------------------------------------


def test_equal_images_have_no_variety(files: Files, tmp_path: Path) -> None:
    image = part(1, "spot")[0]
    paths = []
    for number in range(4):
        write_rgb(tmp_path / f"{number}.png", image)
        paths.append(tmp_path / f"{number}.png")
    networks = load_networks(*files, "cpu")
    assert networks is not None
    variety = variety_of(networks, {"spot": DefectImages(tuple(paths[1:]), {"0.png": paths[0]})})
    assert variety.ic_lpips == 0.0
    assert variety.inception_score is not None
    assert variety.inception_score.mean == pytest.approx(1.0, abs=1e-6)


def test_images_are_grouped_by_the_support_image_they_are_like_and_sizes_may_differ(
    files: Files, tmp_path: Path
) -> None:
    dark, bright = (np.full((SIDE, SIDE, 3), value, np.uint8) for value in (20, 230))
    bright[:8] = 0
    write_rgb(tmp_path / "dark.png", np.kron(dark, np.ones((3, 2, 1), np.uint8)))
    write_rgb(tmp_path / "bright.png", bright)
    drawn = []
    for number, base in enumerate((dark, bright, bright, dark, bright)):
        image = base.copy()
        image[10 + number : 14 + number, 12:16] = 128
        write_rgb(tmp_path / f"{number}.png", image)
        drawn.append(tmp_path / f"{number}.png")
    support = {name: tmp_path / name for name in ("dark.png", "bright.png")}
    variety = variety_of(
        lpips_of(files),
        {"a": DefectImages(tuple(drawn), support), "b": DefectImages(tuple(drawn[:1]), support)},
    )
    groups = variety.defects["a"].groups
    assert [(group.support, group.pictures) for group in groups] == [("dark.png", 2), ("bright.png", 3)]
    means = [group.lpips for group in groups]
    assert variety.defects["a"].ic_lpips == pytest.approx(sum(mean for mean in means if mean) / 2)
    # One image has no pair: that defect type has no figure, and is not in the mean.
    assert variety.defects["b"].ic_lpips is None
    assert variety.ic_lpips == variety.defects["a"].ic_lpips
    assert variety.inception_score is None


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(96, 128)], (96, 128)),
        ([(1024, 2048)], (256, 512)),
        ([(32, 48)], (64, 96)),
        ([(100, 2000)], (64, 512)),
        ([(64, 64), (128, 128), (128, 128)], (128, 128)),
        ([(64, 96), (96, 96)], (96, 96)),
        ([(64, 96), (96, 64)], (96, 64)),
        ([(512, 512)], (512, 512)),
        ([(600, 513)], (512, 438)),
    ],
)
def test_images_are_compared_at_the_commonest_size_within_limits(
    sizes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    assert compared_size(sizes) == expected
    assert compared_size(sizes[::-1]) == expected


# ---- Over which images ---------------------------------------------------------------------------------------------


def data_of(root: Path, category: str | None, support: Path, generated: Path) -> UtilityData:
    dataset = open_dataset(root, category)
    return read_utility_data(quick_config(), dataset, read_support(support), [generated], no_progress)


def test_figures_are_over_all_accepted_images(place: Place) -> None:
    data = data_of(place.root, None, place.support, place.helpful)
    assert sum(len(images.drawn) for images in data.defects.values()) == len(data.drawn) == 24
    assert list(data.defects) == ["spot", "tint"]
    assert all(path.parent.name == name for name, images in data.defects.items() for path in images.drawn)
    assert data.defects["spot"].support == {place.spot: place.root / place.spot}
    assert data.defects["tint"].support == {}


def test_in_a_dataset_of_several_categories_defect_types_have_theirs(place: Place, tmp_path: Path) -> None:
    for name in ("part", "other"):
        shutil.copytree(place.root, tmp_path / "data" / name)
    both = open_dataset(tmp_path / "data", "all")
    write_support(both, tmp_path / "support", shots=6, split="test", defects=("part/spot",), allow_alike=True)
    data = data_of(tmp_path / "data", "all", tmp_path / "support", place.helpful)
    assert list(data.defects) == ["part/spot", "part/tint"]
    assert [len(images.support) for images in data.defects.values()] == [6, 0]
    assert set(data.defects["part/spot"].support) == {f"part/test/spot/{number:03d}.png" for number in range(6)}


# ---- What killed benchmarks leave ------------------------------------------------------------------------------------


def plan(place: Place, out: Path, **changes: Any) -> UtilityPlan:
    config, arms = quick_config(max_steps=3), read_arms([str(place.helpful)])
    return UtilityPlan(config, open_dataset(place.root), place.support, arms, out, seeds=(0,), **changes)


def test_what_a_killed_judgement_left_is_removed_and_nothing_else(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale, other = tmp_path / "out" / "arms" / ".flawscope-ab12cd_9.tmp", tmp_path / "out" / "arms" / ".other.tmp"
    for folder in (stale, other):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "out" / ".flawscope-ab12cd_8.tmp").write_text("{")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out" / "arms" / ".flawscope-linked_0.tmp").symlink_to(elsewhere, target_is_directory=True)

    def stop(*anything: object, **named: object) -> None:
        raise DataError("enough")

    monkeypatch.setattr(utility_benchmark, "train_detector", stop)
    with scratch_folder(tmp_path / "out" / "arms") as living:  # of another benchmark, which is running
        with pytest.raises(DataError, match="enough"):
            run_utility_benchmark(plan(place, tmp_path / "out"))
        assert living.is_dir()
    left = sorted(path.name for path in (tmp_path / "out" / "arms").iterdir())
    assert left == [".flawscope-linked_0.tmp", ".other.tmp"]
    assert (other / "metrics.jsonl").read_text() == "{}\n"
    assert not (tmp_path / "out" / ".flawscope-ab12cd_8.tmp").exists()
    assert elsewhere.is_dir()


def test_what_was_left_stays_where_the_request_is_wrong(place: Place, tmp_path: Path) -> None:
    stale = tmp_path / "out" / "arms" / ".flawscope-ab12cd_9.tmp"
    stale.mkdir(parents=True)
    with pytest.raises(ArgumentError, match="Give both, or neither"):
        run_utility_benchmark(plan(place, tmp_path / "out", lpips=Path("a.pth")))
    assert stale.is_dir()
