"""Experiment tracking: a training tells MLflow or Weights & Biases of itself, where that is asked for."""

from flawscope.training.tracking.trackers import TRACKERS, Tracker, track_epoch, track_figures, tracking

__all__ = ["TRACKERS", "Tracker", "track_epoch", "track_figures", "tracking"]
