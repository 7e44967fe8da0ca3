"""`flawscope line cameras`: list the GigE Vision and USB3 Vision cameras that answer."""

from __future__ import annotations

import click
import msgspec

from flawscope.runtime.line.sources.genicam.discovery import CameraFound, find_cameras
from flawscope.terminal import echo, echo_json


@click.command("cameras")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cameras(as_json: bool) -> None:
    """List the GigE Vision and USB3 Vision cameras that answer; `camera` of a source takes their name or address.

    Looking for cameras disturbs some that are working: do it while no line runs.
    """
    found = find_cameras()
    if as_json:
        echo_json(msgspec.to_builtins(found), indent=1)
        return
    if not found:
        echo("no camera answered. Is it powered, and in the same subnet as this machine's network interface?")
        return
    for line in _table(found):
        echo(line)


def _table(found: list[CameraFound]) -> list[str]:
    rows = [CameraFound.__struct_fields__, *(msgspec.structs.astuple(camera) for camera in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
