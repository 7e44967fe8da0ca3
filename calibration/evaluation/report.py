"""HTML report of an evaluation: one file with images, plots and styles in it, readable without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawscope.bundle import Threshold, Thresholds
from flawscope.calibration.evaluation import report_images, report_plots
from flawscope.calibration.evaluation.drift_text import DRIFT_NAMES, paired_lines
from flawscope.calibration.evaluation.evaluate import Evaluation
from flawscope.calibration.evaluation.figures import Figures, LeakFigures, measured_on
from flawscope.calibration.evaluation.intervals import Rate, images_needed
from flawscope.calibration.evaluation.report_galleries import Drawings, galleries
from flawscope.calibration.evaluation.report_page import check_report_packages, markup, render_page
from flawscope.calibration.evaluation.report_table import image_table
from flawscope.calibration.evaluation.rounding import figure, limits, share, span
from flawscope.calibration.evaluation.verdict import verdict_of
from flawscope.datasets import GOOD
from flawscope.files import write_text
from flawscope.progress import Progress, no_progress

__all__ = ["REPORT", "check_report_packages", "render_report", "write_report"]

REPORT = "report.html"
_HEADLINES = (
    ("image_auroc", "Image AUROC", "How well scores separate good from defective parts; 1 is perfect, 0.5 is chance."),
    ("image_ap", "Image AP", "Average precision: how pure the rejects stay as more defects are caught."),
    ("image_f1_max", "Image F1, best", "Best balance of found defects and false alarms, at the best threshold."),
    ("pixel_auroc", "Pixel AUROC", "How well the map separates defect pixels from all others."),
    ("pixel_ap", "Pixel AP", "How precisely the map marks the defect pixels, which are few."),
    ("aupro", "AU-PRO", "Share of each defect region that is covered, up to 30% false pixels."),
    ("aupro_05", "AU-PRO, 5%", "The same up to 5% false pixels, which few lines could live with."),
    ("pixel_f1", "Pixel F1", "Balance of found and falsely marked pixels at the pixel threshold in force."),
    ("pixel_recall", "Pixel recall", "Share of the defect pixels above the pixel threshold in force."),
)


@dataclass(frozen=True)
class Row:
    """A figure without contaminated images (`left`) and with them (`leaked`), as text: value and interval."""

    name: str
    left: tuple[str, str]
    leaked: tuple[str, str]


def write_report(evaluation: Evaluation, folder: Path, progress: Progress = no_progress) -> Path:
    """Write `report.html` into `folder` and return its path; an older report there is replaced.

    Args:
        evaluation: What is reported.
        folder: Where the file goes.
        progress: Called after each image that is drawn.

    Raises:
        MissingExtra: If Matplotlib or Jinja is not installed.
        StorageError: If the file cannot be written.
    """
    check_report_packages()
    path = folder / REPORT
    write_text(path, render_report(evaluation, progress))
    return path


def render_report(evaluation: Evaluation, progress: Progress = no_progress) -> str:
    """Return the report as HTML; the same evaluation gives the same text."""
    return render_page("report.html.j2", _context(evaluation, progress))


def _context(evaluation: Evaluation, progress: Progress) -> dict[str, Any]:
    figures, measured, manifest = evaluation.figures, evaluation.measured, evaluation.manifest
    verdict = verdict_of(figures)
    thresholds = evaluation.thresholds
    image = thresholds.image.value if thresholds else None
    drawings = Drawings(evaluation)
    scores, labels = measured.scores[measured.usable], measured.labels[measured.usable]
    kinds = [sample.defect for sample, used in zip(measured.samples, measured.usable, strict=True) if used]
    has_both = bool(labels.any() and not labels.all())  # with one kind, both curves are undefined
    tested = "both" if 0 < figures.anomalous < figures.images else "defective" if figures.anomalous else "good"
    return {
        "figures": figures,
        "manifest": manifest,
        "judged_by": "zone" if thresholds and thresholds.of_zones else "product" if evaluation.products else "",
        "threshold_rows": _threshold_rows(thresholds, evaluation.products),
        "thresholds": thresholds,  # of the measured precision, which those of the manifest itself are not always
        "headlines": [
            {"name": name, "text": text, "value": getattr(figures, key), "interval": figures.intervals.get(key)}
            for key, name, text in _HEADLINES
            if getattr(figures, key) is not None
        ],
        "undefined": _undefined(figures, has_masks=measured.has_masks),
        "has_masks": measured.has_masks,
        "tested": tested,
        "leak_rows": _leak_rows(figures),
        "histogram": markup(report_plots.score_histogram(scores, kinds, GOOD, image)) if scores.size else None,
        "roc": markup(report_plots.roc_curve(scores, labels, image)) if has_both else None,
        "pr": markup(report_plots.precision_recall_curve(scores, labels, image)) if has_both else None,
        "claims": [(rate, images_needed(rate, 0.95)) for rate in (0.05, 0.02, 0.01, 0.001)],
        "scale": drawings.scale,
        "colour_bar": report_images.colour_bar(drawings.scale),
        "galleries": galleries(evaluation, drawings),
        "table": image_table(evaluation, drawings.preview, progress),
        "verdict": verdict,
        # What the verdict repeats word for word stands there.
        "reasons": [text for text in figures.diagnosis if text not in f"{verdict.text} {verdict.step}"],
        "here": measured_on(figures.backend, figures.path, figures.precision, figures.judged),
        "drift_names": DRIFT_NAMES,
        "paired_lines": paired_lines,
        "drawn": manifest.evidence.drawn,
        "faults": [(_relative(evaluation, Path(fault.image)), fault.reason) for fault in figures.faults],
    }


def _undefined(figures: Figures, *, has_masks: bool) -> list[str]:
    """Return why figures are missing, a sentence or two for each reason; there is no card without a figure."""
    if figures.latency_ms is None:
        return ["No image could be scored."]
    texts = []
    if figures.image_auroc is None:
        kind = "good" if figures.anomalous == 0 else "defective"
        texts.append(f"No AUROC, AP and F1 of images: all that could be scored show {kind} parts.")
    if not has_masks and figures.anomalous:
        texts.append(
            "No figures of pixels: no defect has a mask. Masks go into ground_truth/DEFECT, named after their images."
        )
    if has_masks and figures.pixel_f1 is None:
        texts.append("No pixel F1 and recall: the bundle has no thresholds. Set them with flawscope calibrate.")
    return texts


def _threshold_rows(thresholds: Thresholds | None, products: Mapping[str, Thresholds]) -> list[tuple[str, Threshold]]:
    """Return what each threshold is on, and it itself."""
    if thresholds is None:
        return []
    of = [(zone.name, zone.image, zone.pixel) for zone in thresholds.of_zones]
    of += [(name, own.image, own.pixel) for name, own in sorted(products.items())]
    if of:
        return [
            row for name, image, pixel in of for row in ((f"image score, {name}", image), (f"pixels, {name}", pixel))
        ]
    return [("image score", thresholds.image), ("pixels of the map", thresholds.pixel)]


def _leak_rows(figures: Figures) -> list[Row]:
    """Return the overall figures beside those with leak; none where nothing was left out."""
    if figures.support is None or not figures.support.left_out:
        return []
    leak, confusion = figures.support.with_leak, figures.confusion
    rows = [
        Row(name, _cells(figures, key), _cells(leak, key))
        for key, name, _ in _HEADLINES
        if (getattr(figures, key), getattr(leak, key)) != (None, None)
    ]
    if confusion is not None and leak.miss is not None and leak.false_reject is not None:
        rows.append(Row("Missed defects", _rate_cells(confusion.miss), _rate_cells(leak.miss)))
        rows.append(Row("False rejects", _rate_cells(confusion.false_reject), _rate_cells(leak.false_reject)))
    return rows


def _cells(figures: Figures | LeakFigures, key: str) -> tuple[str, str]:
    return figure(getattr(figures, key)), span(figures.intervals.get(key))


def _rate_cells(rate: Rate) -> tuple[str, str]:
    return share(rate), limits(rate)


def _relative(evaluation: Evaluation, path: Path) -> str:
    """Return the path of an image below the dataset's folder, or its name alone."""
    # No absolute paths: reports are passed on, and would give away user names and the layout of servers.
    root = evaluation.root
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
