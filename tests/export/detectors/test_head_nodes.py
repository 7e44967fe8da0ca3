"""The heads as ONNX nodes, on hand-made features, against the native heads and against the formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hand_graphs import (
    CHANNELS,
    GRID,
    POSITIONS,
    build_graph,
    naive_patchcore,
    patches_of,
    random_images,
    run_graph,
)
from native_heads import build_head
from onnx import TensorProto, helper

from flawscope.arrays import Float32Array
from flawscope.bundle import PadimHead, PatchcoreHead
from flawscope.cpp_ext import neighbour_table
from flawscope.export.detectors import head_nodes as head_module
from flawscope.export.detectors.head_nodes import BankFile
from flawscope.imaging.grid_places import GridPlaces
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.triangles import pack_triangles

SIZE = (16, 12)
FORMS = ["whole", "float32", "float16"]
"""How bundles store the factors of PaDiM."""
PLACES = [None, GridPlaces((-1.25, 0.5), (1.5, 2.0))]
"""A grid that is centred, and one that lies elsewhere."""


def integer_bank(rows: int, seed: int = 0, high: int = 12) -> Float32Array:
    return np.random.default_rng(seed).integers(0, high, (rows, CHANNELS)).astype(np.float32)


def distinct_bank(rows: int, seed: int = 0) -> Float32Array:
    """Return a bank in which neighbours have no ties: equation 7 then has one reading."""
    return np.random.default_rng(seed).uniform(0, 4, (rows, CHANNELS)).astype(np.float32)


def tensors_for(bank: Float32Array, head: PatchcoreHead) -> dict[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {"bank": bank}
    if head.reweight == "paper" and head.neighbors > 1:
        tensors["neighbours"] = neighbour_table(bank, min(head.neighbors, len(bank)))
    return tensors


@pytest.mark.parametrize("rows", [2, 40, 64, 65])
def test_patchcore_distances_are_exact_on_integers(tmp_path: Path, rows: int) -> None:
    head = PatchcoreHead(GRID, 9, "none", 0.0)
    bank, images = integer_bank(rows), random_images(3, 1)
    build_graph(tmp_path, head, {"bank": bank}, GRID, 4)  # a map of the grid's size without smoothing: no arithmetic
    maps, scores = run_graph(tmp_path, images)
    squared = ((patches_of(images)[:, :, None] - bank[None, None]) ** 2).sum(axis=3).min(axis=2)
    np.testing.assert_array_equal(maps, np.sqrt(squared).reshape(3, *GRID))
    np.testing.assert_array_equal(scores, np.sqrt(squared).max(axis=1))
    native_maps, native_scores = build_head(head, {"bank": bank}, GRID)(patches_of(images))
    np.testing.assert_array_equal(maps, native_maps)
    np.testing.assert_array_equal(scores, native_scores)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("reweight", ["paper", "seed", "none"])
@pytest.mark.parametrize(("rows", "neighbors"), [(30, 1), (30, 2), (30, 9), (30, 30), (5, 9), (2, 100), (1, 9), (1, 1)])
def test_patchcore_scores_follow_the_formula(
    tmp_path: Path, reweight: Any, rows: int, neighbors: int, places: GridPlaces | None
) -> None:
    head = PatchcoreHead(GRID, neighbors, reweight, 2.0, places=places)
    bank, images = distinct_bank(rows), random_images(4, 2, high=5)
    tensors = tensors_for(bank, head)
    build_graph(tmp_path, head, tensors, SIZE, 4)
    maps, scores = run_graph(tmp_path, images)
    native_maps, native_scores = build_head(head, tensors, SIZE)(patches_of(images))
    np.testing.assert_allclose(native_maps, maps, rtol=1e-5)
    np.testing.assert_allclose(native_scores, scores, rtol=1e-5)
    to_rows, to_columns = (matrix.astype(np.float64) for matrix in map_matrices(GRID, SIZE, 2.0, places))
    for index, patches in enumerate(patches_of(images)):
        distances, score = naive_patchcore(patches, bank, head)
        np.testing.assert_allclose(scores[index], score, rtol=1e-5)
        np.testing.assert_allclose(maps[index], to_rows @ distances.reshape(GRID) @ to_columns, rtol=1e-5)
    assert scores.min() > 0


def matched_rows(folder: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the bank row that the graph matched to every patch."""
    model = onnx.load(folder / "score.onnx", load_external_data=False)
    model.graph.output.append(helper.make_tensor_value_info("head.matched", TensorProto.INT64, None))
    onnx.save(model, folder / "matched.onnx")
    session = onnxruntime.InferenceSession(str(folder / "matched.onnx"), providers=["CPUExecutionProvider"])
    (rows,) = session.run(["head.matched"], {"image": images})
    return np.asarray(rows, np.int64)


