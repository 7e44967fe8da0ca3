"""Networks of timm: stages by family, layouts, sizes, and what is refused before anything is loaded."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SMALL, small_settings
from torch import Tensor, nn

from flawscope.config import FeatureSettings
from flawscope.config.feature_settings import CoarseFeatureSettings
from flawscope.errors import ArgumentError
from flawscope.training.features.backbone import Backbone, stages_of, untrained_backbone
from flawscope.training.features.timm_network import check_stages, describe_network, resolve_network


@pytest.mark.parametrize(
    ("name", "all_strides", "coarse"),
    [
        ("resnet18", (1, 2, 3), (2, 3)),
        ("mobilenetv2_035", (1, 2, 3), (2, 3)),
        ("vgg11", (2, 3, 4), (3, 4)),
        ("convnext_atto", (0, 1, 2), (1, 2)),
        ("swin_tiny_patch4_window7_224", (0, 1, 2), (1, 2)),
        ("hiera_tiny_224", (0, 1, 2), (1, 2)),
        ("efficientvit_m0", (0, 1, 2), (0, 1)),  # strides 16, 32, 64: none of the wanted ones, so the finest
        ("vit_tiny_patch16_224", (2, 5, 8, 11), (2, 5, 8, 11)),
        ("vit_small_patch14_reg4_dinov2", (2, 5, 8, 11), (2, 5, 8, 11)),
        ("mixer_s32_224", (1, 3, 5, 7), (1, 3, 5, 7)),
    ],
)
def test_stages_left_open_are_those_that_suit_the_family(name: str, all_strides: Any, coarse: Any) -> None:
    resolved = resolve_network(FeatureSettings(backbone=name), None)
    assert resolved.stages == all_strides
    assert resolve_network(CoarseFeatureSettings(backbone=name), None).stages == coarse
    strides = describe_network(resolved).strides
    if len(set(strides)) > 1 and name != "efficientvit_m0":
        assert [strides[stage] for stage in all_strides] == [4, 8, 16]


@pytest.mark.parametrize("stages", [(0,), (3, 7), (1, 2, 3)])
def test_stages_of_the_user_are_kept(stages: tuple[int, ...]) -> None:
    assert resolve_network(FeatureSettings(backbone="vit_tiny_patch16_224", stages=stages), None).stages == stages


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 7, 24])
def test_quarters_of_any_depth_rise_and_end_with_the_last_block(depth: int) -> None:
    network = small_settings("vit_tiny_patch16_224", backbone_options={"depth": depth})
    stages = resolve_network(network, None).stages
    assert stages is not None
    assert list(stages) == sorted(set(stages))
    assert stages[-1] == depth - 1
    assert len(stages) == min(4, depth)


@pytest.mark.long
@settings(max_examples=12)
@given(
    name=st.sampled_from(["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224"]),
    height=st.integers(40, 160),
    width=st.integers(40, 160),
)
def test_a_size_is_taken_whole_or_refused_with_sizes_that_work(name: str, height: int, width: int) -> None:
    patch = describe_network(small_settings(name)).patch
    refusal = ""
    try:
        resolved = resolve_network(small_settings(name), (height, width))
    except ArgumentError as err:
        refusal = str(err)
    if not refusal:
        assert height % patch == width % patch == 0
        assert resolved.backbone_options["img_size"] == [height, width]
        return
    assert f"got {height}x{width} pixels" in refusal
    assert "\n" not in refusal
    found = re.search(r"The nearest that work: (.*) \(--image-size\)", refusal)
    assert found is not None, refusal
    for words in found[1].split(" or "):
        sides = [int(side) for side in words.split("x")]
        size = (sides[0], sides[-1])
        assert resolve_network(small_settings(name), size).backbone_options["img_size"] == list(size)


def test_a_convolutional_network_takes_any_size_and_gets_none_set() -> None:
    resolved = resolve_network(small_settings("mobilenetv2_035"), (77, 130))
    assert resolved.backbone_options == {}


@pytest.mark.parametrize("options", [{"img_size": [64, 64]}, {"dynamic_img_size": True}])
def test_a_size_that_the_user_sets_for_the_network_is_kept(options: dict[str, Any]) -> None:
    resolved = resolve_network(small_settings("vit_tiny_patch16_224", backbone_options=options), (64, 64))
    assert resolved.backbone_options == {**SMALL["vit_tiny_patch16_224"], **options}


def test_a_size_that_contradicts_that_of_the_images_is_refused() -> None:
    chosen = small_settings("vit_tiny_patch16_224", backbone_options={"img_size": [64, 64]})
    with pytest.raises(ArgumentError, match=r"got 96x96 pixels.* backbone_options says img_size=\[64, 64\]"):
        resolve_network(chosen, (96, 96))


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_channels_first_with_the_channels_and_strides_that_timm_names(name: str) -> None:
    size = (112, 112) if "patch14" in name else (96, 128)
    resolved = resolve_network(small_settings(name), size)
    backbone = untrained_backbone(resolved)
    facts = describe_network(small_settings(name))
    stages = stages_of(backbone, size)
    assert resolved.stages is not None
    assert len(stages) == len(resolved.stages)
    for index, stage in zip(resolved.stages, stages, strict=True):
        stride = facts.strides[index]
        assert tuple(stage.shape) == (1, facts.channels[index], size[0] // stride, size[1] // stride)


class Described(nn.Module):
    """Gives stages of chosen shapes, and describes them as 8 channels at stride 4."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes
        self.feature_info = SimpleNamespace(channels=lambda: [8], reduction=lambda: [4])

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.zeros(shape) for shape in self.shapes]


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 16, 16, 8)],  # rows where channels are expected
        [(1, 8, 32, 32)],
        [(1, 8, 16, 12)],
        [(1, 256, 8)],
        [(1, 8, 16, 16), (1, 8, 16, 16)],
        [],
    ],
)
def test_stages_that_are_not_what_timm_says_are_refused(shapes: list[tuple[int, ...]]) -> None:
    network = Described(shapes)
    with pytest.raises(ArgumentError, match=r"^backbone: expected .* timm describes") as caught:
        stages_of(Backbone(network, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), (64, 64))
    assert "\n" not in str(caught.value)
    check_stages(network, [torch.zeros(1, 8, 16, 16)], (64, 64))  # what is described is taken


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"in_chans": 1}, r"expected 3 for in_chans, because images are brought to three channels .*, got 1"),
        ({"features_only": False}, r"expected no features_only"),
        ({"out_indices": [1]}, r"expected no out_indices, since the setting stages says it"),
        ({"pretrained": True}, r"expected no pretrained"),
        ({"checkpoint_path": "x"}, r"expected no checkpoint_path, since --weights"),
        ({"no_such_option": 1}, r"timm could not build resnet18 .*'no_such_option'"),
    ],
)
def test_options_that_are_not_the_users_are_refused(options: dict[str, Any], match: str) -> None:
    for build in (describe_network, untrained_backbone):
        with pytest.raises(ArgumentError, match=match) as caught:
            build(FeatureSettings(backbone="resnet18", backbone_options=options))
        assert "\n" not in str(caught.value)


