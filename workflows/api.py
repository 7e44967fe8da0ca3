"""The Python API: `fit`, the `Run` that it gives, and the `Bundle` that a run is exported to.

Each call does what the command of its name does, by the functions that the command calls, and raises what the command
prints: a `FlawscopeError`. Notes on a result are logged as warnings by the logger `flawscope`. docs/python.md shows it.

Nothing of training is imported before it is used: on a device without torch, `Bundle` works.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawscope import methods
from flawscope.bundle import PRECISIONS, Manifest, Thresholds, making, open_bundle
from flawscope.config import flatten
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.files import storage_errors
from flawscope.near_names import did_you_mean
from flawscope.path_kinds import path_of
from flawscope.progress import Progress, no_progress
from flawscope.runs import RunRecord, read_run_record
from flawscope.training.run_notes import detector_notes
from flawscope.unfinished import workspace_of
from flawscope.workflows.api_calls import needs, same_errors, say, written_call

if TYPE_CHECKING:
    from flawscope.calibration.evaluation.figures import Figures
    from flawscope.calibration.thresholds.calibrate import Calibration
    from flawscope.runtime import Inspector

AUTO = "auto"
"""The method that suits the images."""
RUNS = "runs"
"""Folder in the working folder for runs that were given no name."""


@same_errors()
def fit(
    data: Path | str,
    method: str = AUTO,
    out: Path | str | None = None,
    *,
    category: str | None = None,
    backbone: str | None = None,
    weights: Path | str | None = None,
    image_size: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool | Path | str = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a detector on normal images, and write its run: the first stage of `flawscope pipeline`.

    Of fewer than 100 normal images none is held out for thresholds where the method can be cross-fitted, as in
    `flawscope pipeline`; `settings={"held_out": 0.1}` holds some out.

    Args:
        data: Folder of the dataset, or of one of its categories.
        method: A detector of `flawscope train`, or `auto`: the one that suits the images, as `flawscope pipeline auto`
            takes it. `Run.notes` say why.
        out: Folder of the run. None makes a new one below `runs/` in the working folder, named after category and
            method; `Run.path` says which.
        category: Category below `data`, or `all`.
        backbone: `scattering`, which is built in, or a timm model.
        weights: Safetensors file of the backbone, for offline use.
        image_size: Height and width of the input, in pixels.
        seed: Seed of every random choice.
        settings: Settings of the method by their names; `flawscope train METHOD --help` lists them.
        resume: Go on with an interrupted training, from its newest checkpoint (True, or `latest`) or from the one at a
            path.
        overwrite: Whether an earlier run at `out` may be replaced.
        progress: Called with (task, completed, total).

    Raises:
        ArgumentError: If a method, setting or option is unknown or does not fit, or `out` is taken.
        DataError: If there are no images to learn from, or one of them is broken.
        MissingExtra: If a library for training is not installed.
        RunError: If weights cannot be read or downloaded.
        StorageError: If the run cannot be written.
    """
    command = written_call("flawscope", fit, locals())
    _check_method(method)
    if out is None and (overwrite or resume is not False):
        raise ArgumentError("out: expected the folder of the earlier run, to replace or to resume it, got none.")
    with needs("training", "train"):
        from flawscope.config import build_config
        from flawscope.training.detectors.detector_training import train_detector
        from flawscope.training.settings import rename_layers
        from flawscope.workflows.training_choice import choose_method, cross_fit_if_few
    dataset = open_dataset(path_of(data, "data"), category)
    layers, notes = rename_layers(method, _mapping(settings))
    # What was not given must not override a setting.
    options = {"backbone": backbone, "resize": image_size, "seed": seed}
    layers = (*layers, {name: value for name, value in options.items() if value is not None})
    if method == AUTO:
        advice = choose_method(dataset, layers)
        method, notes = advice.method, advice.all_reasons
        layers = (advice.settings, *layers)  # first, so that whatever was asked for wins
    config, unused = build_config(method, *layers)
    notes += (f"not used by fit: {', '.join(unused)}",) if unused else ()
    config, crossed = cross_fit_if_few(config, dataset, {name for layer in layers for name in layer})
    with _run_folder(out, f"{Path(dataset.category).name}-{method}") as folder:
        record = train_detector(
            config,
            dataset,
            folder,
            weights=None if weights is None else path_of(weights, "weights"),
            resume=resume == "latest" or (resume if isinstance(resume, bool) else path_of(resume, "resume")),
            command=command,
            progress=progress or no_progress,
            overwrite=overwrite,
        )
    run = Run(folder, record, (*notes, *crossed, *detector_notes(record)))
    say(run.notes)
    return run


