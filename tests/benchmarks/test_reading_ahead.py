"""The benchmark of reading ahead: every way has its figures, and another score ends it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from benchmark_scripts import load_script
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.runtime import Inspector, Result


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("reading_ahead")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    (tmp_path / "images").mkdir()
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "images" / f"{seed}.png"), image)
    given = [str(tmp_path / "tiny.flaw"), str(tmp_path / "images"), "--heights", "0", "64", "--batches", "1", "4"]
    return [*given, "--ahead", "0", "2", "--turns", "2", "--out", str(tmp_path / "out.json")]


def test_every_way_has_its_figures_beside_the_first(script: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    script.main(arguments)
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert document["suite"] == "reading_ahead"
    ways = [(row["height"], row["batch"], row["ahead"]) for row in document["rows"]]
    assert ways == list(itertools.product((0, 64), (1, 4), (0, 2)))
    for row in document["rows"]:
        assert 0 < row["image_ms"]["min"] <= row["image_ms"]["median"]
        assert row["times_first"]["p25"] <= row["times_first"]["p50"] <= row["times_first"]["p75"]
        if row["ahead"] == 0:
            assert set(row["times_first"].values()) == {1.0}
    assert str(tmp_path) not in text


def test_another_score_with_reading_ahead_ends_it(
    script: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Inspector.stream

    def wrong(self: Inspector, sources: Any, batch: int, *, ahead: int) -> Iterator[Result]:
        yield from itertools.islice(stream(self, sources, batch), len(sources) - (ahead > 0))

    monkeypatch.setattr(Inspector, "stream", wrong)
    with pytest.raises(SystemExit, match="reading ahead 2: expected the scores without, got others"):
        script.main(arguments)
