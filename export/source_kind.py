"""What a command of this room was given to read: a run of a detector, what draws defects, or a bundle.

Asked before anything heavy is imported, so that a wrong request is refused at once, and where torch is not installed.
"""

from __future__ import annotations

from pathlib import Path

from flawscope import methods
from flawscope.runs import RECORD, run_kind


def is_run(source: Path) -> bool:
    """Return whether `source` is the folder of a training run, not a bundle."""
    return (source / RECORD).is_file()


def draws_defects(source: Path) -> bool:
    """Return whether `source` is a run of what draws defects, or the folder of a model as diffusers has it.

    A run that cannot be read counts as one of a detector: its reader says what is wrong.
    """
    if not is_run(source):
        # A bundle is known by its manifest, whatever else lies beside that.
        return (source / "unet").is_dir() and not (source / "manifest.json").exists()
    return run_kind(source) in methods.names("generator")
