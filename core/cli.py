"""The command root: `flawscope VERB`, with every verb imported only when it is called.

`flawscope score` must start fast and must not import torch, so the root knows its verbs by name alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from flawscope import __version__
from flawscope.errors import FlawscopeError

# verb -> (module:attribute, one line for --help)
VERBS = {
    "demo": ("flawscope.workflows.demo_command:demo", "Generate parts, train, export, score and report, offline."),
    "doctor": ("flawscope.runtime.doctor.doctor_command:doctor", "Show devices, backends, versions and kernels."),
    "data": ("flawscope.datasets.data_command:data", "Look at a dataset, or generate one."),
    "pipeline": (
        "flawscope.workflows.pipeline_command:pipeline",
        "Train, export, set thresholds and evaluate in one go.",
    ),
    "train": ("flawscope.training.train_command:train", "Learn what good parts look like."),
    "export": ("flawscope.export.export_command:export", "Turn a training run into a bundle."),
    "calibrate": ("flawscope.calibration.thresholds.calibrate_command:calibrate", "Set the thresholds of a bundle."),
    "evaluate": ("flawscope.calibration.evaluation.evaluate_command:evaluate", "Measure a bundle on labelled images."),
    "sampling": (
        "flawscope.calibration.evaluation.sampling_command:sampling",
        "Compare few-step samplings of ddad and dsad.",
    ),
    "score": ("flawscope.runtime.score_command:score", "Decide on images with a bundle."),
    "engine": (
        "flawscope.runtime.engines.engine_command:engine",
        "Build, list or clear TensorRT engines of this machine.",
    ),
    "bench": (
        "flawscope.runtime.bench.bench_command:bench_command",
        "Measure latency, throughput and memory of a bundle.",
    ),
    "synth": (
        "flawscope.runtime.synthesis.synth_command:synth",
        "Draw defects: support sets, boxes, texts, pictures, datasets.",
    ),
    "bundle": ("flawscope.bundle.bundle_command:bundle", "Show, verify, pack or combine bundles."),
}


# group -> command below it that is at home in another room -> module:attribute
_ELSEWHERE = {"synth": {"judge": "flawscope.workflows.utility.judge_command:judge"}}


class JoinedGroup(click.Group):
    """A group of one room with commands of others, which are imported when they are called.

    Args:
        group: The group.
        elsewhere: Name of a command -> module:attribute.
    """

    def __init__(self, group: click.Group, elsewhere: Mapping[str, str]) -> None:
        super().__init__(group.name, callback=group.callback, params=group.params, help=group.help)
        self._group, self._elsewhere = group, elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands in alphabetical order."""
        return sorted({*self._group.list_commands(ctx), *self._elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported if it is of another room."""
        if cmd_name in self._elsewhere:
            return _load(self._elsewhere[cmd_name])
        return self._group.get_command(ctx, cmd_name)


def _load(place: str) -> click.Command:
    module, _, attribute = place.partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the main job."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb."""
        if cmd_name not in VERBS:
            return None
        command = _load(VERBS[cmd_name][0])
        if cmd_name in _ELSEWHERE and isinstance(command, click.Group):
            return JoinedGroup(command, _ELSEWHERE[cmd_name])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs with their one-liners, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "FLAWSCOPE"})
@click.version_option(__version__, prog_name="flawscope")
def root() -> None:
    """Learn good parts, ship one bundle, decide on the line."""


# A group called alone shows its help. Click before 8.2 prints it itself and has no such exception: () catches nothing.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main(arguments: Sequence[str] | None = None, **extra: Any) -> None:
    """Run the command line and exit: 0 done, 1 a gate or check failed, 2 the request was wrong."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a user's mistake becomes one line on stderr."""
    try:
        status = root.main(args=arguments, prog_name="flawscope", standalone_mode=False)
    except _NO_ARGUMENTS as err:
        click.echo(err.format_message(), err=True)
        return 2
    except click.UsageError as err:
        where = f" (see flawscope {err.ctx.command_path.partition(' ')[2]} --help)" if err.ctx else ""
        return _fail(err.format_message().replace("\n", " ") + where, 2)
    except click.ClickException as err:
        return _fail(err.format_message(), 2)
    except click.Abort:
        return _fail("interrupted", 130)
    except click.exceptions.Exit as err:
        return err.exit_code
    except FlawscopeError as err:
        return _fail(str(err), err.exit_status)
    except SystemExit as err:
        # Click leaves like this where the reader of our output went away (`flawscope score ... | head`).
        return err.code if isinstance(err.code, int) else 1
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status
