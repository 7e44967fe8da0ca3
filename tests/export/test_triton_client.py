"""The client of docs/triton.md, run as it stands there against a stand-in for Triton."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from project_paths import ROOT
from tiny_bundle import SIDE, golden_image, tiny_thresholds, write_tiny_bundle
from tiny_dataset import anomalous_images, normal_images
from triton_stand_in import StandIn, client_module

from flawscope.bundle import open_bundle
from flawscope.export.triton import TritonRecord, write_triton
from flawscope.runtime import Inspector

PAGE = ROOT / "docs" / "triton.md"


def write(bundle: Path, repository: Path) -> TritonRecord:
    with open_bundle(bundle) as opened:
        return write_triton(opened, repository)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A calibrated bundle of a few kilobytes."""
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    return tmp_path / "tiny.flaw"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client of docs/triton.md: a function that runs it against a stand-in."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

    def start(server: StandIn) -> dict[str, Any]:
        for name, module in client_module(server).items():
            monkeypatch.setitem(sys.modules, name, module)
        names: dict[str, Any] = {"__name__": "client"}
        exec(compile(code, str(PAGE), "exec"), names)
        return names

    return start


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_the_client_of_the_page_decides_as_the_inspector_does(bundles, tiny_root, tmp_path, capsys, example, method):
    write(bundles[method], tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    images = [*normal_images(tiny_root)[:3], *anomalous_images(tiny_root)[:3], broken]
    example(StandIn(tmp_path / method))["main"]("localhost:8000", tmp_path / method, *images)
    said = [
        line.removeprefix(f"{image} ") for line, image in zip(capsys.readouterr().out.splitlines(), images, strict=True)
    ]
    with Inspector.load(bundles[method], "cpu", path="graph") as inspector:
        expected = [result.decision for result in inspector(images)]
    assert [line.split()[0] for line in said] == expected
    assert {"accept", "reject", "fault"} == set(expected)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"score": np.full((1, 1), np.nan, np.float32)}, "NaN or infinity"),
        ({"anomaly_map": np.full((1, SIDE, SIDE), np.inf, np.float32)}, "NaN or infinity"),
        ({"score": None}, "TypeError"),
    ],
)
def test_the_client_takes_a_bad_answer_for_a_fault(tiny, tmp_path, example, reply, reason):
    record = write(tiny, tmp_path / "models")
    assert cv2.imwrite(str(tmp_path / "good.png"), golden_image() // 2)
    server = StandIn(tmp_path / "models" / "tiny")
    names = example(server)
    client = names["triton"].InferenceServerClient("localhost:8000", network_timeout=1)
    assert names["inspect"](client, record, tmp_path / "good.png") == ("accept", None)
    server.replies = reply
    decision, why = names["inspect"](client, record, tmp_path / "good.png")
    assert decision == "fault"
    assert reason in why


def test_the_client_refuses_a_server_that_runs_something_else(tiny, tmp_path, example):
    write(tiny, tmp_path / "models")
    folder = tmp_path / "models" / "tiny"
    other = StandIn(folder)
    other.config["parameters"][1]["value"]["string_value"] = "f" * 64
    with pytest.raises(SystemExit, match="the server runs the graph ffffffffffff"):
        example(other)["main"]("localhost:8000", folder)
    drifted = StandIn(folder)
    drifted.replies = {"score": np.full((1, 1), 201.0, np.float32)}
    with pytest.raises(SystemExit, match="expected the score 200, got 201"):
        example(drifted)["main"]("localhost:8000", folder)
    example(StandIn(folder))["main"]("localhost:8000", folder)
