"""`flawscope line check`: everything is opened once, one image of each source is shown, and the times are added up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawscope.errors import FlawscopeError
from flawscope.files import temporary_folder
from flawscope.runtime.line.clock import SystemClock, iso
from flawscope.runtime.line.config_file import ReadConfig
from flawscope.runtime.line.gallery.disk import GB, Disk
from flawscope.runtime.line.http.listening import listener
from flawscope.runtime.line.http.tls import check_tls
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.opening import is_in_use
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.journal.schema import FILE as JOURNAL
from flawscope.runtime.line.line import scene_of
from flawscope.runtime.line.line_config import HttpOptions, ImageOptions, StationOptions, ViewOptions
from flawscope.runtime.line.measures import Measures
from flawscope.runtime.line.outputs.opening import open_output
from flawscope.runtime.line.outputs.output import Output
from flawscope.runtime.line.parts import PartRecord, ViewRecord
from flawscope.runtime.line.rollout.checking import check_release
from flawscope.runtime.line.scene.limits import SceneCheck
from flawscope.runtime.line.sinks.runner import open_sink, sink_names
from flawscope.runtime.line.sources.opening import open_source
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.station.view import InWork, View
from flawscope.runtime.line.swap.challenge import challenge_folder, parts_of, run_challenge
from flawscope.runtime.line.users.line_users import LineUsers
from flawscope.runtime.results import Result

SHARE = 0.8
"""Share of the deadline that the stages may take together."""
_REPEATS = 20
_RECORDS = 50
_WAIT_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: What was checked: `top/cam0 source`, `top times`.
        is_good: Whether it is as it must be.
        text: What was found, in one sentence.
    """

    what: str
    is_good: bool
    text: str


class _FirstImage:
    """A sink of frames that keeps the first one."""

    def __init__(self) -> None:
        self.image: Frame | None = None
        # Until it says otherwise: what is silent does not work.
        self.problem = "it was not open by then, and did not say why. Check the camera, and how busy this machine is"
        self.has_come = threading.Event()

    def frame(self, view: str, frame: Frame) -> None:
        """Keep the first image."""
        if self.image is None:
            self.image = frame
            self.has_come.set()

    def source_up(self, view: str, detail: str = "") -> None:
        """Forget why it did not work before."""
        self.problem = ""

    def source_down(self, view: str, reason: str) -> None:
        """Keep why it does not work."""
        self.problem = reason

    def skipped(self, view: str, count: int) -> None:
        """Nothing is missed by a check."""


class _NoControl:
    """A station that takes no triggers: outputs are opened and closed again."""

    def trigger(self, part_id: str = "") -> int:
        """Open no part."""
        return 0

    def acknowledge(self, actor: str) -> None:
        """Do nothing."""

    def plc_reads(self, is_read: bool) -> None:
        """Do nothing."""


def check_line(read: ReadConfig, say: Callable[[str], None], images: Callable[[str, Frame], None]) -> Iterator[Finding]:
    """Check a line that does not run, and yield what is found.

    Nothing is kept: sources, journal and outputs work in a temporary folder, and files stay where they are.

    Args:
        read: The configuration.
        say: Told what is being done.
        images: Given the first image of each view.
    """
    config = read.config
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder(_existing(config.line.state)))
        measures = Measures(config.trusted_keys, say)
        stack.callback(measures.close)
        yield _state(config.line.state, config.line.name)
        yield _disk(_existing(config.line.state), config.images)
        if config.http is not None:
            yield _users(config.line.state, config.http)
        record_ms = _record_ms(folder)
        for station in config.stations:
            scored_ms = []
            for view in station.views:
                try:
                    finding, frame = _source(view, station.name, folder)
                except FlawscopeError as err:
                    finding, frame = Finding(f"{station.name}/{view.name} source", False, str(err)), None
                if finding is not None:
                    yield finding
                if frame is not None:
                    images(f"{station.name}-{view.name}", frame)
                try:
                    measure = View(
                        view.name,
                        open_source(view, station.name, folder),
                        measures.measure_of(view),
                        SceneCheck(scene_of(view)),
                        view.crop,
                    )
                    inspector = measures.inspector_of(view)
                except FlawscopeError as err:
                    yield Finding(f"{station.name}/{view.name} bundle", False, str(err))
                    continue
                text = f"{view.bundle.name} on {inspector.backend}: {inspector.backend_reason}"
                yield Finding(f"{station.name}/{view.name} bundle", True, text)
                if frame is not None and frame.image is not None:
                    took_ms, record = _inspect(measure, frame)
                    scored_ms.append(took_ms)
                    yield Finding(f"{station.name}/{view.name} image", record.verdict != "fault", _said(record))
                yield _challenge(station, measure, config.line.state)
            yield _times(station, scored_ms, record_ms)
            for view in station.views:
                if view.rollout is not None:
                    is_good, text = check_release(view, config.trusted_keys)
                    yield Finding(f"{station.name}/{view.name} release", is_good, text)
            yield from _outputs(station)
        yield from _sinks(read)


