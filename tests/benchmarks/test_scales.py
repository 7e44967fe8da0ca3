"""The script that measures what scales cost: it measures the graphs that a detector has, one scale first."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import load_script
from small_networks import SMALL

VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("scales")


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "channels"),
    [
        ("scattering", 150),
        pytest.param(VIT, 2 * SMALL[VIT]["embed_dim"], marks=pytest.mark.slow),
    ],
)
def test_every_choice_is_measured_beside_one_scale(
    script: ModuleType, tmp_path: Path, backbone: str, channels: int
) -> None:
    out = tmp_path / "scales.json"
    arguments = ["--backbone", backbone, "--stages", "1,2", "--size", "64", "--scales", "0.75,1", "1", "--rounds", "2"]
    if backbone in SMALL:
        arguments += ["--backbone-options", json.dumps(SMALL[backbone])]
    script.main([*arguments, "--rows", "20", "--threads", "1", "--out", str(out)])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["suite"] == "scales"
    assert document["settings"]["weights"] == "random"
    one, two = document["rows"]
    assert (one["scales"], one["sizes"], one["channels"]) == ([1.0], [[64, 64]], channels)
    assert (two["scales"], two["sizes"], two["channels"]) == ([0.75, 1.0], [[64, 64], [48, 48]], 2 * channels)
    assert one["grid_patches"] == two["grid_patches"]
    assert (one["pixels_ratio"], one["graph_ratio"], two["pixels_ratio"]) == (1, 1, 1 + 0.75**2)
    assert two["graph_ms"] > 0
    assert two["search_ms"] > 0
