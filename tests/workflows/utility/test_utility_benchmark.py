"""`flawscope synth judge`: a set that helps, one that does not, and what neither arm may have seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_judged import CONFIG, SIDE, Drawing, Place, arguments, part, write_generated, write_place

from flawscope.calibration.evaluation.intervals import Interval
from flawscope.calibration.evaluation.paired_differences import Difference
from flawscope.cli import run
from flawscope.config import change_settings
from flawscope.datasets import open_dataset, split_held_out
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.progress import no_progress
from flawscope.training.segmentation.segmenter import SegmenterConfig
from flawscope.workflows.utility import utility_benchmark
from flawscope.workflows.utility.utility_benchmark import UtilityPlan, run_utility_benchmark
from flawscope.workflows.utility.utility_data import read_utility_data
from flawscope.workflows.utility.utility_plot import draw_differences
from flawscope.workflows.utility.utility_report import UtilityReport

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def judged(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results on the set that helps; not to be changed."""
    out = tmp_path_factory.mktemp("results") / "helpful"
    assert run(arguments(place, place.helpful, out)) == 0
    return out


def record_of(out: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((out / "judge.json").read_text())
    return record


# ---- Verdicts --------------------------------------------------------------------------------------------------------


def test_a_set_of_the_defects_that_are_tested_is_recommended(judged: Path) -> None:
    report = msgspec.json.decode((judged / "judge.json").read_bytes(), type=UtilityReport)
    gain = report.differences["pixel_ap"]
    assert report.is_recommended
    assert report.verdict.startswith(f"recommended: gain of pixel AP {gain.mean:+.4f} (")
    assert gain.interval.low > 0.0
    assert gain.mean > 0.2
    assert list(report.differences) == ["pixel_ap", "iou", "iou_f1", "pixel_auroc", "image_auroc"]
    assert [(figures.result.seed, figures.result.arm) for figures in report.arms] == [(0, "real"), (0, "both")]
    assert report.arms[1].figures["pixel_ap"] - report.arms[0].figures["pixel_ap"] == gain.mean
    assert any(note.startswith("one seed: the interval does not cover chance in training") for note in report.notes)
    assert (judged / "judge.svg").read_text().lstrip().startswith("<?xml")
    assert (judged / "arms" / "seed_0_both" / "metrics.jsonl").is_file()
    assert not (judged / "arms" / "seed_0_both" / "checkpoints").exists()


def test_a_set_of_noise_is_not_recommended_and_the_arm_without_it_is_taken_as_it_is(
    place: Place, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "noise"
    shutil.copytree(judged / "arms" / "seed_0_real", out / "arms" / "seed_0_real")
    before = (out / "arms" / "seed_0_real" / "result.json").stat().st_mtime_ns
    assert run(arguments(place, place.noise, out, "--resume", "latest")) == 1
    report = msgspec.json.decode((out / "judge.json").read_bytes(), type=UtilityReport)
    gain = report.differences["pixel_ap"]
    assert not report.is_recommended
    assert gain.interval.low <= 0.0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == report.verdict
    assert report.verdict.startswith("not recommended: gain of pixel AP ")
    assert report.verdict.endswith(" is not above zero")
    assert (out / "arms" / "seed_0_real" / "result.json").stat().st_mtime_ns == before


def test_finished_trainings_are_taken_with_resume_and_give_the_same_figures_and_more_tables(
    place: Place,
    judged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(judged, tmp_path / "again")

    def refuse(*anything: object) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(utility_benchmark, "train_segmenter", refuse)
    capsys.readouterr()
    more = ("--resume", "latest", "--per-defect", "--with-leak")
    assert run(arguments(place, place.helpful, out, *more)) == 0
    before, after = record_of(judged), record_of(out)
    assert after["differences"] == before["differences"]
    assert after["arms"] == before["arms"]
    assert before["with_leak"] is before["defects"] is None
    assert set(after["defects"]) == {"spot", "tint"}  # type: ignore[call-overload]
    assert after["with_leak"]["pixel_ap"]["first"] != after["differences"]["pixel_ap"]["first"]  # type: ignore[index]
    shown = capsys.readouterr().out
    assert "on all test images, also those the generator has seen:" in shown
    rows = [line.split() for line in shown.split("by defect type, with all normal images:")[1].splitlines()]
    assert ["tint", "pixel", "AP"] in [row[:3] for row in rows]


def test_another_figure_may_decide(place: Place, judged: Path, tmp_path: Path) -> None:
    out = shutil.copytree(judged, tmp_path / "other")
    run(arguments(place, place.helpful, out, "--resume", "latest", "--figure", "iou", "--confidence", "0.8"))
    record = record_of(out)
    assert record["figure"] == "iou"
    assert "IoU at 0.5" in str(record["verdict"])
    assert record["differences"]["iou"]["interval"]["confidence"] == 0.8  # type: ignore[index]


# ---- What is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--steps", "51"), "setting steps was 50, is 51"),
        (("--set", "gamma=1"), "setting gamma was 2.0, is 1.0"),
        (("--image-size", "48"), "setting resize was [32, 32], is [48, 48]"),
    ],
)
def test_results_of_another_request_are_refused_before_anything_is_trained(
    place: Place, judged: Path, more: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(place, place.helpful, judged, "--resume", "latest", *more)) == 2
    shown = capsys.readouterr().err
    assert "expected a result of the same request, got one of another: " + what in shown
    assert shown.count("\n") == 1


def test_a_synthetic_set_that_has_changed_is_another_request(place: Place, judged: Path, tmp_path: Path) -> None:
    fewer = write_generated(tmp_path / "fewer", place.root, place.drawings[:-2], place.seen)
    with pytest.raises(ArgumentError, match="got one of another: synthetic set was "):
        run_utility_benchmark(plan(place, judged, generated=fewer, resume=True))


def test_results_are_never_overwritten_and_other_folders_never_touched(
    place: Place, judged: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=r"expected a new folder, got one with results\. Use the finished"):
        run_utility_benchmark(plan(place, judged))
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ArgumentError, match=r"expected a new folder, got one with letter\.txt"):
        run_utility_benchmark(plan(place, tmp_path, resume=True))
    with pytest.raises(ArgumentError, match="expected a folder, got a file"):
        run_utility_benchmark(plan(place, tmp_path / "letter.txt"))