def _disk(folder: Path, options: ImageOptions) -> Finding:
    """Look whether the disk has room for records; whether it has for images, is said."""
    disk = Disk(folder, options)
    disk.look()
    words = disk.problem or disk.words() or f"{disk.free / GB:.3g} GB are free"
    return Finding("disk", not disk.problem and disk.level != "fault", words)


def _state(folder: Path, line: str) -> Finding:
    """Look whether the state folder is one of this line, as far as it is there."""
    if folder.exists() and not folder.is_dir():
        return Finding("state", False, f"{folder}: expected a folder, got a file. Name another one.")
    if not (folder / JOURNAL).exists():
        return Finding("state", True, f"{folder}: no journal yet")
    try:
        reader = JournalReader(folder)
    except FlawscopeError as err:
        return Finding("state", False, str(err))
    reader.close()
    if reader.line != line:
        text = f"{folder}: expected the journal of line {line}, got that of line {reader.line}. Name another folder."
        return Finding("state", False, text)
    return Finding("state", True, f"{folder}: the journal of this line")


def _users(state: Path, options: HttpOptions) -> Finding:
    """Look who may ask over HTTP, and whether the address is free."""
    try:
        check_tls(options)
        if not is_in_use(state):  # a line that runs has the address itself
            listener(options).close()
        users = LineUsers.open(state, options)
    except FlawscopeError as err:
        return Finding("http", False, str(err))
    users.stop()
    if not users.count:
        return Finding("http", True, f"{options.listen}: no users: everybody on this machine may do everything")
    return Finding("http", True, f"{options.listen}: everybody has to log in; {users.count} users")


def _source(view: ViewOptions, station: str, folder: Path) -> tuple[Finding | None, Frame | None]:
    """Open a source and wait for one image."""
    what = f"{station}/{view.name} source"
    if view.source.__struct_config__.tag == "push":
        return None, None
    source, sink = open_source(view, station, folder), _FirstImage()
    source.start(sink)
    try:
        end = time.monotonic() + _WAIT_S
        while not sink.has_come.is_set() and time.monotonic() < end:
            if source.is_triggered and not sink.problem:
                source.trigger(0)
            sink.has_come.wait(0.5)
    finally:
        source.stop(5.0)
    if sink.image is None or (sink.image.is_last and sink.image.image is None):
        reason = sink.problem or "it works, but sent none: a trigger or a file is needed for one"
        return Finding(what, not sink.problem, f"no image within {_WAIT_S:g} s: {reason}"), None
    frame = sink.image
    if frame.problem:
        return Finding(what, False, f"{frame.problem}: {frame.detail}"), None
    return Finding(what, True, f"one image: {_size(frame)}"), frame


def _inspect(view: View, frame: Frame) -> tuple[float, ViewRecord]:
    """Score an image several times; returns the longest time in milliseconds, and what is on record of it."""
    longest, record = 0.0, None
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work = view.begin(frame, time.monotonic_ns() + 60 * 10**9)
        found = view.finish(work, _result(work)) if isinstance(work, InWork) else work.record
        longest = max(longest, 1e3 * (time.perf_counter() - started))
        record = record or found  # all others are equal to the one before: frozen
    assert record is not None
    return longest, record


