"""Layouts of published datasets that folders alone do not tell: Real-IAD's tables, MVTec AD 2's test folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dataset_files import index, touch
from image_files import image

from flawscope.cli import run
from flawscope.datasets import list_categories, open_dataset
from flawscope.errors import DataError

NORMAL = {"category": "mint", "anomaly_class": "OK", "image_path": "OK/S0001/mint_1_C1.jpg", "mask_path": None}
UNSEEN = {"category": "mint", "anomaly_class": "OK", "image_path": "NG/scratch/S0003/mint_3_C2.jpg", "mask_path": None}
SCRATCH = {
    "category": "mint",
    "anomaly_class": "HS",
    "image_path": "NG/scratch/S0003/mint_3_C1.jpg",
    "mask_path": "NG/scratch/S0003/mint_3_C1.png",
}


def table(*train: dict[str, Any], test: tuple[dict[str, Any], ...] = (UNSEEN, SCRATCH)) -> str:
    """Return the text of a table of Real-IAD."""
    rows = list(train) or [NORMAL]
    return json.dumps({"meta": {"normal_class": "OK", "prefix": "mint/"}, "train": rows, "test": list(test)})


def real_iad(root: Path, images: str = "realiad_1024", tables: str = "realiad_jsons/realiad_jsons") -> Path:
    """Write one category of Real-IAD, and the table of another whose images are not there."""
    touch(root, f"{tables}/mint.json", f"{tables}/zipper.json")
    (root / f"{tables}/mint.json").write_text(table())
    for row in (NORMAL, UNSEEN, SCRATCH):
        touch(root / images / "mint", *(str(row[key]) for key in ("image_path", "mask_path") if row[key]))
    return root


INDEX = [
    ("OK/S0001/mint_1_C1.jpg", "train", "good", None),
    ("NG/scratch/S0003/mint_3_C2.jpg", "test", "good", None),
    ("NG/scratch/S0003/mint_3_C1.jpg", "test", "HS", "NG/scratch/S0003/mint_3_C1.png"),
]


@pytest.mark.parametrize("tables", ["realiad_jsons/realiad_jsons", "realiad_jsons"])
@pytest.mark.parametrize("images", ["realiad_1024", "realiad_256", "."])
def test_the_class_of_a_view_decides_and_not_its_folder(tmp_path, images, tables):
    real_iad(tmp_path, images, tables)
    assert list_categories(tmp_path) == ("mint",)
    base = tmp_path / images / "mint"
    # The whole, the images beside the tables, and one category alone are the same images in the same split.
    for opened in (open_dataset(tmp_path, "mint"), open_dataset(tmp_path / images), open_dataset(base)):
        assert (opened.layout, opened.category) == ("real_iad", "mint")
        rows = [
            (s.path.relative_to(base).as_posix(), s.split, s.defect, s.mask and s.mask.relative_to(base).as_posix())
            for s in opened.samples
        ]
        assert rows == INDEX


def test_two_sizes_are_not_mixed(tmp_path):
    real_iad(tmp_path)
    real_iad(tmp_path, "realiad_256")
    with pytest.raises(DataError, match=r"in one size, got realiad_1024, realiad_256\. Name the folder of one"):
        open_dataset(tmp_path, "mint")
    assert len(open_dataset(tmp_path / "realiad_256", "mint").samples) == 3


def test_tables_without_images_are_no_dataset(tmp_path):
    touch(tmp_path, "realiad_jsons/mint.json")
    with pytest.raises(DataError, match="expected the images that realiad_jsons names"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "expected a table of Real-IAD"),
        ('{"meta": {"normal_class": "OK", "prefix": "mint/"}, "train": []}', "missing required field `test`"),
        (table({**NORMAL, "image_path": "OK/S9/none.jpg"}), r"train\[0\]: image_path: expected a file below"),
        (table({**NORMAL, "image_path": "../../secret.jpg"}), "expected a path below"),
        (table({**NORMAL, "anomaly_class": " "}), "expected a name that can be printed"),
        (table(test=({**SCRATCH, "mask_path": "NG/none.png"},)), r"test\[0\]: mask_path: expected a file"),
        (table().replace('"mint/"', '"../mint/"'), "meta.prefix: expected a path below"),
        (table(SCRATCH), "got no normal training image"),
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path, text, expected):
    real_iad(tmp_path)
    (tmp_path / "realiad_jsons/realiad_jsons/mint.json").write_text(text)
    with pytest.raises(DataError, match=expected):
        open_dataset(tmp_path, "mint")


def test_a_stranger_below_such_a_folder_is_read_as_it_lies(tmp_path):
    real_iad(tmp_path)
    touch(tmp_path, "mine/good/0.png", "mine/good/1.png")
    assert open_dataset(tmp_path / "mine").layout == "folders"


def test_mvtec_ad_2_has_its_public_test_images(tmp_path, capsys):
    for seed, name in enumerate(("train/good/000_regular", "train/good/001_regular", "validation/good/000_regular")):
        image(tmp_path / f"can/{name}.png", seed)
    for seed, name in enumerate(("good/000_regular", "bad/000_regular", "bad/001_overexposed")):
        image(tmp_path / f"can/test_public/{name}.png", 10 + seed)
    touch(
        tmp_path,
        "can/test_public/ground_truth/bad/000_regular_mask.png",
        "can/test_private/000_regular.png",
        "can/test_private_mixed/000_mixed.png",
    )
    dataset = open_dataset(tmp_path, "can")
    assert index(dataset) == [
        ("train/good/000_regular.png", "train", "good", None),
        ("train/good/001_regular.png", "train", "good", None),
        ("test_public/good/000_regular.png", "test", "good", None),
        ("test_public/bad/000_regular.png", "test", "bad", "test_public/ground_truth/bad/000_regular_mask.png"),
        ("test_public/bad/001_overexposed.png", "test", "bad", None),
    ]
    remarks = {remark.path.name: remark.message for remark in dataset.remarks}
    assert remarks["test_public"] == "was taken as test"
    assert {name for name, text in remarks.items() if "left out" in text} == {
        "validation",
        "test_private",
        "test_private_mixed",
    }
    # Beside a folder `test` it is a stranger.
    image(tmp_path / "can/test/good/0.png", 30)
    assert [s.path.parent.name for s in open_dataset(tmp_path, "can").test] == ["good"]
    assert run(["data", "inspect", str(tmp_path), "--all"]) == 0
    assert "test_public is neither train nor test and was left out" in capsys.readouterr().out
