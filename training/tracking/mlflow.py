"""MLflow: one run for a training. Where it goes is said by MLflow's own variables, such as MLFLOW_TRACKING_URI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow

_LONGEST = 500
"""Characters of a setting: servers before MLflow 2.8 take no more."""


class MlflowTracker:
    """A run of MLflow.

    Args:
        name: Name of the run.
        settings: They become its parameters.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._run = mlflow.start_run(run_name=name)
        mlflow.log_params({key: str(value)[:_LONGEST] for key, value in settings.items()})

    @property
    def place(self) -> str:
        """Run and server."""
        return f"run {self._run.info.run_id} at {mlflow.get_tracking_uri()}"

    def log(self, figures: Mapping[str, float], step: int | None) -> None:
        """Record metrics."""
        mlflow.log_metrics(dict(figures), step=step)

    def image(self, path: Path, step: int) -> None:
        """Record the file as an artifact; its name holds its epoch."""
        mlflow.log_artifact(str(path), "previews")

    def finish(self, *, failed: bool) -> None:
        """End the run."""
        mlflow.end_run(status="FAILED" if failed else "FINISHED")
