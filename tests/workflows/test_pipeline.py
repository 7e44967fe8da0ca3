"""One command from images to an evaluated bundle: what it leaves, what it skips, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from file_contents import files_of
from interrupted import killed_at_checkpoint
from published_weights import write_backbone_weights
from tiny_dataset import CATEGORY, normal_images

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.calibration.evaluation import rounding
from flawscope.config import build_config, parse_assignment
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, RunError
from flawscope.runs import RunRecord
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.workflows import pipeline, training_choice

pytestmark = pytest.mark.long

NETWORK = "resnet10t"
PATCHCORE = ["resize=64", "stages=1,2", "coreset=90", "neighbors=5", "sigma=2.0", "held_out_minimum=5"]
DDAD = [
    *("resize=32", "stages=1,2", "widths=8,16", "layers=1", "attention=4", "epochs=1", "batch_size=8"),
    *("warmup_steps=2", "learning_rate=0.001", "held_out_minimum=5", "steps=2", "eta=1.0"),
    *("extractor_epochs=1", "extractor_rate=0.01", f"backbone={NETWORK}"),
]
STAGES = ("train_detector", "export_run", "calibrate_bundle", "evaluate_bundle", "write_report", "record_accuracy")


def settings(assignments: list[str]) -> list[str]:
    return [part for text in assignments for part in ("--set", text)]


def call(method: str, root: Path, out: Path, *more: str) -> int:
    return cli.run(["pipeline", method, "--data", str(root), "--category", CATEGORY, "--out", str(out), *more])


def stages_of(printed: str) -> list[tuple[str, str]]:
    """Return the name of every stage that was announced, and its time or that it was skipped."""
    words = [line.split() for line in printed.splitlines() if not line.startswith(("verdict: ", "next step: "))]
    return [(line[0], "skipped" if line[1] == "skipped" else line[2]) for line in words]


def skip(*names: str) -> list[str]:
    return [part for name in names for part in ("--skip", name)]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions of the stages that were called, which still do their work."""
    called: list[str] = []

    def recording(name: str, function: Any) -> Any:
        def recorded(*arguments: Any, **named: Any) -> Any:
            called.append(name)
            return function(*arguments, **named)

        return recorded

    for name in STAGES:
        monkeypatch.setattr(pipeline, name, recording(name, getattr(pipeline, name)))
    return called


@pytest.fixture
def fitted(tmp_path: Path, patchcore_run: Path) -> Path:
    """The folder of a pipeline that has its run."""
    shutil.copytree(patchcore_run, tmp_path / "out" / "run")
    return tmp_path / "out"


# --- the whole


