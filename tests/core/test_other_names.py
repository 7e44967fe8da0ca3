"""Settings under the names of reference systems: what they are here, and what is said of the rest."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.cli import run
from flawscope.config import CONFIGS, build_config, flatten, rename_settings
from flawscope.config.other_names import CATEGORY_NAMES, DATA_NAMES, RESUME_NAME, SYSTEMS
from flawscope.config.setting_parts import places_of
from flawscope.errors import ArgumentError

ROWS = [(system, method) for system in SYSTEMS for method in system.methods]
MVPDIFF = {
    "pretrained_model_name_or_path": "checkpoints/inpainting",
    "train_batch_size": 6,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 1000,
    "checkpointing_steps": 500,
    "learning_rate": 1e-7,
    "lr_scheduler": "constant",
    "seed": 0,
    "validation_epochs": 100,
    "validation_file": "./script/bottle/bottle_test.jsonl",
    "output_dir": "./output",
    "prediction_type": "epsilon",
    "scale_lr": True,
    "snr_gamma": 10,
    "resolution": 512,
    "max_train_steps": None,
    "use_8bit_adam": False,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "mixed_precision": "fp16",
    "dataloader_num_workers": 12,
    "report_to": "tensorboard",
    "rank": 4,
    "noise_offset": 0,
}
"""The options of MvP-Diff's launch script."""
DBAD = {
    "run_id": "hazelnut",
    "epochs_diffusion": 1000,
    "train_steps": 1000,
    "save_n_epochs": 50,
    "beta_schedule": "linear",
    "recon_weight": 0.1,
    "eta": 0.1,
    "noise_kind": "gaussian",
    "steps_to_regenerate": 25,
    "start_at_timestep": 250,
    "epochs_extractor": 30,
    "extractor_use_diff": False,
    "fsk": 3,
    "batch_size": 8,
    "pxl_threshold": 0.029,
    "feature_threshold": 0.33,
    "pl_contrib": 0.7,
    "fl_contrib": 0.7,
    "resolution": 256,
    "patching": False,
    "plt_imgs": True,
    "item_states": "all",
    "shuffle": True,
    "log_dir": "logs",
}


@pytest.mark.parametrize(("system", "method"), ROWS)
def test_every_name_of_the_table_is_a_setting_and_none_hides_one(system, method):
    places = places_of(CONFIGS[method])
    for setting in (*system.names.values(), *(key for key, _ in system.parts.values())):
        assert setting in places
    # A name that is a setting here would change its meaning.
    assert not (system.options & places.keys())
    for name, words in system.words.items():
        for word, own in words.items():
            config, unused = build_config(method, {name: word})
            assert unused == ()
            assert {key: flatten(config)[key] for key in own} == own
    groups = [list(group) for group in (system.names, system.words, system.parts, system.elsewhere)]
    assert len(set(itertools.chain(*groups))) == sum(map(len, groups))


def test_names_of_data_and_checkpoints_are_no_settings():
    for method in CONFIGS:
        assert not {*DATA_NAMES, *CATEGORY_NAMES, RESUME_NAME} & places_of(CONFIGS[method]).keys()


@given(data=st.data())
def test_a_renamed_setting_has_the_value_and_the_effect_of_its_own_name(data):
    system, method = data.draw(st.sampled_from([row for row in ROWS if row[0].names]))
    defaults = flatten(CONFIGS[method]())
    name, key = data.draw(st.sampled_from(sorted(system.names.items())))
    value = data.draw(st.sampled_from([1, 2, 64, 0.5, "x", defaults[key]]))
    results = []
    for chosen in (name, key):
        try:
            results.append(build_config(method, {chosen: value})[0])
        except ArgumentError as err:
            results.append(str(err))
    if value is not None:  # null leaves an option of a script out
        assert results[0] == results[1]


