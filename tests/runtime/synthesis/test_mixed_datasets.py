"""Datasets of drawn and real images: what our own index finds in them, and what is left out."""

from __future__ import annotations

import shutil

import cv2
import msgspec
import numpy as np
import pytest
from file_contents import files_of
from tiny_dataset import CATEGORY, DEFECTIVE, DEFECTS, GOOD, TRAIN, write_rgb
from tiny_judged import with_textures
from tiny_synth_bundle import write_tiny_synth

from flawscope.cli import run
from flawscope.datasets import Sample, open_dataset
from flawscope.datasets.defects.paste_sets import PasteSettings, write_pasted
from flawscope.datasets.defects.perlin_sets import PerlinSettings, write_perlin
from flawscope.datasets.defects.support_set import NearDuplicate, read_support
from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis import (
    DrawOptions,
    GeneratedImage,
    GenerateSettings,
    ProvenanceLine,
    QualityLimits,
    Site,
    SynthDatasetRecord,
    Synthesizer,
    generate_images,
    read_generated,
    read_sites,
    write_synth_dataset,
)

DRAWN = 5


def provenance_of(folder):
    lines = lines_of(folder)
    assert {line.source for line in lines} == {"diffusion"}
    return [msgspec.structs.replace(line, drawn=msgspec.convert(line.drawn, GeneratedImage)) for line in lines]


def lines_of(folder):
    texts = (folder / "provenance.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(text, type=ProvenanceLine) for text in texts]


def record_of(folder):
    return msgspec.json.decode((folder / "dataset.json").read_bytes(), type=SynthDatasetRecord)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_root):
    """A folder with a support set, a bundle that has learned it, boxes, and drawings of which some were rejected."""
    folder = tmp_path_factory.mktemp("place")
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    assert run(["synth", "support", *data, "--split", "test", "--shots", "1", "--out", str(folder / "support")]) == 0
    supports = {}
    for image in read_support(folder / "support").pictures:
        pixels = read_image(folder / "support" / image.picture), read_mask(folder / "support" / image.mask)
        supports[image.defect] = (*pixels, image.content)
    write_tiny_synth(folder / "drawer.flaw", share=0.9, supports=supports)
    options = [
        "--split",
        "test",
        "--num",
        str(DRAWN),
        "--within",
        "image",
        "--places",
        "observed",
        "--out",
        str(folder / "boxes"),
    ]
    assert run(["synth", "boxes", *data, *options]) == 0
    return folder


@pytest.fixture(scope="module")
def drawn(place, tiny_root):
    dataset = open_dataset(tiny_root, CATEGORY)
    sites, lines = read_sites(place / "boxes", dataset)
    with Synthesizer.load(place / "drawer.flaw", "cpu") as drawer:
        generate_images(drawer, sites, place / "all", dataset=dataset, lines=lines)
        contrasts = sorted(line.verdict.measures[5].value for line in read_generated(place / "all"))
        assert contrasts[0] < contrasts[1]
        limits = QualityLimits(contrast=contrasts[1])  # the faintest is rejected
        settings = GenerateSettings(options=DrawOptions(limits=limits))
        generate_images(drawer, sites, place / "drawn", settings, dataset=dataset, lines=lines)
    return place / "drawn"


@pytest.fixture(scope="module")
def dataset(tiny_root):
    return open_dataset(tiny_root, CATEGORY)


# --- mvtec


