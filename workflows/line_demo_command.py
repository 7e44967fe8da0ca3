"""`flawscope line demo`: a line without hardware, with generated parts on a belt that is not there."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flawscope.errors import ArgumentError
from flawscope.runtime.line.journal.schema import FILE
from flawscope.runtime.line.line_command import counts_line, tell_end
from flawscope.runtime.line.line_stop import Stop, StoppedAtStart, end_without_its_threads
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.workflows import line_demo
from flawscope.workflows.fake_belt import FakeBelt

if TYPE_CHECKING:
    from flawscope.runtime.line.line import Line

_SAY_S = 5.0
"""Seconds between two lines of the account."""
_MOST_BYTES = 512 << 20
"""Size of the journal at which the demo ends: nobody watches it for ever. Images have their quota in line.yml."""


def _between(low: float, high: float) -> Callable[[click.Context, click.Parameter, float], float]:
    """Return a callback that refuses numbers outside of bounds, and NaN, which `click.FloatRange` takes."""

    def check(context: click.Context, option: click.Parameter, value: float) -> float:
        if not low <= value <= high:
            raise ArgumentError(f"{option.opts[0]}: expected a number from {low:g} to {high:g}, got {value}. Mend it.")
        return value

    return check


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("line-demo"))
@click.option(
    "--minutes",
    type=float,
    callback=_between(0.001, 1440),
    default=60.0,
    show_default=True,
    help="Minutes until it ends by itself, at most 1440.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port of the page on this machine, 0 for any; by default 8710, or any where that is taken.",
)
@click.option(
    "--rate",
    type=float,
    callback=_between(0.05, 50),
    default=1.0,
    show_default=True,
    help="Parts a second, from 0.05 to 50.",
)
@click.option("--open/--no-open", "is_opened", default=True, help="Open the page in a browser, where there is one.")
def line_demo_command(folder: Path, minutes: float, port: int | None, rate: float, is_opened: bool) -> int:
    """Run a line without hardware: generated parts on a fake belt, judged by a bundle that is made first.

    FOLDER, by default line-demo, gets the bundle (about a minute, offline; it needs PyTorch once), the
    configuration line.yml, and the state of the line. What is there is used again, so change line.yml as you like.
    Of 25 parts in a row 4 have a defect, and 3 are faults: a camera sends nothing, the lamp is off, a file is cut
    off. Ends with Ctrl-C, after --minutes, or when its journal has 512 MiB.
    """
    # Here and not above: --help must work without the extra.
    from flawscope.runtime.line.line import Line
    from flawscope.runtime.line.line import run as turn

    line_demo.check_packages()
    read = line_demo.on_port(line_demo.write_config(folder), port)
    if not line_demo.bundle_of(folder).exists():
        echo("making a bundle that knows generated boards: once, about a minute", err=True)
        started = time.perf_counter()
        line_demo.make_bundle(folder, command_line(), progress_bars)
        echo(f"{line_demo.bundle_of(folder)}: made in {time.perf_counter() - started:.0f} s", err=True)
    stop = Stop()
    line = Line(read, lambda text: echo(text, err=True))
    belt: FakeBelt | None = None
    try:
        with stop.at_once():
            line.start()
    except StoppedAtStart:
        line.stop()
        return end_without_its_threads()
    try:
        station = line_demo.belt_station(read)
        views = [view.name for view in station.views]
        belt = FakeBelt(line.page, station.name, views, line_demo.SIZE, rate, line.journal.last_seq)
        belt.start()
        echo(f"the page: {line.page}/   (Ctrl-C ends the line)")
        if is_opened:
            _open_page(f"{line.page}/")
        watch = _Watch(line, belt, read.config.line.state, minutes)
        turn(line, lambda: stop.is_set() or watch.is_over(), wait=stop.wait)
    finally:
        if belt is not None:
            belt.stop()
        line.stop()
    echo(f"again, with the same bundle: flawscope line demo {folder}", err=True)
    return tell_end(line)


class _Watch:
    """Says each few seconds how the line stands, and when its time is over."""

    def __init__(self, line: Line, belt: FakeBelt, state: Path, minutes: float) -> None:
        self._line, self._belt, self._journal = line, belt, state / FILE
        self._started = time.monotonic()
        self._end = self._started + 60 * minutes
        self._next = self._started + _SAY_S

    def is_over(self) -> bool:
        """Return whether it is over; called many times a second."""
        now = time.monotonic()
        if now < self._next:
            return now >= self._end
        self._next = now + _SAY_S
        for station in self._line.status().stations:
            echo(f"{now - self._started:4.0f} s  {counts_line(station)}", err=True)
        if self._belt.problem:
            echo(f"the belt could not send a part: {self._belt.problem}", err=True)
        with contextlib.suppress(OSError):  # what is wrong with the disk the line itself says
            if self._journal.stat().st_size > _MOST_BYTES:
                echo(f"{self._journal}: more than {_MOST_BYTES / 2**20:.0f} MiB, enough for a demo: it ends", err=True)
                return True
        return now >= self._end


def _open_page(url: str) -> None:
    """Open a page in the browser of a desktop; without one, a browser in the terminal would take it over."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
