"""`flawscope score`: lines for machines and for people, maps as images, and an exit status that tells of faults."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_files import ODD, refuse_listing
from tiny_dataset import anomalous_images, broken_images, normal_images

from flawscope import cli
from flawscope import scratch as scratch_files
from flawscope.imaging.images import read_image
from flawscope.imaging.png import write_png
from flawscope.runtime import Inspector

KEYS = ["image", "score", "threshold", "threshold_revision", "decision", "boxes", "latency_ms"]
BOX_KEYS = ["x", "y", "width", "height", "area_px", "peak"]


def score(*arguments: object) -> int:
    return cli.run(["score", *(str(argument) for argument in arguments)])


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def broken(folder: Path, kind: str = "text") -> Path:
    name, data = broken_images()[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def test_json_is_one_line_an_image_with_exactly_these_keys(
    padim_bundle: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [normal_images(tiny_root)[0], anomalous_images(tiny_root)[0]]
    assert score(padim_bundle, *images, "--json", "--backend", "cpu") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [list(line) for line in lines] == [KEYS, KEYS]
    assert [line["image"] for line in lines] == [str(image) for image in images]
    assert [line["decision"] for line in lines] == ["accept", "reject"]
    assert lines[0]["boxes"] == []
    assert [list(box) for box in lines[1]["boxes"]] == [BOX_KEYS] * len(lines[1]["boxes"])
    assert len(lines[1]["boxes"]) >= 1
    assert all(isinstance(box[key], int) for box in lines[1]["boxes"] for key in BOX_KEYS[:5])
    assert all(line["latency_ms"] > 0 for line in lines)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        assert inspector.manifest.thresholds is not None
        assert {line["threshold"] for line in lines} == {inspector.manifest.thresholds.image.value}
        assert [line["score"] for line in lines] == [inspector(image).score for image in images]


def test_a_fault_has_a_reason_and_the_exit_status_is_1(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = normal_images(tiny_root)
    bad = broken(tmp_path)
    assert score(padim_bundle, good[0], bad, good[1], "--json") == 1
    lines = lines_of(capsys)
    assert [list(line) for line in lines] == [KEYS, [*KEYS, "reason"], KEYS]
    assert [line["decision"] for line in lines] == ["accept", "fault", "accept"]
    assert lines[1]["score"] is lines[1]["threshold"] is lines[1]["latency_ms"] is None
    assert lines[1]["boxes"] == []
    # The name stands beside it, and is not said twice.
    assert lines[1]["image"] == str(bad)
    assert bad.name not in lines[1]["reason"]
    assert lines[1]["reason"].startswith("expected an image (")
    assert score(padim_bundle, bad) == 1
    assert capsys.readouterr().out == f"fault   {bad}  {lines[1]['reason']}\n"


@pytest.mark.parametrize("place", ["named", "in_a_folder"])
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "folder"])
def test_what_is_no_file_is_a_fault_and_the_rest_is_scored(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, place: str
) -> None:
    good = normal_images(tiny_root)
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, image in zip(paths[::2], good, strict=False):
        shutil.copy(image, path)
    ODD[kind](paths[1])
    if place == "in_a_folder" and kind == "absent":
        paths[1].symlink_to("nowhere.png")
    assert score(padim_bundle, *(paths if place == "named" else [tmp_path]), "--json", "--batch", 3) == 1
    lines = lines_of(capsys)
    assert [(line["image"], line["decision"]) for line in lines] == [
        (str(path), decision) for path, decision in zip(paths, ("accept", "fault", "accept"), strict=True)
    ]
    assert lines[1]["reason"]
    assert str(paths[1]) not in lines[1]["reason"]


def test_an_image_that_is_gone_before_it_is_drawn_ends_no_loop(
    padim_bundle: Path,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [shutil.copy(image, tmp_path / f"{index}.png") for index, image in enumerate(normal_images(tiny_root)[:2])]
    judge = Inspector.stream

    def removing(*arguments: Any, **named: Any) -> Any:
        for result in judge(*arguments, **named):
            if result.image == str(images[0]):
                Path(images[0]).unlink()
            yield result

    monkeypatch.setattr(Inspector, "stream", removing)
    assert score(padim_bundle, *images, "--json", "--maps", tmp_path / "maps") == 2
    shown = capsys.readouterr()
    assert [json.loads(line)["decision"] for line in shown.out.splitlines()] == ["accept", "accept"]
    assert f"error: {images[0]}: could not be read: No such file or directory." in shown.err
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["1.png"]


def test_a_folder_that_cannot_be_listed_is_a_fault_and_the_rest_is_scored(
    padim_bundle: Path,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = normal_images(tiny_root)
    shut = tmp_path / "shut"
    shutil.copytree(good[0].parent, shut)
    refuse_listing(monkeypatch, shut)
    assert score(padim_bundle, good[0], shut, good[1], "--json") == 1
    lines = lines_of(capsys)
    assert [line["image"] for line in lines] == [str(good[0]), str(shut), str(good[1])]
    assert [line["decision"] for line in lines] == ["accept", "fault", "accept"]
    assert "Permission denied" in lines[1]["reason"]
    assert not lines[1]["reason"].startswith(str(shut))


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_names_of_strangers_end_no_loop_and_forge_no_line(
    form: tuple[str, ...],
    encoding: str,
    padim_bundle: Path,
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [
        b"a\xff.png",
        b"b\x1b]52;c;aGk=\x07.png",
        b"c.png\naccept  d.png",
        b"d\xc2\x9b2J.png",
        "e\u202e部品é\U0001f600.png".encode(),
        b"f.png",
    ]
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / os.fsdecode(name) for name in names]
    for path in paths:
        shutil.copy(normal_images(tiny_root)[0], path)
    paths[4].write_bytes(b"no image")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    status = score(padim_bundle, *paths, *form, "--maps", tmp_path / "maps", "--backend", "cpu")
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    assert status == 1, err
    lines = out.splitlines()
    assert len(lines) == len(paths)
    assert all(line.isprintable() for line in lines)
    assert len(list((tmp_path / "maps").iterdir())) == len(paths) - 1
    if form:
        decoded = [json.loads(line) for line in lines]
        assert [line["image"] for line in decoded] == [rf"{folder}/a\xff.png", *map(str, paths[1:])]
        assert [line["decision"] for line in decoded] == ["accept"] * 4 + ["fault", "accept"]
        (name,) = [line["image_base64"] for line in decoded if "image_base64" in line]
        assert base64.b64decode(name) == os.fsencode(paths[0])
    else:
        assert [line.split()[0] for line in lines] == ["accept"] * 4 + ["fault", "accept"]
        assert lines[1].startswith(rf"accept  {folder}/b\x1b]52;c;aGk=\x07.png  score ")


def test_rejects_are_no_failure(padim_bundle: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(padim_bundle, *anomalous_images(tiny_root), "--json") == 0
    assert "reject" in {line["decision"] for line in lines_of(capsys)}


def test_a_folder_means_its_images_in_order(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_root / "steel" / "test" / "good", tmp_path / "line"))
    (folder / "notes.txt").write_text("not an image")
    (folder / "below" / "deeper").mkdir(parents=True)
    shutil.copy(folder / "000.png", folder / "below" / "deeper" / "x.png")
    shutil.copy(folder / "000.png", folder / "zzz.PNG")
    assert score(padim_bundle, folder, "--json", "--batch", 4) == 0
    names = [line["image"] for line in lines_of(capsys)]
    expected = [*(f"{index:03d}.png" for index in range(6)), "below/deeper/x.png", "zzz.PNG"]
    assert names == [str(folder / name) for name in expected]


def test_a_folder_without_images_is_an_error(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(padim_bundle, tmp_path) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: expected images in this folder or below, got none. Name images or their folder.\n"
    )


def test_text_for_people_names_decision_score_and_threshold(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [normal_images(tiny_root)[0], anomalous_images(tiny_root)[0], broken(tmp_path)]
    assert score(padim_bundle, *images, "--backend", "cpu") == 1
    shown = capsys.readouterr()
    first, second, third = shown.out.splitlines()
    assert first.startswith(f"accept  {images[0]}  score ")
    assert " threshold " in first
    assert second.startswith(f"reject  {images[1]}  score ")
    assert second.rstrip("s").endswith("region")
    assert third.startswith(f"fault   {images[2]}  ")
    said = shown.err.splitlines()
    assert said[:2] == ["backend cpu (asked for)", "3 images: 1 accept, 1 reject, 1 fault"]
    assert re.fullmatch(
        r"time: [\d.]+ ms an image \(median\), slowest [\d.]+ ms \(.+\.png\), [\d.]+ s in all", said[-1]
    )


def test_maps_are_images_of_the_sources_size(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [normal_images(tiny_root)[0], anomalous_images(tiny_root)[0]]
    assert images[0].name == images[1].name  # of two folders
    maps = tmp_path / "new" / "maps"
    assert score(padim_bundle, *images, broken(tmp_path), "--maps", maps, "--json") == 1
    assert sorted(path.name for path in maps.iterdir()) == ["000.png", "000_2.png"]
    for image, name in zip(images, ("000.png", "000_2.png"), strict=True):
        drawn, source = read_image(maps / name), read_image(image)
        assert drawn.shape == source.shape
    assert not np.array_equal(read_image(maps / "000_2.png"), read_image(images[1]))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_names_that_look_like_numbered_ones_do_not_overwrite_each_other(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = normal_images(tiny_root)[0]
    names = ["a/x.png", "b/x.png", "c/x_2.png", "d/x.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(good, tmp_path / name)
    assert score(padim_bundle, *(tmp_path / name for name in names), "--maps", tmp_path / "maps") == 0
    assert len(list((tmp_path / "maps").iterdir())) == 4
    assert "error" not in capsys.readouterr().err


def test_a_map_that_cannot_be_written_leaves_no_part_without_a_decision(
    padim_bundle: Path,
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = scratch_files._make, []

    def full_at_first(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(scratch_files, "_make", full_at_first)
    images = [normal_images(tiny_root)[0], anomalous_images(tiny_root)[0]]
    assert score(padim_bundle, *images, "--maps", tmp_path / "maps", "--json", "--backend", "cpu") == 2
    printed = capsys.readouterr()
    assert [json.loads(line)["decision"] for line in printed.out.splitlines()] == ["accept", "reject"]
    assert printed.err.startswith("error: ")
    assert "could not be written: the disk is full" in printed.err
    assert len(list((tmp_path / "maps").iterdir())) == 1


@pytest.mark.parametrize("option", ["--maps", "--reconstructions"])
def test_maps_do_not_mix_with_older_ones_unasked(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "000.png").write_bytes(b"older")
    assert score(padim_bundle, normal_images(tiny_root)[0], option, tmp_path) == 2
    assert "expected a new folder, got one with files" in capsys.readouterr().err
    assert (tmp_path / "000.png").read_bytes() == b"older"
    if option == "--maps":
        assert score(padim_bundle, normal_images(tiny_root)[0], option, tmp_path, "--overwrite") == 0
        assert read_image(tmp_path / "000.png").shape == (64, 64, 3)


def test_a_bundle_that_is_not_calibrated_faults_but_draws_maps(
    uncalibrated_bundles: dict[str, Path], tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(uncalibrated_bundles["padim"], normal_images(tiny_root)[0], "--json", "--maps", tmp_path / "maps") == 1
    (line,) = lines_of(capsys)
    assert line["decision"] == "fault"
    assert line["reason"] == "the bundle has no thresholds: run flawscope calibrate"
    assert line["score"] > 0
    assert line["threshold"] is None
    assert read_image(tmp_path / "maps" / "000.png").shape == (64, 64, 3)


def test_a_map_that_is_no_number_is_not_drawn(
    padim_bundle: Path,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infer = Inspector.infer

    def spoiled(self: Inspector, prepared: Any) -> Any:
        maps, scores = infer(self, prepared)
        return maps * np.float32("nan"), scores

    monkeypatch.setattr(Inspector, "infer", spoiled)
    assert score(padim_bundle, normal_images(tiny_root)[0], "--json", "--maps", tmp_path / "maps") == 1
    (line,) = lines_of(capsys)
    assert line["reason"] == "inference gave NaN or infinity"
    assert list((tmp_path / "maps").iterdir()) == []


@pytest.mark.parametrize("option", [["--batch", "9"], ["--batch", "0"], ["--path", "magic"], ["--backend", "tpu"]])
def test_an_impossible_request_makes_no_folder_for_maps(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert score(padim_bundle, normal_images(tiny_root)[0], "--maps", tmp_path / "maps", *option) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_not_there_makes_no_folder_for_maps(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(tmp_path / "none.flaw", normal_images(tiny_root)[0], "--maps", tmp_path / "maps") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none.flaw'}: expected a bundle, got no such file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["graph", "kernel"])
def test_both_paths_print_the_same_decisions(
    patchcore_bundle: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    images = [*normal_images(tiny_root), *anomalous_images(tiny_root)]
    assert score(patchcore_bundle, *images, "--json", "--path", path, "--batch", "4") == 0
    decisions = [line["decision"] for line in lines_of(capsys)]
    assert decisions[:6] == ["accept"] * 6
    assert decisions[6:9] == ["reject"] * 3


def test_images_unlike_those_learned_from_are_noted_and_faults_where_that_was_asked_for(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = normal_images(tiny_root)[0]
    image = read_image(usual)
    for number in range(2):
        write_png(tmp_path / f"{number}.png", np.repeat(image, 2, axis=1))
    assert score(padim_bundle, tmp_path, usual, "--backend", "cpu") == 0
    note = f"of the images learned from {image.shape[1] / image.shape[0]:.3g}"
    assert f"note: 2 of 3 images: width by height is 2, {note}" in capsys.readouterr().err
    assert score(padim_bundle, tmp_path, usual, "--backend", "cpu", "--strict", "--json") == 1
    lines = lines_of(capsys)
    assert [line["decision"] for line in lines] == ["fault", "fault", "accept"]
    assert all(line["notes"] == [f"width by height is 2, {note}"] for line in lines[:2])
    assert "notes" not in lines[2]


def test_pictures_is_the_former_name_of_reconstructions(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for option in ("--reconstructions", "--pictures"):
        assert score(padim_bundle, normal_images(tiny_root)[0], option, tmp_path / "drawn") == 2
        said.append(capsys.readouterr().err)
    assert "expected a bundle that reconstructs images" in said[0]
    assert (
        said[1]
        == f"note: --pictures is now called --reconstructions; the old name will go in a later version\n{said[0]}"
    )


def test_maps_are_not_drawn_over_the_images(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(normal_images(tiny_root)[0], tmp_path / "part.png")
    before = (tmp_path / "part.png").read_bytes()
    assert score(padim_bundle, tmp_path / "part.png", "--maps", tmp_path, "--overwrite", "--backend", "cpu") == 2
    assert "expected another folder than that of the images" in capsys.readouterr().err
    assert (tmp_path / "part.png").read_bytes() == before
