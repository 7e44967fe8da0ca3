"""Weights & Biases: one run for a training; its own variables say where to, such as WANDB_PROJECT and WANDB_MODE."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb


class WandbTracker:
    """A run of Weights & Biases, in the project `flawscope` unless WANDB_PROJECT names another.

    Args:
        name: Name of the run.
        settings: They become its configuration.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        project = os.environ.get("WANDB_PROJECT", "flawscope")
        self._run = wandb.init(project=project, name=name, config=dict(settings))

    @property
    def place(self) -> str:
        """Address of the run, or its folder without a network."""
        return str(self._run.url or self._run.dir)

    def log(self, figures: Mapping[str, float], step: int | None) -> None:
        """Record metrics of a step, or the summary."""
        if step is None:
            self._run.summary.update(dict(figures))
        else:
            self._run.log(dict(figures), step=step)

    def image(self, path: Path, step: int) -> None:
        """Record the image beside the figures of its step."""
        self._run.log({"preview": wandb.Image(str(path))}, step=step)

    def finish(self, *, failed: bool) -> None:
        """End the run and wait until all was sent."""
        self._run.finish(exit_code=int(failed))
