"""`flawscope synth generate`: the folder it leaves, the same bytes again, and what it refuses."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from drawn_folders import lines_of, record_of
from file_contents import files_of
from tiny_dataset import CATEGORY, write_rgb
from tiny_synth_bundle import write_tiny_synth

from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis import (
    DrawOptions,
    GenerateSettings,
    QualityLimits,
    Synthesizer,
    feather_mask,
    generate_images,
    read_sites,
    redraw,
)
from flawscope.runtime.synthesis.generated_set import RecordedOptions, region_of

# --- the folder


def test_every_accepted_image_has_its_precise_mask_its_box_and_its_line(drawn, tiny_root, place):
    names = {"pitting": ("001", "002", "003", "004"), "stain": ("001", "002", "003")}
    kinds = ("gen_img", "prs_mask", "box_mask")
    images = {f"{CATEGORY}/{kind}/{d}/{name}.png" for kind in kinds for d in names for name in names[d]}
    assert set(files_of(drawn)) == images | {"generated.jsonl", "generate.json", "contact_sheet.png"}
    lines = lines_of(drawn)
    assert [line.number for line in lines] == list(range(7))
    orders = [json.loads(text) for text in (place / "boxes/steel/steel_test.jsonl").read_text().splitlines()]
    for line, order in zip(lines, orders, strict=True):
        assert (line.good, line.box, line.defect, list(line.bbox)) == tuple(
            order[key] for key in ("good", "mask", "defect", "bbox")
        )
        assert line.accepted
        assert line.verdict.is_accepted
        good = tiny_root / CATEGORY / line.good
        assert line.good_sha256 == sha256_file(good)
        image, region = read_image(drawn / line.image.place), read_mask(drawn / line.box_mask.place)
        assert np.array_equal(region, read_mask(place / "boxes" / order["mask"]))
        untouched = feather_mask(region, 4) == 0
        assert np.array_equal(image[untouched], read_image(good)[untouched])
        mask = cv2.imread(str(drawn / line.mask.place), cv2.IMREAD_UNCHANGED)
        assert mask.ndim == 2
        assert set(np.unique(mask)) == {0, 255}
        assert not mask[~region].any()


def test_no_two_images_share_their_noise_and_the_options_are_recorded(drawn):
    lines = lines_of(drawn)
    assert [line.seed for line in lines] == list(range(10, 17))
    expected = DrawOptions(steps=4, guidance=2.0, eta=0.0, crop=True, tone="none", text_noise=0.0)
    assert lines[0].options == RecordedOptions.of(expected)
    assert len(lines[0].verdict.measures) == 10
    texts = [line.text for line in lines if line.defect == "pitting"]
    assert all("*" in text for text in texts), "a learned word takes the bundle's texts"
    assert all(line.text.endswith("steel_stain") for line in lines if line.defect == "stain")


def test_the_record_has_rates_time_memory_and_what_was_learned_from(drawn, place, tiny_root):
    record = record_of(drawn)
    with Synthesizer.load(place / "drawer.flaw", "cpu") as drawer:
        assert record.digest == drawer.manifest.digest
    assert (record.summary.pictures, record.summary.accepted) == (7, 7)
    assert {key: (count.wanted, count.accepted) for key, count in record.defects.items()} == {
        f"{CATEGORY}/pitting": (4, 4),
        f"{CATEGORY}/stain": (3, 3),
    }
    assert record.seconds_per_accepted == pytest.approx(record.seconds / 7)
    assert record.seconds_per_picture == record.seconds_per_accepted
    assert record.peak_memory_kib is None or record.peak_memory_kib > 10_000
    assert {"flawscope", "numpy", "tokenizers"} <= set(record.versions)
    test = tiny_root / CATEGORY / "test"
    assert record.support == tuple(sha256_file(test / defect / "000.png") for defect in ("pitting", "stain"))
    assert record.support_in_test == 2
    lines = place / "boxes/steel/steel_test.jsonl"
    assert record.lines == {"steel/steel_test.jsonl": sha256_file(lines)}


def test_the_sheet_shows_normal_images_drawings_and_masks(drawn):
    sheet = read_image(drawn / "contact_sheet.png")
    assert sheet.shape[0] > 6 * 192, "three rows for each of two defect types"
    for colour in ((0, 190, 255), (255, 40, 200)):
        assert (sheet == colour).all(axis=2).sum() > 100


def test_the_same_command_gives_the_same_bytes_and_another_batch_the_same_images(arguments, drawn, tmp_path, capsys):
    assert run([*arguments, "--seeds", "10", "--out", str(tmp_path / "again")]) == 0
    again, first = files_of(tmp_path / "again"), files_of(drawn)
    assert {name for name in first if first[name] != again[name]} <= {"generate.json"}
    assert run([*arguments, "--seed", "10", "--batch", "1", "--out", str(tmp_path / "single")]) == 0
    single = files_of(tmp_path / "single")
    assert {name for name in first if first[name] != single[name]} == {"generate.json", "generated.jsonl"}
    out, err = capsys.readouterr()
    assert out.splitlines()[:4] == [
        f"drawn: {tmp_path / 'again'}, 7 images of 2 defect types",
        "steel/pitting: 4 accepted of 4 wanted, 0 rejected",
        "steel/stain: 3 accepted of 3 wanted, 0 rejected",
        "in all: 7 accepted, 0 rejected",
    ]
    assert "warning: 2 support images are in the test split: leave them out of the evaluation" in err


def test_an_earlier_folder_is_replaced_if_that_is_asked_for_and_another_one_never(arguments, tmp_path):
    assert run([*arguments, "--per-defect", "2", "--out", str(tmp_path / "out")]) == 0
    assert run([*arguments, "--per-defect", "1", "--out", str(tmp_path / "out")]) == 2
    assert len(list((tmp_path / "out").rglob("gen_img/*/*.png"))) == 4
    assert run([*arguments, "--per-defect", "1", "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    assert len(list((tmp_path / "out").rglob("gen_img/*/*.png"))) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("done")
    assert run([*arguments, "--out", str(tmp_path / "mine"), "--overwrite"]) == 2
    assert files_of(tmp_path / "mine") == {"thesis.txt": b"done"}


# --- how many


@pytest.mark.parametrize(
    ("asked", "counts"),
    [
        (["--num", "5"], {"pitting": 3, "stain": 2}),
        (["--num", "1"], {"pitting": 1}),
        (["--per-defect", "5"], {"pitting": 5, "stain": 5}),
        (["--num", "6", "--defect", "stain"], {"stain": 6}),
    ],
)
def test_a_number_is_shared_out_and_lines_are_taken_again_with_other_noise(arguments, tmp_path, asked, counts):
    assert run([*arguments, *asked, "--out", str(tmp_path / "out")]) == 0
    lines = lines_of(tmp_path / "out")
    assert {d: sum(line.defect == d for line in lines) for d in counts} == counts
    assert len({line.seed for line in lines}) == len(lines) == sum(counts.values())
    images = {(tmp_path / "out" / line.image.place).read_bytes() for line in lines}
    assert len(images) == len(lines)


def test_what_is_rejected_is_drawn_again_with_other_noise_until_enough_is_accepted(drawer, sites, tmp_path):
    first = generate_images(drawer, sites, tmp_path / "first")
    shares = sorted(line.verdict.measures[4].value for line in lines_of(tmp_path / "first"))
    assert shares[0] < shares[3] < shares[-1]
    assert first.summary.accepted == sum(share <= QualityLimits().full for share in shares)
    options = DrawOptions(limits=QualityLimits(full=shares[3]))
    once = generate_images(drawer, sites, tmp_path / "once", GenerateSettings(options=options))
    assert once.summary.rejected == 3
    assert once.summary.counts["full-mask"] == 3
    record = generate_images(drawer, sites, tmp_path / "more", GenerateSettings(options=options, rounds=20))
    lines = lines_of(tmp_path / "more")
    assert lines[:7] == lines_of(tmp_path / "once")
    again = [line for line in lines if line.round == 2]
    assert [line.number for line in again] == [line.number for line in lines[:7] if not line.accepted]
    assert [line.seed for line in again] == [7 + line.number for line in again]
    assert record.summary.accepted > once.summary.accepted
    assert sum(defect.accepted for defect in record.defects.values()) == record.summary.accepted
    rejected = [line for line in lines if not line.accepted]
    for line in rejected:
        assert line.image.place.startswith(f"{CATEGORY}/rejected/{line.defect}/")
        mask, box = (read_mask(tmp_path / "more" / file.place) for file in (line.mask, line.box_mask))
        assert mask[box].mean() == line.verdict.measures[4].value
        assert line.mask.place == line.image.place.replace("/rejected/", "/rejected_prs_mask/")
        assert line.box_mask.place == line.image.place.replace("/rejected/", "/rejected_box_mask/")
        assert line.verdict.reasons == ("full-mask",)
    assert len(list((tmp_path / "more").rglob("rejected/*/*.png"))) == len(rejected) == record.summary.rejected
    finished = [line.number for line in lines if line.accepted]
    assert len(set(finished)) == len(finished), "a record is accepted once"


def test_nothing_accepted_for_a_defect_is_status_1_and_the_folder_is_there(place, arguments, tmp_path, capsys):
    write_tiny_synth(tmp_path / "broken.flaw", gain=float("nan"))
    arguments[2] = str(tmp_path / "broken.flaw")
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "seconds per accepted image: none was accepted" in out
    assert err.splitlines()[-1].startswith(
        f"error: {tmp_path / 'out'}: expected accepted images of every defect type, got none of steel/pitting, steel"
    )
    assert record_of(tmp_path / "out").seconds_per_accepted is None
    assert record_of(tmp_path / "out").summary.counts["not-finite"] == 7
    assert len(list((tmp_path / "out").rglob("rejected/*/*.png"))) == 7
    assert read_image(tmp_path / "out" / "contact_sheet.png").shape[0] > 2 * 192


# --- one image


def test_one_image_can_be_drawn_on(place, tiny_root, tmp_path):
    good = tiny_root / CATEGORY / "train" / "good" / "000.png"
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 30) ** 2 + (columns - 34) ** 2 < 10**2).astype(np.uint8) * np.uint8(255)
    mask = write_rgb(tmp_path / "disc.png", np.repeat(disc[..., None], 3, axis=2))
    command = ["synth", "generate", str(place / "drawer.flaw"), "--image", str(good), "--mask", str(mask)]
    options = ["--defect", "pitting", "--text", "a * defect", "--num", "2", "--solver", "dpm++", "--parity"]
    assert run([*command, *options, "--out", str(tmp_path / "out")]) == 0
    lines = lines_of(tmp_path / "out")
    assert [(line.good, line.box, line.text) for line in lines] == [("000.png", "disc.png", "a * defect")] * 2
    for line in lines:
        assert line.runs
        assert np.array_equal(region_of(line, (64, 64)), disc > 0)
        again = redraw(place / "drawer.flaw", line, good.parent)
        assert np.array_equal(again.image, read_image(tmp_path / "out" / line.image.place))
        assert (again.image != read_image(good)).any(axis=2)[disc == 0].mean() > 0.5, "parity"


# --- lines


def test_lines_of_three_keys_and_the_other_place_of_the_file_are_taken_too(place, tiny_root, tmp_path):
    shutil.copytree(place / "boxes" / "steel" / "mask", tmp_path / "mask")
    lines = [json.loads(text) for text in (place / "boxes/steel/steel_test.jsonl").read_text().splitlines()]
    short = [
        {"good": line["good"], "mask": line["mask"].removeprefix("steel/"), "text": line["text"]} for line in lines
    ]
    (tmp_path / "steel_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in short))
    dataset = open_dataset(tiny_root, CATEGORY)
    (sites, hashes), (expected, _) = read_sites(tmp_path, dataset), read_sites(place / "boxes", dataset)
    assert list(hashes) == ["steel_test.jsonl"]
    assert [(site.key, site.place, site.text) for site in sites] == [(s.key, s.place, s.text) for s in expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"good": "train/good/000.png"}', "line 1: expected good, mask, text, defect and bbox"),
        ("good", "line 1: expected good, mask, text, defect and bbox"),
        ('{"good": "../x.png", "mask": "m/d/1.png", "text": ""}', "line 1: expected a path below"),
        ('{"good": "a.png", "mask": "m/d/1.png", "text": "", "defect": "../up"}', "expected a name that a folder can"),
        ("", "expected lines to draw on, got none"),
    ],
)
def test_a_broken_line_is_named(tiny_root, tmp_path, line, message):
    (tmp_path / "steel_test.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_sites(tmp_path, open_dataset(tiny_root, CATEGORY))


def test_a_defect_that_no_line_asks_for_is_refused(place, tiny_root):
    with pytest.raises(ArgumentError, match=r"expected defect types of the lines \(pitting, stain\), got 'rust'"):
        read_sites(place / "boxes", open_dataset(tiny_root, CATEGORY), ["rust"])


def test_a_support_image_is_no_normal_image(drawer, sites, tiny_root, tmp_path):
    support_image = tiny_root / CATEGORY / "test" / "stain" / "000.png"
    bad = [*sites, type(sites[0])("steel", "pitting", support_image, "x.png", sites[0].mask, "m.png")]
    with pytest.raises(DataError, match="expected a normal image, got one that the bundle learned steel/stain from"):
        generate_images(drawer, bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_that_do_not_fit_are_refused_before_anything_is_drawn(drawer, sites, tmp_path):
    small = write_rgb(tmp_path / "small.png", np.full((32, 32, 3), 255, np.uint8))
    black = write_rgb(tmp_path / "black.png", np.zeros((64, 64, 3), np.uint8))
    first = sites[0]
    for mask, message in ((small, "expected 64x64 pixels as .* has, got 32x32"), (black, "got an all-black mask")):
        bad = type(first)(first.category, first.defect, first.good, first.place, mask, mask.name)
        with pytest.raises(DataError, match=message):
            generate_images(drawer, [*sites, bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["SET", "--guidance", "1"], "guidance: expected a scale above 1, got 1"),
        (["SET", "--steps", "0"], "steps: expected a whole number from 1 to 1000, got 0"),
        (["SET", "--num_inference_steps", "9999"], "steps: expected a whole number from 1 to 1000"),
        (["SET", "--guidance_scale", "0.5"], "guidance: expected a scale above 1"),
        (["SET", "--eta", "2"], "eta: expected a number from 0 to 1"),
        (["SET", "--strength", "0"], "strength: expected a share above 0"),
        (["SET", "--batch", "9"], "batch: expected 1 to 4"),
        (["SET", "--num", "0"], "number: expected a whole number from 1"),
        (["SET", "--num", "2", "--per-defect", "1"], "number: expected a number in all or for each defect type"),
        (["SET", "--limit", "seam"], "limit: expected NAME=VALUE, for example seam=0.06, got 'seam'"),
        (
            ["SET", "--limit", "seem=0.1"],
            "contrast, noise, texture, smooth, outside, seam, copy, got 'seem'. Did you mean seam?",
        ),
        (["SET", "--limit", "faint=0"], "got 'faint'. The reason faint has the limit contrast, noise or texture."),
        (["SET", "--limit", "not-finite=1"], "The reason not-finite has no limit: such an image is never kept."),
        (["SET", "--limit", "seam=wide"], "seam: expected a number, got 'wide'"),
        (["SET", "--limit", "seam=nan"], "seam: expected a limit from 0 to 1, got nan"),
        (["SET", "--limit", "mask_px=1e9999"], "mask_px: expected a whole number of pixels, got 1e9999"),
        (["SET", "--limit", "mask_px=2.5"], "mask_px: expected a whole number of pixels, got 2.5"),
        (["SET", "--limit", "noise=-1"], "noise: expected a factor from 0 to 100, got -1"),
        (["SET", "--limit", "seam=1", "--limit", "seam=1"], "limit: expected each name once, got seam twice"),
        (["SET", "--best-of", "0"], "best_of: expected a whole number from 1 to 1000, got 0"),
        (["SET", "--best-by", "lpips", "--best-of", "2"], "Expected --lpips and --lpips-heads with --best-by lpips"),
        (["SET", "--best-by", "lpips"], "best_of: expected at least 2 with best_by lpips, which compares candidates"),
        (
            ["SET", "--best-of", "2", "--lpips", "GOOD"],
            "Expected --best-by lpips with --lpips and --lpips-heads, got f",
        ),
        (["SET", "--keep-trying", "0"], "rounds: expected a whole number from 1"),
        (["SET", "--seed", "-1"], "seed: expected a whole number from 0"),
        (["SET", "--seed", str(2**63 - 3)], "seed: expected a whole number from 0"),
        (["SET", "--defect", "rust"], "expected defect types of the lines"),
        (["SET", "--texts", "lines"], "text: expected the word '*', which stands for the defect"),
        (["SET", "--texts", "lines"], "Write it where the text names the defect, or take the texts of the bundle."),
        (["SET", "--solver", "euler"], "--solver: expected one of"),
        (["SET", "--image", "GOOD"], "Expected --boxes with --data, or --image with --mask, got both"),
        (["--boxes", "BOXES"], "Expected --boxes and --data, or --image, --mask and one --defect"),
        (["--image", "GOOD", "--mask", "GOOD"], "Expected --boxes and --data, or --image, --mask and one --defect"),
        (["--image", "GOOD", "--mask", "GOOD", "--defect", "rust"], "defect: expected one that the bundle draws"),
        (["--image", "NONE", "--mask", "GOOD", "--defect", "stain"], "expected a file that can be read"),
        (["--boxes", "NONE", "DATA"], "expected steel/steel_test.jsonl, got no such file"),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_nothing(place, tiny_root, tmp_path, capsys, typed, message):
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    boxes = str(place / "boxes")
    words = {
        "SET": ["--boxes", boxes, *data],
        "DATA": data,
        "BOXES": [boxes],
        "GOOD": [str(tiny_root / CATEGORY / "train" / "good" / "000.png")],
        "NONE": [str(tmp_path / "none")],
    }
    arguments = [part for word in typed for part in words.get(word, [word])]
    bundle = str(place / "drawer.flaw")
    assert run(["synth", "generate", bundle, *arguments, "--backend", "cpu", "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line != "backend cpu (asked for)"]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []
