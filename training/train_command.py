"""`flawscope train`, and the options that all training commands share."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from flawscope import methods
from flawscope.config import (
    CONFIGS,
    CrossFitSettings,
    LoopSettings,
    MethodConfig,
    build_config,
    describe_settings,
    find_part,
    parse_assignment,
)
from flawscope.datasets import Dataset, open_dataset
from flawscope.drawn_check import advice_on, describe_check
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.output_options import OVERWRITE
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.training.settings import preset_names, read_settings

if TYPE_CHECKING:
    from flawscope.runs import RunRecord, SynthesisRecord

_Result = TypeVar("_Result")
_METHOD = f"{__name__}.method"
AUTO = "auto"
"""METHOD of the commands that take the method which suits the images."""

FEW_IMAGES = 20
"""Below this many normal images a run has a warning."""
FEW_FOR_A_SPLIT = 100
"""Below this many normal images cross-fitting is proposed, and `pipeline` takes it by itself: measured with 20 to 80 in
`benchmarks/few_images.py`, it bounds false rejects as twice as many images with a split do, or better."""


@dataclass(frozen=True)
class TrainingRequest:
    """What the shared options of the training commands ask for.

    Attributes:
        method: Name of the method.
        layers: Settings of the file or preset, of `--set`, and of options; later layers win.
        root: Folder of the dataset, or None where neither options nor file name one.
        category: Category below it, or None.
        weights: Safetensors file of the backbone, or None.
        resume: Resume an interrupted training.
        drawn_check: Score drawn defects after the fit.
    """

    method: str
    layers: tuple[Mapping[str, Any], ...]
    root: Path | None
    category: str | None
    weights: Path | None
    resume: bool
    drawn_check: bool

    def read_config(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> MethodConfig:
        """Return the settings; report on stderr which keys this verb does not use.

        Args:
            before: Defaults that every layer overrides.
            after: Settings that override every layer.

        Raises:
            ArgumentError: If a key or a value is unknown or out of range.
        """
        config, unused = build_config(self.method, before, *self.layers, after)
        if unused:
            verb = click.get_current_context().info_name
            echo(f"note: not used by {verb}: {', '.join(unused)}", err=True)
        return config

    def open_dataset(self) -> Dataset:
        """Index the dataset.

        Raises:
            ArgumentError: If no folder was named.
            DataError: If it has no images to train on.
        """
        if self.root is None:
            raise ArgumentError("--data: expected the dataset's folder, got none.")
        return open_dataset(self.root, self.category)


class TrainingCommand(click.Command):
    """A command with the argument METHOD; `METHOD --help` lists the settings of that method."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, but look for METHOD first."""
        # click answers `--help` while it parses, before it knows METHOD: so the arguments are parsed twice. Errors are
        # left to the second parsing. It takes a copy, because click's parser empties the list.
        with contextlib.suppress(click.UsageError):
            ctx.meta[_METHOD] = self.make_parser(ctx).parse_args(list(args))[0].get("method")
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings of METHOD, or how to list them."""
        method = str(ctx.meta.get(_METHOD))
        if method not in CONFIGS:
            # The line of usage breaks in the middle of a name.
            offered = next(parameter.type for parameter in self.params if parameter.name == "method")
            with formatter.section("Methods"):
                rows = [
                    (name, methods.METHODS[name].line) for name in cast("MethodChoice", offered).choices if name != AUTO
                ]
                formatter.write_dl(rows)
            formatter.write_paragraph()
            formatter.write_text(f"Settings of a method: {ctx.command_path} METHOD --help")
            return
        formatter.write_paragraph()
        formatter.write_text(f"What --set and the lines of a file name for {method}, with defaults:")
        for title, lines in itertools.groupby(describe_settings(method), lambda line: line.part):
            with formatter.section(title):
                formatter.write_dl([(f"{line.key}={line.default}", f"{line.line} ({line.words})") for line in lines])


class MethodChoice(click.Choice[str]):
    """Choice among the methods of some kinds, looked up in the table of methods when a value is parsed."""

    def __init__(self, *kinds: methods.MethodKind, takes_auto: bool = False) -> None:
        self._kinds = kinds
        self._more = (AUTO,) if takes_auto else ()
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        """Names of the methods that can be trained, and `auto` where it is taken."""
        return (*(name for name in methods.names(*self._kinds) if name in CONFIGS), *self._more)

    @choices.setter
    def choices(self, names: tuple[str, ...]) -> None:
        """Ignore the names that `click.Choice.__init__` sets: methods may be registered after this option is made."""


def training_options(
    *kinds: methods.MethodKind, takes_auto: bool = False
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Give a command the argument METHOD and the options of a training; its first argument is a `TrainingRequest`.

    Args:
        kinds: Kinds of methods that the command takes; all of them where none is named.
        takes_auto: Whether METHOD may be `auto`, which the command has to resolve.
    """
    options = _shared_options(kinds, takes_auto)

    def decorate(command: Callable[..., _Result]) -> Callable[..., _Result]:
        @functools.wraps(command)
        def with_request(
            *,
            method: str,
            root: Path | None,
            category: str | None,
            config_name: str | None,
            assignments: tuple[str, ...],
            backbone: str | None,
            weights: Path | None,
            image_size: int | None,
            seed: int | None,
            resume: str | None,
            no_drawn_check: bool,
            **own_options: Any,
        ) -> _Result:
            from_file = read_settings(config_name) if config_name else {}
            # Two keys of such files name the data; options win over them.
            file_root = from_file.pop("data_path", None)
            file_category = from_file.pop("category", None)
            from_options = {"backbone": backbone, "resize": image_size, "seed": seed}
            request = TrainingRequest(
                method=method,
                layers=(
                    from_file,
                    dict(parse_assignment(text) for text in assignments),
                    # Options that were not given must not override the file: None is no value for any of the three.
                    {key: value for key, value in from_options.items() if value is not None},
                ),
                root=root or (None if file_root is None else Path(str(file_root))),
                category=category or file_category,
                weights=weights,
                resume=resume is not None,
                drawn_check=not no_drawn_check,
            )
            return command(request, **own_options)

        decorated: Callable[..., _Result] = with_request
        for option in reversed(options):  # as stacked decorators do: the help lists the first option first
            decorated = option(decorated)
        return decorated

    return decorate