def test_images_become_a_run_a_bundle_with_thresholds_and_a_report(
    tmp_path: Path, tiny_root: Path, patchcore_run: Path, traced_features: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    asked = settings(PATCHCORE)
    assert call("patchcore", tiny_root, out, *asked, "--false-reject-rate", "0.3", "--confidence", "0.8") == 0
    printed = capsys.readouterr()
    assert stages_of(printed.out) == [
        (name, "s") for name in ("train", "export", "threshold", "evaluation", "pipeline")
    ]
    assert "note: " not in printed.err
    assert names_in(out) == {"run", f"{CATEGORY}.flaw", "report", "evaluation.json"}
    assert (out / "run" / "weights.safetensors").read_bytes() == (patchcore_run / "weights.safetensors").read_bytes()
    figures = json.loads((out / "evaluation.json").read_text())
    assert (figures["images"], figures["anomalous"]) == (12, 6)
    assert "<html" in (out / "report" / "report.html").read_text()[:500]
    with open_bundle(out / f"{CATEGORY}.flaw") as bundle:
        manifest = bundle.manifest
    assert manifest.name == CATEGORY
    assert manifest.thresholds is not None
    image = manifest.thresholds.image
    assert (image.images, image.false_reject_rate, image.confidence) == (5, 0.3, 0.8)
    assert f"{image.value:.6g}: with 80% confidence at most {image.upper_bound:.2%} of good parts" in printed.out
    assert manifest.evidence.accuracy[0].figures["image_auroc"] == figures["image_auroc"]
    assert f"image AUROC {rounding.figure(figures['image_auroc'])}" in printed.out
    # The last words are what it comes to; what the threshold stage said is not said again.
    assert [line.partition(":")[0] for line in printed.out.splitlines()[-2:]] == ["verdict", "next step"]
    assert "lies at the edge" not in printed.err


def test_few_images_are_cross_fitted_and_it_is_said(
    tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = settings([text for text in PATCHCORE if not text.startswith("held_out")])
    assert call("patchcore", tiny_root, out, *asked, "--skip", "evaluation") == 0
    printed = capsys.readouterr()
    assert "note: 24 normal images are fewer than 100: cross-fitted, in 20 folds" in printed.err
    assert "24 normal images learned, cross-fitted in 20 folds" in printed.out
    assert (
        "Expect up to an estimated 12 in 100 normal parts rejected until you add 275 images and train again."
        in printed.out
    )
    with open_bundle(out / f"{CATEGORY}.flaw") as bundle:
        thresholds = bundle.manifest.thresholds
    assert thresholds is not None
    assert (thresholds.image.images, thresholds.image.guarantee) == (24, "estimated")
    # A second run goes on with it: settings are those of the run.
    assert call("patchcore", tiny_root, out, *asked, "--skip", "train", "--skip", "evaluation") == 0


@pytest.mark.parametrize(
    ("method", "count", "given", "folds"),
    [
        ("patchcore", 2, set(), 0),  # too few, as train says
        ("padim", 3, set(), -1),
        ("patchcore", 9, set(), -1),
        ("patchcore", 20, set(), -1),
        ("patchcore", 21, set(), 20),
        ("padim", 99, {"seed"}, 20),
        ("padim", 100, set(), 0),
        ("padim", 40, {"held_out"}, 0),
        ("padim", 40, {"held_out_minimum"}, 0),
        ("padim", 40, {"cross_fit"}, 0),
        ("stfpm", 40, set(), 0),
    ],
)
def test_what_was_asked_for_and_enough_images_are_left_as_they_are(
    method: str, count: int, given: set[str], folds: int
) -> None:
    config, _ = build_config(method)
    dataset = SimpleNamespace(train_good=[None] * count)
    found, notes = training_choice.cross_fit_if_few(config, dataset, given)  # type: ignore[arg-type]
    assert pipeline.folds_of(found) == folds
    assert len(notes) == (folds != 0)


def test_auto_takes_what_suits_the_images_and_says_why(
    tmp_path: Path, tiny_root: Path, traced_features: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call("auto", tiny_root, out, *settings(PATCHCORE), "--budget-ms", "1e9") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("advice ")
    assert "images are few" in printed.err
    assert "1e+09 ms an image are kept" in printed.err
    record = read_run(out / "run").record
    assert record.kind == "detector"
    # What the user sets wins over what is proposed.
    assert record.config.preprocessing.size == (64, 64)
    # On the run that is there it is the method of that run.
    assert call("auto", tiny_root, out, *skip("train", "evaluation"), "--budget-ms", "0.001") == 0
    printed = capsys.readouterr()
    assert "advice" not in printed.out
    assert "was not measured" in printed.err


def test_a_file_of_settings_may_name_the_data(
    tmp_path: Path, tiny_root: Path, traced_features: None, calls: list[str]
) -> None:
    lines = [text.replace("=", ": ", 1) for text in PATCHCORE if not text.startswith("stages")]
    lines += ["stages: [1, 2]", f"data_path: {tiny_root}", f"category: {CATEGORY}"]
    (tmp_path / "settings.yml").write_text("\n".join(lines))
    out = tmp_path / "out"
    arguments = ["--config", str(tmp_path / "settings.yml"), "--out", str(out), "--skip", "evaluation"]
    assert cli.run(["pipeline", "patchcore", *arguments]) == 0
    assert calls == ["train_detector", "export_run", "calibrate_bundle"]
    assert names_in(out) == {"run", f"{CATEGORY}.flaw"}


def test_an_image_that_cannot_be_scored_is_told_and_ends_with_status_1(
    tmp_path: Path, tiny_root: Path, fitted: Path, traced_features: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    broken = normal_images(root)[0]
    broken.write_bytes(broken.read_bytes()[:200])
    assert call("patchcore", root, fitted, "--skip", "train") == 1
    assert f"fault: {broken}" in capsys.readouterr().err
    assert len(json.loads((fitted / "evaluation.json").read_text())["faults"]) == 1


# --- what is skipped


@pytest.mark.parametrize(
    ("skipped", "called", "announced"),
    [
        (
            ["train"],
            ["export_run", "calibrate_bundle", "evaluate_bundle", "write_report", "record_accuracy"],
            ["skipped", "s", "s", "s"],
        ),
        (
            ["train", "threshold"],
            ["export_run", "evaluate_bundle", "write_report", "record_accuracy"],
            ["skipped", "s", "skipped", "s"],
        ),
        (["train", "evaluation"], ["export_run", "calibrate_bundle"], ["skipped", "s", "s", "skipped"]),
        (["train", "threshold", "evaluation"], ["export_run"], ["skipped", "s", "skipped", "skipped"]),
        (["threshold", "evaluation"], ["train_detector", "export_run"], ["s", "s", "skipped", "skipped"]),
    ],
)
def test_a_stage_that_is_skipped_is_not_run(
    fitted: Path,
    tiny_root: Path,
    traced_features: None,
    calls: list[str],
    capsys: pytest.CaptureFixture[str],
    skipped: list[str],
    called: list[str],
    announced: list[str],
) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (fitted / "run").glob("*.*")}
    asked = [] if "train" in skipped else ["--overwrite"]
    assert call("patchcore", tiny_root, fitted, *settings(PATCHCORE), *skip(*skipped), *asked) == 0
    assert calls == called
    assert [time for _, time in stages_of(capsys.readouterr().out)[:4]] == announced
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (fitted / "run").glob("*.*")}
    assert (before == after) == ("train" in skipped)
    with open_bundle(fitted / f"{CATEGORY}.flaw") as bundle:
        assert (bundle.manifest.thresholds is None) == ("threshold" in skipped)
    is_evaluated = "evaluation" not in skipped
    assert ((fitted / "report" / "report.html").is_file(), (fitted / "evaluation.json").is_file()) == (
        is_evaluated,
        is_evaluated,
    )
    if is_evaluated:
        figures = json.loads((fitted / "evaluation.json").read_text())
        assert 0.0 <= figures["image_auroc"] <= 1.0
        assert (figures["confusion"] is None) == ("threshold" in skipped)


def test_without_thresholds_it_is_said_what_is_left_out(
    fitted: Path, tiny_root: Path, traced_features: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("patchcore", tiny_root, fitted, "--skip", "train", "--skip", "threshold") == 0
    printed = capsys.readouterr()
    assert "false rejects and misses are not counted" in printed.out
    assert "note: The bundle has no thresholds, so nothing was decided." in printed.err


def test_of_normal_test_images_alone_false_rejects_are_counted(
    tmp_path: Path, fitted: Path, tiny_root: Path, traced_features: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "data", ignore=shutil.ignore_patterns("pitting", "stain")))
    assert call("patchcore", root, fitted, "--skip", "train") == 0
    printed = capsys.readouterr()
    assert re.search(r"evaluation +\S+ s +false rejects \d of 6 on 6 images, 0 anomalous: ", printed.out)
    assert "verdict: Half of it is measured. It rejected " in printed.out
    assert {"evaluation.json", "report"} <= set(names_in(fitted))


def test_a_dataset_without_test_images_is_not_evaluated_and_older_figures_are_named(
    tmp_path: Path, fitted: Path, tiny_root: Path, traced_features: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "data", ignore=shutil.ignore_patterns("test")))
    assert call("patchcore", root, fitted, "--skip", "train") == 0
    printed = capsys.readouterr()
    assert ("evaluation", "skipped") in stages_of(printed.out)
    assert f"{CATEGORY} has no test images" in printed.out
    assert "earlier bundle" not in printed.err
    assert names_in(fitted) == {"run", f"{CATEGORY}.flaw"}
    (fitted / "evaluation.json").write_text("{}")
    assert call("patchcore", root, fitted, "--skip", "train") == 0
    expected = f"note: Of an earlier bundle, not of this one: {fitted / 'evaluation.json'}."
    assert expected in capsys.readouterr().err


# --- the extractor of ddad


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone_weights(tmp_path_factory.mktemp("weights") / "weights.safetensors", NETWORK)


def leave_export(monkeypatch: pytest.MonkeyPatch, calls: list[str] | None = None) -> None:
    """Let pipelines export nothing: tracing takes seconds."""

    def exported(*arguments: Any, **named: Any) -> Any:
        if calls is not None:
            calls.append("export_run")
        return SimpleNamespace(files={})

    monkeypatch.setattr(pipeline, "export_run", exported)


@pytest.fixture(scope="module")
def denoised(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path, weights: Path) -> Path:
    """The folder of a pipeline whose settings asked for an extractor, which was skipped."""
    out = tmp_path_factory.mktemp("ddad") / "out"
    asked = [*settings([*DDAD, "extractor=autoencoder"]), "--weights", str(weights)]
    with pytest.MonkeyPatch.context() as patched:
        leave_export(patched)
        assert call("ddad", tiny_root, out, *asked, *skip("extractor", "threshold", "evaluation")) == 0
    return out


def copied(denoised: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(denoised, tmp_path / "out"))


def tensors_of(run: Path, part: str) -> dict[str, torch.Tensor]:
    weights = safetensors.torch.load_file(run / "weights.safetensors")
    return {name: value for name, value in weights.items() if name.startswith(part)}


def is_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def record_of(out: Path) -> RunRecord:
    return read_run(out / "run").record


def test_without_the_extractor_the_backbone_stays_as_it_was(denoised: Path, weights: Path) -> None:
    assert record_of(denoised).config.extractor == "none"  # type: ignore[union-attr]
    start = safetensors.torch.load_file(weights)
    backbone = {
        name.removeprefix("backbone."): value for name, value in tensors_of(denoised / "run", "backbone.").items()
    }
    assert backbone
    assert is_same(backbone, {name: start[name] for name in backbone})
    assert not (denoised / "run" / "extractor").exists()


@pytest.mark.slow
def test_the_extractor_is_trained_on_the_denoiser_that_is_there_as_if_both_were_trained_at_once(
    tmp_path: Path,
    tiny_root: Path,
    denoised: Path,
    weights: Path,
    calls: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = copied(denoised, tmp_path)
    # Of the settings only what changes has to be said again.
    more = ["--set", "extractor=autoencoder", "--weights", str(weights), *skip("train", "threshold")]
    assert call("ddad", tiny_root, out, *more) == 0
    assert [name for name, time in stages_of(capsys.readouterr().out) if time == "s"] == [
        "extractor",
        "export",
        "evaluation",
        "pipeline",
    ]
    assert calls == ["train_detector", "export_run", "evaluate_bundle", "write_report", "record_accuracy"]
    assert is_same(tensors_of(out / "run", "denoiser."), tensors_of(denoised / "run", "denoiser."))
    assert len(tensors_of(out / "run", "denoiser.")) > 10
    assert not is_same(tensors_of(out / "run", "backbone."), tensors_of(denoised / "run", "backbone."))
    had, has = record_of(denoised), record_of(out)
    assert has.rule != had.rule
    assert has.facts["denoiser_command"] == had.command
    assert has.facts["best_epoch"] == had.facts["best_epoch"]
    for name in ("metrics.jsonl", "previews", "extractor/metrics.jsonl", "extractor/previews"):
        assert (out / "run" / name).exists()
    assert not (out / "run.training").exists()

    with open_bundle(out / f"{CATEGORY}.flaw") as bundle:
        assert bundle.manifest.thresholds is None
        assert bundle.manifest.evidence.accuracy[0].images == 12

    config = build_config("ddad", dict(map(parse_assignment, [*DDAD, "extractor=autoencoder"])))[0]
    at_once = train_detector(config, open_dataset(tiny_root, CATEGORY), tmp_path / "run", weights=weights)
    assert (out / "run" / "weights.safetensors").read_bytes() == (tmp_path / "run" / "weights.safetensors").read_bytes()
    assert (has.rule, has.config, has.training) == (at_once.rule, at_once.config, at_once.training)
    assert {name: has.facts[name] for name in at_once.facts} == at_once.facts


def test_a_training_of_the_extractor_that_was_killed_goes_on(
    tmp_path: Path,
    tiny_root: Path,
    denoised: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    leave_export(monkeypatch)
    out = copied(denoised, tmp_path)
    more = [*settings(["extractor=autoencoder", "extractor_epochs=2", "checkpoint_every=1"]), "--weights", str(weights)]
    more += skip("train", "threshold", "evaluation")
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    assert call("ddad", tiny_root, whole, *more) == 0
    with killed_at_checkpoint():
        call("ddad", tiny_root, out, *more)
    assert is_same(tensors_of(out / "run", ""), tensors_of(denoised / "run", ""))
    assert call("ddad", tiny_root, out, *more) == 2
    assert "Go on with --resume latest" in capsys.readouterr().err
    # It is the extractor's part on this denoiser: the training of another denoiser cannot take it over.
    assert call("ddad", tiny_root, out, *settings(DDAD), *more[:-6], "--resume", "latest") == 2
    assert "expected the weights that the training was begun with" in capsys.readouterr().err
    assert call("ddad", tiny_root, out, *more, "--resume", "latest") == 0
    assert is_same(tensors_of(out / "run", ""), tensors_of(whole / "run", ""))


def test_a_run_is_left_as_it_is_where_its_extractor_is_skipped_or_not_asked_for(
    tmp_path: Path, tiny_root: Path, denoised: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_export(monkeypatch, calls)
    out = copied(denoised, tmp_path)
    before = (out / "run" / "run.json").read_bytes()
    rest = skip("train", "threshold", "evaluation")
    assert call("ddad", tiny_root, out, *settings([*DDAD, "extractor=adaptation"]), *rest, *skip("extractor")) == 0
    assert call("ddad", tiny_root, out, *rest) == 0
    assert calls == ["export_run", "export_run"]
    assert (out / "run" / "run.json").read_bytes() == before


def test_a_finished_run_is_not_begun_anew_by_who_asks_to_go_on(
    tmp_path: Path, tiny_root: Path, denoised: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(denoised, tmp_path)
    before = files_of(out)
    assert call("ddad", tiny_root, out, *settings(DDAD), "--resume", "latest") == 2
    assert (
        f"{out / 'run'}: expected an unfinished training to go on with, got a finished run" in capsys.readouterr().err
    )
    assert calls == []
    assert files_of(out) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "epochs=5"], "epochs: expected 1, with which {run} was trained, got 5"),
        (["--set", "smoothing=5"], "smoothing: expected 3, with which {run} was trained, got 5"),
        (["--set", "extractor=autoencoder", "--set", "widths=8,8"], "widths: expected (8, 16), with which"),
        (["--set", "extractor=autoencoder", "--seed", "1"], "seed: expected 0, with which"),
        (["--set", "extractor=autoencoder", "--set", "noise=simplex"], "noise: expected 'gaussian', with which"),
        (["--set", "extractor=autoencoder", "--data", "{fewer}"], "expected the normal training images that {run} was"),
        (["--weights", "{picture}"], "expected the weights that {run} was trained with (file sha256:"),
        (["--weights", "nowhere"], "nowhere: expected the weights that"),
        (["--resume", "latest"], "resume: expected a training to resume, got --skip train"),
        (["--data", "{other}", "--category", "other"], "{run}: expected a run of other, got one of steel"),
    ],
)
def test_what_does_not_fit_the_run_that_is_there_is_refused(
    tmp_path: Path,
    tiny_root: Path,
    denoised: Path,
    weights: Path,
    calls: list[str],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    fewer = Path(shutil.copytree(tiny_root, tmp_path / "fewer"))
    next((fewer / CATEGORY / "train" / "good").iterdir()).unlink()
    shutil.copytree(tiny_root / CATEGORY, tmp_path / "others" / "other")
    places = {"run": denoised / "run", "fewer": fewer, "other": tmp_path / "others", "picture": tiny_root}
    places["picture"] = normal_images(tiny_root)[0]
    before = (denoised / "run" / "run.json").read_bytes()
    default = [] if "--weights" in more else ["--weights", str(weights)]
    options = [*default, *(option.format(**places) for option in more)]
    assert call("ddad", tiny_root, denoised, *skip("train"), *options) == 2
    error_lines = capsys.readouterr().err.strip().splitlines()
    assert len(error_lines) == 1
    assert message.format(**places) in error_lines[0]
    assert calls == (["train_detector"] if "extractor=autoencoder" in more else [])
    assert (denoised / "run" / "run.json").read_bytes() == before
    assert not (denoised / "run.training").exists()


def test_a_denoiser_serves_an_extractor_alone_and_a_run_that_is_whole(
    tmp_path: Path, tiny_root: Path, denoised: Path, patchcore_run: Path
) -> None:
    out = copied(denoised, tmp_path)
    dataset, chosen = open_dataset(tiny_root, CATEGORY), dict(map(parse_assignment, DDAD))
    without = build_config("ddad", chosen)[0]
    with pytest.raises(ArgumentError, match="extractor: expected ddad with an extractor to train"):
        train_detector(without, dataset, tmp_path / "new", ready=read_run(out / "run"))
    config = build_config("ddad", {**chosen, "extractor": "autoencoder"})[0]
    with pytest.raises(ArgumentError, match="expected a run of ddad, got one of patchcore"):
        train_detector(config, dataset, tmp_path / "new", ready=read_run(patchcore_run))
    (out / "run" / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"expected a whole run, got one without metrics\.jsonl"):
        train_detector(config, dataset, tmp_path / "new", ready=read_run(out / "run"))
    assert not (tmp_path / "new").exists()


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["autoencoder"], "METHOD: expected one of patchcore,"),
        (["patchcore", "--skip", "train"], "run: expected a run, because --skip train uses an earlier one, got none"),
        (["patchcore", "--skip", "extractor"], "--skip extractor: expected it with ddad, got it with patchcore"),
        (["patchcore", "--skip", "export"], "--skip: expected one of train,"),
        (["patchcore", "--resume", "latest"], "expected a method that is trained in epochs, got one that is fitted"),
        (["patchcore", "--false-reject-rate", "1.5"], "false-reject rate: expected a fraction"),
        (["patchcore", "--confidence", "0"], "confidence: expected a fraction"),
        (["patchcore", "--set", "held_out=0.0"], "held_out: expected above 0, because thresholds need normal images"),
        (["patchcore", "--set", "steps=3"], "steps: is no setting of patchcore"),
        (["patchcore", "--smallest-defect", "3"], "--smallest-defect: expected it with METHOD auto"),
        (["auto", "--smallest-defect", "nan"], "smallest defect: expected 0 to 8192"),
        (["padim", "--budget-ms", "-1"], "--budget-ms: expected a positive number"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(arguments[0], tiny_root, tmp_path / "out", *arguments[1:]) == 2
    error_lines = capsys.readouterr().err.strip().splitlines()
    assert len(error_lines) == 1
    assert message in error_lines[0]
    assert not (tmp_path / "out").exists()


def test_the_data_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["pipeline", "padim", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: --data: expected the dataset's folder, got none. Say --data ROOT.\n"


def test_the_run_that_is_there_must_be_of_the_method(
    fitted: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("padim", tiny_root, fitted, "--skip", "train") == 2
    assert "METHOD: expected patchcore, the method of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", f"{CATEGORY}.flaw"])
def test_a_folder_of_someone_else_is_refused_before_the_work(
    tmp_path: Path, tiny_root: Path, calls: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    precious = tmp_path / name / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    assert call("patchcore", tiny_root, tmp_path) == 2
    assert "got a folder with other files" in capsys.readouterr().err
    assert calls == []
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["out", "out/report"])
def test_a_file_in_the_place_of_a_folder_is_refused_before_the_work(
    tmp_path: Path, tiny_root: Path, calls: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert call("patchcore", tiny_root, tmp_path / "out") == 2
    assert f"{tmp_path / name}: expected a folder, got a file" in capsys.readouterr().err
    assert calls == []


def test_a_category_that_names_another_folder_is_refused(
    tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = normal_images(tiny_root)[0]
    root = tmp_path / "data"
    root.mkdir()
    shutil.copy(image, root / "a.png")
    record = {"filename": "a.png", "label": 0, "label_name": "good", "clsname": "../outside"}
    (root / "train.json").write_text(json.dumps(record) + "\n")
    arguments = ["--data", str(root), "--category", "../outside", "--out", str(tmp_path / "out")]
    assert cli.run(["pipeline", "patchcore", *arguments]) == 2
    assert "category: expected a name that a folder can have, got '../outside'" in capsys.readouterr().err
    assert not (tmp_path / "outside.flaw").exists()