def test_three_input_channels_may_be_said() -> None:
    describe_network(FeatureSettings(backbone="resnet18", backbone_options={"in_chans": 3}))


def test_the_final_norm_is_applied_to_transformers_and_can_be_left_out() -> None:
    name, size = "vit_tiny_patch16_224", (64, 64)
    with_norm = resolve_network(small_settings(name), size)
    without = resolve_network(small_settings(name, final_norm=False), size)
    assert (with_norm.final_norm, without.final_norm) == (True, False)
    first, second = untrained_backbone(with_norm), untrained_backbone(without)
    second.network.load_state_dict(first.network.state_dict(), strict=False)
    image = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    norm = first.network.model.norm  # type: ignore[union-attr]
    for normed, raw in zip(first(image), second(image), strict=True):
        expected = norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[operator]
        torch.testing.assert_close(normed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_a_final_norm_that_a_network_has_not_is_refused(name: str) -> None:
    assert resolve_network(FeatureSettings(backbone=name), None).final_norm is False
    with pytest.raises(ArgumentError, match=rf"final_norm: {name} cannot give it"):
        resolve_network(FeatureSettings(backbone=name, final_norm=True), None)


@pytest.mark.parametrize(
    ("name", "advice"), [("vit_tiny_patch16_224", "multiple of 16 pixels"), ("mobilenetv2_035", "finer stages")]
)
def test_the_advice_on_a_size_is_true_of_the_network(name: str, advice: str) -> None:
    resolved = resolve_network(small_settings(name), (64, 64))
    backbone = untrained_backbone(resolved)

    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feature_info = backbone.network.feature_info

        def forward(self, image: Tensor) -> list[Tensor]:
            raise RuntimeError("no such size")

    with pytest.raises(ArgumentError, match=rf"no such size\)\. .*{advice}"):
        stages_of(Backbone(Refusing(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), (64, 64))
