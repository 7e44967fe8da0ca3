"""Thresholds on cross-fitted scores: when they are taken, what is claimed, and what is said."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest

from flawscope import cli
from flawscope.bundle import Precision, Threshold, change_bundle, make_region, open_bundle, rewrite_manifest
from flawscope.calibration import calibrate_bundle
from flawscope.calibration.evaluation.intervals import in_parts
from flawscope.calibration.thresholds import calibrate
from flawscope.calibration.thresholds.expectation import expectation
from flawscope.calibration.thresholds.normal_quantile import OrderStatistic
from flawscope.cross_scores import CrossScores
from flawscope.datasets import image_hash, open_dataset
from flawscope.errors import DataError


@pytest.fixture
def make_crossed(make_bundle, dataset):
    """Return a function that writes a bundle that has learned the images below a brightness, with crossed scores."""

    def make(below=70, **options):
        learned = {int(sample.path.stem): image_hash(sample.path) for sample in dataset.train_good}
        learned = {value: name for value, name in learned.items() if value < below}
        names = tuple(sorted(learned.values()))
        scores = {name: 1000.0 + value for value, name in learned.items()}
        cross = CrossScores(5, names, tuple(scores[n] for n in names), tuple(2.0 * scores[n] for n in names))
        return make_bundle(training=names, held_out=[], cross=cross, **options)

    return make


def with_int8(path):
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    graphs = Precision(manifest.graphs, (), "by hand", 1, 1, ())
    rewrite_manifest(path, msgspec.structs.replace(manifest, precisions={"int8": graphs}))
    return path


def never(*arguments, **named):
    raise AssertionError("an image was scored")


def test_cross_fitted_scores_set_thresholds_without_an_image(make_crossed, dataset, monkeypatch):
    path = make_crossed()
    monkeypatch.setattr(calibrate, "load_inspector", never)
    result = calibrate_bundle(path, None, false_reject_rate=0.2, command="c")
    # 30 scores, 1040 to 1069: the bound for one reject among 30 is 14.9 %, for two 19.5 %.
    assert result.new.image.value == 1067.0
    assert result.new.pixel.value == 2134.0
    assert (result.new.image.images, result.new.image.backend) == (30, "torch")
    assert result.new.image.guarantee == "estimated"
    assert [value for _, value in result.highest[:2]] == [1069.0, 1068.0]
    with open_bundle(path) as bundle:
        assert bundle.manifest.thresholds == result.new


def test_with_the_dataset_the_images_are_named(make_crossed, dataset):
    result = calibrate_bundle(make_crossed(), dataset, false_reject_rate=0.2, command="c")
    assert result.new.image.guarantee == "estimated"
    assert result.highest[0][0].name == "69.png"
    assert "estimated and no bound" in " ".join(result.notes)
    assert "1.2e-06 of a score" in " ".join(result.notes)


@pytest.mark.parametrize(
    ("below", "guarantee", "images"), [(56, "estimated", 16), (55, "bound", 15), (50, "bound", 20)]
)
def test_images_that_were_not_learned_are_taken_where_they_are_as_many(make_crossed, dataset, below, guarantee, images):
    """The number alone decides, never the scores: the bound would be void."""
    result = calibrate_bundle(make_crossed(below), dataset, false_reject_rate=0.2, command="c")
    assert (result.new.image.guarantee, result.new.image.images) == (guarantee, images)
    if guarantee == "estimated":
        [(reason, count)] = result.left_out
        assert count == 14
        assert "new" in reason


def test_labelled_images_are_judged_by_scores_of_their_own(make_crossed, dataset):
    result = calibrate_bundle(make_crossed(), dataset, objective="f1", command="c")
    assert result.new.image.method == "f1"
    assert result.new.image.value < 1000


def test_a_bundle_without_them_needs_images(make_bundle):
    with pytest.raises(DataError, match=r"expected scores of cross-fitting.*Name the normal images with --data"):
        calibrate_bundle(make_bundle(), None, command="c")


def test_with_a_region_of_interest_the_scores_of_whole_images_are_not_taken(make_crossed, dataset):
    path = make_crossed(56)
    mask = np.zeros((64, 64), np.bool_)
    mask[:32] = True
    with open_bundle(path) as bundle:
        read = bundle.manifest
    change_bundle(path, read, lambda now: msgspec.structs.replace(now, region=make_region(mask)))
    with pytest.raises(DataError, match="with a region of interest"):
        calibrate_bundle(path, None, command="c")
    result = calibrate_bundle(path, dataset, false_reject_rate=0.2, command="c")
    assert (result.new.image.guarantee, result.new.image.images) == ("bound", 14)


def test_what_has_no_meaning_for_scores_of_the_training_is_refused(make_crossed, capsys):
    path = str(make_crossed())
    assert cli.run(["calibrate", path, "--backend", "cpu"]) == 2
    assert "expected auto with cross-fitted scores" in capsys.readouterr().err
    assert cli.run(["calibrate", path, "--category", "steel"]) == 2
    assert "--category goes with --data" in capsys.readouterr().err


def test_another_precision_needs_images_of_its_own(make_crossed, dataset):
    with pytest.raises(DataError, match="for int8, since the cross-fitted scores of the bundle are of FP32"):
        calibrate_bundle(with_int8(make_crossed()), dataset, precision="int8", command="c")
    with pytest.raises(DataError, match="got a bundle without them in int8"):
        calibrate_bundle(with_int8(make_crossed()), None, precision="int8", command="c")


def test_a_score_that_stands_out_is_named(make_bundle, dataset):
    names = tuple(sorted(image_hash(sample.path) for sample in dataset.train_good))
    scores = tuple(9.0 if place == 4 else 1.0 + 0.01 * place for place in range(len(names)))
    path = make_bundle(training=names, held_out=[], cross=CrossScores(5, names, scores, scores))
    [note, *_] = calibrate_bundle(path, dataset, command="c").notes
    assert f"{next(s.path for s in dataset.train_good if image_hash(s.path) == names[4])} (9)" in note


def test_the_command_says_one_plain_sentence_in_text_and_in_json(make_crossed, capsys):
    path = make_crossed()
    assert cli.run(["calibrate", str(path)]) == 0
    printed = capsys.readouterr()
    assert (
        "Expect up to an estimated 10 in 100 normal parts rejected until you add 269 images and train again."
        in printed.out
    )
    assert "An estimated 9.50% at most of good parts like these are rejected, with about 95% confidence" in printed.out
    assert "train again" in printed.err
    assert cli.run(["calibrate", str(path), "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    made = json.loads(line)
    assert made["precision"] == "fp32"
    assert made["expectation"].startswith("Expect up to an estimated 10 in 100")
    assert made["new"]["image"]["guarantee"] == "estimated"


def test_info_and_evaluate_tell_an_estimate_from_a_bound(make_crossed, dataset, capsys):
    path = make_crossed()
    assert cli.run(["calibrate", str(path)]) == 0
    assert cli.run(["bundle", "info", str(path)]) == 0
    assert "false rejects estimated at most 9.50% with about 95% confidence" in capsys.readouterr().out
    assert cli.run(["evaluate", str(path), "--data", str(dataset.root), "--no-record"]) == 0
    err = capsys.readouterr().err
    assert "its bound on false rejects is an estimate" in err
    assert "was set with the backend torch" not in err


def test_older_thresholds_are_bounds():
    assert Threshold(1.0, "order-statistic", 20, 0.1, 0.95, 0.09, "cpu").guarantee == "bound"
    assert Threshold(1.0, "manual").claim is None


# ---- The sentence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "parts"),
    [
        (0.0889, "9 in 100"),
        (0.01, "1 in 100"),
        (0.0100000000001, "1 in 100"),
        (0.0101, "2 in 100"),
        (0.0099, "1 in 100"),
        (0.005, "1 in 100"),
        (0.0049, "5 in 1,000"),
        (0.0004, "4 in 10,000"),
        (1.0, "100 in 100"),
        (0.0, "1 in 1,000,000"),
    ],
)
def test_rates_are_whole_parts_rounded_up(rate, parts):
    assert in_parts(rate) == parts
    count, of = (int(word.replace(",", "")) for word in parts.split(" in "))
    assert count / of >= rate - 1e-9
    assert not math.isclose(count, 0)


def statistic(images, bound, needed):
    return OrderStatistic(1.0, images, images, bound, 0.01, 0.95, needed)


def test_the_sentence_says_how_many_images_are_missing(tmp_path):
    assert (
        expectation(statistic(32, 0.0894, 299))
        == "Expect up to 9 in 100 normal parts rejected until you add 267 images and calibrate again."
    )
    # Of plain folders with defects a fifth of the normal images is for the test.
    for name in ("dent", "good"):
        (tmp_path / name).mkdir()
        for number in range(50):
            (tmp_path / name / f"{number}.png").touch()
    assert (
        expectation(statistic(40, 0.0722, 299), open_dataset(tmp_path), is_estimated=True)
        == "Expect up to an estimated 8 in 100 normal parts rejected until you add 324 images (of them 65 are kept for "
        "the test) and train again."
    )
    assert expectation(statistic(298, 0.01003, 299)).endswith("until you add 1 image and calibrate again.")
    assert expectation(statistic(500, 0.0096, 299)) == "Expect up to 1 in 100 normal parts rejected."