@pytest.mark.parametrize("labels", ["precise", "box"])
def test_our_own_index_finds_every_image_with_its_own_mask(drawn, dataset, tmp_path, labels):
    accepted = [line for line in read_generated(drawn) if line.accepted]
    assert len(accepted) == DRAWN - 1, "one was rejected"
    write_synth_dataset(drawn, dataset, tmp_path / "made", labels=labels)
    mixed = open_dataset(tmp_path / "made", CATEGORY)
    assert mixed.layout == "mvtec"
    assert mixed.orphan_masks == ()
    assert mixed.ignored == ()
    assert len(mixed.train_good) == TRAIN
    assert len([s for s in mixed.test if not s.is_anomalous]) == GOOD
    synthetic = [s for s in mixed.samples if s.split == "train" and s.is_anomalous]
    assert [s.defect for s in synthetic] == [line.defect for line in accepted]
    for sample, line in zip(synthetic, accepted, strict=True):
        assert sample.path.read_bytes() == (drawn / line.image.place).read_bytes()
        source = line.mask if labels == "precise" else line.box_mask
        assert sample.mask.read_bytes() == (drawn / source.place).read_bytes()
    real = {s.path.read_bytes(): s for s in dataset.samples}
    for sample in mixed.test:
        original = real[sample.path.read_bytes()]
        assert (original.split, original.defect) == ("test", sample.defect)
        if sample.is_anomalous:
            assert np.array_equal(sample.read_mask(), original.read_mask())


def test_provenance_leads_back_to_the_drawing(drawn, dataset, tmp_path):
    write_synth_dataset(drawn, dataset, tmp_path / "made")
    lines = provenance_of(tmp_path / "made")
    assert [line.drawn for line in lines] == [line for line in read_generated(drawn) if line.accepted]
    for line in lines:
        assert line.labels == "precise"
        assert sha256_file(tmp_path / "made" / line.image) == line.drawn.image.sha256
        assert sha256_file(tmp_path / "made" / line.mask) == line.drawn.mask.sha256
        assert line.image == f"{CATEGORY}/train/{line.drawn.defect}/synth_{line.drawn.image.place[-7:]}"


