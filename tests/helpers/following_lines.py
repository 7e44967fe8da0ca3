"""What a test of a line that follows a tag asks of it, and waits for."""

from __future__ import annotations

from typing import Any

import msgspec
from line_stand_ins import wait_until
from oci_registry import OciRegistry
from released_bundles import Maker, follower
from swapped_lines import SWAP_S

from flawscope.runtime.line.config_file import ReadConfig
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.rollout.rollout_status import RolloutStatus


def following(
    maker: Maker, source: dict[str, Any] | None = None, *, backend: str | None = None, **options: Any
) -> ReadConfig:
    """Return the configuration of a line that follows a folder; it looks at once, and then very often."""
    read = follower(maker, source or {"kind": "folder", "path": "releases"}, **options)
    (station,) = read.config.stations
    (view,) = station.views
    assert view.rollout is not None
    # Below what a configuration may say.
    view = msgspec.structs.replace(view, rollout=msgspec.structs.replace(view.rollout, every_s=0.02))
    if backend is not None:
        view = msgspec.structs.replace(view, backend=backend)
    stations = (msgspec.structs.replace(station, views=(view,)),)
    config = msgspec.structs.replace(read.config, stations=stations, http=None)
    return ReadConfig(config, read.path, read.sha256)


def registered(server: OciRegistry) -> dict[str, Any]:
    return {"kind": "registry", "url": server.place, "timeout_s": 5.0}


def rollout_of(line: Line) -> RolloutStatus:
    (status,) = line.status().rollouts
    return status


def until(line: Line, *states: str) -> RolloutStatus:
    """Wait until the release is in one of some states."""
    wait_until(lambda: rollout_of(line).state in states, SWAP_S)
    return rollout_of(line)


def until_problem(line: Line, words: str) -> RolloutStatus:
    wait_until(lambda: words in rollout_of(line).problem, SWAP_S)
    return rollout_of(line)


def in_force(line: Line) -> str:
    return line.stations["top"].measures["cam0"].bundle


def looks_again(line: Line, server: OciRegistry) -> None:
    """Wait until the source was asked several times more."""
    before = len(server.asked("manifests"))
    wait_until(lambda: len(server.asked("manifests")) >= before + 4)
