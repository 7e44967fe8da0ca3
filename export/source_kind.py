"""Kind of the source that an export command reads: the run of a detector, a generator, or a bundle.

Imports nothing heavy, so that a wrong request is refused at once, and also where torch is not installed.
"""

from __future__ import annotations

from pathlib import Path

from flawscope import methods
from flawscope.runs import RECORD, run_kind
from flawscope.unfinished import check_finished


def is_run(source: Path) -> bool:
    """Return whether `source` is the folder of a training run, not a bundle.

    Raises:
        RunError: If it is neither, but a training that was interrupted.
    """
    check_finished(source)
    return (source / RECORD).is_file()


def draws_defects(source: Path) -> bool:
    """Return whether `source` is the run of a generator, or a model folder of diffusers.

    A run that cannot be read counts as one of a detector, whose reader reports what is wrong.
    """
    if not is_run(source):
        # A folder with a manifest is a bundle, whatever else it holds.
        return (source / "unet").is_dir() and not (source / "manifest.json").exists()
    # By the table of methods, so that a new generator is recognised without a change here.
    return run_kind(source) in methods.names("generator")