def test_support_images_are_left_out_of_the_test_split(drawn, dataset, place, tmp_path):
    write_synth_dataset(drawn, dataset, tmp_path / "made")
    record, support = record_of(tmp_path / "made"), read_support(place / "support")
    assert record.left_out == {image.source: "a support image" for image in support.pictures}
    contents = {sha256_file(s.path) for s in open_dataset(tmp_path / "made", CATEGORY).samples}
    assert not contents & support.contents
    assert record.pictures == {
        f"{CATEGORY}/drawn/pitting": sum(line.drawn.defect == "pitting" for line in provenance_of(tmp_path / "made")),
        f"{CATEGORY}/drawn/stain": sum(line.drawn.defect == "stain" for line in provenance_of(tmp_path / "made")),
        f"{CATEGORY}/test/good": GOOD,
        **{f"{CATEGORY}/test/{defect}": DEFECTIVE // len(DEFECTS) - 1 for defect in DEFECTS},
        f"{CATEGORY}/train/good": TRAIN,
    }
    assert [(one.rejected, one.spare, one.taken) for one in record.generated] == [(1, 0, {"diffusion": DRAWN - 1})]


def test_a_set_without_a_record_whose_images_are_not_in_the_dataset_is_refused(sources, place, dataset, tmp_path):
    """A copy that was saved anew would stay in the test unseen, with drawings that were learned from nothing too."""
    bare = shutil.copytree(place / "support" / CATEGORY, tmp_path / CATEGORY)
    images = read_support(place / "support").pictures
    for image in images:
        shutil.copyfile(dataset.root / image.source, tmp_path / image.picture)
    noisy = sources[-1]
    assert read_support(bare).is_bare
    write_synth_dataset(noisy, dataset, tmp_path / "same", support=read_support(bare))
    assert set(record_of(tmp_path / "same").left_out.values()) == {"a support image"}
    for image in images:
        write_rgb(tmp_path / image.picture, 255 - read_image(tmp_path / image.picture))
    with pytest.raises(DataError, match="expected the 2 images of the support set like"):
        write_synth_dataset(noisy, dataset, tmp_path / "made", support=read_support(bare))
    assert not (tmp_path / "made").exists()


def test_without_the_support_set_the_user_is_told_that_what_looks_alike_stays(
    drawn, place, tiny_root, tmp_path, capsys
):
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    warning = "warning: near duplicates of the 2 support images are not known and stay in the test split."
    for options, is_told in (
        ([], True),
        (["--support", str(place / "support")], False),
        (["--layout", "anogen"], False),  # it has no test split
    ):
        out = tmp_path / f"made{len(options)}{is_told}{options[:1] == ['--layout']}"
        assert run(["synth", "dataset", str(drawn), *data, *options, "--out", str(out)]) == 0
        assert (warning in capsys.readouterr().err) == is_told


def test_with_the_support_set_what_looks_alike_is_left_out_too(drawn, dataset, place, tmp_path):
    support = read_support(place / "support")
    other = next(s for s in dataset.test if s.defect == "stain" and sha256_file(s.path) not in support.contents)
    name = other.path.relative_to(dataset.root).as_posix()
    alike = (NearDuplicate(name, sha256_file(other.path), "it"),)
    write_synth_dataset(drawn, dataset, tmp_path / "made", support=msgspec.structs.replace(support, alike=alike))
    record = record_of(tmp_path / "made")
    assert record.left_out[name] == "probably the same part as it"
    assert record.pictures[f"{CATEGORY}/test/stain"] == DEFECTIVE // len(DEFECTS) - 2


def test_another_support_set_is_refused(drawn, dataset, place, tmp_path):
    support = read_support(place / "support")
    other = msgspec.structs.replace(support, pictures=support.pictures[:1])
    with pytest.raises(
        DataError, match=r"expected the one that the images were drawn from, got one without 1 of its 2"
    ):
        write_synth_dataset(drawn, dataset, tmp_path / "made", support=other)
    assert not (tmp_path / "made").exists()


def test_a_test_image_that_was_drawn_on_is_left_out(place, dataset, tmp_path):
    good = next(s.path for s in dataset.test if not s.is_anomalous)
    name = good.relative_to(dataset.root).as_posix()
    mask = write_rgb(tmp_path / "m.png", np.pad(np.full((12, 12, 3), 255, np.uint8), ((20, 32), (20, 32), (0, 0))))
    with Synthesizer.load(place / "drawer.flaw", "cpu") as drawer:
        generate_images(drawer, [Site(CATEGORY, "pitting", good, name, mask, "m.png")], tmp_path / "drawn")
    write_synth_dataset(tmp_path / "drawn", dataset, tmp_path / "made")
    assert record_of(tmp_path / "made").left_out[name] == "defects were drawn on it"
    assert len([s for s in open_dataset(tmp_path / "made").test if not s.is_anomalous]) == GOOD - 1


def test_a_test_image_whose_texture_was_drawn_is_left_out(dataset, tmp_path):
    write_perlin(dataset, tmp_path / "perlin", PerlinSettings(number=2, within="image"))
    of_test = dataset.test[0].path
    folder = with_textures(tmp_path / "perlin", tmp_path / "drawn", [of_test])
    write_synth_dataset(folder, dataset, tmp_path / "made")
    record = record_of(tmp_path / "made")
    assert record.left_out == {of_test.relative_to(dataset.root).as_posix(): "it is a texture of drawn defects"}


def test_images_of_other_formats_become_png_and_png_keeps_its_bytes(drawn, dataset, tiny_root, tmp_path):
    root = shutil.copytree(tiny_root, tmp_path / "data")
    folder = root / CATEGORY / "train" / "good"
    jpeg = write_rgb(folder / "000.jpg", read_image(folder / "000.png"))
    (folder / "000.png").unlink()
    (root / CATEGORY / "train" / "stain").mkdir()
    shutil.copy(root / CATEGORY / "test" / "stain" / "001.png", root / CATEGORY / "train" / "stain" / "900.png")
    write_synth_dataset(drawn, open_dataset(root, CATEGORY), tmp_path / "made")
    train = tmp_path / "made" / CATEGORY / "train"
    assert (train / "good" / "000.png").read_bytes().startswith(b"\x89PNG")
    assert np.array_equal(read_image(train / "good" / "000.png"), read_image(jpeg))
    assert (train / "good" / "001.png").read_bytes() == (folder / "001.png").read_bytes()
    assert record_of(tmp_path / "made").left_out["train/stain/900.png"] == "a real defect of the training split"
    assert not (train / "stain" / "900.png").exists()


def test_names_that_meet_or_look_like_masks_are_told_apart(drawn, dataset, tmp_path):
    first, second = (sample.path for sample in dataset.train_good[:2])
    root = shutil.copytree(dataset.root, tmp_path / "data")
    moved = {"a/part.png": first, "b/part.png": second, "b/part_mask.png": first}
    for name, source in moved.items():
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, root / name)
    samples = tuple(Sample(root / name, "train", "good") for name in moved)
    write_synth_dataset(drawn, msgspec.structs.replace(dataset, root=root, samples=samples), tmp_path / "made")
    mixed = open_dataset(tmp_path / "made", CATEGORY)
    assert [s.path.name for s in mixed.train_good] == ["part.png", "part_2.png", "part_mask_image.png"]
    assert mixed.orphan_masks == ()
    assert [s.path.read_bytes() for s in mixed.train_good] == [path.read_bytes() for path in (first, second, first)]


def test_the_same_drawings_give_the_same_bytes(drawn, dataset, tmp_path):
    for name in ("one", "other"):
        write_synth_dataset(drawn, dataset, tmp_path / name)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")
    sheet = read_image(tmp_path / "one" / "contact_sheet.png")
    assert (sheet == (255, 40, 200)).all(axis=2).sum() > 50, "masks are outlined"


# --- several folders and sources


@pytest.fixture(scope="module")
def sources(place, drawn, dataset):
    """Folders of all sources: diffusion, two of pasted defects, and Perlin anomalies."""
    record = read_support(place / "support")
    write_pasted(dataset, record, place / "pasted", PasteSettings(per_defect=4, within="image"))
    write_pasted(dataset, record, place / "more", PasteSettings(per_defect=3, within="image", seed=5))
    write_perlin(dataset, place / "perlin", PerlinSettings(number=3, within="image"))
    return [drawn, *(place / name for name in ("pasted", "more", "perlin"))]


def test_images_of_all_sources_are_in_one_dataset_and_each_says_where_it_is_from(sources, dataset, tmp_path):
    record = write_synth_dataset(sources, dataset, tmp_path / "made")
    assert record == record_of(tmp_path / "made")
    assert record.sources == {"diffusion": DRAWN - 1, "paste": 14, "perlin": 3}
    assert [one.taken for one in record.generated] == [{"diffusion": 4}, {"paste": 8}, {"paste": 6}, {"perlin": 3}]
    assert [set(one.records) for one in record.generated] == [
        {"generate.json"},
        {"paste.json"},
        {"paste.json"},
        {"perlin.json"},
    ]
    assert [bool(one.bundle) for one in record.generated] == [True, False, False, False]
    mixed = open_dataset(tmp_path / "made", CATEGORY)
    assert mixed.orphan_masks == ()
    lines = lines_of(tmp_path / "made")
    assert len({line.image for line in lines}) == len({line.mask for line in lines}) == len(lines) == 21
    for line in lines:
        assert line.source == line.drawn.get("source", "diffusion")
        own = sources[line.folder]
        assert line.drawn in [msgspec.json.decode(text) for text in (own / "generated.jsonl").read_bytes().splitlines()]
        for name, place in (("image", line.image), ("mask", line.mask)):
            assert (tmp_path / "made" / place).read_bytes() == (own / line.drawn[name]["place"]).read_bytes()
    synthetic = {s.path.name: s for s in mixed.samples if s.split == "train" and s.defect == "stain"}
    for line in (line for line in lines if line.drawn["defect"] == "stain"):
        assert synthetic[line.image.rpartition("/")[2]].mask == tmp_path / "made" / line.mask
    support = read_support(sources[0].parent / "support")
    assert {place for place, why in record.left_out.items() if why == "a support image"} == {
        image.source for image in support.pictures
    }


