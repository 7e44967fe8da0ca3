"""`flawscope train`, and the options that all training commands share."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from flawscope import methods
from flawscope.config import (
    CONFIGS,
    LoopSettings,
    MethodConfig,
    build_config,
    describe_settings,
    find_part,
    flatten,
    parse_assignment,
)
from flawscope.config.other_names import CATEGORY_NAMES, DATA_NAMES, RESUME_NAME
from flawscope.datasets import Dataset, open_dataset
from flawscope.drawn_check import advice_on, describe_check
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.files import check_replaceable
from flawscope.output_options import OVERWRITE
from flawscope.runs import RECORD
from flawscope.terminal import command_line, echo, progress_bars, report_as
from flawscope.training.loop.rank_environment import die_with_launcher, is_launched, read_rank_environment
from flawscope.training.loop.rank_errors import as_rank
from flawscope.training.loop.rank_launch import RankFailed, launch, own_command
from flawscope.training.loop.schedule import check_batch
from flawscope.training.run_notes import describe_generator, describe_run, generator_notes, image_notes
from flawscope.training.settings import preset_names, read_settings, rename_layers
from flawscope.training.tracking import TRACKERS, track_figures, tracking
from flawscope.unfinished import check_not_begun, find_unfinished, goes_on

if TYPE_CHECKING:
    from flawscope.runs import RunRecord, SynthesisRecord

_Result = TypeVar("_Result")
_METHOD = f"{__name__}.method"
AUTO = "auto"
"""METHOD of the commands that take the method which suits the images."""


@dataclass(frozen=True)
class TrainingRequest:
    """What the shared options of the training commands ask for.

    Attributes:
        method: Name of the method.
        layers: Settings of the file or preset, of `--set`, and of options; later layers win.
        root: Folder of the dataset, or None where neither options nor file name one.
        category: Category below it, or None.
        weights: Safetensors file of the backbone, or None.
        resume: Resume an interrupted training: from its newest checkpoint, or from this one.
        drawn_check: Score drawn defects after the fit.
        notes: What to say of names that other systems give to settings.
        track: Experiment tracker that is told, or None.
    """

    method: str
    layers: tuple[Mapping[str, Any], ...]
    root: Path | None
    category: str | None
    weights: Path | None
    resume: bool | Path
    drawn_check: bool
    notes: tuple[str, ...] = ()
    track: str | None = None

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
        for note in self.notes:
            echo(f"note: {note}", err=True)
        return config

    def open_dataset(self) -> Dataset:
        """Index the dataset.

        Raises:
            ArgumentError: If no folder was named.
            DataError: If it has no images to train on.
        """
        if self.root is None:
            raise ArgumentError("--data: expected the dataset's folder, got none. Say --data ROOT.")
        dataset = open_dataset(self.root, self.category)
        for remark in dataset.remarks:
            if remark.kind == "taken_as_good":  # what is learned as normal is never a guess that nobody hears of
                echo(f"note: {remark.path} {remark.message}", err=True)
        return dataset

    def tracking(self, config: MethodConfig, dataset: Dataset, out: Path) -> AbstractContextManager[None]:
        """Tell the experiment tracker that was asked for of what happens inside; see `training.tracking`."""
        of_data = {"data": str(dataset.root), "category": dataset.category, "command": command_line()}
        return tracking(self.track, str(out), {**flatten(config), **of_data})


class TrainingCommand(click.Command):
    """A command with the argument METHOD; `METHOD --help` lists the settings of that method."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, but look for METHOD first."""
        # click answers `--help` while it parses, before it knows METHOD: so the arguments are parsed twice. Errors are
        # left to the second parsing. It takes a copy, because click's parser empties the list.
        with contextlib.suppress(click.UsageError):
            ctx.meta[_METHOD] = self.make_parser(ctx).parse_args(list(args))[0].get("method")
        if ctx.resilient_parsing and ctx.meta.get(_METHOD) is None:
            # A shell asks for completions behind `--set`, which lacks its value: nothing is parsed then.
            ctx.meta[_METHOD] = next((word for word in args if word in CONFIGS), None)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings of METHOD, or how to list them."""
        method = str(ctx.meta.get(_METHOD))
        if method not in CONFIGS:
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
    *kinds: methods.MethodKind, takes_auto: bool = False, takes_processes: bool = False
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Give a command the argument METHOD and the options of a training; its first argument is a `TrainingRequest`.

    Args:
        kinds: Kinds of methods that the command takes; all of them where none is named.
        takes_auto: Whether METHOD may be `auto`, which the command has to resolve.
        takes_processes: Whether the command may be run by several processes together.
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
            track: str | None,
            **own_options: Any,
        ) -> _Result:
            if not takes_processes and (world := read_rank_environment().world) > 1:
                verb = click.get_current_context().info_name
                raise ArgumentError(
                    f"{verb}: expected one process, got {world} (WORLD_SIZE). Train with flawscope train, then go on "
                    "without torchrun."
                )
            from_file = read_settings(config_name) if config_name else {}
            assigned = dict(parse_assignment(text) for text in assignments)
            # Some keys name the data, the category and a checkpoint; options win over them, and --set over the file.
            named = {
                key: _named(from_file, assigned, names)
                for key, names in (("data", DATA_NAMES), ("category", CATEGORY_NAMES), ("resume", (RESUME_NAME,)))
            }
            layers, notes = rename_layers(method, from_file, assigned)
            from_options = {"backbone": backbone, "resize": image_size, "seed": seed}
            request = TrainingRequest(
                method=method,
                layers=(
                    *layers,
                    # Options that were not given must not override the file: None is no value for any of the three.
                    {key: value for key, value in from_options.items() if value is not None},
                ),
                root=root or (None if named["data"] is None else Path(named["data"])),
                category=category or named["category"],
                weights=weights,
                resume=_resume(resume or named["resume"]),
                drawn_check=not no_drawn_check,
                notes=notes,
                track=track,
            )
            return command(request, **own_options)

        decorated: Callable[..., _Result] = with_request
        for option in reversed(options):  # as stacked decorators do: the help lists the first option first
            decorated = option(decorated)
        return decorated

    return decorate


def _named(from_file: dict[str, Any], assigned: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Take what keys of a file or of `--set` name out of them; None where none of them is there."""
    found = [layer.pop(name) for layer in (from_file, assigned) for name in names if name in layer]
    return next((str(value) for value in reversed(found) if value is not None), None)


