"""Sketches: edges as OpenCV finds them, no fine detail, and what training does to them."""

from __future__ import annotations

import itertools
import warnings

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from flawscope.errors import ArgumentError
from flawscope.imaging.edges import canny_edges
from flawscope.training.diffusion.sketch import Sketcher, corrupt_sketches, sobel_edges


def part_images(count: int, height: int, width: int) -> Tensor:
    """Noise with a bright box, which has edges of every strength."""
    drawn = torch.randint(0, 100, (count, height, width, 3), generator=torch.Generator().manual_seed(count))
    drawn[:, height // 4 : height // 2, width // 4 : width // 2] += 150
    return drawn.to(torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- Edges ---------------------------------------------------------------------------------------------------------


def test_sobel_is_opencvs_gradient_of_the_luminance_over_its_largest_value() -> None:
    images = part_images(2, 20, 28)
    sketches = sobel_edges(images)
    assert sketches.shape == (2, 1, 20, 28)
    assert sketches.dtype == torch.float32
    for image, edges in zip(images.numpy(), sketches[:, 0], strict=True):
        gray = image.astype(np.float64) @ (0.299, 0.587, 0.114) / 255.0
        across, down = (
            cv2.Sobel(gray, cv2.CV_64F, *axes, borderType=cv2.BORDER_REPLICATE) for axes in ((1, 0), (0, 1))
        )
        np.testing.assert_allclose(edges, np.hypot(across, down) / 20.0**0.5, atol=1e-6)


def test_the_strongest_of_all_edges_is_one() -> None:
    neighbours = torch.tensor(list(itertools.product((0, 255), repeat=9)), dtype=torch.uint8)
    images = neighbours.reshape(-1, 3, 3, 1).expand(-1, -1, -1, 3)
    assert float(sobel_edges(images)[:, 0, 1, 1].max()) == pytest.approx(1.0, abs=1e-6)
    assert float(sobel_edges(images).max()) <= 1.0


def test_an_image_of_one_colour_has_no_edges_not_even_at_its_border() -> None:
    plain = torch.full((1, 16, 16, 3), 201, dtype=torch.uint8)
    # Luminance is a sum of products: what its rounding leaves in a difference is not an edge.
    assert float(sobel_edges(plain).max()) < 1e-6
    assert float(canny_edges(plain.numpy()).max()) == 0.0


def test_gradients_flow_through_sobel_and_are_finite_where_there_is_no_edge() -> None:
    values = torch.zeros((1, 12, 12, 3))
    values[:, 4:8, 4:8] = 200.0
    values.requires_grad_(True)
    Sketcher("sobel", (12, 12), 6)(values).square().sum().backward()
    assert values.grad is not None
    assert bool(torch.isfinite(values.grad).all())
    assert float(values.grad.abs().max()) > 0.0


def test_canny_is_opencvs_after_a_blur() -> None:
    images = part_images(2, 32, 40)
    sketches = canny_edges(images.numpy())
    assert sketches.shape == (2, 1, 32, 40)
    for image, edges in zip(images.numpy(), sketches[:, 0], strict=True):
        gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 0)
        np.testing.assert_array_equal(edges, cv2.Canny(gray, 50, 150) / 255.0)
    assert set(np.unique(sketches).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(Sketcher("canny", (32, 40), 40)(images), torch.from_numpy(sketches))


# ---- Softening -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "side"), [((32, 32), 8), ((24, 40), 15), ((40, 24), 7), ((17, 9), 5)])
def test_softening_is_a_mean_over_areas_and_a_bilinear_enlargement(size: tuple[int, int], side: int) -> None:
    edges = torch.rand((2, 1, *size), generator=generator())
    softened = Sketcher("sobel", size, side).soften(edges)
    rows, columns = (max(1, round(length * side / max(size))) for length in size)
    for edge_map, soft in zip(edges, softened, strict=True):
        small = cv2.resize(edge_map[0].numpy(), (columns, rows), interpolation=cv2.INTER_AREA)
        expected = functional.interpolate(torch.from_numpy(small)[None, None], size=size, mode="bilinear")
        torch.testing.assert_close(soft[None], expected, atol=2e-6, rtol=0.0)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 40),
    st.floats(0.0, 1.0, width=32),
)
def test_softening_keeps_a_constant_and_the_range(size: tuple[int, int], side: int, value: float) -> None:
    sketcher = Sketcher("sobel", size, side)
    torch.testing.assert_close(
        sketcher.soften(torch.full((1, 1, *size), value)), torch.full((1, 1, *size), value), atol=1e-6, rtol=0.0
    )
    soft = sketcher.soften(torch.rand((1, 1, *size), generator=generator(side)).round())
    assert float(soft.min()) >= -1e-6
    assert float(soft.max()) <= 1.0 + 1e-6


def test_a_fine_line_hardly_survives_and_a_coarse_edge_does() -> None:
    edges = torch.zeros((1, 1, 64, 64))
    edges[:, :, 20, 8:24] = 1.0
    edges[:, :, 40:56, 8:56] = 1.0
    soft = Sketcher("sobel", (64, 64), 8).soften(edges)
    assert float(soft[:, :, :32].max()) < 0.15
    assert float(soft[:, :, 40:56].max()) > 0.95


def test_a_sketch_size_of_the_image_changes_nothing() -> None:
    edges = torch.rand((1, 1, 12, 20), generator=generator())
    for side in (20, 4096):
        assert torch.equal(Sketcher("sobel", (12, 20), side).soften(edges), edges)


