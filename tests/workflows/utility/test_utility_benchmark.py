"""`flawscope synth judge`: a set that helps, one that does not, and what neither arm may have seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_judged import SIDE, Drawing, Place, arguments, part, quick_config, with_textures, write_generated, write_place

from flawscope.bundle import open_bundle
from flawscope.calibration.evaluation.intervals import Interval
from flawscope.calibration.evaluation.paired_differences import Difference
from flawscope.cli import run
from flawscope.config import LabelledConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import ArgumentError, BundleError, DataError, RunError
from flawscope.progress import no_progress
from flawscope.runtime import Inspector
from flawscope.workflows.utility import utility_benchmark
from flawscope.workflows.utility.arms import read_arms, settings_of
from flawscope.workflows.utility.utility_benchmark import UtilityPlan, run_utility_benchmark
from flawscope.workflows.utility.utility_data import UtilityData, read_utility_data
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


# ---- Verdicts --------------------------------------------------------------------------------------------------------


def report_of(out: Path) -> UtilityReport:
    return msgspec.json.decode((out / "judge.json").read_bytes(), type=UtilityReport)


def test_a_set_of_the_defects_that_are_tested_is_recommended(judged: Path) -> None:
    report = report_of(judged)
    (arm,) = report.compared
    gain = arm.differences["pixel_ap"]
    assert report.is_recommended
    assert report.verdict == arm.verdict
    assert report.verdict.startswith(f"recommended: gain of pixel AP {gain.mean:+.4f} (")
    assert gain.interval.low > 0.0
    assert gain.mean > 0.2
    assert list(arm.differences) == ["pixel_ap", "iou", "iou_f1", "pixel_auroc", "image_auroc"]
    assert [(figures.result.seed, figures.result.arm) for figures in report.arms] == [(0, "real"), (0, "helpful")]
    assert report.arms[1].figures["pixel_ap"] - report.arms[0].figures["pixel_ap"] == gain.mean
    assert any(note.startswith("one seed: the interval does not cover chance in training") for note in report.notes)
    assert (judged / "judge.svg").read_text().lstrip().startswith("<?xml")
    assert report.types == ("spot", "tint")


def test_what_was_judged_is_a_bundle_that_ships(place: Place, judged: Path) -> None:
    folder = judged / "arms" / "seed_0_helpful"
    assert {path.name for path in folder.iterdir()} == {"detector.flaw", "result.json", "metrics.jsonl", "previews"}
    with open_bundle(folder / "detector.flaw") as bundle:
        assert bundle.manifest.method == "segmenter"
        assert bundle.manifest.evidence.parity
        assert {one.name for one in bundle.manifest.learned_defects.sources} == {"support", "drawn"}  # type: ignore[union-attr]
    with Inspector.load(folder / "detector.flaw", "cpu") as inspector:
        assert inspector(place.root / "test" / "good" / "000.png").score > 0


def test_misses_are_of_a_threshold_from_normal_images_with_an_estimate_by_drawn_ones(judged: Path) -> None:
    real, both = (figures.result.misses for figures in report_of(judged).arms)
    for misses in (real, both):
        assert misses.normal == 2
        assert misses.normal_tested == 6
        # Twelve anomalous test images without the support image; two drawings lie on each held-out image.
        assert (misses.real, misses.drawn) == (11, 4)
        assert 0 <= misses.missed <= misses.real
        assert 0 <= misses.missed_drawn <= misses.drawn
    assert both.missed < real.missed
    assert both.rate == both.missed / 11
    assert both.estimate == both.missed_drawn / 4


def test_a_set_of_noise_is_not_recommended_and_the_arm_without_it_is_taken_as_it_is(
    place: Place, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "noise"
    shutil.copytree(judged / "arms" / "seed_0_real", out / "arms" / "seed_0_real")
    before = (out / "arms" / "seed_0_real" / "result.json").stat().st_mtime_ns
    assert run(arguments(place, place.noise, out, "--resume", "latest")) == 1
    report = report_of(out)
    assert not report.is_recommended
    assert report.compared[0].differences["pixel_ap"].interval.low <= 0.0
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

    def refuse(*anything: object, **named: object) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(utility_benchmark, "train_detector", refuse)
    capsys.readouterr()
    more = ("--resume", "latest", "--per-defect", "--with-leak")
    assert run(arguments(place, place.helpful, out, *more)) == 0
    before, after = report_of(judged), report_of(out)
    (arm,), (earlier,) = after.compared, before.compared
    assert arm.differences == earlier.differences
    assert after.arms == before.arms
    assert earlier.with_leak is earlier.defects is None
    assert arm.defects is not None
    assert set(arm.defects) == {"spot", "tint"}
    assert arm.with_leak is not None
    assert arm.with_leak["pixel_ap"].first != arm.differences["pixel_ap"].first
    shown = capsys.readouterr().out
    assert "on all test images, also those that have been seen:" in shown
    assert "drawn missed (estimate)" in shown
    rows = [line.split() for line in shown.split("by defect type, with all normal images:")[1].splitlines()]
    assert ["tint", "pixel", "AP"] in [row[:3] for row in rows]


@pytest.mark.slow
def test_several_sets_mixtures_and_numbers_are_arms_beside_the_same_real_one(
    place: Place, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(judged, tmp_path / "several")
    mixture = f"{place.helpful}+{place.noise}"
    status = run(arguments(place, place.helpful, out, "--resume", "latest", "--numbers", "4", first=(mixture,)))
    report = report_of(out)
    names = ["helpful+noise@4", "helpful+noise", "helpful@4", "helpful"]
    assert [arm.name for arm in report.compared] == names
    assert [figures.result.arm for figures in report.arms] == ["real", *names]
    best = max(report.compared, key=lambda arm: (arm.is_recommended, arm.differences["pixel_ap"].mean))
    assert report.verdict == f"{best.name}: {best.verdict}"
    assert status == (0 if best.is_recommended else 1)
    assert any("the best of 4 gains by chance" in note for note in report.notes)
    learned = {figures.result.arm: figures.result.learned for figures in report.arms}
    assert "drawn" not in learned["real"]
    assert learned["helpful@4"]["drawn"] == learned["helpful+noise@4"]["drawn"] == 4 < learned["helpful"]["drawn"]
    shown = capsys.readouterr().out
    assert "helpful+noise@4: " in shown


def test_types_that_were_not_taught_are_apart(place: Place, tmp_path: Path) -> None:
    spots = [drawing for drawing in place.drawings if drawing.defect == "spot"]
    data = data_of(place, write_generated(tmp_path / "spots", place.root, spots, place.seen))
    assert data.types == ("spot",)
    assert "test images of defect types that no arm was taught (tint): 6" in data.notes
    assert data.is_taught.sum() == 6
    groups = utility_benchmark._groups(plan(place, tmp_path / "out"), data)
    defects = np.array([sample.defect for sample in data.samples])
    assert set(defects[groups["taught"]]) == {"good", "spot"}
    assert set(defects[groups["clean"]]) == {"good", "spot", "tint"}


def test_another_figure_may_decide(place: Place, judged: Path, tmp_path: Path) -> None:
    out = shutil.copytree(judged, tmp_path / "other")
    run(arguments(place, place.helpful, out, "--resume", "latest", "--figure", "iou", "--confidence", "0.8"))
    report = report_of(out)
    assert report.figure == "iou"
    assert "IoU at 0.5" in report.verdict
    assert report.compared[0].differences["iou"].interval.confidence == 0.8


# ---- What is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--steps", "40"), "setting epochs was 5, is 4"),
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
    fewer = write_generated(tmp_path / "helpful", place.root, place.drawings[:-2], place.seen)
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


def test_a_broken_result_is_an_error_that_names_it(place: Place, judged: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(judged, tmp_path / "broken"))
    file = out / "arms" / "seed_0_helpful" / "result.json"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(RunError, match=r"seed_0_helpful: expected the result of a training, got: .* Remove the folder"):
        run_utility_benchmark(plan(place, out, resume=True))


def test_a_changed_bundle_is_no_result(place: Place, judged: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(judged, tmp_path / "changed"))
    file = out / "arms" / "seed_0_helpful" / "detector.flaw" / "score.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError):
        run_utility_benchmark(plan(place, out, resume=True))


def plan(
    place: Place,
    out: Path,
    *,
    generated: Path | None = None,
    config: LabelledConfig | None = None,
    share: float = 0.5,
    seeds: tuple[int, ...] = (0,),
    figure: str = "pixel_ap",
    resume: bool = False,
) -> UtilityPlan:
    return UtilityPlan(
        config=config or quick_config(),
        dataset=open_dataset(place.root),
        support=place.support,
        arms=read_arms([str(generated or place.helpful)]),
        out=out,
        share=share,
        seeds=seeds,
        figure=figure,
        resume=resume,
    )


# ---- What is learned from, and what is not ---------------------------------------------------------------------------


def data_of(place: Place, *generated: Path) -> UtilityData:
    support = read_support(place.support)
    return read_utility_data(quick_config(), open_dataset(place.root), support, generated, no_progress)


def test_a_clean_test_has_nothing_the_generator_or_a_segmenter_has_seen(place: Place, tmp_path: Path) -> None:
    drawn_on = place.root / "test" / "good" / "002.png"
    drawings = [*place.drawings, Drawing("spot", *part(500, "spot"), drawn_on)]
    more = write_generated(tmp_path / "more", place.root, drawings, place.seen)
    texture = drawn_on.with_name("003.png")
    data = data_of(place, with_textures(more, tmp_path / "with", [texture, place.drawings[0].good]))
    support = read_support(place.support).pictures[0].source
    assert data.left_out == {
        support: "a support image",
        "test/good/002.png": "defects were drawn on it",
        "test/good/003.png": "it is a texture of drawn defects",
    }
    assert data.is_clean.sum() == 15
    clean = {s.path.relative_to(place.root).as_posix() for s, ok in zip(data.samples, data.is_clean, strict=True) if ok}
    assert not clean & set(data.left_out)
    assert all(sample.split == "test" for sample in data.samples)
    assert data.counts["left_out"] == 3


def test_rejected_drawings_count_as_seen_and_not_as_drawn(place: Place, tmp_path: Path) -> None:
    some = [one._replace(accepted=number % 2 == 0) for number, one in enumerate(place.drawings)]
    half = data_of(place, write_generated(tmp_path / "half", place.root, some, place.seen))
    assert (half.counts["rejected"], half.counts["synthetic"]) == (12, 12)
    assert len(half.drawn) == 12


def test_types_that_a_setting_leaves_out_are_not_taught(place: Place) -> None:
    support = read_support(place.support)
    for wanted, drawn in (((), {"spot", "tint"}), (("spot",), {"spot"}), (("part/tint",), {"tint"})):
        settings = quick_config(defects=list(wanted))
        data = read_utility_data(settings, open_dataset(place.root), support, [place.helpful], no_progress)
        assert set(data.types) == {line.defect for line in data.drawn} == drawn
        assert data.is_taught.sum() == 6 * len(drawn)


def test_a_support_set_whose_copies_have_changed_is_another_request(place: Place, judged: Path, tmp_path: Path) -> None:
    # Its record has the hashes of the originals: what the arms learn from are the copies.
    support = shutil.copytree(place.support, tmp_path / "support")
    (support / read_support(support).pictures[0].picture).write_bytes(
        (place.root / place.spot).with_name("005.png").read_bytes()
    )
    out = shutil.copytree(judged, tmp_path / "judged")
    asked = plan(place._replace(support=support), out, resume=True)
    with pytest.raises(ArgumentError, match="support images was"):
        run_utility_benchmark(asked)


def test_an_arm_has_the_shares_and_labels_that_are_asked_for(place: Place) -> None:
    real, drawn = read_arms([str(place.helpful)])
    config = quick_config(weak_tau=0.1, drawn=[""])
    without = settings_of(config, real, place.support, 0.25, 3)
    assert (without.labelled.shares, without.labelled.weak_tau, without.seed) == ({"support": 1.0}, None, 3)
    some = settings_of(config, drawn, place.support, 0.25, 3)
    assert some.labelled.shares == {"support": 0.75, "drawn": 0.25}
    assert some.labelled.weak_tau == 0.1
    assert settings_of(config, drawn, place.support, 1.0, 3).labelled.shares == {"drawn": 1.0}


@pytest.mark.parametrize(
    ("generated", "numbers", "names"),
    [
        (["a"], (), ["real", "a"]),
        (["x/a", "y/a"], (), ["real", "a-1", "a-2"]),
        (["a", "b", "a+b"], (), ["real", "a", "b", "a+b"]),
        (["real"], (), ["real", "real-1"]),
        (["a"], (50, 5), ["real", "a@5", "a@50", "a"]),
    ],
)
def test_arms_have_names_of_their_own(generated: list[str], numbers: tuple[int, ...], names: list[str]) -> None:
    assert [arm.name for arm in read_arms(generated, numbers)] == names


def test_a_plus_may_be_in_the_name_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    assert read_arms([str(tmp_path / "a+b")])[1].folders == (tmp_path / "a+b",)


@pytest.mark.parametrize(
    ("generated", "numbers", "text"),
    [
        ([], (), "GENERATED: expected a folder"),
        (["a", "a"], (), "got one twice"),
        (["a+a"], (), "got one twice"),
        (["a+b", "b+a"], (), "got one twice"),
        (["a"], (0,), "--numbers: expected different numbers of at least 1"),
        (["a"], (5, 5), "--numbers: expected different numbers"),
        (["a", "a@5"], (5,), "got two arms a@5"),
        (["x/a", "y/a", "a-1"], (), "got two arms a-1"),
    ],
)
def test_arms_that_say_nothing_are_refused(generated: list[str], numbers: tuple[int, ...], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        read_arms(generated, numbers)


def test_another_support_set_than_the_one_that_was_learned_from_is_refused(place: Place, tmp_path: Path) -> None:
    other = write_generated(tmp_path / "other", place.root, place.drawings, [*place.seen, "f" * 64])
    with pytest.raises(DataError, match=r"support set: expected the one that .* was drawn from, got one without 1 of"):
        data_of(place, other)


def test_a_set_without_accepted_images_is_refused(place: Place, tmp_path: Path) -> None:
    none = [drawing._replace(accepted=False) for drawing in place.drawings]
    with pytest.raises(DataError, match="expected accepted images of part, got none"):
        data_of(place, write_generated(tmp_path / "none", place.root, none, place.seen))


def test_a_folder_that_nothing_was_drawn_in_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected drawn images"):
        data_of(place, tmp_path)


# ---- Wrong requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": (1, 1)}, "seeds: expected different numbers"),
        ({"seeds": ()}, "seeds: expected different numbers"),
        ({"figure": "beauty"}, "figure: expected one of pixel_ap,"),
        ({"share": 0.0}, "synthetic_share: expected a share above 0"),
        ({"config": quick_config(tile=16)}, "tile: expected none"),
        ({"config": quick_config(held_out=0.0)}, "held_out: expected above 0"),
        (
            {"config": quick_config(resize=16, stages=[4])},
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
        (("--set", "widht=3"), "widht: is no setting of segmenter. Did you mean width?"),
        (("--set", "support=here"), "--set support: expected the sources in GENERATED"),
        (("--steps", "0"), "--steps: expected at least 1"),
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
    arms = {"drawn": {"pixel_ap": difference, "iou": difference}}
    drawn = draw_differences(arms)
    assert drawn == draw_differences(arms)
    assert "drawn" not in drawn
    several = draw_differences({**arms, "a $ b": arms["drawn"]})
    assert "a $ b: pixel AP" in several
    assert "pixel AP" in drawn
    assert "IoU at 0.5" in drawn


def test_another_detector_that_learns_from_defects_is_judged_as_it_ships(place: Place, tmp_path: Path) -> None:
    settings: dict[str, object] = {"resize": SIDE, "width": 8, "depth": 2, "segmentation_width": 8, "held_out": 0.2}
    settings |= {"segmentation_depth": 2, "batch_size": 4, "epoch_batches": 2, "epochs": 1, "num_workers": 1}
    settings |= {"device": "cpu", "held_out_minimum": 2, "validation": 0.2, "procedural": False}
    config, _ = build_config("draem", settings)
    assert isinstance(config, LabelledConfig)
    report = run_utility_benchmark(plan(place, tmp_path / "out", config=config))
    assert report.method == "draem"
    assert [figures.result.arm for figures in report.arms] == ["real", "helpful"]
    with open_bundle(tmp_path / "out" / "arms" / "seed_0_helpful" / "detector.flaw") as bundle:
        assert bundle.manifest.method == "draem"