@pytest.mark.parametrize("name", ["result.json", "maps.safetensors"])
def test_a_broken_result_is_an_error_that_names_it(place: Place, judged: Path, tmp_path: Path, name: str) -> None:
    out = Path(shutil.copytree(judged, tmp_path / "broken"))
    file = out / "arms" / "seed_0_both" / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(RunError, match=r"seed_0_both: expected the result of a training, got: .* Remove the folder"):
        run_utility_benchmark(plan(place, out, resume=True))


def plan(
    place: Place,
    out: Path,
    *,
    generated: Path | None = None,
    config: SegmenterConfig = CONFIG,
    seeds: tuple[int, ...] = (0,),
    figure: str = "pixel_ap",
    resume: bool = False,
) -> UtilityPlan:
    return UtilityPlan(
        config=config,
        dataset=open_dataset(place.root),
        support=place.support,
        generated=generated or place.helpful,
        out=out,
        seeds=seeds,
        figure=figure,
        resume=resume,
    )


# ---- What is learned from, and what is not ---------------------------------------------------------------------------


def data_of(place: Place, generated: Path, **changes: object):  # type: ignore[no-untyped-def]
    config = change_settings(CONFIG, {**changes})
    return read_utility_data(config, open_dataset(place.root), read_support(place.support), generated, no_progress)


def test_a_clean_test_has_nothing_the_generator_or_a_segmenter_has_seen(place: Place, tmp_path: Path) -> None:
    drawn_on = place.root / "test" / "good" / "002.png"
    drawings = [*place.drawings, Drawing("spot", *part(500, "spot"), drawn_on)]
    data = data_of(place, write_generated(tmp_path / "more", place.root, drawings, place.seen))
    support = read_support(place.support).pictures[0].source
    assert data.left_out == {support: "a support image", "test/good/002.png": "defects were drawn on it"}
    assert data.is_clean.sum() == 16
    clean = {s.path.relative_to(place.root).as_posix() for s, ok in zip(data.samples, data.is_clean, strict=True) if ok}
    assert not clean & set(data.left_out)
    assert all(sample.split == "test" for sample in data.samples)
    assert data.counts["left_out"] == 2


def test_rejected_drawings_and_those_on_held_back_images_are_not_learned_from(place: Place, tmp_path: Path) -> None:
    plain = data_of(place, place.helpful)
    assert plain.learned.synthetic is not None
    held_back = plain.counts["held_back"]
    assert held_back == 2
    # Every normal image of the training split was drawn on twice.
    assert plain.counts["synthetic"] == len(plain.learned.synthetic.images) == 24 - 2 * held_back
    assert "synthetic images not learned from, drawn on normal images that are held back: 4" in plain.notes
    some = [one._replace(accepted=number % 2 == 0) for number, one in enumerate(place.drawings)]
    half = data_of(place, write_generated(tmp_path / "half", place.root, some, place.seen))
    assert half.counts["rejected"] == 12
    assert half.counts["synthetic"] == 12 - held_back
    assert half.synthetic != plain.synthetic


