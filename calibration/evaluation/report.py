"""HTML report of an evaluation: one file with images, plots and styles in it, readable without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawscope import __version__
from flawscope.arrays import Float64Array
from flawscope.bundle import Threshold, Thresholds
from flawscope.calibration.evaluation import report_images, report_plots
from flawscope.calibration.evaluation.drift_text import DRIFT_NAMES, paired_lines, span_of
from flawscope.calibration.evaluation.evaluate import Evaluation
from flawscope.calibration.evaluation.figures import Figures, LeakFigures, measured_on
from flawscope.calibration.evaluation.intervals import Interval, Rate, images_needed
from flawscope.calibration.extras import require
from flawscope.datasets import GOOD
from flawscope.files import write_text
from flawscope.imaging.heat import HeatScale
from flawscope.imaging.images import read_image
from flawscope.text import printable

REPORT = "report.html"
_SHOWN = 6
_FEATURE = "writing the report"
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
class Card:
    """One image of the report with its map.

    Attributes:
        title: Where the image lies below the dataset's folder.
        kind: Its true type.
        decision: What was decided.
        score: Its score.
        plain: The image as a data URI.
        heat: The image with map, outline and boxes, as a data URI.
        has_outline: Whether the true defect is drawn.
        boxes: Number of boxes drawn.
    """

    title: str
    kind: str
    decision: str
    score: float
    plain: str
    heat: str
    has_outline: bool
    boxes: int


@dataclass(frozen=True)
class Row:
    """A figure without contaminated images (`left`) and with them (`leaked`), as text: value and interval."""

    name: str
    left: tuple[str, str]
    leaked: tuple[str, str]


@dataclass(frozen=True)
class Gallery:
    """Images under one heading; `empty` is the text without images, `total` counts also those that are not shown."""

    title: str
    text: str
    empty: str
    cards: tuple[Card, ...]
    total: int


def check_report_packages() -> None:
    """Raise MissingExtra unless the report can be drawn; called before the long part of an evaluation."""
    require("matplotlib", "matplotlib", _FEATURE)
    require("jinja2", "jinja2", _FEATURE)


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path; an older report there is replaced.

    Raises:
        MissingExtra: If Matplotlib or Jinja is not installed.
        StorageError: If the file cannot be written.
    """
    check_report_packages()
    path = folder / REPORT
    write_text(path, render_report(evaluation))
    return path


def render_report(evaluation: Evaluation) -> str:
    """Return the report as HTML; the same evaluation gives the same text."""
    jinja2 = require("jinja2", "jinja2", _FEATURE)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        finalize=_shown,
        autoescape=True,  # against script injection: names of files and defect types may hold markup
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error instead of a gap in the report
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "figure": figure, "number": number, "span": span, "ends": span_of}
    # Only our own SVG is passed as markup, past the escaping.
    markup = require("markupsafe", "jinja2", _FEATURE).Markup
    text: str = environment.get_template("report.html.j2").render(_context(evaluation, markup))
    return text


def _shown(value: Any) -> Any:
    """Escape control characters of names in the report; our own SVG is markup and passes."""
    return printable(value) if type(value) is str else value


def percent(value: float | None) -> str:
    """Return a fraction as per cent with two significant digits below ten per cent."""
    if value is None:
        return "–"
    text = f"{100 * value:.1f}" if value >= 0.01 else f"{100 * value:.2g}"
    if value < 1 and text == "100.0":
        text = "99.9"  # 9,999 of 10,000 is not 100 %: one part was missed
    return text.removesuffix(".0") + "%"


def figure(value: float | None) -> str:
    """Return a figure from 0 to 1 with three decimals, never rounded up to a perfect one."""
    if value is None:
        return "–"
    return f"{min(value, 0.999) if value < 1 else value:.3f}"


