"""Figures and previews of a training for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flawscope.errors import MissingExtra
from flawscope.imaging.images import read_image

BOARD, EVENTS = "tensorboard", "events.out.tfevents.*"
"""Folder in that of a training, and the files in it."""


class TensorBoardWriter:
    """Writes what `metrics.jsonl` and `previews` have into a folder that TensorBoard shows.

    A figure is a scalar by its own name, a preview the image `preview`; both are at the batches taken so far.

    Args:
        folder: Folder of the training, in which `tensorboard` is.
        lines: Those of `metrics.jsonl`, whose epochs stay. They are written again, and what was written before is
            declared void: after an interruption nothing is shown twice, and nothing that will be taken again.
        previews: Where the preview of an epoch is, or would be.

    Raises:
        ImageError: If a preview cannot be read.
        MissingExtra: If tensorboard is not installed.
    """

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, Any]], previews: Sequence[Path]) -> None:
        writer = import_tensorboard()
        # Files of before stay where they are: a TensorBoard that is reading one would not get past its end.
        self._writer: Any = writer(str(folder / BOARD), purge_step=0)
        # Of past epochs their length is known, not their time: they lie one after the other, up to now.
        now = time.time() - sum(line["seconds"] for line in lines)
        for line, preview in zip(lines, previews, strict=True):
            now += line["seconds"]
            self.add(line, preview, now)

    def add(self, line: Mapping[str, Any], preview: Path, now: float | None = None) -> None:
        """Write the figures of an epoch, and its preview where there is one; `now` is its time in s, None for now."""
        step = line["step"]
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, step, walltime=now)
        if preview.is_file():
            self._writer.add_image("preview", read_image(preview), step, walltime=now, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def import_tensorboard() -> Any:
    """Return what writes events, which takes seconds to import: only where it is needed.

    Raises:
        MissingExtra: If tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise MissingExtra("tensorboard=true", "tensorboard", "tensorboard") from err
    return SummaryWriter
