"""Settings made of parts: a kind refuses what it does not use; flat names and parts are two forms of one thing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from click.testing import CliRunner

from flawscope.config import (
    CONFIGS,
    DenoisingSettings,
    EmbeddingConfig,
    LoopSettings,
    PadimConfig,
    StfpmConfig,
    build_config,
    describe_settings,
    find_part,
    flatten,
    from_flat,
)
from flawscope.config.assembly import MEANT
from flawscope.config.setting_parts import SettingPart, change_settings, parts_of, places_of
from flawscope.errors import ArgumentError
from flawscope.training.settings import preset_names, read_settings
from flawscope.training.train_command import train

METHODS = list(CONFIGS)
PRESETS = {
    "anogen-seed": "embedding",
    "dbad-seed": "ddad",
    "ddad-paper": "ddad",
    "defectfill": "inpainting",
    "diad-seed": "dsad",
    "dsad": "dsad",
    "lafite-paper": "lafite",
    "mvpdiff-seed": "inpainting",
    "padim-seed": "padim",
    "patchcore-seed": "patchcore",
    "anomalydino": "patchcore",
    "stfpm-seed": "stfpm",
}


@pytest.mark.parametrize("method", METHODS)
def test_the_word_none_is_no_choice_where_null_is_one(method):
    # `--set KEY=none` is null; with both, nobody could ask for the word.
    kind = CONFIGS[method]
    for key, part in places_of(kind).items():
        hint = get_type_hints(kind if part is None else parts_of(kind)[part])[key]
        words = [
            word for choice in (hint, *get_args(hint)) if get_origin(choice) is Literal for word in get_args(choice)
        ]
        assert type(None) not in get_args(hint) or "none" not in words, key


def idle_keys():
    for method in METHODS:
        keys = {key for other in METHODS for key in places_of(CONFIGS[other])}
        yield from ((method, key) for key in sorted(keys - set(places_of(CONFIGS[method]))))


@pytest.mark.parametrize(("method", "key"), list(idle_keys()))
def test_a_key_that_a_method_does_not_use_is_refused(method, key):
    value = next(flatten(kind())[key] for kind in CONFIGS.values() if key in places_of(kind))
    with pytest.raises(ArgumentError) as caught:
        build_config(method, {key: value})
    message = str(caught.value)
    assert message.startswith(f"{key}: is no setting of {method}. It would have no effect: expected a setting that ")
    assert "\n" not in message
    # The list ends with its sentence; why other methods lack the setting may follow.
    users = message.split("got one of ")[1].split(".")[0].split(", ")
    assert users == [other for other in METHODS if key in places_of(CONFIGS[other])]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("key", "meant"), MEANT.items())
def test_a_key_of_other_methods_names_what_may_be_meant(method, key, meant):
    assert any(key in places_of(kind) for kind in CONFIGS.values())
    if key in places_of(CONFIGS[method]):
        return
    with pytest.raises(ArgumentError) as caught:
        build_config(method, {key: 3})
    assert (f"did you mean {meant}?" in str(caught.value)) == (meant in places_of(CONFIGS[method]))
    if method == "segmenter" and key == "steps":
        assert "expected a setting that segmenter uses (did you mean epochs?), got one of ddad" in str(caught.value)


def test_the_keys_that_were_once_accepted_are_refused():
    idle = {"sigma": 9, "stages": [2], "backbone": "resnet50", "held_out": 0.4, "standardize": "whiten"}
    for key, value in idle.items():
        with pytest.raises(ArgumentError, match=f"{key}: is no setting of embedding"):
            build_config("embedding", {key: value})


@pytest.mark.parametrize("method", METHODS)
def test_no_name_occurs_twice(method):
    kind = CONFIGS[method]
    names = [name for name in kind.__struct_fields__ if name not in parts_of(kind)]
    names += [name for part in parts_of(kind).values() for name in part.__struct_fields__]
    assert sorted(names) == sorted(set(names)) == sorted(places_of(kind))
    assert not set(names) & set(parts_of(kind))  # otherwise a setting and a part would share a key


def test_a_name_that_occurs_twice_is_refused():
    class First(SettingPart, frozen=True, kw_only=True):
        size: int = 1

    class Twice(msgspec.Struct, frozen=True, kw_only=True):
        first: First = First()
        second: First = First()

    Twice.__annotations__ = {"first": First, "second": First}
    with pytest.raises(TypeError, match="the setting size occurs twice, in second and in first"):
        places_of(Twice)


@pytest.mark.parametrize("method", METHODS)
def test_flat_and_nested_are_the_same_settings(method):
    config = CONFIGS[method]()
    flat = flatten(config)
    assert flat.pop("method") == method
    assert list(flat) == list(places_of(CONFIGS[method]))
    assert from_flat(type(config), flat) == config
    assert from_flat(type(config), json.loads(json.dumps(flat))) == config


@pytest.mark.parametrize("preset", preset_names())
def test_presets_come_back_from_their_flat_form(preset):
    method = PRESETS[preset]
    config, unused = build_config(method, read_settings(preset))
    assert unused == ()
    flat = json.loads(json.dumps(flatten(config)))
    assert build_config(method, flat)[0] == config
    assert flat != json.loads(json.dumps(flatten(CONFIGS[method]())))


def test_a_named_setting_leaves_the_methods_own_defaults_of_its_part():
    config = build_config("embedding", {"batch_size": 2})[0]
    assert isinstance(config, EmbeddingConfig)
    assert (config.loop.batch_size, config.loop.epochs, config.loop.learning_rate) == (2, 80, 5e-3)
    assert LoopSettings().epochs == 100


def test_changed_settings_keep_the_others_and_are_checked():
    config = from_flat(StfpmConfig, {"epochs": 7, "stages": (1, 2)})
    changed = change_settings(config, {"ema": 0.5})
    assert (changed.loop.ema, changed.loop.epochs, changed.features.stages) == (0.5, 7, (1, 2))
    assert change_settings(changed, {"ema": 0.0}) == config
    with pytest.raises(ArgumentError, match=r"ema: expected a decay from 0 to below 1, got 1\.0"):
        change_settings(config, {"ema": 1.0})
    with pytest.raises(ArgumentError, match="channels: expected a setting of stfpm, got one that it does not have"):
        change_settings(config, {"channels": 3})


@pytest.mark.parametrize(
    ("method", "layer", "message"),
    [
        ("stfpm", {"epochs": "x"}, "settings of stfpm: Expected `int`, got `str` - at `$.epochs`"),
        ("stfpm", {"stages": [1.5]}, "settings of stfpm: Expected `int`, got `float` - at `$.stages[0]`"),
        ("patchcore", {"seed": "x"}, "settings of patchcore: Expected `int`, got `str` - at `$.seed`"),
        ("stfpm", {"ema": 2}, "settings of stfpm: ema: expected a decay from 0 to below 1, got 2.0."),
        ("padim", {"channels": 0}, "settings of padim: channels: expected 1 to 4096, got 0."),
    ],
)
def test_errors_name_settings_as_people_write_them(method, layer, message):
    with pytest.raises(ArgumentError) as caught:
        build_config(method, layer)
    assert str(caught.value) == message


def test_a_part_is_found_by_its_kind():
    assert find_part(EmbeddingConfig(), DenoisingSettings) == EmbeddingConfig().denoising
    assert find_part(PadimConfig(), DenoisingSettings) is None


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_has_a_line_a_type_and_its_default(method):
    lines = describe_settings(method)
    assert [line.key for line in lines] == list(places_of(CONFIGS[method]))
    for line in lines:
        assert line.part, line
        assert line.words, line
        assert line.line[:1].isalnum() or line.line[:1] in "`λ", line
        assert line.line.endswith("."), line
    assert {line.key: line.default for line in lines}["seed"] == "0"


def test_settings_are_described_in_words():
    lines = {line.key: line for line in describe_settings("embedding")}
    assert lines["epochs"][1:] == ("epochs", "whole number", "80", "Passes over the training images.")
    assert lines["epochs"].part == "The training loop"
    assert (lines["max_steps"].words, lines["max_steps"].default) == ("whole number or null", "null")
    assert (lines["resize"].words, lines["resize"].default) == ("2 values (whole number)", "256,256")
    assert (lines["mask_loss"].words, lines["mask_loss"].default) == ("one of mean, area", "mean")
    with pytest.raises(ArgumentError, match="method: expected one of patchcore"):
        describe_settings("embeding")


def test_settings_and_their_help_need_no_torch():
    code = (
        "import sys, flawscope.training.train_command as command\n"
        "command.train(['ddad', '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "extractor_rate=0.0001" in process.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--out", "ddad", "--help"], ["unknown", "--help"]])
def test_the_help_without_a_method_says_how_to_see_its_settings(arguments):
    result = CliRunner().invoke(train, arguments, prog_name="flawscope train")
    assert result.exit_code == 0
    assert result.stdout.endswith("\nSettings of a method: flawscope train METHOD --help\n")
    assert "extractor_rate" not in result.stdout


@pytest.mark.parametrize("arguments", [["ddad", "--help"], ["--seed", "3", "ddad", "--help"], ["--help", "ddad"]])
def test_the_help_of_a_method_lists_its_settings_by_subject(arguments):
    result = CliRunner().invoke(train, arguments, prog_name="flawscope train")
    assert result.exit_code == 0
    listed = result.stdout
    for line in describe_settings("ddad"):
        assert f"  {line.key}={line.default}" in listed
        assert f"\n{line.part}:\n" in listed
    assert "\n  rank=" not in listed
