"""Families of timm from a file in timm's own names to a bundle, beside the plain network."""

from __future__ import annotations

from pathlib import Path

import pytest
from backbone_families import NETWORKS, Row, table, try_network
from small_networks import SMALL


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "hiera_tiny_224", "convnext_atto"],
)
def test_a_small_network_of_a_family_goes_from_its_file_to_a_bundle(name: str, tmp_path: Path) -> None:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in SMALL[name].items()}
    row = try_network(name, tmp_path, options)
    assert row.problem == ""
    assert row.parity < 1e-4
    assert row.difference < 1e-4
    assert row.layout == ("NHWC" if "swin" in name else "NCHW")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_network_of_every_family_goes_from_its_file_to_a_bundle(name: str, tmp_path: Path) -> None:
    assert try_network(name, tmp_path).problem == ""


def test_at_least_twenty_families_are_tried_and_the_page_has_a_row_for_each() -> None:
    assert len({family for family, _ in NETWORKS.values()}) >= 20
    page = (Path(__file__).resolve().parents[3] / "docs" / "backbones.md").read_text(encoding="utf-8")
    for name, (family, size) in NETWORKS.items():
        assert f"| {family} | `{name}` | {size} |" in page


def test_what_is_wrong_stands_in_the_table_in_place_of_figures() -> None:
    right = Row("A", "a", 64, (1,), (8,), (4,), "NCHW", 1e-7, 2e-7)
    wrong = Row("B", "b", 64, problem="channels and strides: expected 8, got 42")
    lines = table([right, wrong]).splitlines()
    assert lines[2] == "| A | `a` | 64 | 1 | 8 | 4 | NCHW | 1e-07 | 2e-07 |"
    assert lines[3].endswith("channels and strides: expected 8, got 42 |")