def test_labels_are_precise_masks_or_with_a_threshold_boxes(place: Place) -> None:
    precise, boxes = data_of(place, place.helpful).learned, data_of(place, place.helpful, weak_tau=0.1).learned
    assert not precise.synthetic.is_coarse
    assert boxes.synthetic.is_coarse
    assert not boxes.real.is_coarse
    assert np.array_equal(boxes.real.labels, precise.real.labels)
    inside, around = precise.synthetic.labels, boxes.synthetic.labels
    assert (around & inside).sum() == inside.sum() < around.sum()


def test_defect_types_that_the_support_set_does_not_have_are_named(place: Place) -> None:
    data = data_of(place, place.helpful)
    assert data.unseen == ("tint",)
    assert "test images of defect types that the support set does not have (tint): 6" in data.notes


def test_a_defect_that_vanishes_at_this_size_is_not_taught_as_a_normal_image(place: Place, tmp_path: Path) -> None:
    dot = np.zeros((SIDE, SIDE), np.bool_)
    dot[4, 5] = True
    learned, _ = split_held_out(open_dataset(place.root).train_good, CONFIG.data.validation, 2)
    tiny = Drawing("spot", part(600)[0], dot, learned[0].path)
    generated = write_generated(tmp_path / "tiny", place.root, [*place.drawings, tiny], place.seen)
    data = data_of(place, generated, resize=(16, 16))
    assert data.counts["synthetic"] == data_of(place, place.helpful).counts["synthetic"]
    assert "synthetic images not learned from, whose defect vanishes at this size: 1" in data.notes


def test_another_support_set_than_the_one_that_was_learned_from_is_refused(place: Place, tmp_path: Path) -> None:
    other = write_generated(tmp_path / "other", place.root, place.drawings, [*place.seen, "f" * 64])
    with pytest.raises(DataError, match=r"support set: expected the one that .* was drawn from, got one without 1 of"):
        data_of(place, other)


def test_a_set_without_accepted_images_is_refused(place: Place, tmp_path: Path) -> None:
    none = [drawing._replace(accepted=False) for drawing in place.drawings]
    with pytest.raises(DataError, match="expected accepted images of part with a defect that is seen at 32x32"):
        data_of(place, write_generated(tmp_path / "none", place.root, none, place.seen))


def test_a_folder_that_nothing_was_drawn_in_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the record of drawn images"):
        data_of(place, tmp_path)


# ---- Wrong requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": (1, 1)}, "seeds: expected different numbers"),
        ({"seeds": ()}, "seeds: expected different numbers"),
        ({"figure": "beauty"}, "figure: expected one of pixel_ap,"),
        ({"config": change_settings(CONFIG, {"synthetic_share": 0.0})}, "synthetic_share: expected above 0"),
        (
            {"config": change_settings(CONFIG, {"resize": (16, 16), "stages": (4,)})},
            "image size: expected one that the backbone's stages can take, got 16x16",
        ),
    ],
)
def test_a_wrong_plan_is_refused(place: Place, tmp_path: Path, change: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        run_utility_benchmark(plan(place, tmp_path / "out", **change))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--seeds", "a"), "--seeds: expected whole numbers with commas"),
        (("--set", "seed=3"), "--set seed: expected the seeds of the trainings in --seeds"),
        (("--set", "step=3"), "step: is no setting of the segmenter. Did you mean steps?"),
        (("--weights", "nothing.safetensors"), "the backbone scattering has fixed filters"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(
    place: Place, tmp_path: Path, more: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(place, place.helpful, tmp_path / "out", *more)) == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_image_of_differences_is_the_same_on_every_run() -> None:
    interval = Interval(0.1, 0.3, 0.95)
    difference = Difference(
        first=(0.5,),
        second=(0.7,),
        differences=(0.2,),
        mean=0.2,
        by_seeds=None,
        by_pictures=interval,
        interval=interval,
        wider="pictures",
    )
    drawn = draw_differences({"pixel_ap": difference, "iou": difference})
    assert drawn == draw_differences({"pixel_ap": difference, "iou": difference})
    assert "pixel AP" in drawn
    assert "IoU at 0.5" in drawn
