"""All generated pages of the reference."""

from __future__ import annotations

from collections.abc import Iterator

from site_pages import api, commands, notebooks, settings
from site_pages.page import Page


def pages() -> Iterator[Page]:
    """Return every page that is made of the code: commands, settings, Python API, notebooks."""
    for source in (commands, settings, api, notebooks):
        yield from source.pages()