def _result(work: InWork) -> Result:
    try:
        return work.result.result(_WAIT_S)
    except FutureTimeout:
        return Result("image", "fault", reason=f"no score within {_WAIT_S:g} s")


def _record_ms(folder: Path) -> float:
    """Return the longest time in milliseconds that a record took to be on the disk."""
    journal, longest = Journal.open(folder / "journal", "check", SystemClock()), 0.0
    try:
        for seq in range(1, _RECORDS + 1):
            done, started = threading.Event(), time.perf_counter()
            clock = SystemClock()
            part = PartRecord(
                seq, "check", "", iso(clock.utc_ns()), clock.mono_ns(), "", 1, "fault", "stopped", "a check"
            )
            journal.record(part, lambda error, done=done: done.set())  # type: ignore[misc]
            done.wait(_WAIT_S)
            longest = max(longest, 1e3 * (time.perf_counter() - started))
    finally:
        journal.close()
    return longest


def _times(station: StationOptions, scored_ms: list[float], record_ms: float) -> Finding:
    """Compare the longest times with the deadline."""
    what, allowed = f"{station.name} times", SHARE * station.deadline_ms
    if not scored_ms:
        return Finding(what, True, f"record {record_ms:.1f} ms; nothing was scored, so times are not known")
    waits_ms = record_ms if station.record == "before_accept" else 0.0
    total = sum(scored_ms) + waits_ms
    text = (
        f"decode, scene and score {sum(scored_ms):.1f} ms + record {waits_ms:.1f} ms = {total:.1f} ms, the longest of "
        f"{_REPEATS} and {_RECORDS}; allowed {allowed:.1f} ms ({SHARE:.0%} of deadline_ms {station.deadline_ms:g})"
    )
    if total > allowed:
        text += ". Raise deadline_ms, use a faster backend or precision (flawscope bench), or a faster disk"
    return Finding(what, total <= allowed, text)


def _challenge(station: StationOptions, view: View, state: Path) -> Finding:
    """Have the bundle of the configuration decide the site's own parts."""
    what = f"{station.name}/{view.name} challenge"
    try:
        parts = parts_of(station, view.name, state)
        if not parts:
            return Finding(what, True, f"no parts in {challenge_folder(station, state)}")
        return Finding(what, True, run_challenge(parts, view.judged_by(view.measure), lambda: None))
    except FlawscopeError as err:
        return Finding(what, station.challenge.on_failure == "warn", str(err))


def _outputs(station: StationOptions) -> Iterator[Finding]:
    for options in station.outputs:
        what = f"{station.name} output {options.__struct_config__.tag}"
        try:
            output: Output = open_output(options, station.name)
            output.start(_NoControl())
        except FlawscopeError as err:
            yield Finding(what, False, str(err))
            continue
        output.stop()
        yield Finding(what, True, "opened and closed")


def _sinks(read: ReadConfig) -> Iterator[Finding]:
    for name, options in zip(sink_names(read.config.sinks), read.config.sinks, strict=True):
        try:
            open_sink(options, read.config.line.name).close()
        except FlawscopeError as err:
            yield Finding(f"sink {name}", False, str(err))
            continue
        yield Finding(f"sink {name}", True, "made; nothing was sent")


def _existing(path: Path) -> Path:
    """Return the folder, or the nearest one around it that is there: what is measured is the disk of the state."""
    return path if path.is_dir() else _existing(path.parent)


def _size(frame: Frame) -> str:
    if isinstance(frame.image, bytes):
        return f"{frame.source}, {len(frame.image):,} bytes"
    image = np.asarray(frame.image)
    return f"{image.shape[1]}x{image.shape[0]} {'grey' if image.ndim == 2 else 'RGB'}, median {np.median(image):.0f}"


def _said(record: ViewRecord) -> str:
    text = (
        f"{record.verdict}, score {record.score:.4g} of {record.threshold:.4g}"
        if record.score is not None and (record.threshold is not None)
        else f"{record.verdict}: {record.reason}: {record.detail}"
    )
    return "; ".join([text, *record.notes])
