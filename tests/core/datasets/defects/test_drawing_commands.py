"""`synth paste` and `synth perlin`: folders of drawn defects, redrawn from their lines."""

from __future__ import annotations

import json
import shutil

import cv2
import msgspec
import numpy as np
import pytest
from file_contents import files_of
from tiny_dataset import CATEGORY, DEFECTS, write_rgb

from flawscope.cli import run
from flawscope.datasets import content_hash, open_dataset
from flawscope.datasets.defects import read_drawn, read_learned
from flawscope.datasets.defects.drawn_set import read_drawn_lines
from flawscope.datasets.defects.paste_sets import PastedImage, PasteRecord, PasteSettings, redraw_pasted, write_pasted
from flawscope.datasets.defects.perlin_sets import (
    PerlinImage,
    PerlinSettings,
    find_textures,
    redraw_perlin,
    write_perlin,
)
from flawscope.datasets.defects.support_set import read_support, write_support
from flawscope.datasets.drawing import pasting
from flawscope.datasets.drawing.pasting import PasteOptions
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask


@pytest.fixture
def steel(tiny_root):
    return open_dataset(tiny_root, CATEGORY)


@pytest.fixture
def support(steel, tmp_path):
    write_support(steel, tmp_path / "support", shots=2, split="test")
    return tmp_path / "support"


@pytest.fixture
def own_root(tiny_root, tmp_path):
    return shutil.copytree(tiny_root / CATEGORY, tmp_path / "data" / CATEGORY)


def lines_of(folder, kind):
    return [msgspec.json.decode(line.text, type=kind) for line in read_drawn_lines(folder)]


def check_folder(folder, dataset, source):
    """Read a folder back, and compare every image with its normal image and its masks."""
    drawn = read_drawn(folder)
    for one in drawn:
        assert one.source == source
        assert one.image.place.startswith(f"{one.category}/gen_img/{one.defect}/")
        good, image = read_image(dataset.root / one.good), read_image(one.path)
        assert content_hash(dataset.root / one.good) == one.good_sha256
        mask, boxes = read_mask(one.mask_path), read_mask(one.box_mask_path)
        assert mask.any()
        assert np.array_equal(image[~mask], good[~mask])
        assert not np.array_equal(image[mask], good[mask])
        assert not (mask & ~boxes).any()
    return drawn


@pytest.mark.parametrize(("blend", "places"), [("feather", "near"), ("poisson", "match")])
def test_pasted_defects_are_a_folder_of_drawn_images_and_each_is_drawn_again(
    steel, support, tmp_path, blend, places, capsys
):
    out = tmp_path / "pasted"
    data = ["--data", str(steel.root.parent), "--category", CATEGORY, "--support", str(support)]
    options = ["--num", "5", "--within", "image", "--blend", blend, "--rotate", "40", "--level", "3"]
    options += ["--places", places]
    assert run(["synth", "paste", *data, *options, "--out", str(out)]) == 0
    printed, warned = capsys.readouterr()
    assert f"pasted: {out}, 5 images of 2 defect types" in printed
    assert "warning: 4 support images are in the test split" in warned
    drawn = check_folder(out, steel, "paste")
    assert [one.defect for one in drawn] == [DEFECTS[0]] * 3 + [DEFECTS[1]] * 2
    assert (out / "contact_sheet.png").is_file()
    assert read_learned(out) == read_support(support).contents
    for line in lines_of(out, PastedImage):
        assert (line.options.blend, line.options.places) == (blend, places)
        image, mask = redraw_pasted(steel, line)
        assert np.array_equal(image, read_image(out / line.image.place))
        assert np.array_equal(mask, read_mask(out / line.mask.place))


def test_the_same_seed_pastes_the_same_and_more_images_change_none(steel, support, tmp_path):
    record = read_support(support)

    def files(name, **how):
        write_pasted(steel, record, tmp_path / name, PasteSettings(within="image", **how))
        # Time is in the record.
        return {file: data for file, data in files_of(tmp_path / name).items() if not file.startswith("paste.json")}

    first, again, other = files("a", per_defect=2), files("b", per_defect=2), files("c", per_defect=2, seed=1)
    assert first == again
    assert first["generated.jsonl"] != other["generated.jsonl"]
    more = files("d", per_defect=3)
    images = [file for file in first if "/gen_img/" in file]
    assert len(images) == 4
    assert all(more[file] == first[file] for file in images)


