"""Slow, plain definitions of the figures, written without the code under test: loops over every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt


def pair_auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Count the pairs in which the anomalous item scores higher; a tie counts a half."""
    wins, pairs = 0.0, 0
    for anomalous, is_anomalous in zip(scores, labels, strict=True):
        for good, is_good_anomalous in zip(scores, labels, strict=True):
            if is_anomalous and not is_good_anomalous:
                pairs += 1
                wins += 1.0 if anomalous > good else 0.5 if anomalous == good else 0.0
    return wins / pairs


def naive_average_precision(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Sum (recall step) × precision over every distinct threshold."""
    total, area, previous = sum(labels), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [bool(label) for score, label in zip(scores, labels, strict=True) if score >= threshold]
        recall = sum(called) / total
        area += (recall - previous) * sum(called) / len(called)
        previous = recall
    return area


def flood_regions(mask: npt.NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Return the 8-connected regions of a mask as lists of pixels, by flood fill."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        stack, region = [left.pop()], []
        while stack:
            row, column = stack.pop()
            region.append((row, column))
            for near in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    stack.append(near)
        regions.append(region)
    return regions


def naive_aupro(maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_], limit: float = 0.3) -> float:
    """Integrate the per-region overlap over the false-positive rate, one threshold after the other."""
    regions = [(index, region) for index, mask in enumerate(masks) for region in flood_regions(mask)]
    good = [float(value) for value in maps[~masks]]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for value in maps.ravel()}, reverse=True):
        rate = sum(value >= threshold for value in good) / len(good)
        covered = [sum(maps[index][pixel] >= threshold for pixel in region) / len(region) for index, region in regions]
        points.append((rate, sum(covered) / len(covered)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit
