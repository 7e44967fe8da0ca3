"""A backbone at several scales: sizes, the resize, the order of stages, where they lie, and what is refused."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SMALL, small_settings
from torch import Tensor, nn

from flawscope.config import build_config
from flawscope.errors import ArgumentError
from flawscope.imaging.grid_places import GridPlaces
from flawscope.training.features.alignment import StageAlignment, measure_places
from flawscope.training.features.backbone import Backbone, stages_of, untrained_backbone
from flawscope.training.features.cached_backbone import CachedBackbone
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.features.scaled_backbone import Resizing, ScaledBackbone, scaled_backbone, scales_of
from flawscope.training.features.timm_network import resolve_network


class Strided(nn.Module):
    """Two stages by averages of windows, the second of which has twice the stride; moved by padding at one side."""

    def __init__(self, stride: int = 4, before: int = 0) -> None:
        super().__init__()
        self.stride, self.before = stride, before
        self.pretrained_cfg: dict[str, Any] = {}

    def forward(self, image: Tensor) -> list[Tensor]:
        padded = nn.functional.pad(image, (self.before, 0, self.before, 0), mode="replicate")
        padded = padded[..., : image.shape[2], : image.shape[3]]
        fine = nn.functional.avg_pool2d(padded, self.stride)
        return [fine, nn.functional.avg_pool2d(fine, 2)]

    @property
    def feature_info(self) -> Any:
        strides = [self.stride, 2 * self.stride]
        return type("Info", (), {"channels": lambda _: [3, 3], "reduction": lambda _: strides})()


def plain(network: nn.Module) -> Backbone:
    # Pixels from 0 to 255 as they are.
    return Backbone(network, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)).eval()


def triangle(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return the weights of the triangle filter from its definition, float64 [target, source]."""
    ratio = source / target
    reach = max(1.0, ratio)
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * ratio
        weights[row] = np.clip(1 - np.abs(np.arange(source) + 0.5 - centre) / reach, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@given(
    source=st.tuples(st.integers(16, 60), st.integers(16, 60)),
    target=st.tuples(st.integers(4, 90), st.integers(4, 90)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_a_resize_is_that_of_the_triangle_filter(source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (2, *source, 3), np.uint8)
    got = Resizing(source, target)(torch.from_numpy(images)).numpy()
    rows, columns = triangle(source[0], target[0]), triangle(source[1], target[1])
    expected = np.einsum("aH,nHWc,bW->nabc", rows, images.astype(np.float64), columns)
    np.testing.assert_allclose(got, expected, atol=1e-3)
    # No detail is invented: a flat image stays as it is.
    flat = torch.full((1, *source, 3), 77, dtype=torch.uint8)
    np.testing.assert_allclose(Resizing(source, target)(flat).numpy(), 77, atol=1e-4)


@given(
    others=st.lists(st.floats(0.1, 4.0).filter(lambda scale: scale != 1.0), max_size=4, unique=True),
    size=st.tuples(st.integers(16, 150), st.integers(16, 150)),
    stride=st.sampled_from([2, 4, 8]),
)
@settings(max_examples=60, deadline=None)
def test_sizes_are_whole_positions_near_the_scale_or_one_line_says_why_not(
    others: list[float], size: tuple[int, int], stride: int
) -> None:
    step = 2 * stride
    refusal, scaled = "", None
    try:
        scaled = ScaledBackbone(plain(Strided(stride)), sorted([1.0, *others]), size)
    except ArgumentError as err:
        refusal = str(err)
    if scaled is None:
        assert refusal.startswith("scales: expected ")
        assert "\n" not in refusal
        sizes = [tuple(round(scale * side / step) for side in size) for scale in others]
        is_small, is_repeated = any(min(each) < 1 for each in sizes), len({*sizes}) < len(sizes)
        is_same = size in {(rows * step, columns * step) for rows, columns in sizes}
        is_turned = any(
            (rows * step - size[0]) * (scale - 1) < 0 or (columns * step - size[1]) * (scale - 1) < 0
            for scale, (rows, columns) in zip(others, sizes, strict=True)
        )
        assert is_small or is_repeated or is_same or is_turned, refusal
        return
    assert (scaled.scales[0], scaled.sizes[0]) == (1.0, size)
    assert list(scaled.scales[1:]) == sorted(others)
    for scale, seen in zip(scaled.scales[1:], scaled.sizes[1:], strict=True):
        for side, resized in zip(size, seen, strict=True):
            assert resized % step == 0
            assert abs(resized - scale * side) <= step / 2
            assert resized <= side if scale < 1 else resized >= side
    assert all(f"{scale:g} (" in scaled.line for scale in scaled.scales)


@pytest.mark.parametrize(
    ("scale", "size", "message"),
    [
        (1.02, (70, 70), "sizes above 70x70 for 1.02, got 64x64"),
        (0.98, (74, 74), "sizes below 74x74 for 0.98, got 80x80"),
        (1.02, (70, 75), "sizes above 70x75 for 1.02, got 64x80"),
    ],
)
def test_a_scale_that_rounds_to_the_other_side_of_1_is_refused(
    scale: float, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ScaledBackbone(plain(Strided(8)), sorted([1.0, scale]), size)


def test_stages_are_those_of_the_resized_images_scale_1_first() -> None:
    backbone = plain(Strided())
    scaled = ScaledBackbone(backbone, (0.5, 1.0, 1.5), (64, 48))
    assert scaled.sizes == ((64, 48), (32, 24), (96, 72))
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8))
    parts = scaled.parts(scaled(image))
    assert [tuple(stage.shape[2:]) for part in parts for stage in part] == [
        *((16, 12), (8, 6)),
        *((8, 6), (4, 3)),
        *((24, 18), (12, 9)),
    ]
    for part, seen in zip(parts, scaled.sizes, strict=True):
        resized = image.float() if seen == (64, 48) else Resizing((64, 48), seen)(image)
        for mine, expected in zip(part, backbone(resized), strict=True):
            torch.testing.assert_close(mine, expected)
    # The windows of 8 pixels of the half image are those of 16 of the whole one, up to the triangle at their edges.
    smooth = torch.arange(64).float()[None, :, None, None].expand(1, 64, 48, 3)
    half, whole = scaled.parts(scaled(smooth))[1][0], scaled.parts(scaled(smooth))[0][1]
    torch.testing.assert_close(half[:, :, 1:-1], whole[:, :, 1:-1])


def test_a_single_scale_is_the_backbone_itself() -> None:
    backbone = plain(Strided())
    for method in ("patchcore", "padim"):
        config, _ = build_config(method, {"resize": 64})
        assert scales_of(config) == (1.0,)
        assert scaled_backbone(backbone, config) is backbone
        config, _ = build_config(method, {"resize": 64, "scales": [0.5, 1]})
        assert isinstance(scaled_backbone(backbone, config), ScaledBackbone)
    assert scales_of(build_config("ddad", {})[0]) == (1.0,)


def test_a_cache_inside_keeps_every_scale() -> None:
    backbone = plain(Strided())
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    expected = ScaledBackbone(backbone, (0.5, 1.0), (64, 64))(image)
    seen: list[int] = []
    with tempfile.TemporaryFile() as file, torch.inference_mode():
        scaled = ScaledBackbone(CachedBackbone(backbone, file), (0.5, 1.0), (64, 64))
        handle = backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        for _ in range(2):
            for mine, theirs in zip(scaled(image), expected, strict=True):
                torch.testing.assert_close(mine, theirs)
        handle.remove()
    assert seen == [3, 3]


@pytest.mark.long
@settings(deadline=None, max_examples=10)
@given(
    before=st.integers(0, 3),
    size=st.sampled_from([(96, 96), (96, 144), (100, 90)]),
    scales=st.sampled_from([(0.5, 1.0), (1.0, 1.5), (0.75, 1.0, 2.0)]),
)
def test_the_places_of_every_scale_are_those_in_the_image(
    before: int, size: tuple[int, int], scales: tuple[float, ...]
) -> None:
    scaled = ScaledBackbone(plain(Strided(4, before)), scales, size)
    measured = measure_places(scaled, size)
    assert measured.places is not None, measured.note
    assert measured.note.count("scale ") == len(scales)
    found = iter(measured.places)
    for seen in scaled.sizes:
        for stride in (4, 8):
            place = next(found)
            for axis in (0, 1):
                ratio = size[axis] / seen[axis]
                assert place.step[axis] == pytest.approx(stride * ratio)
                middle = (stride - 1) / 2 - before  # of the first window, in pixels of the resized image
                assert abs(place.start[axis] - ((middle + 0.5) * ratio - 0.5)) <= 0.1 * place.step[axis]


def errors_px(features: PatchFeatures, first: GridPlaces) -> npt.NDArray[np.float64]:
    """Return how far dots are drawn from their places on average, float64 [stages, 2], in pixels of the image."""
    # At each phase of 16 pixels, the coarsest positions: what rounding to positions does cancels.
    corners = np.stack(np.meshgrid(np.arange(56, 72), np.arange(56, 72), indexing="ij"), axis=2).reshape(-1, 2)
    images = np.zeros((len(corners), 128, 128, 3), np.uint8)
    for image, (top, left) in zip(images, corners, strict=True):
        image[top : top + 8, left : left + 8] = 200
    with torch.inference_mode():
        patches = features(torch.from_numpy(images)).double().numpy()
    maps = patches.reshape(len(images), 32, 32, -1, 3).sum(axis=4)
    along = [first.axis(axis)[0] + first.axis(axis)[1] * np.arange(32) for axis in (0, 1)]
    sums = [maps.sum(axis=2 - axis).transpose(0, 2, 1) @ along[axis] for axis in (0, 1)]
    centres = np.stack(sums, axis=2) / maps.sum(axis=(1, 2))[..., None]
    found: npt.NDArray[np.float64] = (centres - (corners + 3.5)[:, None]).mean(axis=0)
    return found


@pytest.mark.long
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize(("before", "scales"), [(0, (0.5, 1.0, 2.0)), (1, (0.5, 1.0, 1.5)), (3, (0.5, 1.0, 1.25))])
def test_dots_are_at_one_place_in_the_stages_of_all_scales(
    before: int, scales: tuple[float, ...], upsample: str
) -> None:
    size = (128, 128)
    scaled = ScaledBackbone(plain(Strided(4, before)), scales, size)
    places = measure_places(scaled, size).places
    assert places is not None
    grids = [(int(stage.shape[-2]), int(stage.shape[-1])) for stage in stages_of(scaled, size)]
    alignment = StageAlignment(places, grids, upsample)
    aligned = PatchFeatures(scaled, pool=False, upsample=upsample, alignment=alignment)
    off = errors_px(aligned, places[0])
    assert off.shape == (2 * len(scales), 2)
    # `nearest` moves each to one of the fine positions, by up to half of one.
    assert np.abs(off).max() <= (2.0 if upsample == "nearest" else 0.2)
    # Taken as centred, stages of the half image lie beside the others: a pixel of theirs is two of the image.
    centred = errors_px(PatchFeatures(scaled, pool=False, upsample=upsample), places[0])
    np.testing.assert_allclose(centred[:4], [[0, 0]] * 2 + [[before, before]] * 2, atol=0.2)


@pytest.mark.parametrize(
    ("scales", "size", "message"),
    [
        ((0.99, 1.0), (64, 64), r"sizes that differ, got 64x64 for both 1 and 0\.99 .* multiples of 8 pixels"),
        ((0.5, 0.51, 1.0), (64, 64), r"sizes that differ, got 32x32 for both 0\.5 and 0\.51"),
        ((0.1, 1.0), (32, 64), r"at least 8 pixels along each side, .* got 3x6 for 0\.1\. Choose a larger scale"),
        ((1.0, 4.0), (32, 4096), r"at most 8192 pixels along each side, got 128x16384 for 4"),
    ],
)
def test_scales_that_give_no_sizes_are_refused(scales: tuple[float, ...], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^scales: expected {message}"):
        ScaledBackbone(plain(Strided()), scales, size)


def test_a_network_of_one_size_is_refused_with_its_own_reason() -> None:
    # A table of positions that timm cannot bring to other sizes; the other network could, but was told its size.
    for name, options in (("hiera_tiny_224", {}), ("vit_tiny_patch16_224", {"img_size": [64, 64]})):
        size = (224, 224) if name.startswith("hiera") else (64, 64)
        chosen = small_settings(name, backbone_options={**SMALL[name], **options})
        resolved = resolve_network(chosen, size, resizes=True)
        with pytest.raises(ArgumentError) as caught:
            ScaledBackbone(untrained_backbone(resolved), (0.5, 1.0), size)
        message = str(caught.value)
        assert message.startswith(f"scales: expected a backbone that takes images of {size[0] // 2}x{size[1] // 2} ")
        assert message.endswith("It is built for images of one size: leave scales out, or choose another backbone.")
        assert "(The size of tensor" in message or "(Input height (32) doesn't match model (64))" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224"]
)
def test_a_transformer_that_can_takes_every_size(name: str) -> None:
    size = (224, 224)
    resolved = resolve_network(small_settings(name), size, resizes=True)
    assert resolved.backbone_options == {**SMALL[name], "dynamic_img_size": True}
    scaled = ScaledBackbone(untrained_backbone(resolved), (0.5, 1.0), size)
    stages = scaled.parts(stages_of(scaled, size))
    for whole, half in zip(*stages, strict=True):
        assert [2 * side for side in half.shape[2:]] == list(whole.shape[2:])
    # Without scales it is built for its size, as ever.
    assert resolve_network(small_settings(name), size).backbone_options["img_size"] == [224, 224]
