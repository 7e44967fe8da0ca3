"""The model of a search: it gives the limits and shares that were worked out for the kernel of before."""

from __future__ import annotations

import json

import pytest
from benchmark_scripts import load_script
from project_paths import ROOT

import flawscope

model = load_script("search_model")


@pytest.mark.parametrize(("device", "tensor", "l2"), [("H200", 410, 650), ("Orin", 512, 256), ("L4", 1024, 256)])
def test_the_limits_of_the_kernel_of_before_are_those_of_its_table(device: str, tensor: float, l2: float) -> None:
    clocks = model.step_clocks(model.BEFORE, model.DEVICES[device], 384)
    assert clocks["tensor"] == tensor
    assert clocks["shared"] == 384 + 128  # 12 loads of 8 warps, and the copies
    assert clocks["l2"] == pytest.approx(l2)


# N, M, D, and the least and largest share of cuBLAS that was expected of the kernel of before.
@pytest.mark.parametrize(
    ("device", "size", "least", "most"),
    [
        ("H200", (50176, 65536, 1024), 0.35, 0.45),
        ("H200", (50176, 65536, 384), 0.25, 0.35),
        ("H200", (784, 16384, 384), 0.10, 0.20),
        ("Orin", (50176, 65536, 1024), 0.55, 0.70),
        ("Orin", (50176, 65536, 384), 0.45, 0.60),
        ("Orin", (784, 16384, 384), 0.40, 0.55),
        ("L4", (50176, 65536, 1024), 0.70, 0.80),
        ("L4", (50176, 65536, 384), 0.60, 0.75),
        ("L4", (784, 16384, 384), 0.50, 0.60),
    ],
)
def test_the_shares_of_the_kernel_of_before_are_those_expected(
    device: str, size: tuple[int, int, int], least: float, most: float
) -> None:
    share = model.predict(model.BEFORE, model.DEVICES[device], *size)["predicted_share_of_cublas"]
    assert least - 0.015 <= share <= most + 0.015


def test_the_new_kernel_is_limited_by_tensor_cores_where_queries_stay() -> None:
    for device in model.DEVICES.values():
        clocks = model.step_clocks(model.NOW, device, 128)
        assert max(clocks, key=clocks.__getitem__) == "tensor"
    # Too many channels for the shared memory of an H200: its second-level cache is the limit again.
    clocks = model.step_clocks(model.NOW, model.DEVICES["H200"], 1024)
    assert max(clocks, key=clocks.__getitem__) == "l2"


def test_fewer_new_minima_make_the_end_of_a_tile_cheaper() -> None:
    ends = [model.epilogue_clocks(model.NOW, tiles) for tiles in (1, 8, 64, 512)]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == (455 + 8 * 33) * 2 + 100


def test_the_kept_prediction_is_that_of_the_model() -> None:
    path = ROOT / "benchmarks" / "results" / flawscope.__version__ / "search_model--prediction.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert "prediction, not a measurement" in document["state"]
    predicted = [
        model.predict(kernel, device, *size)
        for size in model.SIZES
        for device in model.DEVICES.values()
        for kernel in (model.BEFORE, model.NOW)
    ]
    for kept, row in zip(document["rows"], predicted, strict=True):
        assert {**kept, "measured_milliseconds": None, "measured_share_of_cublas": None} == row