def test_ready_edges_come_as_tensors_or_arrays_of_floats_or_bytes() -> None:
    sketcher = Sketcher("sobel", (8, 8), 4)
    bytes_ = (np.arange(64) * 4).astype(np.uint8).reshape(1, 1, 8, 8)
    softened = [
        sketcher.soften(torch.from_numpy(bytes_)),
        sketcher.soften(bytes_),
        sketcher.soften(bytes_.astype(np.float32) / 255.0),
    ]
    assert all(torch.equal(softened[0], other) for other in softened[1:])


def test_what_is_not_an_image_or_a_sketch_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"images: expected \[N, 8, 8, 3\], got \[1, 8, 9, 3\]"):
        Sketcher("sobel", (8, 8), 4)(torch.zeros((1, 8, 9, 3), dtype=torch.uint8))
    with pytest.raises(ArgumentError, match=r"edges: expected \[N, 1, 8, 8\], got \[1, 8, 8, 3\]"):
        Sketcher("sobel", (8, 8), 4).soften(torch.zeros((1, 8, 8, 3), dtype=torch.uint8))
    with pytest.raises(ArgumentError, match=r"edges: expected uint8 from 0 to 255 or floats .*, got torch\.int64"):
        Sketcher("sobel", (8, 8), 4).soften(torch.zeros((1, 1, 8, 8), dtype=torch.int64))
    with pytest.raises(ArgumentError, match=r"expected uint8 for canny, got torch\.float32"):
        Sketcher("canny", (8, 8), 4)(torch.zeros((1, 8, 8, 3)))
    with pytest.raises(ArgumentError, match="sketch_size: expected sizes of at least 1 pixel, got 0"):
        Sketcher("sobel", (8, 8), 0)


# ---- Corruption ----------------------------------------------------------------------------------------------------


def test_without_shares_nothing_is_corrupted_and_with_all_dropped_nothing_is_left() -> None:
    sketches = 0.5 + torch.rand((4, 1, 16, 16), generator=generator())
    assert torch.equal(corrupt_sketches(sketches, generator(), 0.0, 0.0), sketches)
    assert float(corrupt_sketches(sketches, generator(), 1.0, 1.0).abs().max()) == 0.0


def test_the_same_generator_corrupts_in_the_same_way_and_leaves_its_argument_alone() -> None:
    sketches = torch.rand((4, 1, 16, 16), generator=generator())
    before = sketches.clone()
    first, second, other = (corrupt_sketches(sketches, generator(seed), 0.1, 0.9) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(sketches, before)


@given(st.integers(1, 6), st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**20))
def test_every_value_is_its_own_or_nothing_or_anothers_of_the_same_place(
    count: int, height: int, width: int, seed: int
) -> None:
    # The number of an image is its value, so that a value says where it is from.
    values = torch.arange(1, count + 1).float()[:, None, None, None]
    places = torch.arange(height * width).reshape(1, 1, height, width) / 1000.0
    corrupted = corrupt_sketches(values + places, generator(seed), 0.0, 1.0)
    source = torch.where(corrupted == 0, torch.zeros(()), (corrupted - places).round())
    assert bool(((source >= 0) & (source <= count)).all())
    assert torch.equal(torch.where(source > 0, source + places, torch.zeros(())), corrupted)


def test_boxes_are_erased_and_pasted_in_a_part_of_a_sketch() -> None:
    sketches = torch.arange(1, 201).float()[:, None, None, None].expand(-1, 1, 32, 32)
    corrupted = corrupt_sketches(sketches, generator(), 0.0, 1.0)
    changed = (corrupted != sketches).float().mean(dim=(1, 2, 3))
    assert float(changed.min()) >= (1 / 8) ** 2  # at least one box of the least sides
    assert float(changed.max()) <= 3 * (1 / 2) ** 2  # at most three of the largest
    erased, pasted = ((corrupted == 0), (corrupted != 0) & (corrupted != sketches))
    assert 0.3 < float(erased.float().mean() / (corrupted != sketches).float().mean()) < 0.7
    assert bool(pasted.any())


def test_the_shares_are_those_that_were_asked_for() -> None:
    sketches = torch.arange(1, 1001).float()[:, None, None, None].expand(-1, 1, 8, 8)
    corrupted = corrupt_sketches(sketches, generator(), 0.1, 0.5)
    is_dropped = (corrupted == 0).all(dim=(1, 2, 3))
    is_whole = (corrupted == sketches).all(dim=(1, 2, 3))
    # Four deviations of a binomial of 1000: 0.038 and 0.063.
    assert float(is_dropped.float().mean()) == pytest.approx(0.1, abs=0.04)
    assert float(is_whole.float().mean()) == pytest.approx(0.9 * 0.5, abs=0.065)


# ---- Export --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_sobel_and_softening_export_with_a_batch_of_any_size() -> None:
    sketcher = Sketcher("sobel", (24, 40), 15).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own dependencies
        program = torch.onnx.export(
            sketcher,
            (part_images(2, 24, 40),),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim("N", min=1, max=8)},),
            verbose=False,
        )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    name = session.get_inputs()[0].name
    for count in (1, 2, 5):
        images = part_images(count, 24, 40)
        output = session.run(None, {name: images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(output), sketcher(images), atol=1e-6, rtol=0.0)
