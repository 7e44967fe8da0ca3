"""Writes the figures and previews of a training for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flawscope.errors import MissingExtra
from flawscope.imaging.images import read_image

BOARD, EVENTS = "tensorboard", "events.out.tfevents.*"
"""Folder below the workspace, and the pattern of the files in it."""


class TensorBoardWriter:
    """Writes the contents of `metrics.jsonl` and `previews` as TensorBoard events.

    A figure is a scalar of the same name, a preview the image `preview`; the step of both is the number of batches so
    far.

    Args:
        folder: Workspace, in which the folder `tensorboard` is made.
        lines: Lines of `metrics.jsonl` of the epochs that are kept on resuming. They are written again, and all
            earlier events are declared void: after an interruption nothing is shown twice, and no epoch that will be
            repeated.
        previews: Path of the preview of each of these epochs, whether or not there is one.

    Raises:
        ImageError: If a preview cannot be read.
        MissingExtra: If tensorboard is not installed.
    """

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, Any]], previews: Sequence[Path]) -> None:
        writer = import_tensorboard()
        # Older event files are not removed: a TensorBoard that is reading one would wait at its end for ever. Instead
        # `purge_step=0` tells it to drop all it has read.
        self._writer: Any = writer(str(folder / BOARD), purge_step=0)
        # Past epochs have a recorded duration but no time of day: they are laid end to end, up to now.
        now = time.time() - sum(line["seconds"] for line in lines)
        for line, preview in zip(lines, previews, strict=True):
            now += line["seconds"]
            self.add(line, preview, now)

    def add(self, line: Mapping[str, Any], preview: Path, now: float | None = None) -> None:
        """Write the figures of an epoch, and its preview if there is one; `now` is its Unix time in s, None for now."""
        step = line["step"]
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, step, walltime=now)
        if preview.is_file():
            self._writer.add_image("preview", read_image(preview), step, walltime=now, dataformats="HWC")
        self._writer.flush()  # an epoch may take minutes, and a kill must not lose it

    def close(self) -> None:
        """Write buffered events and close the file."""
        self._writer.close()


def import_tensorboard() -> Any:
    """Return torch's event writer; it takes seconds to import, so it is imported only when needed.

    Raises:
        MissingExtra: If tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise MissingExtra("tensorboard=true", "tensorboard", "tensorboard") from err
    return SummaryWriter