def _check_method(method: str) -> None:
    """Raise ArgumentError unless a method is a detector that can be trained, or `auto`."""
    offered = (AUTO, *(name for name in methods.names("detector") if methods.METHODS[name].settings is not None))
    if method in offered:
        return
    if isinstance(method, str) and method in methods.METHODS:
        todo = (
            "Train it with flawscope train."
            if methods.METHODS[method].trainer
            else "Make it of bundles: flawscope bundle combine."
        )
        raise ArgumentError(
            f"method: expected a detector ({', '.join(offered)}), got {method!r}, which is none. {todo}"
        )
    raise ArgumentError(f"method: expected one of {', '.join(offered)}, got {method!r}.{did_you_mean(method, offered)}")


def _mapping(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise ArgumentError(
            f"settings: expected names and values, as in {{'coreset': 0.01}}, got {type(settings).__name__}."
        )
    return dict(settings)


@contextlib.contextmanager
def _run_folder(out: Path | str | None, name: str) -> Iterator[Path]:
    """Yield the folder of a run: the one that was named, or a new one below `runs/` that nobody else takes."""
    if out is not None:
        yield path_of(out, "out")
        return
    for number in itertools.count(1):
        folder = Path(RUNS) / (name if number == 1 else f"{name}-{number}")
        # A training that was interrupted keeps its checkpoints beside its name.
        if workspace_of(folder).exists():
            continue
        with storage_errors(folder), contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    try:
        yield folder
    finally:
        # Of a training that failed: the empty folder was there to hold its name.
        with contextlib.suppress(OSError):
            folder.rmdir()


@dataclass(frozen=True)
class Run:
    """A run: the folder that training wrote. `fit` makes it, `Run.load` reads one.

    Attributes:
        path: The folder.
        notes: Limits of the detector and of its settings, a sentence each.
    """

    path: Path
    _record: RunRecord = field(repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    @same_errors()
    def load(cls, path: Path | str) -> Run:
        """Read the run of a detector, which `fit` or `flawscope train` wrote.

        Raises:
            RunError: If it is missing, broken, no detector's, or written by a newer version.
        """
        folder = path_of(path, "path")
        record, _ = read_run_record(folder)
        return cls(folder, record, detector_notes(record))

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.settings["method"])

    @property
    def category(self) -> str:
        """Name of the category that it learned."""
        return self._record.category

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in force, by their names."""
        return flatten(self._record.config)

    @property
    def images(self) -> int:
        """Number of normal images that it learned from."""
        return len(self._record.training)

    @same_errors()
    def export(
        self,
        out: Path | str,
        precisions: Sequence[str] = ("fp32",),
        calibration_data: Path | str | None = None,
        *,
        category: str | None = None,
        max_batch: int = 8,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Bundle:
        """Export the run as a bundle, as `flawscope export` does; nothing is written unless its checks hold.

        Args:
            out: Bundle folder to write, `NAME.flaw`.
            precisions: `fp16`, `bf16` and `int8` are added beside `fp32` if they pass the gate.
            calibration_data: Folder of the dataset for their value ranges and the gate.
            category: Category below it.
            max_batch: Largest batch that the graphs take, 1 to 256.
            overwrite: Whether an earlier bundle at `out` may be replaced.
            progress: Called with (task, completed, total).

        Raises:
            ArgumentError: If a precision is unknown or lacks its data, or `out` is taken.
            BackendError: If no backend here computes a precision.
            GateError: If torch and graph disagree, or a precision is outside its limits.
            MissingExtra: If a library for the export is not installed.
            RunError: If the run is broken, or a tensor would be too large.
            StorageError: If the bundle cannot be written.
        """
        owner = f"flawscope.Run.load({str(self.path)!r})"
        command = written_call(owner, Run.export, locals())
        with needs("exporting", "export"):
            from flawscope.export.detectors.detector_export import export_run
            from flawscope.export.precision_options import PrecisionRequest
        named = tuple(precisions) if isinstance(precisions, list | tuple) else (precisions,)
        if unknown := [name for name in named if name not in PRECISIONS]:
            raise ArgumentError(f"precisions: expected some of {', '.join(PRECISIONS)}, got {unknown[0]!r}.")
        request = PrecisionRequest(
            precisions=tuple(dict.fromkeys(name for name in named if name != "fp32")),
            calibration=None if calibration_data is None else path_of(calibration_data, "calibration_data"),
            labelled=None,
            category=category,
        )
        given = {"calibration_data": calibration_data, "category": category}
        request.check_run(lambda name: given.get(name) is not None)
        manifest = export_run(
            self.path,
            path_of(out, "out"),
            max_batch=max_batch,
            wanted=request.open_data(),
            command=command,
            progress=progress or no_progress,
            overwrite=overwrite,
        )
        return Bundle(Path(out), manifest)


class Bundle:
    """A bundle that scores: what is shipped. `Run.export` makes it, `Bundle.load` opens one.

    Not to be mixed up with `flawscope.bundle.Bundle`, which holds the files of one open.

    Attributes:
        path: The bundle, folder or packed file.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"

    @classmethod
    @same_errors()
    def load(cls, path: Path | str) -> Bundle:
        """Open and verify a bundle.

        Raises:
            BundleError: If it is missing, broken, changed, written by a newer version, or, where this machine has
                trusted keys, not signed by one of them.
        """
        with open_bundle(path_of(path, "path")) as opened:
            return cls(opened.path, opened.manifest)

    @property
    def manifest(self) -> Manifest:
        """What `manifest.json` says, as it was read, or as `calibrate` or `evaluate` wrote it last."""
        return self._manifest

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the bundle in hexadecimal; another one after each change."""
        return self._manifest.digest

    @property
    def thresholds(self) -> Thresholds | None:
        """Its own thresholds in FP32, None before calibration."""
        return self._manifest.thresholds

    @same_errors()
    @making()  # writing one precision drops the signature, and the next is still to be scored
    def calibrate(
        self,
        data: Path | str | None = None,
        false_reject_rate: float = 0.01,
        confidence: float = 0.95,
        *,
        category: str | None = None,
        backend: str = "auto",
        precision: str | None = None,
        progress: Progress | None = None,
    ) -> Calibration:
        """Set the thresholds from normal images, and state the bound on false rejects, as `flawscope calibrate` does.

        Args:
            data: Folder of the dataset whose normal images are used, but for those that the detector has learned from.
                None takes the scores of cross-fitting, which `fit` leaves in the bundle where images are few; they are
                taken too where they are more.
            false_reject_rate: Share of normal images that may be rejected, a fraction.
            confidence: One-sided confidence of that claim, a fraction.
            category: Category below `data`.
            backend: The backend that will decide on the line: thresholds belong to it.
            precision: The precision whose thresholds are set; None sets those of each that the bundle has.
            progress: Called with (task, completed, total).

        Returns:
            What was done; for several precisions, in FP32. `new.image.value` is the threshold, `new.image.upper_bound`
            the bound, `new.image.claim` says both in a sentence, and `expectation` and `notes` say what to expect.

        Raises:
            ArgumentError: If a fraction is out of range, or the bundle lacks the precision.
            BundleError: If the bundle is broken, or was replaced meanwhile.
            DataError: If no image remains, or one of them cannot be scored.
            MissingExtra: If SciPy is not installed.
            StorageError: If the bundle cannot be changed.
        """
        command = written_call(f"flawscope.Bundle.load({str(self.path)!r})", Bundle.calibrate, locals())
        from flawscope.calibration.thresholds.calibrate import calibrate_bundle, precisions_of

        dataset = None if data is None else open_dataset(path_of(data, "data"), category)
        done: list[Calibration] = []
        for name in precisions_of(self.path) if precision is None else (precision,):
            done.append(
                calibrate_bundle(
                    self.path,
                    dataset,
                    false_reject_rate=false_reject_rate,
                    confidence=confidence,
                    backend=backend,
                    precision=name,
                    command=command,
                    progress=progress or no_progress,
                )
            )
            # After each: another precision may fail, and this one is written.
            self._read_again()
            say(done[-1].notes if name == "fp32" else (f"{name}: {note}" for note in done[-1].notes))
        return done[0]

    @same_errors()
    def evaluate(
        self,
        data: Path | str,
        report: Path | str | None = None,
        *,
        category: str | None = None,
        backend: str = "auto",
        precision: str = "fp32",
        record: bool = True,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Figures:
        """Measure the bundle on labelled test images, as `flawscope evaluate` does.

        Args:
            data: Folder of the dataset whose test images are used; of a folder of normal images alone, those that the
                bundle was made without.
            report: Folder for `report.html`, or None for no report.
            category: Category below `data`.
            backend: The backend to measure.
            precision: Precision of the graphs, one that the bundle has.
            record: Whether the figures go into the bundle's evidence.
            overwrite: Whether an earlier report may be replaced.
            progress: Called with (task, completed, total).

        Returns:
            The figures: what `flawscope evaluate --json` writes, with the same names. Images that could not be scored
            are in `faults`.

        Raises:
            ArgumentError: If the bundle lacks the precision, or a report lies there already.
            BundleError: If the bundle is broken.
            DataError: If there is no test image, or a mask cannot be read.
            MissingExtra: If a library for measuring, or for the report, is not installed.
            StorageError: If report or bundle cannot be written.
        """
        command = written_call(f"flawscope.Bundle.load({str(self.path)!r})", Bundle.evaluate, locals())
        from flawscope.calibration.evaluation.evaluate import evaluate_bundle, record_accuracy
        from flawscope.calibration.evaluation.evaluation_outputs import check_report, why_not_recorded

        folder = None if report is None else path_of(report, "report")
        if folder is not None:
            check_report(folder, overwrite=overwrite)
        why = why_not_recorded(self.path) if record else None
        evaluation = evaluate_bundle(
            self.path,
            open_dataset(path_of(data, "data"), category),
            backend=backend,
            precision=precision,
            command=command,
            progress=progress or no_progress,
        )
        figures = evaluation.figures
        faults = (f"fault: {fault.image}: {fault.reason}" for fault in figures.faults)
        say([*([] if why is None else [why]), *figures.diagnosis, *figures.notes, *faults])
        if folder is not None:
            from flawscope.calibration.evaluation.report import write_report

            write_report(evaluation, folder)
        if record and why is None:
            # Last, as on the command line: a report that cannot be written leaves the bundle as it is.
            record_accuracy(self.path, evaluation)
            self._read_again()
        return figures

    @same_errors()
    def inspector(
        self,
        backend: str = "auto",
        *,
        precision: str = "fp32",
        strict: bool = False,
        product: str | None = None,
        threads: int | None = None,
        streams: int | None = None,
    ) -> Inspector:
        """Make the bundle ready to inspect images; `Inspector.load(bundle.path, ...)` takes more and says what each is.

        Raises:
            ArgumentError: If an argument is unknown to backend or bundle.
            BackendError: If the backend is not available.
            BundleError: If the bundle is broken or does not reproduce its golden scores.
        """
        from flawscope.runtime import Inspector

        return Inspector.load(
            self.path,
            backend,
            precision=precision,
            strict=strict,
            product=product,
            threads=threads,
            streams=streams,
        )

    def _read_again(self) -> None:
        # What was written just now is not signed yet.
        with open_bundle(self.path, check_signature=False) as opened:
            self._manifest = opened.manifest
