"""The folder of `flawscope line demo`: a bundle that knows generated boards, and the configuration of a line."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import msgspec

from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.parts import write_dataset
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.files import locked, storage_errors, temporary_folder, write_text
from flawscope.progress import Progress
from flawscope.runtime.line.config_file import ReadConfig, read_config
from flawscope.runtime.line.line_config import HttpOptions, StationOptions
from flawscope.runtime.line.sources.table import PushSource
from flawscope.workflows.fake_belt import KIND, SEED

SIZE = 480
"""Side of the images in pixels."""
PORT = 8710
"""The port that is taken where nobody names one and it is free."""

_TRAIN, _HELD_OUT, _RESIZE = 200, 0.3, 192
_CONFIG = f"""\
# The line of `flawscope line demo`. Change what you like and start it again: the file is kept.
# Two cameras look at each part, a panel with two boards, and both decide by the same bundle.
# All keys: docs/line-configuration.md
line: {{name: demo, state: state}}
http: {{listen: "127.0.0.1:{PORT}"}}
images: {{quota_gb: 0.5}}
stations:
  - name: belt
    deadline_ms: 2000
    depth: 8
    views:
      - name: left
        source: {{kind: push}}
        bundle: {KIND}.flaw
        scene: {{brightness: [10, 245]}}   # a lamp that fails is a fault
      - name: right
        source: {{kind: push}}
        bundle: {KIND}.flaw
        scene: {{brightness: [10, 245]}}
"""


def check_packages() -> None:
    """Refuse to begin where packages of the line are missing: training comes first and takes a while.

    Raises:
        MissingExtra: If one is missing.
    """
    for module in ("yaml", "starlette", "uvicorn", "prometheus_client"):
        try:
            importlib.import_module(module)
        except ImportError as err:
            raise MissingExtra("the line's demo", str(err.name), "all") from err


def bundle_of(folder: Path) -> Path:
    """Return the bundle of a demo's folder, whether it is there or not."""
    return folder / f"{KIND}.flaw"


def make_bundle(folder: Path, command: str, bars: Callable[[], AbstractContextManager[Progress]]) -> None:
    """Train, export and calibrate the bundle of the demo on generated boards. It appears whole or not at all.

    Args:
        folder: The demo's folder.
        command: Command line for the records.
        bars: Opens a progress display, once for each stage.

    Raises:
        MissingExtra: If training is not installed.
        FlawscopeError: If a stage fails.
    """
    # Here and not above: torch comes with it, and a line whose bundle is there needs none.
    try:
        from flawscope.workflows.pipeline import Plan, run_pipeline
    except ModuleNotFoundError as err:
        raise MissingExtra("making the demo's bundle", str(err.name), "all") from err
    target = bundle_of(folder)
    with temporary_folder(folder) as scratch, locked(target):
        data = scratch / "data"
        with bars() as progress:
            write_dataset(
                data,
                (KIND,),
                seed=SEED,
                size=SIZE,
                train=_TRAIN,
                test_good=0,
                test_defective=0,
                progress=lambda finished, total: progress("generating boards to learn from", finished, total),
            )
        config, _ = build_config("padim", {"seed": SEED, "resize": _RESIZE, "held_out": _HELD_OUT})
        # No evaluation and no drawn check: they take longer than the rest, and the demo of the detector has them.
        plan = Plan(
            config, open_dataset(data, KIND), scratch / "work", command=command, evaluates=False, drawn_check=False
        )
        run_pipeline(plan, bars=bars)
        if not target.exists():
            with storage_errors(target):
                plan.bundle.rename(target)


def write_config(folder: Path) -> ReadConfig:
    """Write the configuration where there is none, and read it.

    Raises:
        ArgumentError: If the one that is there is wrong, or has no station that the belt can send to.
        StorageError: If it cannot be written.
    """
    path = folder / "line.yml"
    if not path.exists():
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(path, _CONFIG)
    read = read_config(path)
    belt_station(read)
    return read


def belt_station(read: ReadConfig) -> StationOptions:
    """Return the station that the belt sends to: the first one.

    Raises:
        ArgumentError: If its images are not pushed.
    """
    station = read.config.stations[0]
    if not all(isinstance(view.source, PushSource) for view in station.views):
        raise ArgumentError(
            f"{read.path}: station {station.name}: expected views with sources of the kind push, which the demo's belt "
            "sends to, got others. Use flawscope line run for this file, or name another folder."
        )
    return station


def on_port(read: ReadConfig, port: int | None) -> ReadConfig:
    """Return a configuration that listens on this machine, on a port that was asked for.

    Args:
        read: The configuration.
        port: The port, 0 for any; None for the one of the configuration, or any where it is taken or not said.
    """
    http = read.config.http
    if port is None:
        if http is not None and (http.listen != f"127.0.0.1:{PORT}" or _is_free(PORT)):
            return read
        port = 0
    listen = msgspec.structs.replace(http or HttpOptions(), listen=f"127.0.0.1:{port}", tls=None)
    return replace(read, config=msgspec.structs.replace(read.config, http=listen))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
