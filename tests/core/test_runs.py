"""Run records: what the readers take and refuse, and records of schema 1 with settings that nothing ever read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from flawscope.config import CONFIGS, flatten
from flawscope.config.setting_parts import places_of
from flawscope.errors import RunError
from flawscope.runs import (
    RUN_SCHEMA,
    SYNTHESIS_SCHEMA,
    encode_record,
    generator_kinds,
    read_autoencoder_record,
    read_run_record,
    read_synthesis_record,
    run_kind,
)

SCHEMA_1 = {
    "stfpm": """
{"method": "stfpm", "backbone": "resnet18", "stages": [1, 2, 3], "backbone_options": {}, "mean": null, "std": null,
"resize": [256, 256], "crop": null, "tile": [64, 64], "tile_overlap": 0.25, "upsample": "nearest", "standardize":
"scale", "sigma": 2.0, "held_out": 0.1, "held_out_minimum": 20, "batch_size": 32, "num_workers": 2, "device": "auto",
"memory_budget_mb": 1024, "seed": 0, "epochs": 3, "learning_rate": 0.4, "schedule": "constant", "cycles": 1, "power":
1.0, "warmup_steps": 0, "accumulate": 1, "clip_norm": 0.0, "ema": 0.0, "max_steps": null, "mixed_precision": "no",
"tf32": false, "validation": 0.2, "checkpoint_every": 1, "checkpoints_kept": 2, "preview_every": 10, "tensorboard":
false, "momentum": 0.9, "weight_decay": 0.0001, "loss": "paper"}
""",
    "autoencoder": """
{"method": "autoencoder", "backbone": "scattering", "stages": [1, 2, 3], "backbone_options": {}, "mean": null, "std":
null, "resize": [32, 32], "crop": null, "tile": null, "tile_overlap": 0.25, "upsample": "bilinear", "standardize":
"auto", "sigma": 9.0, "held_out": 0.1, "held_out_minimum": 20, "batch_size": 4, "num_workers": 2, "device": "auto",
"memory_budget_mb": 1024, "seed": 0, "epochs": 100, "learning_rate": 0.00018, "schedule": "constant", "cycles": 1,
"power": 1.0, "warmup_steps": 0, "accumulate": 8, "clip_norm": 0.0, "ema": 0.0, "max_steps": null, "mixed_precision":
"no", "tf32": false, "validation": 0.2, "checkpoint_every": 1, "checkpoints_kept": 2, "preview_every": 10,
"tensorboard": false, "base": null, "widths": [8, 16], "layers": 2, "latent": 4, "normalization": "signed",
"perceptual": 1.0, "kl": 0.5, "betas": [0.5, 0.9], "gradient_checkpointing": false}
""",
    "embedding": """
{"method": "embedding", "backbone": "resnet50", "stages": [2], "backbone_options": {}, "mean": null, "std": null,
"resize": [64, 64], "crop": [48, 48], "tile": null, "tile_overlap": 0.25, "upsample": "nearest", "standardize":
"auto", "sigma": 4.0, "held_out": 0.4, "held_out_minimum": 20, "batch_size": 4, "num_workers": 2, "device": "auto",
"memory_budget_mb": 1024, "seed": 0, "epochs": 5, "learning_rate": 0.005, "schedule": "constant", "cycles": 1,
"power": 1.0, "warmup_steps": 0, "accumulate": 1, "clip_norm": 0.0, "ema": 0.0, "max_steps": null, "mixed_precision":
"no", "tf32": false, "validation": 0.2, "checkpoint_every": 1, "checkpoints_kept": 2, "preview_every": 10,
"tensorboard": false, "optimizer": "adamw", "weight_decay": 0.01, "betas": [0.9, 0.999], "gradient_checkpointing":
false, "base": "base", "support": "support", "defects": [], "repeats": 100, "scale_lr": true, "crop_defects": true,
"crop_fill": 0.5, "flip": 0.5, "epsilon": 1e-08, "vectors": 1, "placeholder": "*", "init_word": "defect", "mask_loss":
"mean"}
""",
}
"""Settings as records of schema 1 had them: with all that the method's class had inherited."""