def test_the_options_of_mvp_diff_are_its_preset():
    config, unused = build_config("inpainting", MVPDIFF)
    expected = {
        **{"batch_size": 6, "accumulate": 4, "epochs": 1000, "schedule": "constant", "preview_every": 100},
        **{"base": "checkpoints/inpainting", "resize": (512, 512), "optimizer": "adamw", "betas": (0.9, 0.999)},
        **{"weight_decay": 0.01, "epsilon": 1e-8, "clip_norm": 1.0, "snr_gamma": 10.0, "scale_lr": True},
        **{"mixed_precision": "fp16", "rank": 4, "max_steps": None, "learning_rate": 1e-7},
    }
    assert {key: flatten(config)[key] for key in expected} == expected
    assert set(unused) == {
        *("checkpointing_steps", "validation_file", "output_dir", "dataloader_num_workers", "report_to"),
        "max_train_steps",
    }


def test_the_options_of_diffusion_based_ad_are_its_preset():
    config, _ = build_config("ddad", {"backbone": "wide_resnet101_2", "conditioning": "blend"}, DBAD)
    expected = {
        **{"epochs": 1000, "checkpoint_every": 50, "weight": 0.1, "eta": 0.1, "noise": "gaussian", "steps": 25},
        **{"start": 250, "extractor": "autoencoder", "extractor_epochs": 30, "smoothing": 3, "pixel_threshold": 0.029},
        **{"feature_threshold": 0.33, "pixel_weight": 0.7, "feature_weight": 0.7, "resize": (256, 256)},
    }
    assert {key: flatten(config)[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("method", "layer", "message"),
    [
        ("ddad", {"recon_weight": 0.1, "weight": 0.2}, "recon_weight: expected it or weight, its name here, got both"),
        ("ddad", {"train_steps": 500}, "train_steps: expected 1000, got 500. There are 1,000 noise levels."),
        ("ddad", {"patching": True}, "patching: expected False, got True. Set tile to the side of the patches"),
        ("ddad", {"recon_weight": -1}, "weight: expected"),
        ("stfpm", {"recon_weight": 1}, "is no setting of stfpm. It is an option of Diffusion-Based-AD, weight here"),
        ("inpainting", {"prediction_type": "v_prediction"}, "expected epsilon, got 'v_prediction'. Networks are"),
        ("inpainting", {"lr_scheduler": "plateau"}, "lr_scheduler: expected constant or linear or"),
        ("embedding", {"train_batch_size": 6}, "It is an option of MvP-Diff, batch_size here, for inpainting"),
    ],
)
def test_what_has_no_equivalent_is_refused_by_name(method, layer, message):
    with pytest.raises(ArgumentError) as caught:
        build_config(method, layer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_later_layers_win_under_any_name_and_numbers_of_a_list_add_up():
    assert build_config("ddad", {"recon_weight": 0.1}, {"weight": 0.2})[0].weight == 0.2
    assert build_config("ddad", {"weight": 0.1}, {"recon_weight": 0.2})[0].weight == 0.2
    config, _ = build_config("inpainting", {"adam_beta1": 0.5}, {"adam_beta2": 0.9})
    assert config.denoising.betas == (0.5, 0.9)
    renamed = rename_settings("inpainting", {"adam_beta2": 0.9}, [{"betas": (0.5, 0.99)}])
    assert renamed.settings == {"betas": [0.5, 0.9]}


def test_a_warm_up_that_the_script_leaves_out_is_left_out():
    config, unused = build_config("inpainting", {"lr_scheduler": "constant", "lr_warmup_steps": 500})
    assert (config.loop.warmup_steps, unused) == (0, ("lr_warmup_steps",))
    config, _ = build_config("inpainting", {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 500})
    assert (config.loop.warmup_steps, config.loop.schedule) == (500, "constant")


def test_what_options_are_here_is_said(tiny_root, tmp_path, capsys):
    path = tmp_path / "mvp.yml"
    path.write_text(json.dumps({**MVPDIFF, "train_data_dir": f"{tiny_root}/steel", "class_name": "steel"}))
    typed = ["--set", "num_train_epochs=5", "--set", "base=", "--out", str(tmp_path / "run")]
    assert run(["train", "inpainting", "--config", str(path), *typed]) == 2
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "note: train_batch_size of MvP-Diff is batch_size here" in notes
    said = [line for line in notes if line.startswith("note: validation_file is not used")]
    assert said == [
        "note: validation_file is not used: its lines are for previews, and here previews are drawn on images of the "
        "support set"
    ]
    # Each name once.
    assert sum("validation_file" in line for line in notes) == 1
