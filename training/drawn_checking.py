"""The drawn check of a fitted detector: defects are drawn on normal images, and both are scored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from flawscope.datasets.drawn_defects import KINDS, draw_defect
from flawscope.drawn_check import DrawnCheck, DrawnScores, pair_auroc, summarize_check
from flawscope.errors import RunError
from flawscope.imaging.images import prepare
from flawscope.imaging.tiles import ImageSource, read_source
from flawscope.progress import Progress
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.trainer import Trainer


def check_drawn(
    trainer: Trainer,
    config: Any,
    module: Any,
    fit_result: FitResult,
    sources: Sequence[ImageSource],
    *,
    held_out: bool,
    progress: Progress,
) -> DrawnCheck | None:
    """Draw defects on normal images, score them with the detector, and return how well it tells them apart.

    The same images, settings and seed give the same defects. They are drawn on images as the detector sees them, so
    that a mask has exactly the pixels that differ.

    Args:
        trainer: Trainer of the method.
        config: Its settings.
        module: What the trainer restored from the fit.
        fit_result: The fit.
        sources: Normal images; up to twice `trainer.drawn_on` are scored, spread evenly, and every other drawn on.
        held_out: Whether the detector has not learned from them.
        progress: Receives progress.

    Returns:
        None where nothing could be drawn, or there is no image.

    Raises:
        ImageError: If an image cannot be read.
        RunError: If a score or a map of the detector is not finite.
    """
    started = time.perf_counter()
    # Twice as many as are drawn on: how much normal ones vary is what drawn ones have to stand out from.
    chosen = _spread(sources, 2 * trainer.drawn_on)
    spec = config.preprocessing
    images = [prepare(read_source(source, spec.bits), spec) for source in chosen]
    on = set(_spread(range(len(images)), trainer.drawn_on))
    normal: list[float] = []
    rows: dict[str, tuple[list[int], list[float], list[float]]] = {kind: ([], [], []) for kind in KINDS}
    for index, image in enumerate(images):
        batch, masks, kinds = [image], [], []
        for place, kind in enumerate(KINDS if index in on else ()):
            for again, strength in enumerate(trainer.drawn_strengths):
                # A generator for each drawing: a kind that is added at the end leaves all others as they are.
                generator = np.random.default_rng([config.seed, index, place, again])
                drawn = draw_defect(image, kind, strength, generator)
                if drawn is not None:
                    batch.append(drawn[0])
                    masks.append(drawn[1])
                    kinds.append(kind)
        # Image by image: the maps of all drawings together may not fit in memory.
        maps, scores = trainer.scores(config, module, fit_result, batch)
        if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
            raise RunError(
                f"{chosen[index]}: expected finite scores of the fitted detector, got NaN or infinity. Look at the "
                "weights of the backbone and the settings."
            )
        normal.append(float(scores[0]))
        for kind, mask, drawn_map, score in zip(kinds, masks, maps[1:], scores[1:], strict=True):
            bases, values, pixels = rows[kind]
            bases.append(index)
            values.append(float(score))
            # A drawing may cover the whole of a small image: then there is nothing to compare with.
            pixels.append(0.5 if mask.all() else pair_auroc(drawn_map[mask], drawn_map[~mask]))
        progress("checking with drawn defects", index + 1, len(images))
    return summarize_check(
        normal,
        [DrawnScores(kind, *row) for kind, row in rows.items()],
        held_out=held_out,
        seconds=round(time.perf_counter() - started, 3),
        seed=config.seed,
    )


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return up to `count` items, spread evenly."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
