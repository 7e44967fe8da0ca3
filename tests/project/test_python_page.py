"""The page on Python is true: its code runs, in its order, and mistakes give the text that it shows."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project_paths import ROOT

import flawscope
from flawscope.datasets.parts import render, write_dataset
from flawscope.imaging.png import write_png

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SHOWN = re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
TINY: dict[str, Any] = {"resize": 64, "stages": [1, 2], "coreset": 90, "sigma": 2.0, "cross_fit": 2}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader who has images of parts."""
    write_dataset(tmp_path / "drawn", kinds=("steel",), size=64, train=12, test_good=4, test_defective=2)
    (tmp_path / "parts").mkdir()
    (tmp_path / "drawn" / "steel").rename(tmp_path / "parts" / "bottle")
    for number in (1, 2):
        write_png(tmp_path / "new" / f"{number:04d}.png", render("steel", 0, 900 + number, 64)[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Trainings as the page has them, but small, and with the backbone that needs no download; their arguments."""
    fit, asked = flawscope.fit, list[dict[str, Any]]()

    def small(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(fit).bind(*arguments, **named).arguments
        settings = bound.pop("settings", {})
        asked.append(bound)
        bound = {name: value for name, value in bound.items() if name not in ("backbone", "image_size")}
        return fit(**bound, settings=TINY | {name: value for name, value in settings.items() if name not in TINY})

    monkeypatch.setattr(flawscope, "fit", small)
    level = logging.getLogger("flawscope").level
    yield asked
    logging.getLogger("flawscope").setLevel(level)


def test_the_code_of_the_page_runs_and_prints_what_it_shows(
    parts: Path, small_fits: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    printed = ""
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
        printed += capsys.readouterr().out
    assert len(BLOCKS) >= 9
    assert {"runs", "bottle.flaw", "report"} <= {path.name for path in parts.iterdir()}
    assert [fit["data"] for fit in small_fits] == ["parts/bottle", "parts/bottle", "nowhere", "parts/bottle"]
    assert names["bundle"].thresholds == flawscope.Bundle.load("bottle.flaw").thresholds
    assert "True" in printed.splitlines()
    # What the page shows as printed is a line of what was printed.
    assert len(SHOWN) == 4
    assert set(SHOWN) <= set(printed.splitlines())


def test_every_public_name_is_on_the_page() -> None:
    assert [name for name in flawscope.__all__ if name != "__version__" and f"flawscope.{name}" not in PAGE] == []
