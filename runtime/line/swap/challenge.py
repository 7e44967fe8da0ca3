"""The site's own parts: good ones that must be accepted and defects that must be rejected, as files in folders."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.files import is_litter, storage_errors
from flawscope.open_files import list_folder, read_regular
from flawscope.runtime.line.line_config import StationOptions
from flawscope.runtime.line.parts import ViewRecord
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station.view import InWork, View

_WANTED: dict[str, Literal["accept", "reject"]] = {"must_accept": "accept", "must_reject": "reject"}
_IMAGE_S = 60.0
"""Longest time of one image."""
_MOST_NAMED = 5
"""Most parts that a message names."""
_MOST_BYTES = 1 << 30


class ChallengeFailed(FlawscopeError):
    """A part was decided wrongly."""


@dataclass(frozen=True)
class ChallengePart:
    """A part of a challenge: its file, and the verdict that it must get."""

    path: Path
    wanted: Literal["accept", "reject"]


def challenge_folder(station: StationOptions, state: Path) -> Path:
    """Return the folder of a station's own parts.

    Args:
        station: The station.
        state: State folder of the line.
    """
    own = station.challenge.folder
    return state / "challenge" / station.name if own is None else own


def parts_of(station: StationOptions, view: str, state: Path) -> list[ChallengePart]:
    """Return the parts of a view; none where the station has none, or none of this view.

    Raises:
        ArgumentError: If the configuration names a folder without any, or it is not said of which view they are.
    """
    folder, views = challenge_folder(station, state), [one.name for one in station.views]
    found = {one: challenge_parts(folder, one, is_only_view=len(views) == 1) for one in views}
    if station.challenge.folder is not None and not any(found.values()):
        # A drive that is not there must not look like a challenge that is passed.
        raise ArgumentError(
            f"{folder}: expected the site's own parts in must_accept and must_reject, got none. Put them there, or "
            "leave `folder` out."
        )
    return found[view]


def challenge_parts(folder: Path, view: str, *, is_only_view: bool) -> list[ChallengePart]:
    """Return the parts of a view.

    Args:
        folder: Folder of the station, with `VIEW/must_accept` and `VIEW/must_reject`, or the two themselves where the
            station has one view.
        view: Name of the view.
        is_only_view: Whether the station has no other view.

    Raises:
        ArgumentError: If the station has several views, and which of them the parts are of is not said.
    """
    own = folder / view
    has_own = any((own / name).is_dir() for name in _WANTED)
    has_common = any((folder / name).is_dir() for name in _WANTED)
    if has_common and not is_only_view:
        raise ArgumentError(
            f"{folder}: expected a folder for each view, as the station has several, got must_accept or must_reject "
            f"itself. Move them to {own}."
        )
    place = own if has_own else folder
    parts = []
    for name, wanted in _WANTED.items():
        if not (place / name).is_dir():
            continue
        with storage_errors(place / name):
            files = sorted(path for path in list_folder(place / name) if not is_litter(path.name))
        parts += [ChallengePart(path, wanted) for path in files if not path.name.startswith(".")]
    return parts


def run_challenge(parts: list[ChallengePart], view: View, pause: Callable[[], None]) -> str:
    """Score all parts as the view would, without checks of the scene; return what was found, in words.

    Args:
        parts: The parts.
        view: Decides by the bundle that is challenged.
        pause: Called before each image: it raises where nobody wants the challenge any more.

    Raises:
        ChallengeFailed: If a part has another verdict than it must.
    """
    wrong = []
    for part in parts:
        pause()
        try:
            data = read_regular(part.path, _MOST_BYTES)
        except OSError as err:
            wrong.append(f"{part.path.name}: could not be read: {err.strerror or err}")
            continue
        started = time.monotonic()
        record = score_now(view, Frame(data, time.monotonic_ns(), source=part.path.name))
        if record.verdict != part.wanted:
            why = record.detail or f"score {record.score:.6g}, threshold {record.threshold:.6g}"
            wrong.append(f"{part.path.name}: expected {part.wanted}, got {record.verdict} ({why})")
        if time.monotonic() - started >= _IMAGE_S:
            break  # the inspector hangs, and would at each of the others
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise ChallengeFailed(f"{len(wrong)} of {len(parts)} parts: {'; '.join(wrong[:_MOST_NAMED])}{more}")
    rejects = sum(part.wanted == "reject" for part in parts)
    return f"{len(parts) - rejects} accepted and {rejects} rejected, as they must be"


def score_now(view: View, frame: Frame) -> ViewRecord:
    """Score one image and wait for it; what takes longer than a minute is a fault."""
    work = view.begin(frame, time.monotonic_ns() + round(_IMAGE_S * 1e9))
    if not isinstance(work, InWork):
        return work.record
    try:
        return view.finish(work, work.result.result(_IMAGE_S))
    except FutureTimeout:
        return view.missing("inference", f"no result within {_IMAGE_S:.0f} s")