def test_a_defect_without_surroundings_is_told_before_anything_is_pasted(steel, support, tmp_path, monkeypatch):
    monkeypatch.setattr(pasting, "surroundings_of", lambda *_: None)
    how = PasteSettings(number=2, within="image", options=PasteOptions(places="match"))
    with pytest.raises(
        DataError, match=r"\.png: expected surroundings of the defect to find places by, got other defects"
    ):
        write_pasted(steel, read_support(support), tmp_path / "out", how)
    assert not (tmp_path / "out").exists()


def test_only_the_types_that_were_named_are_pasted(steel, support, tmp_path):
    record = write_pasted(
        steel, read_support(support), tmp_path / "out", PasteSettings(number=2, within="image"), defects=DEFECTS[:1]
    )
    assert record.defects == {f"{CATEGORY}/{DEFECTS[0]}": 2}
    assert len(record.support) == 2
    assert record.seconds_per_picture > 0
    assert msgspec.json.decode((tmp_path / "out" / "paste.json").read_bytes(), type=PasteRecord) == record


def test_nothing_is_pasted_onto_an_image_that_a_defect_was_learned_from(own_root, tmp_path):
    for path in sorted((own_root / "train" / "good").iterdir())[1:]:
        path.unlink()
    record = write_support(open_dataset(own_root), tmp_path / "support", shots=1, split="test")
    only = next((own_root / "train" / "good").iterdir())
    shutil.copy(own_root / record.pictures[0].source, only)
    with pytest.raises(DataError, match="expected normal training images that no defect was learned from, got none"):
        write_pasted(open_dataset(own_root), record, tmp_path / "out", PasteSettings(number=1))
    shutil.copy(own_root / "test" / "good" / "000.png", only.parent / "other.png")
    write_pasted(open_dataset(own_root), record, tmp_path / "out", PasteSettings(number=6, within="image"))
    assert {one.good for one in read_drawn(tmp_path / "out")} == {"train/good/other.png"}


@pytest.mark.parametrize("stored", ["grey8", "grey16", "colour16"])
def test_images_of_other_depths_and_sizes_are_pasted_on(own_root, tmp_path, stored):
    for path in (own_root / "train" / "good").iterdir():
        pixels = cv2.resize(cv2.imread(str(path), cv2.IMREAD_COLOR), (90, 40))
        pixels = pixels[..., 1] if stored.startswith("grey") else pixels
        cv2.imwrite(str(path), pixels.astype(np.uint16) * 257 if stored.endswith("16") else pixels)
    dataset = open_dataset(own_root)
    record = write_support(dataset, tmp_path / "support", shots=1, split="test")
    write_pasted(dataset, record, tmp_path / "out", PasteSettings(number=4, within="image"))
    assert [read_image(one.path).shape for one in check_folder(tmp_path / "out", dataset, "paste")] == [(40, 90, 3)] * 4


def test_a_mask_that_covers_all_is_refused(own_root, tmp_path):
    name = sorted((own_root / "ground_truth" / DEFECTS[0]).iterdir())[0]
    for path in (own_root / "ground_truth" / DEFECTS[0]).iterdir():
        cv2.imwrite(str(path), np.full(read_mask(name).shape, 255, np.uint8))
    dataset = open_dataset(own_root)
    record = write_support(dataset, tmp_path / "support", shots=1, split="test", defects=DEFECTS[:1])
    with pytest.raises(DataError, match=r"_mask.png: mask: expected some surroundings .* covers all\. Take it out"):
        write_pasted(dataset, record, tmp_path / "out", PasteSettings(number=1))
    assert not (tmp_path / "out").exists()


