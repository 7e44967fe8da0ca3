"""The notebooks of docs/notebooks as pages: text, code, and the text that the code printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from site_pages.page import Page

FOLDER = "notebooks"
PLACE = Path(__file__).resolve().parents[2] / "docs" / FOLDER


def pages() -> Iterator[Page]:
    """Return a page for each notebook."""
    for path in sorted(PLACE.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield Page(f"{FOLDER}/{path.stem}.md", "\n\n".join(_cell(cell) for cell in cells) + "\n")


def sources(path: Path) -> list[str]:
    """Return the code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    printed = "".join("".join(output.get("text", [])) for output in cell.get("outputs", []))
    shown = f"\n\n```text\n{printed.rstrip()}\n```" if printed.strip() else ""
    return f"```python\n{source}\n```{shown}"
