"""Drawing from mask sets, and inputs as AnoGen and MvP-Diff have them: the demo pair, folders of masks, their lines."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from drawn_folders import lines_of
from tiny_dataset import CATEGORY, DEFECTS, write_rgb
from tiny_synth_bundle import write_tiny_synth

from flawscope.bundle import SynthDefect
from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis import Synthesizer, read_generated, redraw
from flawscope.runtime.synthesis.generated_set import region_of
from flawscope.runtime.synthesis.mask_sites import MaskSites
from flawscope.runtime.synthesis.sites import Site, read_sites

LEARNED = [f"{CATEGORY}/{defect}" for defect in DEFECTS]
GOODS = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "drawer.flaw"
    write_tiny_synth(path, share=0.9)
    return str(path)


@pytest.fixture
def root(tiny_root, tmp_path):
    """A dataset of five normal images, one of them of another size."""
    good = tmp_path / "data" / CATEGORY / "train" / "good"
    good.mkdir(parents=True)
    for number in range(GOODS):
        shutil.copyfile(tiny_root / CATEGORY / "train" / "good" / f"{number:03d}.png", good / f"{number:03d}.png")
    write_rgb(good / "004.png", np.asarray(cv2.resize(read_image(good / "004.png"), (90, 72)), np.uint8))
    return tmp_path / "data"


def box(path, size=32, corner=(4, 6), sides=(12, 10), white=255):
    mask = np.zeros((size, size, 3), np.uint8)
    mask[corner[1] : corner[1] + sides[1], corner[0] : corner[0] + sides[0]] = white
    write_rgb(path, mask)
    return path


def masks_of_anogen(folder, white=255):
    """Write NAME/DEFECT/NNN.png, as AnoGen's mvtec_masks."""
    for defect in DEFECTS:
        for number in range(1, 5):
            box(folder / CATEGORY / defect / f"{number:03d}.png", corner=(2 * number, 6), white=white)
    return folder


def generate(*typed):
    """Draw; what the filter makes of the tiny bundle's drawings is not asked here, so status 1 is one too."""
    return run(["synth", "generate", *map(str, typed), "--backend", "cpu"]) in (0, 1)


@pytest.mark.parametrize("white", [255, 1])
def test_every_normal_image_is_drawn_on_with_some_masks_of_each_type(bundle, root, tmp_path, capsys, white):
    masks, out = masks_of_anogen(tmp_path / "masks", white), tmp_path / "out"
    assert generate(bundle, "--masks", masks, "--data", root, "--category", CATEGORY, "--out", out)
    lines = lines_of(out)
    assert len(lines) == GOODS * 2 * len(DEFECTS)
    for defect in DEFECTS:
        for number in range(GOODS):
            good = f"train/good/{number:03d}.png"
            boxes = [line.box for line in lines if (line.defect, line.good) == (defect, good)]
            assert len(set(boxes)) == 2
            assert all(place.startswith(f"{CATEGORY}/{defect}/") for place in boxes)
    # Masks of 32 pixels on images of 64: the region is the mask, enlarged, and the line draws the image again.
    record = json.loads((out / "generate.json").read_bytes())
    assert record["resized"] == len(lines)
    assert f"masks resized to their images: {len(lines)} (nearest)" in capsys.readouterr().out
    for line in lines:
        size = (72, 90) if line.good.endswith("004.png") else (64, 64)
        mask = read_mask(masks / line.box).astype(np.uint8)
        expected = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST) > 0
        np.testing.assert_array_equal(region_of(line, size), expected)
    line = read_generated(out)[-1]
    again = redraw(bundle, line, root / CATEGORY)
    np.testing.assert_array_equal(again.image, read_image(out / line.image.place))


def test_a_mask_set_of_synth_masks_is_drawn_from(bundle, root, tmp_path):
    ranges = {CATEGORY: {"within": "image", "defects": {}}}
    for defect in DEFECTS:
        ranges[CATEGORY]["defects"][defect] = {"width": [0.2, 0.3], "height": [0.2, 0.3], "rotate": True}
    (tmp_path / "ranges.json").write_text(json.dumps(ranges))
    made = ["--ranges", str(tmp_path / "ranges.json"), "--num", "6", "--size", "64", "--out", str(tmp_path / "masks")]
    assert run(["synth", "masks", *made]) == 0
    typed = [bundle, "--masks", tmp_path / "masks", "--data", root, "--per-image", "1", "--defect", DEFECTS[1]]
    for out in ("a", "b"):
        assert generate(*typed, "--out", tmp_path / out)
    lines = lines_of(tmp_path / "a")
    assert lines == lines_of(tmp_path / "b")
    assert [line.good for line in lines] == [f"train/good/{number:03d}.png" for number in range(GOODS)]
    assert {line.defect for line in lines} == {DEFECTS[1]}
    record = json.loads((tmp_path / "a" / "generate.json").read_bytes())
    assert (list(record["lines"]), record["resized"]) == (["masks.json"], 1)


