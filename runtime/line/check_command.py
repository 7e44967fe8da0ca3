"""`flawscope line check`."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.output_options import OVERWRITE
from flawscope.runtime.line.line_command import CONFIG
from flawscope.terminal import echo


@click.command()
@CONFIG
@click.option("--images", type=click.Path(path_type=Path), help="Folder for the first image of each view (PNG).")
@OVERWRITE
def check(config: Path, images: Path | None, overwrite: bool) -> int:
    """Check a line before it runs; exit status 1 if something is not as it must be.

    Every source is opened and one image of it is inspected, bundles are loaded and verified, the longest times are
    compared with the deadline, outputs are opened and closed, sinks are made. Nothing is kept, and nothing is sent.
    """
    from flawscope.files import check_new_files, storage_errors
    from flawscope.imaging.images import decode_image, grey_as_rgb
    from flawscope.imaging.png import write_png
    from flawscope.runtime.line.check import check_line
    from flawscope.runtime.line.config_file import read_config
    from flawscope.runtime.line.sources.source import Frame

    read = read_config(config)
    check_new_files(images, overwrite=overwrite)

    def keep(name: str, frame: Frame) -> None:
        if images is None or frame.image is None:
            return
        image = decode_image(frame.image, name) if isinstance(frame.image, bytes) else grey_as_rgb(frame.image)
        with storage_errors(images):
            images.mkdir(parents=True, exist_ok=True)
        write_png(images / f"{name}.png", image)

    is_good = True
    for finding in check_line(read, lambda text: echo(text, err=True), keep):
        is_good &= finding.is_good
        echo(f"{'ok  ' if finding.is_good else 'FAIL'} {finding.what}: {finding.text}")
    return 0 if is_good else 1
