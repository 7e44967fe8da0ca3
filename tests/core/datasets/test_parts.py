"""The generated parts: same arguments same pixels, exact masks, and a dataset that appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from msgspec import json
from numpy.testing import assert_array_equal

from flawscope.datasets.parts import DEFECTS, GENERATOR_VERSION, KINDS, PartsRecord, render, render_pair, write_dataset
from flawscope.datasets.parts.board_layout import BOARD, PITCH, make_layout
from flawscope.errors import ArgumentError, StorageError
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask

ALL_DEFECTS = [(kind, defect) for kind in KINDS for defect in DEFECTS[kind]]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_there_are_three_kinds_of_parts_and_more_with_four_defects_each_and_eight_in_all() -> None:
    assert len(KINDS) >= 3
    assert set(DEFECTS) == set(KINDS)
    assert all(len(set(names)) == len(names) >= 4 for names in DEFECTS.values())
    assert len({name for names in DEFECTS.values() for name in names}) >= 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 97])
def test_a_good_part_has_the_asked_size_and_an_empty_mask(kind: str, size: int) -> None:
    image, mask = render(kind, 0, 0, size)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((size, size), np.bool_)
    assert not mask.any()
    assert 30 < image.mean() < 225, "neither black nor burnt out"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_pixels_whatever_was_drawn_before(kind: str) -> None:
    defect = DEFECTS[kind][0]
    first, first_mask = render(kind, 3, 5, 64, defect)
    for seed in (4, 5):  # more designs than are kept in memory
        render(kind, seed, 0, 64)
    again, again_mask = render(kind, 3, 5, 64, defect)
    assert_array_equal(first, again)
    assert_array_equal(first_mask, again_mask)


def test_another_process_with_another_hash_seed_draws_the_same_pixels() -> None:
    program = (
        "import hashlib; from flawscope.datasets.parts import KINDS, render; "
        "print(hashlib.sha256(b''.join(render(kind, 1, 2, 64)[0].tobytes() for kind in KINDS)).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    here = hashlib.sha256(b"".join(render(kind, 1, 2, 64)[0].tobytes() for kind in KINDS)).hexdigest()
    assert result.stdout.strip() == here


@pytest.mark.parametrize("kind", KINDS)
def test_index_seed_and_defect_each_change_the_image(kind: str) -> None:
    images = [
        render(kind, 0, 0, 64)[0],
        render(kind, 0, 1, 64)[0],
        render(kind, 1, 0, 64)[0],
        render(kind, 0, 0, 64, DEFECTS[kind][0])[0],
    ]
    for first, second in combinations(images, 2):
        assert (first != second).mean() > 0.5


@pytest.mark.parametrize(("kind", "defect"), ALL_DEFECTS)
def test_the_mask_is_exactly_where_the_defect_changed_the_image(kind: str, defect: str) -> None:
    for index in range(3):
        good, image, mask = render_pair(kind, 0, index, 256, defect=defect)
        differs = (good != image).any(axis=2)
        assert not (differs & ~mask).any(), "equal outside the mask"
        assert differs[mask].mean() >= 0.9, "different inside it"
        assert 20 <= mask.sum() < mask.size / 2
        change = np.abs(good.astype(int) - image).max(axis=2)
        assert (change[mask] >= 12).sum() >= 15, "a person can see it"


@pytest.mark.parametrize(("kind", "defect"), ALL_DEFECTS)
def test_render_gives_the_defective_half_of_the_pair(kind: str, defect: str) -> None:
    image, mask = render(kind, 2, 1, 64, defect)
    pair = render_pair(kind, 2, 1, 64, defect=defect)
    assert_array_equal(image, pair.image)
    assert_array_equal(mask, pair.mask)
    assert mask.any()


@pytest.mark.parametrize(("kind", "defect"), ALL_DEFECTS)
def test_sizes_of_a_defect_vary_from_image_to_image(kind: str, defect: str) -> None:
    areas = [int(render(kind, 0, index, 96, defect)[1].sum()) for index in range(6)]
    assert len(set(areas)) >= 4
    assert max(areas) > 1.2 * min(areas)


def test_boards_of_one_seed_share_their_design_and_other_seeds_have_another() -> None:
    def small(seed: int, index: int) -> Any:
        image = cv2.resize(render("board", seed, index, 128)[0], (32, 32), interpolation=cv2.INTER_AREA).astype(float)
        return (image - image.mean()) / image.std()

    same = np.mean(small(0, 0) * small(0, 1))
    other = np.mean(small(0, 0) * small(1, 0))
    assert same > 0.85
    assert other < 0.6


def test_a_gear_may_lie_at_any_angle() -> None:
    good = [render("gear", 0, index, 64)[0].mean(axis=2) for index in range(6)]
    ring = [np.asarray(cv2.warpPolar(image, (32, 64), (31.5, 31.5), 32, 0))[:, 14] for image in good]
    peaks = {int(np.argmin(values)) for values in ring}
    assert len(peaks) >= 3, "lightening holes turn with the part"


@pytest.mark.parametrize("seed", range(4))
def test_components_of_a_board_do_not_overlap_and_traces_do_not_touch(seed: int) -> None:
    layout = make_layout(seed)
    assert len(layout.parts) >= 15
    assert len(layout.traces) >= 15
    for part in layout.parts:
        assert min(part.x - part.half[0], part.y - part.half[1]) >= 0
        assert max(part.x + part.half[0], part.y + part.half[1]) <= BOARD
    for first, second in combinations(layout.parts, 2):
        gaps = (
            abs(first.x - second.x) - first.half[0] - second.half[0],
            abs(first.y - second.y) - first.half[1] - second.half[1],
        )
        assert max(gaps) >= 0, f"{first.name} and {second.name}"
    occupied: set[tuple[float, float]] = set()
    for trace in layout.traces:
        points = {*trace, *(((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairwise(trace))}
        assert not points & occupied
        assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) == PITCH for a, b in pairwise(trace))
        occupied |= points


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "bottle"}, r"kind: expected one of steel, .*, got 'bottle'"),
        ({"defect": "hole"}, r"defect: expected one of scratch, .* for kind steel, got 'hole'"),
        ({"size": 63}, r"size: expected a whole number from 64 to 1024, got 63"),
        ({"size": 1025}, r"size: expected a whole number from 64 to 1024, got 1025"),
        ({"size": 128.0}, r"size: expected a whole number from 64 to 1024, got 128\.0"),
        ({"size": True}, r"size: expected a whole number from 64 to 1024, got True"),
        ({"seed": -1}, r"seed: expected a whole number from 0 to \d+, got -1"),
        ({"index": -1}, r"index: expected a whole number from 0 to \d+, got -1"),
    ],
)
def test_render_refuses_what_it_cannot_draw(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        render(**{"kind": "steel", "seed": 0, "index": 0, **arguments})


def test_a_dataset_has_the_layout_of_mvtec_with_exact_masks(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    steps: list[tuple[int, int]] = []
    write_dataset(
        root,
        ("gear", "cloth"),
        seed=7,
        size=64,
        train=3,
        test_good=2,
        test_defective=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    expected = {"contact_sheet.png", "parts.json"}
    for kind in ("gear", "cloth"):
        expected |= {f"{kind}/train/good/{number:03d}.png" for number in range(3)}
        expected |= {f"{kind}/test/good/{number:03d}.png" for number in range(2)}
        expected |= {f"{kind}/test/{defect}/000.png" for defect in DEFECTS[kind]}
        expected |= {f"{kind}/ground_truth/{defect}/000_mask.png" for defect in DEFECTS[kind]}
    assert files_below(root) == expected
    total = 2 * 5 + len(DEFECTS["gear"]) + len(DEFECTS["cloth"])
    assert steps == [(done, total) for done in range(1, total + 1)]

    image, mask = render("gear", 7, 0, 64, "rust")
    assert_array_equal(read_image(root / "gear/test/rust/000.png"), image)
    stored = cv2.imread(str(root / "gear/ground_truth/rust/000_mask.png"), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    assert_array_equal(stored, mask * np.uint8(255))
    assert_array_equal(read_mask(root / "gear/ground_truth/rust/000_mask.png"), mask)
    assert_array_equal(read_image(root / "gear/train/good/002.png"), render("gear", 7, 2, 64)[0])
    training = [read_image(path).tobytes() for path in sorted(root.glob("*/train/good/*.png"))]
    testing = [read_image(path).tobytes() for path in sorted(root.glob("*/test/good/*.png"))]
    assert len({*training, *testing}) == 10, "no image is in both"


def test_the_record_says_how_to_make_the_dataset_again(tmp_path: Path) -> None:
    write_dataset(tmp_path / "parts", ("steel",), seed=3, size=64, train=1, test_good=0, test_defective=1)
    record = json.decode((tmp_path / "parts" / "parts.json").read_bytes(), type=PartsRecord)
    assert record == PartsRecord(GENERATOR_VERSION, 3, 64, 1, 0, 1, {"steel": DEFECTS["steel"]})
    sheet = read_image(tmp_path / "parts" / "contact_sheet.png")
    assert sheet.shape[1] > 256 * (1 + len(DEFECTS["steel"]))
    assert (sheet == (255, 40, 200)).all(axis=2).any(), "masks are outlined"


def test_normal_test_images_do_not_depend_on_the_training_count(tmp_path: Path) -> None:
    for name, train in (("a", 1), ("b", 2)):
        write_dataset(tmp_path / name, ("steel",), size=64, train=train, test_good=1, test_defective=0)
    first, second = (read_image(tmp_path / name / "steel/test/good/000.png") for name in ("a", "b"))
    assert_array_equal(first, second)


def test_an_earlier_dataset_is_replaced_but_a_folder_with_other_files_is_not(tmp_path: Path) -> None:
    counts = {"size": 64, "train": 1, "test_good": 0, "test_defective": 0}
    root = tmp_path / "parts"
    write_dataset(root, ("steel", "cloth"), **counts)
    with pytest.raises(ArgumentError, match=r"expected a new name, got an earlier output with parts\.json"):
        write_dataset(root, ("gear",), **counts)
    write_dataset(root, ("gear",), overwrite=True, **counts)
    assert files_below(root) == {"contact_sheet.png", "parts.json", "gear/train/good/000.png"}
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "beach.txt").write_text("keep me")
    with pytest.raises(ArgumentError, match=r"expected a new folder or one with parts\.json"):
        write_dataset(other, ("gear",), overwrite=True, **counts)
    assert files_below(other) == {"beach.txt"}


def test_a_failing_write_leaves_nothing_and_keeps_the_earlier_dataset(tmp_path: Path) -> None:
    def full(done: int, total: int) -> None:
        if done == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    root = tmp_path / "parts"
    with pytest.raises(StorageError, match="the disk is full"):
        write_dataset(root, ("steel",), size=64, train=3, test_good=0, test_defective=0, progress=full)
    assert list(tmp_path.iterdir()) == []
    write_dataset(root, ("cloth",), size=64, train=1, test_good=0, test_defective=0)
    before = files_below(tmp_path)
    with pytest.raises(StorageError, match="the disk is full"):
        write_dataset(root, ("steel",), size=64, train=3, test_good=0, test_defective=0, progress=full, overwrite=True)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("steel", "bottle")}, r"kind: expected one of .*, got 'bottle'"),
        ({"kinds": ()}, r"kinds: expected different kinds out of steel, .*, got \(\)"),
        ({"kinds": ("gear", "gear")}, r"kinds: expected different kinds"),
        ({"kinds": "gear"}, r"kinds: expected different kinds out of .*, got 'gear'"),
        ({"size": 9}, r"size: expected a whole number from 64 to 1024, got 9"),
        ({"seed": -3}, r"seed: expected a whole number from 0 to"),
        ({"train": 0}, r"train: expected a whole number from 1 to 100000, got 0"),
        ({"test_good": -1}, r"test_good: expected a whole number from 0 to 100000, got -1"),
        ({"test_defective": 100_001}, r"test_defective: expected a whole number from 0 to 100000, got 100001"),
    ],
)
def test_write_dataset_refuses_before_it_touches_the_disk(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        write_dataset(tmp_path / "parts", **arguments)
    assert list(tmp_path.iterdir()) == []