def test_masks_of_a_foreground_are_drawn_on_their_own_image_alone(root, tmp_path):
    ranges = {CATEGORY: {"within": "foreground", "defects": {"stain": {"width": [0.1, 0.2], "height": [0.1, 0.2]}}}}
    ranges[CATEGORY]["defects"]["stain"]["rotate"] = False
    (tmp_path / "ranges.json").write_text(json.dumps(ranges))
    made = ["--data", str(root), "--num", "6", "--per-image", "2", "--overlap", "0", "--out", str(tmp_path / "masks")]
    assert run(["synth", "masks", "--ranges", str(tmp_path / "ranges.json"), *made]) == 0
    sites, _ = MaskSites(tmp_path / "masks", open_dataset(root, CATEGORY)).choose(LEARNED, lambda key: True)
    assert len(sites) == 6  # three images have two masks each
    for site in sites:
        assert site.mask.name.startswith(f"{site.good.stem}-")


def test_folders_called_as_images_have_masks_for_all_types_as_those_of_the_screw(root, tmp_path):
    for number in range(2):
        for mask in range(3):
            box(tmp_path / "masks" / CATEGORY / f"{number:03d}" / f"{mask:03d}.png")
    sites, _ = MaskSites(tmp_path / "masks", open_dataset(root, CATEGORY)).choose(LEARNED, lambda key: True, (), 3)
    assert len(sites) == 2 * 3 * len(DEFECTS)
    assert all(site.mask.parent.name == site.good.stem for site in sites)
    assert len({(site.defect, site.mask) for site in sites}) == len(sites)


def test_the_folder_of_one_category_does_as_well_and_few_masks_are_used_again(root, tmp_path):
    box(tmp_path / "masks" / CATEGORY / "stain" / "001.png")
    dataset = open_dataset(root, CATEGORY)
    for folder, place in (
        (tmp_path / "masks", f"{CATEGORY}/stain/001.png"),
        (tmp_path / "masks" / CATEGORY, "stain/001.png"),
    ):
        sites, _ = MaskSites(folder, dataset).choose(LEARNED, lambda key: True, (), 3)
        assert [site.box for site in sites] == [place] * 3 * GOODS


def test_a_further_type_or_image_changes_no_other_choice(root, tmp_path):
    masks, dataset = masks_of_anogen(tmp_path / "masks"), open_dataset(root, CATEGORY)
    both, _ = MaskSites(masks, dataset).choose(LEARNED, lambda key: True)
    one, _ = MaskSites(masks, dataset).choose(LEARNED, lambda key: True, ("stain",))
    assert [site for site in both if site.defect == "stain"] == one
    (root / CATEGORY / "train" / "good" / "002.png").unlink()
    fewer, _ = MaskSites(masks, open_dataset(root, CATEGORY)).choose(LEARNED, lambda key: True)
    assert fewer == [site for site in both if site.good.name != "002.png"]
    other, _ = MaskSites(masks, dataset).choose(LEARNED, lambda key: True, seed=1)
    assert other != both


def test_types_that_the_bundle_does_not_draw_are_passed_over_with_a_line(bundle, root, tmp_path, capsys):
    masks = masks_of_anogen(tmp_path / "masks")
    box(masks / CATEGORY / "rust" / "001.png")
    assert generate(bundle, "--masks", masks, "--data", root, "--num", "2", "--out", tmp_path / "out")
    assert f"passed over: {CATEGORY}/rust: the bundle does not draw it" in capsys.readouterr().err.splitlines()
    assert {line.defect for line in lines_of(tmp_path / "out")} == set(DEFECTS)


