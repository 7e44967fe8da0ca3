"""The one place where a training speaks to an experiment tracker; off unless it was asked for.

    with tracking("mlflow", "runs/bottle", settings):   # what `--track mlflow` does
        ...                                             # the loop calls track_epoch, the command track_figures

Trackers are services of others, often on another machine: what fails there is said once, and the training goes on.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.terminal import echo


class Tracker(Protocol):
    """A run of an experiment tracker. It is made with a name and settings; any error of it is an exception."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None: ...

    @property
    def place(self) -> str:
        """Where the run is to be seen, for people."""

    def log(self, figures: Mapping[str, float], step: int | None) -> None:
        """Record figures, of a step (batches so far) or of the whole run."""

    def image(self, path: Path, step: int) -> None:
        """Record an image file of a step."""

    def finish(self, *, failed: bool) -> None:
        """End the run."""


class TrackerRow(NamedTuple):
    """A tracker of the table.

    Attributes:
        place: `module:class`, imported when it is asked for.
        package: Distribution that it needs.
        extra: Extra of flawscope that installs it.
    """

    place: str
    package: str
    extra: str


TRACKERS: Mapping[str, TrackerRow] = {
    "mlflow": TrackerRow("flawscope.training.tracking.mlflow:MlflowTracker", "mlflow-skinny", "mlflow"),
    "wandb": TrackerRow("flawscope.training.tracking.wandb:WandbTracker", "wandb", "wandb"),
}
"""Name behind `--track` -> its row."""


class _Tracking:
    """A tracker whose failures end nothing: after the first one it is not called any more."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._is_lost = False

    def do(self, what: str, *arguments: Any, **named: Any) -> None:
        """Call a method of the tracker."""
        if self._is_lost:
            return
        try:
            getattr(self._tracker, what)(*arguments, **named)
        # Anything: these packages raise errors of their transports and databases.
        except Exception as err:
            self._is_lost = True
            told = " ".join(str(err).split()) or type(err).__name__
            echo(f"note: {self._name} takes nothing any more, and the training goes on without it: {told}", err=True)


_current: ContextVar[_Tracking | None] = ContextVar("tracking", default=None)


@contextmanager
def tracking(name: str | None, run: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Tell a tracker of what happens inside; None tells nobody.

    Args:
        name: Name of the tracker, one of `TRACKERS`.
        run: What the run is called there.
        settings: What it is made with: the method's settings, dataset, command.

    Raises:
        ArgumentError: If there is no such tracker, or it does not begin a run, before any work was done.
        MissingExtra: If its package is not installed.
    """
    if name is None:
        yield
        return
    current = _Tracking(name, _begin(name, run, settings))
    token = _current.set(current)
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        _current.reset(token)
        current.do("finish", failed=has_failed)


def track_epoch(line: Mapping[str, Any], preview: Path) -> None:
    """Record the figures of an epoch, a line of `metrics.jsonl`, and its preview if there is one."""
    if (current := _current.get()) is None:
        return
    step = int(line["step"])
    current.do("log", _numbers({name: value for name, value in line.items() if name != "step"}), step)
    if preview.is_file():
        current.do("image", preview, step)


def track_figures(figures: Mapping[str, Any]) -> None:
    """Record figures of the whole run; what is no finite number is left out."""
    if (current := _current.get()) is not None:
        current.do("log", _numbers(figures), None)


def _begin(name: str, run: str, settings: Mapping[str, Any]) -> Tracker:
    if name not in TRACKERS:
        raise ArgumentError(f"--track: expected one of {', '.join(TRACKERS)}, got {name!r}.")
    row = TRACKERS[name]
    module, _, attribute = row.place.partition(":")
    try:
        tracker: type[Tracker] = getattr(importlib.import_module(module), attribute)
        begun = tracker(run, settings)
    except ImportError as err:
        raise MissingExtra(f"--track {name}", row.package, row.extra) from err
    # Anything, as above; but now nothing is lost by ending, and who asked for a tracker wants it.
    except Exception as err:
        told = " ".join(str(err).split()) or type(err).__name__
        raise ArgumentError(f"--track {name}: expected a run to begin there, got: {told}") from err
    echo(f"{name}: {begun.place}", err=True)
    return begun


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