def _resume(text: str | None) -> bool | Path:
    if text is None:
        return False
    return True if text == "latest" else Path(text)


def _settings(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the settings of METHOD that begin like this, for a shell."""
    method = str(ctx.meta.get(_METHOD))
    if method not in CONFIGS:
        return []
    lines = describe_settings(method)
    return [CompletionItem(f"{line.key}=", help=line.line) for line in lines if line.key.startswith(incomplete)]


def _presets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the presets that begin like this, for a shell, and ask it for files."""
    names = [CompletionItem(name) for name in preset_names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def _shared_options(kinds: tuple[methods.MethodKind, ...], takes_auto: bool) -> tuple[Callable[[Any], Any], ...]:
    """Return the argument METHOD and the options that all training commands share, in the order of the help."""
    return (
        # The list of all as the name of the argument would break lines and messages; the help has it below.
        click.argument("method", metavar="METHOD", type=MethodChoice(*kinds, takes_auto=takes_auto)),
        click.option(
            *("--data", "--dataset", "--dataset_dir", "root"),
            type=click.Path(path_type=Path),
            help="Dataset root, or a category itself.",
        ),
        click.option("--category", "--classname", "--class_name", "category", help="Category below the root."),
        click.option(
            "--config",
            "config_name",
            shell_complete=_presets,
            help=f"YAML file, or a preset: {', '.join(preset_names())}.",
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=_settings,
            help="One setting; may be repeated.",
        ),
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
            "--resume_from_checkpoint",
            "resume",
            metavar="latest|PATH",
            help="Go on with an interrupted training, from its newest checkpoint, or from the one at PATH.",
        ),
        click.option(
            "--no-drawn-check",
            is_flag=True,
            help="Leave out the check of a fitted detector with defects drawn on normal images.",
        ),
        click.option(
            "--track", type=click.Choice(list(TRACKERS)), help="Tell this experiment tracker of the training."
        ),
    )


@click.command(cls=TrainingCommand)
@training_options(takes_processes=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train in N processes on this machine, one a GPU, that share every batch. By default one, or those that "
    "torchrun or accelerate launch started.",
)
@OVERWRITE
def train(request: TrainingRequest, out: Path, processes: int | None, overwrite: bool) -> None:
    """Learn what good parts look like; writes a run that `flawscope export` turns into a bundle.

    PatchCore and PaDiM are fitted, not trained: there is no loss and there are no epochs. The others are trained in
    epochs; meanwhile RUN.training has their metrics, previews and checkpoints. Base, embedding and inpainting are not
    detectors: they learn to draw defects.
    """
    die_with_launcher()
    place = read_rank_environment()
    if place.world > 1 and processes not in (None, place.world):
        raise ArgumentError(
            f"--processes: expected {place.world}, as were started, got {processes}. Leave it out under torchrun."
        )
    _check_kind(request)
    if place.world == 1 and processes is not None and processes > 1:
        _train_in_processes(request, out, overwrite, processes)
    else:
        with as_rank(place):
            _train(request, out, overwrite, is_writer=place.rank == 0)


def _check_kind(request: TrainingRequest) -> None:
    """Refuse options that say nothing for a kind of method."""
    kind = methods.METHODS[request.method].kind
    if kind != "detector" and not request.drawn_check:
        raise ArgumentError(
            f"--no-drawn-check: expected none with {request.method}, which scores no images. Leave it out."
        )
    if kind == "generator" and request.weights is not None:
        raise ArgumentError(f"--weights: expected none with {request.method}, which has no backbone. Leave it out.")


def _train_in_processes(request: TrainingRequest, out: Path, overwrite: bool, processes: int) -> None:
    """Start this command again, so many times at once; what is wrong with the request is said before."""
    config, _ = build_config(request.method, *request.layers)  # rank 0 says what it does not use
    _check_out(request, out, overwrite)
    if (loop := find_part(config, LoopSettings)) is not None:
        check_batch(loop.batch_size, processes)
    try:
        launch(own_command(sys.argv[1:]), processes)
    except ModuleNotFoundError as err:
        raise MissingExtra("training", str(err.name), "train") from err
    except BaseException as err:
        if found := find_unfinished(out):
            echo(f"note: {found.words}. Continue it with: {found.command}", err=True)
        if isinstance(err, RankFailed) and err.is_told:
            raise click.exceptions.Exit(err.exit_status) from err
        raise


def _train(request: TrainingRequest, out: Path, overwrite: bool, *, is_writer: bool) -> None:
    """Train, as one process or as one of several, of which rank 0 alone writes."""
    kind = methods.METHODS[request.method].kind
    if not is_writer:
        report_as(quiet=True, progress=False)
    config = request.read_config({}, {})
    if is_writer:
        _check_out(request, out, overwrite)
    dataset = request.open_dataset()
    drawn = None
    notes: tuple[str, ...]
    with request.tracking(config, dataset, out) if is_writer else contextlib.nullcontext():
        if kind == "generator":
            generator = _train_synthesis(config, request, dataset, out, overwrite)
            summary, facts, notes = describe_generator(generator), generator.facts, generator_notes(generator)
        else:
            record = _train_detector(config, request, dataset, out, overwrite)
            summary, facts, drawn = describe_run(request.method, record), record.facts, record.drawn
            notes = image_notes(record)
            for line in record.backbone.conditions:
                echo(line, err=True)
        if is_writer:
            track_figures(facts if drawn is None else {**facts, "drawn_image_auroc": drawn.image_auroc})
    if not is_writer:
        return
    for note in notes:
        echo(f"note: {note}", err=True)
    echo(summary)
    # The keys of records stay, whatever images are called by now.
    named = {key.replace("_", " ").replace("pictures", "images"): value for key, value in facts.items()}
    echo(", ".join(f"{key} {value}" for key, value in named.items()))
    if drawn is not None:
        echo(f"drawn defects: {describe_check(drawn)}, in {drawn.seconds:.1f} s")
    echo(f"run: {out}")
    if drawn is not None and (advice := advice_on(drawn)) is not None:
        # Last, and on stderr: the line that must not be overlooked.
        echo(advice, err=True)


def _check_out(request: TrainingRequest, out: Path, overwrite: bool) -> None:
    """Refuse an output that is taken before torch is imported, which takes seconds."""
    check_replaceable(out, RECORD, overwrite=overwrite or goes_on(out, request.resume))
    check_not_begun(out, request.resume)


@contextlib.contextmanager
def told_if_interrupted(out: Path) -> Iterator[None]:
    """Say how a training that is interrupted is gone on with."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        # The launcher of several processes says it for all of them.
        if not is_launched() and (found := find_unfinished(out)):
            echo(f"note: {found.words}. Continue it with: {found.command}", err=True)
        raise


def _train_detector(
    config: MethodConfig, request: TrainingRequest, dataset: Dataset, out: Path, overwrite: bool
) -> RunRecord:
    # Imported here: torch takes seconds to import, and `--help` must work without the extra `train`.
    try:
        from flawscope.training.detectors.detector_training import train_detector
    except ModuleNotFoundError as err:
        raise MissingExtra("training", str(err.name), "train") from err
    with told_if_interrupted(out), progress_bars() as progress:
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
) -> SynthesisRecord:
    try:
        from flawscope.training.synthesis.generator_training import train_synthesis
    except ModuleNotFoundError as err:
        raise MissingExtra("training", str(err.name), "train") from err
    with told_if_interrupted(out), progress_bars() as progress:
        return train_synthesis(
            config,
            dataset,
            out,
            resume=request.resume,
            command=command_line(),
            progress=progress,
            overwrite=overwrite,
        )
