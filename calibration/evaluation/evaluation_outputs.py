"""What an evaluation writes, checked before the images are scored: the report, and the record in the bundle."""

from __future__ import annotations

from pathlib import Path

from flawscope.bundle import check_changeable
from flawscope.bundle.threshold_overlay import find_overlay
from flawscope.files import check_new_file


def check_report(folder: Path, *, overwrite: bool) -> Path:
    """Return the file of a report, after a check that it can be drawn and written.

    Raises:
        ArgumentError: If a report lies there and may not be replaced.
        MissingExtra: If Matplotlib or Jinja is not installed.
        StorageError: If the system would refuse to write there.
    """
    # Not above: an evaluation without a report needs nothing of it.
    from flawscope.calibration.evaluation.report import REPORT, check_report_packages

    check_report_packages()
    check_new_file(folder / REPORT, overwrite=overwrite, kind="html")
    return folder / REPORT


def why_not_recorded(bundle: Path, threshold_overlay: Path | None = None) -> str | None:
    """Return why figures cannot be put into a bundle, a sentence; None where they can, after a check that they will.

    Args:
        bundle: The bundle.
        threshold_overlay: Threshold overlay in place of the one beside it.

    Raises:
        BundleError: If the bundle cannot be read.
        StorageError: If the system would refuse to change it.
    """
    overlay = find_overlay(bundle) or threshold_overlay
    if overlay is not None:
        # Not a figure of the bundle that ships; and a changed bundle has another digest, which the overlay is not for.
        return f"figures are not recorded in the bundle, because it has the threshold overlay {overlay}."
    check_changeable(bundle)
    return None
