"""The model of a search: it gives the limits and shares that were worked out for the kernel of before."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmark_scripts import load_script
from project_paths import ROOT

model = load_script("search_model")
RESULTS = ROOT / "benchmarks" / "results" / "0.1.0"


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
    assert ends[0] == (407 + 8 * 39) * 2 + 100


def test_instructions_are_those_of_the_compiled_kernels() -> None:
    rows = json.loads((RESULTS / "cuda_loops--nvcc.json").read_text(encoding="utf-8"))["rows"]
    counted = {
        "Survivors" in row["kernel"]: row
        for row in rows
        if row["sources"] == "now" and row["compute_capability"] == "8.7"
    }
    for is_list, kernel in ((False, model.NOW), (True, model.LISTS)):
        row, end = counted[is_list], counted[is_list]["tile_end"]
        assert (kernel.loop, kernel.epilogue) == (row["step"]["instructions"], end["always"])
        assert kernel.found == end["live" if is_list else "changed"]
    end = counted[True]["tile_end"]
    assert (model.BUFFERS.offer, model.BUFFERS.stage) == (end["offer"], end["stage"])


# --- several neighbours


@pytest.mark.parametrize(("capacity", "stride"), [(1, 64), (16, 64), (17, 128), (64, 128)])
@pytest.mark.parametrize("tiles", [1, 5])
def test_the_selection_that_is_played_keeps_the_least_values(tiles: int, capacity: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.random((128, 256), np.float32) for _ in range(tiles)], axis=1)
    found = model.survive(tiles, capacity, stride)
    np.testing.assert_array_equal(found.nearest, np.sort(values, axis=1)[:, :capacity])


def test_a_first_tile_takes_what_follows_from_its_sizes() -> None:
    found = model.survive(1, 16, 64)
    # Eight warps look at their eight queries before there is a limit, and have something at all 16 places. Later rounds
    # add to that.
    assert found.looked > 8 * 8
    assert found.offered > 8 * 8 * 16
    # A full buffer is sorted, and what 16 of 64 leave does not fit into the next: at least once more, and at the end.
    assert found.rounds >= 3
    # All buffers were full, of 16 queries in each warp, and were sorted at once.
    assert found.sorts == found.merged == 16 * found.rounds
    assert model.survive(1, 64, 128).sorts > model.survive(1, 64, 128).merged  # more than 64 keys


def test_selection_gets_rarer_with_more_rows_and_dearer_with_more_neighbours() -> None:
    for k in (2, 9, 64):
        ends = [model.list_clocks(tiles, k) / tiles for tiles in (1, 8, 64)]
        assert ends == sorted(ends, reverse=True)
        assert ends[-1] > model.LISTS.epilogue * 2 + model.LISTS.waiting
    assert [model.list_sizes(k) for k in (2, 9, 10, 57, 64)] == [(9, 64), (16, 64), (17, 128), (64, 128), (64, 128)]
    assert model.list_clocks(8, 2) < model.list_clocks(8, 9) < model.list_clocks(8, 64)


def test_several_neighbours_cost_more_than_one_and_are_of_the_same_product() -> None:
    for device in model.DEVICES.values():
        one = model.predict(model.NOW, device, 6272, 16384, 384)
        several = model.predict(model.LISTS, device, 6272, 16384, 384, 9)
        assert {**one["step_clocks"], "issue": 0} == {**several["step_clocks"], "issue": 0}
        assert one["predicted_milliseconds"] < several["predicted_milliseconds"]
        assert several["selection"]["rounds"] > 0


def test_the_kept_prediction_is_that_of_the_model() -> None:
    document = json.loads((RESULTS / "search_model--prediction.json").read_text(encoding="utf-8"))
    assert "prediction, not a measurement" in document["state"]
    for kept, row in zip(document["rows"], model.predictions(), strict=True):
        # Of several neighbours rows are drawn, and another NumPy may draw others.
        drawn = {"predicted_milliseconds", "predicted_share_of_cublas", "epilogue_clocks", "selection"}
        exact = row.keys() - (drawn if row["k"] > 1 else set())
        measured = {"measured_milliseconds", "measured_share_of_cublas"}
        assert {name: kept[name] for name in exact - measured} == {name: row[name] for name in exact - measured}
        for name in drawn - exact:
            assert kept[name] == pytest.approx(row[name], rel=0.05)
