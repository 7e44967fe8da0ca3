"""`flawscope line run`, `check` and `status`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from flawscope.errors import ArgumentError
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.runtime.line.clock import boot_id
from flawscope.runtime.line.line_stop import Stop, StoppedAtStart, end_without_its_threads
from flawscope.runtime.line.status import STATUS, LineStatus, StationStatus
from flawscope.terminal import echo, echo_json
from flawscope.text import NOT_JSON

if TYPE_CHECKING:
    from flawscope.runtime.line.line import Line

_OLD_S = 5.0
"""Age of a state after which the line counts as not running, whatever it says: it is written once a second."""

CONFIG = click.argument("config", type=click.Path(path_type=Path))


@click.command()
@CONFIG
def run(config: Path) -> int:
    """Run a line until it is stopped (Ctrl-C, SIGTERM), or until all of its sources have ended.

    CONFIG is the YAML file of the line; see docs/line.md. Each trigger is a part, and each part gets one verdict within
    its deadline: accept, reject or fault. What was open when the line ended last is on record as a fault. Exit status 1
    if the account of the parts is wrong, not all of it is on the disk, or a device failed and did not come back: then a
    new process may help, which is for whoever runs this one (systemd).
    """
    from flawscope.runtime.line.config_file import read_config
    from flawscope.runtime.line.line import Line
    from flawscope.runtime.line.line import run as turn
    from flawscope.runtime.line.systemd import Systemd

    stop = Stop()
    systemd = Systemd.of(os.environ)

    def say(text: str) -> None:
        systemd.say(text)
        echo(text, err=True)

    line = Line(read_config(config), say)
    try:
        with stop.at_once():
            line.start()
    except StoppedAtStart:
        systemd.stopping()
        line.stop()
        echo("stopped while it was starting; no part was judged", err=True)
        return end_without_its_threads()
    stations = "1 station" if len(line.stations) == 1 else f"{len(line.stations)} stations"
    try:
        echo(f"line {line.status().line}: running, {stations}", err=True)
        systemd.turn(line)
        turn(line, stop.is_set, wait=stop.wait, each=lambda: systemd.turn(line))
    finally:
        systemd.stopping()
        line.stop()
        systemd.close()
    return tell_end(line)


@click.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="The state as one JSON object.")
def status(config: Path, as_json: bool) -> int:
    """Show what a line last said about itself; exit status 1 if it does not run or a station is not ready."""
    from flawscope.runtime.line.config_file import read_config

    read = read_config(config)
    path = read.config.line.state / STATUS
    try:
        data = read_regular(path, RECORD_BYTES)
        said = msgspec.json.decode(data, type=LineStatus)
    except FileNotFoundError as err:
        raise ArgumentError(
            f"{path}: expected the state of a line, got none: it was never started. "
            f"Start it: flawscope line run {config}."
        ) from err
    except (OSError, *NOT_JSON) as err:
        raise ArgumentError(f"{path}: expected the state of a line, got: {err}. Start the line again.") from err
    # By the clock that does not jump: the wall clock of a line may be set while it runs.
    age_s = (time.monotonic_ns() - said.mono_ns) / 1e9
    is_running = said.is_running and said.boot_id == boot_id() and 0 <= age_s < _OLD_S
    if as_json:
        echo_json(msgspec.to_builtins(msgspec.structs.replace(said, is_running=is_running)))
    else:
        _show(said, is_running)
    is_ready = all(station.state == "ready" for station in said.stations)
    return 0 if is_running and is_ready and said.account_holds and not said.journal else 1


def _show(said: LineStatus, is_running: bool) -> None:
    echo(f"line {said.line}: {'running' if is_running else 'not running'}, as of {said.utc}, last part {said.last_seq}")
    if said.journal:
        echo(f"journal: {said.journal}")
    if not said.account_holds:
        echo("account: WRONG, parts are not accept + reject + fault + open; see the journal's event account_wrong")
    for station in said.stations:
        echo(counts_line(station))
        for last in station.challenges:
            echo(
                f"station {station.name}: challenge of {last.view} {last.when}, {last.utc}: {last.state}: {last.detail}"
            )
        for warning in station.warnings:
            echo(f"station {station.name}: warning: {warning}")
    if said.images is not None and said.images.warning:
        echo(f"images: {said.images.warning}")
    for test in said.selftests:
        problem = f", FAILED: {test.problem}" if test.problem else ""
        echo(f"self-test of bundle {test.bundle[:12]}: held {test.age_s:.0f} s ago{problem}")
    for one in said.rollouts:
        problem = f", problem: {one.problem}" if one.problem else ""
        name = f"{one.tag} ({one.release[:19]}…)" if one.release else one.tag
        echo(f"station {one.station}: release {name} of {one.view}: {one.state}: {one.detail}{problem}")
    for sink in said.sinks:
        error = f", last error: {sink.last_error}" if sink.last_error else ""
        echo(f"sink {sink.name}: sent {sink.sent}, behind {sink.behind}, errors {sink.errors}{error}")


def counts_line(station: StationStatus) -> str:
    """Return the state and the account of a station in one line."""
    reason = f" ({station.reason})" if station.reason and station.state != "ready" else ""
    return (
        f"station {station.name}: {station.state}{reason}: {station.parts} parts = {station.accept} accept + "
        f"{station.reject} reject + {station.fault} fault + {station.open} open; "
        f"{station.late} late, {station.skipped} skipped"
    )


def tell_end(line: Line) -> int:
    """Print the account of a line that was stopped, and return the exit status: 1 where it is not all right."""
    status = line.status(is_running=False)
    for station in status.stations:
        echo(counts_line(station), err=True)
    if not line.is_written:
        echo("the journal could not be written in time: the last records may be lost. See to the disk.", err=True)
    if line.lost:
        echo(f"{line.lost}. Start the line again; systemd does.", err=True)
    return 0 if status.account_holds and line.is_written and not status.journal and not line.lost else 1
