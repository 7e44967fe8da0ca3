"""`flawscope line export`: reviewed images as data sets."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.output_options import OVERWRITE
from flawscope.runtime.line.line_command import CONFIG
from flawscope.terminal import echo
from flawscope.text import printable


@click.command()
@CONFIG
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--station", default="", help="Only images of this station.")
@click.option("--view", default="", help="Only images of this view.")
@OVERWRITE
def export(config: Path, out: Path, station: str, view: str, overwrite: bool) -> int:
    """Write the reviewed images of a line as data sets, one folder for each view.

    CONFIG is the YAML file of the line, which may run meanwhile. In OUT a folder STATION/VIEW has the normal images in
    `good` and the others in folders of their types, as `flawscope calibrate` and `flawscope train` read them;
    `reviews.jsonl` says of each image its part, its verdict and its review. The last review of an image counts. Exit
    status 1 if no image could be written.
    """
    from flawscope.files import atomic_folder
    from flawscope.runtime.line.config_file import read_config
    from flawscope.runtime.line.gallery.export import LIST, Tally, Wanted, exported
    from flawscope.runtime.line.journal.reader import JournalReader

    options = read_config(config).config
    state = options.line.state
    tally = Tally()
    reader = JournalReader(state)
    try:
        with atomic_folder(out, replace_if=LIST, overwrite=overwrite) as folder:
            for file in exported(reader, state, Wanted(station, view), tally):
                path = folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.data)
    finally:
        reader.close()
    for name, count in sorted(tally.folders.items()):
        echo(f"{out / name}: {count} images", err=True)
    for reason, count in sorted(tally.left_out.items()):
        echo(f"left out: {count} images: {reason}", err=True)
    if not tally.folders:
        echo("no reviewed image could be exported: review parts on the page first.", err=True)
        if station is not None and station not in (names := [one.name for one in options.stations]):
            echo(f"--station: expected one of {', '.join(names)}, got {printable(station)}. Name another.", err=True)
    return 0 if tally.folders else 1