def test_so_many_of_a_source_are_taken_shared_out_among_its_types(sources, dataset, tmp_path):
    record = write_synth_dataset(sources, dataset, tmp_path / "made", take={"paste": 5, "perlin": 2})
    assert record.sources == {"diffusion": DRAWN - 1, "paste": 5, "perlin": 2}
    assert sum(one.spare for one in record.generated) == 10
    assert [one.taken.get("paste", 0) for one in record.generated] == [0, 3, 2, 0], "of each folder in turn"
    kinds = [(line.source, line.drawn["defect"]) for line in lines_of(tmp_path / "made")]
    assert kinds.count(("paste", "pitting")) == 3
    assert kinds.count(("paste", "stain")) == 2
    assert write_synth_dataset(sources, dataset, tmp_path / "all", take={"paste": 500}).sources["paste"] == 14


def test_the_anogen_layout_takes_all_sources_too(sources, dataset, tmp_path):
    for labels in ("precise", "box"):
        write_synth_dataset(sources, dataset, tmp_path / labels, layout="anogen", labels=labels)
        found = {
            path.relative_to(tmp_path / labels).as_posix(): mask
            for path, mask, _ in as_anogen_loads(tmp_path / labels, CATEGORY)
        }
        lines = lines_of(tmp_path / labels)
        assert len(lines) == len(found) == 21
        for line in lines:
            stored = line.drawn["mask" if labels == "precise" else "box_mask"]
            assert sha256_file(found[line.image]) == stored["sha256"]


# --- anogen


def as_anogen_loads(folder, category):
    """Yield the images and masks that AnoGen's DRAEM and DeSTSeg find: by the names of the images, split at hyphens."""
    for path in sorted((folder / category / "images").iterdir()):
        image, mask, sample, defect = path.stem.split("-")
        assert len(sample) == 4
        name = f"{image}-{mask}.png" if category == "screw" else f"{mask}-{defect}.png"
        yield path, folder / category / "masks" / name, defect


@pytest.mark.parametrize("labels", ["precise", "box"])
def test_the_layout_of_anogen_is_that_of_its_make_dataset(place, drawn, tiny_root, tmp_path, capsys, labels):
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    out = tmp_path / "made"
    typed = ["--layout", "anogen", "--labels", labels, "--out", str(out)]
    assert run(["synth", "dataset", str(place / "all"), *data, *typed]) == 0
    lines = provenance_of(out)
    accepted = [line for line in read_generated(place / "all") if line.accepted]
    assert [line.drawn for line in lines] == accepted
    assert set(files_of(out)) == {"provenance.jsonl", "dataset.json", "contact_sheet.png"} | {
        file for line in lines for file in (line.image, line.mask)
    }
    loaded = {path.relative_to(out).as_posix(): (mask, defect) for path, mask, defect in as_anogen_loads(out, CATEGORY)}
    for line in lines:
        assert sha256_file(out / line.image) == line.drawn.image.sha256
        mask, defect = loaded[line.image]
        assert defect == line.drawn.defect
        stored = line.drawn.mask if labels == "precise" else line.drawn.box_mask
        assert sha256_file(mask) == stored.sha256
        good, box = line.drawn.good.removeprefix("train/good/")[:3], line.drawn.box[-7:-4]
        if labels == "box":
            assert line.image == f"{CATEGORY}/images/{good}-{box}-0000-{defect}.png"
            assert line.mask == f"{CATEGORY}/masks/{box}-{defect}.png"
    assert capsys.readouterr().out.splitlines() == [
        f"dataset: {out}, {len(accepted)} drawn and 0 real images",
        f"sources: diffusion {len(accepted)}",
        f"left out: {DRAWN - len(accepted)} rejected drawings, 2 real images (dataset.json)",
        f"overview: {out}/contact_sheet.png",
    ]