def number(value: float | None) -> str:
    """Return a score or time with four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def span(interval: Interval | None) -> str:
    """Return an interval as `0.812 to 0.901`, rounded outwards at the lower end."""
    return "" if interval is None else f"{math.floor(interval.low * 1000) / 1000:.3f} to {figure(interval.high)}"


def _context(evaluation: Evaluation, markup: Any) -> dict[str, Any]:
    figures, measured, manifest = evaluation.figures, evaluation.measured, evaluation.manifest
    thresholds = evaluation.thresholds
    image = thresholds.image.value if thresholds else None
    good = ~measured.labels
    scale = report_images.make_scale(
        measured.maps, good, measured.usable, thresholds.pixel.value if thresholds else None
    )
    scores, labels = measured.scores[measured.usable], measured.labels[measured.usable]
    kinds = [sample.defect for sample, used in zip(measured.samples, measured.usable, strict=True) if used]
    has_both = bool(labels.any() and not labels.all())  # with one kind, both curves are undefined
    return {
        "figures": figures,
        "manifest": manifest,
        "judged_by": "zone" if thresholds and thresholds.of_zones else "product" if evaluation.products else "",
        "threshold_rows": _threshold_rows(thresholds, evaluation.products),
        "thresholds": thresholds,  # of the measured precision, which those of the manifest itself are not always
        "version": __version__,
        "headlines": [
            {"name": name, "text": text, "value": getattr(figures, key), "interval": figures.intervals.get(key)}
            for key, name, text in _HEADLINES
        ],
        "leak_rows": _leak_rows(figures),
        "histogram": markup(report_plots.score_histogram(scores, kinds, GOOD, image)) if scores.size else None,
        "roc": markup(report_plots.roc_curve(scores, labels, image)) if has_both else None,
        "pr": markup(report_plots.precision_recall_curve(scores, labels, image)) if has_both else None,
        "claims": [(rate, images_needed(rate, 0.95)) for rate in (0.05, 0.02, 0.01, 0.001)],
        "scale": scale,
        "colour_bar": report_images.colour_bar(scale),
        "galleries": _galleries(evaluation, scale),
        "here": measured_on(figures.backend, figures.path, figures.precision, figures.judged),
        "drift_names": DRIFT_NAMES,
        "paired_lines": paired_lines,
        "drawn": manifest.evidence.drawn,
        "faults": [(_relative(evaluation, Path(fault.image)), fault.reason) for fault in figures.faults],
    }


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
    rows = [Row(name, _cells(figures, key), _cells(leak, key)) for key, name, _ in _HEADLINES]
    if confusion is not None and leak.miss is not None and leak.false_reject is not None:
        rows.append(Row("Missed defects", _rate_cells(confusion.miss), _rate_cells(leak.miss)))
        rows.append(Row("False rejects", _rate_cells(confusion.false_reject), _rate_cells(leak.false_reject)))
    return rows


def _cells(figures: Figures | LeakFigures, key: str) -> tuple[str, str]:
    return figure(getattr(figures, key)), span(figures.intervals.get(key))


def _rate_cells(rate: Rate) -> tuple[str, str]:
    if rate.value is None:
        return percent(None), ""
    return f"{rate.count} of {rate.n}", f"{percent(rate.low)} to {percent(rate.high)}"


def _galleries(evaluation: Evaluation, scale: HeatScale) -> list[Gallery]:
    measured = evaluation.measured
    usable = np.flatnonzero(measured.usable)
    good = [int(row) for row in usable if not measured.labels[row]]
    defective = [int(row) for row in usable if measured.labels[row]]
    scores = measured.scores
    # Without thresholds nothing was missed or rejected: the galleries show which images would be first.
    if evaluation.figures.confusion is None:
        return [
            _gallery(
                evaluation,
                scale,
                "Highest normal",
                "Good parts with the highest scores: the first false rejects.",
                "There is no normal image.",
                sorted(good, key=lambda row: -scores[row]),
            ),
            _gallery(
                evaluation,
                scale,
                "Lowest anomalous",
                "Defective parts with the lowest scores: the first misses.",
                "There is no anomalous image.",
                sorted(defective, key=lambda row: scores[row]),
            ),
        ]
    decision = [outcome.decision for outcome in measured.outcomes]
    missed = sorted((row for row in defective if decision[row] == "accept"), key=lambda row: scores[row])
    alarms = sorted((row for row in good if decision[row] == "reject"), key=lambda row: -scores[row])
    rejected = [row for row in defective if decision[row] == "reject"]
    return [
        _gallery(
            evaluation,
            scale,
            "Worst misses",
            "Defective parts that were accepted, lowest score first.",
            "No defective part was accepted." if defective else "There is no anomalous image.",
            missed,
        ),
        _gallery(
            evaluation,
            scale,
            "Worst false rejects",
            "Good parts that were rejected, highest score first.",
            "No good part was rejected." if good else "There is no normal image.",
            alarms,
        ),
        _gallery(
            evaluation,
            scale,
            "Typical correct rejects",
            "Of each defect type, the rejected part with the middle score.",
            "No defective part was rejected.",
            _typical(evaluation, rejected, scores),
        ),
    ]


def _typical(evaluation: Evaluation, rows: Sequence[int], scores: Float64Array) -> list[int]:
    """Return the row with the median score of every type."""
    by_type: dict[str, list[int]] = {}
    for row in rows:
        by_type.setdefault(evaluation.measured.samples[row].defect, []).append(row)
    return [sorted(group, key=lambda row: scores[row])[len(group) // 2] for _, group in sorted(by_type.items())]


def _gallery(
    evaluation: Evaluation, scale: HeatScale, title: str, text: str, empty: str, rows: Sequence[int]
) -> Gallery:
    # Cut before the cards are made: each reads its image, and its data URIs are the weight of the file.
    cards = tuple(_card(evaluation, scale, row) for row in rows[:_SHOWN])
    return Gallery(title, text, empty, cards, len(rows))


def _card(evaluation: Evaluation, scale: HeatScale, row: int) -> Card:
    measured = evaluation.measured
    sample, outcome = measured.samples[row], measured.outcomes[row]
    spec = evaluation.manifest.input
    image, mask = read_image(sample.path, spec.bits), sample.read_mask() if sample.is_anomalous else None
    heat = measured.maps[row]
    if measured.pixel_thresholds is not None or outcome.pixel_threshold is not None:
        # Moved so that the threshold of each zone or product is where the colour changes.
        heat = heat - np.float32(measured.pixel_threshold(row, scale.middle)) + np.float32(scale.middle)
    return Card(
        title=_relative(evaluation, sample.path),
        kind=sample.defect,
        decision=outcome.decision,
        score=float(measured.scores[row]),
        plain=report_images.plain(image),
        heat=report_images.overlay(image, heat, spec.stretched, scale, mask, outcome.boxes),
        has_outline=mask is not None and bool(mask.any()),
        boxes=len(outcome.boxes),
    )


def _relative(evaluation: Evaluation, path: Path) -> str:
    """Return the path of an image below the dataset's folder, or its name alone."""
    # No absolute paths: reports are passed on, and would give away user names and the layout of servers.
    root = evaluation.root
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
