"""The Python API does what the commands do: the same results, the same errors, the same notes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_dataset import CATEGORY, anomalous_images, normal_images

import flawscope
from flawscope import Bundle, FlawscopeError, Run, cli
from flawscope.config import MethodConfig, flatten
from flawscope.datasets import open_dataset
from flawscope.datasets.advice import advise
from flawscope.errors import ArgumentError
from flawscope.runs import RunRecord, read_run_record
from flawscope.workflows import api
from flawscope.workflows.api_calls import written_call

pytestmark = pytest.mark.long

SETTINGS: dict[str, Any] = {"resize": 64, "stages": [1, 2], "coreset": 90, "neighbors": 5, "sigma": 2.0}
SPLIT = {"held_out_minimum": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> tuple[Run, Bundle]:
    """A run that the API made of the tiny dataset, and the bundle of it, not calibrated."""
    folder = tmp_path_factory.mktemp("api")
    run = flawscope.fit(tiny_root, "patchcore", folder / "run", category=CATEGORY, settings=SETTINGS | SPLIT)
    return run, run.export(folder / "steel.flaw", max_batch=4)


@pytest.fixture
def bundle(tmp_path: Path, made: tuple[Run, Bundle]) -> Bundle:
    """A copy of that bundle, which a test may change."""
    return Bundle.load(shutil.copytree(made[1].path, tmp_path / "steel.flaw"))


def printed_error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return what the command line says of a mistake, without `error: `."""
    assert cli.run([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.removeprefix("error: ").rstrip("\n")


# ---- What it makes ---------------------------------------------------------------------------------------------------


def test_a_run_is_that_of_the_command_and_can_be_read_back(
    tmp_path: Path, tiny_root: Path, made: tuple[Run, Bundle]
) -> None:
    run, _ = made
    options = [part for key, value in (SETTINGS | SPLIT).items() for part in ("--set", f"{key}={value}")]
    where = ["--data", str(tiny_root), "--category", CATEGORY, "--out", str(tmp_path / "run")]
    assert cli.run(["train", "patchcore", *where, *options]) == 0
    assert (run.path / "weights.safetensors").read_bytes() == (tmp_path / "run" / "weights.safetensors").read_bytes()
    typed = Run.load(str(tmp_path / "run"))
    assert (run.method, run.category, run.images) == (typed.method, typed.category, typed.images)
    assert (run.method, run.category, run.images) == ("patchcore", CATEGORY, 19)
    assert run.settings == typed.settings
    assert run.settings["neighbors"] == 5
    assert Run.load(run.path) == run


def test_a_bundle_is_calibrated_measured_and_inspects(
    tmp_path: Path, tiny_root: Path, bundle: Bundle, made: tuple[Run, Bundle]
) -> None:
    exported = bundle.digest
    assert exported == made[1].digest
    assert bundle.thresholds is None
    done = bundle.calibrate(tiny_root, 0.3, 0.8, category=CATEGORY)
    assert bundle.thresholds == done.new
    assert (done.new.image.images, done.new.image.false_reject_rate, done.new.image.confidence) == (5, 0.3, 0.8)
    assert done.new.image.upper_bound is not None
    assert done.expectation
    calibrated = bundle.digest
    assert calibrated != exported

    figures = bundle.evaluate(tiny_root / CATEGORY, report=tmp_path / "report")
    assert (figures.images, figures.anomalous, figures.faults) == (12, 6, ())
    assert "<html" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")[:500]
    recorded = bundle.manifest.evidence.accuracy[0]
    assert recorded.figures["image_auroc"] == figures.image_auroc
    assert bundle.digest not in (exported, calibrated)
    assert bundle.digest == Bundle.load(bundle.path).digest

    with bundle.inspector("cpu") as inspector:
        results = inspector([*normal_images(tiny_root), *anomalous_images(tiny_root)])
    assert [result.decision == "reject" for result in results] == [
        result.score is not None and result.score > done.new.image.value for result in results
    ]
    assert figures.confusion is not None
    assert sum(result.decision == "reject" for result in results[6:]) == figures.confusion.anomalous.reject


def test_records_have_the_call_that_can_be_typed_again(
    tiny_root: Path, bundle: Bundle, made: tuple[Run, Bundle]
) -> None:
    bundle.calibrate(tiny_root, false_reject_rate=0.3, category=CATEGORY)
    manifest = bundle.manifest
    run, exported = made
    assert manifest.provenance.command == (
        f"flawscope.Run.load({str(run.path)!r}).export({str(exported.path)!r}, max_batch=4)"
    )
    assert manifest.threshold_changes[0].command == (
        f"flawscope.Bundle.load({str(bundle.path)!r}).calibrate(data={str(tiny_root)!r}, false_reject_rate=0.3, "
        f"category={CATEGORY!r})"
    )


def test_figures_of_a_bundle_that_is_not_to_be_changed_are_not_recorded(tiny_root: Path, bundle: Bundle) -> None:
    before = (bundle.path / "manifest.json").read_bytes()
    bundle.evaluate(tiny_root / CATEGORY, record=False)
    assert (bundle.path / "manifest.json").read_bytes() == before


def test_each_precision_gets_thresholds_of_its_own(
    bundle: Bundle, tiny_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def calibrate(path: Path, dataset: object, *, precision: str, **_: object) -> SimpleNamespace:
        asked.append(precision)
        return SimpleNamespace(precision=precision, notes=("few",))

    module = "flawscope.calibration.thresholds.calibrate"
    monkeypatch.setattr(f"{module}.precisions_of", lambda path: ("fp32", "int8"))
    monkeypatch.setattr(f"{module}.calibrate_bundle", calibrate)
    done: Any = bundle.calibrate(tiny_root, category=CATEGORY)
    assert asked == ["fp32", "int8"]
    assert done.precision == "fp32"
    assert caplog.messages == ["few", "int8: few"]
    bundle.calibrate(tiny_root, category=CATEGORY, precision="int8")
    assert asked == ["fp32", "int8", "int8"]


def test_thresholds_that_were_written_are_known_where_another_precision_fails(
    bundle: Bundle, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawscope.calibration.thresholds.calibrate.precisions_of", lambda path: ("fp32", "not there"))
    with pytest.raises(ArgumentError, match="precision: expected one the bundle has"):
        bundle.calibrate(tiny_root, category=CATEGORY)
    assert bundle.thresholds is not None
    assert bundle.digest == Bundle.load(bundle.path).digest


# ---- What it chooses -------------------------------------------------------------------------------------------------


def test_auto_takes_the_method_of_the_pipeline_and_says_why(
    made: tuple[Run, Bundle], tiny_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, Any]] = []

    def train(config: MethodConfig, *_: object, **__: object) -> RunRecord:
        asked.append(flatten(config))
        return read_run_record(made[0].path)[0]

    monkeypatch.setattr("flawscope.training.detectors.detector_training.train_detector", train)
    advice = advise(open_dataset(tiny_root, CATEGORY))
    run = flawscope.fit(tiny_root, out="run", category=CATEGORY, image_size=96, settings={"stages": [1, 2]}, seed=3)
    settings = asked[0]
    assert (settings["method"], settings["resize"], settings["seed"]) == (advice.method, (96, 96), 3)
    assert settings["stages"] == (1, 2)
    # Few images: none is held out, and the bundle brings the scores that thresholds are set on.
    assert settings["cross_fit"] == 20
    assert run.notes == (*advice.reasons, run.notes[-1])
    assert "24 normal images are fewer than 100: cross-fitted" in run.notes[-1]
    assert caplog.messages == list(run.notes)

    run = flawscope.fit(tiny_root, out="run", category=CATEGORY, settings={"held_out": 0.2})
    assert asked[1]["cross_fit"] == 0
    assert run.notes == advice.all_reasons
    assert {name: asked[1][name] for name in advice.settings} == advice.settings


def test_a_run_without_a_name_gets_one_that_is_free(
    tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken: list[Path] = []

    def train(config: object, dataset: object, out: Path, **_: object) -> None:
        assert list(out.iterdir()) == []
        taken.append(out)
        raise KeyboardInterrupt

    monkeypatch.setattr("flawscope.training.detectors.detector_training.train_detector", train)
    for before in ("runs/steel-padim-2.training", "runs/steel-padim"):
        with pytest.raises(KeyboardInterrupt):
            flawscope.fit(tiny_root, "padim", category=CATEGORY)
        Path(before).mkdir()
    with pytest.raises(KeyboardInterrupt):
        flawscope.fit(tiny_root, "padim", category=CATEGORY)
    # The second name belongs to a training that was interrupted.
    assert [path.as_posix() for path in taken] == ["runs/steel-padim", "runs/steel-padim", "runs/steel-padim-3"]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["steel-padim", "steel-padim-2.training"]


# ---- What it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "typed"),
    [
        (lambda f: flawscope.fit(f.nowhere, "padim"), "train padim --data {f.nowhere} --out {f.new}"),
        (lambda f: flawscope.fit(f.images, "padim"), "train padim --data {f.images} --out {f.new}"),
        (
            lambda f: flawscope.fit(f.root, "padim", f.new, settings={"chanels": 9}),
            "train padim --data {f.root} --out {f.new} --set chanels=9",
        ),
        (
            lambda f: flawscope.fit(f.root, "padim", f.run, settings={"resize": 64}),
            "train padim --data {f.root} --out {f.run} --set resize=64",
        ),
        (lambda f: Run.load(f.images), "export {f.images} --out {f.new}"),
        (lambda f: f.made.export(f.bundle.path), "export {f.run} --out {f.bundle.path}"),
        (
            lambda f: f.made.export(f.new, precisions="int8"),
            "export {f.run} --out {f.new} --precision int8",
        ),
        (
            lambda f: f.made.export(f.new, calibration_data=f.root),
            "export {f.run} --out {f.new} --calibration-data {f.root}",
        ),
        (lambda f: Bundle.load(f.run), "calibrate {f.run} --data {f.root}"),
        (lambda f: f.bundle.calibrate(), None),
        (
            lambda f: f.bundle.calibrate(f.root, false_reject_rate=1.5),
            "calibrate {f.bundle.path} --data {f.root} --false-reject-rate 1.5",
        ),
        (lambda f: f.bundle.evaluate(f.images), "evaluate {f.bundle.path} --data {f.images}"),
        (
            lambda f: f.bundle.evaluate(f.root, report=f.report),
            "evaluate {f.bundle.path} --data {f.root} --report {f.report}",
        ),
        (lambda f: f.bundle.inspector(precision="int8"), "score {f.bundle.path} {f.image} --precision int8"),
    ],
)
def test_a_mistake_is_told_as_on_the_command_line(
    call: Callable[[Any], object],
    typed: str | None,
    tmp_path: Path,
    tiny_root: Path,
    made: tuple[Run, Bundle],
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "images" / "train" / "good"
    images.mkdir(parents=True)
    (images / "0.gif").write_bytes(b"GIF89a")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("<html>", encoding="utf-8")
    f = SimpleNamespace(
        nowhere=tmp_path / "nowhere",
        images=tmp_path / "images",
        root=tiny_root / CATEGORY,
        image=normal_images(tiny_root)[0],
        run=made[0].path,
        made=made[0],
        bundle=bundle,
        new=tmp_path / "new",
        report=tmp_path / "report",
    )
    with pytest.raises(FlawscopeError) as raised:
        call(f)
    if typed is not None:
        assert str(raised.value) == printed_error(capsys, *typed.format(f=f).split())
    assert "expected" in str(raised.value) or "is no setting" in str(raised.value)
    assert not f.new.exists()


def test_few_images_are_enough_to_calibrate_and_it_is_said_what_they_are_worth(
    tmp_path: Path, tiny_root: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "few" / "good").mkdir(parents=True)
    for image in normal_images(tiny_root)[:5]:
        shutil.copy(image, tmp_path / "few" / "good")
    done = bundle.calibrate(tmp_path / "few" / "good")
    assert any("Too few normal images for the claim: 5 support" in note for note in done.notes)
    assert caplog.messages == list(done.notes)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: flawscope.fit("d", "patchcor"), "got 'patchcor'. Did you mean patchcore?"),
        (lambda: flawscope.fit("d", "embedding"), "expected a detector"),
        (lambda: flawscope.fit("d", "ensemble"), "flawscope bundle combine"),
        (lambda: flawscope.fit(3), "data: expected a path, got int."),  # type: ignore[arg-type]
        (lambda: flawscope.fit("d", overwrite=True), "out: expected the folder of the earlier run"),
        (lambda: flawscope.fit(".", "padim", settings=["a"]), "settings: expected names and values"),  # type: ignore[arg-type]
        (lambda: flawscope.fit(".", ["padim"]), "method: expected one of auto"),  # type: ignore[arg-type]
        (lambda: flawscope.fit("a\0"), "null character"),
        (lambda: Bundle.load(None), "path: expected a path, got NoneType."),  # type: ignore[arg-type]
    ],
)
def test_what_the_command_line_cannot_be_given_is_refused_too(
    call: Callable[[], object], told: str, tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_root)
    with pytest.raises(ArgumentError) as raised:
        call()
    assert told in str(raised.value)
    assert "runs" not in {path.name for path in tiny_root.iterdir()}


def test_a_precision_that_is_none_is_refused(tmp_path: Path, made: tuple[Run, Bundle]) -> None:
    with pytest.raises(ArgumentError, match=r"expected some of fp32, fp16, bf16, int8, got 'int4'\."):
        made[0].export(tmp_path / "new.flaw", precisions=["fp32", "int4"], calibration_data=tmp_path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run, bundle: run.export("n.flaw", 5), "precisions: expected some of fp32, .*, got 5"),
        (lambda run, bundle: run.export("n.flaw", max_batch="4"), "max_batch: expected 1 to 256, got '4'"),
        (lambda run, bundle: run.export("n.flaw", max_batch=1.5), "max_batch: expected 1 to 256, got 1.5"),
        (lambda run, bundle: bundle.calibrate(".", "1%"), "false-reject rate: expected a fraction .*, got '1%'"),
        (lambda run, bundle: bundle.calibrate(".", confidence="x"), "confidence: expected a fraction .*, got 'x'"),
        (lambda run, bundle: bundle.calibrate(".", precision=["fp32"]), "precision: expected one the bundle has"),
        (lambda run, bundle: flawscope.Inspector.load(bundle.path, threshold_overlay=5), "threshold_overlay: expected"),
    ],
)
def test_an_argument_of_another_type_is_told(
    call: Callable[[Any, Any], object],
    words: str,
    tiny_root: Path,
    made: tuple[Run, Bundle],
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_root)
    with pytest.raises(ArgumentError, match=words):
        call(made[0], bundle)


def test_what_the_system_refuses_is_told_as_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "parts/0.png")

    monkeypatch.setattr(api, "open_dataset", refuse)
    with pytest.raises(FlawscopeError, match=r"^parts/0.png: Permission denied\. Check that it is there"):
        flawscope.fit("parts", "padim")


def test_a_call_is_written_without_what_it_left_open() -> None:
    def work(
        self: object, data: str, *, rate: float = 0.01, keys: tuple[str, ...] = (), progress: object = None
    ) -> None:
        """Do nothing."""

    given = {"self": 1, "data": Path("a b"), "rate": 0.01, "keys": (), "progress": print}
    assert written_call("x", work, given) == "x.work('a b')"
    assert written_call("x", work, {**given, "rate": 1, "keys": ("é",)}) == "x.work('a b', rate=1, keys=('é',))"