def test_a_changed_source_is_noticed_when_a_line_is_drawn_again(own_root, tmp_path):
    dataset = open_dataset(own_root)
    record = write_support(dataset, tmp_path / "support", shots=1, split="test", defects=DEFECTS[:1])
    write_pasted(dataset, record, tmp_path / "out", PasteSettings(number=1, within="image"))
    (line,) = lines_of(tmp_path / "out", PastedImage)
    with pytest.raises(DataError, match=r"expected a part of .* below 1, got 7"):
        redraw_pasted(dataset, msgspec.structs.replace(line, part=7))
    with pytest.raises(DataError, match=r"expected the support image nowhere.png with its mask, got none"):
        redraw_pasted(dataset, msgspec.structs.replace(line, support="nowhere.png"))
    for place in (line.good, f"ground_truth/{DEFECTS[0]}/{line.support[-7:-4]}_mask.png"):
        before = (own_root / place).read_bytes()
        write_rgb(own_root / place, np.zeros((64, 64, 3), np.uint8))
        with pytest.raises(DataError, match=r"expected the file that was pasted with, got other content"):
            redraw_pasted(dataset, line)
        (own_root / place).write_bytes(before)
    redraw_pasted(dataset, line)


# --- Perlin


@pytest.fixture
def textures(tmp_path):
    chance = np.random.default_rng(0)
    for name in ("banded/a.png", "banded/b.jpg", "dotted/a.png"):
        write_rgb(tmp_path / "textures" / name, chance.integers(0, 256, (50, 70, 3)).astype(np.uint8))
    return tmp_path / "textures"


@pytest.mark.parametrize("names", [[], ["normal"], ["made"], ["DIR"], ["DIR", "made"]])
def test_perlin_anomalies_are_a_folder_of_drawn_images_and_each_is_drawn_again(
    steel, textures, tmp_path, names, capsys
):
    out = tmp_path / "out"
    given = [word for name in names for word in ("--textures", str(textures) if name == "DIR" else name)]
    data = ["--data", str(steel.root.parent), "--category", CATEGORY, "--within", "image"]
    assert run(["synth", "perlin", *data, *given, "--num", "6", "--out", str(out)]) == 0
    assert f"drawn: {out}, 6 images of 1 defect type" in capsys.readouterr().out
    check_folder(out, steel, "perlin")
    assert read_learned(out) == frozenset()
    lines = lines_of(out, PerlinImage)
    expected = {"DIR": "folder"}
    assert {line.texture_kind for line in lines} <= {expected.get(name, name) for name in names or ["normal", "made"]}
    for line in lines:
        assert line.defect == "perlin"
        folder = textures if line.texture_kind == "folder" else None
        image, mask = redraw_perlin(steel, line, folder)
        assert np.array_equal(image, read_image(out / line.image.place))
        assert np.array_equal(mask, read_mask(out / line.mask.place))
    if names == ["DIR"]:
        with pytest.raises(ArgumentError, match=r"textures: expected the folder with .*, got none"):
            redraw_perlin(steel, lines[0])
        write_rgb(textures / lines[0].texture, np.zeros((9, 9, 3), np.uint8))
        with pytest.raises(DataError, match="expected the image that was drawn with, got other content"):
            redraw_perlin(steel, lines[0], textures)


def test_on_the_part_anomalies_lie_on_the_part(tmp_path):
    root = tmp_path / "part"
    image = np.full((64, 64, 3), 20, np.uint8)
    image[16:48, 16:48] = 180
    for number in range(2):
        write_rgb(root / "train" / "good" / f"{number}.png", image)
    write_perlin(open_dataset(root), tmp_path / "out", PerlinSettings(number=8), textures=find_textures(["made"]))
    part = np.zeros((64, 64), np.bool_)
    part[16:48, 16:48] = True
    for one in read_drawn(tmp_path / "out"):
        assert not read_mask(one.mask_path)[~part].any()


def test_a_texture_from_the_test_split_is_refused_under_any_name_and_format(own_root, tmp_path):
    dataset, out = open_dataset(own_root), tmp_path / "out"
    textures = tmp_path / "textures"
    textures.mkdir()
    cv2.imwrite(str(textures / "wood.bmp"), cv2.imread(str(dataset.test[0].path)))
    settings, found = PerlinSettings(number=1, within="image"), find_textures([str(textures)])
    with pytest.raises(DataError, match=r"wood.bmp: expected a texture that is no image of the test split, got test/"):
        write_perlin(dataset, out, settings, textures=found)
    assert not out.exists()
    cv2.imwrite(str(textures / "wood.bmp"), cv2.imread(str(dataset.train_good[0].path)))
    write_perlin(dataset, out, settings, textures=found)