def _shared_options(kinds: tuple[methods.MethodKind, ...], takes_auto: bool) -> tuple[Callable[[Any], Any], ...]:
    """Return the argument METHOD and the options that all training commands share, in the order of the help."""
    return (
        click.argument("method", type=MethodChoice(*kinds, takes_auto=takes_auto)),
        click.option("--data", "root", type=click.Path(path_type=Path), help="Dataset root, or a category itself."),
        click.option("--category", help="Category below the root."),
        click.option("--config", "config_name", help=f"YAML file, or a preset: {', '.join(preset_names())}."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting; may be repeated."),
        click.option("--backbone", help="scattering (built in, no download), or a timm model."),
        click.option(
            "--weights",
            type=click.Path(path_type=Path),
            help="Safetensors file of the backbone, for offline use. Weights carry conditions (mean, std, padding, "
            "licence): FILE.json beside FILE.safetensors says them; else they are assumed, and a line says which.",
        ),
        click.option("--image-size", type=int, help="Height and width in pixels after the resize."),
        click.option("--seed", type=int, help="Seed of every random choice."),
        click.option(
            "--resume",
            type=click.Choice(["latest"]),
            help="Go on with an interrupted training, from its newest checkpoint.",
        ),
        click.option(
            "--no-drawn-check",
            is_flag=True,
            help="Leave out the check of a fitted detector with defects drawn on normal images.",
        ),
    )


def describe_run(method: str, record: RunRecord) -> str:
    """Return one line that says what a run was trained on."""
    verb = "fitted" if find_part(record.config, LoopSettings) is None else "trained"
    return (
        f"{method} {verb} on {len(record.training)} normal images of {record.category} in "
        f"{sum(record.seconds.values()):.1f} s; {describe_calibration(record)} for calibration"
    )


def describe_calibration(record: RunRecord) -> str:
    """Return where thresholds of a run's bundle can come from, a phrase."""
    if record.cross is not None:
        return f"cross-fitted in {record.cross.folds} folds"
    return f"{len(record.held_out)} held out"


def image_notes(record: RunRecord) -> tuple[str, ...]:
    """Return what to know of a run on few images, a sentence each; empty where there are enough."""
    count = len({*record.training, *record.held_out})
    notes = []
    if count < FEW_IMAGES:
        notes.append(
            f"{count} different normal images are few, below {FEW_IMAGES}: normal parts that look otherwise will be "
            "rejected, and thresholds can promise little. Add images."
        )
    can_cross = find_part(record.config, CrossFitSettings) is not None
    # A third: fewer cost the detector little.
    if can_cross and count < FEW_FOR_A_SPLIT and 3 * len(record.held_out) >= count:
        notes.append(
            f"{len(record.held_out)} of {count} normal images were held out for thresholds. --set cross_fit=20 learns "
            "from all of them, and thresholds come from all of them too."
        )
    return tuple(notes)


@click.command(cls=TrainingCommand)
@training_options()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@OVERWRITE
def train(request: TrainingRequest, out: Path, overwrite: bool) -> None:
    """Learn what good parts look like; writes a run that `flawscope export` turns into a bundle.

    PatchCore and PaDiM are fitted, not trained: there is no loss and there are no epochs. The others are trained in
    epochs; meanwhile RUN.training has their metrics, previews and checkpoints. Base, embedding and inpainting are not
    detectors: they learn to draw defects.
    """
    kind = methods.METHODS[request.method].kind
    if kind != "detector" and not request.drawn_check:
        raise ArgumentError(
            f"--no-drawn-check: expected none with {request.method}, which scores no images. Leave it out."
        )
    config, dataset = request.read_config({}, {}), request.open_dataset()
    drawn = None
    if kind == "generator":
        summary, facts = _train_synthesis(config, request, dataset, out, overwrite)
    else:
        record = _train_detector(config, request, dataset, out, overwrite)
        summary, facts, drawn = describe_run(request.method, record), record.facts, record.drawn
        for line in record.backbone.conditions:
            echo(line, err=True)
        for note in image_notes(record):
            echo(f"note: {note}", err=True)
    echo(summary)
    echo(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()))
    if drawn is not None:
        echo(f"drawn defects: {describe_check(drawn)}, in {drawn.seconds:.1f} s")
    echo(f"run: {out}")
    if drawn is not None and (advice := advice_on(drawn)) is not None:
        # Last, and on stderr: the line that must not be overlooked.
        echo(advice, err=True)