@pytest.mark.parametrize("rows", [63, 64, 65, 128, 200])
@pytest.mark.parametrize("reweight", ["paper", "seed", "none"])
def test_a_bank_of_several_blocks_gives_what_one_block_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, reweight: Any
) -> None:
    head = PatchcoreHead(GRID, 5, reweight, 1.0)
    bank = integer_bank(rows, high=3)  # 729 possible rows: many of them repeat, within blocks and across
    tensors = tensors_for(bank, head)
    images = random_images(3, 3, high=4)
    results = []
    for name, block in (("one", 1 << 24), ("many", 1)):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(head_module, "BLOCK_ELEMENTS", block)
        model = build_graph(folder, head, tensors, SIZE, 3)
        blocks = sum(node.op_type == "Gemm" and node.name.startswith("head/product") for node in model.graph.node)
        assert blocks == (1 if name == "one" else -(-rows // 64))
        results.append((*run_graph(folder, images), matched_rows(folder, images)))
    for of_one_block, of_several in zip(*results, strict=True):
        np.testing.assert_array_equal(of_one_block, of_several)


def test_equal_distances_go_to_the_lower_row_also_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "BLOCK_ELEMENTS", 1)
    bank = np.full((150, CHANNELS), 200, np.float32) + np.arange(150, dtype=np.float32)[:, None]
    bank[[30, 64, 100, 149]] = 7.0
    bank[[70, 140]] = 3.0
    head = PatchcoreHead(GRID, 2, "paper", 0.0)
    build_graph(tmp_path, head, tensors_for(bank, head), GRID, 2)
    images = np.full((2, 4, 4, 3), 7, np.uint8)
    images[1] = 3
    assert matched_rows(tmp_path, images).reshape(2, POSITIONS).tolist() == [[30] * POSITIONS, [70] * POSITIONS]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("reweight", ["paper", "seed"])
def test_an_image_scores_the_same_in_every_batch(tmp_path: Path, batch: int, reweight: Any) -> None:
    head = PatchcoreHead(GRID, 4, reweight, 1.0)
    build_graph(tmp_path, head, tensors_for(integer_bank(40), head), SIZE, 5)
    images = random_images(5, 4)
    maps, scores = run_graph(tmp_path, images[:batch])
    assert maps.shape == (batch, *SIZE)
    assert scores.shape == (batch,)
    assert maps.dtype == scores.dtype == np.float32
    for index in range(batch):
        alone = run_graph(tmp_path, images[index : index + 1])
        np.testing.assert_allclose(maps[index], alone[0][0], rtol=1e-6)
        np.testing.assert_allclose(scores[index], alone[1][0], rtol=1e-6)


def test_an_image_made_of_bank_rows_scores_zero(tmp_path: Path) -> None:
    images = random_images(2, 5)
    head = PatchcoreHead(GRID, 9, "paper", 4.0)
    build_graph(tmp_path, head, tensors_for(patches_of(images).reshape(-1, CHANNELS), head), SIZE, 2)
    maps, scores = run_graph(tmp_path, images)
    assert np.abs(maps).max() == 0
    assert np.abs(scores).max() == 0


def test_small_distances_beside_large_norms_keep_their_digits(tmp_path: Path) -> None:
    bank = np.full((3, CHANNELS), 250.0, np.float32)
    bank[1] += 0.125
    bank[2] = 0
    head = PatchcoreHead(GRID, 2, "none", 0.0)
    build_graph(tmp_path, head, {"bank": bank}, GRID, 1)
    images = np.full((1, 4, 4, 3), 250, np.uint8)
    images[0, 0, 0] = 251
    maps, _ = run_graph(tmp_path, images)
    assert maps[0].ravel()[1:].max() == 0.0
    # One pixel of two is one level above row 0, and 7/8 above row 1 while the other is 1/8 below.
    assert maps[0, 0, 0] == pytest.approx(np.sqrt(3 * 0.875**2 + 3 * 0.125**2), rel=1e-6)


def spd_whitening(seed: int) -> Float32Array:
    generator = np.random.default_rng(seed)
    return generator.integers(-2, 3, (POSITIONS, CHANNELS, CHANNELS)).astype(np.float32)


def factors_as(form: str, whitening: Float32Array) -> tuple[dict[str, npt.NDArray[Any]], Float32Array]:
    """Return the tensor of factors in a form that bundles have, and the matrices that it says."""
    if form == "whole":  # as bundles had it before
        return {"whitening": whitening}, whitening
    upper = np.triu(whitening)
    return {"triangles": pack_triangles(upper.astype(form))}, upper.astype(form).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_padim_distances_are_exact_on_integers(tmp_path: Path, form: str) -> None:
    head = PadimHead(GRID, 0.0)
    mean = integer_bank(POSITIONS, 6)
    factors, whitening = factors_as(form, spd_whitening(7))
    tensors = {"mean": mean, **factors}
    build_graph(tmp_path, head, tensors, GRID, 4)
    images = random_images(3, 8)
    maps, scores = run_graph(tmp_path, images)
    white = np.einsum("npd,pde->npe", patches_of(images) - mean, whitening)
    expected = np.sqrt((white**2).sum(axis=2))
    np.testing.assert_array_equal(maps, expected.reshape(3, *GRID))
    np.testing.assert_array_equal(scores, expected.max(axis=1))
    native_maps, native_scores = build_head(head, tensors, GRID)(patches_of(images))
    np.testing.assert_array_equal(maps, native_maps)
    np.testing.assert_array_equal(scores, native_scores)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_padim_scores_are_the_maximum_of_the_smooth_map(
    tmp_path: Path, batch: int, places: GridPlaces | None, form: str
) -> None:
    head = PadimHead(GRID, 3.0, places)
    factors, whitening = factors_as(form, spd_whitening(7) / np.float32(7))
    tensors = {"mean": integer_bank(POSITIONS, 6), **factors}
    build_graph(tmp_path, head, tensors, SIZE, 3)
    images = random_images(batch, 9)
    maps, scores = run_graph(tmp_path, images)
    white = np.einsum("npd,pde->npe", patches_of(images) - tensors["mean"], whitening).astype(np.float64)
    rows, columns = (matrix.astype(np.float64) for matrix in map_matrices(GRID, SIZE, 3.0, places))
    expected = rows @ np.sqrt((white**2).sum(axis=2)).reshape(batch, *GRID) @ columns
    np.testing.assert_allclose(maps, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores, maps.max(axis=(1, 2)))
    native_maps, native_scores = build_head(head, tensors, SIZE)(patches_of(images))
    np.testing.assert_allclose(native_maps, maps, rtol=1e-5)
    np.testing.assert_allclose(native_scores, scores, rtol=1e-5)


@pytest.mark.parametrize("method", ["patchcore", "padim"])
@pytest.mark.parametrize("graph", ["features", "score"])
def test_exported_graphs_use_standard_operators_only_and_cast_first(
    uncalibrated_bundles: dict[str, Path], method: str, graph: str
) -> None:
    model = onnx.load(uncalibrated_bundles[method] / f"{graph}.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert len(model.functions) == 0
    (image,) = model.graph.input
    consumers = [node.op_type for node in model.graph.node if image.name in node.input]
    assert consumers == ["Cast"]  # TensorRT rejects a transpose of uint8
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    assert image.type.tensor_type.shape.dim[0].dim_param != ""
    outputs = [output.name for output in model.graph.output]
    assert outputs == (["patches"] if graph == "features" else ["anomaly_map", "score"])


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_the_bank_is_stored_once(uncalibrated_bundles: dict[str, Path], method: str) -> None:
    folder = uncalibrated_bundles[method]
    model = onnx.load(folder / "score.onnx", load_external_data=False)
    external = {proto.name for proto in model.graph.initializer if proto.data_location == TensorProto.EXTERNAL}
    expected = {"bank", "norms", "neighbours"} if method == "patchcore" else {"mean", "triangles"}
    assert external == expected
    assert (folder / "score.onnx").stat().st_size < 500_000


def test_a_stored_tensor_is_found_where_it_lies(tmp_path: Path) -> None:
    bank = integer_bank(10)
    build_graph(tmp_path, PatchcoreHead(GRID, 3, "none", 0.0), {"bank": bank}, GRID, 1)
    file = BankFile(tmp_path / "bank.safetensors")
    assert file.shape("bank") == (10, CHANNELS)
    proto = file.initializer("bank", "part")
    where = {entry.key: entry.value for entry in proto.external_data}
    assert where["location"] == "bank.safetensors"
    data = (tmp_path / "bank.safetensors").read_bytes()
    offset, length = int(where["offset"]), int(where["length"])
    stored = np.frombuffer(data[offset : offset + length], np.float32).reshape(tuple(proto.dims))
    np.testing.assert_array_equal(stored, bank)
