"""What weights say about their use: where it is read, what wins, what is said, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_networks import save, small_settings, small_state

from flawscope.config import FeatureSettings
from flawscope.errors import ArgumentError, RunError
from flawscope.training.features.backbone import prepare_backbone
from flawscope.training.features.timm_network import resolve_network
from flawscope.training.features.weight_conditions import (
    ConditionsInForce,
    WeightConditions,
    apply_conditions,
    read_conditions,
)

NAME = "mobilenetv2_035"
TIMM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "license": "apache-2.0", "tag": "ra_in1k"}
FULL = {"architecture": NAME, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same", "licence": "mit"}


def apply(
    said: dict[str, Any] | None,
    *,
    published: bool = False,
    timm: dict[str, Any] = TIMM,
    backbone: str = NAME,
    **settings: Any,
) -> ConditionsInForce:
    conditions = None if said is None else msgspec.convert(said, WeightConditions)
    return apply_conditions(
        FeatureSettings(backbone=backbone, **settings),
        conditions,
        "" if said is None else "weights.json",
        timm,
        is_published=published,
        takes_padding=True,
    )


def test_what_the_weights_say_is_applied_where_the_user_sets_nothing() -> None:
    found = apply(FULL)
    assert (found.settings.mean, found.settings.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert found.settings.backbone_options == {"pad_type": "same"}
    assert found.licence == "mit"
    assert len(found.lines) == 1
    assert "as weights.json says" in found.lines[0]
    assert "padding same" in found.lines[0]
    assert "assumed" not in found.lines[0]


def test_without_a_word_of_the_weights_timms_configuration_is_assumed_and_said() -> None:
    found = apply(None)
    assert (found.settings.mean, found.settings.std) == (TIMM["mean"], TIMM["std"])
    (line,) = found.lines
    assert line.startswith("weights: assumed, since the weights do not say: mean 0.485,0.456,0.406")
    assert "std 0.229,0.224,0.225" in line
    assert "timm's configuration of mobilenetv2_035.ra_in1k" in line
    assert "padding by default (as timm builds it)" in line


@pytest.mark.parametrize(
    ("said", "published", "settings", "is_assumed"),
    [
        (None, True, {}, False),  # timm's own file of that tag
        ({"architecture": f"{NAME}.ra_in1k"}, False, {}, False),
        ({"architecture": NAME}, False, {}, True),
        ({"licence": "mit"}, False, {}, True),
        (None, False, {"mean": (0.5,) * 3}, True),
        (None, False, {"mean": (0.5,) * 3, "std": (0.5,) * 3}, True),  # the padding is still anybody's guess
        (None, False, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "backbone_options": {"pad_type": "same"}}, False),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, False, {}, False),
    ],
)
def test_the_word_assumed_stands_where_nobody_said(
    said: dict[str, Any] | None, published: bool, settings: dict[str, Any], is_assumed: bool
) -> None:
    assert ("assumed" in apply(said, published=published, **settings).lines[0]) == is_assumed


def test_the_users_settings_win_and_a_line_says_so() -> None:
    found = apply(FULL, mean=(0.1, 0.2, 0.3), backbone_options={"pad_type": ""})
    assert found.settings.mean == (0.1, 0.2, 0.3)
    assert found.settings.std == (0.5, 0.5, 0.5)
    assert found.settings.backbone_options == {"pad_type": ""}
    assert found.lines[1:] == (
        "differs: mean 0.1,0.2,0.3 as set, although the weights say 0.5,0.5,0.5",
        "differs: pad_type='' as set, although the weights say 'same'",
    )
    assert len(apply(FULL, mean=(0.5, 0.5, 0.5)).lines) == 1  # the same is no contradiction


share = st.floats(0.0, 1.0).map(lambda value: round(value, 3))


@given(
    low=st.sampled_from([0.0, -1.0, -128.0]),
    high=st.sampled_from([1.0, 127.0, 255.0]),
    mean_at=st.tuples(share, share, share),
    std_share=st.tuples(*[st.floats(0.0021, 1.9)] * 3),
    pixel=st.integers(0, 255),
    has=st.tuples(st.booleans(), st.booleans()),
)
def test_mean_and_deviation_in_any_input_range_normalise_as_the_weights_mean_it(
    low: float, high: float, mean_at: Any, std_share: Any, pixel: int, has: tuple[bool, bool]
) -> None:
    mean = tuple(low + at * (high - low) for at in mean_at)
    std = tuple(part * (high - low) for part in std_share)
    conditions = WeightConditions(mean=mean if has[0] else None, std=std if has[1] else None, input_range=(low, high))
    meant = pixel / 255 * (high - low) + low
    expected = (meant - np.array(mean if has[0] else (0.0,) * 3)) / np.array(std if has[1] else (1.0,) * 3)
    assert conditions.unit_mean is not None
    assert conditions.unit_std is not None
    got = (pixel / 255 - np.array(conditions.unit_mean)) / np.array(conditions.unit_std)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        # Each of them would give a network pixels that it was not trained on, and nothing else would notice.
        (
            {"mean": (124.0, 116.0, 104.0), "std": (58.0, 57.0, 57.0)},
            "mean: expected numbers within the input_range",
        ),
        ({"mean": (0.5,) * 3, "std": (58.0,) * 3}, "std: expected shares of the input_range 0 to 1"),
        (
            {"mean": (0.5,) * 3, "std": (0.2,) * 3, "input_range": (0.0, 255.0)},
            "std: expected shares of the input_range",
        ),
        ({"pad_type": "sam"}, "pad_type: expected 'same', 'valid', ''"),
        ({"pad_type": "SAME "}, "pad_type: expected 'same', 'valid', ''"),
        ({"pad_type": "same", "options": {"pad_type": ""}}, "pad_type: expected it once"),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        WeightConditions(**fields)


def test_pixels_that_are_only_centred_are_no_mistake() -> None:
    conditions = WeightConditions(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0), input_range=(0.0, 255.0))
    assert conditions.unit_std == pytest.approx((1 / 255,) * 3)


@pytest.mark.parametrize(
    ("backbone", "architecture", "fits"),
    [
        (NAME, NAME, True),
        (NAME, f"{NAME}.ra_in1k", True),
        (f"{NAME}.ra_in1k", NAME, True),
        (f"{NAME}.ra_in1k", f"{NAME}.other", False),
        (NAME, "mobilenetv2_050", False),
        (NAME, "resnet18", False),
    ],
)
def test_weights_of_another_architecture_are_refused(backbone: str, architecture: str, fits: bool) -> None:
    if fits:
        assert apply({"architecture": architecture}, backbone=backbone).settings.backbone == backbone
        return
    with pytest.raises(RunError, match=rf"weights.json: expected weights of {backbone}, got those of {architecture}"):
        apply({"architecture": architecture}, backbone=backbone)


@pytest.mark.parametrize(
    "licence",
    ["cc-by-nc-4.0", "CC-BY-NC-SA-4.0", "fair-noncommercial-research-license", "non-commercial", "apple-amlr"],
)
def test_a_licence_that_forbids_commercial_use_is_refused_unless_accepted(licence: str) -> None:
    with pytest.raises(
        ArgumentError, match=rf"under {licence}, which forbids commercial use.*accept_licence={licence}"
    ):
        apply({"licence": licence})
    with pytest.raises(ArgumentError, match="forbids commercial use"):
        apply({"licence": licence}, accept_licence="mit")
    with pytest.raises(ArgumentError, match="forbids commercial use"):
        apply(None, published=True, timm={**TIMM, "license": licence})
    with pytest.raises(ArgumentError, match="forbids commercial use"):  # a tag names what the file is
        apply(None, backbone=f"{NAME}.ra_in1k", timm={**TIMM, "license": licence})
    found = apply({"licence": licence}, accept_licence=licence.lower())
    assert found.lines[-1] == f"licence: {licence}, which forbids commercial use, and was accepted"
    # Of a file without a word, timm's licence is said, not asserted.
    assert f"are under {licence}, which forbids" in apply(None, timm={**TIMM, "license": licence}).lines[-1]


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "bsd-3-clause", "CC0-1.0", "cc-by-4.0"])
def test_a_free_licence_needs_no_line(licence: str) -> None:
    assert len(apply({**FULL, "licence": licence}).lines) == 1


def test_a_licence_of_its_own_is_named() -> None:
    found = apply(None, published=True, timm={**TIMM, "license": "dinov3-license"})
    assert found.lines[-1] == "licence: dinov3-license, one of its own: read it before you ship"


def test_what_timm_says_of_dinov3_and_its_small_sibling_is_known() -> None:
    import timm

    assert timm.get_pretrained_cfg("vit_small_patch16_dinov3").license == "dinov3-license"
    with pytest.raises(ArgumentError, match="fair-noncommercial-research-license, which forbids commercial use"):
        apply(None, published=True, timm=timm.get_pretrained_cfg("convnext_tiny.eupe_lvd1689m").to_dict())


def test_metadata_and_the_file_beside_are_read_and_must_agree(tmp_path: Path) -> None:
    state = small_state(NAME)
    file = save(state, tmp_path / "w.safetensors", {"flawscope": json.dumps(FULL), "format": "pt"})
    conditions, where = read_conditions(file)
    assert conditions == msgspec.convert(FULL, WeightConditions)
    assert where == str(file)
    beside = tmp_path / "w.json"
    beside.write_text(json.dumps(FULL))
    assert read_conditions(file) == (conditions, str(beside))
    beside.write_text(json.dumps({**FULL, "pad_type": ""}))
    with pytest.raises(RunError, match=r"w\.json: expected what the metadata of w\.safetensors say"):
        read_conditions(file)
    plain = save(state, tmp_path / "plain.safetensors", {"format": "pt"})
    assert read_conditions(plain) == (None, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"means": [0.5, 0.5, 0.5]}',
        '{"mean": 0.5}',
        '{"mean": [0.5, 0.5]}',
        '{"std": [1, 0, 1]}',
        '{"std": [1, 1e999, 1]}',
        '{"input_range": [1, 0]}',
        '{"pad_type": 3}',
        "\ud800",
    ],
)
def test_conditions_that_cannot_be_understood_are_one_line(text: str, tmp_path: Path) -> None:
    file = save(small_state(NAME), tmp_path / "w.safetensors")
    (tmp_path / "w.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=r"w\.json: expected how weights are used") as caught:
        read_conditions(file)
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_the_file_beside_is_one_line(tmp_path: Path) -> None:
    file = save(small_state(NAME), tmp_path / "w.safetensors")
    (tmp_path / "w.json").mkdir()
    with pytest.raises(RunError, match=r"w\.json: cannot be read"):
        read_conditions(file)


def test_conditions_reach_network_settings_and_source(tmp_path: Path) -> None:
    said = {**FULL, "input_range": [0, 255], "mean": [127.5] * 3, "std": [51.0] * 3, "source": "made here"}
    file = save(small_state(NAME), tmp_path / "w.safetensors", {"flawscope": json.dumps(said)})
    settings, backbone, source = prepare_backbone(small_settings(NAME), file, (64, 64))
    assert settings.mean == backbone.mean == pytest.approx((0.5, 0.5, 0.5))
    assert settings.std == backbone.std == pytest.approx((0.2, 0.2, 0.2))
    assert settings.backbone_options == {"pad_type": "same"}
    assert "Same" in type(backbone.network.conv_stem).__name__  # timm's convolution with TensorFlow's padding
    assert source.licence == "mit"
    assert source.weights.endswith("; made here")
    assert source.conditions == (
        f"weights: mean 0.5,0.5,0.5 (as {file} says), std 0.2,0.2,0.2 (as {file} says), padding same (as {file} says)",
    )


def test_settings_that_were_filled_in_are_filled_in_no_further(tmp_path: Path) -> None:
    file = save(small_state(NAME), tmp_path / "w.safetensors", {"flawscope": json.dumps(FULL)})
    settings, _, _ = prepare_backbone(small_settings(NAME), file, (64, 64))
    assert resolve_network(settings, (64, 64)) == settings
    again, _, source = prepare_backbone(settings, file, (64, 64))
    assert again == settings
    assert len(source.conditions) == 1
