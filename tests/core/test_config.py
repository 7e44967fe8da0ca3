"""Settings: defaults, layers, the keys of QualityInspector files, ranges, and KEY=VALUE."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.config import (
    CONFIGS,
    PadimConfig,
    PatchcoreConfig,
    StfpmConfig,
    build_config,
    flatten,
    from_flat,
    parse_assignment,
)
from flawscope.config.setting_parts import places_of
from flawscope.errors import ArgumentError
from flawscope.imaging.images import Preprocessing

METHODS = list(CONFIGS)


def build(method, *layers):
    config, unused = build_config(method, *layers)
    assert unused == ()
    return config


# --- layers


@pytest.mark.parametrize(
    ("method", "kind"), [("patchcore", PatchcoreConfig), ("padim", PadimConfig), ("stfpm", StfpmConfig)]
)
def test_without_layers_the_defaults_hold(method, kind):
    assert build(method) == kind()
    assert build(method, {}, {}) == kind()


def test_the_later_layer_wins_and_the_rest_stays():
    config = build("patchcore", {"seed": 1, "sigma": 2, "batch_size": 3}, {"seed": 4, "sigma": 5}, {"seed": 6})
    assert (config.seed, config.maps.sigma, config.patches.batch_size) == (6, 5.0, 3)
    assert config.neighbors == PatchcoreConfig().neighbors


def test_the_later_layer_wins_whichever_name_it_uses():
    assert build("patchcore", {"crop_size": 128}, {"crop": 64}).input.crop == (64, 64)
    assert build("patchcore", {"crop": 128}, {"crop_size": 64}).input.crop == (64, 64)
    assert build("patchcore", {"coreset": 0.5}, {"k": 10}).coreset == 0.1
    assert build("patchcore", {"k": 10}, {"coreset": 0.5}).coreset == 0.5


def test_a_later_none_takes_a_crop_back():
    assert build("patchcore", {"crop": 64}, {"crop": None}).input.crop is None


def test_layers_are_not_changed():
    layer = {"crop_size": 64, "method": "coreset", "k": 10, "device": "gpu", "resize": "128"}
    before = dict(layer)
    build("patchcore", layer)
    assert layer == before


def test_settings_of_other_verbs_are_reported_and_not_used():
    config, unused = build_config("patchcore", {"do_eval": True, "seed": 3}, {"print_freq": 1})
    assert unused == ("do_eval", "print_freq")
    assert config == PatchcoreConfig(seed=3)


def test_the_settings_survive_json():
    config = build("padim", {"stages": [1, 3], "backbone_options": {"pad_type": "same"}, "mean": 0.5})
    assert msgspec.json.decode(msgspec.json.encode(config), type=PadimConfig) == config


# --- the keys of QualityInspector files


@pytest.mark.parametrize("value", [256, "256", "256,256", "256, 256", "[256, 256]", [256, 256], (256, 256)])
@pytest.mark.parametrize("key", ["resize", "crop", "crop_size"])
def test_a_size_may_be_one_number_a_list_or_text(key, value):
    config = build("patchcore", {"resize": 300, key: value})
    assert (config.input.resize if key == "resize" else config.input.crop) == (256, 256)


def test_height_comes_before_width():
    config = build("patchcore", {"resize": "320,256", "crop_size": [300, 200]})
    assert config.input.resize == (320, 256)
    assert config.preprocessing == Preprocessing((320, 256), (300, 200))


def test_a_crop_to_the_resized_size_is_none():
    assert build("patchcore", {"resize": [256, 256], "crop_size": [256, 256]}).input.crop is None
    assert build("patchcore", {"resize": "256", "crop_size": 256}).input.crop is None


def test_k_is_a_percentage_for_patchcore_and_a_channel_count_for_padim():
    assert build("patchcore", {"method": "coreset", "k": 10}).coreset == 0.1
    assert build("patchcore", {"k": 100}).coreset == 1.0
    assert build("patchcore", {"k": 0.5}).coreset == 0.005
    assert build("padim", {"method": "coreset", "k": 100}).channels == 100
    assert build("padim", {"method": "padim", "k": 550}).channels == 550


@pytest.mark.parametrize("k", [0, -1, 100.5, 200, math.nan, math.inf])
def test_a_percentage_outside_its_range_is_refused_and_does_not_become_a_count(k):
    with pytest.raises(ArgumentError, match="k: expected a percentage above 0 and up to 100"):
        build("patchcore", {"k": k})


@pytest.mark.parametrize("k", ["10", [10], True])
@pytest.mark.parametrize("method", METHODS)
def test_k_that_is_no_number_is_refused(method, k):
    with pytest.raises(ArgumentError, match="k: expected a number, got"):
        build(method, {"k": k})


@pytest.mark.parametrize(("value", "device"), [("gpu", "cuda"), ("cuda", "cuda"), ("cpu", "cpu"), ("auto", "auto")])
def test_the_device_gpu_is_cuda(value, device):
    assert build("padim", {"device": value}).device == device


@pytest.mark.parametrize("method", METHODS)
def test_the_method_of_a_file_must_be_the_one_asked_for(method):
    assert build(method, {"method": method}) == build(method)
    with pytest.raises(ArgumentError, match=f"method: expected {method} or coreset in the settings .*, got 'random'"):
        build(method, {"method": "random"})


def test_one_number_stands_for_three_channels_and_one_stage():
    config = build("patchcore", {"mean": 0.5, "std": 1, "stages": 2})
    assert (config.features.mean, config.features.std, config.features.stages) == (
        (0.5, 0.5, 0.5),
        (1.0, 1.0, 1.0),
        (2,),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("reweight=none", "none"),
        ("projection=none", "none"),
        ("projection=None", "none"),
        ("standardize=none", "none"),
        ("upsample=nearest", "nearest"),
    ],
)
def test_the_word_none_is_a_value_where_it_is_one(text, value):
    key, got = parse_assignment(text)
    assert flatten(build("patchcore", {key: got}))[key] == value


# --- what is refused


def test_a_word_that_is_not_known_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match="device: expected one of auto, cpu, cuda, got 'tpu'"):
        build("patchcore", {"device": "tpu"})


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match=r"method: expected one of patchcore, .*, inpainting, got 'patchcor'"):
        build_config("patchcor")


@pytest.mark.parametrize(
    ("method", "key", "message"),
    [
        ("patchcore", "neighbours", "neighbours: is no setting of patchcore. Did you mean neighbors?"),
        ("patchcore", "bacth_size", "Did you mean batch_size?"),
        (
            "padim",
            "coreset",
            r"coreset: is no setting of padim\. It would .* got one of patchcore, lafite\. Leave",
        ),
        ("patchcore", "channels", "channels: is no setting of patchcore"),
        (
            "patchcore",
            "xyz",
            "xyz: is no setting of patchcore. Known: accept_licence, align, backbone, backbone_options, batch_size",
        ),
        ("patchcore", 1, "1: is no setting of patchcore. Known: "),
        ("patchcore", None, "None: is no setting of patchcore"),
        ("patchcore", True, "True: is no setting of patchcore"),
        ("patchcore", ("a", "b"), "is no setting of patchcore"),
    ],
)
def test_an_unknown_key_is_refused_with_the_closest_known_one(method, key, message):
    with pytest.raises(ArgumentError, match=message):
        build(method, {key: 1})


NOT_FINITE = [math.nan, math.inf, -math.inf]
REFUSED = {
    "stages": [[], [2, 1], [1, 1], [-1, 2], "layer2", [1.5], [True]],
    "resize_rule": [0, 3, 1.5, "two", None],
    "resize_mode": ["pad", "", 1, None],
    "bits": [8, 17, 0, -12, 12.5, True, "twelve"],
    "resize": [15, 8193, [256], [256, 256, 256], [256, 0], "256x256", True, None, -256, 256.5],
    "crop": [15, 257, [16, 257], [257, 16], "", True],
    "tile": [15, 8193, [256, 256, 256], "", True],
    "tile_overlap": [-0.1, 0.51, "half", None, *NOT_FINITE],
    "held_out": [-0.01, 1.0, 1.5, "half", *NOT_FINITE],
    "held_out_minimum": [-1, 1.5],
    "cross_fit": [1, -2, 1.5, "all", True, None],
    "sigma": [-0.1, 1001, "wide", None, *NOT_FINITE],
    "align": ["maybe", 2, None],
    "batch_size": [0, -1, 1025, 1.5, True, "many", None],
    "num_workers": [-1, 65],
    "memory_budget_mb": [15, -1],
    "seed": [-1, 0.5, "x", None],
    "mean": [[0.5, 0.5], [0, 0, "x"], True, [0, 0, 0, 0], *([0.5, number, 0.5] for number in NOT_FINITE)],
    "std": [0, -1, [1, 0, 1], [1, 1], [1, -1, 1], *([0.5, number, 0.5] for number in NOT_FINITE)],
    "upsample": ["cubic", 1, None],
    "scales": [
        *(0.5, 0, -1, [], None, True, "half", [0.5], [1, 0.5], [1, 1], [0, 1], [-0.5, 1], [0.09, 1], [1, 4.01]),
        *([number, 1] for number in NOT_FINITE),
        *([1, number] for number in NOT_FINITE),
        [0.5, 0.6, 0.7, 0.8, 0.9, 1],
    ],
    "standardize": ["maybe", 1, True],
    "device": ["tpu", "cuda:0", ["gpu"], None, True],
    "backbone": [3, None],
    "backbone_options": [3, [1]],
    "final_norm": ["maybe", 2, [True]],
    "accept_licence": [3, ["mit"]],
}
REFUSED_PATCHCORE = {
    "coreset": [0, -0.1, "all", None, *NOT_FINITE],
    "max_bank": [0, 1_000_001],
    "min_bank": [-1, 1_000_001, 1.5],
    "neighbors": [0, 65, 9.5],
    "reweight": ["other", True],
    "projection": ["pca", False],
    "selection": ["greedy", True, None],
    "window": [-1, 8193, 2.5, "wide", True],
    "metric": ["manhattan", True, None],
    "foreground": ["yes please", 3, None],
    "pool": ["3x3", 3, None],
    "layers": ["apart", 1, True],
    "components": [0, -1, "all", None, *NOT_FINITE],
    "shrinkage": [-0.1, 1.1, "oas", *NOT_FINITE],
    "views": ["45", 1, True],
    "top_share": [-0.01, 1.01, "all", None, *NOT_FINITE],
}
REFUSED_PADIM = {
    "channels": [0, 4097, 1.5],
    "regularization": [0, -1, *NOT_FINITE],
    "reduction": ["pca", 1, 0.5],
    "factors": ["int8", 16],
}


def pairs(table):
    return [(key, value) for key, values in table.items() for value in values]


def check_refused(method, key, value):
    with pytest.raises(ArgumentError) as caught:
        build(method, {key: value})
    message = str(caught.value)
    assert key in message
    assert "expected" in message.lower()
    assert "\n" not in message


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [(method, key, value) for key, value in pairs(REFUSED) for method in METHODS if key in places_of(CONFIGS[method])],
)
def test_a_shared_setting_out_of_range_is_refused_by_name(method, key, value):
    check_refused(method, key, value)


@pytest.mark.parametrize(("key", "value"), pairs(REFUSED_PATCHCORE))
def test_a_patchcore_setting_out_of_range_is_refused_by_name(key, value):
    check_refused("patchcore", key, value)


@pytest.mark.parametrize(("key", "value"), pairs(REFUSED_PADIM))
def test_a_padim_setting_out_of_range_is_refused_by_name(key, value):
    check_refused("padim", key, value)


def test_the_tables_above_name_every_setting():
    assert {*REFUSED, *REFUSED_PATCHCORE} == set(places_of(PatchcoreConfig))
    assert {*REFUSED, *REFUSED_PADIM} - {"memory_budget_mb"} == set(places_of(PadimConfig))


@pytest.mark.parametrize(
    ("method", "key", "values"),
    [
        ("patchcore", "stages", [[0], [1, 2, 3, 4], None]),
        ("patchcore", "scales", [[1], [0.1, 1], [1, 4], [0.3, 0.4, 0.5, 0.6, 1]]),
        ("padim", "scales", [[1], [0.5, 1, 1.5]]),
        ("patchcore", "resize", [16, 8192]),
        ("patchcore", "crop", [16, 255]),
        ("patchcore", "bits", [9, 12, 16, None]),
        ("patchcore", "resize_mode", ["stretch", "letterbox"]),
        ("patchcore", "held_out", [0.0, 0.999]),
        ("patchcore", "held_out_minimum", [0]),
        ("patchcore", "cross_fit", [-1, 0, 2, 1000]),
        ("patchcore", "sigma", [0, 1000]),
        ("patchcore", "batch_size", [1, 1024, "8", 8.0]),
        ("patchcore", "num_workers", [0, 1, 64]),
        ("patchcore", "memory_budget_mb", [16]),
        ("patchcore", "seed", [0, 2**63]),
        ("patchcore", "coreset", [1e-9, 1, 1.5, 10_000]),
        ("patchcore", "max_bank", [1, 1_000_000]),
        ("patchcore", "min_bank", [0, 1, 1_000_000]),
        ("patchcore", "neighbors", [1, 64]),
        ("padim", "channels", [1, 4096]),
        ("padim", "regularization", [1e-12, 100]),
    ],
)
def test_the_ends_of_every_range_are_accepted(method, key, values):
    for value in values:
        got = flatten(build(method, {key: value}))[key]
        expected = (
            (value, value)
            if key in ("resize", "crop")
            else tuple(value)
            if key in ("stages", "scales") and value
            else value
        )
        assert got == (8 if expected == "8" else expected)


def test_settings_made_in_python_are_checked_too():
    with pytest.raises(ArgumentError, match="batch_size: expected 1 to 1024, got 0"):
        from_flat(PatchcoreConfig, {"batch_size": 0})


# --- KEY=VALUE


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("coreset=0.01", "coreset", 0.01),
        ("seed=3", "seed", 3),
        (" seed = 3 ", "seed", 3),
        ("stages=1,2,3", "stages", [1, 2, 3]),
        ("stages=[1, 2]", "stages", [1, 2]),
        ("resize=256,", "resize", [256]),
        ("mean=0.485,0.456,0.406", "mean", [0.485, 0.456, 0.406]),
        ("backbone=resnet18", "backbone", "resnet18"),
        ("backbone=hf-hub:timm/resnet18", "backbone", "hf-hub:timm/resnet18"),
        ("backbone=a=b", "backbone", "a=b"),
        ('backbone="1"', "backbone", "1"),
        ('backbone_options={"pad_type": "same"}', "backbone_options", {"pad_type": "same"}),
        ("crop=none", "crop", None),
        ("crop=null", "crop", None),
        ("flag=True", "flag", True),
        ("flag=false", "flag", False),
        ("backbone=", "backbone", ""),
        ("x=1,a,true", "x", [1, "a", True]),
        ("x={broken", "x", "{broken"),
        ("x=1e3", "x", 1000.0),
    ],
)
def test_a_value_is_json_a_list_or_text(text, key, value):
    assert parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["", "seed", "=3", "  =3", "coreset 0.1"])
def test_text_without_a_key_and_a_sign_is_refused(text):
    with pytest.raises(ArgumentError, match=r"--set .*: expected KEY=VALUE, for example --set coreset=0.01"):
        parse_assignment(text)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, "[" * 50_000 + "," + "{" * 50_000])
def test_values_that_overwhelm_a_json_parser_are_text(value):
    key, got = parse_assignment(f"seed={value}")
    assert key == "seed"
    assert got == (value.split(",") if "," in value else value)
    with pytest.raises(ArgumentError, match=r"settings of patchcore: (Expected `int`|Integer value out of range)"):
        build("patchcore", {key: got})


@settings(max_examples=300)
@given(st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from(sorted(REFUSED)), st.text(max_size=40)))
def test_no_assignment_raises_anything_but_argument_error(text):
    try:
        key, value = parse_assignment(text)
        build_config("patchcore", {key: value})
    except ArgumentError:
        return
    assert key


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
keys = st.sampled_from([*REFUSED, *REFUSED_PATCHCORE, *REFUSED_PADIM, "k", "method", "crop_size"])


@settings(max_examples=300)
@given(st.sampled_from(METHODS), st.dictionaries(keys | st.text(max_size=5) | st.integers(), anything, max_size=3))
def test_no_layer_raises_anything_but_argument_error(method, layer):
    try:
        config, _ = build_config(method, layer)
    except ArgumentError:
        return
    assert isinstance(config, CONFIGS[method])
    msgspec.json.encode(config)  # whatever was accepted can be recorded


@given(st.dictionaries(keys.filter(lambda key: key not in ("k", "method")), st.integers(-5, 5), min_size=1, max_size=1))
def test_json_values_come_through_set_unchanged(layer):
    ((key, value),) = layer.items()
    assert parse_assignment(f"{key}={json.dumps(value)}") == (key, value)
