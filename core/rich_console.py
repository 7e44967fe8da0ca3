"""Tables on stdout, with text from strangers in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from flawscope.text import printable


class PlainConsole(Console):
    """A console of rich on which control characters in texts are escaped, and brackets are text.

    Args:
        soft_wrap: Leave long lines to the terminal; rich would break paths at 80 columns where the output is piped.
    """

    def __init__(self, *, soft_wrap: bool = False) -> None:
        # Without markup: rich takes square brackets in a string, as in a path, for markup.
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, and escape what a terminal would obey; rich's own colours are no part of the texts."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.replace("\n", "").isprintable():
                yield segment
            else:
                lines = (printable(line) for line in segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; a string is one line."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)
