"""Thresholds by product, from `calibrate` to the decision, on images whose map is their brightness."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import SIDE, tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.bundle import ImageHashes, ProductThresholds, Thresholds, make_zones, open_bundle
from flawscope.calibration.evaluation.figures import judged_by, judged_of, measured_on
from flawscope.calibration.thresholds.normal_quantile import order_statistic_threshold
from flawscope.calibration.thresholds.product_thresholds import LEAST_IMAGES, with_products
from flawscope.cross_scores import CrossScores
from flawscope.datasets import image_hash
from flawscope.errors import ArgumentError, BundleError
from flawscope.runtime import Inspector, Router

RATE = ["--false-reject-rate", "0.15"]
COUNTS = {"bolt": 40, "nut": 24, "pin": LEAST_IMAGES - 1}
"""Normal training images of each product; the brightest pixel of a bolt is below 100, of the others below 200."""


def normal(generator: np.random.Generator, product: str) -> np.ndarray:
    return generator.integers(30, 100 if product == "bolt" else 200, (SIDE, SIDE), np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three products; test: 5 normal images of each and 5 with a defect that is brighter than the product."""
    generator, root = np.random.default_rng(2), tmp_path_factory.mktemp("set")

    def write(name: str, image: np.ndarray) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)

    for product, count in COUNTS.items():
        for index in range(count):
            write(f"{product}/train/good/{index}.png", normal(generator, product))
        for index in range(5):
            write(f"{product}/test/good/{index}.png", normal(generator, product))
            image, mask = normal(generator, product), np.zeros((SIDE, SIDE), np.uint8)
            image[3:7, 4:8], mask[3:7, 4:8] = 130 if product == "bolt" else 230, 255
            write(f"{product}/test/spot/{index}.png", image)
            write(f"{product}/ground_truth/spot/{index}_mask.png", mask)
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "t.flaw")
    return tmp_path / "t.flaw"


@pytest.fixture
def calibrated(bundle: Path, root: Path) -> Path:
    command = ["calibrate", str(bundle), "--data", str(root), "--category", "all", "--by-product", *RATE]
    assert cli.run(command) == 0
    return bundle


def scores(root: Path, product: str) -> np.ndarray:
    paths = (root / product / "train/good").glob("*.png")
    return np.array([float(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).max()) for path in paths])


@given(seed=st.integers(0, 10_000), names=st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=150))
def test_each_product_has_the_threshold_of_its_own_images_alone(seed, names):
    values = np.random.default_rng(seed).normal(size=(2, len(names)))
    common = tiny_thresholds()
    new = with_products(common, names, *values, 0.1, 0.95, "cpu")
    assert (new.image, new.pixel) == (common.image, common.pixel)
    assert [row.name for row in new.by_product] == sorted(set(names) - {""})
    for row in new.by_product:
        of_it = np.array(names) == row.name
        assert row.images == of_it.sum()
        assert (row.image is None) == (row.images < LEAST_IMAGES)
        if row.image is not None:
            for own, measured in zip((row.image, row.pixel), values, strict=True):
                expected = order_statistic_threshold(measured[of_it], 0.1, 0.95)
                assert (own.value, own.images, own.upper_bound) == (expected.value, row.images, expected.upper_bound)


