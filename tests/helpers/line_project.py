"""A whole line for tests: a configuration, a bundle that decides by brightness, and an output that keeps a file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import yaml
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.runtime.line.config_file import ReadConfig, read_config
from flawscope.runtime.line.outputs.output import Control, Signal, State

PUSH: dict[str, Any] = {"kind": "push"}


def write_line(folder: Path, *, source: dict[str, Any] | None = None, **station: Any) -> Path:
    """Write a configuration of one station with one view, and its bundle where it is missing; returns its path.

    Args:
        folder: Where it is written; the state folder is `state` in it.
        source: The source of the view; by default images are pushed.
        **station: Further keys of the station.
    """
    bundle = folder / "tiny.flaw"
    if not bundle.exists():
        write_tiny_bundle(bundle, thresholds=tiny_thresholds(150.0))
    view = {"name": "cam0", "source": source or PUSH, "bundle": "tiny.flaw", "backend": "cpu", "threads": 1}
    config = {
        # The deadline: far above what a busy machine takes; what tests deadlines says its own.
        "line": {"name": "press", "state": "state"},
        # Images can be pushed where there is a server alone; `read_line` leaves it out.
        "http": {"listen": "127.0.0.1:0"} if (source or PUSH) == PUSH else None,
        "stations": [{"name": "top", "deadline_ms": 20_000.0, "views": [view], **station}],
    }
    path = folder / "line.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def read_line(folder: Path, **station: Any) -> ReadConfig:
    """Write a configuration as `write_line` and read it; it has no HTTP server, tests push to the station itself."""
    return without_http(read_config(write_line(folder, **station)))


def without_http(read: ReadConfig) -> ReadConfig:
    """Return a configuration without its HTTP server."""
    return dataclasses.replace(read, config=msgspec.structs.replace(read.config, http=None))


def png(value: int) -> bytes:
    """Return a PNG file of one brightness: the tiny bundle accepts up to 150."""
    return cv2.imencode(".png", np.full((16, 16, 3), value, np.uint8))[1].tobytes()


class FileOutput:
    """Appends each signal to a file as one line of JSON, on the disk before it returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def start(self, control: Control) -> None:
        pass

    def state(self, state: State) -> None:
        pass

    def verdict(self, signal: Signal) -> None:
        os.write(self._file, msgspec.json.encode(signal._asdict()) + b"\n")
        os.fsync(self._file)

    def beat(self) -> None:
        pass

    def stop(self) -> None:
        os.close(self._file)