_DETECTOR = {
    "backbone",
    "stages",
    "backbone_options",
    "mean",
    "std",
    "resize",
    "crop",
    "tile",
    "tile_overlap",
    "upsample",
    "standardize",
    "sigma",
    "held_out",
    "held_out_minimum",
    "batch_size",
    "num_workers",
    "device",
    "memory_budget_mb",
    "seed",
}
_TRAINED = _DETECTOR | {
    "epochs",
    "learning_rate",
    "schedule",
    "cycles",
    "power",
    "warmup_steps",
    "accumulate",
    "clip_norm",
    "ema",
    "max_steps",
    "mixed_precision",
    "tf32",
    "validation",
    "checkpoint_every",
    "checkpoints_kept",
    "preview_every",
    "tensorboard",
}
_DENOISING = _TRAINED | {"optimizer", "weight_decay", "betas", "gradient_checkpointing"}
INHERITED = {
    "patchcore": _DETECTOR,
    "padim": _DETECTOR,
    "stfpm": _TRAINED,
    "ddad": _DENOISING,
    "dsad": _DENOISING,
    "autoencoder": _TRAINED,
    "base": _DENOISING,
    "embedding": _DENOISING,
    "inpainting": _DENOISING,
}
"""Method -> settings that its class of schema 1 had from the classes above it."""


def record_of(config, schema=1):
    method = config.get("method")
    record = {
        "kind": method if method in (*generator_kinds(), "autoencoder") else "detector",
        "config": config,
        "category": "gear",
        "layout": "mvtec",
        "dataset": "sha256:0",
        "training": ["1" * 64],
        "facts": {"scaling": 0.5},
        "seconds": {"fitting": 1.5},
        "versions": {"torch": "2"},
        "created": "2026-11-20T10:00:00+00:00",
        "command": "flawscope train",
        "flawscope": "0.1.0",
        "schema": schema,
    }
    if record["kind"] in generator_kinds():
        return {**record, "base": "0", "licence": "own", "defects": [], "networks": {}}
    backbone = {"name": "scattering", "weights": "none", "licence": "Apache-2.0"}
    return {**record, "held_out": [], "backbone": backbone, "grid": [8, 8], "channels": None}


def write(folder, record):
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def read(folder):
    reader = read_synthesis_record if run_kind(folder) in generator_kinds() else read_run_record
    return reader(folder)[0]


@pytest.mark.parametrize("method", SCHEMA_1)
def test_a_record_of_schema_1_opens_with_the_same_meaning(tmp_path, method):
    old = json.loads(SCHEMA_1[method])
    record = read(write(tmp_path, record_of(old)))
    flat = json.loads(json.dumps(flatten(record.config)))
    if method == "embedding":
        assert record.config.preprocessing.size == (48, 48)  # the size of its crop is what it was learned at
        assert flat.pop("resize") == [48, 48]
    assert flat.pop("resize_rule") == 1  # a record that does not say is older than rule 2
    assert flat.pop("align", False) is False  # its stages were taken as centred
    assert getattr(record, "places", None) is None
    assert flat.pop("bits") is None
    assert flat.pop("resize_mode", "stretch") == "stretch"
    # What was read before there was a choice: raw blocks, and weights of any licence.
    assert not flat.pop("final_norm", False)
    assert flat.pop("accept_licence", None) is None
    assert flat.pop("patience", None) is None  # all epochs were taken
    assert not flat.pop("drawn", [])  # support images alone were learned from
    assert flat.pop("drawn_number", None) is None
    assert flat == {name: old[name] for name in flat}
    assert set(old) - set(flat) - {"resize"} == set(old) - {"method"} - set(places_of(CONFIGS[method]))
    assert record.schema == RUN_SCHEMA == SYNTHESIS_SCHEMA == 2


@pytest.mark.parametrize("method", INHERITED)  # those of that time; later ones have no records of schema 1
def test_of_schema_1_only_what_the_method_inherited_and_did_not_use_is_dropped(tmp_path, method):
    places = places_of(CONFIGS[method])
    flat = json.loads(json.dumps(flatten(CONFIGS[method]())))
    everything = {key: value for kind in CONFIGS.values() for key, value in flatten(kind()).items()}
    idle = {key: everything[key] for key in INHERITED[method] - set(places)}
    assert read(write(tmp_path, record_of({**flat, **idle}))).config == CONFIGS[method]()
    for key in set(everything) - INHERITED[method] - set(places) - {"method"}:
        with pytest.raises(RunError, match=f"unknown field `{key}` - at `\\$.config`"):
            read(write(tmp_path, record_of({**flat, key: everything[key]})))
    for key in idle:  # a record of today has no reason to name them
        with pytest.raises(RunError, match=f"unknown field `{key}` - at `\\$.config`"):
            read(write(tmp_path, record_of({**flat, key: idle[key]}, schema=2)))


