"""A positional window in the head: exact on every path, in blocks and batches, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hand_graphs import CHANNELS, GRID, POSITIONS, build_graph, patches_of, random_images, run_graph
from native_heads import build_head
from onnx import TensorProto

from flawscope.bundle import PatchcoreHead
from flawscope.cpp_ext import reference
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.errors import BundleError
from flawscope.export.detectors import head_nodes

Tensors = dict[str, npt.NDArray[Any]]


def windowed(rows: int, seed: int = 0, high: int = 12) -> Tensors:
    """A bank of small integers and the places of its rows; some places have none."""
    generator = np.random.default_rng(seed)
    cells = np.sort(generator.choice(generator.integers(POSITIONS, size=5), rows))
    places = np.stack(np.divmod(cells, GRID[1]), axis=1).astype(np.int64)
    return {"bank": generator.integers(0, high, (rows, CHANNELS)).astype(np.float32), "places": places}


def expected(tensors: Tensors, radius: int, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    reach = window_reach(place_starts(tensors["places"], GRID), GRID, radius)
    patches = patches_of(images).reshape(-1, CHANNELS)
    squared, _ = reference.nearest_within(patches, tensors["bank"], tensors["places"], reach)
    return np.sqrt(squared).reshape(len(images), *GRID)


@pytest.mark.parametrize("block", [1, 1 << 24])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_graph_and_kernels_are_the_reference_exactly_on_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, radius: int, batch: int, block: int
) -> None:
    monkeypatch.setattr(head_nodes, "BLOCK_ELEMENTS", block)
    head = PatchcoreHead(GRID, 1, "none", 0.0, window=radius)
    tensors, images = windowed(rows, seed=rows), random_images(batch, 1)
    model = build_graph(tmp_path, head, tensors, GRID, 4)
    blocks = sum(node.op_type == "Gemm" for node in model.graph.node)
    assert blocks == (1 if block > 1 else -(-rows // 64))
    wanted = expected(tensors, radius, images)
    for maps, scores in (run_graph(tmp_path, images), build_head(head, tensors, GRID)(patches_of(images))):
        np.testing.assert_array_equal(maps, wanted)
        np.testing.assert_array_equal(scores, wanted.max(axis=(1, 2)))


def test_a_window_of_the_whole_grid_is_no_window(tmp_path: Path) -> None:
    tensors, images = windowed(90), random_images(2, 5)
    whole = build_head(PatchcoreHead(GRID, 1, "none", 1.0), {"bank": tensors["bank"]}, GRID)(patches_of(images))
    head = PatchcoreHead(GRID, 1, "none", 1.0, window=max(GRID))
    build_graph(tmp_path, head, tensors, GRID, 2)
    kernel, graph = build_head(head, tensors, GRID)(patches_of(images)), run_graph(tmp_path, images)
    np.testing.assert_array_equal(kernel[0], whole[0])
    np.testing.assert_array_equal(kernel[1], whole[1])
    np.testing.assert_allclose(graph[0], whole[0], rtol=1e-5)
    # And a smaller one is another head, or the test above would show nothing.
    near = build_head(PatchcoreHead(GRID, 1, "none", 1.0, window=0), tensors, GRID)(patches_of(images))
    assert (near[0] >= whole[0] - 1e-5).all()
    assert near[0].sum() > 1.05 * whole[0].sum()


def test_the_places_are_stored_once_and_the_graph_of_no_window_has_none(tmp_path: Path) -> None:
    head, tensors = PatchcoreHead(GRID, 1, "none", 0.0, window=1), windowed(20)
    with_window = build_graph(tmp_path, head, tensors, GRID, 2)
    plain = build_graph(tmp_path, msgspec.structs.replace(head, window=None), tensors, GRID, 2)

    def external(model: onnx.ModelProto) -> set[str]:
        return {proto.name for proto in model.graph.initializer if proto.data_location == TensorProto.EXTERNAL}

    assert external(with_window) == {"bank", "norms", "places"}
    assert external(plain) == {"bank", "norms"}
    assert not any("window" in node.name for node in plain.graph.node)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: None, r"bank: expected the tensor places, got \['bank'\]\. Export the bundle again"),
        (lambda places: places.astype(np.int32), r"bank: expected int64 with 2 dimensions in places, got int32"),
        (lambda places: places[:, 0].copy(), r"bank: expected int64 with 2 dimensions in places, got int64 \[20\]"),
        (lambda places: places[:-1], "bank: places: expected one for each of the 20 rows, got 19. Export"),
        (lambda places: np.repeat(places[:, :1], 3, axis=1), r"bank: places: expected integers \[M, 2\], got int64"),
        (lambda places: places[::-1].copy(), "bank: places: expected them in ascending order, .* Export"),
        (lambda places: places + 4, "bank: places: expected rows below 4 and columns below 2, got 4 to"),
        (lambda places: places - 5, "bank: places: expected rows below 4 and columns below 2, got -5 to"),
    ],
)
def test_a_window_on_a_bank_without_fitting_places_is_refused_in_one_line(change: Any, message: str) -> None:
    head, tensors = PatchcoreHead(GRID, 1, "none", 0.0, window=1), windowed(20)
    places = change(tensors.pop("places"))
    with pytest.raises(BundleError, match=message) as caught:
        build_head(head, tensors | ({} if places is None else {"places": places}), GRID)
    assert "\n" not in str(caught.value)


def test_a_head_that_says_nothing_of_a_window_has_none() -> None:
    plain = {"grid": [4, 2], "neighbors": 1, "reweight": "none", "sigma": 0.0, "type": "patchcore"}
    assert msgspec.convert(plain, PatchcoreHead).window is None
    for window in (-1, 8193, 1.5, "3"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(plain | {"window": window}, PatchcoreHead)


def test_a_grid_whose_tables_would_fill_the_memory_is_a_problem() -> None:
    head = PatchcoreHead((1024, 512), 1, "none", 0.0, window=1)
    assert head.problem((8192, 8192)) == "expected at most 262144 places in a patch grid with a window, got 524288"
    assert msgspec.structs.replace(head, window=None).problem((8192, 8192)) is None
