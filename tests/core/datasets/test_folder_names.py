"""Folders as lines call them: understood in several languages, or asked about, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.errors import DataError


def touch(root: Path, *names: str) -> Path:
    """Make empty files below a folder; a dataset is indexed without opening them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        *(("OK", "NG"), ("ok", "nok"), ("gut", "schlecht"), ("Gut", "Ausschuss"), ("bon", "mauvais"), ("IO", "NIO")),
        *(("i.O.", "n.i.O."), ("pass", "fail"), ("normal", "anomaly"), ("OK", "KO")),
    ],
)
def test_normal_and_anomalous_folders_of_lines_are_understood(tmp_path: Path, good: str, bad: str) -> None:
    touch(tmp_path, *(f"{good}/{number}.png" for number in range(10)), f"{bad}/0.png", f"{bad}/1.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "folders"
    assert {sample.path.parent.name for sample in dataset.samples if not sample.is_anomalous} == {good}
    assert dataset.defects == (bad,)
    assert [remark.path.name for remark in dataset.remarks if remark.kind == "taken_as_good"] == [good]


@pytest.mark.parametrize("good", ["OK", "gut", "IO"])
def test_they_are_understood_in_splits_too(tmp_path: Path, good: str) -> None:
    touch(tmp_path, f"train/{good}/0.png", f"test/{good}/1.png", "test/NG/2.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "mvtec"
    assert [sample.path.name for sample in dataset.train_good] == ["0.png"]
    assert dataset.defects == ("NG",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("positive/0.png", "negative/0.png"),
            r"got the folders negative, positive\. Call the one that ",
        ),
        (
            ("A/0.png", "B/0.png"),
            r"got the folders A, B\. Call the one that holds the normal images good",
        ),
        (("01_OK/0.png", "02_NG/0.png"), r"If 01_OK holds the normal images, call it good\."),
        (("OK/0.png", "gut/0.png"), r"expected one folder of normal images, got OK and gut\. Keep one, or join them\."),
        (("good/0.png", "IO/0.png", "NIO/0.png"), r"expected one folder of normal images, got IO and good\."),
        (
            ("OK_1.png", "NG_2.png", "part-nok-3.png"),
            r"got 2 of 3 with names of anomalous ones \(NG_2\.png, part",
        ),
    ],
)
def test_what_is_not_clear_is_asked_about(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(touch(tmp_path, *names))


@pytest.mark.parametrize("name", ["NG", "nok", "NIO", "schlecht", "mauvais", "Defects"])
def test_a_folder_of_anomalous_images_is_no_dataset(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: expected normal images, got a folder that is named as"):
        open_dataset(touch(tmp_path / name, "0.png", "1.png"))


@pytest.mark.parametrize("name", ["no_defect_1.png", "string_1.png", "Spring.png", "bad-nauheim.png", "1.png"])
def test_other_names_of_images_say_nothing(tmp_path: Path, name: str) -> None:
    assert len(open_dataset(touch(tmp_path, name)).train_good) == 1


def test_a_folder_called_good_may_hold_images_of_any_name(tmp_path: Path) -> None:
    assert len(open_dataset(touch(tmp_path, "good/NG_1.png")).train_good) == 1


def test_training_says_which_folder_it_takes_for_the_normal_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "OK/0.png", "NG/0.png")
    assert run(["train", "patchcore", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2  # empty images
    assert f"note: {tmp_path}/OK was taken as the folder of normal images\n" in capsys.readouterr().err
