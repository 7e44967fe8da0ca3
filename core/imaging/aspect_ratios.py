"""Aspect ratios of images beside that of a model's input: how much the resize stretches what they show."""

from __future__ import annotations

from collections.abc import Mapping

FAR = 2.0
"""From this stretch on an aspect ratio is far from the input's: details of one side come out half as large."""


def stretch_of(size: tuple[int, int], input_size: tuple[int, int] = (1, 1)) -> float:
    """Return how many times more one side shrinks than the other, at least 1.

    Args:
        size: Height and width of an image.
        input_size: Height and width of the input that it is resized to, or their ratio.
    """
    ratio = (size[1] / size[0]) / (input_size[1] / input_size[0])
    return max(ratio, 1 / ratio)


def aspect_remark(sizes: Mapping[tuple[int, int], int], input_size: tuple[int, int] = (1, 1)) -> str | None:
    """Return what to say of images whose aspect ratio is far from the input's; None where there is none.

    Args:
        sizes: Height and width of images -> number of images.
        input_size: Height and width of the input, or their ratio; square unless it is set.
    """
    far = {size: count for size, count in sizes.items() if stretch_of(size, input_size) >= FAR}
    if not far:
        return None
    worst = max(far, key=lambda size: (stretch_of(size, input_size), size))
    shape = "square" if input_size[0] == input_size[1] else f"{input_size[1]}x{input_size[0]}"
    return (
        f"has {sum(far.values())} of {sum(sizes.values())} images whose aspect ratio is far from that of the {shape} "
        f"input, such as {worst[1]}x{worst[0]}: one side shrinks {stretch_of(worst, input_size):.1f} times more than "
        "the other, and small defects with it. Train with tiles (tile=PX), which keep the detail, or with letterbox "
        "(resize_mode=letterbox), which keeps the shape"
    )