def test_several_categories_are_drawn_at_once(root, tmp_path):
    shutil.copytree(root / CATEGORY, root / "brass")
    masks = masks_of_anogen(tmp_path / "masks")
    shutil.copytree(masks / CATEGORY, masks / "brass")
    path = tmp_path / "two.flaw"
    defects = tuple(SynthDefect(name, "stain", ("a stain {location}",)) for name in (CATEGORY, "brass"))
    write_tiny_synth(path, share=0.9, head={"defects": defects})
    for index, named in enumerate(([f"{CATEGORY},brass"], ["brass", CATEGORY], ["all"])):
        out = tmp_path / f"out{index}"
        categories = [part for name in named for part in ("--category", name)]
        assert generate(path, "--masks", masks, "--data", root, *categories, "--per-image", "1", "--out", out)
        lines = lines_of(out)
        assert {(line.category, line.good.split("/")[0]) for line in lines} == {(n, n) for n in (CATEGORY, "brass")}


# --- the demo pair


@pytest.mark.parametrize(("side", "of_mask"), [(90, 51), (51, 90), (64, 64)])
def test_a_mask_of_another_size_than_its_image_is_resized(bundle, tiny_root, tmp_path, capsys, side, of_mask):
    """As AnoGen's demo pair: an image of 900 and a mask of 512 pixels."""
    image = read_image(tiny_root / CATEGORY / "train" / "good" / "000.png")
    write_rgb(tmp_path / "part.png", np.asarray(cv2.resize(image, (side, side)), np.uint8))
    box(tmp_path / "mask.png", of_mask, (12, 14), (20, 16))
    typed = ["--image", tmp_path / "part.png", "--mask", tmp_path / "mask.png", "--defect", "stain"]
    out = tmp_path / "out"
    assert generate(bundle, *typed, "--extract_mask", "--out", out)
    said = capsys.readouterr()
    assert ("masks resized to their images: 1 (nearest)" in said.out) == (side != of_mask)
    assert "note: --extract_mask: precise masks are always written" in said.err
    (line,) = lines_of(out)
    left, top, width, height = line.bbox
    for got, expected in ((left, 12), (top, 14), (width, 20), (height, 16)):
        assert abs(got - expected * side / of_mask) <= 1
    np.testing.assert_array_equal(redraw(bundle, line, tmp_path).image, read_image(out / line.image.place))


def test_the_spellings_of_anogen_s_script_are_taken_too(bundle, tiny_root, tmp_path):
    image, mask = tiny_root / CATEGORY / "train" / "good" / "000.png", box(tmp_path / "mask.png")
    theirs = ["--image_prompt", image, "--mask_prompt", mask, "--prompt", "a stain {location}", "--ddim_steps", "3"]
    theirs += ["--scale", "4", "--ddim_eta", "0.5", "--outdir", tmp_path / "theirs"]
    ours = ["--image", image, "--mask", mask, "--text", "a stain {location}", "--steps", "3", "--guidance", "4"]
    ours += ["--eta", "0.5", "--out", tmp_path / "ours"]
    for typed in (theirs, ours):
        assert generate(bundle, "--defect", "stain", *typed)
    (first,), (second,) = (lines_of(tmp_path / name) for name in ("theirs", "ours"))
    assert first == second
    assert (first.options.steps, first.options.guidance, first.options.eta) == (3, 4.0, 0.5)


# --- MvP-Diff's own lines


def test_lines_with_paths_from_the_working_folder_are_read(root, tmp_path, monkeypatch):
    """As MvP-Diff writes them: good below ./data, masks below ./output, lines in ./script/NAME/NAME_test.jsonl."""
    box(tmp_path / "output" / "mask" / CATEGORY / "stain" / "000.png", 64)
    line = {
        "good": f"./data/{CATEGORY}/train/good/001.png",
        "mask": f"./output/mask/{CATEGORY}/stain/000.png",
        "text": f"There is a stain; {CATEGORY}_stain",
    }
    script = tmp_path / "script" / CATEGORY / f"{CATEGORY}_test.jsonl"
    script.parent.mkdir(parents=True)
    script.write_text(json.dumps(line) + "\n")
    monkeypatch.chdir(tmp_path)
    for dataset in (open_dataset(root, CATEGORY), open_dataset(root / CATEGORY)):
        (site,), _ = read_sites(tmp_path / "script", dataset)
        assert (site.defect, site.text) == ("stain", line["text"])
        assert site.good.samefile(root / CATEGORY / "train/good/001.png")
        assert (dataset.root / site.place).samefile(site.good)
        assert site.read_mask((64, 64)).any()
    # Elsewhere they are not there, and what lies beside the dataset is no image of it.
    monkeypatch.chdir(root)
    (site,), _ = read_sites(tmp_path / "script", open_dataset(root, CATEGORY))
    assert not site.good.exists()
    (tmp_path / "elsewhere.png").write_bytes(b"x")
    script.write_text(json.dumps({**line, "good": "elsewhere.png"}) + "\n")
    monkeypatch.chdir(tmp_path)
    (site,), _ = read_sites(tmp_path / "script", open_dataset(root, CATEGORY))
    assert not site.good.exists()


# --- bad input


def test_masks_that_no_defect_fits_are_refused_by_name(root, tmp_path):
    good = root / CATEGORY / "train" / "good" / "000.png"

    def site(name, mask, *, is_fitted=True):
        write_rgb(tmp_path / name, mask)
        return Site(CATEGORY, "stain", good, "000.png", tmp_path / name, name, is_fitted=is_fitted)

    white, black = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64, 3), np.uint8)
    dot = np.zeros((640, 640, 3), np.uint8)
    dot[1, 1] = 255
    for given, message in (
        (site("white.png", white), "expected black pixels around the defect, got an all-white mask"),
        (site("black.png", black), "expected at least one white pixel, got an all-black mask"),
        (site("dot.png", dot), "expected a mask that can be brought from 640x640 to 64x64 pixels, got no white pixel"),
        (site("whole.png", white[:32, :32], is_fitted=False), "expected 64x64 pixels as .* has, got 32x32"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            given.read_mask((64, 64))
        assert str(given.mask) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["OTHER"], "expected masks of steel, got those of bottle"),
        (["EMPTY"], "expected masks of steel, got those of none"),
        (["NOWHERE"], "expected a folder of masks, got no folder"),
        (["BROKEN"], "expected the record of a mask set"),
        (
            ["RUST"],
            "which the bundle draws, got those of steel/rust. Name the mask set, or the bundle, of this product",
        ),
        (["MASKS", "--defect", "rust"], "defect: expected defect types of the masks (pitting, stain), got 'rust'"),
        (["MASKS", "--per-image", "0"], "per_image: expected a whole number from 1"),
        (["WHITE"], "expected black pixels around the defect, got an all-white mask"),
        (["MASKS", "--boxes", "x"], "Expected --boxes or --masks, got both"),
        (["MASKS", "--image", "x"], "Expected --masks with --data, or --image with --mask, got both"),
        (["MASKS", "--category", "brass"], "expected one of the categories"),
        (["MASKS", "--lora_dir", "lora"], "Expected base and LoRA in BUNDLE, as flawscope export writes it, got lora"),
        (["MASKS", "--checkpoint_dir", "c"], "Leave --checkpoint_dir and --lora_dir out"),
    ],
)
def test_a_mask_set_that_does_not_fit_is_one_line_and_leaves_nothing(bundle, root, tmp_path, capsys, typed, message):
    masks_of_anogen(tmp_path / "MASKS")
    box(tmp_path / "OTHER" / "bottle" / "crack" / "001.png")
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "masks.json").write_text("{}")
    box(tmp_path / "RUST" / CATEGORY / "rust" / "001.png")
    box(tmp_path / "WHITE" / CATEGORY / "stain" / "001.png", 8, (0, 0), (8, 8))
    before = sorted(path.name for path in tmp_path.iterdir())
    named = [str(tmp_path / typed[0]), *typed[1:]]
    arguments = ["synth", "generate", bundle, "--data", str(root), "--backend", "cpu", "--masks", *named]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_masks_need_the_dataset(bundle, tmp_path, capsys):
    assert run(["synth", "generate", bundle, "--masks", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "or --masks and --data. Give those." in capsys.readouterr().err
    assert run(["synth", "generate", bundle, "--per-image", "2", "--boxes", "b", "--data", "d", "--out", "o"]) == 2
    assert "Expected --per-image with --masks, got it without" in capsys.readouterr().err


def test_a_bundle_that_has_learned_no_defect_draws_any(root, tmp_path):
    masks = masks_of_anogen(tmp_path / "masks")
    sites, passed_over = MaskSites(masks, open_dataset(root, CATEGORY)).choose((), lambda key: True)
    assert {site.defect for site in sites} == set(DEFECTS)
    assert passed_over == {}
    with pytest.raises(ArgumentError, match="expected defect types of the masks"):
        MaskSites(masks, open_dataset(root, CATEGORY)).choose((), lambda key: True, ("rust",))


def test_the_bundle_of_the_tests_is_whole(bundle):
    with Synthesizer.load(bundle, "cpu") as synthesizer:
        assert {f"{d.category}/{d.name}" for d in synthesizer.defects} == set(LEARNED)