def test_products_get_thresholds_beside_the_common_ones(bundle, root, capsys):
    command = ["calibrate", str(bundle), "--data", str(root), "--category", "all", *RATE]
    assert cli.run(command) == 0
    with open_bundle(bundle) as opened:
        common = opened.manifest.thresholds
    assert "products" not in (bundle / "manifest.json").read_text()
    capsys.readouterr()
    assert cli.run([*command, "--by-product"]) == 0
    said = capsys.readouterr()
    with open_bundle(bundle) as opened:
        thresholds, changes = opened.manifest.thresholds, opened.manifest.threshold_changes
    assert (thresholds.image, thresholds.pixel, thresholds.limits) == (common.image, common.pixel, common.limits)
    assert [(row.name, row.images) for row in thresholds.by_product] == sorted(COUNTS.items())
    for row in thresholds.by_product[:2]:
        assert row.image.value == order_statistic_threshold(scores(root, row.name), 0.15, 0.95).value
    assert thresholds.by_product[2].image is None
    assert [change.what for change in changes[2:]] == [
        *("image of product bolt", "pixel of product bolt", "image of product nut", "pixel of product nut")
    ]
    assert "bolt, image" in said.out
    assert "pin has 19 normal images that can be used, fewer than 20" in said.err
    assert cli.run(["bundle", "info", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "product bolt" in said
    assert "no thresholds: too few normal images, 19" in said
    # Without the option they go, and that is said.
    assert cli.run(command) == 0
    assert "thresholds by product (bolt, nut, pin) were removed" in capsys.readouterr().err
    with open_bundle(bundle) as opened:
        assert opened.manifest.thresholds.by_product == ()


def test_a_product_with_fewer_images_than_the_rate_needs_says_what_to_expect(bundle, root, capsys):
    command = ["calibrate", str(bundle), "--data", str(root), "--category", "all", "--by-product"]
    assert cli.run(command) == 0
    # The largest of 24 scores: 1 - 0.05 ** (1 / 24) is 11.7 %.
    assert "nut: 24 normal images are too few" in (said := capsys.readouterr().err)
    assert "Expect up to 12 in 100 normal parts of it rejected." in said


def test_a_product_is_judged_by_its_own_thresholds(calibrated, root, capsys):
    image = np.full((SIDE, SIDE, 3), 120, np.uint8)
    with Inspector.load(calibrated, "cpu") as inspector:
        bolt, nut, common = inspector(image, product="bolt"), inspector(image, product="nut"), inspector(image)
        assert (bolt.decision, nut.decision, common.decision) == ("reject", "accept", "accept")
        assert (bolt.product, nut.product, common.product) == ("bolt", "nut", None)
        assert len(bolt.boxes) == 1
        assert bolt.threshold < 100 < nut.threshold
        assert common.threshold == inspector.manifest.thresholds.image.value
        assert [r.decision for r in inspector([image, image], product="bolt")] == ["reject", "reject"]
        rows = inspector.manifest.thresholds.by_product
        assert inspector.pixel_thresholds(bolt.anomaly_map, "bolt") == rows[0].pixel.value
        assert inspector.pixel_thresholds(bolt.anomaly_map) == inspector.manifest.thresholds.pixel.value
        with pytest.raises(ArgumentError, match="with enough normal images"):
            inspector.pixel_thresholds(bolt.anomaly_map, "pin")
        assert "product" not in common.to_json()
        for name, message in (("pin", "with enough normal images"), ("nail", r"thresholds of \(bolt, nut\)")):
            with pytest.raises(ArgumentError, match=message):
                inspector(image, product=name)
    with Inspector.load(calibrated, "cpu", product="bolt") as inspector:
        assert inspector(image).decision == "reject"
        assert inspector.thresholds.image.value == bolt.threshold
        assert inspector(image, product="nut").decision == "accept"
    with Router({"all": calibrated}, backend="cpu") as router:
        assert router.inspect(image, "all", product="bolt").decision == "reject"
        assert router.inspect(image, "all").decision == "accept"
    photo = str(root / "bolt/test/spot/0.png")
    assert cli.run(["score", str(calibrated), photo, "--product", "bolt", "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["product"], line["decision"], line["threshold"]) == ("bolt", "reject", bolt.threshold)


@pytest.mark.parametrize(("name", "message"), [("pin", "of which there were 19"), ("nail", "(bolt, nut), got 'nail'")])
def test_a_product_without_thresholds_is_refused_before_scoring(calibrated, root, capsys, name, message):
    assert cli.run(["score", str(calibrated), str(root / "bolt/test/spot"), "--product", name]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_a_bundle_without_thresholds_by_product_knows_none(bundle, root, capsys):
    assert cli.run(["calibrate", str(bundle), "--image-threshold", "5", "--pixel-threshold", "5"]) == 0
    assert cli.run(["score", str(bundle), str(root / "bolt/test/spot/0.png"), "--product", "bolt"]) == 2
    assert "thresholds of (none), got 'bolt'" in capsys.readouterr().err


def test_thresholds_by_hand_and_overlays_are_the_common_ones(calibrated, root, capsys):
    with open_bundle(calibrated) as opened:
        before = opened.manifest.thresholds
    assert cli.run(["bundle", "threshold", str(calibrated), "--image", str(before.image.value), "--why", "try"]) == 0
    photo = str(root / "bolt/test/spot/0.png")
    capsys.readouterr()
    assert cli.run(["score", str(calibrated), photo, "--product", "bolt"]) == 2
    assert "expected no threshold overlay with a product" in capsys.readouterr().err
    assert cli.run(["score", str(calibrated), photo, "--product", "bolt", "--no-overlay"]) == 0
    assert cli.run(["calibrate", str(calibrated), "--image-threshold", str(before.image.value)]) == 0
    assert "these are the common ones" in capsys.readouterr().err
    with open_bundle(calibrated) as opened:
        assert opened.manifest.thresholds.by_product == before.by_product


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by-product"], "--by-product goes with --data"),
        (["--data", "{root}", "--category", "bolt", "--by-product"], "got the category bolt"),
        (["--data", "{root}", "--category", "all", "--by-product", "--objective", "f1"], "expected the objective good"),
    ],
)
def test_what_thresholds_by_product_cannot_have_is_refused_in_a_line(bundle, root, capsys, arguments, message):
    before = (bundle / "manifest.json").read_bytes()
    assert cli.run(["calibrate", str(bundle), *(text.format(root=root) for text in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before


def test_zones_and_products_together_are_refused(tmp_path, root, capsys):
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[:4] = True
    path = tmp_path / "t.flaw"
    write_tiny_bundle(path, zones=make_zones({"top": mask}, None, None))
    assert cli.run(["calibrate", str(path), "--data", str(root), "--category", "all", "--by-product"]) == 2
    assert "expected a bundle without zones for thresholds by product" in capsys.readouterr().err


@pytest.mark.parametrize("is_twice", [False, True])
def test_broken_thresholds_by_product_are_refused(tmp_path, is_twice):
    alike = tiny_thresholds()
    row = ProductThresholds("a", 30, alike.image, alike.pixel)
    thresholds = Thresholds(alike.image, alike.pixel, products=(row, row) if is_twice else (row,))
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=thresholds)
    if is_twice:
        with pytest.raises(BundleError, match="once for each product"):
            open_bundle(tmp_path / "t.flaw")
    else:
        open_bundle(tmp_path / "t.flaw").close()
    with pytest.raises(msgspec.ValidationError, match="both thresholds"):
        msgspec.convert({"name": "a", "images": 3, "image": {"value": 1.0, "method": "manual"}}, ProductThresholds)
    with pytest.raises(msgspec.ValidationError, match="length >= 1"):
        msgspec.convert({"name": "", "images": 3}, ProductThresholds)


def test_cross_fitted_scores_give_each_product_its_own(bundle, root, capsys):
    """They are taken where the detector has learned all images, and are estimates for each product too."""
    paths = {image_hash(path): path for name in COUNTS for path in (root / name / "train/good").glob("*.png")}
    contents = tuple(sorted(paths))
    values = tuple(float(1000 * (paths[c].parts[-4] == "nut") + int(paths[c].stem)) for c in contents)
    hashes = ImageHashes(contents, (), CrossScores(5, contents, values, values))
    write_tiny_bundle(bundle, {"images.json": hashes.encode()})
    command = ["calibrate", str(bundle), "--data", str(root), "--category", "all", "--by-product", *RATE]
    assert cli.run(command) == 0
    with open_bundle(bundle) as opened:
        rows = opened.manifest.thresholds.by_product
    assert [(row.name, row.images) for row in rows] == sorted(COUNTS.items())
    for row, first in zip(rows[:2], (0.0, 1000.0), strict=True):
        own = first + np.arange(COUNTS[row.name], dtype=np.float64)
        assert row.image.value == order_statistic_threshold(own, 0.15, 0.95).value
        assert (row.image.guarantee, row.image.backend) == ("estimated", "torch")
    assert rows[2].image is None
    # Zones have other scores than those of the whole image.
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[:4] = True
    write_tiny_bundle(bundle, {"images.json": hashes.encode()}, zones=make_zones({"top": mask}, None, None))
    capsys.readouterr()
    assert cli.run(["calibrate", str(bundle)]) == 2
    assert "with a region of interest or zones, where they are others" in capsys.readouterr().err


# --- the figures


def evaluate(bundle: Path, root: Path, *more: str) -> list[str]:
    out = str(bundle.parent / "f.json")
    return ["evaluate", str(bundle), "--data", str(root), "--json", out, "--overwrite", *more]


def test_the_evaluation_by_product_judges_each_by_its_own_thresholds(tmp_path, calibrated, root, capsys):
    """A defect of a bolt is darker than normal pixels of a nut: common thresholds could not find both."""
    two = tmp_path / "two"
    for product in ("bolt", "nut"):
        (two / product).parent.mkdir(exist_ok=True)
        (two / product).symlink_to(root / product)
    assert cli.run(evaluate(calibrated, two, "--category", "all")) == 0
    common = json.loads((tmp_path / "f.json").read_text())
    assert "products" not in common
    assert common["image_auroc"] < 1
    report = tmp_path / "report"
    assert cli.run(evaluate(calibrated, two, "--category", "all", "--by-product", "--report", str(report))) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert [row["product"] for row in figures["products"]] == ["bolt", "nut"]
    assert figures["image_auroc"] == 1.0
    assert figures["confusion"]["miss"]["count"] == 0
    with open_bundle(calibrated) as opened:
        own = {row.name: row.pixel.value for row in opened.manifest.thresholds.by_product if row.pixel}
        backends = [row.backend for row in opened.manifest.evidence.accuracy]
    assert sorted(backends) == ["cpu", "cpu (by product)"]  # neither took the place of the other
    wrong, true, false = 0, 0, 0
    for product, value in own.items():
        for folder in ("good", "spot"):
            for path in (two / product / "test" / folder).glob("*.png"):
                called = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > value
                mask = np.zeros((SIDE, SIDE), np.bool_)
                if folder == "spot":
                    mask[3:7, 4:8] = True
                else:
                    wrong += called.any()
                true, false = true + (called & mask).sum(), false + (called & ~mask).sum()
    assert figures["confusion"]["good"]["reject"] == wrong
    assert figures["pixel_f1"] == pytest.approx(2 * true / (true + false + 160))
    assert any("judged by the thresholds of their product (bolt, nut)" in note for note in figures["notes"])
    assert "image score, bolt" in (report / "report.html").read_text()
    assert "missed defects" in capsys.readouterr().out


def test_the_evaluation_of_one_product_has_its_thresholds(tmp_path, calibrated, root):
    assert cli.run(evaluate(calibrated, root, "--category", "bolt", "--product", "bolt")) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    with open_bundle(calibrated) as opened:
        expected = opened.manifest.thresholds.by_product[0].image.value
        assert [row.backend for row in opened.manifest.evidence.accuracy] == ["cpu (product bolt)"]
    assert figures["confusion"]["image_threshold"]["value"] == expected
    assert figures["product"] == "bolt"
    assert "The thresholds are those of the product bolt." in figures["notes"]


def test_images_of_other_products_at_the_thresholds_of_one_are_said(tmp_path, calibrated, root):
    assert cli.run(evaluate(calibrated, root, "--category", "all", "--product", "bolt", "--no-record")) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    others = sum(not row["image"].startswith("bolt/") for row in figures["per_image"])
    assert 0 < others < figures["images"]
    said = f"product bolt, but {others} of {figures['images']} images show another (nut, pin)"
    assert any(said in note for note in figures["notes"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--category", "all", "--by-product"], "got 'pin', of which there were 19"),
        (["--category", "bolt", "--by-product"], "expected a dataset of all categories with --by-product"),
        (["--category", "all", "--by-product", "--product", "bolt"], "expected none with those of all"),
        (["--category", "bolt", "--product", "nail"], "(bolt, nut), got 'nail'"),
    ],
)
def test_what_cannot_be_evaluated_by_product_is_refused_in_a_line(calibrated, root, capsys, more, message):
    before = (calibrated / "manifest.json").read_bytes()
    assert cli.run(evaluate(calibrated, root, *more)) == 2
    assert message in capsys.readouterr().err
    assert (calibrated / "manifest.json").read_bytes() == before


def test_figures_at_other_thresholds_are_no_drift(tmp_path, calibrated, root, capsys):
    """Only figures by the same product are compared, from evidence and from files alike."""
    one = ("--category", "bolt", "--no-record")
    assert cli.run(evaluate(calibrated, root, "--category", "bolt")) == 0
    assert cli.run(evaluate(calibrated, root, *one, "--product", "bolt")) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["drift"] == []
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(figures))
    capsys.readouterr()
    assert cli.run(evaluate(calibrated, root, *one, "--against", str(earlier))) == 2
    assert "at the same thresholds (common thresholds), got others (product bolt)" in capsys.readouterr().err
    assert cli.run(evaluate(calibrated, root, *one, "--product", "bolt", "--against", str(earlier))) == 0
    (drift,) = json.loads((tmp_path / "f.json").read_text())["drift"]
    assert drift["against"] == "cpu (product bolt)"
    assert drift["paired"]["largest_relative"] == 0.0


@given(
    path=st.sampled_from(["graph", "kernel"]),
    precision=st.sampled_from(["fp32", "int8"]),
    product=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=12),
    by_product=st.booleans(),
)
def test_the_name_of_a_measurement_says_whose_thresholds_it_had(path, precision, product, by_product):
    judged = judged_by(product, by_product=by_product)
    assert judged_of(measured_on("cpu", path, precision, judged)) == judged
    assert (measured_on("cpu", path, precision, judged) == measured_on("cpu", path, precision)) == (judged == "")