def test_several_drawings_of_one_image_and_box_are_its_samples(place, dataset, tmp_path):
    sites = read_sites(place / "boxes", dataset)[0][:1]
    with Synthesizer.load(place / "drawer.flaw", "cpu") as drawer:
        generate_images(drawer, sites, tmp_path / "drawn", GenerateSettings(per_defect=3))
    write_synth_dataset(tmp_path / "drawn", dataset, tmp_path / "made", layout="anogen", labels="box")
    lines = provenance_of(tmp_path / "made")
    assert [line.image.split("-")[2] for line in lines] == ["0000", "0001", "0002"]
    assert len({line.mask for line in lines}) == 1


def test_names_with_hyphens_and_boxes_of_one_name_do_not_mix(place, dataset, tmp_path):
    """Masks of one file name, of two folders: each image keeps its own; its loaders split names at hyphens."""
    first, second = read_sites(place / "boxes", dataset)[0][:2]
    masks = []
    for number, site in enumerate((first, second)):
        mask = tmp_path / str(number) / "so-called.png"
        mask.parent.mkdir()
        shutil.copyfile(site.mask, mask)
        masks.append(Site(CATEGORY, "pitting", first.good, "train/good/a-b.png", mask, f"{number}/so-called.png"))
    with Synthesizer.load(place / "drawer.flaw", "cpu") as drawer:
        generate_images(drawer, masks, tmp_path / "drawn")
    write_synth_dataset(tmp_path / "drawn", dataset, tmp_path / "made", layout="anogen", labels="box")
    for line in provenance_of(tmp_path / "made"):
        assert sha256_file(tmp_path / "made" / line.mask) == line.drawn.box_mask.sha256
    names = [path.name for path, _, _ in as_anogen_loads(tmp_path / "made", CATEGORY)]
    assert names == ["a_b-so_called-0000-pitting.png", "a_b-so_called_2-0000-pitting.png"]


# --- what is refused


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["NONE"], "expected drawn images, got: No such file"),
        (["DRAWN", "--layout", "visa"], "--layout: expected one of"),
        (["DRAWN", "--support", "NONE"], "expected the record of a support set"),
        (["CHANGED"], "expected the file that was drawn, got other content"),
        (["EMPTY"], "expected accepted images of steel, got none"),
        (["DRAWN", "--take", "perlin=5"], "take: expected a source of the drawn images (diffusion), got perlin."),
        (["DRAWN", "--take", "diffusion=0"], "take: expected at least 1 image of diffusion, got 0"),
        (["DRAWN", "--take", "painter=5"], "Expected --take SOURCE=N with a source of diffusion, paste, perlin"),
        (["DRAWN", "--take", "paste"], "Expected --take SOURCE=N"),
        (["DRAWN", "--take", "paste=1", "--take", "paste=2"], "Expected every source once, got --take paste twice"),
        (["DRAWN", "DRAWN"], "generated: expected every folder once"),
        (["DRAWN", "UNKNOWN"], "paste.json: expected the record of drawn images"),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_nothing(
    drawn, sources, tiny_root, tmp_path, capsys, typed, message
):
    changed = shutil.copytree(drawn, tmp_path / "changed")
    next(changed.rglob("gen_img/*/*.png")).write_bytes(cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes())
    empty = shutil.copytree(drawn, tmp_path / "empty")
    (empty / "generated.jsonl").write_bytes(b"")
    unknown = shutil.copytree(sources[1], tmp_path / "unknown")
    (unknown / "paste.json").unlink()
    words = {"UNKNOWN": unknown, "DRAWN": drawn, "CHANGED": changed, "EMPTY": empty, "NONE": tmp_path / "none"}
    arguments = [str(words.get(word, word)) for word in typed]
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    assert run(["synth", "dataset", *arguments, *data, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()
