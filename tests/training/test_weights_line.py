"""What weights say about their use, from the file to what people read: `train`, run, manifest, `bundle info`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_networks import save, small_state
from tiny_dataset import CATEGORY

from flawscope import cli
from flawscope.runs import read_run_record


@pytest.mark.long
def test_what_was_assumed_of_weights_is_printed_recorded_and_shown(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(small_state("mobilenetv2_035"), tmp_path / "w.safetensors")
    run, bundle = tmp_path / "run", tmp_path / "b.flaw"

    def flawscope(*arguments: object) -> tuple[str, str]:
        status = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out, err

    data = ("--data", tiny_root, "--category", CATEGORY, "--image-size", 64, "--out", run)
    backbone = ("--backbone", "mobilenetv2_035", "--weights", file)
    _, errors = flawscope("train", "patchcore", *data, *backbone, "--set", "coreset=20")
    (line,) = [line for line in errors.splitlines() if "assumed" in line]
    assert "mean 0.485,0.456,0.406 (timm's configuration of mobilenetv2_035" in line
    assert "padding by default (as timm builds it)" in line
    record, _ = read_run_record(run)
    assert record.backbone.conditions == (line,)
    # What the run was trained with is written out: it means the same with another version of timm.
    assert record.config.features.stages == (2, 3)  # type: ignore[attr-defined]
    assert record.config.features.mean == (0.485, 0.456, 0.406)  # type: ignore[attr-defined]
    flawscope("export", run, "--out", bundle)
    shown, _ = flawscope("bundle", "info", bundle)
    assert line.removeprefix("weights: ") in shown
    facts = json.loads(flawscope("bundle", "info", bundle, "--json")[0])
    assert facts["provenance"]["conditions"] == [line]


def test_the_line_and_the_settings_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "patchcore", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Weights carry conditions",
        "blocks after each quarter of the depth",
        "accept_licence",
        "stages=null",
    ):
        assert words in text


def test_weights_whose_licence_forbids_commercial_use_are_one_line_and_leave_nothing(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.dumps({"licence": "cc-by-nc-4.0"})
    file = save(small_state("mobilenetv2_035"), tmp_path / "w.safetensors", {"flawscope": said})
    run = tmp_path / "run"
    arguments = ["train", "patchcore", "--data", str(tiny_root), "--category", CATEGORY, "--image-size", "64"]
    arguments += ["--backbone", "mobilenetv2_035", "--weights", str(file), "--out", str(run)]
    assert cli.run(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "cc-by-nc-4.0, which forbids commercial use" in errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.safetensors"]