def _train_detector(
    config: MethodConfig, request: TrainingRequest, dataset: Dataset, out: Path, overwrite: bool
) -> RunRecord:
    # Imported here: torch takes seconds to import, and `--help` must work without the extra `train`.
    try:
        from flawscope.training.detectors.detector_training import train_detector
    except ModuleNotFoundError as err:
        raise MissingExtra("training", str(err.name), "train") from err
    with progress_bars() as progress:
        return train_detector(
            config,
            dataset,
            out,
            weights=request.weights,
            resume=request.resume,
            command=command_line(),
            progress=progress,
            overwrite=overwrite,
            drawn_check=request.drawn_check,
        )


def _train_synthesis(
    config: MethodConfig, request: TrainingRequest, dataset: Dataset, out: Path, overwrite: bool
) -> tuple[str, Mapping[str, object]]:
    if request.weights is not None:
        raise ArgumentError(f"--weights: expected none with {request.method}, which has no backbone. Leave it out.")
    try:
        from flawscope.training.synthesis.generator_training import train_synthesis
    except ModuleNotFoundError as err:
        raise MissingExtra("training", str(err.name), "train") from err
    with progress_bars() as progress:
        record = train_synthesis(
            config,
            dataset,
            out,
            resume=request.resume,
            command=command_line(),
            progress=progress,
            overwrite=overwrite,
        )
    return _describe_synthesis(record), record.facts


def _describe_synthesis(record: SynthesisRecord) -> str:
    """Return one line that says what a generator was trained on."""
    learned = "normal images" if record.kind == "base" else f"images of {len(record.defects)} defect types"
    seconds = sum(record.seconds.values())
    return f"{record.kind} trained on {len(record.training)} {learned} of {record.category} in {seconds:.1f} s"