def test_anomalies_of_grey_images_are_grey(own_root, textures, tmp_path):
    for path in (own_root / "train" / "good").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    names = [str(textures), "normal", "made"]
    write_perlin(
        open_dataset(own_root),
        tmp_path / "out",
        PerlinSettings(number=8, within="image"),
        textures=find_textures(names),
    )
    for one in read_drawn(tmp_path / "out"):
        pixels = read_image(one.path)
        assert (pixels[..., 0] == pixels[..., 1]).all()
        assert (pixels[..., 0] == pixels[..., 2]).all()


def test_the_same_seed_draws_the_same_and_more_images_change_none(steel, tmp_path):
    def images(name, **how):
        write_perlin(steel, tmp_path / name, PerlinSettings(within="image", **how))
        return {file: data for file, data in files_of(tmp_path / name).items() if "/gen_img/" in file}

    first, again, more, other = (
        images(n, number=k, seed=s) for n, k, s in (("a", 3, 0), ("b", 3, 0), ("c", 5, 0), ("d", 3, 1))
    )
    assert first == again
    assert first.items() <= more.items()
    assert first != other


# --- what is refused


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ["paste", "--support", "SUPPORT", "--num", "2", "--defect", "dent"],
            "defect: expected defect types of the support set",
        ),
        (["paste", "--support", "SUPPORT"], "Expected --num or --per-defect, got neither or both"),
        (["paste", "--support", "SUPPORT", "--num", "2", "--per-defect", "2"], "Expected --num or --per-defect"),
        (["paste", "--support", "NONE", "--num", "2"], "expected the record of a support set"),
        (["paste", "--support", "SUPPORT", "--num", "0"], "number: expected a whole number from 1"),
        (["paste", "--support", "SUPPORT", "--num", "1", "--scale", "2", "1"], "scale: expected two rising numbers"),
        (["paste", "--support", "SUPPORT", "--num", "1", "--rotate", "200"], "rotate: expected 0 to 180 degrees"),
        (
            ["paste", "--support", "SUPPORT", "--num", "1", "--level", "255", "--tries", "150", "--within", "image"],
            "got none in 150 tries",
        ),
        (["perlin", "--textures", "EMPTY"], "expected images to take textures from, got none"),
        (["perlin", "--textures", "NONE"], "none"),
        (["perlin", "--textures", "EMPTY", "--textures", "NONE"], "textures: expected one folder, got 2"),
        (["perlin", "--opacity", "0", "1"], "opacity: expected two rising numbers from 0.01 to 1"),
        (["perlin", "--threshold", "2"], "threshold: expected a number from 0.05 to 0.95"),
        (["perlin", "--defect", "../up"], "defect type: expected a name that a folder can have"),
        (["perlin", "--defect", "Good"], "defect type: expected a defect type, got 'Good'"),
        (["perlin", "--defect", "ok"], "defect type: expected a defect type, got 'ok'"),
        (
            ["perlin", "--level", "255", "--within", "image"],
            "expected an anomaly that changes at least 255 grey levels",
        ),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_nothing(steel, support, tmp_path, capsys, typed, message):
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    words = {"SUPPORT": support, "NONE": tmp_path / "none", "EMPTY": tmp_path / "empty"}
    arguments = [str(words.get(word, word)) for word in typed]
    data = ["--data", str(steel.root.parent), "--category", CATEGORY, "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert run(["synth", *arguments, *data]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_an_earlier_folder_is_replaced_only_where_that_is_asked_for(steel, support, tmp_path, capsys):
    data = [
        "--data",
        str(steel.root.parent),
        "--category",
        CATEGORY,
        "--within",
        "picture",
        "--out",
        str(tmp_path / "out"),
    ]
    paste, perlin = ["synth", "paste", "--support", str(support), "--num", "1"], ["synth", "perlin", "--num", "1"]
    assert run([*paste, *data]) == 0
    assert run([*paste, *data]) == 2
    assert run([*perlin, *data, "--overwrite"]) == 2, "it holds images of another source"
    assert run([*paste, *data, "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "generated.jsonl").read_text().splitlines()[0])["source"] == "paste"
    assert PasteOptions() == lines_of(tmp_path / "out", PastedImage)[0].options