@pytest.mark.parametrize("method", CONFIGS)
def test_a_record_is_read_as_it_was_written_and_is_flat(tmp_path, method):
    record = read(write(tmp_path, record_of(json.loads(json.dumps(flatten(CONFIGS[method]()))), schema=2)))
    text = encode_record(record)
    assert set(json.loads(text)["config"]) == {"method", *places_of(CONFIGS[method])}
    assert not any(isinstance(value, dict) and value for value in json.loads(text)["config"].values())
    (tmp_path / "run.json").write_bytes(text)
    assert read(tmp_path) == record
    assert text.endswith(b"}\n")


@pytest.mark.parametrize("method", ["padim", "base"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3, "later": 1}, "expected run schema 2 or older, got 3. It was written by a newer flawscope"),
        ({"schema": "2"}, "is no run of this version: Expected `int`, got `str`"),
        ({"schema": True}, "is no run of this version: Expected `int`, got `bool`"),
        ({"later": 1}, "is no run of this version: Object contains unknown field `later`"),
        ({"config": 3}, "is no run of this version: Expected `object`, got `int` - at `$.config`"),
        ({"config": {"method": "other"}}, "is no run of this version: Invalid value 'other' - at `$.config.method`"),
        ({"config": {"method": []}}, "is no run of this version"),
    ],
)
def test_what_is_no_record_is_refused_in_a_line(tmp_path, method, change, message):
    record = {**record_of(json.loads(json.dumps(flatten(CONFIGS[method]()))), schema=2), **change}
    with pytest.raises(RunError) as caught:
        read(write(tmp_path, record))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_settings_names_them_as_they_are_in_the_file(tmp_path):
    flat = json.loads(json.dumps(flatten(CONFIGS["stfpm"]())))
    with pytest.raises(RunError, match=r"Expected `int`, got `str` - at `\$.config.epochs`. Train again"):
        read(write(tmp_path, record_of({**flat, "epochs": "x"}, schema=2)))
    with pytest.raises(RunError, match=r"version: ema: expected a decay from 0 to below 1, got 2.0.. Train again"):
        read(write(tmp_path, record_of({**flat, "ema": 2}, schema=2)))


def test_the_autoencoder_of_a_record_of_schema_1_opens(tmp_path):
    config, scaling = read_autoencoder_record(write(tmp_path, record_of(json.loads(SCHEMA_1["autoencoder"]))))
    assert (config.widths, config.kl, config.input.resize, scaling) == ((8, 16), 0.5, (32, 32), 0.5)


def test_a_record_of_another_kind_is_no_autoencoder(tmp_path):
    wording = "expected a run of train autoencoder, got another: a run of stfpm. Name such a run, or a folder with an"
    with pytest.raises(RunError, match=wording):
        read_autoencoder_record(write(tmp_path, record_of(json.loads(SCHEMA_1["stfpm"]))))
    record = record_of(json.loads(SCHEMA_1["autoencoder"]))
    with pytest.raises(RunError, match="expected a run of train autoencoder, got another: Expected `float`"):
        read_autoencoder_record(write(tmp_path, {**record, "facts": {}}))


def test_records_are_read_without_torch():
    code = "import sys, flawscope.runs; assert 'torch' not in sys.modules and 'msgspec' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("method", "kind"), [("padim", "autoencoder"), ("padim", "nonsense"), ("embedding", "base")])
def test_a_kind_that_the_settings_contradict_is_refused(tmp_path, method, kind):
    record = {**record_of(json.loads(json.dumps(flatten(CONFIGS[method]()))), schema=2), "kind": kind}
    with pytest.raises(RunError, match=r"is no run of this version: Expected `\w+`, got '\w+' - at `\$\.kind`"):
        read(write(tmp_path, record))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"grid": [0, 0]}, r"\$\.grid"),
        ({"channels": [-1]}, r"\$\.channels"),
        *(({"schema": value}, r"\$\.schema") for value in ("2", None, 1.5, True, 0, -1)),
    ],
)
def test_numbers_that_no_training_writes_are_refused(tmp_path, change, place):
    record = {**record_of(json.loads(json.dumps(flatten(CONFIGS["padim"]()))), schema=2), **change}
    with pytest.raises(RunError, match=rf"is no run of this version: .* at `{place}"):
        read(write(tmp_path, record))
