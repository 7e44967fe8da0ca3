"""The bank switches' script: the part of a set that it takes, and the differences that it reports."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import load_script
from tiny_dataset import CATEGORY

from flawscope.config import build_config


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("bank_switches")


def test_a_part_has_so_many_of_each_kind(script: ModuleType, tiny_root: Path) -> None:
    dataset = script.part_of_dataset(tiny_root / CATEGORY, 10, 2)
    assert len(dataset.train_good) == 10
    kinds = [sample.defect for sample in dataset.test]
    assert {kind: kinds.count(kind) for kind in kinds} == {"good": 2, "pitting": 2, "stain": 2}
    assert dataset == script.part_of_dataset(tiny_root / CATEGORY, 10, 2)


def test_every_switch_is_a_setting_that_is_accepted(script: ModuleType) -> None:
    assert next(iter(script.SWITCHES.items())) == ("base", {})
    for changes in script.SWITCHES.values():
        build_config("patchcore", {"backbone": "mobilenetv2_100", **changes})


def test_differences_are_from_the_base_of_the_same_seeds(script: ModuleType) -> None:
    def run(switch: str, seed: int, value: float) -> dict[str, object]:
        return {"switch": switch, "seed": seed, **dict.fromkeys(script.FIGURES, value)}

    runs = [run("base", 0, 0.5), run("base", 1, 0.7), run("b", 0, 0.6), run("b", 1, 0.6), run("b", 2, 9.0)]
    rows = script.summarise([*runs, {"switch": "c", "seed": 0, "refused": "no"}])
    found = {(row["switch"], row["figure"]): (row["mean"], row["difference"], row["seeds"]) for row in rows}
    assert found["base", "pixel_ap"] == (pytest.approx(0.6), 0, 2)
    assert found["b", "pixel_ap"] == (pytest.approx(0.6), pytest.approx(0), 2)  # seed 2 has no base
    assert {row["switch"] for row in rows} == {"base", "b"}
